//! Network backends: TAP interfaces and unprivileged user-mode networking.
//!
//! [`open`] turns a [`BackendSpec`] into a [`NetBackend`]. `tap` hands frames to a host interface;
//! `user` runs slirp4netns as a process of its own, so that a hole in a TCP/IP stack is not a hole
//! in the machine monitor; `null` is a cable that is not plugged in.
//!
//! `unsafe` is used for the ioctls of TUN/TAP and of interfaces (`tap`, `interface`), to hand guest
//! buffers to `readv(2)` and `sendmsg(2)` (`port`), and between fork and exec (`user`).

mod address;
mod interface;
mod null;
mod port;
mod tap;
#[cfg(test)]
mod tests;
mod user;

pub use tap::TapConfig;
pub use user::UserConfig;

use nyx_device::{BackendKind, BackendSpec, NetBackend};
use serde::de::DeserializeOwned;
use std::io;

/// A network backend could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such kind.
    #[error("`{0}` is not a network backend: use tap, user or null")]
    Kind(String),
    /// The configuration does not fit the kind.
    #[error("network backend `{kind}`: {source}")]
    Config {
        /// The kind.
        kind: String,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// A field's value cannot be used.
    #[error("{field} `{value}` {why}")]
    Field {
        /// The configuration's field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong and how to mend it.
        why: String,
    },
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The user-mode network stack is not installed.
    #[error(
        "`user` networking needs slirp4netns, and `{0}` is not there: `sudo apt-get install slirp4netns` installs it"
    )]
    Absent(String),
    /// The user-mode network stack did not start.
    #[error("`user` networking: {program} {why}")]
    Stack {
        /// The program.
        program: String,
        /// What it did, and its last words.
        why: String,
    },
}

impl OpenError {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers pass numbers and texts alike"
    )]
    pub(crate) fn field(field: &'static str, value: impl ToString, why: impl Into<String>) -> Self {
        Self::Field {
            field,
            value: value.to_string(),
            why: why.into(),
        }
    }

    pub(crate) fn system(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System {
            action: action.into(),
            source: source.into(),
        }
    }
}

/// The kinds [`open`] knows.
pub const fn kinds() -> &'static [BackendKind] {
    &[
        BackendKind {
            name: "tap",
            summary: "a TAP interface of the host: named, created, or passed as file descriptors",
            example: r#"{"name": "nyx0", "queues": 1, "address": "10.1.2.1/24"}"#,
        },
        BackendKind {
            name: "user",
            summary: "the host's network without privileges, through slirp4netns",
            example: r#"{"network": "10.0.2.0/24", "forward": ["tcp:127.0.0.1:8080:80"], "dns": true, "host_loopback": false, "ipv6": false, "mtu": 1500}"#,
        },
        BackendKind {
            name: "null",
            summary: "no cable: frames vanish",
            example: "{}",
        },
    ]
}

/// Opens the backend that `spec` describes.
///
/// # Errors
///
/// One sentence naming field, value and mend. Nothing is left behind: no interface, no process.
pub fn open(spec: &BackendSpec) -> Result<Box<dyn NetBackend>, OpenError> {
    Ok(match spec.kind.as_str() {
        "tap" => Box::new(tap::Tap::open(&config(spec)?)?),
        "user" => Box::new(user::User::open(&config(spec)?)?),
        "null" => {
            let null::NullConfig {} = config(spec)?;
            Box::new(null::Null::open()?)
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
