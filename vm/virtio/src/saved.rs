//! Saved forms of the transports.

use nyx_state::minicbor::{self, Decode, Encode};
use nyx_state::{Saved, SavedBlob};

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Queue {
    /// Entries.
    #[n(0)]
    pub(crate) size: u16,
    /// Enabled by the driver.
    #[n(1)]
    pub(crate) ready: bool,
    /// Descriptor table.
    #[n(2)]
    pub(crate) descriptors: u64,
    /// Driver area.
    #[n(3)]
    pub(crate) driver: u64,
    /// Device area.
    #[n(4)]
    pub(crate) device: u64,
    /// Next available entry.
    #[n(5)]
    pub(crate) next_available: u16,
    /// Next used entry.
    #[n(6)]
    pub(crate) next_used: u16,
    /// MSI-X vector.
    #[n(7)]
    pub(crate) vector: u16,
}

/// Everything but the register layout's own.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Transport {
    /// Device status without DEVICE_NEEDS_RESET.
    #[n(0)]
    pub(crate) status: u8,
    /// DEVICE_NEEDS_RESET.
    #[n(1)]
    pub(crate) needs_reset: bool,
    /// Features accepted by the driver.
    #[n(2)]
    pub(crate) accepted: u64,
    /// Selector.
    #[n(3)]
    pub(crate) device_feature_select: u32,
    /// Selector.
    #[n(4)]
    pub(crate) driver_feature_select: u32,
    /// Selector.
    #[n(5)]
    pub(crate) queue_select: u16,
    /// Queues by index.
    #[n(6)]
    pub(crate) queues: Vec<Queue>,
    /// Interrupt status.
    #[n(7)]
    pub(crate) isr: u8,
    /// MSI-X vector for configuration changes.
    #[n(8)]
    pub(crate) config_vector: u16,
    /// The device model.
    #[n(9)]
    pub(crate) device: SavedBlob,
}

/// The PCI layout.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct VirtioPci {
    /// The state machine.
    #[n(0)]
    pub(crate) transport: Transport,
    /// The configuration access capability as written.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub(crate) access: [u8; 12],
}

impl Saved for VirtioPci {
    const NAME: &'static str = "virtio-pci/1";
}

/// The MMIO layout.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct VirtioMmio {
    /// The state machine.
    #[n(0)]
    pub(crate) transport: Transport,
}

impl Saved for VirtioMmio {
    const NAME: &'static str = "virtio-mmio/1";
}
