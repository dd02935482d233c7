//! Encoding of structures: a formatted part with a header, then the strings it numbers (DSP0134 §6.1).

use crate::{BuildError, MAX_STRING};

/// One structure under construction.
pub(crate) struct Structure {
    formatted: Vec<u8>,
    strings: Vec<u8>,
    string_count: u8,
}

impl Structure {
    pub(crate) fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Structure {
            formatted: vec![kind, 0, low, high],
            strings: Vec::new(),
            string_count: 0,
        }
    }

    pub(crate) fn byte(mut self, value: u8) -> Self {
        self.formatted.push(value);
        self
    }

    pub(crate) fn word(mut self, value: u16) -> Self {
        self.formatted.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn double(mut self, value: u32) -> Self {
        self.formatted.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn quad(mut self, value: u64) -> Self {
        self.formatted.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn zeros(mut self, count: usize) -> Self {
        self.formatted.resize(self.formatted.len() + count, 0);
        self
    }

    /// A UUID: its first three fields little-endian (§7.2.1).
    pub(crate) fn uuid(mut self, text_order: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, rest @ ..] = text_order;
        self.formatted.extend([d, c, b, a, f, e, h, g]);
        self.formatted.extend(rest);
        self
    }

    /// The number of a string; 0 for an empty one.
    pub(crate) fn text(self, field: &'static str, value: &str) -> Result<Self, BuildError> {
        if value.is_empty() {
            return Ok(self.byte(0));
        }
        let with = self.extra_text(field, value)?;
        let number = with.string_count;
        Ok(with.byte(number))
    }

    /// A string that no field numbers. An empty one would end the string set, so it becomes a space.
    pub(crate) fn extra_text(
        mut self,
        field: &'static str,
        value: &str,
    ) -> Result<Self, BuildError> {
        if value.len() > MAX_STRING || value.chars().any(char::is_control) {
            return Err(BuildError::Text {
                field,
                value: value.chars().take(40).collect(),
            });
        }
        self.strings
            .extend(if value.is_empty() { " " } else { value }.bytes());
        self.strings.push(0);
        self.string_count = self.string_count.saturating_add(1);
        Ok(self)
    }
}

/// The structure table under construction.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) bytes: Vec<u8>,
}

impl Table {
    pub(crate) fn push(&mut self, structure: Structure) {
        let Structure {
            mut formatted,
            mut strings,
            ..
        } = structure;
        let len = u8::try_from(formatted.len()).unwrap_or(u8::MAX);
        if let Some(place) = formatted.get_mut(1) {
            *place = len;
        }
        if strings.is_empty() {
            strings.push(0); // a set without strings still has its two closing zeros
        }
        strings.push(0);
        self.bytes.extend(formatted);
        self.bytes.extend(strings);
    }
}
