//! What this host can do for virtual machines, measured rather than guessed.
//!
//! ```text
//! Facts::read ─▶ Facts ─▶ Report::from_facts [pure] ─▶ JSON (serde) or text (Report::render)
//! ```
//!
//! Reading changes nothing on the host: devices are opened and closed, a scratch virtual machine
//! runs for some milliseconds, and a child process tries a user namespace.
//!
//! What this crate does not do: it mends nothing and installs nothing; each finding says how.
#![forbid(unsafe_code)]

mod assess;
mod facts;
mod read;
mod render;
mod report;
#[cfg(test)]
mod tests;

pub use facts::{
    Cgroups, CpuFacts, Facts, HugePagePool, KvmFacts, ModuleParameter, Probe, ToolFacts,
};
pub use report::{Finding, GuestKernels, Report, Status};

/// Examines this host. Takes some tens of milliseconds, mostly to time a scratch virtual machine.
pub fn examine() -> Report {
    Report::from_facts(&Facts::read())
}
