//! Units and devices.

use crate::{Doorbell, IrqController, Lifecycle, Registers};
use nyx_inspect::Inspect;
use nyx_state::PersistBlob;
use std::sync::Arc;

/// Stable, unique, hierarchical: `pci/00:03.0`, `isa/com1`. Part of the saved state.
pub type UnitName = Arc<str>;

/// Anything with a life: devices, but also vCPUs, the in-kernel irqchip, the VM clock.
pub trait Unit: Lifecycle + PersistBlob + Inspect + Send {}
impl<T: Lifecycle + PersistBlob + Inspect + Send + ?Sized> Unit for T {}

/// A unit with guest-visible registers.
///
/// What a device is beyond that, it says through the accessors, each of which defaults to "not".
pub trait Device: Registers + Unit {
    /// Whether it takes interrupt wires.
    fn as_irq_controller(&mut self) -> Option<&mut dyn IrqController> {
        None
    }
    /// Whether it wants a say in its PCI function's configuration space.
    fn as_pci_function(&mut self) -> Option<&mut dyn PciHooks> {
        None
    }
    /// Registers whose writes carry no information beyond having happened, so that they can reach
    /// a worker without an exit to user space.
    fn doorbells(&self) -> Vec<Doorbell> {
        Vec::new()
    }
    /// Why this device cannot be saved and moved, if so.
    fn migration_blocker(&self) -> Option<&'static str> {
        None
    }
}

/// What a device adds to its PCI function.
pub trait PciHooks {
    /// Vendor-specific capabilities (PCI Local Bus 3.0 appendix H, id 0x09) to place in
    /// configuration space: each entry is the body after the two-byte header (id, next).
    fn vendor_capabilities(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }
    /// Handles a read inside the body of vendor capability `index`; `false` lets configuration
    /// space answer.
    fn read_capability(&mut self, index: usize, offset: usize, data: &mut [u8]) -> bool {
        let _ = (index, offset, data);
        false
    }
    /// Hears of a write inside the body of vendor capability `index`, after it is stored; `true`
    /// makes the written bytes stick.
    fn write_capability(&mut self, index: usize, offset: usize, data: &[u8]) -> bool {
        let _ = (index, offset, data);
        false
    }
    /// The guest switched bus mastering on or off: no DMA and no MSI while it is off.
    fn bus_master(&mut self, on: bool) {
        let _ = on;
    }
}
