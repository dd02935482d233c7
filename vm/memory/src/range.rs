//! One contiguous run of guest memory, checked once and then accessed without lookups: virtqueue
//! rings.

use crate::{Extent, PinError, Ram};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

/// A pinned, contiguous run of guest memory. Loads and stores are bounds-checked against the run
/// only; the run itself was checked when it was pinned.
pub struct PinnedRange {
    ram: Arc<Ram>,
    host: *mut u8,
    len: usize,
    base: u64,
}

// SAFETY: `host` points into guest RAM that `ram` keeps mapped; guest RAM may be touched from any
// thread, since every access below is atomic or volatile.
unsafe impl Send for PinnedRange {}
// SAFETY: as above.
unsafe impl Sync for PinnedRange {}

impl PinnedRange {
    pub(crate) fn new(ram: Arc<Ram>, extent: Extent) -> Result<Self, PinError> {
        let refused = PinError {
            addr: extent.base.0,
            len: extent.len,
        };
        let slice =
            GuestMemoryBackend::get_slice(&*ram, extent.base, extent.len).map_err(|_| refused)?;
        let host = slice.ptr_guard_mut().as_ptr();
        Ok(Self {
            ram,
            host,
            len: extent.len,
            base: extent.base.0,
        })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the run is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        // SAFETY: `offset` lies within the run, which is one mapping.
        (end <= self.len).then(|| unsafe { self.host.add(offset) })
    }

    fn atomic(&self, offset: usize) -> Option<&AtomicU16> {
        let at = self.at(offset, 2)?.cast::<u16>();
        // SAFETY: in bounds, alignment checked here, and all accesses by this process to a location
        // used as an atomic are atomic. The guest's own accesses race as two CPUs would.
        at.is_aligned().then(|| unsafe { AtomicU16::from_ptr(at) })
    }

    /// Loads a little-endian u16 with acquire ordering; `None` out of bounds or unaligned.
    pub fn load_u16(&self, offset: usize) -> Option<u16> {
        self.atomic(offset)
            .map(|a| u16::from_le(a.load(Ordering::Acquire)))
    }

    /// Stores a little-endian u16 with release ordering; `None` out of bounds or unaligned.
    pub fn store_u16(&self, offset: usize, value: u16) -> Option<()> {
        self.atomic(offset)?.store(value.to_le(), Ordering::Release);
        self.mark_dirty(offset, 2);
        Some(())
    }

    /// Copies out `N` bytes; `None` out of bounds.
    pub fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.at(offset, N)?.cast::<[u8; N]>();
        // SAFETY: in bounds; `[u8; N]` has no alignment or validity requirement; volatile because
        // the guest may write concurrently, which can only tear its own bytes.
        Some(unsafe { at.read_volatile() })
    }

    /// Copies in `N` bytes; `None` out of bounds.
    pub fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let at = self.at(offset, N)?.cast::<[u8; N]>();
        // SAFETY: as for `read`.
        unsafe { at.write_volatile(bytes) };
        self.mark_dirty(offset, N);
        Some(())
    }

    fn mark_dirty(&self, offset: usize, len: usize) {
        let addr = vm_memory::GuestAddress(self.base + offset as u64);
        let region: Option<&GuestRegionMmap<_>> = self.ram.find_region(addr);
        if let Some((region, MemoryRegionAddress(at))) =
            region.and_then(|r| Some((r, r.to_region_addr(addr)?)))
        {
            region.bitmap().mark_dirty(at as usize, len);
        }
    }
}

impl std::fmt::Debug for PinnedRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PinnedRange({:#x}+{:#x})", self.base, self.len)
    }
}
