//! ELF kernels: which segments go where, and how they may be entered.
//!
//! Sources: System V ABI (generic, edition 4.1, ch. 4 and 5) with its x86-64 supplement;
//! the PVH entry note `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's public/elfnote.h.

use std::ops::Range;

use crate::kernel::{KernelFault, Segment};
use crate::layout::FOUR_GIB;
use crate::source::{ReadAt, le};

/// A kernel as an ELF file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElfKernel {
    /// Loadable segments by ascending physical address, without overlap.
    pub segments: Vec<Segment>,
    /// Physical address of the 32-bit PVH entry, when the file carries the note.
    pub pvh_entry: Option<u32>,
    /// Physical address of the 64-bit entry; `None` in a 32-bit file.
    pub long_entry: Option<u64>,
}

const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u64 = 1;
const PT_INTERP: u64 = 3;
const PT_NOTE: u64 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;

/// Kernels have about five program headers; this bounds what a crafted file can make us do.
const MAX_PROGRAM_HEADERS: u64 = 128;
/// The notes of a kernel are some hundred bytes.
const MAX_NOTES: u64 = 1 << 20;
/// Physical addresses have at most 52 bits (Intel SDM vol. 3 §4.1.4).
const MAX_PHYSICAL: u64 = 1 << 52;

/// Where one field of a program header lies in the two classes, and its width.
struct Class {
    wide: bool,
    header_size: u64,
}

impl Class {
    /// Address-sized field at `narrow` (32-bit class) or `wide` (64-bit class).
    fn address(&self, bytes: &[u8], narrow: usize, wide: usize) -> Option<u64> {
        if self.wide {
            le::<8>(bytes, wide)
        } else {
            le::<4>(bytes, narrow)
        }
    }
}

/// Name of an ELF machine for a message.
fn machine_name(machine: u16) -> String {
    let name = match machine {
        2 | 18 | 43 => "SPARC",
        EM_386 => "i386",
        8 => "MIPS",
        20 => "PowerPC",
        21 => "PowerPC 64",
        22 => "s390x",
        40 => "32-bit ARM",
        50 => "Itanium",
        EM_X86_64 => "x86-64",
        183 => "aarch64",
        243 => "RISC-V",
        258 => "LoongArch",
        other => return format!("machine type {other}"),
    };
    name.into()
}

