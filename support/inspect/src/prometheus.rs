//! The Prometheus text view of the tree (text exposition format 0.0.4).

use crate::series::{Collector, Series, Value};
use crate::{About, BOUNDS, Distribution, Inspect, Leaf, Visitor};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Collects the metric leaves and renders them.
#[derive(Default)]
pub struct Prometheus(Collector);

impl Prometheus {
    /// A page on which every sample carries `labels`, such as the machine's name.
    pub fn new(labels: &[(&str, &str)]) -> Self {
        Self(Collector::new(labels))
    }

    /// Only metrics whose name matches `pattern`, in which `*` stands for anything.
    #[must_use]
    pub fn only(self, pattern: &str) -> Self {
        Self(self.0.only(pattern))
    }

    /// The page of the tree under `root`.
    pub fn of(root: &dyn Inspect, labels: &[(&str, &str)]) -> String {
        let mut page = Self::new(labels);
        root.inspect(&mut page);
        page.page()
    }

    /// Renders the collected samples, one family after the other as the format demands.
    pub fn page(self) -> String {
        render(&self.0.finish())
    }
}

impl Visitor for Prometheus {
    fn about(&mut self, about: &About) {
        self.0.about(about);
    }
    fn leaf(&mut self, name: &str, leaf: Leaf) {
        self.0.leaf(name, leaf);
    }
    fn child(&mut self, name: &str, child: &dyn Inspect) {
        self.0.child(name, child);
    }
}

/// Renders `series` as a page. A family's kind and help are those of its first series; a series of
/// another kind under the same name is left out, since no page may have both.
pub fn render(series: &[Series]) -> String {
    let mut families: BTreeMap<&str, Vec<&Series>> = BTreeMap::new();
    for one in series {
        families.entry(&one.name).or_default().push(one);
    }
    let mut page = String::new();
    for (name, members) in families {
        let Some(first) = members.first() else {
            continue;
        };
        let kind = first.value.kind();
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(page, "# HELP {name} {}", escaped(&first.help, false));
        let _ = writeln!(page, "# TYPE {name} {kind}");
        for one in members.iter().filter(|one| one.value.kind() == kind) {
            sample(&mut page, one);
        }
    }
    page
}

fn sample(page: &mut String, series: &Series) {
    let Series { name, labels, .. } = series;
    let labels = labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true)))
        .collect::<Vec<_>>()
        .join(",");
    let braces = |extra: &str| match (labels.as_str(), extra) {
        ("", "") => String::new(),
        (only, "") | ("", only) => format!("{{{only}}}"),
        (labels, extra) => format!("{{{labels},{extra}}}"),
    };
    let plain = braces("");
    let _ = match &series.value {
        Value::Count(n) | Value::Level(n) => writeln!(page, "{name}{plain} {n}"),
        Value::Time(nanos) => writeln!(page, "{name}{plain} {}", seconds(*nanos)),
        Value::Histogram(distribution) => {
            let Distribution { buckets, sum, .. } = &**distribution;
            let mut cumulative = 0_u64;
            for (at, n) in buckets.iter().enumerate() {
                cumulative = cumulative.saturating_add(*n);
                let le = BOUNDS
                    .get(at)
                    .map_or("+Inf".into(), |nanos| seconds(*nanos));
                let braces = braces(&format!("le=\"{le}\""));
                let _ = writeln!(page, "{name}_bucket{braces} {cumulative}");
            }
            let _ = writeln!(page, "{name}_sum{plain} {}", seconds(*sum));
            writeln!(page, "{name}_count{plain} {cumulative}")
        }
    };
}

/// Nanoseconds in seconds, exactly.
fn seconds(nanos: u64) -> String {
    let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').into()
}

/// Backslashes and line ends are escaped everywhere, quotes within label values.
fn escaped(text: &str, quotes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out
}
