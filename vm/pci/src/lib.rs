//! PCI functions: configuration space, capabilities, BARs, MSI-X and the root complex's topology.
//!
//! A [`Function`] wraps a device and gives it everything the PCI standards ask for; the device sees
//! register accesses with the BAR's index as the region, and a [`Port`] to interrupt through. The
//! [`Topology`] routes configuration accesses of the host bridge to the functions.
//!
//! ```text
//! vCPU ─ Bus ─ host bridge ─ Topology ─ Slot<Function> ─ ConfigSpace ─┬─ Port (gate, pin)
//!          │                                 │                        └─ Bus (BARs move)
//!          └─ BAR window ────────────────────┴─ device ─ Port ─ MSI, wire
//! ```
//!
//! Not here: bridges, hot-plug signalling and function-level reset.
#![forbid(unsafe_code)]

mod bar;
mod config;
mod function;
mod port;
mod saved;
mod spec;
#[cfg(test)]
mod tests;
mod topology;

pub use config::{CapabilityOverflow, ConfigSpace, ForeignConfig};
pub use function::{AddressSpaces, BuildError, Function};
pub use port::Port;
pub use saved::{SavedFunction, SavedVector};
pub use topology::{AttachError, Attachment, Topology};