/// Reads the ELF file `source` of `size` bytes, whose first bytes are `head`.
pub(crate) fn parse(
    source: &(impl ReadAt + ?Sized),
    size: u64,
    head: &[u8],
) -> Result<ElfKernel, KernelFault> {
    let truncated = |needs| KernelFault::Truncated { needs, has: size };
    let field = |offset, len: u64| {
        le::<2>(head, offset)
            .map(|v| v as u16)
            .ok_or(truncated(offset as u64 + len))
    };
    let class = match head.get(4) {
        Some(1) => Class {
            wide: false,
            header_size: 52,
        },
        Some(2) => Class {
            wide: true,
            header_size: 64,
        },
        Some(_) => {
            return Err(KernelFault::Malformed(
                "its ELF class is neither 32-bit nor 64-bit",
            ));
        }
        None => return Err(truncated(64)),
    };
    let machine = match head.get(5) {
        Some(1) => field(18, 2)?,
        _ => match field(18, 2)?.swap_bytes() {
            EM_386 | EM_X86_64 => return Err(KernelFault::Malformed("its header is big-endian")),
            other => return Err(KernelFault::ForeignMachine(machine_name(other))),
        },
    };
    if machine != EM_X86_64 && machine != EM_386 {
        return Err(KernelFault::ForeignMachine(machine_name(machine)));
    }
    match field(16, 2)? {
        ET_EXEC | ET_DYN => {}
        1 => {
            return Err(KernelFault::NotAKernel(
                "an object file that has not been linked".into(),
            ));
        }
        4 => return Err(KernelFault::NotAKernel("a core dump".into())),
        _ => {
            return Err(KernelFault::Malformed(
                "its ELF type is neither executable nor shared",
            ));
        }
    }
    let header = || -> Option<(u64, u64, u16, u64)> {
        let entry = class.address(head, 24, 24)?;
        let table = class.address(head, 28, 32)?;
        let (size_at, count_at) = if class.wide { (54, 56) } else { (42, 44) };
        Some((
            entry,
            table,
            le::<2>(head, size_at)? as u16,
            le::<2>(head, count_at)?,
        ))
    };
    let (entry, table, entry_size, count) = header().ok_or(truncated(class.header_size))?;
    let expected_size: u16 = if class.wide { 56 } else { 32 };
    if count == 0 {
        return Err(KernelFault::Malformed(
            "it has no program headers, so nothing to load",
        ));
    }
    if entry_size != expected_size {
        return Err(KernelFault::Malformed(
            "its program headers have the wrong size",
        ));
    }
    if count > MAX_PROGRAM_HEADERS {
        return Err(KernelFault::Malformed(
            "it has more than 128 program headers",
        ));
    }
    let table_len = count * u64::from(entry_size);
    let table_end = table.checked_add(table_len).ok_or(KernelFault::Malformed(
        "its program headers lie beyond 2^64",
    ))?;
    if table_end > size {
        return Err(truncated(table_end));
    }
    let mut table_bytes = vec![0; table_len as usize];
    match head.get(table as usize..table_end as usize) {
        Some(bytes) => table_bytes.copy_from_slice(bytes),
        None => source.read_exact_at(table, &mut table_bytes)?,
    }

    let mut segments = Vec::new();
    let mut notes = Vec::new();
    for header in table_bytes.chunks_exact(usize::from(entry_size)) {
        let Some(header) = ProgramHeader::read(&class, header) else {
            return Err(KernelFault::Malformed("a program header is cut short"));
        };
        match header.kind {
            PT_LOAD if header.memory_len > 0 => segments.push(header),
            PT_NOTE => notes.push(header),
            PT_INTERP => {
                return Err(KernelFault::NotAKernel(
                    "an ordinary program that wants a dynamic loader".into(),
                ));
            }
            _ => {}
        }
    }
    let pvh_entry = notes.iter().try_fold(None, |found, note| match found {
        Some(_) => Ok(found),
        None => pvh_note(source, size, note),
    })?;
    segments.sort_by_key(|header| header.physical);
    check_segments(&segments, size)?;

    let long_entry = if class.wide && machine == EM_X86_64 {
        physical_entry(&segments, entry)
    } else {
        None
    };
    if let Some(entry) = pvh_entry
        && !segments
            .iter()
            .any(|s| s.memory().contains(&u64::from(entry)))
    {
        return Err(KernelFault::Malformed(
            "its PVH entry point lies outside its segments",
        ));
    }
    if pvh_entry.is_none() && !class.wide {
        return Err(KernelFault::ThirtyTwoBit);
    }
    if pvh_entry.is_none() && long_entry.is_none() {
        return Err(KernelFault::Malformed(
            "its entry point lies outside its segments",
        ));
    }
    let segments = segments
        .iter()
        .map(|s| Segment {
            offset: s.offset,
            address: s.physical,
            file_len: s.file_len,
            memory_len: s.memory_len,
        })
        .collect();
    Ok(ElfKernel {
        segments,
        pvh_entry,
        long_entry,
    })
}

struct ProgramHeader {
    kind: u64,
    offset: u64,
    virtual_: u64,
    physical: u64,
    file_len: u64,
    memory_len: u64,
    align: u64,
}

impl ProgramHeader {
    fn read(class: &Class, bytes: &[u8]) -> Option<Self> {
        Some(ProgramHeader {
            kind: le::<4>(bytes, 0)?,
            offset: class.address(bytes, 4, 8)?,
            virtual_: class.address(bytes, 8, 16)?,
            physical: class.address(bytes, 12, 24)?,
            file_len: class.address(bytes, 16, 32)?,
            memory_len: class.address(bytes, 20, 40)?,
            align: class.address(bytes, 28, 48)?,
        })
    }

    /// Physical range; meaningful once `check_segments` has passed.
    fn memory(&self) -> Range<u64> {
        self.physical..self.physical.saturating_add(self.memory_len)
    }
}

