//! Symbols and lines of an ELF file.

use crate::kallsyms;
use crate::orc::Orc;
use crate::table::{Symbol, SymbolKind, Symbols};
use addr2line::Context;
use gimli::{EndianArcSlice, LittleEndian};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use std::fmt;
use std::sync::Arc;

type Bytes = EndianArcSlice<LittleEndian>;

/// Lines of source by address.
pub struct Lines(Context<Bytes>);

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lines")
    }
}

impl Lines {
    /// `file:line` of `address`.
    pub(crate) fn at(&self, address: u64) -> Option<String> {
        // Broken debug information has no lines; that is all.
        let location = self.0.find_location(address).ok()??;
        match (location.file, location.line) {
            (Some(file), Some(line)) => Some(format!("{file}:{line}")),
            (Some(file), None) => Some(file.to_owned()),
            _ => None,
        }
    }

    fn of(file: &object::File<'_>) -> Option<Self> {
        file.section_by_name(".debug_line")?;
        let load = |id: gimli::SectionId| -> Result<Bytes, gimli::Error> {
            let data = file
                .section_by_name(id.name())
                .and_then(|section| section.data().ok())
                .unwrap_or(&[]);
            Ok(EndianArcSlice::new(Arc::from(data), LittleEndian))
        };
        let dwarf = gimli::Dwarf::load(load).ok()?;
        Context::from_dwarf(dwarf).ok().map(Self)
    }
}

pub(crate) fn read(bytes: &[u8]) -> Result<Symbols, String> {
    let file = object::File::parse(bytes).map_err(|e| format!("a broken ELF file: {e}"))?;
    let mut symbols = Symbols::new();
    for from in [
        file.symbols().collect::<Vec<_>>(),
        file.dynamic_symbols().collect(),
    ] {
        for symbol in from {
            let kind = match symbol.kind() {
                object::SymbolKind::Text => SymbolKind::Code,
                object::SymbolKind::Data => SymbolKind::Data,
                // Labels of assembly carry no type.
                object::SymbolKind::Unknown | object::SymbolKind::Label => SymbolKind::Other,
                _ => continue,
            };
            let (Ok(name), false) = (symbol.name(), symbol.is_undefined()) else {
                continue;
            };
            if name.is_empty() {
                continue;
            }
            let kind = match (kind, symbol.section_index()) {
                (SymbolKind::Other, Some(index)) => file
                    .section_by_index(index)
                    .ok()
                    .filter(|section| section.kind() == object::SectionKind::Text)
                    .map_or(SymbolKind::Other, |_| SymbolKind::Code),
                (kind, _) => kind,
            };
            symbols.push(Symbol {
                address: symbol.address(),
                name: name.to_owned(),
                kind,
                size: Some(symbol.size()).filter(|size| *size != 0),
            });
        }
    }
    if symbols.is_empty() {
        // A stripped kernel still has the table that it keeps for itself.
        return kallsyms::in_file(&file).ok_or_else(|| {
            "it has no symbols: a stripped file or a bootable image; a vmlinux is needed".into()
        });
    }
    symbols.sort();
    let section = |name: &str| {
        let section = file.section_by_name(name)?;
        Some((section.address(), section.data().ok()?.to_vec()))
    };
    symbols.orc = section(".orc_unwind_ip")
        .zip(section(".orc_unwind"))
        .and_then(|((base, places), (_, entries))| Orc::new(base, places, entries));
    if let Some(lines) = Lines::of(&file) {
        symbols.set_lines(lines);
    }
    Ok(symbols)
}
