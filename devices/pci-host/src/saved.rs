//! Saved form of the host bridge's registers.

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
