//! Direct boot: deciding where kernel, initrd and boot structures go, and writing them to guest memory.
//!
//! Deciding ([`BootPlan::build`]) is pure and printable; writing ([`BootPlan::load`]) follows the plan.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::bzimage::{LONG_ENTRY, SETUP_HEADER};
use crate::entry::{CpuEntry, Protocol, identity_page_tables};
use crate::kernel::{Image, Kernel, KernelFault, Segment, open_regular};
use crate::layout;
use crate::memory_map::MemoryMap;
use crate::source::Payload;

/// Longest command line Linux keeps on x86 (`COMMAND_LINE_SIZE` 2048, its NUL included).
/// An ELF kernel cannot say what it takes, so this is assumed.
pub const LINUX_COMMAND_LINE_MAX: u64 = 2047;

/// An initial RAM disk and the bytes to load it from.
#[derive(Debug)]
pub struct Initrd<S = File> {
    name: String,
    source: S,
    len: u64,
}

/// An initrd that cannot be used; one sentence with the file's name.
#[derive(Debug, thiserror::Error)]
#[error("initrd {name} {fault}")]
pub struct OpenInitrdError {
    /// Path or name of the file.
    pub name: String,
    /// What is wrong with it.
    pub fault: KernelFault,
}

impl Initrd<File> {
    /// Opens the initrd at `path`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenInitrdError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        match open_regular(path) {
            Ok(file) => Initrd::read(file, name),
            Err(fault) => Err(OpenInitrdError { name, fault }),
        }
    }
}

impl<S: Payload> Initrd<S> {
    /// Takes the initrd in `source`; `name` is for messages.
    pub fn read(source: S, name: impl Into<String>) -> Result<Self, OpenInitrdError> {
        let name = name.into();
        match source.size() {
            Ok(0) => Err(OpenInitrdError {
                name,
                fault: KernelFault::Empty,
            }),
            Ok(len) => Ok(Initrd { name, source, len }),
            Err(error) => Err(OpenInitrdError {
                name,
                fault: KernelFault::Read(error),
            }),
        }
    }

    /// Path or name of the initrd.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes, never 0.
    pub fn size(&self) -> u64 {
        self.len
    }
}

/// What a direct boot needs besides the kernel.
#[derive(Debug, Clone)]
pub struct BootRequest<'a> {
    /// The guest's memory as the plan lays it out.
    pub memory_map: MemoryMap,
    /// Kernel command line, complete; see [`cmdline`](crate::cmdline).
    pub command_line: &'a str,
    /// Length of the initrd in bytes.
    pub initrd_len: Option<u64>,
    /// Guest physical address of the ACPI root pointer.
    pub rsdp: Option<u64>,
}

/// Why a kernel cannot be placed in a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BootPlanError {
    /// RAM ends before the kernel does, or is interrupted within it.
    #[error(
        "kernel {kernel} needs RAM up to {end:#x}, but RAM there ends at {ram_end:#x}: \
         give the machine at least {} MiB of memory", mebibytes(*.end)
    )]
    KernelTooLarge {
        /// Name of the kernel.
        kernel: String,
        /// First address beyond the kernel.
        end: u64,
        /// End of RAM below 4 GiB.
        ram_end: u64,
    },
    /// The kernel wants memory that the boot structures use.
    #[error(
        "kernel {kernel} wants to be loaded at {address:#x}, but memory below 1 MiB is kept for boot structures: link it at 1 MiB or above"
    )]
    KernelTooLow {
        /// Name of the kernel.
        kernel: String,
        /// Lowest load address.
        address: u64,
    },
    /// No free stretch of RAM holds the initrd.
    #[error(
        "the initrd of {len} bytes does not fit into RAM below {limit:#x} beside the kernel: \
         give the machine at least {} MiB more memory, or use a smaller initrd", mebibytes(*.len)
    )]
    InitrdTooLarge {
        /// Length of the initrd.
        len: u64,
        /// First address the initrd may not reach.
        limit: u64,
    },
    /// Longer than the kernel keeps.
    #[error(
        "the kernel command line has {len} bytes, but this kernel takes at most {max}: shorten it"
    )]
    CommandLineTooLong {
        /// Its length.
        len: u64,
        /// Longest possible.
        max: u64,
    },
    /// A byte that would end or break the command line.
    #[error("the kernel command line contains a NUL or a line break: write it as one line")]
    CommandLineBroken,
}

fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Why loading failed half way.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The kernel's bytes could not be read into guest memory.
    #[error("cannot load kernel {name}: {error}")]
    Kernel {
        /// Name of the kernel.
        name: String,
        /// What reading or writing said.
        error: io::Error,
    },
    /// The initrd's bytes could not be read into guest memory.
    #[error("cannot load initrd {name}: {error}")]
    Initrd {
        /// Name of the initrd.
        name: String,
        /// What reading or writing said.
        error: io::Error,
    },
    /// The initrd given is not the one planned for.
    #[error(
        "the initrd has {found} bytes, but the plan was made for {planned}: did the file change?"
    )]
    InitrdChanged {
        /// Bytes the plan has room for; 0 when it has none.
        planned: u64,
        /// Bytes of the initrd given; 0 for none.
        found: u64,
    },
    /// Guest memory does not cover what the memory map calls RAM.
    #[error("guest memory is missing at {0:#x}, where boot structures go")]
    NoMemory(u64),
}

/// What guest RAM contains before loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamContent {
    /// Fresh from the host: all zero, so zeroing again would only cost page faults.
    Zero,
    /// The remains of an earlier run.
    Unknown,
}

/// Where everything of a direct boot goes, and how the processor enters the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPlan {
    /// Pieces of the kernel file.
    pub segments: Vec<Segment>,
    /// Guest physical range of the initrd.
    pub initrd: Option<Range<u64>>,
    /// The command line.
    pub command_line: String,
    /// The memory map handed to the kernel.
    pub memory_map: MemoryMap,
    /// Guest physical address of the ACPI root pointer.
    pub rsdp: Option<u64>,
    /// Register values of the boot processor.
    pub entry: CpuEntry,
}

impl BootPlan {
    /// Places `kernel` and what `request` names in the guest's memory.
    pub fn build<S: Payload>(
        kernel: &Kernel<S>,
        request: BootRequest<'_>,
    ) -> Result<Self, BootPlanError> {
        let BootRequest {
            memory_map,
            command_line,
            initrd_len,
            rsdp,
        } = request;
        let segments = kernel.segments();
        let mut taken = Vec::with_capacity(segments.len());
        for segment in &segments {
            let range = segment.address..segment.address.saturating_add(segment.memory_len);
            if range.start < layout::HIGH_MEMORY {
                return Err(BootPlanError::KernelTooLow {
                    kernel: kernel.name().into(),
                    address: range.start,
                });
            }
            if range.end > layout::FOUR_GIB || !memory_map.is_ram(range.clone()) {
                return Err(BootPlanError::KernelTooLarge {
                    kernel: kernel.name().into(),
                    end: range.end,
                    ram_end: memory_map.ram_end_below(layout::FOUR_GIB),
                });
            }
            taken.push(range);
        }

        let (command_line_max, initrd_end) = match kernel.image() {
            Image::Elf(_) => (LINUX_COMMAND_LINE_MAX, layout::FOUR_GIB),
            Image::BzImage(bz) => (bz.command_line_max, bz.initrd_addr_max.saturating_add(1)),
        };
        let command_line_max = command_line_max.min(layout::COMMAND_LINE_SPACE - 1);
        let len = command_line.len() as u64;
        if len > command_line_max {
            return Err(BootPlanError::CommandLineTooLong {
                len,
                max: command_line_max,
            });
        }
        if command_line.contains(['\0', '\n', '\r']) {
            return Err(BootPlanError::CommandLineBroken);
        }

        let limit = initrd_end.min(layout::FOUR_GIB);
        let initrd = match initrd_len {
            None => None,
            Some(len) => {
                let place = memory_map.highest_fit(len, layout::HIGH_MEMORY..limit, &taken);
                let at = place.ok_or(BootPlanError::InitrdTooLarge { len, limit })?;
                Some(at..at + len)
            }
        };

        let entry = match kernel.image() {
            Image::BzImage(bz) => CpuEntry::linux64(bz.load_address + LONG_ENTRY),
            Image::Elf(elf) => match (elf.pvh_entry, elf.long_entry) {
                (Some(entry), _) => CpuEntry::pvh(entry),
                (None, entry) => CpuEntry::linux64(entry.unwrap_or_default()),
            },
        };
        let command_line = command_line.into();
        Ok(BootPlan {
            segments,
            initrd,
            command_line,
            memory_map,
            rsdp,
            entry,
        })
    }

