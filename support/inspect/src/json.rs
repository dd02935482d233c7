//! The JSON view of the tree.

use crate::{Inspect, Leaf, Visitor};
use serde_json::{Map, Value};

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
