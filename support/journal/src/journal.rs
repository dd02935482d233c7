//! The journal of a process: where entries come together and go out again.

use crate::audit::Trail;
use crate::config::{JournalConfig, JournalError, OutputConfig};
use crate::entry::{Entry, Fields};
use crate::filter::{Filter, Pattern};
use crate::layer::JournalLayer;
use crate::level::Level;
use crate::output::{self, Callback, Outlet, Sink, Stop, Taste};
use crate::query::Query;
use crate::rate::{Rate, Verdict};
use crate::ring::Ring;
use crate::stats::JournalStats;
use crate::time::Timestamp;
use crate::tracer::{Span, TraceSummary, Tracer};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::cell::Cell;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry;

/// Whose journal it is, and where its ring outlives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The machine's name, which network outputs and the audit trail carry.
    pub vm: Option<String>,
    /// The file of the ring, best on a file system in memory; without it the ring is in memory.
    pub ring: Option<PathBuf>,
}

/// The number of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutputId(u64);

/// Sees an entry; whether it wants to see more.
type Call = Box<dyn FnMut(&Arc<Entry>) -> bool + Send>;

struct Watcher {
    call: Call,
    is_wanted: Box<dyn Fn() -> bool + Send>,
}

struct State {
    ring: Ring,
    sequence: u64,
    last_error: Option<Arc<Entry>>,
    outlets: Vec<Arc<Outlet>>,
    watchers: Vec<Watcher>,
    next_output: u64,
}

pub(crate) struct Core {
    filter: ArcSwap<Filter>,
    /// Components whose entries no filter may hold back.
    audited: Vec<Pattern>,
    pub(crate) tracer: Tracer,
    rate: Rate,
    state: Mutex<State>,
    stats: Arc<JournalStats>,
    origin: Origin,
}

thread_local! {
    /// This thread is writing an entry.
    static IS_EMITTING: Cell<bool> = const { Cell::new(false) };
}

impl Core {
    pub(crate) fn stats(&self) -> &JournalStats {
        &self.stats
    }

    /// Whether entries of this callsite are written.
    pub(crate) fn logs(&self, metadata: &Metadata<'_>) -> bool {
        let component = metadata.target();
        self.filter.load().passes(component, Level::of(metadata)) || self.audits(component)
    }

    fn audits(&self, component: &str) -> bool {
        self.audited
            .iter()
            .any(|pattern| pattern.matches(component))
    }

    /// Whether an entry may be written that a component wants to write now.
    pub(crate) fn admits(&self, component: &'static str, level: Level) -> bool {
        if level == Level::Fatal || self.audits(component) {
            return true;
        }
        let (message, left_out) = match self.rate.ask(component, Instant::now()) {
            Verdict::Write => return true,
            Verdict::Resume(left_out) => (
                format!("component {component} writes at a usual rate again"),
                Some(left_out),
            ),
            Verdict::Begin => {
                let limit = self.rate.limit;
                (
                    format!(
                        "component {component} writes more than {limit} entries a second; the rest is left out"
                    ),
                    None,
                )
            }
            Verdict::Drop => {
                self.stats.left_out.inc();
                return false;
            }
        };
        let fields = left_out.map(|count| ("left_out".into(), count.into()));
        self.emit(
            "journal",
            Level::Warn,
            message,
            fields.into_iter().collect(),
            None,
        );
        if left_out.is_none() {
            self.stats.left_out.inc();
        }
        left_out.is_some()
    }

    /// The least severe level that anything here may want.
    pub(crate) fn widest(&self) -> Level {
        if self.audited.is_empty() {
            self.filter.load().widest().min(self.tracer.threshold())
        } else {
            Level::Trace
        }
    }

    /// Writes an entry to the ring and hands it to outputs, but not to the output `except`.
    pub(crate) fn emit(
        &self,
        component: &'static str,
        level: Level,
        message: String,
        fields: Fields,
        except: Option<u64>,
    ) {
        // A watcher that logs would wait for itself.
        if IS_EMITTING.replace(true) {
            self.stats.nested.inc();
            return;
        }
        let failed = self.write(component, level, message, fields, except);
        IS_EMITTING.set(false);
        if let Some(reason) = failed {
            let message = format!(
                "the file of the ring cannot be written: {reason}; entries are held in memory"
            );
            self.emit("journal", Level::Warn, message, Fields::new(), None);
        }
    }

