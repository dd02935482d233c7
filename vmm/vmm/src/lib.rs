//! The actor that owns one machine: boot, events, power.
#![forbid(unsafe_code)]

mod actor;
mod admission;
mod board;
mod control;
mod firmware;
mod mailbox;
mod prepare;
mod runtime;
mod server;
#[cfg(test)]
mod tests;
mod watch;

pub use actor::{Ending, Notice, RunError, Start, Vmm};
pub use admission::{Admission, admit};
pub use control::{Control, Desk, Identity, Request};
pub use firmware::{FirmwareError, Tables};
pub use prepare::{HostSource, PrepareError, Prepared};
pub use runtime::{ClaimError, RuntimeFolder};
pub use server::{Server, Socket, document, document_text};
