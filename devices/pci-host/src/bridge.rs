//! The bridge's own function, 00:00.0.

use nyx_device::{
    AccessResult, Attach, BadAccess, Bdf, BoxError, ConfigError, Demand, Device, DeviceKind,
    FunctionDemand, Hit, Lifecycle, Registers, ResetKind, Wiring,
};
use nyx_inspect::{Inspect, Visitor};
use nyx_state::{Persist, RestoreError, SaveError, Stateless};
use serde::{Deserialize, Serialize};

/// QEMU's generic PCI Express host bridge (Linux `PCI_VENDOR_ID_REDHAT` 1b36:0008), to which no
/// guest attaches a driver or a quirk.
const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x0008;
const SUBSYSTEM_VENDOR: u16 = 0x1af4;
const SUBSYSTEM: u16 = 0x1100;
/// Bridge device, host bridge (PCI Code and ID Assignment 1.11 §1.7).
const CLASS: [u8; 3] = [0x06, 0x00, 0x00];

/// The host bridge as a function of its own bus. All it has is an identity; its configuration
/// space, like any function's, is [`nyx_pci::Function`]'s.
pub struct HostBridge(());

/// Configuration of a [`HostBridge`]: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostBridgeConfig {}

impl DeviceKind for HostBridge {
    const KIND: &'static str = "host-bridge";
    type Config = HostBridgeConfig;

    fn demand(_: &HostBridgeConfig, _: Attach) -> Result<Demand, ConfigError> {
        let function = FunctionDemand {
            vendor: VENDOR,
            device: DEVICE,
            class: CLASS,
            subsystem_vendor: SUBSYSTEM_VENDOR,
            subsystem: SUBSYSTEM,
            fixed: Some(Bdf::new(0, 0)),
            ..FunctionDemand::default()
        };
        Ok(Demand {
            pci: Some(function),
            ..Demand::default()
        })
    }

    fn build(_: HostBridgeConfig, _: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        Ok(Box::new(Self(())))
    }
}

impl Registers for HostBridge {
    fn read(&mut self, _: Hit, _: &mut [u8]) -> AccessResult {
        Err(BadAccess::NoRegister)
    }
    fn write(&mut self, _: Hit, _: &[u8]) -> AccessResult {
        Err(BadAccess::NoRegister)
    }
}

impl Lifecycle for HostBridge {
    fn reset(&mut self, _: ResetKind) {}
}

impl Inspect for HostBridge {
    fn inspect(&self, _: &mut dyn Visitor) {}
}

impl Persist for HostBridge {
    type Saved = Stateless;
    fn save(&self) -> Result<Stateless, SaveError> {
        Ok(Stateless {})
    }
    fn restore(&mut self, _: Stateless) -> Result<(), RestoreError> {
        Ok(())
    }
}

impl Device for HostBridge {}
