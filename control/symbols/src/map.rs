//! System.map: one symbol a line, `address letter name`, as nm(1) prints them.

use crate::table::{Symbol, SymbolKind, Symbols};

/// What a letter of nm's means.
pub(crate) fn kind(letter: char) -> SymbolKind {
    match letter {
        't' | 'T' | 'w' | 'W' => SymbolKind::Code,
        'b' | 'B' | 'd' | 'D' | 'r' | 'R' | 'v' | 'V' => SymbolKind::Data,
        _ => SymbolKind::Other,
    }
}

fn symbol(line: &str) -> Option<Symbol> {
    let mut words = line.split_ascii_whitespace();
    let (address, letter, name) = (words.next()?, words.next()?, words.next()?);
    let mut letters = letter.chars();
    let letter = letters.next().filter(|_| letters.next().is_none())?;
    Some(Symbol {
        address: u64::from_str_radix(address, 16).ok()?,
        name: name.to_owned(),
        kind: kind(letter),
        size: None,
    })
}

pub(crate) fn read(bytes: &[u8]) -> Result<Symbols, String> {
    let mut symbols = Symbols::new();
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line = std::str::from_utf8(line).ok();
        let Some(symbol) = line.and_then(symbol) else {
            return Err(format!(
                "neither ELF nor a list of symbols: line {} is not `address letter name`",
                number + 1
            ));
        };
        symbols.push(symbol);
    }
    if symbols.is_empty() {
        return Err("there is no symbol in it".into());
    }
    symbols.sort();
    Ok(symbols)
}
