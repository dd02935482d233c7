//! Platform devices: serial, ioapic, rtc, i8042, pm, debug ports, pvpanic, VM generation id.
//!
//! One module per device; what each of them is, its module says. All are byte-stream, register and
//! wire logic only: nothing here blocks, and an idle device arms no timer.
#![forbid(unsafe_code)]

mod aml;
pub mod debug_ports;
pub mod ioapic;
pub mod pm;
mod ports;
pub mod rtc;
pub mod serial;

pub use debug_ports::{DebugConsole, PostPort};
pub use ioapic::Ioapic;
pub use pm::Pm;
pub use rtc::Rtc;
pub use serial::Serial;