    fn write(
        &self,
        component: &'static str,
        level: Level,
        message: String,
        fields: Fields,
        except: Option<u64>,
    ) -> Option<String> {
        self.stats.entries.of(level).inc();
        let mut state = self.state.lock();
        state.sequence += 1;
        let entry = Arc::new(Entry {
            sequence: state.sequence,
            // Under the lock, so that times have the order of the numbers.
            time: Timestamp::now(),
            level,
            component: component.into(),
            message,
            fields,
        });
        let pushed = state.ring.push(&entry);
        self.stats.overwritten.add(pushed.overwritten);
        if pushed.held {
            self.stats.ring_file_failures.inc();
        }
        if level >= Level::Error {
            state.last_error = Some(Arc::clone(&entry));
        }
        for outlet in &state.outlets {
            if except != Some(outlet.id) {
                outlet.offer(&entry);
            }
        }
        state
            .watchers
            .retain_mut(|watcher| (watcher.is_wanted)() && (watcher.call)(&entry));
        pushed.failed
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        for outlet in &self.state.get_mut().outlets {
            outlet.close();
        }
    }
}

/// A handle to the journal; clones are the same journal.
#[derive(Clone)]
pub struct Journal(Arc<Core>);

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("origin", &self.0.origin)
            .field("stats", &self.0.stats)
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Makes a journal that receives nothing yet; see [`Journal::layer`] and [`Journal::install`].
    /// Opens files; networks are reached when there is something to send.
    ///
    /// # Errors
    /// The description makes no sense, or a file cannot be used.
    pub fn new(config: &JournalConfig, origin: &Origin) -> Result<Self, JournalError> {
        config.validate()?;
        let stats = Arc::new(JournalStats::default());
        let ring = Ring::new(config.entries as usize, origin.ring.as_deref())?;
        let audited = config.audit.as_ref().map(|audit| audit.components.clone());
        let journal = Self(Arc::new(Core {
            filter: ArcSwap::from_pointee(config.filter()?),
            audited: audited.unwrap_or_default(),
            tracer: Tracer::new(&config.trace),
            rate: Rate::new(config.rate),
            state: Mutex::new(State {
                ring,
                sequence: 0,
                last_error: None,
                outlets: Vec::new(),
                watchers: Vec::new(),
                next_output: 0,
            }),
            stats: Arc::clone(&stats),
            origin: origin.clone(),
        }));
        for (index, output) in config.outputs.iter().enumerate() {
            journal.open_output(output, &format!("outputs[{index}]"))?;
        }
        if let Some(audit) = &config.audit {
            let trail = Trail::open(audit, origin.vm.as_deref(), stats)?;
            let taste = Taste {
                level: Level::Trace,
                components: audit.components.clone(),
            };
            journal.add("audit", taste, Stop::default(), Box::new(trail));
        }
        Ok(journal)
    }

    /// Makes a journal and sends all events and spans of this process to it.
    ///
    /// # Errors
    /// As [`Journal::new`]; or something else receives the events already.
    pub fn install(config: &JournalConfig, origin: &Origin) -> Result<Self, JournalError> {
        let journal = Self::new(config, origin)?;
        tracing::subscriber::set_global_default(journal.subscriber())
            .map_err(|_| JournalError::Installed)?;
        Ok(journal)
    }

    /// A subscriber of `tracing` that feeds this journal, such as for
    /// `tracing::subscriber::with_default` in a test.
    pub fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        registry().with(self.layer())
    }

    /// A layer of `tracing-subscriber` that feeds this journal. Its filter holds for the layers
    /// beside it too.
    pub fn layer(&self) -> JournalLayer {
        JournalLayer::new(Arc::clone(&self.0))
    }

    /// Writes an entry without `tracing`. No filter applies.
    pub fn write(&self, component: &'static str, level: Level, message: &str, fields: Fields) {
        if level != Level::Off {
            self.0.emit(component, level, message.into(), fields, None);
        }
    }

    /// The entries of the ring that match, oldest first.
    pub fn entries(&self, query: &Query) -> Vec<Entry> {
        let view = self.0.state.lock().ring.view(query);
        view.read(query)
    }

    /// The newest entry of level ERROR or FATAL, even if it has left the ring.
    pub fn last_error(&self) -> Option<Entry> {
        let state = self.0.state.lock();
        state.last_error.as_deref().cloned()
    }

    /// The number of the newest entry.
    pub fn newest(&self) -> u64 {
        self.0.state.lock().sequence
    }

    /// Empties the ring, and forgets the last error. Numbers go on.
    pub fn clear(&self) {
        let mut state = self.0.state.lock();
        let newest = state.sequence;
        state.ring.clear(newest);
        state.last_error = None;
    }

    /// A feed of the entries to come that match `query`, of which up to `room` wait to be taken;
    /// what comes beyond is lost and counted.
    pub fn subscribe(&self, query: Query, room: usize) -> Feed {
        let (sender, receiver) = sync_channel(room.clamp(1, 65_536));
        let stats = Arc::clone(&self.0.stats);
        let alive = Arc::new(());
        self.watch_for(&alive, move |(), entry| {
            if query.matches(entry) {
                offer(&sender, entry, &stats);
            }
        });
        Feed {
            receiver,
            _alive: alive,
        }
    }

    /// Calls `watcher` with every entry to come, in order, until it answers false. It runs where
    /// the entry is written, under the journal's lock: it must not block, must not call the
    /// journal, and what it logs is lost (and counted).
    pub fn watch(&self, watcher: impl FnMut(&Arc<Entry>) -> bool + Send + 'static) {
        self.add_watcher(Watcher {
            call: Box::new(watcher),
            is_wanted: Box::new(|| true),
        });
    }

    /// As [`Journal::watch`], for as long as `owner` exists: nothing is left of it afterwards, even
    /// if no more entry comes. `watcher` must not be what keeps `owner` alive.
    pub fn watch_for<T: Send + Sync + 'static>(
        &self,
        owner: &Arc<T>,
        mut watcher: impl FnMut(&T, &Arc<Entry>) + Send + 'static,
    ) {
        let (called, wanted) = (Arc::downgrade(owner), Arc::downgrade(owner));
        self.add_watcher(Watcher {
            call: Box::new(move |entry| match called.upgrade() {
                Some(owner) => {
                    watcher(&owner, entry);
                    true
                }
                None => false,
            }),
            is_wanted: Box::new(move || wanted.strong_count() > 0),
        });
    }

    fn add_watcher(&self, watcher: Watcher) {
        let mut state = self.0.state.lock();
        // Whoever comes and goes while nothing is written must not leave more and more behind.
        state.watchers.retain(|watcher| (watcher.is_wanted)());
        state.watchers.push(watcher);
    }

    /// The filter in force.
    pub fn filter(&self) -> Filter {
        (**self.0.filter.load()).clone()
    }

    /// Replaces the filter; holds for every entry written after the return.
    pub fn set_filter(&self, filter: Filter) {
        self.0.filter.store(Arc::new(filter));
        tracing::callsite::rebuild_interest_cache();
    }

    /// Sets the level of one component, or of a prefix with `*`; the rest of the filter stays.
    ///
    /// # Errors
    /// The filter would have too many rules.
    pub fn set_level(&self, component: Pattern, level: Level) -> Result<(), JournalError> {
        let mut filter = self.filter();
        filter.set(component, level)?;
        self.set_filter(filter);
        Ok(())
    }

    fn open_output(&self, config: &OutputConfig, field: &str) -> Result<OutputId, JournalError> {
        let stop = Stop::default();
        let sink = output::open(config, field, &self.0.origin, &stop)?;
        let taste = Taste {
            level: config.level(),
            components: Vec::new(),
        };
        Ok(self.add(config.kind(), taste, stop, sink))
    }

    fn add(&self, kind: &str, taste: Taste, stop: Stop, sink: Box<dyn Sink>) -> OutputId {
        let mut state = self.0.state.lock();
        let id = state.next_output;
        state.next_output += 1;
        let name = format!("{kind}{id}");
        let outlet = Outlet::new(id, name, taste, stop, sink, &self.0);
        state.outlets.push(outlet);
        OutputId(id)
    }

    /// Adds an output at run time.
    ///
    /// # Errors
    /// The description makes no sense, or a file cannot be used.
    pub fn add_output(&self, config: &OutputConfig) -> Result<OutputId, JournalError> {
        self.open_output(config, "output")
    }

    /// Adds an output that is a function. It gets every entry of at least `level`, in order, on a
    /// thread of its own, so it may block. If it panics, that is said and it is not called again.
    pub fn add_callback(
        &self,
        level: Level,
        call: impl FnMut(&Entry) + Send + 'static,
    ) -> OutputId {
        let taste = Taste {
            level,
            components: Vec::new(),
        };
        self.add(
            "callback",
            taste,
            Stop::default(),
            Box::new(Callback::new(call)),
        )
    }

    /// Takes an output away; what waits for it is still written if that works at once. Whether
    /// there was such an output.
    pub fn remove_output(&self, output: OutputId) -> bool {
        let mut state = self.0.state.lock();
        let Some(index) = state.outlets.iter().position(|o| o.id == output.0) else {
            return false;
        };
        let outlet = state.outlets.remove(index);
        drop(state);
        outlet.close();
        self.0.stats.outputs.remove(&outlet.name);
        true
    }

    /// Waits until all outputs have written what was there before the call; whether they have.
    pub fn flush(&self, limit: Duration) -> bool {
        let until = deadline(limit);
        let outlets = self.0.state.lock().outlets.clone();
        settle(&outlets, until)
    }

    /// Ends the outputs and seals the audit trail; whether that was done in time. To be called before
    /// the process ends; the ring works on.
    pub fn close(&self, limit: Duration) -> bool {
        let until = deadline(limit);
        let outlets = std::mem::take(&mut self.0.state.lock().outlets);
        // A part of the time is for what waits.
        settle(&outlets, deadline(limit / 2));
        for outlet in &outlets {
            outlet.close();
        }
        let open = outlets.iter().filter(|outlet| !outlet.wait_closed(until));
        open.count() == 0
    }

    /// What the journal counts about itself; can be inspected.
    pub fn stats(&self) -> Arc<JournalStats> {
        Arc::clone(&self.0.stats)
    }

    /// Switches the span tracer on or off. Spans that are open when it is switched on are not seen.
    pub fn set_tracing(&self, on: bool) {
        self.0.tracer.switch(on);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Whether spans are recorded.
    pub fn is_tracing(&self) -> bool {
        self.0.tracer.is_on()
    }

    /// The newest `last` spans, in the order of their ends.
    pub fn spans(&self, last: usize) -> Vec<Span> {
        self.0.tracer.spans(last)
    }

    /// Figures over all spans.
    pub fn trace_summary(&self) -> TraceSummary {
        self.0.tracer.summary()
    }

    /// Forgets all spans and figures.
    pub fn clear_trace(&self) {
        self.0.tracer.clear();
    }

    /// Writes the spans as JSON for Perfetto or Chrome's about:tracing (Trace Event Format).
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn export_trace(&self, out: &mut dyn Write) -> io::Result<()> {
        let process = match &self.0.origin.vm {
            Some(vm) => format!("nyx {vm}"),
            None => "nyx".into(),
        };
        self.0.tracer.export(&process, out)
    }
}

