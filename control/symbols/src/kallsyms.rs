//! The table of symbols in a running Linux kernel's memory (Linux, scripts/kallsyms.c,
//! kernel/kallsyms.c; 64-bit with `CONFIG_KALLSYMS_BASE_RELATIVE`).
//!
//! ```text
//!   up to 6.3:  offsets, relative_base, num_syms, names, markers, (seqs,) token_table, token_index
//!   from 6.4:   num_syms, names, markers, token_table, token_index, offsets, relative_base, seqs
//! ```
//!
//! A name is a length and that many tokens, of which the first letter is the symbol's kind. The tokens
//! of digits are the digits themselves, one after another: that is what is searched for. Everything
//! else follows from it, and every step is checked against the next, because the guest may have
//! written anything there.

use crate::map;
use crate::memory::{Cpu, GuestMemory, KERNEL_IMAGE, u16_at, u32_at, u64_at};
use crate::orc::Orc;
use crate::table::{MOST_SYMBOLS, Symbol, Symbols};
use object::{Object as _, ObjectSegment};

/// The guest's own symbols could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KallsymsError {
    /// No vCPU has a kernel's entry of system calls.
    #[error("no vCPU runs a 64-bit Linux kernel yet")]
    NoKernel,
    /// The image holds no table that holds together.
    #[error(
        "the guest's memory holds no table of symbols (a kernel without CONFIG_KALLSYMS, or of an \
         unknown layout)"
    )]
    NoTable,
}

/// The digits as tokens.
const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";
const FIRST_DIGIT: usize = b'0' as usize;
const TOKENS: usize = 256;
/// Longest token there may be.
const MOST_TOKEN: usize = 128;
/// Symbols between two markers.
const STRIDE: usize = 256;
/// Longest name there may be; the kernel's own limit is 512.
const MOST_NAME: usize = 2048;
/// A smaller table is none: a kernel has tens of thousands.
const FEWEST_MARKERS: usize = 2;

/// A piece of guest memory that was read, and where it was.
pub(crate) struct Image {
    base: u64,
    bytes: Vec<u8>,
}

/// Pages are read so many at once, and fewer where some are missing.
const PIECES: [usize; 3] = [2 << 20, 64 << 10, 4 << 10];
/// Most bytes of an image, per direction from the kernel's entry.
const MOST_IMAGE: u64 = 96 << 20;
/// The image ends where so many bytes in a row are not mapped.
const GAP: u64 = 8 << 20;

/// Reads the kernel's image around `inside`. What is not mapped reads as zeros.
fn image(memory: &mut impl GuestMemory, cpu: &Cpu, inside: u64) -> Image {
    let piece = PIECES[0] as u64;
    let middle = inside & !(piece - 1);
    let mut base = middle;
    // Downwards to the first piece that is not there at all.
    let lowest = KERNEL_IMAGE.start.max(middle.saturating_sub(MOST_IMAGE));
    while base > lowest {
        let mut probe = [0; 8];
        // The image begins with code, which no kernel unmaps.
        if !memory.read(cpu.index, base - piece, &mut probe) {
            break;
        }
        base -= piece;
    }
    let mut bytes = Vec::new();
    let mut missing = 0;
    let mut at = base;
    while at < KERNEL_IMAGE.end && at < middle + MOST_IMAGE && missing < GAP {
        let mut part = vec![0; PIECES[0]];
        let found = read_pieces(memory, cpu.index, at, &mut part, &PIECES);
        missing = if found { 0 } else { missing + piece };
        bytes.append(&mut part);
        at += piece;
    }
    Image { base, bytes }
}

/// Reads what there is, in ever smaller pieces; whether there was anything.
fn read_pieces(
    memory: &mut impl GuestMemory,
    vcpu: u32,
    address: u64,
    bytes: &mut [u8],
    pieces: &[usize],
) -> bool {
    let Some((&piece, smaller)) = pieces.split_first() else {
        return false;
    };
    let mut any = false;
    for (part, at) in bytes.chunks_mut(piece).zip((address..).step_by(piece)) {
        if memory.read(vcpu, at, part) {
            any = true;
            continue;
        }
        part.fill(0);
        // Nothing at the beginning, the middle and the end: most likely a hole.
        let mut probe = [0; 8];
        let last = (part.len() - 8) as u64;
        let somewhere = [0, (last / 2) & !7, last].iter().any(|o| {
            address
                .checked_add(at - address + o)
                .is_some_and(|at| memory.read(vcpu, at, &mut probe))
        });
        if somewhere {
            any |= read_pieces(memory, vcpu, at, part, smaller);
        }
    }
    any
}

