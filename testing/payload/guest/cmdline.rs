//! The command line: words `key`, `key=value`, values with commas.

use core::str;

static mut BYTES: [u8; 4096] = [0; 4096];
static mut LEN: usize = 0;

/// Copies the command line: memory below 1 MiB is used later.
///
/// # Safety
/// `from` is null or a zero-terminated string, and no other CPU runs.
pub unsafe fn init(from: *const u8) {
    if from.is_null() {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        while LEN < 4095 && *from.add(LEN) != 0 {
            BYTES[LEN] = *from.add(LEN);
            LEN += 1;
        }
    }
}

/// The whole command line.
pub fn text() -> &'static str {
    // SAFETY: written once, in `init`.
    str::from_utf8(unsafe { &(&*(&raw const BYTES))[..LEN] }).unwrap_or("")
}

/// The values of every `key=value` with this key, in order.
pub fn values(key: &str) -> impl Iterator<Item = &'static str> {
    text().split_ascii_whitespace().filter_map(move |word| {
        let value = word.strip_prefix(key)?;
        value.strip_prefix('=')
    })
}

/// The last value of `key`.
pub fn value(key: &str) -> Option<&'static str> {
    values(key).last()
}

/// A number: decimal, or hexadecimal after `0x`, with an optional K, M or G.
pub fn number(text: &str) -> Option<u64> {
    let (text, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.ok().map(|n| n << shift)
}

/// The numeric value of `key`, or `otherwise`.
pub fn number_or(key: &str, otherwise: u64) -> u64 {
    value(key).and_then(number).unwrap_or(otherwise)
}

/// Whether accesses are to be left out that other VMMs are known to fall over (`gentle=1`): the tests
/// themselves are checked against those.
pub fn is_gentle() -> bool {
    value("gentle") == Some("1")
}
