//! How a machine ended, and the exit code for it.

use nyx_vmm::Ending as Inner;
use std::fmt;
use std::process::{ExitCode, Termination};

/// How a machine ended.
///
/// `fn main() -> nyx::Ending` ends a program with the exit code that `nyx run` has for the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest switched itself off.
    PoweredOff,
    /// Somebody stopped it.
    Stopped,
    /// Somebody killed it: nothing was written back.
    Killed,
    /// The guest said that it panicked.
    GuestPanic,
    /// The guest's CPU gave up (triple fault).
    TripleFault {
        /// Which vCPU.
        vcpu: u32,
    },
    /// The machine could not go on.
    Broken(String),
}

impl Ending {
    /// The exit code of `nyx run` for it: 0 when the guest switched itself off, 3 when it panicked, 4 for
    /// a triple fault, 5 when the machine could not go on, 6 when it was stopped, 7 when it was killed.
    ///
    /// Other documents have 1 for a triple fault; Nyx gives that to what is refused before it starts.
    pub fn exit_code(&self) -> i32 {
        i32::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::PoweredOff => 0,
            Self::GuestPanic => 3,
            Self::TripleFault { .. } => 4,
            Self::Broken(_) => 5,
            Self::Stopped => 6,
            Self::Killed => 7,
        }
    }

    /// Whether the guest ended of its own will.
    pub fn is_clean(&self) -> bool {
        *self == Self::PoweredOff
    }

    /// Whether the guest or the machine failed.
    pub fn is_crash(&self) -> bool {
        matches!(
            self,
            Self::GuestPanic | Self::TripleFault { .. } | Self::Broken(_)
        )
    }
}

impl From<Inner> for Ending {
    fn from(ending: Inner) -> Self {
        match ending {
            Inner::PoweredOff => Self::PoweredOff,
            Inner::Stopped => Self::Stopped,
            Inner::Killed => Self::Killed,
            Inner::GuestPanic => Self::GuestPanic,
            Inner::TripleFault { vcpu } => Self::TripleFault { vcpu },
            Inner::Broken(why) => Self::Broken(why),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest switched itself off"),
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::Killed => f.write_str("the machine was killed"),
            Self::GuestPanic => f.write_str("the guest panicked"),
            Self::TripleFault { vcpu } => {
                write!(f, "the guest's CPU {vcpu} gave up (triple fault)")
            }
            Self::Broken(why) => write!(f, "the machine could not go on: {why}"),
        }
    }
}

impl Termination for Ending {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_command() {
        let codes = [
            (Inner::PoweredOff, 0),
            (Inner::GuestPanic, 3),
            (Inner::TripleFault { vcpu: 1 }, 4),
            (Inner::Broken("x".into()), 5),
            (Inner::Stopped, 6),
            (Inner::Killed, 7),
        ];
        for (ending, code) in codes {
            let ending = Ending::from(ending);
            assert_eq!(ending.exit_code(), code, "{ending}");
            assert_eq!(ending.is_clean(), code == 0);
            assert_eq!(ending.is_crash(), (3..=5).contains(&code));
        }
    }
}
