//! Mutations of CBOR (RFC 8949) that stay well-formed, so that what is decoded is wrong and not
//! merely broken.

use crate::Random;
use std::ops::Range;

/// One item's head, and the string bytes that belong to it.
struct Item {
    major: u8,
    value: u64,
    head: Range<usize>,
    body: Range<usize>,
}

/// The items of a well-formed encoding, in order; as far as it is well-formed.
fn items(bytes: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut at = 0;
    while let Some(&first) = bytes.get(at) {
        let (width, value) = match first & 0x1f {
            small @ 0..=23 => (0, u64::from(small)),
            width @ 24..=27 => {
                let width = 1 << (width - 24);
                let Some(argument) = bytes.get(at + 1..at + 1 + width) else {
                    break;
                };
                (
                    width,
                    argument
                        .iter()
                        .fold(0, |value, byte| value << 8 | u64::from(*byte)),
                )
            }
            _ => break,
        };
        let major = first >> 5;
        let start = at + 1 + width;
        let len = if matches!(major, 2 | 3) {
            usize::try_from(value).unwrap_or(0)
        } else {
            0
        };
        let end = start.saturating_add(len);
        if end > bytes.len() {
            break;
        }
        items.push(Item {
            major,
            value,
            head: at..start,
            body: start..end,
        });
        at = end;
    }
    items
}

/// The head of an item, as short as can be (RFC 8949 §4.2.1).
fn head(major: u8, value: u64) -> Vec<u8> {
    let first = major << 5;
    match value {
        0..=23 => vec![first | value as u8],
        24..=0xff => vec![first | 24, value as u8],
        0x100..=0xffff => [&[first | 25][..], &(value as u16).to_be_bytes()].concat(),
        0x1_0000..=0xffff_ffff => [&[first | 26][..], &(value as u32).to_be_bytes()].concat(),
        _ => [&[first | 27][..], &value.to_be_bytes()].concat(),
    }
}

/// A value that is more likely than chance would have it to lie at an edge.
fn edge(random: &mut Random, near: u64) -> u64 {
    match random.below(6) {
        0 => near.wrapping_add(random.below(5)).wrapping_sub(2),
        1 => random.below(256),
        2 => (1u64 << random.below(64)).wrapping_sub(random.below(2)),
        3 => random.word() >> random.below(64),
        4 => random.pick(&[
            0,
            0x7f,
            0x80,
            0xff,
            0xffff,
            0x7fff_ffff,
            u64::MAX,
            u64::MAX >> 1,
        ]),
        _ => near ^ 1 << random.below(64),
    }
}

/// Changes one item: a number, a flag, the length or content of a string or an array.
pub(crate) fn mutate(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let items = items(bytes);
    if items.is_empty() {
        return bytes.to_vec();
    }
    // Keys of maps are items, too: hitting one makes a field absent or takes another's place.
    let item = &items[random.below(items.len() as u64) as usize];
    let replacement = match item.major {
        0 | 1 => head(random.pick(&[0, 0, 0, 1]), edge(random, item.value)),
        2 | 3 => {
            let len = match random.below(4) {
                0 => random.below(300),
                1 => item.value.saturating_sub(1),
                2 => item.value + 1,
                _ => item.value,
            };
            let mut body = vec![0; len.min(1 << 20) as usize];
            random.fill(&mut body);
            [head(item.major, body.len() as u64), body].concat()
        }
        // A repeated or dropped first element, if it is a plain one.
        4 if item.value != 0 => {
            let count = random.pick(&[item.value - 1, item.value + 1, item.value + 40]);
            let element = head(0, edge(random, 0));
            let added = element.repeat(count.saturating_sub(item.value) as usize);
            [head(4, count), added].concat()
        }
        // false, true, null.
        7 => vec![random.pick(&[0xf4, 0xf5, 0xf6])],
        _ => bytes[item.head.clone()].to_vec(),
    };
    [
        &bytes[..item.head.start],
        &replacement,
        &bytes[item.body.end..],
    ]
    .concat()
}
