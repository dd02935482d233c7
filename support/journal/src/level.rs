//! Severity levels, and how they map to those of `tracing` and syslog.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use tracing::Metadata;
use tracing_subscriber::filter::LevelFilter;

/// The field whose presence makes an ERROR event of `tracing` a FATAL entry; see [`crate::fatal!`].
pub const FATAL_MARKER: &str = "nyx_fatal";

/// How severe an entry is; as a threshold, the least severe that passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every step.
    Trace = 0,
    /// What a developer wants to see.
    Debug = 1,
    /// What an operator wants to see.
    #[default]
    Info = 2,
    /// Something is wrong, and the machine copes.
    Warn = 3,
    /// Something failed.
    Error = 4,
    /// The machine is about to stop.
    Fatal = 5,
    /// Only as a threshold: nothing passes.
    Off = 6,
}

/// A word that is no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a level; write trace, debug, info, warn, error, fatal or off")]
pub struct LevelError(pub(crate) String);

impl Level {
    /// All levels that an entry can have, least severe first.
    pub const ALL: [Self; 6] = [
        Self::Trace,
        Self::Debug,
        Self::Info,
        Self::Warn,
        Self::Error,
        Self::Fatal,
    ];

    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Fatal => "fatal",
            Self::Off => "off",
        }
    }

    /// The upper-case name, as the text form shows it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Off => "OFF",
        }
    }

    /// The severity of RFC 5424, section 6.2.1.
    pub const fn syslog_severity(self) -> u8 {
        match self {
            Self::Trace | Self::Debug | Self::Off => 7,
            Self::Info => 6,
            Self::Warn => 4,
            Self::Error => 3,
            Self::Fatal => 2,
        }
    }

    /// The level of what comes from a callsite of `tracing`.
    pub(crate) fn of(metadata: &Metadata<'_>) -> Self {
        match *metadata.level() {
            tracing::Level::TRACE => Self::Trace,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::INFO => Self::Info,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::ERROR => {
                if metadata.fields().field(FATAL_MARKER).is_some() {
                    Self::Fatal
                } else {
                    Self::Error
                }
            }
        }
    }

    /// The widest filter of `tracing` that lets this threshold through.
    pub(crate) fn as_tracing(self) -> LevelFilter {
        match self {
            Self::Trace => LevelFilter::TRACE,
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warn => LevelFilter::WARN,
            Self::Error | Self::Fatal => LevelFilter::ERROR,
            Self::Off => LevelFilter::OFF,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = LevelError;
    fn from_str(text: &str) -> Result<Self, LevelError> {
        Ok(match text.trim().to_ascii_lowercase().as_str() {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" => Self::Error,
            "fatal" => Self::Fatal,
            "off" | "none" => Self::Off,
            _ => return Err(LevelError(text.chars().take(64).collect())),
        })
    }
}

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}