/// Finds and reads the table of the kernel that `cpus` run.
pub(crate) fn find(memory: &mut impl GuestMemory, cpus: &[Cpu]) -> Result<Symbols, KallsymsError> {
    let mut error = KallsymsError::NoKernel;
    // A vCPU in a program may have page tables without the kernel (PTI): those come last.
    let mut order: Vec<&Cpu> = cpus.iter().collect();
    order.sort_by_key(|cpu| cpu.cpl);
    for cpu in order {
        let inside = match (KERNEL_IMAGE.contains(&cpu.lstar), cpu.rip) {
            (true, _) => cpu.lstar,
            (false, rip) if KERNEL_IMAGE.contains(&rip) => rip,
            _ => continue,
        };
        let image = image(memory, cpu, inside);
        match parse(&image) {
            Some(mut symbols) => {
                symbols.orc = orc(&image, &symbols);
                return Ok(symbols);
            }
            None => error = KallsymsError::NoTable,
        }
    }
    Err(error)
}

/// The table in the segments of a vmlinux.
pub(crate) fn in_file(file: &object::File<'_>) -> Option<Symbols> {
    let mut segments: Vec<_> = file
        .segments()
        .filter(|segment| KERNEL_IMAGE.contains(&segment.address()))
        .collect();
    segments.sort_by_key(ObjectSegment::address);
    let base = segments.first()?.address();
    let mut bytes = Vec::new();
    for segment in segments {
        let at = usize::try_from(segment.address().checked_sub(base)?).ok()?;
        let data = segment.data().ok()?;
        let end = at.checked_add(data.len())?;
        if at < bytes.len() || end > MOST_IMAGE as usize {
            return None;
        }
        bytes.resize(at, 0);
        bytes.extend_from_slice(data);
    }
    let image = Image { base, bytes };
    let mut symbols = parse(&image)?;
    symbols.orc = orc(&image, &symbols);
    Some(symbols)
}

/// The kernel's unwinding tables, which lie in its image too.
fn orc(image: &Image, symbols: &Symbols) -> Option<Orc> {
    let section = |name: &str| {
        let start = symbols.address_of(&format!("__start_{name}"))?;
        let stop = symbols.address_of(&format!("__stop_{name}"))?;
        let offset = |address: u64| usize::try_from(address.checked_sub(image.base)?).ok();
        let bytes = image.bytes.get(offset(start)?..offset(stop)?)?;
        Some((start, bytes.to_vec()))
    };
    let (base, places) = section("orc_unwind_ip")?;
    let (_, entries) = section("orc_unwind")?;
    Orc::new(base, places, entries)
}

/// The table in `image`, if there is one that holds together.
pub(crate) fn parse(image: &Image) -> Option<Symbols> {
    let bytes = &image.bytes;
    let mut from = 0;
    // Each candidate is checked for itself; there are few.
    while let Some(found) = find_bytes(bytes.get(from..)?, DIGITS) {
        let at = from + found;
        from = at + 1;
        let symbols = Tokens::around(image, at).and_then(|tokens| {
            let names = Names::before(image, &tokens)?;
            names.symbols(image, &tokens)
        });
        if symbols.is_some() {
            return symbols;
        }
    }
    None
}

