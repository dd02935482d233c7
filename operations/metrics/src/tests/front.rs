//! The front on a made-up machine.

use crate::*;
use nyx_inspect::{About, Counter, Gauge, Histogram, Inspect, Visitor};
use nyx_memory::{DirtySource, Extent};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::GuestAddress;

#[derive(Default)]
struct Machine {
    pio: Counter,
    mmio: Counter,
    pio_time: Histogram,
    reads: Counter,
    read_bytes: Counter,
    read_latency: Histogram,
    depth: Gauge,
    accesses: Counter,
}

impl Inspect for Machine {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.child("vcpus", &Vcpus(self));
        v.child("units", &Units(self));
    }
}

struct Vcpus<'a>(&'a Machine);
impl Inspect for Vcpus<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.about(&About::key("vcpu"));
        v.child("0", &Vcpu(self.0));
    }
}

struct Vcpu<'a>(&'a Machine);
impl Inspect for Vcpu<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        use nyx_inspect::Field;
        let exits = About::metric("vcpu_exits", "Exits.");
        v.about(&exits.labels(&[("kind", "pio")]));
        self.0.pio.visit("exits_pio", v);
        v.about(&exits.labels(&[("kind", "mmio")]));
        self.0.mmio.visit("exits_mmio", v);
        v.about(&About::metric("vcpu_exit", "Time.").labels(&[("kind", "pio")]));
        self.0.pio_time.visit("pio_time", v);
    }
}

struct Units<'a>(&'a Machine);
impl Inspect for Units<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.about(&About::key("unit"));
        v.child("disk0", &Disk(self.0));
    }
}

struct Disk<'a>(&'a Machine);
impl Inspect for Disk<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        use nyx_inspect::Field;
        const READ: &[(&str, &str)] = &[("op", "read")];
        v.about(&About::metric("blk_requests", "Requests.").labels(READ));
        self.0.reads.visit("reads", v);
        v.about(&About::metric("blk_bytes", "Bytes.").labels(READ));
        self.0.read_bytes.visit("read_bytes", v);
        v.about(&About::metric("blk_latency", "Time.").labels(READ));
        self.0.read_latency.visit("read_latency", v);
        v.about(&About::metric("device_accesses", "Accesses.").labels(&[("direction", "read")]));
        self.0.accesses.visit("window_reads", v);
        v.child("queues", &Queues(self.0));
    }
}

struct Queues<'a>(&'a Machine);
impl Inspect for Queues<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.about(&About::key("queue"));
        v.child("0", &Queue(self.0));
    }
}

struct Queue<'a>(&'a Machine);
impl Inspect for Queue<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        use nyx_inspect::Field;
        v.about(&About::metric("virtio_queue_depth", "Depth."));
        self.0.depth.visit("depth", v);
    }
}

fn machine() -> (Arc<Machine>, Metrics) {
    let machine: Arc<Machine> = Arc::default();
    let metrics = Metrics::new(Setup::new("web", 1, 1 << 30), machine.clone());
    (machine, metrics)
}

impl Machine {
    fn works(&self) {
        self.pio.add(90);
        self.mmio.add(10);
        self.pio_time.record(3000);
        self.reads.inc();
        self.read_bytes.add(4096);
        self.read_latency.record(2_500_000);
        self.depth.set(3);
        self.accesses.add(5);
    }
}

#[test]
fn a_sample_adds_up_what_the_tree_holds() {
    let (machine, metrics) = machine();
    machine.works();
    let sample = metrics.now();
    assert_eq!(sample.exits.by_kind, [90, 10, 0, 0, 0]);
    assert_eq!(sample.exits.time.average_us(), Some(3.0));
    assert_eq!((sample.disk.reads, sample.disk.read_bytes), (1, 4096));
    assert_eq!(sample.disk.queue_depth, 3);
    assert_eq!(sample.exits.accesses, 5);
    assert_eq!(sample.memory.allocated, 1 << 30);
    // This very process.
    assert!(sample.memory.resident.get().unwrap() > 1 << 20);
    assert!(sample.memory.minor_faults.get().unwrap() > 0);
    assert!(sample.process.context_switches.get().is_some());
    assert_eq!(sample.memory.balloon.get(), None);
}

