//! The saved fixed hardware.

use nyx_state::Saved;

/// State of the ACPI fixed hardware. The timer has none of its own: it follows the machine's clock.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedPm {
    /// PM1 status.
    #[n(0)]
    pub status: u16,
    /// PM1 enable.
    #[n(1)]
    pub enable: u16,
    /// PM1 control.
    #[n(2)]
    pub control: u16,
    /// GPE0 status.
    #[n(3)]
    pub gpe_status: u32,
    /// GPE0 enable.
    #[n(4)]
    pub gpe_enable: u32,
}

impl Saved for SavedPm {
    const NAME: &'static str = "pm/1";
}
