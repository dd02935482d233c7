//! Allocation, observation, DMA through a vIOMMU and pinned buffers.

use super::*;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend,
    GuestMemoryRegion, Permissions,
};

const SHIFT: u64 = 0x8000_0000;

/// Maps [SHIFT, SHIFT + 64 KiB) to guest-physical 0, page by page.
struct Shifted;
impl Translate for Shifted {
    fn translate(
        &self,
        _: Rid,
        iova: GuestAddress,
        len: usize,
        _: Permissions,
        out: &mut Extents,
    ) -> Result<(), DmaFault> {
        match iova.0.checked_sub(SHIFT) {
            Some(gpa) if gpa + len as u64 <= 0x1_0000 => {
                out.push(Extent {
                    base: GuestAddress(gpa),
                    len,
                });
                Ok(())
            }
            _ => Err(DmaFault { iova: iova.0 }),
        }
    }
}

fn two_regions() -> Memory {
    let extents = vec![
        Extent {
            base: GuestAddress(0),
            len: 0x1_0000,
        },
        Extent {
            base: GuestAddress(0x10_0000),
            len: 0x1_0000,
        },
    ];
    Memory::allocate(&RamConfig {
        extents,
        ..RamConfig::default()
    })
    .unwrap()
}

#[test]
fn a_view_behind_a_viommu_takes_iovas_and_dirties_guest_physical_pages() {
    let ram = Ram::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    let atomic = GuestMemoryAtomic::new(ram);
    let device = DmaSpace::identity(atomic.clone()).translated(Rid(0x18), Arc::new(Shifted));
    let view = device.view();
    view.write_slice(b"hello", GuestAddress(SHIFT + 0x5000))
        .unwrap();
    let pinned = atomic.memory();
    let mut got = [0; 5];
    pinned.read_slice(&mut got, GuestAddress(0x5000)).unwrap();
    assert_eq!(&got, b"hello");
    let region = pinned.find_region(GuestAddress(0)).unwrap();
    assert!(region.bitmap().dirty_at(0x5000));
    assert!(!region.bitmap().dirty_at(0x4000));
    assert!(
        view.write_slice(b"x", GuestAddress(0x5000)).is_err(),
        "a GPA is not an IOVA"
    );
}

#[test]
fn pinned_buffers_refuse_what_is_not_ram_and_merge_neighbours() {
    let memory = two_regions();
    let space = memory.space();
    let view = space.view();
    let mut buffers = view.buffers();
    view.pin(
        &mut buffers,
        GuestAddress(0x1000),
        0x100,
        Permissions::Write,
    )
    .unwrap();
    view.pin(
        &mut buffers,
        GuestAddress(0x1100),
        0x100,
        Permissions::Write,
    )
    .unwrap();
    view.pin(
        &mut buffers,
        GuestAddress(0x10_0000),
        0x10,
        Permissions::Write,
    )
    .unwrap();
    assert_eq!((buffers.iovecs().len(), buffers.len()), (2, 0x210));
    for (addr, len) in [
        (0xffff_f000, 0x10),
        (0xfff0, 0x20),
        (u64::MAX, 2),
        (0x1_0000, 1),
    ] {
        let refused = view.pin(&mut buffers, GuestAddress(addr), len, Permissions::Write);
        assert_eq!(refused, Err(PinError { addr, len }));
    }
    let all: Vec<u8> = (0..0x210).map(|i| i as u8).collect();
    assert_eq!(buffers.write(&all), 0x210);
    let mut back = vec![0; 0x300];
    assert_eq!(buffers.read(&mut back), 0x210);
    assert_eq!(back[..0x210], all[..]);
}

#[test]
fn advancing_moves_the_data_and_the_dirty_range_together() {
    let memory = two_regions();
    let space = memory.space();
    let view = space.view();
    let mut buffers = view.buffers();
    view.pin(
        &mut buffers,
        GuestAddress(0x1f00),
        0x100,
        Permissions::Write,
    )
    .unwrap();
    view.pin(
        &mut buffers,
        GuestAddress(0x3000),
        0x100,
        Permissions::Write,
    )
    .unwrap();
    buffers.advance(0x100);
    assert_eq!(buffers.len(), 0x100);
    buffers.write(&[1; 0x100]);
    let ram = view.buffers();
    drop(ram);
    let physical = vm_memory::GuestMemory::physical_memory(&view).unwrap();
    let region = physical.find_region(GuestAddress(0)).unwrap();
    assert!(region.bitmap().dirty_at(0x3000));
    assert!(
        !region.bitmap().dirty_at(0x1f00),
        "the advanced part was not written"
    );
    buffers.advance(usize::MAX);
    assert!(buffers.is_empty() && buffers.iovecs().is_empty());
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(char, u64, usize)>>>, Option<usize>);
impl RamObserver for Log {
    fn mapped(&mut self, extent: Extent, _: &Backing<'_>) -> io::Result<()> {
        let mut log = self.0.lock();
        if self.1 == Some(log.len()) {
            return Err(io::Error::other("vetoed"));
        }
        log.push(('+', extent.base.0, extent.len));
        Ok(())
    }
    fn unmapped(&mut self, extent: Extent) {
        self.0.lock().push(('-', extent.base.0, extent.len));
    }
}

