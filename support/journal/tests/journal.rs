//! Events of `tracing` through filters into the journal, feeds, spans.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use nyx_inspect::Json;
use nyx_journal::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tracing::subscriber::with_default;

fn journal(config: &JournalConfig) -> Journal {
    Journal::new(config, &Origin::default()).unwrap()
}

fn lines(journal: &Journal) -> Vec<String> {
    let entries = journal.entries(&Query::default());
    entries
        .iter()
        .map(|entry| entry.without_time().to_string())
        .collect()
}

fn speak() {
    tracing::trace!(target: "device", "d trace");
    tracing::debug!(target: "device", "d debug");
    tracing::debug!(target: "guest", "g debug");
    tracing::info!(target: "guest", "g info");
    tracing::info!(target: "migration", "m info");
    tracing::warn!(target: "migration", "m warn");
    tracing::debug!(target: "api", "a debug");
    tracing::info!(target: "api", "a info");
}

#[test]
fn the_default_filters_are_those_of_the_specification() {
    let journal = journal(&JournalConfig::default());
    with_default(journal.subscriber(), speak);
    assert_eq!(
        lines(&journal),
        [
            "[DEBUG] device: d debug",
            "[INFO] guest: g info",
            "[WARN] migration: m warn",
            "[INFO] api: a info"
        ]
    );
}

#[test]
fn filters_change_at_run_time() {
    let journal = journal(&JournalConfig::default());
    with_default(journal.subscriber(), || {
        speak();
        journal.clear();
        journal.set_filter("error,device=trace,m*=info".parse().unwrap());
        speak();
        assert_eq!(
            lines(&journal),
            [
                "[TRACE] device: d trace",
                "[DEBUG] device: d debug",
                "[INFO] migration: m info",
                "[WARN] migration: m warn",
            ]
        );
        journal.clear();
        journal
            .set_level("device".parse().unwrap(), Level::Off)
            .unwrap();
        journal
            .set_level("guest".parse().unwrap(), Level::Debug)
            .unwrap();
        speak();
        assert_eq!(lines(&journal)[0], "[DEBUG] guest: g debug");
        assert_eq!(lines(&journal).len(), 4);
        assert_eq!(
            journal.filter().to_string(),
            "error,device=off,guest=debug,m*=info"
        );
    });
}

#[test]
fn fatal_is_a_level_of_its_own() {
    let config = JournalConfig {
        level: Some(Level::Fatal),
        ..JournalConfig::default()
    };
    let journal = journal(&config);
    with_default(journal.subscriber(), || {
        tracing::error!(target: "vm", "bad");
        fatal!(target: "vm", code = 5, "worse {}", "still");
        tracing::error!(target: "host", nyx_fatal = true, "worst");
        fatal!("without a target");
    });
    assert_eq!(
        lines(&journal),
        [
            "[FATAL] vm: worse still code=5",
            "[FATAL] host: worst",
            "[FATAL] journal: without a target"
        ]
    );
    assert_eq!(journal.stats().entries.fatal_entries.get(), 3);
    assert_eq!(journal.stats().entries.error_entries.get(), 0);
}

#[test]
fn fields_keep_their_types() {
    let journal = journal(&JournalConfig::default());
    with_default(journal.subscriber(), || {
        let error = std::io::Error::from_raw_os_error(28);
        tracing::info!(
            target: "vm", count = 3_u64, low = -2, share = 0.25, ok = true, text = "t", shown = %"s",
            debug = ?Some(1), error = &error as &dyn std::error::Error, "message"
        );
        tracing::info!(target: "vm", only = 1);
    });
    let entries = journal.entries(&Query::default());
    let fields = &entries[0].fields;
    assert_eq!(fields["count"], Value::Count(3));
    assert_eq!(fields["low"], Value::Integer(-2));
    assert_eq!(fields["share"], Value::Real(0.25));
    assert_eq!(fields["ok"], Value::Flag(true));
    assert_eq!(fields["text"].as_text(), Some("t"));
    assert_eq!(fields["shown"].as_text(), Some("s"));
    assert_eq!(fields["debug"].as_text(), Some("Some(1)"));
    assert_eq!(
        fields["error"].as_text(),
        Some("No space left on device (os error 28)")
    );
    assert_eq!(entries[1].message, "");
}

#[test]
fn feeds_and_watchers_see_what_comes_and_never_hold_up() {
    let journal = journal(&JournalConfig::default());
    let query = Query {
        level: Some(Level::Warn),
        ..Query::default()
    };
    let feed = journal.subscribe(query, 2);
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    let own = journal.clone();
    journal.watch(move |entry| {
        // What a watcher logs is lost, not a deadlock.
        own.write("vm", Level::Info, "from a watcher", Fields::new());
        count.fetch_add(1, Relaxed);
        entry.sequence < 3
    });
    for level in [Level::Info, Level::Warn, Level::Error, Level::Fatal] {
        journal.write("vm", level, "x", Fields::new());
    }
    assert_eq!(feed.try_next().unwrap().sequence, 2);
    assert_eq!(feed.next(Duration::from_secs(1)).unwrap().sequence, 3);
    assert_eq!(feed.try_next(), None);
    assert_eq!(journal.stats().feed_dropped.get(), 1);
    assert_eq!(seen.load(Relaxed), 3);
    assert_eq!(journal.stats().nested.get(), 3);
    drop(feed);
    journal.write("vm", Level::Warn, "x", Fields::new());
}

