//! `docs/grafana/nyx.json`: its queries, and that they ask for what the page has.

use crate::lint::families;
use crate::machine::Machine;
use nyx_harness::workspace;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

/// The dashboard.
pub(crate) fn dashboard() -> Value {
    let path = workspace::root().join("docs/grafana/nyx.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Every query of every panel, as Grafana would send it with all machines chosen: panel and text.
pub(crate) fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array();
        for target in targets.map(Vec::as_slice).unwrap_or_default() {
            let text = target["expr"].as_str().unwrap();
            let text = text.replace("$vm", ".*").replace("$__rate_interval", "10s");
            found.push((title.to_owned(), text));
        }
    }
    found
}

/// Names of metrics in a query.
pub(crate) fn metrics(query: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let names = query.split(word).filter(|word| word.starts_with("nyx_"));
    names.map(str::to_owned).collect()
}

/// Whether it depends on the host or the hypervisor that there is a metric `name`.
pub(crate) fn not_everywhere(name: &str) -> bool {
    let families = ["nyx_host_", "nyx_cgroup_", "nyx_kvm_"];
    families.iter().any(|family| name.starts_with(family))
}

#[test]
fn every_query_asks_for_metrics_that_exist() {
    let families = families(&Machine::new().metrics("dash").page(None));
    let dashboard = dashboard();
    let queries = queries(&dashboard);
    assert!(queries.len() > 35, "{}", queries.len());
    for (panel, query) in &queries {
        assert!(
            !query.contains('$'),
            "{panel}: {query} has a variable nobody knows"
        );
        assert!(
            query.contains("vm=~\".*\""),
            "{panel}: {query} is not about the chosen machines"
        );
        let names = metrics(query);
        assert!(!names.is_empty(), "{panel}: {query}");
        for name in names {
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .filter(|family| families.contains_key(*family))
                .unwrap_or(&name);
            // Not every host tells these.
            let depends = not_everywhere(&name);
            assert!(
                depends || families.contains_key(family),
                "{panel}: no metric {name}"
            );
        }
    }
}

#[test]
fn panels_and_variables_are_as_grafana_wants_them() {
    let dashboard = dashboard();
    assert_eq!(dashboard["schemaVersion"], 39);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables
        .iter()
        .filter_map(|v| v["name"].as_str())
        .collect();
    assert_eq!(names, ["datasource", "vm"]);
    assert_eq!(variables[0]["type"], "datasource");
    assert_eq!(variables[1]["definition"], "label_values(nyx_vcpus, vm)");
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = &panel["title"];
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(cells.insert((x, y)), "{title} lies on another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(
            panel["description"].as_str().is_some_and(|d| d.len() > 10),
            "{title}"
        );
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
}
