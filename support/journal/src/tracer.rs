//! Spans: what took how long, on which thread, inside what.

use crate::config::TraceConfig;
use crate::entry::{Fields, Value};
use crate::level::Level;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Instant;

/// Most events remembered of one span; more are counted.
const MAX_EVENTS: usize = 32;
/// How many of the slowest spans are remembered.
const SLOWEST: usize = 5;
/// Most threads whose names are remembered.
const MAX_THREADS: usize = 1024;

/// A finished span.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// Its number, from 1 in the order of their beginnings.
    pub id: u64,
    /// The span that it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u64>,
    /// What was done.
    pub name: Cow<'static, str>,
    /// By what: the target of the `tracing` span.
    pub component: Cow<'static, str>,
    /// When it began, in nanoseconds since the journal began.
    pub start_ns: u64,
    /// How long it took, in nanoseconds.
    pub duration_ns: u64,
    /// The kernel's number of the thread that began it.
    pub thread: u32,
    /// Particulars.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: Fields,
    /// What happened in it: name, and nanoseconds since the journal began. The first 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<(Cow<'static, str>, u64)>,
}

/// Figures over all spans with one name of one component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanFigures {
    /// How many there were.
    pub count: u64,
    /// How long they took together, in nanoseconds.
    pub total_ns: u64,
    /// How long the slowest took, in nanoseconds.
    pub slowest_ns: u64,
}

/// Figures over all spans since the tracer began or was cleared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceSummary {
    /// Finished spans.
    pub total_spans: u64,
    /// Their durations together, in microseconds.
    pub total_time_us: u64,
    /// Their average duration, in microseconds.
    pub average_us: f64,
    /// The five that took longest, slowest first.
    pub slowest: Vec<Span>,
    /// By `component/name`.
    pub by_name: BTreeMap<String, SpanFigures>,
    /// Events seen, by name; those without a name of their own by component.
    pub event_counts: BTreeMap<String, u64>,
    /// Spans that left the ring for newer ones.
    pub overwritten: u64,
}

#[derive(Default)]
struct Store {
    ring: VecDeque<Span>,
    next_id: u64,
    total: u64,
    total_ns: u64,
    overwritten: u64,
    slowest: Vec<Span>,
    /// Bounded by the number of callsites in the program.
    by_name: BTreeMap<(&'static str, &'static str), SpanFigures>,
    events: BTreeMap<&'static str, u64>,
    threads: BTreeMap<u32, String>,
}