#[test]
fn audited_components_pass_every_filter() {
    let folder = tempfile::tempdir().unwrap();
    let config = JournalConfig {
        level: Some(Level::Off),
        audit: Some(AuditConfig::new(folder.path().join("audit.jsonl"))),
        ..JournalConfig::default()
    };
    let journal = journal(&config);
    with_default(journal.subscriber(), || {
        tracing::info!(target: "vm", "not written");
        tracing::trace!(target: "audit", who = "root", "attached a disk");
    });
    assert_eq!(lines(&journal), ["[TRACE] audit: attached a disk who=root"]);
}

#[test]
fn what_is_counted_can_be_inspected() {
    let journal = journal(&JournalConfig::default());
    journal.add_callback(Level::Warn, |_| {});
    journal.write("vm", Level::Info, "x", Fields::new());
    journal.write("vm", Level::Error, "x", Fields::new());
    assert!(journal.flush(Duration::from_secs(5)));
    let json = Json::of(&*journal.stats());
    assert_eq!(json["entries"]["info_entries"], 1);
    assert_eq!(json["entries"]["error_entries"], 1);
    assert_eq!(json["outputs"]["callback0"]["written"], 1);
    assert_eq!(json["outputs"]["callback0"]["dropped"], 0);
}

#[test]
fn spans_are_recorded_when_the_tracer_is_on() {
    let mut config = JournalConfig::default();
    config.trace.spans = 3;
    let journal = journal(&config);
    let work = || {
        tracing::info_span!(target: "boot", "kernel", path = "/vmlinux", entry = tracing::field::Empty)
            .in_scope(|| {
                tracing::Span::current().record("entry", 0x1000_u64);
                tracing::debug!(name: "loaded", target: "boot", "segments loaded");
                tracing::debug_span!(target: "boot", "tables").in_scope(|| {
                    std::thread::sleep(Duration::from_millis(5));
                    tracing::debug!(target: "boot", "tables built");
                });
            });
    };
    with_default(journal.subscriber(), || {
        work();
        assert_eq!(journal.spans(10), []);
        journal.set_tracing(true);
        assert!(journal.is_tracing());
        work();
        work();
        tracing::trace_span!(target: "boot", "too fine").in_scope(|| {});
        journal.set_tracing(false);
        work();
    });
    let spans = journal.spans(10);
    let names: Vec<_> = spans
        .iter()
        .map(|span| (&*span.name, span.id, span.parent))
        .collect();
    assert_eq!(
        names,
        [
            ("kernel", 1, None),
            ("tables", 4, Some(3)),
            ("kernel", 3, None)
        ]
    );
    let kernel = &spans[2];
    assert_eq!(kernel.fields["path"].as_text(), Some("/vmlinux"));
    assert_eq!(kernel.fields["entry"], Value::Count(0x1000));
    assert_eq!(kernel.events.len(), 1);
    assert_eq!(kernel.events[0].0, "loaded");
    let tables = &spans[1];
    assert!(tables.start_ns >= kernel.start_ns && tables.duration_ns >= 5_000_000);
    assert!(tables.duration_ns <= kernel.duration_ns);
    let summary = journal.trace_summary();
    assert_eq!(summary.total_spans, 4);
    assert_eq!(summary.overwritten, 1);
    assert_eq!(summary.slowest.len(), 4);
    assert!(
        summary
            .slowest
            .is_sorted_by_key(|span| u64::MAX - span.duration_ns)
    );
    assert_eq!(summary.by_name["boot/tables"].count, 2);
    assert_eq!(summary.event_counts["loaded"], 2);
    assert_eq!(summary.event_counts["boot"], 2);
    assert!(summary.average_us >= 5000.0 && summary.total_time_us >= 20_000);
    journal.clear_trace();
    assert_eq!(journal.trace_summary(), TraceSummary::default());
}

#[test]
fn the_trace_is_what_perfetto_reads() {
    let mut config = JournalConfig::default();
    config.trace.enabled = true;
    let origin = Origin {
        vm: Some("web".into()),
        ring: None,
    };
    let journal = Journal::new(&config, &origin).unwrap();
    with_default(journal.subscriber(), || {
        tracing::info_span!(target: "api", "attach", unit = "disk \"1\"").in_scope(|| {
            tracing::info!(name: "opened", target: "api", "opened");
        });
    });
    let mut out = Vec::new();
    journal.export_trace(&mut out).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    let find = |phase: &str| {
        events
            .iter()
            .filter(|e| e["ph"] == phase)
            .collect::<Vec<_>>()
    };
    let pid = std::process::id();
    assert!(events.iter().all(|e| e["pid"] == pid && e["tid"].is_u64()));
    assert_eq!(find("M")[0]["args"]["name"], "nyx web");
    assert_eq!(find("M")[1]["name"], "thread_name");
    let [span] = find("X")[..] else {
        unreachable!()
    };
    assert_eq!(
        (&span["name"], &span["cat"]),
        (&"attach".into(), &"api".into())
    );
    assert_eq!(span["args"]["unit"], "disk \"1\"");
    let [instant] = find("i")[..] else {
        unreachable!()
    };
    assert_eq!(instant["name"], "opened");
    let (start, length) = (span["ts"].as_f64().unwrap(), span["dur"].as_f64().unwrap());
    let at = instant["ts"].as_f64().unwrap();
    assert!(start <= at && at <= start + length);
}

