//! The rules of `promtool check metrics`, so that a breach is seen without it.

use crate::machine::Machine;
use std::collections::BTreeMap;

/// Kind and help of each family on `page`.
pub(crate) fn families(page: &str) -> BTreeMap<String, (String, String)> {
    let mut families: BTreeMap<String, (String, String)> = BTreeMap::new();
    for line in page.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => families.entry(name.into()).or_default().1 = help.into(),
            ["#", "TYPE", name, kind] => families.entry(name.into()).or_default().0 = kind.into(),
            _ => {}
        }
    }
    families
}

/// Label names of each family on `page`, without those of the format itself.
pub(crate) fn labels(page: &str) -> BTreeMap<String, Vec<String>> {
    let families = families(page);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once('{').unwrap();
        let family = families
            .keys()
            .find(|f| {
                let suffix = name.strip_prefix(f.as_str());
                matches!(suffix, Some("" | "_bucket" | "_sum" | "_count"))
            })
            .unwrap();
        let names = found.entry(family.clone()).or_default();
        let labels = rest.rsplit_once('}').unwrap().0;
        for pair in labels.split("\",") {
            let label = pair.split_once('=').unwrap().0;
            if label != "le" && !names.iter().any(|n| n == label) {
                names.push(label.into());
            }
        }
    }
    found
}

#[test]
fn the_page_keeps_the_rules_of_names() {
    let page = Machine::new().metrics("lint").page(None);
    let families = families(&page);
    assert!(families.len() > 60, "{}", families.len());
    for (name, (kind, help)) in &families {
        let counter = kind == "counter";
        assert_eq!(name.ends_with("_total"), counter, "{name} is a {kind}");
        for suffix in ["_bucket", "_count", "_sum"] {
            assert!(!name.ends_with(suffix), "{name}");
        }
        let kinds = ["counter", "gauge", "histogram", "summary"];
        let units = [
            "ms",
            "us",
            "ns",
            "kb",
            "milliseconds",
            "microseconds",
            "nanoseconds",
            "minutes",
            "percent",
        ];
        for word in name.split('_') {
            assert!(!kinds.contains(&word), "{name} says its kind");
            assert!(!units.contains(&word), "{name} has no base unit");
        }
        assert!(
            help.len() > 15 && help.ends_with('.'),
            "{name}: help {help:?}"
        );
        assert!(
            name.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        );
        assert!(name.starts_with("nyx_"));
    }
}

#[test]
fn no_sample_is_there_twice_and_each_names_its_machine() {
    let page = Machine::new().metrics("lint").page(None);
    let mut seen = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (id, value) = line.rsplit_once(' ').unwrap();
        assert_eq!(seen.insert(id, value), None, "{id}");
        assert!(id.contains("{vm=\"lint\""), "{id}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    // A part is a last resort: names should tell things apart.
    assert!(!page.contains(",part="), "{page}");
}
