//! Writes the guest's command line.

use std::fmt;

/// How the guest ends after the line `done` (`then=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// ACPI S5, as the FADT and `_S5_` say. The default.
    PowerOff,
    /// The FADT's reset register.
    Reset,
    /// The keyboard controller's reset command.
    ResetI8042,
    /// The reset control register at port 0xcf9.
    ResetCf9,
    /// An exception without an IDT.
    TripleFault,
    /// A panic of the guest itself, told to pvpanic.
    Panic,
    /// The event "panicked" at pvpanic's port.
    PvPanic,
    /// An endless loop in ring 3.
    Hang,
    /// HLT with interrupts off.
    Idle,
}

impl Ending {
    /// The word on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::PowerOff => "poweroff",
            Self::Reset => "reset",
            Self::ResetI8042 => "reset-i8042",
            Self::ResetCf9 => "reset-cf9",
            Self::TripleFault => "triple",
            Self::Panic => "panic",
            Self::PvPanic => "pvpanic",
            Self::Hang => "hang",
            Self::Idle => "idle",
        }
    }
}

/// A command line under construction.
#[derive(Clone, Debug, Default)]
pub struct Command {
    tests: Vec<String>,
    benches: Vec<String>,
    options: Vec<String>,
}

impl Command {
    /// Nothing to do but say `done` and power off.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a test of [`crate::TESTS`], one of those that only run when named (`initrd`, `blk-fill`,
    /// `blk-verify`), or `all`.
    #[must_use]
    pub fn test(mut self, name: &str) -> Self {
        self.tests.push(name.to_owned());
        self
    }

    /// Runs a bench for `count` iterations.
    #[must_use]
    pub fn bench(mut self, name: &str, count: u64) -> Self {
        self.benches.push(format!("{name}:{count}"));
        self
    }

    /// Sets `key=value`.
    #[must_use]
    pub fn option(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.options.push(format!("{key}={value}"));
        self
    }

    /// Ends in another way than by power-off.
    #[must_use]
    pub fn then(self, ending: Ending) -> Self {
        self.option("then", ending.word())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("test=", &self.tests, ","),
            ("bench=", &self.benches, ","),
            ("", &self.options, " "),
        ];
        let mut gap = "";
        for (key, words, between) in lists.into_iter().filter(|(_, words, _)| !words.is_empty()) {
            write!(f, "{gap}{key}{}", words.join(between))?;
            gap = " ";
        }
        Ok(())
    }
}
