//! Kernels made byte by byte: recognition, placement, loading, and hostile headers.

use std::io::Write;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::*;

const RAM: u64 = 64 << 20;

fn map(ram: u64) -> MemoryMap {
    MemoryMap::build(vec![
        MemoryRange {
            base: 0,
            len: layout::EBDA,
            kind: MemoryKind::Ram,
        },
        MemoryRange {
            base: layout::EBDA,
            len: layout::HIGH_MEMORY - layout::EBDA,
            kind: MemoryKind::Reserved,
        },
        MemoryRange {
            base: layout::HIGH_MEMORY,
            len: ram - layout::HIGH_MEMORY,
            kind: MemoryKind::Ram,
        },
    ])
    .unwrap()
}

fn memory(ram: u64) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), ram as usize)]).unwrap()
}

/// A program header of the 64-bit class.
struct Ph {
    kind: u32,
    offset: u64,
    virtual_: u64,
    physical: u64,
    file: u64,
    memory: u64,
    align: u64,
}

fn load(offset: u64, physical: u64, file: u64, memory: u64) -> Ph {
    Ph {
        kind: 1,
        offset,
        virtual_: physical | 0xffff_ffff_8000_0000,
        physical,
        file,
        memory,
        align: 0x1000,
    }
}

fn elf64(machine: u16, type_: u16, entry: u64, headers: &[Ph], body: &[(usize, &[u8])]) -> Vec<u8> {
    let mut f = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    f.extend(type_.to_le_bytes());
    f.extend(machine.to_le_bytes());
    f.extend(1u32.to_le_bytes());
    f.extend(entry.to_le_bytes());
    f.extend(64u64.to_le_bytes());
    f.extend(0u64.to_le_bytes());
    f.extend(0u32.to_le_bytes());
    for half in [64u16, 56, headers.len() as u16, 0, 0, 0] {
        f.extend(half.to_le_bytes());
    }
    for h in headers {
        f.extend(h.kind.to_le_bytes());
        f.extend(7u32.to_le_bytes());
        for word in [h.offset, h.virtual_, h.physical, h.file, h.memory, h.align] {
            f.extend(word.to_le_bytes());
        }
    }
    for (at, bytes) in body {
        if f.len() < at + bytes.len() {
            f.resize(at + bytes.len(), 0);
        }
        f[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    f
}

fn xen_note(entry: u32) -> Vec<u8> {
    let mut note = Vec::new();
    // An unrelated note first, with a name that needs padding.
    for word in [4u32, 5, 3] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"GNU\0hello\0\0\0");
    for word in [4u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(u64::from(entry).to_le_bytes());
    note
}

fn pvh_elf() -> Vec<u8> {
    let note = xen_note(0x100_0040);
    let headers = [
        load(0x1000, 0x100_0000, 0x2000, 0x5000),
        Ph {
            kind: 4,
            align: 4,
            ..load(0x400, 0, note.len() as u64, note.len() as u64)
        },
    ];
    elf64(
        62,
        2,
        0x100_0000,
        &headers,
        &[(0x400, &note), (0x1000, &[0xab; 0x2000])],
    )
}

fn bzimage(pages: usize) -> Vec<u8> {
    let mut f = vec![0x5a; 512 * 3 + pages * 4096];
    f[..1536].fill(0);
    f[0x1f1] = 2;
    f[0x1f4..0x1f8].copy_from_slice(&(pages as u32 * 256).to_le_bytes());
    f[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    f[0x201] = 0x6a;
    f[0x202..0x206].copy_from_slice(b"HdrS");
    f[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    f[0x211] = 1;
    f[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    f[0x236] = 0x7f;
    f[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    f[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    f[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
    f
}

fn fault(bytes: Vec<u8>) -> String {
    Kernel::read(bytes, "k").unwrap_err().to_string()
}

fn request<'a>(ram: u64, command_line: &'a str, initrd_len: Option<u64>) -> BootRequest<'a> {
    BootRequest {
        memory_map: map(ram),
        command_line,
        initrd_len,
        rsdp: Some(0xe_0000),
    }
}

fn read<const N: usize>(memory: &GuestMemoryMmap, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn u32_at(memory: &GuestMemoryMmap, at: u64) -> u32 {
    u32::from_le_bytes(read(memory, at))
}

fn u64_at(memory: &GuestMemoryMmap, at: u64) -> u64 {
    u64::from_le_bytes(read(memory, at))
}

#[test]
fn pvh_kernel_is_loaded_from_a_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&pvh_elf()).unwrap();
    let kernel = Kernel::open(file.path()).unwrap();
    assert_eq!(kernel.protocol(), Protocol::Pvh);
    let mut initrd_file = tempfile::NamedTempFile::new().unwrap();
    initrd_file.write_all(&[0xcd; 5000]).unwrap();
    let initrd = Initrd::open(initrd_file.path()).unwrap();

    let plan =
        BootPlan::build(&kernel, request(RAM, "console=ttyS0", Some(initrd.size()))).unwrap();
    assert_eq!(plan.entry, CpuEntry::pvh(0x100_0040));
    assert_eq!(plan.initrd, Some(RAM - 0x2000..RAM - 0x2000 + 5000));
    let memory = memory(RAM);
    // Remains of an earlier run in the kernel's uninitialised data and in the boot TSS.
    memory
        .write_slice(&[0xee; 0x3000], GuestAddress(0x100_2000))
        .unwrap();
    memory.write_slice(&[0xee; 16], GuestAddress(0x60)).unwrap();
    plan.load(&memory, &kernel, Some(&initrd), RamContent::Unknown)
        .unwrap();

    assert_eq!(read(&memory, 0x100_1ffe), [0xab, 0xab, 0, 0]);
    assert_eq!(read(&memory, 0x100_4fff), [0, 0]);
    assert_eq!(read(&memory, 0x60), [0; 16]);
    assert_eq!(read(&memory, RAM - 0x2000 + 4999), [0xcd, 0]);
    let info = layout::PVH_START_INFO;
    assert_eq!(
        read(&memory, info),
        *b"\x78\xc5\x6e\x33\x01\0\0\0\0\0\0\0\x01\0\0\0"
    );
    assert_eq!(u64_at(&memory, info + 16), layout::PVH_MODULES);
    assert_eq!(
        read(&memory, u64_at(&memory, info + 24)),
        *b"console=ttyS0\0"
    );
    assert_eq!(u64_at(&memory, info + 32), 0xe_0000);
    assert_eq!(u64_at(&memory, info + 40), layout::PVH_MEMORY_MAP);
    assert_eq!(u32_at(&memory, info + 48), 3);
    assert_eq!(u64_at(&memory, layout::PVH_MODULES), RAM - 0x2000);
    assert_eq!(u64_at(&memory, layout::PVH_MODULES + 8), 5000);
    let second = layout::PVH_MEMORY_MAP + 24;
    assert_eq!(u64_at(&memory, second), layout::EBDA);
    assert_eq!(
        (u64_at(&memory, second + 8), u32_at(&memory, second + 16)),
        (0x6_0400, 2)
    );
    assert_eq!(u64_at(&memory, layout::GDT + 16), 0x00cf_9b00_0000_ffff);
}

#[test]
fn bzimage_is_entered_by_the_64_bit_protocol() {
    let kernel = Kernel::read(bzimage(5), "vmlinuz").unwrap();
    assert_eq!(kernel.protocol(), Protocol::Linux64);
    let initrd = Initrd::read(vec![1u8; 100_000], "initrd").unwrap();
    let plan = BootPlan::build(&kernel, request(RAM, "quiet", Some(initrd.size()))).unwrap();
    assert_eq!(plan.entry.rip, 0x100_0200);
    assert_eq!(plan.segments[0].memory_len, 0x20_0000);
    let memory = memory(RAM);
    plan.load(&memory, &kernel, Some(&initrd), RamContent::Zero)
        .unwrap();

    assert_eq!(read(&memory, 0x100_0000 + 5 * 4096 - 1), [0x5a, 0]);
    let params = layout::BOOT_PARAMS;
    assert_eq!(read(&memory, params + 0x1fe), [0x55, 0xaa]);
    assert_eq!(read(&memory, params + 0x202), *b"HdrS\x0f\x02");
    assert_eq!(read(&memory, params + 0x210), [0xff, 1]);
    assert_eq!(u32_at(&memory, params + 0x228), 0x2_0000);
    assert_eq!(read(&memory, layout::COMMAND_LINE), *b"quiet\0");
    let at = plan.initrd.clone().unwrap().start;
    assert_eq!(u64::from(u32_at(&memory, params + 0x218)), at);
    assert_eq!(u32_at(&memory, params + 0x21c), 100_000);
    assert_eq!(u64_at(&memory, params + 0x70), 0xe_0000);
    assert_eq!(
        u64_at(&memory, params + 0x258),
        0x100_0000,
        "the setup header is carried over"
    );
    assert_eq!(read(&memory, params + 0x1e8), [3]);
    assert_eq!(u64_at(&memory, params + 0x2d0 + 20), layout::EBDA);
    assert_eq!(u32_at(&memory, params + 0x2d0 + 36), 2);
    assert_eq!(
        read(&memory, params + 0x1ef),
        [0],
        "the sentinel must be clear"
    );
    assert_eq!(
        u64_at(&memory, layout::PAGE_TABLES),
        layout::PAGE_TABLES + 0x1003
    );
    assert!(plan.describe()[0].contains("0x1000200"));
}

#[test]
fn plain_elf_is_entered_at_its_64_bit_entry() {
    let at = |entry| {
        let bytes = elf64(
            62,
            3,
            entry,
            &[load(0x1000, 0x20_0000, 16, 16)],
            &[(0x1000, &[0x90; 16])],
        );
        let kernel = Kernel::read(bytes, "k").unwrap();
        let plan = BootPlan::build(&kernel, request(RAM, "", None)).unwrap();
        let memory = memory(RAM);
        plan.load(&memory, &kernel, None::<&Initrd<Vec<u8>>>, RamContent::Zero)
            .unwrap();
        assert_eq!(read(&memory, layout::BOOT_PARAMS + 0x202), *b"HdrS");
        plan.entry
    };
    assert_eq!(at(0x20_0004), CpuEntry::linux64(0x20_0004));
    assert_eq!(
        at(0xffff_ffff_8020_0008),
        CpuEntry::linux64(0x20_0008),
        "a virtual entry is translated"
    );
}

#[test]
fn initrd_avoids_the_kernel_and_its_limit() {
    let body = [0x90; 16];
    // The kernel sits at the end of RAM: the initrd goes below it.
    let top = RAM - 0x10_0000;
    let bytes = elf64(
        62,
        2,
        top,
        &[load(0x1000, top, 16, 0x10_0000)],
        &[(0x1000, &body)],
    );
    let kernel = Kernel::read(bytes, "k").unwrap();
    let plan = BootPlan::build(&kernel, request(RAM, "", Some(0x1001))).unwrap();
    assert_eq!(plan.initrd, Some(top - 0x2000..top - 0x2000 + 0x1001));

    let mut limited = bzimage(1);
    limited[0x22c..0x230].copy_from_slice(&0x37ff_ffffu32.to_le_bytes());
    let kernel = Kernel::read(limited, "k").unwrap();
    let plan = BootPlan::build(&kernel, request(2 << 30, "", Some(4096))).unwrap();
    assert_eq!(plan.initrd, Some(0x37ff_f000..0x3800_0000));
    let error = BootPlan::build(&kernel, request(RAM, "", Some(60 << 20))).unwrap_err();
    assert_eq!(
        error,
        BootPlanError::InitrdTooLarge {
            len: 60 << 20,
            limit: 0x3800_0000
        }
    );
}

#[test]
fn refusals_name_the_file_and_the_mend() {
    assert_eq!(fault(vec![]), "kernel k is empty");
    let missing = Kernel::open("/nonexistent/vmlinux")
        .unwrap_err()
        .to_string();
    assert!(
        missing.starts_with("kernel /nonexistent/vmlinux cannot be opened: No such file"),
        "{missing}"
    );
    let directory = Kernel::open("/").unwrap_err().to_string();
    assert_eq!(directory, "kernel / is not a regular file");
    let code: &[(usize, &[u8])] = &[(0x1000, &[0x90; 16])];
    let one = [load(0x1000, 0x10_0000, 16, 16)];
    let foreign = |machine| fault(elf64(machine, 2, 0x10_0000, &one, code));
    assert_eq!(
        foreign(183),
        "kernel k is a program for aarch64, but this machine is x86-64: give it an x86-64 kernel"
    );
    assert!(foreign(243).contains("RISC-V"));
    assert!(foreign(999).contains("machine type 999"));
    let mut big = elf64(22 << 8, 2, 0, &one, code);
    big[5] = 2;
    assert!(fault(big).contains("s390x"));
    let mut swapped = elf64(62 << 8, 2, 0, &one, code);
    swapped[5] = 2;
    assert!(fault(swapped).contains("big-endian"));
    assert!(fault(elf64(62, 1, 0, &one, code)).contains("not been linked"));
    assert!(fault(elf64(62, 2, 0x10_0000, &[], code)).contains("no program headers"));
    assert!(fault(elf64(62, 2, 0x50_0000, &one, code)).contains("entry point lies outside"));
    let interpreter = [
        load(0x1000, 0x10_0000, 16, 16),
        Ph {
            kind: 3,
            ..load(0x1000, 0, 4, 4)
        },
    ];
    assert!(fault(elf64(62, 3, 0x10_0000, &interpreter, code)).contains("dynamic loader"));
    let overlapping = [
        load(0x1000, 0x10_0000, 16, 32),
        load(0x1000, 0x10_0010, 16, 16),
    ];
    assert!(fault(elf64(62, 2, 0x10_0000, &overlapping, code)).contains("overlap"));
    let mut cut = pvh_elf();
    cut.truncate(0x2fff);
    assert_eq!(
        fault(cut),
        "kernel k is truncated: it has 12287 bytes, but its headers speak of at least 12288"
    );
    assert!(
        fault(b"\x1f\x8b\x08rest".to_vec())
            .contains("compressed with gzip: unpack it first (`gunzip`)")
    );
    assert!(fault(b"\xfd7zXZ\0".to_vec()).contains("xz"));
    assert!(fault(b"QFI\xfb".to_vec()).contains("is a qcow2 disk image, not a kernel"));
    assert!(fault(b"hello".to_vec()).contains("neither an ELF kernel"));
}

#[test]
fn bzimage_refusals() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bzimage(5);
        change(&mut bytes);
        fault(bytes)
    };
    assert!(with(&|b| b[0x236] = 0).contains("is a 32-bit Linux kernel"));
    assert!(with(&|b| b[0x206] = 4).contains("protocol 2.04"));
    assert!(with(&|b| b.truncate(4096)).contains("truncated"));
    assert!(with(&|b| b.truncate(0x208)).contains("truncated"));
    assert!(with(&|b| b[0x258..0x260].fill(0xff)).contains("beyond 2^64"));
}

#[test]
fn thirty_two_bit_elf_needs_the_pvh_note() {
    let elf32 = |note: bool| {
        let mut f = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for half in [2u16, 3] {
            f.extend(half.to_le_bytes());
        }
        for word in [1u32, 0x10_0000, 52, 0, 0] {
            f.extend(word.to_le_bytes());
        }
        for half in [52u16, 32, if note { 2 } else { 1 }, 0, 0, 0] {
            f.extend(half.to_le_bytes());
        }
        for word in [1u32, 0x1000, 0x10_0000, 0x10_0000, 16, 16, 7, 4] {
            f.extend(word.to_le_bytes());
        }
        let note = xen_note(0x10_0008);
        for word in [
            4u32,
            0x800,
            0,
            0,
            note.len() as u32,
            note.len() as u32,
            4,
            4,
        ] {
            f.extend(word.to_le_bytes());
        }
        f.resize(0x1010, 0x90);
        f[0x800..0x800 + note.len()].copy_from_slice(&note);
        f
    };
    assert!(fault(elf32(false)).contains("32-bit ELF file without a PVH entry note"));
    let kernel = Kernel::read(elf32(true), "k").unwrap();
    assert_eq!(kernel.protocol(), Protocol::Pvh);
    assert_eq!(kernel.segments()[0].address, 0x10_0000);
}

#[test]
fn placement_refusals() {
    let kernel = Kernel::read(pvh_elf(), "big").unwrap();
    let error = BootPlan::build(&kernel, request(8 << 20, "", None)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kernel big needs RAM up to 0x1005000, but RAM there ends at 0x800000: \
         give the machine at least 17 MiB of memory"
    );
    let low = elf64(
        62,
        2,
        0x8000,
        &[load(0x1000, 0x8000, 16, 16)],
        &[(0x1000, &[0x90; 16])],
    );
    let kernel_low = Kernel::read(low, "low").unwrap();
    assert!(matches!(
        BootPlan::build(&kernel_low, request(RAM, "", None)),
        Err(BootPlanError::KernelTooLow {
            address: 0x8000,
            ..
        })
    ));
    let long = "x".repeat(2048);
    assert_eq!(
        BootPlan::build(&kernel, request(RAM, &long, None)),
        Err(BootPlanError::CommandLineTooLong {
            len: 2048,
            max: 2047
        })
    );
    assert_eq!(
        BootPlan::build(&kernel, request(RAM, "a\nb", None)),
        Err(BootPlanError::CommandLineBroken)
    );
    let plan = BootPlan::build(&kernel, request(RAM, "", Some(10))).unwrap();
    let initrd = Initrd::read(vec![0u8; 11], "i").unwrap();
    assert!(matches!(
        plan.load(&memory(RAM), &kernel, Some(&initrd), RamContent::Zero),
        Err(LoadError::InitrdChanged {
            planned: 10,
            found: 11
        })
    ));
}

#[test]
fn a_file_that_shrinks_is_an_error_not_a_hang() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&pvh_elf()).unwrap();
    let kernel = Kernel::open(file.path()).unwrap();
    let plan = BootPlan::build(&kernel, request(RAM, "", None)).unwrap();
    file.as_file().set_len(0x1800).unwrap();
    let error = plan
        .load(&memory(RAM), &kernel, None::<&Initrd>, RamContent::Zero)
        .unwrap_err();
    assert!(
        error.to_string().starts_with("cannot load kernel /"),
        "{error}"
    );
}

/// Recognises `bytes`, and when they pass, places and loads them: nothing may panic or run away.
fn survive(bytes: Vec<u8>) {
    if let Ok(kernel) = Kernel::read(bytes, "k")
        && let Ok(plan) = BootPlan::build(&kernel, request(32 << 20, "x", Some(4096)))
    {
        let initrd = Initrd::read(vec![0u8; 4096], "i").unwrap();
        plan.load(
            &memory(32 << 20),
            &kernel,
            Some(&initrd),
            RamContent::Unknown,
        )
        .unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(kind in 0..3, tail in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let mut bytes: Vec<u8> = match kind { 0 => vec![], 1 => b"\x7fELF\x02\x01".to_vec(), _ => bzimage(0)[..0x206].to_vec() };
        bytes.extend(tail);
        survive(bytes);
    }

    #[test]
    fn truncations_and_flips_never_panic(
        bz in any::<bool>(),
        cut in 0usize..0x3000,
        flips in proptest::collection::vec((0usize..0x480, any::<u8>()), 0..6),
    ) {
        let mut bytes = if bz { bzimage(2) } else { pvh_elf() };
        for (at, value) in flips {
            bytes[at] = value;
        }
        bytes.truncate(cut.max(1));
        survive(bytes);
    }

    #[test]
    fn field_extremes_never_panic(
        at in 16usize..0x100,
        value in prop_oneof![Just(u64::MAX), Just(1 << 63), Just(u64::from(u32::MAX)), Just(0), any::<u64>()],
    ) {
        let mut bytes = pvh_elf();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        survive(bytes);
    }
}
