//! Saved form of a function.

use nyx_state::{Saved, SavedBlob, minicbor};

/// A function and the device in it.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedFunction {
    /// The first 256 bytes of configuration space. They are saved as they are, not as what they
    /// mean: where a capability lies is known to the guest, so a build that lays them out
    /// differently must refuse the state, and notices by the read-only bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub config: Vec<u8>,
    /// The MSI-X table and pending bits.
    #[n(1)]
    pub vectors: Vec<SavedVector>,
    /// Whether the device asserts its pin.
    #[n(2)]
    pub intx: bool,
    /// The device.
    #[n(3)]
    pub device: SavedBlob,
}

impl Saved for SavedFunction {
    const NAME: &'static str = "pci-function/1";
}

/// One MSI-X vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedVector {
    /// Message address.
    #[n(0)]
    pub address: u64,
    /// Message data.
    #[n(1)]
    pub data: u32,
    /// Mask bit.
    #[n(2)]
    pub masked: bool,
    /// Pending bit.
    #[n(3)]
    pub pending: bool,
}
