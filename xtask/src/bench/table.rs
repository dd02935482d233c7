//! The figures: collected run by run, told as medians.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nyx_harness::tool::Tool;
use nyx_harness::workspace;
use serde_json::{Value, json};

use super::vmm::Vmm;

/// One row: what was measured, in what.
#[derive(Clone, Debug)]
struct Row {
    what: String,
    unit: &'static str,
    /// By VMM.
    samples: BTreeMap<&'static str, Vec<f64>>,
}

/// All figures of one run.
pub(crate) struct Table {
    vmms: Vec<(&'static str, String)>,
    rows: Vec<Row>,
    failures: BTreeMap<(&'static str, &'static str), String>,
}

impl Table {
    pub(crate) fn new(vmms: &[Vmm]) -> Self {
        Self {
            vmms: vmms.iter().map(|vmm| (vmm.name(), vmm.version())).collect(),
            rows: Vec::new(),
            failures: BTreeMap::new(),
        }
    }

    /// Adds one sample of `vmm`.
    pub(crate) fn add(&mut self, what: &str, unit: &'static str, vmm: &Vmm, value: f64) {
        let at = match self.rows.iter().position(|row| row.what == what) {
            Some(at) => at,
            None => {
                self.rows.push(Row {
                    what: what.to_owned(),
                    unit,
                    samples: BTreeMap::new(),
                });
                self.rows.len() - 1
            }
        };
        if let Some(row) = self.rows.get_mut(at) {
            row.samples.entry(vmm.name()).or_default().push(value);
        }
    }

    /// Notes why a measure has no figure.
    pub(crate) fn failed(&mut self, measure: &'static str, vmm: &'static str, why: String) {
        self.failures.insert((measure, vmm), why);
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let figures: serde_json::Map<_, _> = row
                    .samples
                    .iter()
                    .map(|(vmm, samples)| {
                        let figure = json!({ "median": median(samples), "samples": samples });
                        ((*vmm).to_owned(), figure)
                    })
                    .collect();
                json!({ "measure": row.what, "unit": row.unit, "figures": figures })
            })
            .collect();
        let failures: Vec<_> = self
            .failures
            .iter()
            .map(|((measure, vmm), why)| json!({ "measure": measure, "vmm": vmm, "why": why }))
            .collect();
        let versions: serde_json::Map<_, _> = self
            .vmms
            .iter()
            .map(|(vmm, version)| ((*vmm).to_owned(), version.clone().into()))
            .collect();
        json!({
            "unix_time": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
            "commit": commit(),
            "machine": machine(),
            "versions": versions,
            "rows": rows,
            "failures": failures,
        })
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("| measure | unit |");
        let mut rule = String::from("|---|---|");
        for (vmm, _) in &self.vmms {
            text.push_str(&format!(" {vmm} |"));
            rule.push_str("---:|");
        }
        text = format!("{text}\n{rule}\n");
        for row in &self.rows {
            let _ = write!(text, "| {} | {} |", row.what, row.unit);
            for (vmm, _) in &self.vmms {
                match row.samples.get(vmm).and_then(|samples| median(samples)) {
                    Some(value) => text.push_str(&format!(" {} |", short(value))),
                    None => text.push_str(" – |"),
                }
            }
            text.push('\n');
        }
        for ((measure, vmm), why) in &self.failures {
            let _ = writeln!(text, "\n{measure}, {vmm}: {why}");
        }
        for (vmm, version) in &self.vmms {
            let _ = writeln!(text, "\n{vmm}: {version}");
        }
        text
    }
}

/// The middle one; of two in the middle, their mean.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// As many digits as mean something.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100_000.0 => format!("{:.0}k", value / 1000.0),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn commit() -> String {
    let git = Tool::new("git")
        .folder(workspace::root())
        .args(["describe", "--always", "--dirty"]);
    git.text().unwrap_or_default().trim_end().to_owned()
}

fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    json!({
        "processor": model,
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim_end(),
        "load": read("/proc/loadavg").trim_end(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn figures_are_shown_with_the_digits_that_count() {
        assert_eq!(short(1.234), "1.23");
        assert_eq!(short(12.34), "12.3");
        assert_eq!(short(1234.5), "1234");
        assert_eq!(short(1_234_567.0), "1235k");
    }

    #[test]
    fn a_row_has_a_cell_for_each_vmm() {
        let vmms = [
            Vmm::nyx("/nonexistent".into()),
            Vmm::qemu("/nonexistent".into()),
        ];
        let mut table = Table::new(&vmms);
        table.add("start", "ms", &vmms[0], 2.0);
        table.add("start", "ms", &vmms[0], 4.0);
        table.failed("start", vmms[1].name(), "why".into());
        let text = table.markdown();
        assert!(text.contains("| start | ms | 3.00 | – |"), "{text}");
        assert!(text.contains("start, QEMU microvm: why"), "{text}");
        assert_eq!(table.json()["rows"][0]["figures"]["Nyx"]["median"], 3.0);
    }
}
