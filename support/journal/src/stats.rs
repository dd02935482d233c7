//! What the journal counts about itself.

use crate::level::Level;
use nyx_inspect::{Counter, Gauge, Inspect, Visitor};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Counts of one journal; shared, lock-free but for the list of outputs.
#[derive(Debug, Default, Inspect)]
pub struct JournalStats {
    /// Entries written, by level.
    pub entries: LevelCounts,
    /// Entries that left the ring because newer ones needed their place.
    pub overwritten: Counter,
    /// Entries left out because their component wrote too many.
    pub left_out: Counter,
    /// Entries written while the same thread was writing one (from a watcher), and lost.
    pub nested: Counter,
    /// Entries that feeds and watchers had no room for.
    pub feed_dropped: Counter,
    /// Entries that could not be written to the ring's file and are held in memory instead.
    pub ring_file_failures: Counter,
    /// Records of the audit trail.
    pub audit_records: Counter,
    /// The outputs, by name.
    pub outputs: Outputs,
}

/// A count for each level.
#[derive(Debug, Default, Inspect)]
pub struct LevelCounts {
    /// TRACE entries.
    pub trace_entries: Counter,
    /// DEBUG entries.
    pub debug_entries: Counter,
    /// INFO entries.
    pub info_entries: Counter,
    /// WARN entries.
    pub warn_entries: Counter,
    /// ERROR entries.
    pub error_entries: Counter,
    /// FATAL entries.
    pub fatal_entries: Counter,
}

impl LevelCounts {
    /// The count of one level.
    pub fn of(&self, level: Level) -> &Counter {
        match level {
            Level::Trace => &self.trace_entries,
            Level::Debug => &self.debug_entries,
            Level::Info => &self.info_entries,
            Level::Warn => &self.warn_entries,
            Level::Error => &self.error_entries,
            Level::Fatal | Level::Off => &self.fatal_entries,
        }
    }
}

/// Counts of one output.
#[derive(Debug, Default, Inspect)]
pub struct OutputStats {
    /// Entries that got through.
    pub written: Counter,
    /// Entries that were lost because the output could not keep up or refused them.
    pub dropped: Counter,
    /// Failed attempts to write, connect or rotate.
    pub failures: Counter,
    /// Entries that wait.
    pub queued: Gauge,
}

/// The counts of all outputs. They come and go at run time.
#[derive(Debug, Default)]
pub struct Outputs(Mutex<BTreeMap<String, Arc<OutputStats>>>);

impl Outputs {
    /// The counts of the output `name`, such as `file1`.
    pub fn get(&self, name: &str) -> Option<Arc<OutputStats>> {
        self.0.lock().get(name).cloned()
    }

    /// The names of all outputs.
    pub fn names(&self) -> Vec<String> {
        self.0.lock().keys().cloned().collect()
    }

    pub(crate) fn insert(&self, name: &str) -> Arc<OutputStats> {
        Arc::clone(self.0.lock().entry(name.into()).or_default())
    }

    pub(crate) fn remove(&self, name: &str) {
        self.0.lock().remove(name);
    }
}

impl Inspect for Outputs {
    fn inspect(&self, v: &mut dyn Visitor) {
        // Copied first: a visitor must not run under the lock.
        let outputs = self.0.lock().clone();
        for (name, stats) in &outputs {
            v.child(name, &**stats);
        }
    }
}
