//! The audit trail: a chain of signed records in a file.
//!
//! Every record is one line of JSON that ends in its hash and its signature. The hash covers every
//! byte of the line before it, among them the hash of the record before; the signature covers the
//! hash. So a change, an insertion, a removal or a new order anywhere is found with the public key
//! alone. That the end of the file was not cut off is shown by the checkpoint beside it
//! (`PATH.head`): number and hash of the newest record, signed; it is written after the record. Who
//! can write both files can put back an older pair of them; what was sent elsewhere (syslog carries
//! the same entries) shows that.

mod key;
mod record;
mod verify;
mod writer;

pub use key::{KeyError, PublicKey};
pub use verify::{Finding, Report, verify, verify_each, verify_file};
pub(crate) use writer::Trail;