    /// The plan in lines for people.
    pub fn describe(&self) -> Vec<String> {
        let protocol = match self.entry.protocol {
            Protocol::Pvh => "PVH (32-bit)",
            Protocol::Linux64 => "Linux 64-bit boot protocol",
        };
        let mut lines = vec![format!("entry      {:#x}, {protocol}", self.entry.rip)];
        for segment in &self.segments {
            lines.push(format!(
                "kernel     {:#x}..{:#x} ({} bytes from the file)",
                segment.address,
                segment.address.saturating_add(segment.memory_len),
                segment.file_len
            ));
        }
        if let Some(initrd) = &self.initrd {
            lines.push(format!("initrd     {:#x}..{:#x}", initrd.start, initrd.end));
        }
        if let Some(rsdp) = self.rsdp {
            lines.push(format!("rsdp       {rsdp:#x}"));
        }
        lines.push(format!("cmdline    {}", self.command_line));
        lines
    }

    /// Copies kernel and initrd and writes the boot structures.
    pub fn load<M: GuestMemoryBackend, S: Payload, I: Payload>(
        &self,
        memory: &M,
        kernel: &Kernel<S>,
        initrd: Option<&Initrd<I>>,
        content: RamContent,
    ) -> Result<(), LoadError> {
        for segment in &self.segments {
            let address = GuestAddress(segment.address);
            kernel
                .source()
                .copy_to_guest(segment.offset, segment.file_len, memory, address)
                .and_then(|()| match content {
                    RamContent::Zero => Ok(()),
                    RamContent::Unknown => {
                        let from = segment.address.saturating_add(segment.file_len);
                        zero(
                            memory,
                            from,
                            segment.memory_len.saturating_sub(segment.file_len),
                        )
                    }
                })
                .map_err(|error| LoadError::Kernel {
                    name: kernel.name().into(),
                    error,
                })?;
        }
        let planned = self
            .initrd
            .as_ref()
            .map_or(0, |range| range.end - range.start);
        let found = initrd.map_or(0, Initrd::size);
        if planned != found {
            return Err(LoadError::InitrdChanged { planned, found });
        }
        if let (Some(range), Some(initrd)) = (&self.initrd, initrd) {
            initrd
                .source
                .copy_to_guest(0, initrd.len, memory, GuestAddress(range.start))
                .map_err(|error| LoadError::Initrd {
                    name: initrd.name.clone(),
                    error,
                })?;
        }
        if content == RamContent::Unknown {
            zero(memory, 0, layout::GDT).map_err(|_| LoadError::NoMemory(0))?;
        }
        for (address, bytes) in self.structures(kernel.image()) {
            memory
                .write_slice(&bytes, GuestAddress(address))
                .map_err(|_| LoadError::NoMemory(address))?;
        }
        Ok(())
    }

    /// Every boot structure with its address.
    fn structures(&self, image: &Image) -> Vec<(u64, Vec<u8>)> {
        let mut command_line = self.command_line.clone().into_bytes();
        command_line.push(0);
        let mut structures = vec![
            (layout::GDT, self.entry.gdt_bytes().to_vec()),
            (layout::COMMAND_LINE, command_line),
        ];
        match self.entry.protocol {
            Protocol::Pvh => {
                structures.push((layout::PVH_START_INFO, self.start_info()));
                structures.push((layout::PVH_MODULES, self.module_list()));
                structures.push((layout::PVH_MEMORY_MAP, self.pvh_memory_map()));
            }
            Protocol::Linux64 => {
                structures.push((layout::BOOT_PARAMS, self.boot_params(image)));
                structures.push((layout::PAGE_TABLES, identity_page_tables()));
            }
        }
        structures
    }

