//! Exit codes, in one place because scripts rely on them.

use std::process::ExitCode;

/// The guest switched itself off, or the command succeeded.
pub(crate) const SUCCESS: u8 = 0;
/// The request could not be carried out: bad description, missing file, device in use.
pub(crate) const REFUSED: u8 = 1;
// 2 is clap's, for a command line that does not parse.
/// The guest said that it panicked.
pub(crate) const GUEST_PANIC: u8 = 3;
/// The guest's CPU gave up (triple fault).
pub(crate) const TRIPLE_FAULT: u8 = 4;
/// The machine could not go on: KVM or a device failed.
pub(crate) const BROKEN: u8 = 5;
/// Somebody stopped the machine from outside.
pub(crate) const STOPPED: u8 = 6;

/// What `nyx run --help` says about them.
pub(crate) const HELP: &str = "\
Exit codes:
  0  the guest switched itself off
  1  the request was refused: what, and how to mend it, is on standard error
  2  the command line is wrong
  3  the guest panicked (it said so)
  4  the guest's CPU gave up (triple fault)
  5  the machine could not go on: KVM or the host failed
  6  the machine was stopped from outside (Ctrl-A x, SIGTERM, SIGINT)";

/// Writes a line to standard error. Unlike `eprintln!` it does not panic when nobody reads it any
/// more: that is no reason to end a machine.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}
pub(crate) use tell;

/// Prints `error`, one `nyx: ` line per problem, and returns the code for a refusal.
pub(crate) fn refuse(error: impl std::fmt::Display) -> ExitCode {
    for line in error.to_string().lines() {
        tell!("nyx: {line}");
    }
    ExitCode::from(REFUSED)
}
