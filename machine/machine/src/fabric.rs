//! What connects units: address spaces, interrupt wires, PCI topology.

use nyx_device::{Bus, Conflict, Device, DoorbellBinding, IrqLine, Mapping, Slot};
use nyx_inspect::{Inspect, Leaf, Visitor};
use nyx_pci::{Attachment, Topology};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// The interrupt controller that takes wires, once it is built. vCPU threads read it without a
/// lock.
pub(crate) type Controller = Arc<OnceLock<Arc<Slot<dyn Device>>>>;

/// Address spaces, wires and topology of one machine.
#[derive(Default)]
pub(crate) struct Fabric {
    pub(crate) pio: Bus,
    pub(crate) mmio: Bus,
    pub(crate) controller: Controller,
    /// One wire for each interrupt in use; devices hold shares.
    wires: BTreeMap<u32, IrqLine>,
    pub(crate) topology: Arc<Topology>,
    /// Kept for as long as the machine: windows, PCI attachments and doorbells by unit.
    pub(crate) attachments: Vec<Attachment>,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) bindings: Vec<Box<dyn DoorbellBinding>>,
}

impl Fabric {
    /// A share of the wire to interrupt `gsi`; `None` while there is no controller.
    pub(crate) fn wire(&mut self, gsi: u32) -> Option<IrqLine> {
        let controller = self.controller.get()?.clone();
        let wire = self
            .wires
            .entry(gsi)
            .or_insert_with(|| IrqLine::new(controller, gsi));
        Some(wire.share())
    }

    pub(crate) fn keep(&mut self, mapping: Result<Mapping, Conflict>) -> Result<(), Conflict> {
        self.mappings.push(mapping?);
        Ok(())
    }
}

impl Inspect for Fabric {
    fn inspect(&self, v: &mut dyn Visitor) {
        struct Windows<'a>(&'a Bus);
        impl Inspect for Windows<'_> {
            fn inspect(&self, v: &mut dyn Visitor) {
                for (base, last, owner) in self.0.windows() {
                    v.leaf(&format!("{base:#x}-{last:#x}"), Leaf::Text(owner));
                }
            }
        }
        v.child("ports", &Windows(&self.pio));
        v.child("memory", &Windows(&self.mmio));
    }
}
