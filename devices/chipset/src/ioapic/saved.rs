//! The saved I/O APIC.

use nyx_state::Saved;

/// State of an I/O APIC.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedIoapic {
    /// APIC id.
    #[n(0)]
    pub id: u8,
    /// IOREGSEL.
    #[n(1)]
    pub select: u8,
    /// The redirection table.
    #[n(2)]
    pub entries: Vec<u64>,
    /// Levels of the pins, bit 0 first.
    #[n(3)]
    pub levels: u32,
    /// Edges to deliver on resume.
    #[n(4)]
    pub held_edges: u32,
}

impl Saved for SavedIoapic {
    const NAME: &'static str = "ioapic/1";
}
