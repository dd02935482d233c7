//! Ed25519 keys in PEM files, as `openssl pkey` reads and writes them (RFC 8410).

use ed25519_dalek::{SigningKey, VerifyingKey};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// OneAsymmetricKey of RFC 8410, section 7, up to the 32 bytes of the key.
const PRIVATE: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// SubjectPublicKeyInfo of RFC 8410, section 4, up to the 32 bytes of the key.
const PUBLIC: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Longest file that may be a key.
const MAX_FILE: u64 = 16 * 1024;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("key {0:?}: {1}")]
    File(String, #[source] io::Error),
    /// Not a key of the kind wanted.
    #[error(
        "key {0:?} is no Ed25519 {1} key in PEM; make one with openssl genpkey -algorithm ed25519"
    )]
    Format(String, &'static str),
    /// Anybody could sign with it.
    #[error("key {0:?} can be read by others (mode {1:o}); run chmod 600 on it")]
    Open(String, u32),
}

/// The key that shows that an audit trail is intact.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// In hexadecimal.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::record::hex(self.0.as_bytes()))
    }
}

impl PublicKey {
    /// From its 32 bytes, if they are a key.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        VerifyingKey::from_bytes(bytes).ok().map(Self)
    }

    /// Its 32 bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Reads the public key from a PEM file, or derives it from the private key there.
    ///
    /// # Errors
    /// The file cannot be read or holds no such key.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let text = read(path)?;
        let refused = || KeyError::Format(path.display().to_string(), "public");
        if let Some(bytes) = parse(&text, "PUBLIC KEY", &PUBLIC) {
            return Self::from_bytes(&bytes).ok_or_else(refused);
        }
        let seed = parse(&text, "PRIVATE KEY", &PRIVATE).ok_or_else(refused)?;
        Ok(Self(SigningKey::from_bytes(&seed).verifying_key()))
    }

    /// As a PEM file.
    pub fn to_pem(self) -> String {
        pem("PUBLIC KEY", &PUBLIC, self.0.as_bytes())
    }

    pub(super) fn of(key: &SigningKey) -> Self {
        Self(key.verifying_key())
    }

    pub(super) fn key(&self) -> &VerifyingKey {
        &self.0
    }
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for index in 0..4 {
            let six = (word >> (18 - 6 * index)) & 0x3f;
            text.push(if index <= chunk.len() {
                ALPHABET.get(six as usize).copied().map_or('=', char::from)
            } else {
                '='
            });
        }
    }
    text
}

/// Exactly the base64 of whole bytes, without line breaks.
fn unbase64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for chunk in text.as_bytes().chunks(4) {
        let mut word = 0;
        for byte in chunk {
            let six = match byte {
                b'=' => 0,
                byte => ALPHABET.iter().position(|known| known == byte)?,
            };
            word = word << 6 | six;
        }
        bytes.extend([word >> 16, word >> 8, word].map(|byte| byte.to_le_bytes()[0]));
    }
    let padding = text.len() - text.trim_end_matches('=').len();
    bytes.truncate(bytes.len().checked_sub(padding)?);
    // Whatever was not exact does not come out the same.
    (base64(&bytes) == text).then_some(bytes)
}

fn pem(label: &str, prefix: &[u8], key: &[u8; 32]) -> String {
    let body = base64(&[prefix, key.as_slice()].concat());
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

fn parse(text: &str, label: &str, prefix: &[u8]) -> Option<[u8; 32]> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let body: String = body.split_ascii_whitespace().collect();
    unbase64(&body)?.strip_prefix(prefix)?.try_into().ok()
}

fn read(path: &Path) -> Result<String, KeyError> {
    let refused = |e| KeyError::File(path.display().to_string(), e);
    let mut text = String::new();
    fs::File::open(path)
        .map_err(refused)?
        .take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(refused)?;
    Ok(text)
}

/// Reads the private key, or makes one with mode 0600 and its public key beside.
pub(super) fn load_or_make(path: &Path) -> Result<SigningKey, KeyError> {
    let name = || path.display().to_string();
    let refused = |e| KeyError::File(name(), e);
    match fs::metadata(path) {
        Ok(facts) => {
            if facts.mode() & 0o077 != 0 {
                return Err(KeyError::Open(name(), facts.mode() & 0o7777));
            }
            let seed = parse(&read(path)?, "PRIVATE KEY", &PRIVATE)
                .ok_or_else(|| KeyError::Format(name(), "private"))?;
            Ok(SigningKey::from_bytes(&seed))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|e| refused(io::Error::other(e.to_string())))?;
            let key = SigningKey::from_bytes(&seed);
            write(path, 0o600, &pem("PRIVATE KEY", &PRIVATE, &seed)).map_err(refused)?;
            let public = crate::config::beside(path, ".pub");
            // One that lies there belongs to a key that is gone.
            let _ = fs::remove_file(&public);
            write(&public, 0o644, &PublicKey::of(&key).to_pem()).map_err(refused)?;
            Ok(key)
        }
        Err(e) => Err(refused(e)),
    }
}

fn write(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a key would be in the way of the next attempt.
        let _ = fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_key_of_rfc_8410() {
        // Section 10.1 (public) and 10.3 (private), which are a pair.
        let private = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
            -----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\n\
            MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
            -----END PUBLIC KEY-----\n";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        fs::write(&path, private).unwrap();
        assert_eq!(PublicKey::from_file(&path).unwrap().to_pem(), public);
        let error = load_or_make(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("can be read by others (mode 644); run chmod 600 on it"),
            "{error}"
        );
        fs::write(&path, public).unwrap();
        assert_eq!(PublicKey::from_file(&path).unwrap().to_pem(), public);
    }

    proptest! {
        #[test]
        fn base64_and_back(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(unbase64(&base64(&bytes)).unwrap(), bytes);
        }

        #[test]
        fn no_text_panics(text in "[A-Za-z=+/ä]{0,12}") {
            let _ = unbase64(&text);
        }
    }
}
