//! What came of one test.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::script::{CONSOLE, ERRORS, GuestTest};

/// The checks of one test and their results.
#[derive(Debug)]
pub struct Report {
    /// The test's name.
    pub name: &'static str,
    /// Labels and, where a check failed or is missing, why.
    pub checks: BTreeMap<String, Option<String>>,
    /// All that the host's half and the guest's console said.
    pub output: String,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Reads what a test said.
    pub(crate) fn new(test: &GuestTest, output: String, took: Duration) -> Self {
        let absent = || Some("did not report".to_owned());
        let mut checks: BTreeMap<String, Option<String>> = test
            .labels()
            .into_iter()
            .map(|label| (label, absent()))
            .collect();
        checks.insert("exit code".into(), absent());
        for line in output.lines() {
            let line = line.trim_end();
            // The guest's console may hold other words before it, of a kernel that spoke meanwhile.
            if let Some((_, label)) = line.split_once("check ok: ") {
                let result = checks.entry(label.to_owned()).or_default();
                // Once failed, it stays so: a check in a guest that boots twice must hold twice.
                if result.as_deref() == Some("did not report") {
                    *result = None;
                }
            } else if let Some((_, failure)) = line.split_once("check failed: ") {
                let (label, why) = failure.split_once(": ").unwrap_or((failure, ""));
                checks.insert(label.to_owned(), Some(why.to_owned()));
            }
        }
        Self {
            name: test.name,
            checks,
            output,
            took,
        }
    }

    /// What the console said, where it was standard output.
    pub fn console(&self) -> &str {
        let behind = self.output.split_once(CONSOLE).map_or("", |(_, text)| text);
        let text = behind.rsplit_once(ERRORS).map_or(behind, |(text, _)| text);
        text.strip_prefix('\n').unwrap_or(text)
    }

    /// What `nyx` wrote to its standard error.
    pub fn errors(&self) -> &str {
        let text = self.output.rsplit_once(ERRORS).map_or("", |(_, text)| text);
        text.strip_prefix('\n').unwrap_or(text)
    }

    /// Adds a check.
    pub fn add(&mut self, label: &str, failure: Option<String>) {
        self.checks.insert(label.to_owned(), failure);
    }

    /// Did everything hold?
    pub fn is_good(&self) -> bool {
        self.checks.values().all(Option::is_none)
    }

    /// A line for each check, and all that was said if one failed.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}: {} checks, {:.1} s\n",
            self.name,
            self.checks.len(),
            self.took.as_secs_f64()
        );
        for (label, failure) in &self.checks {
            text.push_str(&match failure {
                None => format!("  ok      {label}\n"),
                Some(why) => format!("  FAILED  {label}: {why}\n"),
            });
        }
        if !self.is_good() {
            text.push_str("  --- all of it:\n");
            for line in self.output.lines() {
                text.push_str(&format!("  | {}\n", line.trim_end()));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_failed_and_good_checks_are_told_apart() {
        let test = GuestTest {
            guest: "expect \"good\" 1 1\nexpect \"bad\" 1 2\nexpect \"absent\" 1 1",
            ..GuestTest::NOTHING
        };
        let said = "x\r\ncheck ok: good\r\ncheck failed: bad: wanted '1': no\r\ncheck ok: bad\r\ncheck ok: exit code\n";
        let report = Report::new(&test, said.into(), Duration::ZERO);
        let of = |label: &str| report.checks[label].as_deref();
        assert_eq!(of("good"), None);
        assert_eq!(of("exit code"), None);
        assert_eq!(of("bad"), Some("wanted '1': no"));
        assert_eq!(of("absent"), Some("did not report"));
        assert!(!report.is_good());
        assert!(report.text().contains("FAILED  bad: wanted '1': no"));
    }

    #[test]
    fn console_and_errors_are_told_apart() {
        let said = "x\n--- console:\none\ntwo\n--- standard error:\nnyx: stopped\n";
        let mut report = Report::new(&GuestTest::NOTHING, said.into(), Duration::ZERO);
        assert_eq!(
            (report.console(), report.errors()),
            ("one\ntwo\n", "nyx: stopped\n")
        );
        report.add("exit code", None);
        assert!(report.is_good());
    }
}
