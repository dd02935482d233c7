//! Guest RAM: how it is allocated, and who is told.

use crate::{Backing, DmaSpace, PAGE, Ram, RamObserver};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend,
    GuestMemoryRegion, GuestRegionMmap,
};

/// A run of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub base: GuestAddress,
    /// Length in bytes.
    pub len: usize,
}

/// Host page size behind guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Ordinary 4 KiB pages.
    #[default]
    Off,
    /// Ordinary pages, with transparent huge pages asked for (`MADV_HUGEPAGE`).
    Transparent,
    /// 2 MiB pages from the host's reserved pool.
    Size2M,
    /// 1 GiB pages from the host's reserved pool.
    Size1G,
}

impl HugePages {
    /// Size in bytes of the pages the host must hand out.
    pub fn page_size(self) -> u64 {
        match self {
            Self::Off | Self::Transparent => PAGE,
            Self::Size2M => 2 << 20,
            Self::Size1G => 1 << 30,
        }
    }
}

/// Whether another process can map guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RamSharing {
    /// Private anonymous memory: the cheapest.
    #[default]
    Private,
    /// A shared memfd: vhost-user, external snapshot helpers.
    Shared,
}

/// How to allocate guest RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RamConfig {
    /// Where RAM is, ascending and disjoint.
    pub extents: Vec<Extent>,
    /// Host page size.
    pub huge_pages: HugePages,
    /// Private or shared.
    pub sharing: RamSharing,
    /// Fault every page in before the guest starts.
    pub prefault: bool,
}

