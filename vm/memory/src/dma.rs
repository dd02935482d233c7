//! Guest memory as one bus master sees it.
//!
//! `vm_memory::GuestMemory` is not object safe, so the handle is one concrete type and devices stay
//! non-generic. `vm_memory::IommuMemory` is not used: it logs dirty pages by I/O virtual address,
//! and migration needs guest-physical ones.

use crate::{Extent, PinError, PinnedBuffers, PinnedRange, Ram};
use smallvec::{SmallVec, smallvec};
use std::iter::FusedIterator;
use std::sync::Arc;
use vm_memory::bitmap::{AtomicBitmap, BS};
use vm_memory::guest_memory::{
    Error, GuestMemoryBackendSliceIterator, GuestMemorySliceIterator, Result,
};
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryBackend,
    GuestMemoryLoadGuard, Permissions, VolatileSlice,
};

/// Requester id: bus, device, function (PCI Local Bus 3.0 §3.2.2.3, as DMA remapping sees it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rid(pub u16);

/// The guest-physical runs behind one I/O virtual range.
pub type Extents = SmallVec<[Extent; 2]>;

/// A vIOMMU, as seen from a device's DMA path.
pub trait Translate: Send + Sync {
    /// Translates `len` bytes at `iova` for `rid` and appends the runs to `out`. Faults are queued
    /// to the guest by the IOMMU itself before this returns `Err`.
    fn translate(
        &self,
        rid: Rid,
        iova: GuestAddress,
        len: usize,
        access: Permissions,
        out: &mut Extents,
    ) -> std::result::Result<(), DmaFault>;
}

/// DMA was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DMA fault at {iova:#x}")]
pub struct DmaFault {
    /// Faulting address.
    pub iova: u64,
}

/// A device's window on guest memory: survives hot-plugged RAM, honours the vIOMMU.
#[derive(Clone)]
pub struct DmaSpace {
    ram: GuestMemoryAtomic<Ram>,
    iommu: Option<(Rid, Arc<dyn Translate>)>,
}

impl DmaSpace {
    /// Untranslated memory.
    pub fn identity(ram: GuestMemoryAtomic<Ram>) -> Self {
        Self { ram, iommu: None }
    }

    /// The same memory behind `iommu`, as `rid`.
    pub fn translated(&self, rid: Rid, iommu: Arc<dyn Translate>) -> Self {
        Self {
            ram: self.ram.clone(),
            iommu: Some((rid, iommu)),
        }
    }

    /// Pins the present memory layout for the duration of one batch of requests.
    pub fn view(&self) -> DmaView<'_> {
        DmaView {
            ram: self.ram.memory(),
            iommu: self.iommu.as_ref(),
        }
    }
}

impl std::fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DmaSpace")
            .field("translated", &self.iommu.is_some())
            .finish()
    }
}

/// A pinned view; implements [`GuestMemory`], so `virtio-queue` works on it unchanged.
#[derive(Clone)]
pub struct DmaView<'s> {
    ram: GuestMemoryLoadGuard<Ram>,
    iommu: Option<&'s (Rid, Arc<dyn Translate>)>,
}

impl DmaView<'_> {
    fn ranges(&self, addr: GuestAddress, len: usize, access: Permissions) -> Result<Extents> {
        let Some((rid, iommu)) = self.iommu else {
            return Ok(smallvec![Extent { base: addr, len }]);
        };
        let mut out = Extents::new();
        iommu
            .translate(*rid, addr, len, access, &mut out)
            .map_err(|fault| Error::IOError(std::io::Error::other(fault)))?;
        Ok(out)
    }

    /// An empty list of buffers on this view, to be filled with [`PinnedBuffers::push`] through
    /// [`DmaView::pin`]. It keeps the layout alive for as long as I/O is in flight.
    pub fn buffers(&self) -> PinnedBuffers {
        PinnedBuffers::new(GuestMemoryLoadGuard::into_inner(self.ram.clone()))
    }

    /// Pins `len` bytes at `addr` that must be contiguous in host memory too, such as a ring.
    pub fn pin_range(
        &self,
        addr: GuestAddress,
        len: usize,
        access: Permissions,
    ) -> std::result::Result<PinnedRange, PinError> {
        let refused = PinError { addr: addr.0, len };
        let ranges = self.ranges(addr, len, access).map_err(|_| refused)?;
        let [range] = ranges.as_slice() else {
            return Err(refused);
        };
        PinnedRange::new(GuestMemoryLoadGuard::into_inner(self.ram.clone()), *range)
    }

    /// Appends `len` bytes at `addr` to `buffers`, for the kernel to read or (`access`) write.
    pub fn pin(
        &self,
        buffers: &mut PinnedBuffers,
        addr: GuestAddress,
        len: usize,
        access: Permissions,
    ) -> std::result::Result<(), PinError> {
        for range in self
            .ranges(addr, len, access)
            .map_err(|_| PinError { addr: addr.0, len })?
        {
            buffers.push(range)?;
        }
        Ok(())
    }
}

impl GuestMemory for DmaView<'_> {
    type PhysicalMemory = Ram;
    type Bitmap = AtomicBitmap;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        let Ok(ranges) = self.ranges(addr, count, access) else {
            return false;
        };
        ranges
            .iter()
            .all(|r| GuestMemoryBackend::check_range(&*self.ram, r.base, r.len))
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, AtomicBitmap>>> {
        let ranges = self.ranges(addr, count, access)?.into_iter();
        Ok(Slices {
            ram: &self.ram,
            ranges,
            current: None,
        })
    }

    fn physical_memory(&self) -> Option<&Ram> {
        self.iommu.is_none().then_some(&*self.ram)
    }
}

struct Slices<'a> {
    ram: &'a Ram,
    ranges: smallvec::IntoIter<[Extent; 2]>,
    current: Option<GuestMemoryBackendSliceIterator<'a, Ram>>,
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a, BS<'a, AtomicBitmap>>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(slice) = self.current.as_mut().and_then(Iterator::next) {
                return Some(slice);
            }
            let range = self.ranges.next()?;
            self.current = Some(GuestMemoryBackend::get_slices(
                self.ram, range.base, range.len,
            ));
        }
    }
}

impl FusedIterator for Slices<'_> {}
impl<'a> GuestMemorySliceIterator<'a, BS<'a, AtomicBitmap>> for Slices<'a> {}
