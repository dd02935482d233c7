//! Stages of a long command: each announced, timed, and listed in a table at the end.

use std::time::{Duration, Instant};

/// What came of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Checks or tests that passed.
    pub(crate) passed: u64,
    /// Checks or tests that failed.
    pub(crate) failed: u64,
}

impl Count {
    /// One check that passed.
    pub(crate) const PASS: Self = Self {
        passed: 1,
        failed: 0,
    };
    /// One check that failed.
    pub(crate) const FAIL: Self = Self {
        passed: 0,
        failed: 1,
    };
}

/// A stage that is over.
#[derive(Debug)]
struct Row {
    name: String,
    took: Duration,
    remark: String,
}

/// The stages so far.
#[derive(Debug)]
pub(crate) struct Stages {
    start: Instant,
    rows: Vec<Row>,
}

impl Stages {
    /// Starts the clock.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            rows: Vec::new(),
        }
    }

    /// Runs one stage; it appears in the table even if it fails.
    pub(crate) fn run<T>(&mut self, name: &str, work: impl FnOnce() -> T) -> T {
        println!("==> {name}");
        let start = Instant::now();
        let result = work();
        self.add(name, start.elapsed());
        result
    }

    /// Adds a stage that was timed elsewhere.
    pub(crate) fn add(&mut self, name: &str, took: Duration) {
        self.rows.push(Row {
            name: name.to_owned(),
            took,
            remark: String::new(),
        });
    }

    /// Says something of the last stage.
    pub(crate) fn remark(&mut self, remark: impl Into<String>) {
        if let Some(row) = self.rows.last_mut() {
            row.remark = remark.into();
        }
    }

    /// The table, with the total as its last line.
    pub(crate) fn table(&self) -> String {
        let total = ("total".to_owned(), self.start.elapsed(), String::new());
        let rows = self
            .rows
            .iter()
            .map(|row| (row.name.clone(), row.took, row.remark.clone()));
        let rows: Vec<_> = rows.chain([total]).collect();
        let width = rows
            .iter()
            .map(|(name, ..)| name.chars().count())
            .max()
            .unwrap_or(0);
        let mut table = String::new();
        for (name, took, remark) in rows {
            let line = format!("  {name:width$}  {:>8}  {remark}", seconds(took));
            table.push_str(line.trim_end());
            table.push('\n');
        }
        table
    }
}

/// A duration as a person reads it.
fn seconds(took: Duration) -> String {
    if took < Duration::from_secs(100) {
        format!("{:.2} s", took.as_secs_f64())
    } else {
        format!("{} m {:02} s", took.as_secs() / 60, took.as_secs() % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_every_stage() {
        let mut stages = Stages {
            start: Instant::now(),
            rows: Vec::new(),
        };
        let result: Result<(), &str> = stages.run("breaks", || Err("so"));
        assert!(result.is_err());
        stages.remark("1 failed");
        stages.add("build the thing", Duration::from_secs(125));
        let table = stages.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[0].starts_with("  breaks ") && lines[0].ends_with("0.00 s  1 failed"),
            "{table}"
        );
        assert_eq!(lines[1], "  build the thing  2 m 05 s");
        assert!(lines[2].starts_with("  total "), "{table}");
    }
}