/// Guest RAM could not be allocated.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// The host has too little memory, or not enough huge pages.
    #[error("cannot map {len} bytes of guest memory{hint}: {source}")]
    Map {
        /// Bytes asked for.
        len: usize,
        /// What to do about it.
        hint: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The extents overlap or are out of order.
    #[error("guest memory extents are not ascending and disjoint")]
    Layout,
    /// An observer vetoed the layout.
    #[error("cannot register guest memory: {0}")]
    Observer(#[source] io::Error),
}

/// Owns guest RAM and keeps its observers informed.
pub struct Memory {
    ram: GuestMemoryAtomic<Ram>,
    observers: Vec<Box<dyn RamObserver>>,
}

impl Memory {
    /// Allocates guest RAM. Pages are committed lazily unless `config.prefault` is set.
    pub fn allocate(config: &RamConfig) -> Result<Self, AllocateError> {
        let mut regions = Vec::with_capacity(config.extents.len());
        for extent in &config.extents {
            let region = map(extent.len, config)?;
            regions.push(GuestRegionMmap::new(region, extent.base).ok_or(AllocateError::Layout)?);
        }
        let ram = Ram::from_regions(regions).map_err(|_| AllocateError::Layout)?;
        Ok(Self {
            ram: GuestMemoryAtomic::new(ram),
            observers: Vec::new(),
        })
    }

    /// Adds an observer and tells it about everything already mapped.
    pub fn subscribe(&mut self, mut observer: Box<dyn RamObserver>) -> Result<(), AllocateError> {
        let ram = self.ram.memory();
        let mut told = Vec::new();
        for region in ram.iter() {
            let extent = Extent {
                base: region.start_addr(),
                len: region.len() as usize,
            };
            let Some(host) = NonNull::new(region.as_ptr()) else {
                continue;
            };
            let file = region.file_offset().map(|f| (f.file().as_fd(), f.start()));
            if let Err(e) = observer.mapped(extent, &Backing { host, file }) {
                told.into_iter()
                    .for_each(|extent| observer.unmapped(extent));
                return Err(AllocateError::Observer(e));
            }
            told.push(extent);
        }
        self.observers.push(observer);
        Ok(())
    }

    /// Untranslated access to all of RAM.
    pub fn space(&self) -> DmaSpace {
        DmaSpace::identity(self.ram.clone())
    }

    /// The present layout.
    pub fn extents(&self) -> Vec<Extent> {
        let ram = self.ram.memory();
        ram.iter()
            .map(|r| Extent {
                base: r.start_addr(),
                len: r.len() as usize,
            })
            .collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for extent in self.extents() {
            self.observers.iter_mut().for_each(|o| o.unmapped(extent));
        }
    }
}

fn map(
    len: usize,
    config: &RamConfig,
) -> Result<vm_memory::MmapRegion<AtomicBitmap>, AllocateError> {
    let hint = match config.huge_pages {
        HugePages::Off | HugePages::Transparent => "",
        HugePages::Size2M => {
            " from 2 MiB huge pages (reserve more: sysctl vm.nr_hugepages, or run without)"
        }
        HugePages::Size1G => {
            " from 1 GiB huge pages (reserve more: boot with hugepagesz=1G hugepages=N, or run without)"
        }
    };
    let fail = |source: io::Error| AllocateError::Map { len, hint, source };
    let bitmap = AtomicBitmap::with_len(len);
    let mut flags = libc::MAP_NORESERVE;
    let hugetlb = match config.huge_pages {
        HugePages::Off | HugePages::Transparent => 0,
        HugePages::Size2M => 21,
        HugePages::Size1G => 30,
    };
    let mut builder = MmapRegionBuilder::new_with_bitmap(len, bitmap)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    if config.sharing == RamSharing::Shared {
        let file = memfd(len as u64, hugetlb).map_err(fail)?;
        flags |= libc::MAP_SHARED;
        builder = builder.with_file_offset(FileOffset::new(file.into(), 0));
    } else {
        flags |= libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        if hugetlb != 0 {
            flags |= libc::MAP_HUGETLB | (hugetlb << libc::MAP_HUGE_SHIFT);
        }
    }
    if hugetlb != 0 {
        // Reserve the pool now: without, running out later is a SIGBUS in the guest's face.
        flags &= !libc::MAP_NORESERVE;
        builder = builder.with_hugetlbfs(true);
    }
    let region = builder
        .with_mmap_flags(flags)
        .build()
        .map_err(|e| match e {
            MmapRegionError::Mmap(source) => fail(source),
            other => fail(io::Error::other(other.to_string())),
        })?;
    let advise = |advice| {
        // SAFETY: the range is exactly the mapping just made, which `region` owns.
        match unsafe { libc::madvise(region.as_ptr().cast(), len, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    if config.huge_pages == HugePages::Transparent {
        advise(libc::MADV_HUGEPAGE).map_err(fail)?;
    }
    // Core dumps of the VMM must neither be guest-sized nor leak the tenant.
    advise(libc::MADV_DONTDUMP).map_err(fail)?;
    // A helper that is forked off must not have it either: copying on write would also part pages
    // that the kernel is about to fill from those that the guest sees.
    advise(libc::MADV_DONTFORK).map_err(fail)?;
    if config.prefault {
        prefault(&region, len, config.huge_pages.page_size()).map_err(fail)?;
    }
    Ok(region)
}

/// Faults every page in for writing, in parallel: one thread per host CPU, at most eight.
fn prefault(region: &vm_memory::MmapRegion<AtomicBitmap>, len: usize, page: u64) -> io::Result<()> {
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(8);
    let page = page as usize;
    let share = len.div_ceil(threads).next_multiple_of(page);
    let base = region.as_ptr() as usize;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|i| (i * share, ((i + 1) * share).min(len)))
            .filter(|(start, end)| start < end)
            .map(|(start, end)| {
                scope.spawn(move || {
                    // SAFETY: the range lies within the mapping that `region` keeps alive for the
                    // duration of this scope. MADV_POPULATE_WRITE (Linux 5.14) changes no content.
                    match unsafe {
                        libc::madvise((base + start) as *mut _, end - start, MADV_POPULATE_WRITE)
                    } {
                        0 => Ok(()),
                        _ => Err(io::Error::last_os_error()),
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|w| {
            w.join()
                .unwrap_or_else(|_| Err(io::Error::other("a prefault thread panicked")))
        })
    })
}

/// `madvise(2)`: populate page tables writable, faulting pages in. Not in the libc crate for every
/// target it supports.
const MADV_POPULATE_WRITE: i32 = 23;

fn memfd(len: u64, huge_shift: i32) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    flags |= match huge_shift {
        21 => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        30 => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        _ => MemfdFlags::empty(),
    };
    let fd = memfd_create("nyx-ram", flags)?;
    ftruncate(&fd, len)?;
    // A peer that shrinks the file would turn our next access into SIGBUS.
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(fd)
}
