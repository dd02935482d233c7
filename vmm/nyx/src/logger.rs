//! The process's journal, under the names that documents of Nyx know.

use crate::refusal::{BuildError, BuildErrorKind};
use nyx_journal::{
    Entry, Journal, JournalConfig, JournalError, Level, Origin, OutputConfig, OutputId, Pattern,
    Query, Timestamp, TraceSummary,
};
use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A process has one journal, as it has one subscriber of `tracing`.
static JOURNAL: OnceLock<Journal> = OnceLock::new();

/// The journal of a process with machines that were built
/// [`with_logging`](crate::VmBuilder::with_logging). All machines of a process share it; the description
/// of the first one counts.
#[derive(Clone)]
pub struct Logger(Journal);

impl Logger {
    /// The process's journal, made as `config` says if there is none yet.
    pub(crate) fn install(config: &JournalConfig, vm: &str) -> Result<Self, BuildError> {
        if let Some(journal) = JOURNAL.get() {
            return Ok(Self(journal.clone()));
        }
        let origin = Origin {
            vm: Some(vm.into()),
            ring: None,
        };
        let refused = |kind, why: String| BuildError::new(kind, "with_logging", why);
        match Journal::install(config, &origin) {
            Ok(journal) => Ok(Self(JOURNAL.get_or_init(|| journal).clone())),
            Err(JournalError::Installed) => match JOURNAL.get() {
                // Another thread was quicker.
                Some(journal) => Ok(Self(journal.clone())),
                None => Err(refused(
                    BuildErrorKind::Host,
                    "this process has a subscriber of `tracing` already, which hears of the machine; leave it out"
                        .into(),
                )),
            },
            Err(e @ JournalError::Open { .. }) => Err(refused(BuildErrorKind::File, e.to_string())),
            Err(e) => Err(refused(BuildErrorKind::Invalid, e.to_string())),
        }
    }

    /// The journal itself.
    pub fn journal(&self) -> &Journal {
        &self.0
    }

    /// Every entry that is kept, oldest first.
    pub fn dump_buffer(&self) -> Vec<Entry> {
        self.0.entries(&Query::default())
    }

    /// The entries of `component` that are kept (`device`, or a prefix: `dev*`).
    ///
    /// # Errors
    ///
    /// It is no component's name.
    pub fn dump_component(&self, component: &str) -> Result<Vec<Entry>, JournalError> {
        let component = Some(component.parse::<Pattern>()?);
        Ok(self.0.entries(&Query {
            component,
            ..Query::default()
        }))
    }

    /// The entries since `time`.
    pub fn dump_since(&self, time: SystemTime) -> Vec<Entry> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        self.0.entries(&Query {
            since: Some(Timestamp::from_micros(micros)),
            ..Query::default()
        })
    }

    /// The entries of at least `level`, of one component if one is named.
    ///
    /// # Errors
    ///
    /// It is no component's name.
    pub fn get_logs(
        &self,
        level: Level,
        component: Option<&str>,
    ) -> Result<Vec<Entry>, JournalError> {
        let component = component.map(str::parse::<Pattern>).transpose()?;
        Ok(self.0.entries(&Query {
            level: Some(level),
            component,
            ..Query::default()
        }))
    }

    /// The last ERROR or FATAL.
    pub fn get_last_error(&self) -> Option<Entry> {
        self.0.last_error()
    }

    /// Forgets what is kept.
    pub fn clear_logs(&self) {
        self.0.clear();
    }

    /// From which level on entries of `component` are taken.
    pub fn get_logger_level(&self, component: &str) -> Level {
        self.0.filter().threshold(component)
    }

    /// Takes entries of `component` (`device`, `dev*`, `*`) from `level` on.
    ///
    /// # Errors
    ///
    /// It is no component's name, or there are too many rules.
    pub fn set_logger_level(&self, component: &str, level: Level) -> Result<(), JournalError> {
        self.0.set_level(component.parse()?, level)
    }

    /// Adds an output, written as for `nyx run --log-to`: `console`, `file,path=P,rotate=daily`,
    /// `syslog,address=…`, `network,address=…`.
    ///
    /// # Errors
    ///
    /// It makes no sense, or its file cannot be used.
    pub fn register_output(&self, output: &str) -> Result<OutputId, JournalError> {
        self.0.add_output(&output.parse::<OutputConfig>()?)
    }

    /// Calls `callback` with every entry from `level` on, on a thread of its own.
    pub fn set_output_callback(
        &self,
        level: Level,
        callback: impl FnMut(&Entry) + Send + 'static,
    ) -> OutputId {
        self.0.add_callback(level, callback)
    }

    /// Waits until every output has what is there now; whether it has.
    pub fn flush(&self, limit: Duration) -> bool {
        self.0.flush(limit)
    }

    /// Writes the spans of machines built
    /// [`with_performance_tracing`](crate::VmBuilder::with_performance_tracing), as JSON for Perfetto.
    ///
    /// # Errors
    ///
    /// `out` cannot be written.
    pub fn export_trace(&self, out: &mut dyn Write) -> io::Result<()> {
        self.0.export_trace(out)
    }

    /// Figures about the spans: how many, how long, the slowest.
    pub fn trace_summary(&self) -> TraceSummary {
        self.0.trace_summary()
    }
}
