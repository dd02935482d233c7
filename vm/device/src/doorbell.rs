//! Registers whose writes go straight to an eventfd (KVM's ioeventfd).

use crate::{RegionId, Space};
use nyx_reactor::EventFd;
use std::io;
use std::sync::Arc;

/// One such register.
#[derive(Clone, Debug)]
pub struct Doorbell {
    /// Window it lies in.
    pub region: RegionId,
    /// Offset into the window.
    pub offset: u64,
    /// Width of the write in bytes; 0 takes any width.
    pub len: u8,
    /// Only writes of this value, if given.
    pub value: Option<u32>,
    /// What to signal.
    pub event: Arc<EventFd>,
}

/// Keeps a doorbell bound; dropping it unbinds. Unbinding may cost milliseconds in the kernel, so
/// it happens when a window moves or a device leaves, never on reset or pause.
pub trait DoorbellBinding: Send {}

/// Binds doorbells to guest-physical or port addresses.
pub trait Doorbells: Send + Sync {
    /// Binds `bell` at `address`.
    fn bind(
        &self,
        space: Space,
        address: u64,
        bell: &Doorbell,
    ) -> io::Result<Box<dyn DoorbellBinding>>;
}

/// A platform without the shortcut: every ring is an exit that the device handles itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn bind(&self, _: Space, _: u64, _: &Doorbell) -> io::Result<Box<dyn DoorbellBinding>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