fn find_bytes(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, _) = needle.split_first()?;
    let mut from = 0;
    while let Some(step) = haystack.get(from..)?.iter().position(|byte| byte == first) {
        let at = from + step;
        if haystack.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// `at` rounded up to a multiple of 8 in the guest.
fn aligned(image: &Image, at: usize) -> usize {
    let up = (8 - (image.base.wrapping_add(at as u64)) % 8) % 8;
    at.saturating_add(up as usize)
}

/// The tokens that names consist of.
struct Tokens {
    /// Offset of `token_table`.
    start: usize,
    /// Offset behind `token_index`.
    end: usize,
    /// Each token's place in the image.
    tokens: Vec<std::ops::Range<usize>>,
}

impl Tokens {
    /// With the digits at `digits`.
    fn around(image: &Image, digits: usize) -> Option<Self> {
        let bytes = &image.bytes;
        // From the digits to the last token.
        let mut end = digits;
        for _ in FIRST_DIGIT..TOKENS {
            let window = bytes.get(end..)?;
            let len = window.iter().take(MOST_TOKEN).position(|byte| *byte == 0)?;
            end += len + 1;
        }
        // The index lies behind, and says where the table begins.
        let index = aligned(image, end);
        let offset = |n: usize| u16_at(bytes, index + 2 * n).map(usize::from);
        let start = digits.checked_sub(offset(FIRST_DIGIT)?)?;
        let mut tokens = Vec::with_capacity(TOKENS);
        let mut at = start;
        for n in 0..TOKENS {
            if start + offset(n)? != at {
                return None;
            }
            let window = bytes.get(at..)?;
            let len = window.iter().take(MOST_TOKEN).position(|byte| *byte == 0)?;
            tokens.push(at..at + len);
            at += len + 1;
        }
        (at == end).then_some(Self {
            start,
            end: index + 2 * TOKENS,
            tokens,
        })
    }

    fn token<'i>(&self, image: &'i Image, n: u8) -> Option<&'i [u8]> {
        image.bytes.get(self.tokens.get(usize::from(n))?.clone())
    }
}

/// The compressed names.
struct Names {
    /// Offset of `names`.
    start: usize,
    /// Number of symbols.
    count: usize,
}

/// Length of a name's tokens and of the length itself (from 6.1 on, long names have two bytes of it).
fn length(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let first = usize::from(*bytes.get(at)?);
    if first & 0x80 == 0 {
        return Some((first, 1));
    }
    let second = usize::from(*bytes.get(at + 1)?);
    Some((first & 0x7f | second << 7, 2))
}

/// Behind `count` names from `at` on.
fn skip(bytes: &[u8], mut at: usize, count: usize, end: usize) -> Option<usize> {
    for _ in 0..count {
        let (tokens, own) = length(bytes, at)?;
        at = at.checked_add(tokens + own)?;
        if tokens == 0 || at > end {
            return None;
        }
    }
    Some(at)
}

impl Names {
    /// Those whose markers end before the tokens, directly or (6.2, 6.3) with three bytes for each
    /// symbol between.
    fn before(image: &Image, tokens: &Tokens) -> Option<Self> {
        let bytes = &image.bytes;
        let farthest = tokens.start.saturating_sub(3 * MOST_SYMBOLS);
        let word = |at: usize| u32_at(bytes, at);
        // Markers are words that rise from zero, aligned to 8 as a whole.
        let mut end = tokens.start & !3;
        while end > farthest.max(4 * FEWEST_MARKERS) {
            let last = word(end - 4)?;
            let mut start = end - 4;
            let mut value = last;
            while value != 0 && start >= 4 {
                let before = word(start - 4)?;
                // 256 names of at least one byte and its length lie between two markers.
                let distance = value.checked_sub(before);
                if distance
                    .is_none_or(|d| (d as usize) < 2 * STRIDE || d as usize > STRIDE * MOST_NAME)
                {
                    break;
                }
                value = before;
                start -= 4;
            }
            let count = (end - start) / 4;
            if value == 0 && count >= FEWEST_MARKERS && aligned(image, start) == start {
                let markers = bytes.get(start..end)?;
                if let Some(names) = Self::with(image, start, markers) {
                    return Some(names);
                }
            }
            // What was looked at as one rising row need not be looked at again from within.
            end -= 4;
        }
        None
    }

