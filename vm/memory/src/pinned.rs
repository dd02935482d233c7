//! Guest buffers handed to the kernel for asynchronous I/O.

use crate::{Extent, Ram};
use smallvec::SmallVec;
use std::sync::Arc;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// One `struct iovec` of `readv(2)`, with the same layout.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Iovec {
    /// Host address.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

// SAFETY: an iovec is an address and a length; it is dereferenced only by the kernel on behalf of
// the owner of the `PinnedBuffers` it belongs to, and guest RAM may be touched from any thread.
unsafe impl Send for Iovec {}

/// A guest buffer does not lie in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {addr:#x} are not guest memory")]
pub struct PinError {
    /// Address the guest gave.
    pub addr: u64,
    /// Length the guest gave.
    pub len: usize,
}

/// Guest buffers that stay mapped, whatever happens to the layout, until this is dropped: I/O in
/// flight owns one, so a completion never touches memory that is gone.
pub struct PinnedBuffers {
    ram: Arc<Ram>,
    iovecs: SmallVec<[Iovec; 4]>,
    extents: SmallVec<[Extent; 4]>,
    len: usize,
}

impl PinnedBuffers {
    pub(crate) fn new(ram: Arc<Ram>) -> Self {
        Self {
            ram,
            iovecs: SmallVec::new(),
            extents: SmallVec::new(),
            len: 0,
        }
    }

    pub(crate) fn push(&mut self, extent: Extent) -> Result<(), PinError> {
        let refused = PinError {
            addr: extent.base.0,
            len: extent.len,
        };
        let total = self.len.checked_add(extent.len).ok_or(refused)?;
        if !GuestMemoryBackend::check_range(&*self.ram, extent.base, extent.len) {
            return Err(refused);
        }
        let slices = GuestMemoryBackend::get_slices(&*self.ram, extent.base, extent.len);
        for slice in slices {
            let slice = slice.map_err(|_| refused)?;
            let (base, len) = (slice.ptr_guard_mut().as_ptr(), slice.len());
            // Neighbouring descriptors of one guest buffer become one iovec.
            match self.iovecs.last_mut() {
                Some(last) if std::ptr::eq(last.base.wrapping_add(last.len), base) => {
                    last.len += len;
                }
                _ => self.iovecs.push(Iovec { base, len }),
            }
        }
        self.extents.push(extent);
        self.len = total;
        Ok(())
    }

    /// Total length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to transfer.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The host ranges, for the kernel. Valid while `self` lives.
    pub fn iovecs(&self) -> &[Iovec] {
        &self.iovecs
    }

    /// Removes the first `count` bytes, after a short transfer or a consumed header.
    pub fn advance(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len -= left;
        let mut done = 0;
        for iovec in &mut self.iovecs {
            let step = left.min(iovec.len);
            iovec.base = iovec.base.wrapping_add(step);
            iovec.len -= step;
            left -= step;
            if iovec.len != 0 {
                break;
            }
            done += 1;
        }
        self.iovecs.drain(..done);
        // Dirty tracking follows: the extents shrink by the same bytes.
        let mut left = count;
        let mut gone = 0;
        for extent in &mut self.extents {
            let step = left.min(extent.len);
            extent.base.0 += step as u64;
            extent.len -= step;
            left -= step;
            if extent.len != 0 {
                break;
            }
            gone += 1;
        }
        self.extents.drain(..gone);
    }

    /// Records that the kernel wrote the first `count` bytes, for migration and snapshots.
    pub fn mark_written(&self, count: usize) {
        let mut left = count;
        for extent in &self.extents {
            let mut run = *extent;
            run.len = run.len.min(left);
            left -= run.len;
            while run.len != 0 {
                let Some(region) = self.ram.find_region(run.base) else {
                    return;
                };
                let Some(MemoryRegionAddress(offset)) = region.to_region_addr(run.base) else {
                    return;
                };
                let step = run.len.min((region.len() - offset) as usize);
                region.bitmap().mark_dirty(offset as usize, step);
                run.base.0 += step as u64;
                run.len -= step;
            }
            if left == 0 {
                return;
            }
        }
    }

    /// Copies `bytes` to the start of the buffers and returns how many fitted.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for iovec in &self.iovecs {
            let step = iovec.len.min(bytes.len() - done);
            // SAFETY: `push` checked that the range is guest RAM, `self.ram` keeps it mapped, and
            // `bytes` cannot overlap it: a Rust slice never refers to guest RAM. The guest may race
            // with the copy, which can tear its own data only.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr().add(done), iovec.base, step);
            }
            done += step;
        }
        self.mark_written(done);
        done
    }

    /// Copies from the start of the buffers into `bytes` and returns how many there were.
    pub fn read(&self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for iovec in &self.iovecs {
            let step = iovec.len.min(bytes.len() - done);
            // SAFETY: as for `write`, in the other direction.
            unsafe {
                std::ptr::copy_nonoverlapping(iovec.base, bytes.as_mut_ptr().add(done), step);
            }
            done += step;
        }
        done
    }
}
