//! The PCI host bridge: CF8/CFC and ECAM access to configuration space, and hot-plug of its bus.
//!
//! Three kinds: [`PciHost`] is the bridge's CPU side, registers through which the guest reaches the
//! configuration space of every function of the [`nyx_pci::Topology`]; [`HostBridge`] is the
//! function 00:00.0 as which the bridge appears on its own bus; [`PciHotplug`] tells the guest of functions that come
//! and go. The first two are apart because a
//! configuration access holds the first one's slot while it takes the function's.
#![forbid(unsafe_code)]

mod bridge;
mod host;
mod hotplug;
#[cfg(test)]
mod hotplug_tests;
mod saved;
#[cfg(test)]
mod tests;

pub use bridge::{HostBridge, HostBridgeConfig};
pub use host::{PciHost, PciHostConfig};
pub use hotplug::{PciHotplug, PciHotplugConfig};
pub use saved::{SavedPciHost, SavedPciHotplug};