    /// With these `markers`, which begin at offset `end`.
    fn with(image: &Image, end: usize, markers: &[u8]) -> Option<Self> {
        let bytes = &image.bytes;
        let marker = |n: usize| u32_at(markers, 4 * n).map(|m| m as usize);
        let count = markers.len() / 4;
        let last = marker(count - 1)?;
        let latest = end.checked_sub(last)?;
        let earliest = latest.saturating_sub(STRIDE * MOST_NAME).max(8);
        let mut start = latest & !7;
        // The image is aligned, so offsets are as addresses.
        while start >= earliest {
            let symbols = u32_at(bytes, start - 8)? as usize;
            let fits = symbols.div_ceil(STRIDE) == count && symbols <= MOST_SYMBOLS;
            if fits && skip(bytes, start, STRIDE, end) == Some(start + marker(1)?) {
                // Every marker must be met, and the last names must end before the markers.
                let all = (0..count - 1).all(|n| {
                    let from = marker(n).map(|m| start + m);
                    let to = marker(n + 1).map(|m| start + m);
                    from.and_then(|from| skip(bytes, from, STRIDE, end)) == to
                });
                let rest = symbols - STRIDE * (count - 1);
                if all && skip(bytes, start + last, rest, end).is_some() {
                    return Some(Self {
                        start,
                        count: symbols,
                    });
                }
            }
            start -= 8;
        }
        None
    }

    /// Where the offsets are, and the base they are relative to: before the names, or behind the
    /// tokens.
    fn offsets(&self, image: &Image, tokens: &Tokens) -> Option<(usize, u64)> {
        let bytes = &image.bytes;
        let len = 4 * self.count;
        let base_before = self.start.checked_sub(16);
        let before = base_before.and_then(|base| {
            let start = base.checked_sub(len)?;
            // The array was aligned, and what follows it was too.
            Some((start - (start % 8), u64_at(bytes, base)?))
        });
        let after = aligned(image, tokens.end);
        let behind = u64_at(bytes, aligned(image, after.checked_add(len)?)).map(|b| (after, b));
        [before, behind]
            .into_iter()
            .flatten()
            .find(|(start, base)| self.plausible(image, *start, *base))
    }

    /// Offsets rise, but for those of the per-CPU area, and lie in the image.
    fn plausible(&self, image: &Image, start: usize, base: u64) -> bool {
        if !KERNEL_IMAGE.contains(&base) {
            return false;
        }
        let bytes = &image.bytes;
        let within = (0..self.count)
            .filter_map(|n| u32_at(bytes, start + 4 * n))
            .filter(|offset| {
                KERNEL_IMAGE.contains(&address(*offset, base, self.negative(bytes, start)))
            })
            .count();
        within > self.count / 2
    }

    /// Whether most offsets are negative: with `CONFIG_KALLSYMS_ABSOLUTE_PERCPU` those are relative,
    /// and the others are addresses.
    fn negative(&self, bytes: &[u8], start: usize) -> bool {
        // A look at some of them is enough.
        let step = (self.count / 64).max(1);
        let looked = (0..self.count).step_by(step);
        let negative = looked
            .clone()
            .filter(|n| u32_at(bytes, start + 4 * n).is_some_and(|o| o >> 31 != 0))
            .count();
        negative > looked.count() / 2
    }

    fn symbols(&self, image: &Image, tokens: &Tokens) -> Option<Symbols> {
        let bytes = &image.bytes;
        let (offsets, base) = self.offsets(image, tokens)?;
        let negative = self.negative(bytes, offsets);
        let mut symbols = Symbols::new();
        let mut at = self.start;
        let mut name = Vec::new();
        for n in 0..self.count {
            let (len, own) = length(bytes, at)?;
            let indices = bytes.get(at + own..at + own + len)?;
            name.clear();
            for &index in indices {
                name.extend_from_slice(tokens.token(image, index)?);
                if name.len() > MOST_NAME {
                    return None;
                }
            }
            at += own + len;
            let text = std::str::from_utf8(&name).ok()?;
            let mut letters = text.chars();
            let letter = letters.next()?;
            symbols.push(Symbol {
                address: address(u32_at(bytes, offsets + 4 * n)?, base, negative),
                name: letters.as_str().to_owned(),
                kind: map::kind(letter),
                size: None,
            });
        }
        symbols.sort();
        Some(symbols)
    }
}

/// See [`Names::negative`].
fn address(offset: u32, base: u64, negative: bool) -> u64 {
    match offset as i32 {
        signed @ i32::MIN..=-1 if negative => {
            base.wrapping_sub(1).wrapping_sub(i64::from(signed) as u64)
        }
        signed @ 0.. if negative => signed as u64,
        _ => base.wrapping_add(offset.into()),
    }
}

#[cfg(test)]
pub(crate) fn image_for_tests(base: u64, bytes: Vec<u8>) -> Image {
    Image { base, bytes }
}
