//! Universally unique identifiers (RFC 9562).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// An identifier, in the order in which it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Uuid([u8; 16]);

/// That is no UUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UuidError(String);

impl fmt::Display for UuidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a UUID like 12345678-9abc-4def-8123-456789abcdef",
            self.0
        )
    }
}

impl std::error::Error for UuidError {}

impl Uuid {
    /// A random one, version 4 (RFC 9562 §5.4).
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
        }
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }

    /// The bytes as written down.
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// From bytes as written down.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The layout of Microsoft's `GUID`, which guests see in memory: the first three fields are
    /// little-endian.
    pub fn to_guid(self) -> [u8; 16] {
        let mut guid = self.0;
        guid[0..4].reverse();
        guid[4..6].reverse();
        guid[6..8].reverse();
        guid
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        let parse = || {
            let dashes = text.bytes().enumerate().all(|(at, byte)| {
                if matches!(at, 8 | 13 | 18 | 23) {
                    byte == b'-'
                } else {
                    byte.is_ascii_hexdigit()
                }
            });
            let digits: String = text.chars().filter(|c| *c != '-').collect();
            let value = u128::from_str_radix(&digits, 16).ok()?;
            (text.len() == 36 && dashes).then_some(Self(value.to_be_bytes()))
        };
        parse().ok_or_else(|| UuidError(text.into()))
    }
}

impl TryFrom<String> for Uuid {
    type Error = UuidError;
    fn try_from(text: String) -> Result<Self, UuidError> {
        text.parse()
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> Self {
        uuid.to_string()
    }
}
