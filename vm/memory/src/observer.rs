//! Who needs to know where RAM is, and who dirties it.

use crate::Extent;
use std::io;
use std::os::fd::BorrowedFd;

/// Host backing of an extent.
pub struct Backing<'f> {
    /// Address in this process. Valid until [`RamObserver::unmapped`].
    pub host: std::ptr::NonNull<u8>,
    /// memfd and offset, when shareable (vhost-user, snapshots, iommufd).
    pub file: Option<(BorrowedFd<'f>, u64)>,
}

/// Told about every change of the guest-physical layout, including everything already mapped at the
/// moment it subscribes: KVM memory slots, VFIO and iommufd mappings, vhost tables.
pub trait RamObserver: Send {
    /// `extent` is now RAM. An error vetoes the change and is rolled back.
    fn mapped(&mut self, extent: Extent, backing: &Backing<'_>) -> io::Result<()>;
    /// `extent` is no longer RAM.
    fn unmapped(&mut self, extent: Extent);
}

/// Something that writes guest RAM and can say where: KVM's log, the VMM's own bitmap, vhost,
/// VFIO DMA logging. Migration unions all of them and knows none of them.
pub trait DirtySource: Send {
    /// Starts or stops logging.
    fn log(&mut self, on: bool) -> io::Result<()>;
    /// Reports and clears pages dirtied since the last call.
    fn drain(&mut self, report: &mut dyn FnMut(Extent)) -> io::Result<()>;
}
