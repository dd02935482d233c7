//! Lines of the trail and the checkpoint: how they are made, and how they are read back strictly.

use super::key::PublicKey;
use crate::entry::Entry;
use crate::time::Timestamp;
use ed25519_dalek::{Signature, Signer, SigningKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

const RECORD_DOMAIN: &[u8] = b"nyx-audit-1 record\n";
const HEAD_DOMAIN: &[u8] = b"nyx-audit-1 head\n";
const HASH: &[u8] = b",\"hash\":\"";
const SIGNATURE: &[u8] = b"\",\"signature\":\"";
const END: &[u8] = b"\"}";
/// One sector, so that a checkpoint is either the old or the new one, even after a loss of power.
pub(super) const HEAD_SIZE: usize = 512;
/// Longest line that can be a record.
pub(super) const MAX_LINE: usize = 1 << 20;

pub(super) type Hash = [u8; 32];

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Content {
    /// A process begins to write.
    Open {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        vm: Option<String>,
        pid: u32,
        public_key: String,
        /// Bytes of a torn last line that were cut off.
        #[serde(skip_serializing_if = "is_zero", default)]
        torn: u64,
    },
    /// An entry of the journal.
    Entry(Entry),
    /// Entries that could not be kept until they could be written.
    Lost { count: u64 },
    /// The process ends in good order.
    Seal,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A record without its hash and signature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) time: Timestamp,
    pub(super) previous: String,
    #[serde(flatten)]
    pub(super) content: Content,
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Exactly `N` bytes in lower-case hexadecimal.
pub(super) fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (place, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *place = digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?;
    }
    Some(bytes)
}

fn signed(domain: &[u8], content: &[u8]) -> Vec<u8> {
    [domain, content].concat()
}

fn is_signed(key: &PublicKey, domain: &[u8], content: &[u8], signature: &[u8; 64]) -> bool {
    // Strict: of two encodings of one signature only one is taken.
    key.key()
        .verify_strict(&signed(domain, content), &Signature::from_bytes(signature))
        .is_ok()
}

fn hash_of(body: &[u8]) -> Hash {
    Sha256::new()
        .chain_update(RECORD_DOMAIN)
        .chain_update(body)
        .finalize()
        .into()
}

impl Record {
    /// The line with its newline, and the hash that the next record begins with.
    pub(super) fn seal(&self, key: &SigningKey) -> Option<(Vec<u8>, Hash)> {
        let mut line = serde_json::to_vec(self).ok()?;
        // The closing brace comes after hash and signature.
        line.pop();
        let hash = hash_of(&line);
        let signature = key.sign(&signed(RECORD_DOMAIN, &hash)).to_bytes();
        line.extend(HASH);
        line.extend(hex(&hash).bytes());
        line.extend(SIGNATURE);
        line.extend(hex(&signature).bytes());
        line.extend(END);
        line.push(b'\n');
        Some((line, hash))
    }
}

/// What is wrong with one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// It does not have the form of a record.
    Form,
    /// Its content does not have its hash.
    Hash,
    /// Nobody with the private key signed it.
    Signature,
}

/// A line without its newline, taken apart: the body, the hash it claims, the signature.
fn split(line: &[u8]) -> Option<(&[u8], Hash, [u8; 64])> {
    let rest = line.strip_suffix(END)?;
    let (rest, signature) = rest.split_at_checked(rest.len().checked_sub(128)?)?;
    let rest = rest.strip_suffix(SIGNATURE)?;
    let (rest, hash) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    Some((rest.strip_suffix(HASH)?, unhex(hash)?, unhex(signature)?))
}

/// Checks a line without its newline by itself. The number it claims comes with either answer.
pub(super) fn check(line: &[u8], key: &PublicKey) -> Result<(Record, Hash), (Broken, Option<u64>)> {
    let (body, hash, signature) = split(line).ok_or((Broken::Form, claimed(line)))?;
    let parsed = serde_json::from_slice::<Record>(&[body, b"}"].concat());
    if hash_of(body) != hash {
        return Err((Broken::Hash, claimed(line)));
    }
    if !is_signed(key, RECORD_DOMAIN, &hash, &signature) {
        return Err((Broken::Signature, claimed(line)));
    }
    match parsed {
        Ok(record) => Ok((record, hash)),
        Err(_) => Err((Broken::Form, claimed(line))),
    }
}

/// The number that a line claims to have; every record begins with it.
pub(super) fn claimed(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"{\"sequence\":")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()
}

/// The checkpoint: the newest record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) sequence: u64,
    pub(super) hash: String,
    pub(super) sealed: bool,
}

impl Head {
    pub(super) fn seal(&self, key: &SigningKey) -> Option<Vec<u8>> {
        let mut text = serde_json::to_vec(self).ok()?;
        text.pop();
        let signature = key.sign(&signed(HEAD_DOMAIN, &text)).to_bytes();
        text.extend(b",\"signature\":\"");
        text.extend(hex(&signature).bytes());
        text.extend(END);
        if text.len() >= HEAD_SIZE {
            return None;
        }
        text.resize(HEAD_SIZE - 1, b' ');
        text.push(b'\n');
        Some(text)
    }

    /// Reads a checkpoint of which every byte is as it was written.
    pub(super) fn check(bytes: &[u8], key: &PublicKey) -> Option<Self> {
        if bytes.len() != HEAD_SIZE {
            return None;
        }
        let text = bytes.strip_suffix(b"\n")?;
        let padding = text.iter().rev().take_while(|b| **b == b' ').count();
        let text = text.get(..text.len() - padding)?.strip_suffix(END)?;
        let (rest, signature) = text.split_at_checked(text.len().checked_sub(128)?)?;
        let body = rest.strip_suffix(b",\"signature\":\"")?;
        is_signed(key, HEAD_DOMAIN, body, &unhex(signature)?)
            .then(|| serde_json::from_slice(&[body, b"}"].concat()).ok())?
    }

    pub(super) fn hash(&self) -> Option<Hash> {
        unhex(self.hash.as_bytes())
    }
}