#[test]
fn many_threads_write_one_order() {
    let journal = journal(&JournalConfig::default());
    let seen = Arc::new(AtomicU64::new(0));
    let last = Arc::clone(&seen);
    journal.add_callback(Level::Trace, move |entry| {
        assert_eq!(last.swap(entry.sequence, Relaxed) + 1, entry.sequence);
    });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    journal.write("vm", Level::Info, "x", Fields::new());
                }
            });
        }
    });
    assert!(journal.flush(Duration::from_secs(10)));
    assert_eq!(seen.load(Relaxed), 2000);
    let entries = journal.entries(&Query::default());
    assert!(entries.is_sorted_by_key(|entry| (entry.sequence, entry.time)));
    assert_eq!(entries.len(), 2000);
}

#[test]
fn a_callback_that_panics_is_said_and_left_alone() {
    let journal = journal(&JournalConfig::default());
    journal.add_callback(Level::Trace, |_| panic!("broken on purpose"));
    journal.write("vm", Level::Info, "x", Fields::new());
    journal.write("vm", Level::Info, "y", Fields::new());
    assert!(journal.flush(Duration::from_secs(5)));
    let said = "[WARN] journal: output callback0: its function panicked and is not called again";
    assert_eq!(
        lines(&journal).iter().filter(|line| *line == said).count(),
        1
    );
    assert_eq!(
        journal
            .stats()
            .outputs
            .get("callback0")
            .unwrap()
            .dropped
            .get(),
        1
    );
}

#[test]
fn a_component_that_floods_does_not_drive_out_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let config = JournalConfig {
        rate: 10,
        audit: Some(AuditConfig::new(folder.path().join("audit.jsonl"))),
        ..JournalConfig::default()
    };
    let journal = journal(&config);
    with_default(journal.subscriber(), || {
        for _ in 0..1000 {
            tracing::warn!(target: "device", "the guest did it again");
            tracing::info!(target: "audit", "done");
        }
        fatal!(target: "device", "over");
        tracing::info!(target: "vm", "not its fault");
    });
    let lines = lines(&journal);
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    let device = count("device: the guest");
    assert!((100..150).contains(&device), "{device}");
    assert_eq!(count("audit: done"), 1000);
    assert_eq!(count("device: over"), 1);
    assert_eq!(count("vm: not its fault"), 1);
    let said = "[WARN] journal: component device writes more than 10 entries a second; the rest is left out";
    assert_eq!(lines.iter().filter(|line| *line == said).count(), 1);
    assert_eq!(journal.stats().left_out.get(), 1000 - device as u64);
}

#[test]
fn who_stops_listening_leaves_nothing_behind() {
    let journal = journal(&JournalConfig::default());
    let owner = Arc::new(AtomicU64::new(0));
    let inside = Arc::new(());
    let held = Arc::clone(&inside);
    journal.watch_for(&owner, move |count, _| {
        let _held = &held;
        count.fetch_add(1, Relaxed);
    });
    journal.write("vm", Level::Info, "x", Fields::new());
    assert_eq!(owner.load(Relaxed), 1);
    drop(owner);
    assert_eq!(Arc::strong_count(&inside), 2);
    // Nothing is written; the next listener clears up.
    drop(journal.subscribe(Query::default(), 1));
    assert_eq!(Arc::strong_count(&inside), 1);
}

#[test]
fn an_output_that_keeps_up_loses_nothing() {
    let journal = journal(&JournalConfig::default());
    let (sender, receiver) = std::sync::mpsc::channel();
    let output = journal.add_callback(Level::Trace, move |entry| {
        sender.send(entry.sequence).unwrap();
    });
    let message = "x".repeat(4000);
    // Three times what may wait, but never more than a little of it at once.
    for _ in 0..3000 {
        journal.write("vm", Level::Info, &message, Fields::new());
        if journal.newest().is_multiple_of(100) {
            assert!(journal.flush(Duration::from_secs(30)));
        }
    }
    assert_eq!(
        receiver.try_iter().collect::<Vec<_>>(),
        (1..=3000).collect::<Vec<_>>()
    );
    let stats = journal.stats().outputs.get("callback0").unwrap();
    assert_eq!((stats.dropped.get(), stats.queued.get()), (0, 0));
    assert!(journal.remove_output(output));
    assert!(!journal.remove_output(output));
    journal.write("vm", Level::Info, "to nobody", Fields::new());
    assert!(receiver.recv_timeout(Duration::from_secs(30)).is_err());
    assert_eq!(journal.stats().outputs.names(), [""; 0]);
}