fn check_segments(segments: &[ProgramHeader], size: u64) -> Result<(), KernelFault> {
    if segments.is_empty() {
        return Err(KernelFault::Malformed("it has no loadable segment"));
    }
    let mut free_from = 0;
    for segment in segments {
        if segment.file_len > segment.memory_len {
            return Err(KernelFault::Malformed(
                "a segment is larger in the file than in memory",
            ));
        }
        let file_end = segment.offset.checked_add(segment.file_len);
        match file_end {
            Some(end) if end <= size => {}
            Some(end) => {
                return Err(KernelFault::Truncated {
                    needs: end,
                    has: size,
                });
            }
            None => {
                return Err(KernelFault::Malformed(
                    "a segment lies beyond 2^64 in the file",
                ));
            }
        }
        let end = segment
            .physical
            .checked_add(segment.memory_len)
            .filter(|end| *end <= MAX_PHYSICAL);
        let Some(end) = end else {
            return Err(KernelFault::Malformed(
                "a segment lies beyond the physical address space",
            ));
        };
        // Overlapping segments would let a small file describe endless copying.
        if segment.physical < free_from {
            return Err(KernelFault::Malformed("its segments overlap in memory"));
        }
        free_from = end;
    }
    Ok(())
}

/// The physical address of ELF entry `entry`: Linux gives a physical one, other kernels a virtual one.
fn physical_entry(segments: &[ProgramHeader], entry: u64) -> Option<u64> {
    if segments.iter().any(|s| s.memory().contains(&entry)) {
        return Some(entry);
    }
    segments.iter().find_map(|s| {
        let inside = entry
            .checked_sub(s.virtual_)
            .filter(|inside| *inside < s.memory_len)?;
        s.physical.checked_add(inside)
    })
}

/// Looks for the PVH entry in one note segment.
fn pvh_note(
    source: &(impl ReadAt + ?Sized),
    size: u64,
    header: &ProgramHeader,
) -> Result<Option<u32>, KernelFault> {
    let end = header.offset.checked_add(header.file_len);
    if end.is_none_or(|end| end > size) {
        return Err(KernelFault::Truncated {
            needs: end.unwrap_or(u64::MAX),
            has: size,
        });
    }
    if header.file_len > MAX_NOTES {
        return Err(KernelFault::Malformed("its notes are larger than 1 MiB"));
    }
    let mut notes = vec![0; header.file_len as usize];
    source.read_exact_at(header.offset, &mut notes)?;
    // Notes are padded to 4 bytes whatever the class says; linkers that pad to 8 say so in p_align.
    // Some say 8 and pad to 4, so fall back.
    let found = match header.align {
        8 => find_note(&notes, 8).or_else(|| find_note(&notes, 4)),
        _ => find_note(&notes, 4),
    };
    match found {
        None => Ok(None),
        Some(entry) if entry < FOUR_GIB => Ok(Some(entry as u32)),
        Some(_) => Err(KernelFault::Malformed(
            "its PVH entry point lies above 4 GiB",
        )),
    }
}

fn find_note(notes: &[u8], align: usize) -> Option<u64> {
    let mut rest = notes;
    // Every round consumes at least the twelve bytes of a note header.
    while let (Some(name_len), Some(desc_len), Some(kind)) =
        (le::<4>(rest, 0), le::<4>(rest, 4), le::<4>(rest, 8))
    {
        let padded = |len: u64| usize::try_from(len).ok()?.checked_next_multiple_of(align);
        let name = rest.get(12..)?.get(..usize::try_from(name_len).ok()?)?;
        let desc_at = 12usize
            .checked_add(usize::try_from(name_len).ok()?)?
            .checked_next_multiple_of(align)?;
        let desc = rest
            .get(desc_at..)?
            .get(..usize::try_from(desc_len).ok()?)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name.strip_suffix(b"\0").unwrap_or(name) == b"Xen" {
            return match desc.len() {
                4 => le::<4>(desc, 0),
                8 => le::<8>(desc, 0),
                _ => None,
            };
        }
        rest = rest.get(desc_at.checked_add(padded(desc_len)?)?..)?;
    }
    None
}
