//! What can be seen of a machine by those who do not own it.

use crate::vcpu::ExitCounters;
use nyx_device::{AnyUnit, Bus, UnitName};
use nyx_inspect::{About, Inspect, Leaf, Visitor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The state tree of a machine. It shares what the machine is made of, so that looking never waits
/// for the machine's owner, and holds what was there when it was made: take another one after a
/// device has come or gone.
#[derive(Clone, Default)]
pub struct View {
    pub(crate) vcpus: Vec<Arc<ExitCounters>>,
    pub(crate) units: BTreeMap<UnitName, Arc<dyn AnyUnit>>,
    pub(crate) ports: Bus,
    pub(crate) memory: Bus,
}

impl View {
    /// Each vCPU's counters.
    pub fn vcpus(&self) -> &[Arc<ExitCounters>] {
        &self.vcpus
    }

    /// The units, by name.
    pub fn units(&self) -> &BTreeMap<UnitName, Arc<dyn AnyUnit>> {
        &self.units
    }
}

impl Inspect for View {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.child("vcpus", &Vcpus(&self.vcpus));
        v.child("units", &Units(&self.units));
        v.child("fabric", &Fabric(self));
    }
}

struct Vcpus<'v>(&'v [Arc<ExitCounters>]);
impl Inspect for Vcpus<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        for (index, counters) in self.0.iter().enumerate() {
            v.about(&About::key("vcpu"));
            v.child(&index.to_string(), &**counters);
        }
    }
}

struct Units<'v>(&'v BTreeMap<UnitName, Arc<dyn AnyUnit>>);
impl Inspect for Units<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        for (name, unit) in self.0 {
            v.about(&About::key("unit"));
            v.child(name, &Unit(&**unit));
        }
    }
}

struct Unit<'v>(&'v dyn AnyUnit);
impl Inspect for Unit<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        self.0.describe(v);
    }
}

struct Fabric<'v>(&'v View);
impl Inspect for Fabric<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.child("ports", &Windows(&self.0.ports));
        v.child("memory", &Windows(&self.0.memory));
    }
}

struct Windows<'v>(&'v Bus);
impl Inspect for Windows<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        for (base, last, owner) in self.0.windows() {
            v.leaf(&format!("{base:#x}-{last:#x}"), Leaf::Text(owner));
        }
    }
}
