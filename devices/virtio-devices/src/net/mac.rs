//! Ethernet addresses.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// An Ethernet address a guest's interface may have: not zero, not multicast. Written like
/// `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Checks an address.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        let mac = Self(bytes);
        let [first, ..] = bytes;
        if bytes == [0; 6] {
            Err(MacError::Zero)
        } else if first & 1 != 0 {
            Err(MacError::Multicast(mac.to_string()))
        } else {
            Ok(mac)
        }
    }

    /// The six bytes, as they are on the wire.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

/// An address that an interface cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six bytes.
    #[error("{0:?} is not a MAC address; write six hexadecimal bytes like 52:54:00:12:34:56")]
    Form(String),
    /// All zero.
    #[error("a MAC address of zeroes is no address; leave it out to have one chosen")]
    Zero,
    /// A group address.
    #[error(
        "{0} is a multicast address; the lowest bit of the first byte must be 0, as in 52:54:00:12:34:56"
    )]
    Multicast(String),
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let bad = || MacError::Form(text.into());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            // from_str_radix would take a sign.
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Self::new(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;
    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

/// An address that depends on `seed` only: 52:54:00, which is locally administered and commonly
/// taken for virtual machines, then 24 bits of a hash. Seed it with the machine's and the unit's
/// name, so that an interface keeps its address from run to run and two rarely share one.
pub fn stable_mac(seed: &str) -> [u8; 6] {
    // FNV-1a, 64 bits: stable for ever, unlike the standard library's hashers.
    let hash = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // All of the hash takes part in the 24 bits.
    let folded = hash ^ hash >> 24 ^ hash >> 48;
    let [a, b, c, ..] = folded.to_le_bytes();
    [0x52, 0x54, 0x00, a, b, c]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_what_it_prints() {
        let mac: Mac = "52:54:00:AB:cd:01".parse().unwrap();
        assert_eq!(mac.bytes(), [0x52, 0x54, 0, 0xab, 0xcd, 1]);
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:01");
    }

    #[test]
    fn what_is_no_interface_address_is_refused_with_a_sentence() {
        let error = |text: &str| text.parse::<Mac>().unwrap_err().to_string();
        assert!(error("01:00:5e:00:00:01").contains("multicast"));
        assert!(error("00:00:00:00:00:00").contains("zeroes"));
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "5254:0:12:34:56:+1",
            "52:54:00:12:34:+5",
        ] {
            assert!(error(text).contains("six hexadecimal bytes"), "{text}");
        }
    }

    #[test]
    fn a_chosen_address_is_stable_valid_and_differs_by_name() {
        let (a, b) = (stable_mac("web/net0"), stable_mac("web/net1"));
        assert_ne!(a, b);
        assert_eq!(a, stable_mac("web/net0"));
        assert!(Mac::new(a).is_ok() && Mac::new(b).is_ok());
        assert_eq!(a[..3], [0x52, 0x54, 0]);
    }
}
