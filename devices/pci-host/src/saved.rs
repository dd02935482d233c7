//! Saved forms of the host bridge's registers.

use nyx_state::{Saved, minicbor};

/// The registers at CF8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedPciHost {
    /// CONFIG_ADDRESS.
    #[n(0)]
    pub address: u32,
    /// Reset control.
    #[n(1)]
    pub reset_control: u8,
}

impl Saved for SavedPciHost {
    const NAME: &'static str = "pci-host/1";
}

/// The hot-plug registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedPciHotplug {
    /// Slots to be looked at, one bit each.
    #[n(0)]
    pub arrived: u32,
    /// Slots whose function the guest is asked to let go.
    #[n(1)]
    pub asked: u32,
    /// Slots emptied behind the guest's back.
    #[n(2)]
    pub gone: u32,
    /// Selected bus.
    #[n(3)]
    pub bus: u32,
    /// Slots the guest ejected that still hold their function.
    #[n(4)]
    pub ejected: u32,
}

impl Saved for SavedPciHotplug {
    const NAME: &'static str = "pci-hotplug/1";
}
