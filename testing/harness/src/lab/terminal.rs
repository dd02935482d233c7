//! The user's terminal while it is lent to a command in the lab.

use std::io::IsTerminal;

use anyhow::{Context, Result, ensure};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal in raw mode; dropping it gives it back as it was.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts the terminal of standard input into raw mode: every key goes to the lab, Ctrl-C too.
    pub(crate) fn take() -> Result<Self> {
        let stdin = std::io::stdin();
        ensure!(
            stdin.is_terminal(),
            "an interactive command needs a terminal on standard input"
        );
        let before = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("cannot set the terminal")?;
        Ok(Self { before })
    }

    /// Its size as rows and columns; 24 by 80 if it has none.
    pub(crate) fn size(&self) -> (u16, u16) {
        match tcgetwinsize(std::io::stdin()) {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
            _ => (24, 80),
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing to do about a terminal that is gone.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}
