//! An I/O APIC (Intel 82093AA data sheet, 290566-001) of version 0x20, whose interrupts leave as
//! messages to local APICs that live elsewhere.
//!
//! What is decided here and not in the data sheet:
//! - Polarity is kept and ignored: a wire that is high asserts, whatever the guest programs.
//! - An edge on a masked pin is lost, as §3.2.4 (bit 16) says and as KVM's own I/O APIC behaves.
//!   Linux masks edge-triggered interrupts lazily, so that it never depends on it.
//! - Making a pin edge-triggered clears its remote IRR. Linux ends a stuck interrupt that way.
//! - While the machine is paused nothing is delivered; an edge that comes all the same is held and
//!   delivered on resume, so that the order in which units stop and start does not matter.

mod controller;
mod entry;
mod kind;
mod saved;
#[cfg(test)]
mod tests;

pub use controller::{Ioapic, PINS};
pub use kind::IoapicConfig;
pub use saved::SavedIoapic;
