//! Character backends: stdio, pseudo-terminals, files and Unix sockets.
//!
//! [`open`] turns a [`BackendSpec`] into a [`CharBackend`]. A backend costs no thread and no
//! wake-up until `notify` is called, and afterwards one thread that sleeps until something happens.
//!
//! `unsafe` is used in one module, `terminal`, to install the signal handlers that give the user's
//! terminal back whatever ends the process.

mod escape;
mod file;
mod null;
mod pty;
mod socket;
mod stdio;
mod terminal;
#[cfg(test)]
mod tests;
mod watch;

pub use escape::{Escape, EscapeFilter, HELP};
pub use file::FileConfig;
pub use pty::PtyConfig;
pub use socket::SocketConfig;
pub use stdio::StdioConfig;

use nyx_device::{BackendKind, BackendSpec, CharBackend};
use serde::de::DeserializeOwned;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Told about escapes typed on the terminal, on the thread that reads the backend. Must not block.
pub type OnEscape = Arc<dyn Fn(Escape) + Send + Sync>;

/// A character backend could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such kind.
    #[error("`{0}` is not a character backend: use stdio, pty, file, socket or null")]
    Kind(String),
    /// The configuration does not fit the kind.
    #[error("character backend `{kind}`: {source}")]
    Config {
        /// The kind.
        kind: String,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// Another console has the terminal.
    #[error(
        "`stdio` is already used by another console: give this one `pty`, `socket`, `file` or `null`"
    )]
    StdioTaken,
    /// A path cannot be used.
    #[error("{field} `{}` {why}", .path.display())]
    Path {
        /// The configuration's field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
        /// What is wrong and how to mend it.
        why: &'static str,
    },
    /// The kernel refused a path.
    #[error("cannot {action} {field} `{}`: {source}", .path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The configuration's field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused something that no field names.
    #[error("cannot {action}: {source}")]
    Resource {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The kinds [`open`] knows.
pub const fn kinds() -> &'static [BackendKind] {
    &[
        BackendKind {
            name: "stdio",
            summary: "the terminal or pipes nyx was started with",
            example: r#"{"raw": true, "escape": true}"#,
        },
        BackendKind {
            name: "pty",
            summary: "a new pseudo-terminal, with an optional symbolic link to it",
            example: r#"{"link": "/run/user/1000/web1.tty"}"#,
        },
        BackendKind {
            name: "file",
            summary: "a file that takes the output, optionally bounded",
            example: r#"{"path": "web1.log", "append": true, "max_size": 1048576}"#,
        },
        BackendKind {
            name: "socket",
            summary: "a listening Unix socket for one client at a time",
            example: r#"{"path": "/run/user/1000/web1.console"}"#,
        },
        BackendKind {
            name: "null",
            summary: "nothing: no input, output discarded",
            example: "{}",
        },
    ]
}

/// Opens the backend that `spec` describes. Escapes go to `on_escape`; without it, quitting sends
/// SIGTERM to this process.
///
/// # Errors
///
/// One sentence naming field, value and mend. Nothing is left behind.
pub fn open(
    spec: &BackendSpec,
    on_escape: Option<OnEscape>,
) -> Result<Box<dyn CharBackend>, OpenError> {
    Ok(match spec.kind.as_str() {
        "stdio" => Box::new(stdio::Stdio::open(&config(spec)?, on_escape)?),
        "pty" => Box::new(pty::Pty::open(config(spec)?)?),
        "file" => Box::new(file::LogFile::open(config(spec)?)?),
        "socket" => Box::new(socket::Socket::open(config(spec)?)?),
        "null" => {
            let null::NullConfig {} = config(spec)?;
            Box::new(null::Null)
        }
        other => return Err(OpenError::Kind(other.to_owned())),
    })
}

fn config<T: DeserializeOwned>(spec: &BackendSpec) -> Result<T, OpenError> {
    let value = match &spec.config {
        serde_json::Value::Null => serde_json::Value::Object(serde_json::Map::new()),
        other => other.clone(),
    };
    serde_json::from_value(value).map_err(|source| OpenError::Config {
        kind: spec.kind.clone(),
        source,
    })
}
