//! Both views of one derived tree, and the histogram.

use super::*;
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};
use serde_json::json;

#[derive(Inspect)]
#[inspect(crate = "crate", prefix = "serial")]
struct Uart {
    #[inspect(hex)]
    base: u16,
    /// Bytes sent, see [`Modem`],
    /// whatever became of them.
    ///
    /// Not this.
    #[inspect(metric = "bytes", label(direction = "tx"))]
    tx_bytes: Counter,
    /// Bytes received.
    #[inspect(metric = "bytes", label(direction = "rx"))]
    rx_bytes: Counter,
    /// Waiting "bytes" in C:\.
    queued: Gauge,
    #[inspect(skip)]
    _wire: (),
    modem: Modem,
    names: Vec<String>,
    /// Events by pin.
    #[inspect(items = "pin")]
    pins: [Counter; 2],
    /// Never there.
    absent: Option<Counter>,
}

#[derive(Inspect)]
#[inspect(crate = "crate")]
struct Modem {
    cts: bool,
    breaks: Counter,
}

fn uart() -> Uart {
    let uart = Uart {
        base: 0x3f8,
        tx_bytes: Counter::default(),
        rx_bytes: Counter::default(),
        queued: Gauge::default(),
        _wire: (),
        modem: Modem {
            cts: true,
            breaks: Counter::default(),
        },
        names: vec!["a".into(), "b".into()],
        pins: Default::default(),
        absent: None,
    };
    uart.tx_bytes.add(3);
    uart.pins[1].bump();
    uart.queued.set(2);
    uart
}

#[test]
fn json_shows_every_field_but_the_skipped() {
    assert_eq!(
        Json::of(&uart()),
        json!({
            "base": "0x3f8", "tx_bytes": 3, "rx_bytes": 0, "queued": 2,
            "modem": { "cts": true, "breaks": 0 },
            "names": { "0": "a", "1": "b" },
            "pins": { "0": 0, "1": 1 },
        })
    );
}

#[test]
fn prometheus_shows_only_metrics_with_help_and_labels() {
    let mut page = Prometheus::new(&[("vm", "web\"1\"")]);
    page.about(&About::key("unit"));
    page.child("isa/com1", &uart());
    assert_eq!(
        page.page(),
        r##"# HELP nyx_breaks_total breaks
# TYPE nyx_breaks_total counter
nyx_breaks_total{vm="web\"1\"",unit="isa/com1"} 0
# HELP nyx_serial_bytes_total Bytes sent, see Modem, whatever became of them.
# TYPE nyx_serial_bytes_total counter
nyx_serial_bytes_total{vm="web\"1\"",unit="isa/com1",direction="tx"} 3
nyx_serial_bytes_total{vm="web\"1\"",unit="isa/com1",direction="rx"} 0
# HELP nyx_serial_pins_total Events by pin.
# TYPE nyx_serial_pins_total counter
nyx_serial_pins_total{vm="web\"1\"",unit="isa/com1",pin="0"} 0
nyx_serial_pins_total{vm="web\"1\"",unit="isa/com1",pin="1"} 1
# HELP nyx_serial_queued Waiting "bytes" in C:\\.
# TYPE nyx_serial_queued gauge
nyx_serial_queued{vm="web\"1\"",unit="isa/com1"} 2
"##
    );
}

#[test]
fn without_keys_the_path_is_the_unit() {
    let mut page = Prometheus::default();
    page.child("a", &uart());
    let page = page.page();
    assert!(
        page.contains("nyx_breaks_total{unit=\"a/modem\"} 0\n"),
        "{page}"
    );
    assert!(page.contains("nyx_serial_queued{unit=\"a\"} 2\n"), "{page}");
}

