//! `docs/metrics.md` against the page.

use crate::lint::{families, labels};
use crate::machine::Machine;
use nyx_harness::workspace;
use std::collections::BTreeSet;
use std::fs;

/// The row of `docs/metrics.md` for each family of `page`, as it should be.
fn rows(page: &str) -> BTreeSet<String> {
    let labels = labels(page);
    let row = |(name, (kind, help)): (String, (String, String))| {
        let unit = ["seconds", "bytes"]
            .into_iter()
            .find(|unit| name.trim_end_matches("_total").ends_with(unit))
            .unwrap_or("–");
        let own = labels[&name].iter().filter(|label| *label != "vm");
        let own: Vec<String> = own.map(|label| format!("`{label}`")).collect();
        format!(
            "| `{name}` | {kind} | {unit} | {} | {help} |",
            own.join(" ")
        )
    };
    families(page).into_iter().map(row).collect()
}

/// The rows that are there.
fn documented() -> BTreeSet<String> {
    let path = workspace::root().join("docs/metrics.md");
    let text = fs::read_to_string(path).unwrap_or_default();
    let rows = text.lines().filter(|line| line.starts_with("| `nyx_"));
    rows.map(str::to_owned).collect()
}

#[test]
fn every_metric_is_documented_and_nothing_else() {
    let there = documented();
    // What not every host tells, and is in the document nonetheless.
    let depends = |row: &&String| {
        let families = ["`nyx_host_", "`nyx_cgroup_", "`nyx_kvm_"];
        families.iter().any(|family| row.contains(family))
    };
    let wanted = rows(&Machine::new().metrics("doc").page(None));
    let missing: Vec<&String> = wanted.difference(&there).collect();
    let extra: Vec<&String> = there
        .difference(&wanted)
        .filter(|row| !depends(row))
        .collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "docs/metrics.md lacks:\n{}\nand has too much:\n{}",
        missing.into_iter().cloned().collect::<Vec<_>>().join("\n"),
        extra.into_iter().cloned().collect::<Vec<_>>().join("\n"),
    );
}
