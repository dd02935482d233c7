//! The JSON view of the tree.

use crate::{Distribution, Inspect, Leaf, Visitor};
use serde_json::{Map, Value, json};

/// Builds the JSON inspect tree.
#[derive(Default)]
pub struct Json(Map<String, Value>);

impl Json {
    /// The tree under `root`.
    pub fn of(root: &dyn Inspect) -> Value {
        let mut json = Self::default();
        root.inspect(&mut json);
        Value::Object(json.0)
    }
}

impl Visitor for Json {
    fn leaf(&mut self, name: &str, leaf: Leaf) {
        let value = match leaf {
            Leaf::Count(n) | Leaf::Level(n) | Leaf::Number(n) => n.into(),
            Leaf::Time(nanos) => (nanos as f64 / 1e9).into(),
            Leaf::Histogram(distribution) => durations(&distribution),
            Leaf::Hex(n) => format!("{n:#x}").into(),
            Leaf::Flag(b) => b.into(),
            Leaf::Text(s) => s.into(),
        };
        self.0.insert(name.into(), value);
    }
    fn child(&mut self, name: &str, child: &dyn Inspect) {
        self.0.insert(name.into(), Self::of(child));
    }
}

/// Without samples only the count is there: nothing else is known.
fn durations(d: &Distribution) -> Value {
    let count = d.count();
    if count == 0 {
        return json!({ "count": 0 });
    }
    json!({
        "count": count,
        "min_ns": d.min(),
        "avg_ns": d.average(),
        "max_ns": d.max(),
        "p50_ns": d.quantile(0.5),
        "p90_ns": d.quantile(0.9),
        "p99_ns": d.quantile(0.99),
    })
}

/// The part of `tree` at `path`: names joined by slashes. Names may contain slashes themselves (`pci/00:03.0`);
/// the longest one that fits is taken.
///
/// # Errors
///
/// What there is instead, as a sentence.
pub fn part<'t>(tree: &'t Value, path: &str) -> Result<&'t Value, String> {
    let mut at = tree;
    let mut rest = path.trim_matches('/');
    while !rest.is_empty() {
        let children = at.as_object();
        let fits = |name: &&String| {
            rest.strip_prefix(name.as_str())
                .is_some_and(|after| after.is_empty() || after.starts_with('/'))
        };
        let names = children
            .map(|children| children.keys())
            .into_iter()
            .flatten();
        let Some(name) = names.clone().filter(fits).max_by_key(|name| name.len()) else {
            let names: Vec<_> = names.map(String::as_str).collect();
            let done = path
                .trim_matches('/')
                .strip_suffix(rest)
                .unwrap_or_default();
            return Err(match names.is_empty() {
                true => format!("{:?} has no parts", done.trim_end_matches('/')),
                false => format!("{:?} has: {}", done.trim_end_matches('/'), names.join(", ")),
            });
        };
        rest = rest
            .get(name.len()..)
            .unwrap_or_default()
            .trim_start_matches('/');
        at = children
            .and_then(|children| children.get(name))
            .ok_or_else(|| "it is gone".to_string())?;
    }
    Ok(at)
}
