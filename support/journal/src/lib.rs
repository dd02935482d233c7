//! The journal: levels, component filters, outputs, a ring that outlives a crash, the audit chain, spans.
//!
//! Built on `tracing`: the component of an entry is the `target` of the event, and [`fatal!`] adds
//! the one level that `tracing` lacks.
//!
//! ```
//! use nyx_journal::{Journal, JournalConfig, Level, Origin, Query, fatal};
//!
//! let journal = Journal::new(&JournalConfig::default(), &Origin::default())?;
//! tracing::subscriber::with_default(journal.subscriber(), || {
//!     tracing::warn!(target: "device", unit = "disk0", "slow by {} ms", 120);
//!     fatal!(target: "vm", "out of memory");
//! });
//! let errors = journal.entries(&Query { level: Some(Level::Error), ..Query::last(10) });
//! assert_eq!(errors[0].without_time().to_string(), "[FATAL] vm: out of memory");
//! # Ok::<(), nyx_journal::JournalError>(())
//! ```
#![forbid(unsafe_code)]

pub mod audit;
mod config;
mod entry;
mod filter;
mod journal;
mod layer;
mod level;
mod options;
mod output;
mod query;
mod rate;
mod ring;
mod rotation;
mod stats;
mod time;
mod tracer;
mod value;

pub use config::{
    AuditConfig, Bytes, Colour, ConsoleOutput, Facility, FileOutput, Format, Fsync, JournalConfig,
    JournalError, NetworkOutput, NetworkTransport, OutputConfig, Preset, Rotate, Stream,
    SyslogOutput, SyslogTransport, TraceConfig,
};
pub use entry::{Entry, Fields, MAX_FIELD, MAX_MESSAGE, Value};
pub use filter::{Filter, FilterError, MAX_RULES, Pattern};
pub use journal::{Feed, Journal, Origin, OutputId};
pub use layer::JournalLayer;
pub use level::{FATAL_MARKER, Level, LevelError};
pub use query::Query;
pub use ring::{Recovered, parse_ring, previous_ring, read_ring};
pub use stats::{JournalStats, LevelCounts, OutputStats, Outputs};
pub use time::{Timestamp, TimestampError};
pub use tracer::{Span, SpanFigures, TraceSummary};

/// What [`fatal!`] expands to; not for use.
#[doc(hidden)]
pub use tracing as __tracing;

/// Writes a FATAL entry: the machine is about to stop. Takes what `tracing::error!` takes; it is an
/// ERROR event with the field [`FATAL_MARKER`].
#[macro_export]
macro_rules! fatal {
    (target: $target:expr, $($rest:tt)+) => {
        $crate::__tracing::error!(target: $target, nyx_fatal = true, $($rest)+)
    };
    ($($rest:tt)+) => {
        $crate::__tracing::error!(nyx_fatal = true, $($rest)+)
    };
}
