//! A 16550A serial port (Texas Instruments / National Semiconductor PC16550D data sheet, 1995).
//!
//! The line is infinitely fast: a byte written to the transmitter is at the backend at once, and
//! the four character times of a receive timeout (data sheet §8.4.2) pass in none. A backend that
//! takes no more output fills a queue of 64 KiB; only when that is full does the guest see a busy
//! transmitter. Nothing is read from the backend that does not fit the receiver, so the receiver
//! overruns in loopback only.

mod kind;
mod registers;
mod saved;
#[cfg(test)]
mod tests;
mod uart;

pub use kind::SerialConfig;
pub use saved::SavedSerial;
pub use uart::Serial;
