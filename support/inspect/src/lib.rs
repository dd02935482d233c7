//! One state tree, two outputs: a JSON view and a Prometheus view from one derive.
//!
//! A type describes itself once, through [`Inspect`], normally by `#[derive(Inspect)]`. Walking the
//! tree with [`Json`] gives the inspect tree; walking it with [`Prometheus`] gives the metrics page,
//! on which only [`Counter`]s, [`Gauge`]s and [`Histogram`]s appear. [`Collector`] gives the metrics as
//! a list, for other exporters.
#![forbid(unsafe_code)]

mod about;
mod histogram;
mod json;
mod prometheus;
mod series;
#[cfg(test)]
mod tests;

pub use about::About;
pub use histogram::{BOUNDS, BUCKETS, Distribution, Histogram};
pub use json::{Json, part};
pub use nyx_inspect_derive::Inspect;
pub use prometheus::{Prometheus, render};
pub use series::{Collector, Series, Value, matches};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// A monotonically increasing count, shared with worker threads. Lock-free.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    /// Adds one to a counter that has one writer only, or whose writers a lock keeps apart: a plain
    /// addition, which costs a tenth of a locked one.
    #[inline]
    pub fn bump(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Relaxed);
    }
    /// Reads the count.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A level that goes up and down, such as requests in flight. Lock-free.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the level.
    pub fn set(&self, level: u64) {
        self.0.store(level, Relaxed);
    }
    /// Raises the level.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    /// Lowers the level, to zero at most.
    pub fn sub(&self, n: u64) {
        let lower = |level: u64| Some(level.saturating_sub(n));
        let _ = self.0.fetch_update(Relaxed, Relaxed, lower);
    }
    /// Reads the level.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A leaf of the tree. Only counts, levels, times and histograms are metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// A metric that only grows.
    Count(u64),
    /// A metric that goes up and down.
    Level(u64),
    /// A metric that only grows: a time in nanoseconds, shown in seconds.
    Time(u64),
    /// A metric: a distribution of durations.
    Histogram(Box<Distribution>),
    /// Plain state, shown in decimal.
    Number(u64),
    /// Plain state, shown in hexadecimal.
    Hex(u64),
    /// Plain state.
    Flag(bool),
    /// Plain state.
    Text(String),
}

/// Receives the tree, depth first.
pub trait Visitor {
    /// Says more about the leaf or child that comes next. Views that have no use for it do nothing.
    fn about(&mut self, about: &About) {
        let _ = about;
    }
    /// A named leaf under the current node.
    fn leaf(&mut self, name: &str, leaf: Leaf);
    /// A named child node.
    fn child(&mut self, name: &str, child: &dyn Inspect);
}

/// A node of the tree: anything that can describe itself.
pub trait Inspect {
    /// Describes `self` to `v`.
    fn inspect(&self, v: &mut dyn Visitor);
}

/// Anything that can be a field of a node: a leaf or a child node.
pub trait Field {
    /// Visits this field under `name`.
    fn visit(&self, name: &str, v: &mut dyn Visitor);
}

impl<T: Inspect> Field for T {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.child(name, self);
    }
}

/// Shown in hexadecimal by `#[inspect(hex)]`.
pub trait AsHex {
    /// The value, zero-extended.
    fn as_hex(&self) -> u64;
}

macro_rules! numbers {
    ($($t:ty),*) => {$(
        impl Field for $t {
            fn visit(&self, name: &str, v: &mut dyn Visitor) {
                v.leaf(name, Leaf::Number(u64::from(*self)));
            }
        }
        impl AsHex for $t {
            fn as_hex(&self) -> u64 {
                u64::from(*self)
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64);

impl Field for usize {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.leaf(name, Leaf::Number(*self as u64));
    }
}
impl Field for bool {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.leaf(name, Leaf::Flag(*self));
    }
}
impl Field for AtomicBool {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.leaf(name, Leaf::Flag(self.load(Relaxed)));
    }
}
impl Field for AtomicU64 {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.leaf(name, Leaf::Number(self.load(Relaxed)));
    }
}
impl Field for AtomicU32 {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.leaf(name, Leaf::Number(self.load(Relaxed).into()));
    }
}
impl Field for str {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.leaf(name, Leaf::Text(self.into()));
    }
}
impl Field for String {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.leaf(name, Leaf::Text(self.clone()));
    }
}
impl Field for Counter {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.leaf(name, Leaf::Count(self.get()));
    }
}
impl Field for Gauge {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.leaf(name, Leaf::Level(self.get()));
    }
}
impl Field for Histogram {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.leaf(name, Leaf::Histogram(Box::new(self.snapshot())));
    }
}
impl<T: Field + ?Sized> Field for Arc<T> {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        (**self).visit(name, v);
    }
}
impl<T: Field> Field for Option<T> {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        match self {
            Some(field) => field.visit(name, v),
            // What was said of it does not hold for what comes next.
            None => v.about(&About::default()),
        }
    }
}

struct Items<'a, T>(&'a [T]);
impl<T: Field> Inspect for Items<'_, T> {
    fn inspect(&self, v: &mut dyn Visitor) {
        for (index, item) in self.0.iter().enumerate() {
            v.about(&About::key("index"));
            item.visit(&index.to_string(), v);
        }
    }
}
impl<T: Field> Field for [T] {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.child(name, &Items(self));
    }
}
impl<T: Field> Field for Vec<T> {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        self.as_slice().visit(name, v);
    }
}
impl<T: Field, const N: usize> Field for [T; N] {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        self.as_slice().visit(name, v);
    }
}

struct Entries<'a, K, T>(&'a BTreeMap<K, T>);
impl<K: std::fmt::Display, T: Field> Inspect for Entries<'_, K, T> {
    fn inspect(&self, v: &mut dyn Visitor) {
        for (key, item) in self.0 {
            v.about(&About::key("key"));
            item.visit(&key.to_string(), v);
        }
    }
}
impl<K: std::fmt::Display, T: Field> Field for BTreeMap<K, T> {
    fn visit(&self, name: &str, v: &mut dyn Visitor) {
        v.child(name, &Entries(self));
    }
}
