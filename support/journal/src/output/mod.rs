//! Outputs: a bounded queue each, and a thread each, started with the first entry.
//!
//! An emitter only puts an entry into queues. Each output has a thread of its own, so that a peer
//! that does not read holds up neither the machine nor the other outputs. A thread sleeps as long as
//! nothing waits.

mod callback;
mod console;
pub(crate) mod file;
mod network;
mod stream;
mod syslog;
#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
mod tls;

pub(crate) use callback::Callback;

use crate::config::{JournalError, OutputConfig};
use crate::entry::{Entry, Fields};
use crate::filter::Pattern;
use crate::journal::{Core, Origin};
use crate::level::Level;
use crate::stats::OutputStats;
use crate::time::Timestamp;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Most entries that wait for one output.
const MAX_QUEUED: usize = 4096;
/// Most bytes that wait for one output, roughly.
const MAX_QUEUED_BYTES: usize = 4 << 20;
/// Entries between two flushes while more wait.
const BATCH: usize = 64;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// An output that failed must work for so long until its next failure counts as the first again.
const STEADY: Duration = Duration::from_secs(10);

/// Why an entry could not be written.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It may work later.
    Again(io::Error),
    /// This entry will never get through.
    Refused,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Again(error)
    }
}

/// Where entries end up. Runs on the output's own thread and may block for a while, but gives up
/// when its [`Stop`] says so.
pub(crate) trait Sink: Send {
    /// Writes one entry. After a failure the same entry comes again, so nothing of it may remain.
    fn write(&mut self, entry: &Entry) -> Result<(), Fault>;

    /// Says that entries were lost on the way here.
    fn lost(&mut self, count: u64) -> Result<(), Fault> {
        self.write(&Entry {
            sequence: 0,
            time: Timestamp::now(),
            level: Level::Warn,
            component: "journal".into(),
            message: format!("{count} entries were dropped because this output could not keep up"),
            fields: [("dropped".into(), count.into())].into(),
        })
    }

    /// Called when nothing more waits, and now and then while much does.
    fn flush(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// When [`Sink::flush`] wants to be called again.
    fn due(&self) -> Option<Duration> {
        None
    }

    /// Troubles that did not keep an entry from being written, each said once.
    fn trouble(&mut self) -> Option<String> {
        None
    }

    /// The longest pause between attempts.
    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// The last call.
    fn close(&mut self) {}
}

/// Tells a sink that blocks to give up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    lost: u64,
    /// Not yet with its thread.
    sink: Option<Box<dyn Sink>>,
    is_running: bool,
    /// The thread has an entry in hand or has not flushed.
    is_busy: bool,
    is_closing: bool,
    is_closed: bool,
    /// Do not wait for the end of a pause.
    hurry: bool,
}

/// One output: its queue and its thread.
pub(crate) struct Outlet {
    pub(crate) id: u64,
    pub(crate) name: String,
    level: Level,
    /// Only these components; all if empty.
    components: Vec<Pattern>,
    queue: Mutex<Queue>,
    wake: Condvar,
    settled: Condvar,
    stop: Stop,
    stats: Arc<OutputStats>,
    core: Weak<Core>,
}

/// What an output takes.
pub(crate) struct Taste {
    pub(crate) level: Level,
    pub(crate) components: Vec<Pattern>,
}

