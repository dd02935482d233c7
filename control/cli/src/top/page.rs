//! Reads a metrics page (Prometheus text exposition format 0.0.4), which a machine need not have written well.

use serde::Serialize;
use std::collections::BTreeMap;

/// One sample.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Sample {
    /// A label's value, empty without.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// Every sample of a page; lines that make no sense are passed over.
pub(crate) fn samples(page: &str) -> Vec<Sample> {
    page.lines().filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name: name.into(),
        labels,
        value,
    })
}

/// Labels up to the closing brace, and what follows it.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text.trim_start();
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.trim().to_string(), value);
        rest = after.get(end + 1..)?.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_and_nonsense_is_passed_over() {
        let page = "# HELP a b\n# TYPE a counter\na_total 3\na{x=\"1\",y=\"q\\\"} z\\n\",} 2.5 17\n\
                    broken{x=\"1 4\nhalf\nnan NaN\n{} 1\n";
        let read = samples(page);
        assert_eq!(read[0].name, "a_total");
        assert_eq!((read[0].value, read[0].label("x")), (3.0, ""));
        assert_eq!(read[1].label("y"), "q\"} z\n");
        assert_eq!((read[1].value, read[1].label("x")), (2.5, "1"));
        assert!(read[2].value.is_nan());
        assert_eq!(read.len(), 4);
    }
}
