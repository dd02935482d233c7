//! Entries on standard error or standard output.

use super::{Fault, Sink};
use crate::config::{Colour, ConsoleOutput, Format, JournalError, Stream};
use crate::entry::Entry;
use rustix::termios::OutputModes;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd};

pub(crate) struct Console {
    /// A descriptor of its own: the lock of the standard stream must not be held by a write that
    /// blocks.
    stream: File,
    is_terminal: bool,
    format: Format,
    colour: bool,
    timestamps: bool,
    /// What is left of a line that went out in part.
    rest: Vec<u8>,
}

fn wants_colour() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_dumb && !refused
}

impl Console {
    pub(crate) fn open(config: &ConsoleOutput, field: &str) -> Result<Self, JournalError> {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let stream = match config.stream {
            Stream::Stderr => stderr.as_fd(),
            Stream::Stdout => stdout.as_fd(),
        };
        let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
        let stream = stream
            .try_clone_to_owned()
            .map_err(|source| JournalError::Open {
                field: format!("{field}.stream"),
                path: path.into(),
                source,
            })?;
        let stream = File::from(stream);
        let is_terminal = stream.is_terminal();
        Ok(Self {
            colour: config.format == Format::Text
                && match config.colour {
                    Colour::Auto => is_terminal && wants_colour(),
                    Colour::Always => true,
                    Colour::Never => false,
                },
            is_terminal,
            stream,
            format: config.format,
            timestamps: config.timestamps,
            rest: Vec::new(),
        })
    }

    /// Whether the terminal takes `\n` literally, as it does while a guest's console is on it.
    fn is_raw(&self) -> bool {
        self.is_terminal
            && rustix::termios::tcgetattr(&self.stream)
                .is_ok_and(|modes| !modes.output_modes.contains(OutputModes::OPOST))
    }

    fn put(&mut self) -> io::Result<()> {
        while !self.rest.is_empty() {
            match self.stream.write(&self.rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.rest.drain(..count)),
                // Whoever shares the terminal may have made it non-blocking.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    super::stream::wait_writable(&self.stream)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Sink for Console {
    fn write(&mut self, entry: &Entry) -> Result<(), Fault> {
        let mut line = match self.format {
            Format::Text => entry.text(self.timestamps, self.colour).to_string(),
            Format::Json => serde_json::to_string(entry).map_err(|_| Fault::Refused)?,
        };
        line.push_str(if self.is_raw() { "\r\n" } else { "\n" });
        self.rest = line.into_bytes();
        self.put().map_err(|e| {
            self.rest.clear();
            Fault::Again(e)
        })
    }
}