#[test]
fn the_page_has_the_tree_the_process_and_health() {
    let (machine, metrics) = machine();
    machine.works();
    let page = metrics.page(None);
    let has = |line: &str| assert!(page.lines().any(|l| l == line), "{line} is not in {page}");
    has("nyx_vcpu_exits_total{vm=\"web\",vcpu=\"0\",kind=\"pio\"} 90");
    has("nyx_blk_requests_total{vm=\"web\",unit=\"disk0\",op=\"read\"} 1");
    has("nyx_virtio_queue_depth{vm=\"web\",unit=\"disk0\",queue=\"0\"} 3");
    has("nyx_memory_allocated_bytes{vm=\"web\"} 1073741824");
    has("nyx_health_status{vm=\"web\"} 0");
    has("nyx_bottleneck_severity{vm=\"web\",kind=\"disk_latency\"} 0");
    assert!(page.contains("nyx_process_resident_bytes{vm=\"web\"} "));
    assert!(page.contains("nyx_thread_context_switches_total{vm=\"web\",thread=\""));
    let few = metrics.page(Some("nyx_blk_*"));
    let names = few.lines().filter(|l| l.starts_with("# TYPE")).count();
    assert_eq!(names, 3);
    assert_eq!(metrics.page(Some("nothing")), "");
}

#[test]
fn reports_have_both_shapes_and_can_start_over() {
    let (machine, metrics) = machine();
    metrics.now();
    std::thread::sleep(Duration::from_millis(40));
    machine.works();
    let report = metrics.report();
    let json = serde_json::to_value(&report).unwrap();
    for key in [
        "timestamp",
        "hypervisor_metrics",
        "disk_io",
        "network",
        "memory",
        "device_io",
        "bottlenecks",
    ] {
        assert!(!json[key].is_null(), "{key}");
    }
    assert_eq!(json["summary"]["total_exits"], 100);
    assert_eq!(json["summary"]["avg_exit_time_us"], 3.0);
    assert_eq!(json["device_io"]["disk0"]["reads"], 5);
    assert_eq!(json["device_io"]["disk0"]["bytes"], 4096);
    assert_eq!(report.top_exits[0].kind, "pio");
    assert!((report.top_exits[0].share - 0.9).abs() < 1e-9);
    assert_eq!(metrics.top_exits(1).len(), 1);
    // 2.5 ms is beyond 1 ms.
    assert_eq!(json["bottlenecks"][0]["key"], "disk_latency");
    assert_eq!(json["bottlenecks"][0]["severity"], "medium");
    assert_eq!(metrics.health().status, Status::Healthy);
    metrics.reset();
    assert_eq!(metrics.flat_report().total_exits, 0);
    assert!(metrics.page(None).contains("kind=\"pio\"} 90\n"));
    machine.works();
    assert_eq!(metrics.flat_report().total_exits, 100);
    assert_eq!(metrics.report().disk_io.reads, 1);
}

#[test]
fn callbacks_are_told_every_metric() {
    let (machine, metrics) = machine();
    machine.works();
    let told: Arc<Mutex<Vec<(String, f64, String)>>> = Arc::default();
    let to = told.clone();
    metrics.register_export_callback(move |name, value, labels| {
        let le = labels.iter().find(|(n, _)| n == "le");
        let le = le.map(|(_, v)| v.clone()).unwrap_or_default();
        to.lock().push((name.into(), value, le));
    });
    metrics.export();
    let told = told.lock();
    let value = |name: &str, le: &str| {
        let found = told.iter().find(|(n, _, l)| n == name && l == le);
        found.map(|(_, value, _)| *value)
    };
    assert_eq!(value("nyx_vcpu_exits_total", ""), Some(90.0));
    assert_eq!(value("nyx_blk_latency_seconds_count", ""), Some(1.0));
    assert_eq!(value("nyx_blk_latency_seconds_sum", ""), Some(0.0025));
    assert_eq!(value("nyx_blk_latency_seconds_bucket", "0.002"), Some(0.0));
    assert_eq!(value("nyx_blk_latency_seconds_bucket", "0.005"), Some(1.0));
    assert_eq!(value("nyx_blk_latency_seconds_bucket", "+Inf"), Some(1.0));
}

