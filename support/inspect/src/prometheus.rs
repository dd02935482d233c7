//! The Prometheus text view of the tree (text exposition format 0.0.4).

use crate::{Inspect, Leaf, Visitor};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Collects the metric leaves, each labelled with the path of the unit it belongs to.
#[derive(Default)]
pub struct Prometheus {
    path: Vec<String>,
    families: BTreeMap<String, (&'static str, String)>,
}

impl Prometheus {
    /// Renders the collected samples, one family after the other as the format demands.
    pub fn page(&self) -> String {
        let mut page = String::new();
        for (name, (kind, samples)) in &self.families {
            // Writing to a String cannot fail.
            let _ = write!(page, "# TYPE {name} {kind}\n{samples}");
        }
        page
    }

    fn sample(&mut self, family: &str, kind: &'static str, value: u64) {
        let unit = self
            .path
            .join("/")
            .replace('\\', "\\\\")
            .replace('"', "\\\"");
        let (_, samples) = self
            .families
            .entry(family.into())
            .or_insert((kind, String::new()));
        let _ = writeln!(samples, "{family}{{unit=\"{unit}\"}} {value}");
    }
}

impl Visitor for Prometheus {
    fn leaf(&mut self, name: &str, leaf: Leaf) {
        match leaf {
            Leaf::Count(n) => self.sample(&format!("nyx_{name}_total"), "counter", n),
            Leaf::Level(n) => self.sample(&format!("nyx_{name}"), "gauge", n),
            Leaf::Number(_) | Leaf::Hex(_) | Leaf::Flag(_) | Leaf::Text(_) => {}
        }
    }
    fn child(&mut self, name: &str, child: &dyn Inspect) {
        self.path.push(name.into());
        child.inspect(self);
        self.path.pop();
    }
}
