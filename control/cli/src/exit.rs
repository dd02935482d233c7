//! Exit codes and how failures are said, in one place because scripts rely on them.

use crate::output::{Format, format, printable};
use nyx_api::{Code, Problem};
use nyx_client::{CallError, FindError};
use std::process::ExitCode;

/// The guest switched itself off, or the command succeeded.
pub(crate) const SUCCESS: u8 = 0;
/// The request could not be carried out: bad description, missing file, device in use.
pub(crate) const REFUSED: u8 = 1;
/// The command line is wrong, which clap says too.
pub(crate) const USAGE: u8 = 2;
/// `nyx run`: the guest said that it panicked.
pub(crate) const GUEST_PANIC: u8 = 3;
/// `nyx run`: the guest's CPU gave up (triple fault).
pub(crate) const TRIPLE_FAULT: u8 = 4;
/// `nyx run`: the machine could not go on: KVM or a device failed.
pub(crate) const BROKEN: u8 = 5;
/// `nyx run`: somebody stopped the machine from outside.
pub(crate) const STOPPED: u8 = 6;
/// `nyx run`: somebody killed the machine.
pub(crate) const KILLED: u8 = 7;

/// All but `nyx run`: there is no such machine, device or operation.
pub(crate) const NOT_FOUND: u8 = 3;
/// All but `nyx run`: the machine does not answer.
pub(crate) const NO_ANSWER: u8 = 4;
/// All but `nyx run`: what was asked was cancelled.
pub(crate) const CANCELLED: u8 = 5;
/// The user interrupted the command with Ctrl-C, as shells count it.
pub(crate) const INTERRUPTED: u8 = 130;

/// What `nyx run --help` says about them.
pub(crate) const HELP: &str = "\
Exit codes:
  0  the guest switched itself off
  1  the request was refused: what, and how to mend it, is on standard error
  2  the command line is wrong
  3  the guest panicked (it said so)
  4  the guest's CPU gave up (triple fault)
  5  the machine could not go on: KVM or the host failed
  6  the machine was stopped from outside (Ctrl-A x, SIGTERM, SIGINT, nyx stop)
  7  the machine was killed (nyx kill)";

/// What `nyx --help` says about all others.
pub(crate) const HELP_OTHERS: &str = "\
Exit codes (`nyx run --help` lists those of `nyx run`):
    0  done
    1  refused, or tried and failed: what, and how to mend it, is on standard error
    2  the command line is wrong
    3  there is no such machine, device, console or operation
    4  the machine does not answer: it has ended, hangs, or is no Nyx machine
    5  the operation was cancelled
  130  interrupted with Ctrl-C

Machines are named by name, id, or the beginning of either. NAME, consoles and devices complete in
the shell after `source <(nyx completion bash)`. With `-o json` results and errors are JSON.";

/// Writes a line to standard error. Unlike `eprintln!` it does not panic when nobody reads it any
/// more: that is no reason to end a machine.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}
pub(crate) use tell;

/// Says something that is worth knowing and no failure.
pub(crate) fn note(text: &str) {
    match format() {
        Format::Json => tell!("{}", serde_json::json!({ "note": text })),
        Format::Text => tell!("nyx: note: {}", printable(text)),
    }
}

/// Prints `error`, one `nyx: ` line per problem, and returns the code for a refusal.
pub(crate) fn refuse(error: impl std::fmt::Display) -> ExitCode {
    ExitCode::from(Failure::new(REFUSED, error.to_string()).tell())
}

/// Why a command failed, for a person and for a program.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    message: String,
    // Boxed: every command returns a failure by value.
    problem: Option<Box<Problem>>,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            problem: None,
        }
    }

    /// One that needs no words.
    pub(crate) fn silent(code: u8) -> Self {
        Self::new(code, "")
    }

    /// Nobody reads the output any more, which is no failure.
    pub(crate) fn quiet() -> Self {
        Self::silent(SUCCESS)
    }

    /// Puts the machine's name before what was said, for commands that take several.
    #[must_use]
    pub(crate) fn of(mut self, machine: &str) -> Self {
        self.message = format!("{machine}: {}", self.message);
        self
    }

    fn kind(&self) -> &'static str {
        match self.code {
            USAGE => "usage",
            NOT_FOUND => "not-found",
            NO_ANSWER => "no-answer",
            CANCELLED => "cancelled",
            INTERRUPTED => "interrupted",
            _ => "refused",
        }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let mut error = serde_json::json!({
            "kind": self.kind(), "exit": self.code, "message": self.message,
        });
        if let Some(problem) = &self.problem {
            error["problem"] = serde_json::json!(problem);
        }
        serde_json::json!({ "error": error })
    }

    /// Says it on standard error and gives the exit code.
    pub(crate) fn tell(&self) -> u8 {
        match format() {
            _ if self.message.is_empty() => {}
            Format::Json => tell!("{}", self.json()),
            Format::Text => {
                for line in self.message.lines() {
                    // Some of it a machine said.
                    tell!("nyx: {}", printable(line));
                }
            }
        }
        self.code
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::new(REFUSED, message)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let code = match problem.code {
            Code::NotFound => NOT_FOUND,
            Code::Ended => NO_ANSWER,
            _ => REFUSED,
        };
        Self {
            code,
            message: problem.to_string(),
            problem: Some(Box::new(problem)),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(problem) => Self::from(*problem),
            error => Self::new(NO_ANSWER, error.to_string()),
        }
    }
}

impl From<FindError> for Failure {
    fn from(error: FindError) -> Self {
        let code = match error {
            FindError::NotFound { .. } | FindError::Ambiguous { .. } => NOT_FOUND,
            FindError::Dead { .. } => NO_ANSWER,
            FindError::Folder { .. } => REFUSED,
        };
        Self::new(code, error.to_string())
    }
}
