//! The payload: a bare-metal x86-64 test guest, and the host's side of its protocol.
//!
//! The guest itself is in `guest/`; `build.rs` makes an ELF file with a PVH note of it. It boots in
//! well under a millisecond of guest time, also where KVM emulates ring 0, and speaks in lines that
//! [`Report`] reads. What it does is said on its command line, which [`Command`] writes:
//!
//! ```
//! use nyx_payload::{Command, Report};
//!
//! let cmdline = Command::new().test("serial").test("virtio-blk").bench("exit-pio", 100_000);
//! assert_eq!(cmdline.to_string(), "test=serial,virtio-blk bench=exit-pio:100000");
//!
//! let report = Report::parse("!ok serial\nfail virtio-blk: flush (got 0x1, want 0x0)\ndone\n");
//! assert!(report.done);
//! assert_eq!(report.oks, ["serial"]);
//! assert_eq!(report.fails[0].test, "virtio-blk");
//! ```
#![forbid(unsafe_code)]

mod command;
mod report;

use std::path::Path;

pub use command::{Command, Ending};
pub use report::{Bench, Fail, Note, Report};

/// Where the guest's ELF file is: an `ET_EXEC` file linked from 1 MiB up, with a PVH entry note.
#[must_use]
pub fn elf_path() -> &'static Path {
    Path::new(env!("NYX_PAYLOAD_ELF"))
}

/// The guest's ELF file itself, for tests that load it from memory.
#[must_use]
pub fn elf() -> &'static [u8] {
    include_bytes!(env!("NYX_PAYLOAD_ELF"))
}

/// The byte that ring 3 writes to [`FIRST_BYTE_PORT`] before anything else.
pub const FIRST_BYTE: u8 = b'!';

/// The debug port.
pub const FIRST_BYTE_PORT: u16 = 0xe9;

/// All tests by name that `test=all` runs, in its order.
pub const TESTS: &[&str] = &include!(concat!(env!("OUT_DIR"), "/tests.rs"));

#[cfg(test)]
mod tests;