#[test]
fn what_would_be_twice_on_a_page_is_told_apart_by_its_path() {
    struct Two;
    impl Inspect for Two {
        fn inspect(&self, v: &mut dyn Visitor) {
            v.about(&About::key("vcpu"));
            v.child("0", &Halves);
        }
    }
    struct Halves;
    impl Inspect for Halves {
        fn inspect(&self, v: &mut dyn Visitor) {
            v.child("left", &One);
            v.child("right", &One);
        }
    }
    struct One;
    impl Inspect for One {
        fn inspect(&self, v: &mut dyn Visitor) {
            v.leaf("steps", Leaf::Count(1));
            // Nobody said that it is one of a kind, but a page cannot have it twice.
            v.leaf("steps", Leaf::Count(2));
        }
    }
    let series = Collector::of(&Two, &[]);
    let labels: Vec<_> = series
        .iter()
        .map(|s| (s.label("vcpu"), s.label("part"), &s.value))
        .collect();
    assert_eq!(
        labels,
        [
            (Some("0"), None, &Value::Count(1)),
            (Some("0"), Some("left"), &Value::Count(2)),
            (Some("0"), Some("right"), &Value::Count(1)),
        ]
    );
}

#[test]
fn names_end_as_prometheus_wants_them() {
    struct Named;
    impl Inspect for Named {
        fn inspect(&self, v: &mut dyn Visitor) {
            v.leaf("a_total", Leaf::Level(1));
            v.leaf("b", Leaf::Time(1_500_000_000));
            v.leaf("c.d", Leaf::Count(1));
            v.leaf("e", Leaf::Histogram(Box::default()));
        }
    }
    let series = Collector::of(&Named, &[]);
    let names: Vec<_> = series.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "nyx_a",
            "nyx_b_seconds_total",
            "nyx_c_d_total",
            "nyx_e_seconds"
        ]
    );
    assert!(render(&series).contains("nyx_b_seconds_total 1.5\n"));
}

#[test]
fn a_family_has_one_kind() {
    struct Mixed;
    impl Inspect for Mixed {
        fn inspect(&self, v: &mut dyn Visitor) {
            v.leaf("x_seconds", Leaf::Histogram(Box::default()));
            v.about(&About::metric("x_seconds", "").labels(&[("a", "b")]));
            v.leaf("other", Leaf::Level(7));
        }
    }
    let page = Prometheus::of(&Mixed, &[]);
    assert_eq!(page.matches("# TYPE").count(), 1);
    assert!(!page.contains(" 7\n"), "{page}");
}

#[test]
fn bounds_are_one_two_five() {
    assert_eq!(BOUNDS[..4], [100, 200, 500, 1000]);
    assert_eq!(BOUNDS[24], 10_000_000_000);
    assert!(BOUNDS.is_sorted());
}

#[test]
fn a_histogram_on_the_page_is_cumulative() {
    #[derive(Inspect, Default)]
    #[inspect(crate = "crate")]
    struct Disk {
        /// Time of requests.
        #[inspect(label(op = "read"))]
        latency: Histogram,
    }
    let disk = Disk::default();
    for nanos in [100, 101, 1_000_000, 20_000_000_000] {
        disk.latency.record(nanos);
    }
    let page = Prometheus::of(&disk, &[]);
    let has = |line: &str| assert!(page.contains(&format!("{line}\n")), "{line} in {page}");
    has("# TYPE nyx_latency_seconds histogram");
    has("nyx_latency_seconds_bucket{op=\"read\",le=\"0.0000001\"} 1");
    has("nyx_latency_seconds_bucket{op=\"read\",le=\"0.0000002\"} 2");
    has("nyx_latency_seconds_bucket{op=\"read\",le=\"0.0005\"} 2");
    has("nyx_latency_seconds_bucket{op=\"read\",le=\"0.001\"} 3");
    has("nyx_latency_seconds_bucket{op=\"read\",le=\"10\"} 3");
    has("nyx_latency_seconds_bucket{op=\"read\",le=\"+Inf\"} 4");
    has("nyx_latency_seconds_sum{op=\"read\"} 20.001000201");
    has("nyx_latency_seconds_count{op=\"read\"} 4");
    let tree = Json::of(&disk);
    assert_eq!(tree["latency"]["count"], 4);
    assert_eq!(tree["latency"]["min_ns"], 100);
    assert_eq!(tree["latency"]["max_ns"], 20_000_000_000_u64);
    assert_eq!(tree["latency"]["avg_ns"], 5_000_250_050_u64);
    let none = Disk::default();
    assert_eq!(Json::of(&none)["latency"], json!({ "count": 0 }));
}

