//! Tests with stock guest kernels: what the guest does and what its host does stand side by side in one
//! [`GuestTest`]; a [`Ground`] boots them one after the other in a lab and reports each check.
//!
//! Both halves are shell scripts that share a vocabulary (`src/vocabulary.sh`):
//!
//! ```sh
//! expect "label" WANTED FOUND     # equal texts
//! holds "label" COMMAND...        # a command that succeeds
//! ```
//!
//! A label stands literally behind the word. A check that never reports is a failure too, so a script that
//! breaks off in the middle cannot pass.

#![forbid(unsafe_code)]

mod report;
mod run;
mod script;

pub use report::Report;
pub use run::Ground;
pub use script::{GuestTest, Image, Initrd};