/// A day is as good as for ever, and an `Instant` can hold it.
fn deadline(limit: Duration) -> Instant {
    Instant::now() + limit.min(Duration::from_secs(86_400))
}

/// Waits until all outputs have written what they have; whether they have.
fn settle(outlets: &[Arc<Outlet>], until: Instant) -> bool {
    for outlet in outlets {
        outlet.hurry();
    }
    let unsettled = outlets.iter().filter(|outlet| !outlet.flush(until));
    unsettled.count() == 0
}

/// Hands an entry to a feed, if there is room.
fn offer(sender: &SyncSender<Arc<Entry>>, entry: &Arc<Entry>, stats: &JournalStats) {
    if let Err(TrySendError::Full(_)) = sender.try_send(Arc::clone(entry)) {
        stats.feed_dropped.inc();
    }
}

/// Entries as they are written. A gap in their numbers beyond what the query leaves out means that
/// they were not taken fast enough.
#[derive(Debug)]
pub struct Feed {
    receiver: Receiver<Arc<Entry>>,
    /// Its end tells the journal.
    _alive: Arc<()>,
}

impl Feed {
    /// The next entry, if there is one.
    pub fn try_next(&self) -> Option<Arc<Entry>> {
        self.receiver.try_recv().ok()
    }

    /// Waits for the next entry.
    pub fn next(&self, limit: Duration) -> Option<Arc<Entry>> {
        self.receiver.recv_timeout(limit).ok()
    }
}
