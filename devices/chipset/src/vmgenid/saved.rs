//! The saved generation id.

use nyx_state::Saved;

/// State of a VM generation id.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedVmGenId {
    /// The id, as a UUID is written down.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub id: Vec<u8>,
    /// Whether the guest has still to be told.
    #[n(1)]
    pub notice_due: bool,
}

impl Saved for SavedVmGenId {
    const NAME: &'static str = "vmgenid/1";
}
