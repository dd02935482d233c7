//! The tree's metrics as a flat list: what every exporter starts from.

use crate::{About, Distribution, Inspect, Leaf, Visitor};
use std::collections::BTreeSet;

/// A metric's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Only grows.
    Count(u64),
    /// Goes up and down.
    Level(u64),
    /// A time in nanoseconds that only grows.
    Time(u64),
    /// A distribution of durations.
    Histogram(Box<Distribution>),
}

impl Value {
    /// As one number in the unit of the metrics page; the number of samples for a distribution.
    pub fn number(&self) -> f64 {
        match self {
            Self::Count(n) | Self::Level(n) => *n as f64,
            Self::Time(nanos) => *nanos as f64 / 1e9,
            Self::Histogram(distribution) => distribution.count() as f64,
        }
    }

    /// The kind, in the words of the Prometheus text format.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Count(_) | Self::Time(_) => "counter",
            Self::Level(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// One metric of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// Full name, such as `nyx_blk_bytes_total`.
    pub name: String,
    /// What it means.
    pub help: String,
    /// Labels: those the caller gave for all, then those of the nodes above, then its own.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: Value,
}

impl Series {
    /// The value of label `name`.
    pub fn label(&self, name: &str) -> Option<&str> {
        let (_, value) = self.labels.iter().find(|(label, _)| label == name)?;
        Some(value)
    }
}

/// A node on the way from the root.
struct Node {
    name: String,
    about: About,
}

/// Collects the metrics of a tree.
#[derive(Default)]
pub struct Collector {
    constant: Vec<(String, String)>,
    pattern: Option<String>,
    path: Vec<Node>,
    pending: About,
    seen: BTreeSet<(String, Vec<(String, String)>)>,
    series: Vec<Series>,
}

impl Collector {
    /// A collector that gives `labels` to every series.
    pub fn new(labels: &[(&str, &str)]) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self {
            constant: labels.iter().map(own).collect(),
            ..Self::default()
        }
    }

    /// Takes only metrics whose name matches `pattern`, in which `*` stands for anything.
    #[must_use]
    pub fn only(mut self, pattern: &str) -> Self {
        self.pattern = Some(pattern.into());
        self
    }

    /// The metrics of the tree under `root`.
    pub fn of(root: &dyn Inspect, labels: &[(&str, &str)]) -> Vec<Series> {
        let mut collector = Self::new(labels);
        root.inspect(&mut collector);
        collector.finish()
    }

    /// What was collected, in the order of the tree.
    pub fn finish(self) -> Vec<Series> {
        self.series
    }

    fn take(&mut self, name: &str, value: Value) {
        let about = std::mem::take(&mut self.pending);
        // An item of a list is named after the list; its own name is a label.
        let list = if about.key.is_empty() {
            None
        } else {
            self.path.last()
        };
        let (plain, help, own) = match list {
            Some(Node { name, about }) if about.metric.is_empty() => {
                (name.as_str(), about.help, about.labels)
            }
            Some(Node { about, .. }) => (about.metric, about.help, about.labels),
            None if about.metric.is_empty() => (name, about.help, about.labels),
            None => (about.metric, about.help, about.labels),
        };
        let full = full_name(plain, &value);
        if self.pattern.as_deref().is_some_and(|p| !matches(p, &full)) {
            return;
        }
        let mut labels = self.constant.clone();
        let (keys, plain_path): (Vec<&Node>, Vec<&Node>) = self
            .path
            .iter()
            .partition(|node| !node.about.key.is_empty());
        let path: Vec<&str> = plain_path.iter().map(|node| node.name.as_str()).collect();
        let path = path.join("/");
        if keys.is_empty() && !path.is_empty() {
            labels.push(("unit".into(), path.clone()));
        }
        for (at, node) in keys.iter().enumerate() {
            // Of two keys of one kind the inner one is the thing itself.
            if keys
                .iter()
                .skip(at + 1)
                .all(|k| k.about.key != node.about.key)
            {
                labels.push((node.about.key.into(), node.name.clone()));
            }
        }
        if let Some(list) = list {
            let key = match list.about.items {
                "" => about.key,
                items => items,
            };
            labels.push((key.into(), name.into()));
        }
        labels.extend(own.iter().map(|(n, v)| ((*n).into(), (*v).into())));
        // A label may be there once only; the last word is that of the thing itself.
        let mut once: Vec<(String, String)> = Vec::with_capacity(labels.len());
        for (name, value) in labels {
            match once.iter_mut().find(|(there, _)| *there == name) {
                Some(there) => there.1 = value,
                None => once.push((name, value)),
            }
        }
        if !self.seen.insert((full.clone(), once.clone())) {
            // Two things of one name: the path tells them apart.
            once.push(("part".into(), path));
            if !self.seen.insert((full.clone(), once.clone())) {
                return;
            }
        }
        let help = if help.is_empty() {
            plain.replace('_', " ")
        } else {
            help.into()
        };
        self.series.push(Series {
            name: full,
            help,
            labels: once,
            value,
        });
    }
}

impl Visitor for Collector {
    fn about(&mut self, about: &About) {
        self.pending = *about;
    }

    fn leaf(&mut self, name: &str, leaf: Leaf) {
        match leaf {
            Leaf::Count(n) => self.take(name, Value::Count(n)),
            Leaf::Level(n) => self.take(name, Value::Level(n)),
            Leaf::Time(nanos) => self.take(name, Value::Time(nanos)),
            Leaf::Histogram(distribution) => self.take(name, Value::Histogram(distribution)),
            Leaf::Number(_) | Leaf::Hex(_) | Leaf::Flag(_) | Leaf::Text(_) => {
                self.pending = About::default();
            }
        }
    }

    fn child(&mut self, name: &str, child: &dyn Inspect) {
        let mut about = std::mem::take(&mut self.pending);
        if !about.key.is_empty()
            && let Some(Node { about: list, .. }) = self.path.last()
            && !list.items.is_empty()
        {
            about.key = list.items;
        }
        self.path.push(Node {
            name: name.into(),
            about,
        });
        child.inspect(self);
        self.path.pop();
        self.pending = About::default();
    }
}

/// The name on the page: prefix, base unit, `_total` for counters and for them only, and no character
/// that the format does not know.
fn full_name(plain: &str, value: &Value) -> String {
    let mut name = String::from("nyx_");
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.extend(plain.chars().map(|c| if fits(c) { c } else { '_' }));
    while let Some(short) = name.strip_suffix("_total") {
        name.truncate(short.len());
    }
    if matches!(value, Value::Time(_) | Value::Histogram(_)) && !name.ends_with("_seconds") {
        name.push_str("_seconds");
    }
    if matches!(value, Value::Count(_) | Value::Time(_)) {
        name.push_str("_total");
    }
    name
}

/// Whether `name` fits `pattern`, in which `*` stands for any run of characters.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        // No star at all.
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}
