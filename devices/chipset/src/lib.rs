//! Platform devices: serial, ioapic, rtc, i8042, pm, debug ports, pvpanic, VM generation id.
//!
//! One module per device; what each of them is, its module says. All are byte-stream, register and
//! wire logic only: nothing here blocks, and an idle device arms no timer.
#![forbid(unsafe_code)]

mod aml;
pub mod debug_ports;
pub mod i8042;
pub mod ioapic;
pub mod pm;
mod ports;
pub mod pvpanic;
pub mod rtc;
pub mod serial;
#[cfg(test)]
mod tests;
pub mod vmgenid;

pub use debug_ports::{DebugConsole, PostPort};
pub use i8042::I8042;
pub use ioapic::Ioapic;
pub use pm::Pm;
pub use pvpanic::PvPanic;
pub use rtc::Rtc;
pub use serial::Serial;
pub use vmgenid::VmGenId;