#[test]
fn dirty_pages_exist_once_somebody_logs_them() {
    struct Log;
    impl DirtySource for Log {
        fn log(&mut self, _: bool) -> io::Result<()> {
            Ok(())
        }
        fn drain(&mut self, report: &mut dyn FnMut(Extent)) -> io::Result<()> {
            report(Extent {
                base: GuestAddress(0),
                len: 8192,
            });
            Ok(())
        }
    }
    let (_, metrics) = machine();
    assert_eq!(metrics.now().memory.dirty_pages.get(), None);
    assert!(!metrics.page(None).contains("dirtied"));
    assert_eq!(metrics.read_dirty_log(&mut Log).unwrap(), 2);
    metrics.note_dirty_pages(5);
    assert_eq!(metrics.now().memory.dirty_pages, Measured::Value(7));
    assert!(
        metrics
            .page(None)
            .contains("nyx_memory_dirtied_pages_total{vm=\"web\"} 7\n")
    );
}

/// Waits until `done`, for some seconds at most.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_watched_machine_is_sampled_and_an_unwatched_one_is_left_alone() {
    let (machine, metrics) = machine();
    assert!(!metrics.is_watched());
    assert_eq!(metrics.history(|h| h.samples().len()), 0);
    metrics.watch().unwrap();
    assert!(metrics.is_watched());
    let count = || metrics.history(|h| h.samples().len());
    eventually("samples of a busy machine", || {
        machine.works();
        count() >= 12
    });
    metrics.stop();
    assert!(!metrics.is_watched());
    let then = count();
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(count(), then);
    // The busy machine was looked at every 100 ms.
    let (first, last) = metrics.history(|h| {
        let at: Vec<Duration> = h.samples().map(|s| s.at).collect();
        (at[0], at[11])
    });
    assert!(last - first < Duration::from_secs(6), "{:?}", last - first);
    assert!(last - first >= Duration::from_millis(900));
    // It can be watched again.
    metrics.watch().unwrap();
    eventually("samples again", || count() > then);
}

#[test]
fn an_idle_machine_is_hardly_looked_at() {
    let (_machine, metrics) = machine();
    metrics.watch().unwrap();
    std::thread::sleep(Duration::from_millis(1700));
    // At 0, 0.1, 0.3, 0.7, 1.5 seconds, or once less often on a slow host.
    let count = metrics.history(|h| h.samples().len());
    assert!((2..=6).contains(&count), "{count}");
}

#[test]
fn the_thread_ends_when_nobody_watches_any_more() {
    let setup = Setup {
        linger: Duration::from_millis(200),
        ..Setup::new("web", 1, 0)
    };
    let metrics = Metrics::new(setup, Arc::new(Machine::default()));
    metrics.watch().unwrap();
    eventually("the end of the thread", || !metrics.is_watched());
    metrics.watch().unwrap();
    assert!(metrics.is_watched());
    metrics.set_enabled(false);
    assert!(!metrics.is_watched());
    metrics.watch().unwrap();
    assert!(!metrics.is_watched());
    metrics.now();
    assert_eq!(metrics.history(|h| h.samples().len()), 0);
}

#[test]
fn another_tree_takes_over_after_a_device_came() {
    let (_, metrics) = machine();
    let other = Arc::new(Machine::default());
    other.works();
    metrics.set_tree(other);
    assert_eq!(metrics.now().exits.total(), 100);
}
