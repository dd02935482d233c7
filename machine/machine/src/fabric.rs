//! What connects units: address spaces, interrupt wires, PCI topology.

use nyx_device::{Bus, Device, DoorbellBinding, IrqLine, Mapping, Slot, UnitName};
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
    /// What connects each unit, kept for as long as the unit is part of the machine.
    connections: BTreeMap<UnitName, Connections>,
}

/// What makes a unit reachable. Dropping it makes it unreachable.
#[derive(Default)]
pub(crate) struct Connections {
    #[expect(dead_code, reason = "dropping it is what it is for")]
    pub(crate) attachment: Option<Attachment>,
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

    pub(crate) fn connect(&mut self, unit: UnitName, connections: Connections) {
        self.connections.insert(unit, connections);
    }

    /// Makes `unit` unreachable, but for what its PCI function maps itself.
    pub(crate) fn disconnect(&mut self, unit: &str) {
        self.connections.remove(unit);
    }
}