#[test]
fn writers_on_several_threads_lose_nothing() {
    let histogram = Histogram::default();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let histogram = &histogram;
            scope.spawn(move || {
                (0..10_000).for_each(|n| histogram.record(n * 10 + thread));
            });
        }
    });
    let all = histogram.snapshot();
    assert_eq!(all.count(), 40_000);
    assert_eq!(all.min(), Some(0));
    assert_eq!(all.max(), Some(99_993));
    assert_eq!(all.sum, 4 * 10 * (9_999 * 10_000 / 2) + 10_000 * 6);
}

#[test]
fn patterns_match_as_in_a_shell() {
    assert!(matches("nyx_blk_*", "nyx_blk_bytes_total"));
    assert!(matches("*bytes*", "nyx_blk_bytes_total"));
    assert!(matches("*", ""));
    assert!(matches("a*b*c", "abbc"));
    assert!(matches("nyx_x", "nyx_x"));
    assert!(!matches("nyx_x", "nyx_xy"));
    assert!(!matches("ab*ba", "aba"));
    assert!(!matches("", "x"));
    let page = {
        let mut page = Prometheus::default().only("*breaks*");
        page.child("u", &uart());
        page.page()
    };
    assert_eq!(page.lines().count(), 3);
}

#[test]
fn a_level_does_not_fall_below_zero() {
    let gauge = Gauge::default();
    gauge.add(2);
    gauge.sub(3);
    assert_eq!(gauge.get(), 0);
}

proptest! {
    #[test]
    fn both_ways_of_counting_agree(samples in prop::collection::vec(any::<u32>(), 1..200)) {
        let (shared, alone) = (Histogram::default(), Histogram::default());
        for nanos in &samples {
            shared.record(u64::from(*nanos));
            alone.record_alone(u64::from(*nanos));
        }
        prop_assert_eq!(shared.snapshot(), alone.snapshot());
        let all = shared.snapshot();
        prop_assert_eq!(all.count(), samples.len() as u64);
        prop_assert_eq!(all.sum, samples.iter().map(|n| u64::from(*n)).sum::<u64>());
    }

    #[test]
    fn quantiles_are_in_the_bucket_of_the_true_one(
        samples in prop::collection::vec(1_u64..20_000_000_000, 1..200),
        q in 0.01_f64..1.0,
    ) {
        let histogram = Histogram::default();
        samples.iter().for_each(|n| histogram.record(*n));
        let all = histogram.snapshot();
        let mut sorted = samples;
        sorted.sort_unstable();
        let rank = ((q * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
        let truth = sorted[rank - 1];
        let at = BOUNDS.partition_point(|b| *b < truth);
        let low = if at == 0 { 0 } else { BOUNDS[at - 1] };
        let high = BOUNDS.get(at).copied().unwrap_or(u64::MAX);
        let estimate = all.quantile(q).unwrap();
        prop_assert!(low <= estimate && estimate <= high, "{low} {estimate} {high}");
        prop_assert!(all.min().unwrap() <= estimate && estimate <= all.max().unwrap());
        prop_assert!(all.quantile(q / 2.0).unwrap() <= estimate);
    }

    #[test]
    fn a_difference_is_what_came_between(
        before in prop::collection::vec(1_u64..1_000_000, 0..50),
        between in prop::collection::vec(1_u64..1_000_000, 0..50),
    ) {
        let histogram = Histogram::default();
        before.iter().for_each(|n| histogram.record(*n));
        let then = histogram.snapshot();
        between.iter().for_each(|n| histogram.record(*n));
        let passed = histogram.snapshot().since(&then);
        prop_assert_eq!(passed.count(), between.len() as u64);
        prop_assert_eq!(passed.sum, between.iter().sum::<u64>());
        prop_assert_eq!(passed.and(&then).buckets, histogram.snapshot().buckets);
        if let Some(longest) = between.iter().max() {
            prop_assert!(passed.max().unwrap() >= *longest);
        }
    }
}