#[test]
fn observers_hear_what_is_mapped_and_a_veto_rolls_back() {
    let mut memory = two_regions();
    let log = Log::default();
    memory.subscribe(Box::new(log.clone())).unwrap();
    let vetoing = Log(Arc::default(), Some(1));
    assert!(memory.subscribe(Box::new(vetoing.clone())).is_err());
    assert_eq!(*vetoing.0.lock(), [('+', 0, 0x1_0000), ('-', 0, 0x1_0000)]);
    drop(memory);
    let heard = log.0.lock().clone();
    assert_eq!(
        heard,
        [
            ('+', 0, 0x1_0000),
            ('+', 0x10_0000, 0x1_0000),
            ('-', 0, 0x1_0000),
            ('-', 0x10_0000, 0x1_0000)
        ]
    );
}

#[test]
fn shared_memory_has_a_file_and_prefault_commits_it() {
    let extents = vec![Extent {
        base: GuestAddress(0),
        len: 4 << 20,
    }];
    let config = RamConfig {
        extents,
        sharing: RamSharing::Shared,
        prefault: true,
        ..Default::default()
    };
    struct HasFile(bool);
    impl RamObserver for HasFile {
        fn mapped(&mut self, _: Extent, backing: &Backing<'_>) -> io::Result<()> {
            let (fd, offset) = backing.file.as_ref().unwrap();
            let stat = rustix::fs::fstat(fd).unwrap();
            assert_eq!((stat.st_size, *offset), (4 << 20, 0));
            assert!(
                stat.st_blocks as u64 * 512 >= 4 << 20,
                "every page is committed"
            );
            self.0 = true;
            Ok(())
        }
        fn unmapped(&mut self, _: Extent) {
            assert!(self.0);
        }
    }
    Memory::allocate(&config)
        .unwrap()
        .subscribe(Box::new(HasFile(false)))
        .unwrap();
}

#[test]
fn huge_pages_that_the_host_has_not_are_refused_with_the_mend() {
    let extents = vec![Extent {
        base: GuestAddress(0),
        len: 1 << 40,
    }];
    let config = RamConfig {
        extents,
        huge_pages: HugePages::Size1G,
        ..Default::default()
    };
    let error = Memory::allocate(&config).err().unwrap().to_string();
    assert!(
        error.contains("1 GiB huge pages (reserve more: boot with"),
        "{error}"
    );
}

#[test]
fn overlapping_extents_are_refused() {
    let extents = vec![
        Extent {
            base: GuestAddress(0),
            len: 0x2000,
        },
        Extent {
            base: GuestAddress(0x1000),
            len: 0x2000,
        },
    ];
    let config = RamConfig {
        extents,
        ..Default::default()
    };
    assert!(matches!(
        Memory::allocate(&config),
        Err(AllocateError::Layout)
    ));
}

#[test]
fn a_pinned_range_is_checked_once_and_bounded_always() {
    let memory = two_regions();
    let space = memory.space();
    let view = space.view();
    assert!(
        view.pin_range(GuestAddress(0xfff0), 0x20, Permissions::ReadWrite)
            .is_err()
    );
    let range = view
        .pin_range(GuestAddress(0x2000), 16, Permissions::ReadWrite)
        .unwrap();
    range.store_u16(2, 0x1234).unwrap();
    assert_eq!(range.load_u16(2), Some(0x1234));
    assert_eq!(range.read::<4>(0), Some([0, 0, 0x34, 0x12]));
    range.write(12, [1, 2, 3, 4]).unwrap();
    for (what, refused) in [
        ("unaligned", range.load_u16(1)),
        ("past the end", range.load_u16(16)),
        ("overflow", range.load_u16(usize::MAX)),
    ] {
        assert_eq!(refused, None, "{what}");
    }
    assert!(range.read::<8>(9).is_none() && range.write(13, [0; 4]).is_none());
    let ram = vm_memory::GuestMemory::physical_memory(&view).unwrap();
    assert!(
        ram.find_region(GuestAddress(0))
            .unwrap()
            .bitmap()
            .dirty_at(0x2000)
    );
}
