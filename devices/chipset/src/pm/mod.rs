//! ACPI fixed hardware (ACPI 6.5 §4.8): power button, sleep control, PM timer, general purpose
//! events and the SCI.
//!
//! The machine is always in ACPI mode: there is no SMI command port, so SCI_EN reads as one
//! (§4.8.3.1). The timer counts 32 bits; it raises an interrupt only for a guest that asks, and only
//! then is a host timer armed.

mod block;
mod kind;
mod saved;
#[cfg(test)]
mod tests;

pub use block::Pm;
pub use kind::PmConfig;
pub use saved::SavedPm;

/// Offset of the PM1a event block: two bytes of status, two of enables.
pub const PM1_EVENT: u16 = 0x00;
/// Offset of the PM1a control register, two bytes.
pub const PM1_CONTROL: u16 = 0x04;
/// Offset of the PM timer, four bytes.
pub const PM_TIMER: u16 = 0x08;
/// Offset of the GPE0 block.
pub const GPE0: u16 = 0x20;
/// Length of the GPE0 block: four bytes of status, four of enables.
pub const GPE0_LEN: u8 = 8;
/// SLP_TYP of S5, for the `\_S5` package.
pub const S5_TYPE: u8 = 5;
/// Length of the whole window.
pub const LEN: u16 = GPE0 + GPE0_LEN as u16;