impl Outlet {
    pub(crate) fn new(
        id: u64,
        name: String,
        taste: Taste,
        stop: Stop,
        sink: Box<dyn Sink>,
        core: &Arc<Core>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            stats: core.stats().outputs.insert(&name),
            name,
            level: taste.level,
            components: taste.components,
            queue: Mutex::new(Queue {
                sink: Some(sink),
                ..Queue::default()
            }),
            wake: Condvar::new(),
            settled: Condvar::new(),
            stop,
            core: Arc::downgrade(core),
        })
    }

    fn wants(&self, entry: &Entry) -> bool {
        entry.level >= self.level
            && (self.components.is_empty()
                || self.components.iter().any(|c| c.matches(&entry.component)))
    }

    /// Queues an entry; never blocks for longer than it takes to do so.
    pub(crate) fn offer(self: &Arc<Self>, entry: &Arc<Entry>) {
        if !self.wants(entry) {
            return;
        }
        let mut queue = self.queue.lock();
        if queue.is_closing {
            return;
        }
        queue.bytes += entry.weight();
        queue.entries.push_back(Arc::clone(entry));
        while queue.entries.len() > MAX_QUEUED || queue.bytes > MAX_QUEUED_BYTES {
            let Some(oldest) = queue.entries.pop_front() else {
                break;
            };
            queue.bytes -= oldest.weight();
            queue.lost += 1;
            self.stats.dropped.inc();
        }
        self.stats.queued.set(queue.entries.len() as u64);
        if queue.is_running {
            self.wake.notify_one();
        } else {
            self.start(&mut queue);
        }
    }

    fn start(self: &Arc<Self>, queue: &mut Queue) {
        let outlet = Arc::clone(self);
        let name = format!("journal-{}", self.name);
        let thread = std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || outlet.run());
        match thread {
            Ok(_) => queue.is_running = true,
            // Tried again with the next entry; until then entries wait.
            Err(_) => self.stats.failures.inc(),
        }
    }

    /// The thread.
    fn run(self: Arc<Self>) {
        let Some(mut sink) = self.queue.lock().sink.take() else {
            return;
        };
        let mut failing = Failing::default();
        let mut unflushed = 0;
        loop {
            let mut queue = self.queue.lock();
            let (lost, entry) = loop {
                let entry = queue.entries.pop_front();
                if entry.is_some() || queue.lost > 0 {
                    break (std::mem::take(&mut queue.lost), entry);
                }
                if unflushed > 0 {
                    drop(queue);
                    self.attempt(&mut *sink, &mut failing, |sink| sink.flush());
                    unflushed = 0;
                    queue = self.queue.lock();
                    continue;
                }
                queue.is_busy = false;
                self.settled.notify_all();
                if queue.is_closing {
                    drop(queue);
                    sink.close();
                    // What it held, such as locks on files, is free before anybody is told.
                    drop(sink);
                    self.queue.lock().is_closed = true;
                    self.settled.notify_all();
                    return;
                }
                match sink.due() {
                    Some(due) => {
                        self.wake.wait_for(&mut queue, due);
                        if sink.due().is_some_and(|due| due.is_zero()) {
                            queue.is_busy = true;
                            unflushed = 1;
                        }
                    }
                    None => self.wake.wait(&mut queue),
                }
            };
            queue.is_busy = true;
            if let Some(entry) = &entry {
                queue.bytes -= entry.weight();
            }
            self.stats.queued.set(queue.entries.len() as u64);
            drop(queue);
            if lost > 0 {
                self.attempt(&mut *sink, &mut failing, |sink| sink.lost(lost));
            }
            if let Some(entry) = entry {
                if self.attempt(&mut *sink, &mut failing, |sink| sink.write(&entry)) {
                    self.stats.written.inc();
                } else {
                    self.stats.dropped.inc();
                }
            }
            unflushed += 1;
            if unflushed >= BATCH {
                self.attempt(&mut *sink, &mut failing, |sink| sink.flush());
                unflushed = 0;
            }
        }
    }

    /// Does something until it works, with longer and longer pauses; gives up when the output is
    /// closed. Whether it worked.
    fn attempt(
        &self,
        sink: &mut dyn Sink,
        failing: &mut Failing,
        mut action: impl FnMut(&mut dyn Sink) -> Result<(), Fault>,
    ) -> bool {
        loop {
            let error = match action(sink) {
                Ok(()) => {
                    if failing.is_failing {
                        failing.is_failing = false;
                        failing.since = Some(Instant::now());
                        let dropped = self.stats.dropped.get() - failing.dropped_before;
                        self.say(
                            Level::Info,
                            format!("output {} works again", self.name),
                            [("dropped".into(), dropped.into())].into(),
                        );
                    }
                    if let Some(trouble) = sink.trouble() {
                        self.stats.failures.inc();
                        let message = format!("output {}: {trouble}", self.name);
                        self.say(Level::Warn, message, Fields::new());
                    }
                    return true;
                }
                Err(Fault::Refused) => return false,
                Err(Fault::Again(error)) => error,
            };
            self.stats.failures.inc();
            if !failing.is_failing {
                failing.is_failing = true;
                failing.dropped_before = self.stats.dropped.get();
                if failing.since.is_none_or(|since| since.elapsed() > STEADY) {
                    failing.pause = FIRST_PAUSE;
                }
                self.say(
                    Level::Warn,
                    format!(
                        "output {} does not work: {error}; entries wait, and the oldest are dropped when too many do",
                        self.name
                    ),
                    Fields::new(),
                );
            }
            let until = Instant::now() + failing.pause;
            failing.pause = (failing.pause * 2).min(sink.patience());
            let mut queue = self.queue.lock();
            loop {
                if queue.is_closing {
                    // No entry is waited for any more.
                    self.stats.dropped.add(queue.entries.len() as u64);
                    queue.entries.clear();
                    queue.bytes = 0;
                    return false;
                }
                if std::mem::take(&mut queue.hurry)
                    || self.wake.wait_until(&mut queue, until).timed_out()
                {
                    break;
                }
            }
        }
    }

    fn say(&self, level: Level, message: String, fields: Fields) {
        if let Some(core) = self.core.upgrade() {
            core.emit("journal", level, message, fields, Some(self.id));
        }
    }

    fn is_settled(queue: &Queue) -> bool {
        queue.entries.is_empty() && queue.lost == 0 && !queue.is_busy
    }

    /// Ends a pause between attempts.
    pub(crate) fn hurry(&self) {
        self.queue.lock().hurry = true;
        self.wake.notify_one();
    }

    /// Waits until all entries are written; whether they are.
    pub(crate) fn flush(&self, until: Instant) -> bool {
        let mut queue = self.queue.lock();
        let done = self.wait(&mut queue, until, |queue| {
            Self::is_settled(queue) || !queue.is_running
        });
        queue.hurry = false;
        done && Self::is_settled(&queue)
    }

    /// Takes no more entries. What waits is still written as long as that works at once.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        if queue.is_closing {
            return;
        }
        queue.is_closing = true;
        self.stop.0.store(true, Relaxed);
        if queue.is_running {
            self.wake.notify_one();
            return;
        }
        let sink = queue.sink.take();
        drop(queue);
        if let Some(mut sink) = sink {
            sink.close();
        }
        self.queue.lock().is_closed = true;
        self.settled.notify_all();
    }

    /// Waits until the thread has closed the output; whether it has.
    pub(crate) fn wait_closed(&self, until: Instant) -> bool {
        let mut queue = self.queue.lock();
        self.wait(&mut queue, until, |queue| queue.is_closed)
    }

    fn wait(
        &self,
        queue: &mut MutexGuard<'_, Queue>,
        until: Instant,
        done: impl Fn(&Queue) -> bool,
    ) -> bool {
        while !done(queue) {
            if self.settled.wait_until(queue, until).timed_out() {
                return done(queue);
            }
        }
        true
    }
}

struct Failing {
    is_failing: bool,
    pause: Duration,
    /// When it began to work again.
    since: Option<Instant>,
    dropped_before: u64,
}

impl Default for Failing {
    fn default() -> Self {
        Self {
            is_failing: false,
            pause: FIRST_PAUSE,
            since: None,
            dropped_before: 0,
        }
    }
}

/// Opens an output; `field` is its name in errors.
pub(crate) fn open(
    config: &OutputConfig,
    field: &str,
    origin: &Origin,
    stop: &Stop,
) -> Result<Box<dyn Sink>, JournalError> {
    config.validate(field)?;
    Ok(match config {
        OutputConfig::Console(console) => Box::new(console::Console::open(console, field)?),
        OutputConfig::File(file) => Box::new(file::LogFile::open(file, field)?),
        OutputConfig::Syslog(syslog) => Box::new(syslog::Syslog::open(syslog, field, stop)?),
        OutputConfig::Network(network) => Box::new(network::Network::open(network, origin, stop)),
    })
}
