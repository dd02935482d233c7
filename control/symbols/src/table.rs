//! Symbols by address.

use crate::elf::{self, Lines};
use crate::kallsyms::{self, KallsymsError};
use crate::map;
use crate::memory::{Cpu, GuestMemory, KERNEL_IMAGE};
use crate::orc::Orc;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// What a symbol names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SymbolKind {
    /// Code.
    Code,
    /// Data.
    Data,
    /// Something else, or nothing that is known.
    Other,
}

/// A symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its address, as its source has it (before KASLR).
    pub address: u64,
    /// Its name.
    pub name: String,
    /// What it names.
    pub kind: SymbolKind,
    /// Bytes of it, where that is known.
    pub size: Option<u64>,
}

/// A range of addresses with a name: the kernel, a module, a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its first address.
    pub base: u64,
    /// Its bytes.
    pub size: u64,
}

/// What an address means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The nearest symbol at or before it.
    pub symbol: String,
    /// How far behind the symbol it is.
    pub offset: u64,
    /// Bytes of the symbol, where that is known.
    pub size: Option<u64>,
    /// The module it lies in, where that is known.
    pub module: Option<String>,
    /// File and line, where debug information has them.
    pub line: Option<String>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.symbol, self.offset)?;
        if let Some(size) = self.size {
            write!(f, "/{size:#x}")?;
        }
        if let Some(module) = &self.module {
            write!(f, " [{module}]")?;
        }
        if let Some(line) = &self.line {
            write!(f, " at {line}")?;
        }
        Ok(())
    }
}

/// Symbols cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is no file of symbols.
    #[error("{path}: {why}")]
    Form {
        /// Which.
        path: String,
        /// Why not.
        why: String,
    },
    /// The guest's own table of symbols.
    #[error(transparent)]
    Kallsyms(#[from] KallsymsError),
}

/// Longest file of symbols: a vmlinux with debug information has some hundred MiB.
const MOST_BYTES: u64 = 4 << 30;
/// Most symbols: a distribution's kernel has 150 000.
pub(crate) const MOST_SYMBOLS: usize = 4 << 20;
/// How far behind a symbol of unknown size an address may be.
const MOST_OFFSET: u64 = 1 << 20;

/// All symbols of a guest.
#[derive(Debug, Default)]
pub struct Symbols {
    symbols: Vec<Symbol>,
    /// `symbols` are in the order of their addresses.
    sorted: bool,
    modules: BTreeMap<u64, Module>,
    /// What KASLR adds to the addresses of the kernel's image.
    pub(crate) slide: u64,
    lines: Option<Lines>,
    pub(crate) orc: Option<Orc>,
}

