//! Symbols as an ELF file for gdb: what a guest's own table knows, without a vmlinux.
//!
//! The layout is System V's ABI, chapter 4 (object files), for x86-64: a header, one section of code
//! without content, symbols, and names.

use crate::memory::KERNEL_IMAGE;
use crate::table::{SymbolKind, Symbols};

const HEADER: u64 = 64;
const SECTION: u64 = 64;

const SHT_PROGBITS_ALLOCATED_NOWHERE: u32 = 8; // SHT_NOBITS
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
/// SHF_ALLOC and SHF_EXECINSTR.
const CODE_FLAGS: u64 = 2 | 4;

#[derive(Default)]
struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    address: u64,
    offset: u64,
    size: u64,
    link: u32,
    first_global: u32,
    align: u64,
    entry: u64,
}

impl Section {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.name.to_le_bytes());
        out.extend(self.kind.to_le_bytes());
        for word in [self.flags, self.address, self.offset, self.size] {
            out.extend(word.to_le_bytes());
        }
        out.extend(self.link.to_le_bytes());
        out.extend(self.first_global.to_le_bytes());
        out.extend(self.align.to_le_bytes());
        out.extend(self.entry.to_le_bytes());
    }
}

impl Symbols {
    /// An ELF file with all code and data symbols where they are in the guest (KASLR included):
    /// `gdb FILE`, then `target remote …`.
    pub fn to_elf(&self) -> Vec<u8> {
        let mut names = vec![0_u8];
        let mut symbols = vec![0_u8; 24];
        let (mut low, mut high) = (u64::MAX, 0);
        for symbol in self.iter() {
            let address = self.in_guest(symbol.address);
            let kind: u8 = match symbol.kind {
                SymbolKind::Code => 2, // STT_FUNC
                SymbolKind::Data => 1, // STT_OBJECT
                SymbolKind::Other => continue,
            };
            // A name that does not fit a table of 4 GiB is nobody's.
            let Ok(name) = u32::try_from(names.len()) else {
                break;
            };
            if symbol.kind == SymbolKind::Code && KERNEL_IMAGE.contains(&address) {
                low = low.min(address);
                high = high.max(address);
            }
            names.extend(symbol.name.bytes().filter(|byte| *byte != 0));
            names.push(0);
            symbols.extend(name.to_le_bytes());
            symbols.push(1 << 4 | kind); // STB_GLOBAL
            symbols.push(0);
            symbols.extend(1_u16.to_le_bytes());
            symbols.extend(address.to_le_bytes());
            symbols.extend(symbol.size.unwrap_or(0).to_le_bytes());
        }
        if low > high {
            (low, high) = (0, 0);
        }
        let titles = b"\0.text\0.symtab\0.strtab\0.shstrtab\0";
        let at_symbols = HEADER;
        let at_names = at_symbols + symbols.len() as u64;
        let at_titles = at_names + names.len() as u64;
        let at_sections = (at_titles + titles.len() as u64).next_multiple_of(8);

        let mut out = Vec::new();
        out.extend(b"\x7fELF\x02\x01\x01");
        out.resize(16, 0);
        for half in [2_u16, 62] {
            out.extend(half.to_le_bytes()); // ET_EXEC, EM_X86_64
        }
        out.extend(1_u32.to_le_bytes());
        for word in [0, 0, at_sections] {
            out.extend(word.to_le_bytes()); // entry, program headers, sections
        }
        out.extend(0_u32.to_le_bytes());
        for half in [HEADER as u16, 0, 0, SECTION as u16, 5, 4] {
            out.extend(half.to_le_bytes());
        }
        out.extend(&symbols);
        out.extend(&names);
        out.extend(titles);
        out.resize(at_sections as usize, 0);
        let sections = [
            Section::default(),
            Section {
                name: 1,
                kind: SHT_PROGBITS_ALLOCATED_NOWHERE,
                flags: CODE_FLAGS,
                address: low,
                offset: HEADER,
                size: high.wrapping_sub(low).saturating_add(4096),
                align: 16,
                ..Section::default()
            },
            Section {
                name: 7,
                kind: SHT_SYMTAB,
                offset: at_symbols,
                size: symbols.len() as u64,
                link: 3,
                first_global: 1,
                align: 8,
                entry: 24,
                ..Section::default()
            },
            Section {
                name: 15,
                kind: SHT_STRTAB,
                offset: at_names,
                size: names.len() as u64,
                align: 1,
                ..Section::default()
            },
            Section {
                name: 23,
                kind: SHT_STRTAB,
                offset: at_titles,
                size: titles.len() as u64,
                align: 1,
                ..Section::default()
            },
        ];
        for section in sections {
            section.put(&mut out);
        }
        out
    }
}
