//! Resource descriptors (ACPI 6.5 §6.4) that the AML library lacks or would overflow on.

use acpi_tables::{Aml, AmlSink};

/// What an address space descriptor describes.
#[derive(Clone, Copy)]
pub(crate) enum Space {
    Memory { cacheable: bool },
    Io,
    Bus,
}

/// A window a bridge passes on, or addresses a device takes: `first..=last`.
///
/// Encoded in the narrowest of the Word, DWord and QWord forms that the resource kind customarily uses: ports and
/// buses 16 bits, memory 32 or 64.
pub(crate) struct Addresses {
    pub(crate) space: Space,
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// The device takes the addresses itself rather than passing them on.
    pub(crate) consumed: bool,
}

impl Aml for Addresses {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const MIN_FIXED: u8 = 1 << 2;
        const MAX_FIXED: u8 = 1 << 3;
        let (type_, type_flags) = match self.space {
            Space::Memory { cacheable } => (0, u8::from(cacheable) << 1 | 1 /* writable */),
            Space::Io => (1, 3 /* ISA and non-ISA ports */),
            Space::Bus => (2, 0),
        };
        let (tag, width) = match self.space {
            Space::Io | Space::Bus => (0x88, 2), // §6.4.3.5.3
            Space::Memory { .. } if self.last <= u64::from(u32::MAX) => (0x87, 4), // §6.4.3.5.2
            Space::Memory { .. } => (0x8a, 8),   // §6.4.3.5.1
        };
        sink.byte(tag);
        sink.word(3 + 5 * width as u16);
        sink.byte(type_);
        sink.byte(MIN_FIXED | MAX_FIXED | u8::from(self.consumed));
        sink.byte(type_flags);
        let len = self.last.wrapping_sub(self.first).wrapping_add(1);
        for field in [0, self.first, self.last, 0, len] {
            for byte in field.to_le_bytes().iter().take(width) {
                sink.byte(*byte);
            }
        }
    }
}

/// AML already encoded.
pub(crate) struct Raw<'a>(pub(crate) &'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0);
    }
}