impl Symbols {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads an ELF file (a vmlinux) or a System.map, whichever it is.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let shown = || path.display().to_string();
        let io = |source| OpenError::Io {
            path: shown(),
            source,
        };
        let mut bytes = Vec::new();
        File::open(path)
            .map_err(io)?
            .take(MOST_BYTES)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        Self::parse(&bytes).map_err(|why| OpenError::Form { path: shown(), why })
    }

    /// Like [`Symbols::open`], of a file's content.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.starts_with(b"\x7fELF") {
            elf::read(bytes)
        } else {
            map::read(bytes)
        }
    }

    /// Finds the table of symbols that a running Linux keeps of itself (`CONFIG_KALLSYMS`), through
    /// a vCPU of `cpus` that maps the kernel. KASLR is part of what it says.
    pub fn from_guest(memory: &mut impl GuestMemory, cpus: &[Cpu]) -> Result<Self, OpenError> {
        Ok(kallsyms::find(memory, cpus)?)
    }

    /// Adds a symbol.
    pub fn register_symbol(
        &mut self,
        address: u64,
        name: impl Into<String>,
        kind: SymbolKind,
        size: Option<u64>,
    ) {
        self.push(Symbol {
            address,
            name: name.into(),
            kind,
            size,
        });
        self.sort();
    }

    /// Adds a module: `size` bytes from `base` on.
    pub fn register_module(&mut self, name: impl Into<String>, base: u64, size: u64) {
        let name = name.into();
        self.modules.insert(base, Module { name, base, size });
    }

    /// The modules, by address.
    pub fn modules(&self) -> impl Iterator<Item = &Module> {
        self.modules.values()
    }

    pub(crate) fn push(&mut self, symbol: Symbol) {
        if self.symbols.len() < MOST_SYMBOLS {
            self.symbols.push(symbol);
            self.sorted = false;
        }
    }

    pub(crate) fn sort(&mut self) {
        if !self.sorted {
            // Of several names of one address the last is found: code's, and one that does not look
            // like a mark of the linker's.
            self.symbols.sort_by(|a, b| {
                let key = |s: &Symbol| {
                    (
                        s.address,
                        std::cmp::Reverse(s.kind),
                        !s.name.starts_with('_'),
                    )
                };
                key(a).cmp(&key(b))
            });
            self.sorted = true;
        }
    }

    pub(crate) fn set_lines(&mut self, lines: Lines) {
        self.lines = Some(lines);
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// All symbols by address, as their source has them.
    pub fn iter(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter()
    }

    /// What KASLR adds to the addresses in this table.
    pub fn slide(&self) -> u64 {
        self.slide
    }

    /// The address in the guest of the symbol called `name`.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        let found = self.symbols.iter().find(|s| s.name == name)?;
        Some(self.in_guest(found.address))
    }

    /// Where `address` of this table is in the guest. Only the image moves; addresses within the
    /// per-CPU area are offsets.
    pub(crate) fn in_guest(&self, address: u64) -> u64 {
        if KERNEL_IMAGE.contains(&address) {
            address.wrapping_add(self.slide)
        } else {
            address
        }
    }

    /// What was at `address` of the guest before KASLR moved it; `None` where nothing was.
    fn in_table(&self, address: u64) -> Option<u64> {
        if !KERNEL_IMAGE.contains(&address) {
            return Some(address);
        }
        let still = address.wrapping_sub(self.slide);
        KERNEL_IMAGE.contains(&still).then_some(still)
    }

    /// The nearest symbol at or before `address`, and how far away that is. Behind a symbol's known
    /// end only if no other follows before.
    pub fn lookup(&self, address: u64) -> Option<Location> {
        let still = self.in_table(address)?;
        let after = self.symbols.partition_point(|s| s.address <= still);
        let symbol = self.symbols.get(..after)?.last()?;
        let offset = still - symbol.address;
        let size = symbol.size.or_else(|| {
            let next = self.symbols.get(after)?.address;
            (next - symbol.address <= MOST_OFFSET).then(|| next - symbol.address)
        });
        if offset >= MOST_OFFSET && size.is_none_or(|size| offset >= size) {
            return None;
        }
        let module = self.module_at(address);
        let line = self.lines.as_ref().and_then(|lines| lines.at(still));
        Some(Location {
            symbol: symbol.name.clone(),
            offset,
            size,
            module,
            line,
        })
    }

    fn module_at(&self, address: u64) -> Option<String> {
        let (_, module) = self.modules.range(..=address).next_back()?;
        (address - module.base < module.size).then(|| module.name.clone())
    }

    /// Whether `address` is in code that a return address can point to: behind the first byte of a
    /// function.
    pub(crate) fn is_return_address(&self, address: u64) -> bool {
        let Some(still) = self.in_table(address) else {
            return false;
        };
        let after = self.symbols.partition_point(|s| s.address <= still);
        let Some(symbol) = self.symbols.get(..after).and_then(<[Symbol]>::last) else {
            return false;
        };
        let offset = still - symbol.address;
        symbol.kind == SymbolKind::Code
            && offset != 0
            && offset < MOST_OFFSET
            // A call at the very end of a function that does not return leaves its end.
            && symbol.size.is_none_or(|size| size == 0 || offset <= size)
    }
}