/// A span that has begun; kept with it by the registry of `tracing`.
pub(crate) struct Open {
    id: u64,
    parent: Option<u64>,
    name: &'static str,
    component: &'static str,
    start: Instant,
    thread: u32,
    pub(crate) fields: Fields,
    events: Vec<(Cow<'static, str>, u64)>,
}

impl Open {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

pub(crate) struct Tracer {
    /// Least severe level that is traced; [`Level::Off`]: nothing.
    level: AtomicU8,
    wanted: Level,
    capacity: usize,
    start: Instant,
    store: Mutex<Store>,
}

thread_local! {
    /// This thread's number; 0: not asked for yet.
    static THREAD: Cell<u32> = const { Cell::new(0) };
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Tracer {
    pub(crate) fn new(config: &TraceConfig) -> Self {
        let level = if config.enabled {
            config.level
        } else {
            Level::Off
        };
        Self {
            level: AtomicU8::new(level as u8),
            wanted: config.level,
            capacity: config.spans as usize,
            start: Instant::now(),
            store: Mutex::default(),
        }
    }

    pub(crate) fn switch(&self, on: bool) {
        let level = if on { self.wanted } else { Level::Off };
        self.level.store(level as u8, Relaxed);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.level.load(Relaxed) != Level::Off as u8
    }

    pub(crate) fn wants(&self, level: Level) -> bool {
        level as u8 >= self.level.load(Relaxed)
    }

    pub(crate) fn threshold(&self) -> Level {
        if self.is_on() {
            self.wanted
        } else {
            Level::Off
        }
    }

    pub(crate) fn begin(
        &self,
        name: &'static str,
        component: &'static str,
        parent: Option<u64>,
        fields: Fields,
    ) -> Open {
        let start = Instant::now();
        let mut thread = THREAD.get();
        let is_new = thread == 0;
        if is_new {
            thread = rustix::thread::gettid()
                .as_raw_nonzero()
                .get()
                .cast_unsigned();
            THREAD.set(thread);
        }
        let mut store = self.store.lock();
        if !store.threads.contains_key(&thread) && store.threads.len() < MAX_THREADS {
            let name = std::thread::current()
                .name()
                .unwrap_or("unnamed")
                .to_owned();
            store.threads.insert(thread, name);
        }
        store.next_id += 1;
        Open {
            id: store.next_id,
            parent,
            name,
            component,
            start,
            thread,
            fields,
            events: Vec::new(),
        }
    }

    /// Counts an event, and remembers it with the span it happened in.
    pub(crate) fn event(&self, name: &'static str, span: Option<&mut Open>) {
        let at = nanos(self.start.elapsed());
        *self.store.lock().events.entry(name).or_default() += 1;
        if let Some(span) = span
            && span.events.len() < MAX_EVENTS
        {
            span.events.push((name.into(), at));
        }
    }

    pub(crate) fn end(&self, open: Open) {
        let span = Span {
            id: open.id,
            parent: open.parent,
            name: open.name.into(),
            component: open.component.into(),
            start_ns: nanos(open.start.saturating_duration_since(self.start)),
            duration_ns: nanos(open.start.elapsed()),
            thread: open.thread,
            fields: open.fields,
            events: open.events,
        };
        let mut store = self.store.lock();
        store.total += 1;
        store.total_ns = store.total_ns.saturating_add(span.duration_ns);
        let figures = store
            .by_name
            .entry((open.component, open.name))
            .or_default();
        figures.count += 1;
        figures.total_ns = figures.total_ns.saturating_add(span.duration_ns);
        figures.slowest_ns = figures.slowest_ns.max(span.duration_ns);
        let rank = store
            .slowest
            .partition_point(|slower| slower.duration_ns >= span.duration_ns);
        if rank < SLOWEST {
            store.slowest.insert(rank, span.clone());
            store.slowest.truncate(SLOWEST);
        }
        if store.ring.len() >= self.capacity {
            store.ring.pop_front();
            store.overwritten += 1;
        }
        store.ring.push_back(span);
    }

    pub(crate) fn clear(&self) {
        let mut store = self.store.lock();
        *store = Store {
            next_id: store.next_id,
            threads: std::mem::take(&mut store.threads),
            ..Store::default()
        };
    }

    pub(crate) fn spans(&self, last: usize) -> Vec<Span> {
        let store = self.store.lock();
        let skipped = store.ring.len().saturating_sub(last);
        store.ring.iter().skip(skipped).cloned().collect()
    }

    pub(crate) fn summary(&self) -> TraceSummary {
        let store = self.store.lock();
        TraceSummary {
            total_spans: store.total,
            total_time_us: store.total_ns / 1000,
            average_us: if store.total == 0 {
                0.0
            } else {
                store.total_ns as f64 / 1000.0 / store.total as f64
            },
            slowest: store.slowest.clone(),
            by_name: store
                .by_name
                .iter()
                .map(|((component, name), figures)| {
                    (format!("{component}/{name}"), figures.clone())
                })
                .collect(),
            event_counts: store
                .events
                .iter()
                .map(|(name, count)| ((*name).into(), *count))
                .collect(),
            overwritten: store.overwritten,
        }
    }

    /// Writes the spans in the Trace Event Format, which Perfetto and Chrome's about:tracing read:
    /// one complete event ("X") per span, one instant ("i") per event in it, and names ("M").
    pub(crate) fn export(&self, process: &str, out: &mut dyn Write) -> io::Result<()> {
        let (spans, threads) = {
            let store = self.store.lock();
            (store.ring.clone(), store.threads.clone())
        };
        let pid = std::process::id();
        let micros = |ns: u64| ns as f64 / 1000.0;
        out.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n")?;
        let name = json!({"ph": "M", "name": "process_name", "pid": pid, "tid": pid,
                          "args": {"name": process}});
        write!(out, "{name}")?;
        for (thread, name) in &threads {
            let name = json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": thread,
                              "args": {"name": name}});
            write!(out, ",\n{name}")?;
        }
        for span in &spans {
            let mut args: Map<String, serde_json::Value> = span
                .fields
                .iter()
                .map(|(name, value)| (name.to_string(), as_json(value)))
                .collect();
            args.insert("span".into(), span.id.into());
            if let Some(parent) = span.parent {
                args.insert("parent".into(), parent.into());
            }
            let event = json!({"ph": "X", "name": span.name, "cat": span.component, "pid": pid,
                               "tid": span.thread, "ts": micros(span.start_ns),
                               "dur": micros(span.duration_ns), "args": args});
            write!(out, ",\n{event}")?;
            for (name, at) in &span.events {
                let event = json!({"ph": "i", "s": "t", "name": name, "cat": span.component,
                                   "pid": pid, "tid": span.thread, "ts": micros(*at)});
                write!(out, ",\n{event}")?;
            }
        }
        out.write_all(b"\n]}\n")
    }
}

fn as_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Flag(flag) => (*flag).into(),
        Value::Count(n) => (*n).into(),
        Value::Integer(n) => (*n).into(),
        Value::Real(n) => (*n).into(),
        Value::Text(text) => text.as_str().into(),
    }
}
