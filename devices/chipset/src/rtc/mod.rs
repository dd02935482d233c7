//! A real-time clock with 128 bytes of battery-backed memory (Motorola MC146818A data sheet,
//! 1984; the century byte and the memory-size bytes are the PC AT's).
//!
//! The time of day is the host's wall clock plus an offset that the guest sets by setting the time.
//! Nothing ticks: registers are computed when they are read, and a host timer is armed only while
//! an interrupt is enabled that could come. The day of the week follows the date.

mod calendar;
mod clock;
mod kind;
mod saved;
#[cfg(test)]
mod tests;

pub use clock::Rtc;
pub use kind::RtcConfig;
pub use saved::SavedRtc;
