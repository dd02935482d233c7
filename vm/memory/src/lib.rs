//! Guest memory: RAM, the DMA view of one bus master, observers and dirty sources.
//!
//! [`Memory`] owns the host mappings and tells its [`RamObserver`]s about them; a device sees only
//! its [`DmaSpace`], which survives hot-plugged RAM and honours a vIOMMU.
//!
//! `unsafe` is used here to hand host pointers of pinned guest memory to the kernel
//! ([`PinnedBuffers`]) and to advise and prefault mappings.

mod dma;
mod observer;
mod pinned;
mod ram;
mod range;
#[cfg(test)]
mod tests;

pub use dma::{DmaFault, DmaSpace, DmaView, Extents, Rid, Translate};
pub use observer::{Backing, DirtySource, RamObserver};
pub use pinned::{Iovec, PinError, PinnedBuffers};
pub use ram::{AllocateError, Extent, HugePages, Memory, RamConfig, RamSharing};
pub use range::PinnedRange;

use vm_memory::bitmap::AtomicBitmap;

/// Guest RAM with a dirty bitmap per region.
pub type Ram = vm_memory::GuestMemoryMmap<AtomicBitmap>;

/// The guest page size, and the granularity of dirty tracking.
pub const PAGE: u64 = 4096;
