//! The actor that owns one machine: boot, events, power.
#![forbid(unsafe_code)]

mod actor;
mod firmware;
mod prepare;
#[cfg(test)]
mod tests;

pub use actor::{Command, Control, Ending, Notice, RunError, Vmm};
pub use firmware::{FirmwareError, Tables};
pub use prepare::{HostSource, PrepareError, Prepared};