    /// `struct hvm_start_info`, version 1 (Xen, public/arch-x86/hvm/start_info.h).
    fn start_info(&self) -> Vec<u8> {
        const MAGIC: u32 = 0x336e_c578;
        let mut bytes = Vec::with_capacity(56);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(1u32.to_le_bytes()); // version: has a memory map
        bytes.extend(0u32.to_le_bytes()); // flags: not an initial domain
        bytes.extend(u32::from(self.initrd.is_some()).to_le_bytes());
        let modules = if self.initrd.is_some() {
            layout::PVH_MODULES
        } else {
            0
        };
        bytes.extend(modules.to_le_bytes());
        bytes.extend(layout::COMMAND_LINE.to_le_bytes());
        bytes.extend(self.rsdp.unwrap_or(0).to_le_bytes());
        bytes.extend(layout::PVH_MEMORY_MAP.to_le_bytes());
        bytes.extend((self.memory_map.ranges().len() as u32).to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes
    }

    /// One `struct hvm_modlist_entry`: the initrd; zeros without one.
    fn module_list(&self) -> Vec<u8> {
        let range = self.initrd.clone().unwrap_or_default();
        let mut bytes = Vec::with_capacity(32);
        for field in [range.start, range.end - range.start, 0, 0] {
            bytes.extend(field.to_le_bytes());
        }
        bytes
    }

    /// `struct hvm_memmap_table_entry` per range.
    fn pvh_memory_map(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for range in self.memory_map.ranges() {
            bytes.extend(range.base.to_le_bytes());
            bytes.extend(range.len.to_le_bytes());
            bytes.extend((range.kind as u32).to_le_bytes());
            bytes.extend(0u32.to_le_bytes());
        }
        bytes
    }

    /// `struct boot_params` (Linux, Documentation/arch/x86/zero-page.rst and boot.rst).
    fn boot_params(&self, image: &Image) -> Vec<u8> {
        const LOADER_UNDEFINED: u8 = 0xff;
        const LOADED_HIGH: u8 = 1;
        const ACPI_RSDP: usize = 0x70;
        const EXT_RAMDISK_IMAGE: usize = 0xc0;
        const EXT_RAMDISK_SIZE: usize = 0xc4;
        const E820_ENTRIES: usize = 0x1e8;
        const BOOT_FLAG: usize = 0x1fe;
        const HEADER: usize = 0x202;
        const VERSION: usize = 0x206;
        const TYPE_OF_LOADER: usize = 0x210;
        const LOADFLAGS: usize = 0x211;
        const RAMDISK_IMAGE: usize = 0x218;
        const RAMDISK_SIZE: usize = 0x21c;
        const COMMAND_LINE_POINTER: usize = 0x228;
        const KERNEL_ALIGNMENT: usize = 0x230;
        const E820_TABLE: usize = 0x2d0;

        let mut page = Page::new();
        match image {
            Image::BzImage(bz) => page.put(SETUP_HEADER, &bz.setup_header),
            Image::Elf(_) => {
                // What a setup header would have said, as far as the kernel looks.
                page.put(BOOT_FLAG, &0xaa55u16.to_le_bytes());
                page.put(HEADER, b"HdrS");
                page.put(VERSION, &0x20cu16.to_le_bytes());
                page.put(KERNEL_ALIGNMENT, &0x0100_0000u32.to_le_bytes());
            }
        }
        let flags = page.bytes.get(LOADFLAGS).copied().unwrap_or(0) | LOADED_HIGH;
        page.put(TYPE_OF_LOADER, &[LOADER_UNDEFINED, flags]);
        page.put(
            COMMAND_LINE_POINTER,
            &(layout::COMMAND_LINE as u32).to_le_bytes(),
        );
        page.put(ACPI_RSDP, &self.rsdp.unwrap_or(0).to_le_bytes());
        if let Some(initrd) = &self.initrd {
            let (start, len) = (initrd.start, initrd.end - initrd.start);
            page.put(RAMDISK_IMAGE, &(start as u32).to_le_bytes());
            page.put(RAMDISK_SIZE, &(len as u32).to_le_bytes());
            page.put(EXT_RAMDISK_IMAGE, &((start >> 32) as u32).to_le_bytes());
            page.put(EXT_RAMDISK_SIZE, &((len >> 32) as u32).to_le_bytes());
        }
        page.put(E820_ENTRIES, &[self.memory_map.ranges().len() as u8]);
        for (index, range) in self.memory_map.ranges().iter().enumerate() {
            let at = E820_TABLE + index * 20;
            page.put(at, &range.base.to_le_bytes());
            page.put(at + 8, &range.len.to_le_bytes());
            page.put(at + 16, &(range.kind as u32).to_le_bytes());
        }
        page.bytes
    }
}

/// One page under construction; writes past its end are dropped.
struct Page {
    bytes: Vec<u8>,
}

impl Page {
    fn new() -> Self {
        Page {
            bytes: vec![0; 4096],
        }
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

fn zero<M: GuestMemoryBackend>(memory: &M, from: u64, len: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut done = 0;
    while done < len {
        let step = (len - done).min(ZEROS.len() as u64);
        let at = from.checked_add(done).ok_or(io::ErrorKind::InvalidInput)?;
        let zeros = ZEROS.get(..step as usize).unwrap_or(&ZEROS);
        memory
            .write_slice(zeros, GuestAddress(at))
            .map_err(io::Error::other)?;
        done += step;
    }
    Ok(())
}
