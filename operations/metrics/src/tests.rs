//! The pure parts on made-up samples, and the front on a made-up machine.

mod front;
mod host;

use crate::*;
use nyx_inspect::{Distribution, Histogram};
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
use serde_json::json;
use std::time::Duration;

/// A sample at `seconds` with nothing in it.
fn at(seconds: f64) -> Sample {
    Sample {
        at: Duration::from_secs_f64(seconds),
        vcpus: 2,
        ..Sample::default()
    }
}

fn durations(nanos: &[u64]) -> Distribution {
    let histogram = Histogram::default();
    nanos.iter().for_each(|n| histogram.record(*n));
    histogram.snapshot()
}

// Rates ---------------------------------------------------------------------------------------

#[test]
fn rates_are_per_second_and_per_vcpu() {
    let before = at(10.0);
    let mut after = at(12.0);
    after.exits.by_kind = [1000, 400, 0, 0, 0];
    after.disk.reads = 50;
    after.disk.read_latency = Latency(durations(&[90_000; 50]));
    after.net.rx_packets = 96;
    after.net.rx_errors = 3;
    after.net.tx_dropped = 1;
    after.process.vcpu_time = Measured::Value(1_000_000_000);
    let rates = Rates::between(&before, &after);
    assert_eq!(rates.seconds, 2.0);
    assert_eq!(rates.exits, 700.0);
    assert_eq!(rates.exits_per_vcpu, 350.0);
    assert_eq!(rates.exits_by_kind[1], 200.0);
    assert_eq!(rates.disk_reads, 25.0);
    assert_eq!(rates.read_latency.average_us(), Some(90.0));
    assert_eq!(rates.net_error_share, Measured::Value(0.04));
    // Before, it was not measured.
    assert_eq!(rates.vcpu_load, Measured::Absent("not measured yet"));
    let later = Sample {
        at: Duration::from_secs(14),
        ..after.clone()
    };
    let idle = Rates::between(&after, &later);
    assert_eq!((idle.exits, idle.activity), (0.0, 0.0));
    assert_eq!(idle.vcpu_load, Measured::Value(0.0));
    assert_eq!(
        idle.net_error_share,
        Measured::Absent("no frame was carried")
    );
    assert_eq!(idle.read_latency.0.count(), 0);
}

#[test]
fn a_count_that_falls_stands_still_and_no_time_is_no_rate() {
    let mut before = at(1.0);
    before.disk.reads = 100;
    let after = at(2.0);
    assert_eq!(Rates::between(&before, &after).disk_reads, 0.0);
    let mut same = at(1.0);
    same.disk.reads = 900;
    assert_eq!(Rates::between(&before, &same).disk_reads, 0.0);
}

#[test]
fn totals_can_be_counted_from_a_baseline() {
    let mut baseline = at(1.0);
    baseline.exits.by_kind[0] = 10;
    baseline.disk.write_latency = Latency(durations(&[1000]));
    let mut now = at(2.0);
    now.exits.by_kind[0] = 25;
    now.disk.write_latency = Latency(durations(&[1000, 3000]));
    now.disk.queue_depth = 7;
    let counted = now.since(&baseline);
    assert_eq!(counted.exits.total(), 15);
    assert_eq!(counted.disk.write_latency.0.sum, 3000);
    assert_eq!(counted.disk.queue_depth, 7);
}

// History -------------------------------------------------------------------------------------

#[test]
fn a_thousand_samples_and_their_seconds_are_kept() {
    let mut history = History::default();
    let mut rolled = 0;
    for tick in 0..2005_u32 {
        let mut sample = at(f64::from(tick) / 10.0);
        sample.exits.by_kind[0] = u64::from(tick) * 30;
        sample.disk.queue_depth = u64::from(tick % 10);
        rolled += u32::from(history.push(sample).is_some());
    }
    assert_eq!(history.samples().len(), History::SAMPLES);
    assert_eq!(rolled, 200);
    assert_eq!(history.rollups().len(), 200);
    let last = history.rollups().next_back().unwrap();
    assert!(
        (last.rates.exits - 300.0).abs() < 1.0,
        "{}",
        last.rates.exits
    );
    assert_eq!(last.peak_disk_queue_depth, 9);
    let window = history.window().unwrap();
    assert!((window.seconds - 1.0).abs() < 1e-6);
    assert!((window.exits_per_vcpu - 150.0).abs() < 1e-3);
    assert!((history.latest().unwrap().seconds - 0.1).abs() < 1e-6);
    let first = history.samples().next().unwrap();
    assert_eq!(first.exits.by_kind[0], 1005 * 30);
}

#[test]
fn roll_ups_are_bounded_too_and_an_old_sample_is_ignored() {
    let mut history = History::default();
    for tick in 0..1000_u32 {
        history.push(at(f64::from(tick) * 2.0));
    }
    assert_eq!(history.rollups().len(), History::ROLLUPS);
    let (samples, newest) = (history.samples().len(), at(1.0));
    assert_eq!(history.push(newest), None);
    assert_eq!(history.samples().len(), samples);
    history.clear();
    assert_eq!((history.samples().len(), history.window()), (0, None));
}

#[test]
fn trends_follow_figures_by_name() {
    let mut history = History::default();
    for second in 0..5_u32 {
        let mut sample = at(second.into());
        sample.disk.reads = 10 + u64::from(second) * 4;
        sample.memory.resident = Measured::Value(1 << 20);
        history.push(sample);
    }
    let trends = history.trends("disk.re*", 100);
    let names: Vec<&str> = trends.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["disk.reads", "disk.read_bytes"]);
    let reads = &trends[0];
    assert_eq!((reads.first, reads.last), (10.0, 26.0));
    assert!((reads.per_second - 4.0).abs() < 1e-9);
    let resident = &history.trends("memory.resident", 3)[0];
    assert_eq!((resident.first, resident.per_second), (1_048_576.0, 0.0));
    // What is not measured has no trend, and one point is none.
    assert!(history.trends("memory.balloon", 100).is_empty());
    assert!(history.trends("*", 1).is_empty());
}

// Pace ----------------------------------------------------------------------------------------

#[test]
fn an_idle_guest_is_looked_at_ever_more_seldom() {
    let mut pace = Pace::default();
    let waits: Vec<u128> = (0..10)
        .map(|_| {
            let wait = pace.wait().as_millis();
            pace.saw(0.0);
            wait
        })
        .collect();
    assert_eq!(
        waits,
        [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]
    );
    pace.saw(Pace::QUIET);
    assert_eq!(pace.wait(), Duration::from_secs(10));
    pace.saw(Pace::QUIET + 1.0);
    assert_eq!(pace.wait(), Duration::from_millis(100));
    pace.saw(0.0);
    pace.wake();
    assert_eq!(pace.wait(), Duration::from_millis(100));
}

// Bottlenecks ---------------------------------------------------------------------------------

fn figure(most: f64) -> impl Strategy<Value = Measured<f64>> {
    prop::option::of(0.0..most).prop_map(|v| Measured::of(v, "made up"))
}

fn pressure() -> impl Strategy<Value = Pressure> {
    (
        0.0..2e6,
        figure(2e4),
        figure(1.0),
        figure(200.0),
        figure(200.0),
    )
        .prop_map(|(exits, disk, net, memory, thermal)| Pressure {
            exits_per_vcpu: exits,
            disk_p99_us: disk,
            network_error_share: net,
            allocation_failures: memory,
            thermal_throttles: thermal,
        })
}

fn severity(found: &[Bottleneck], class: Class) -> Option<Severity> {
    found.iter().find(|b| b.class == class).map(|b| b.severity)
}

proptest! {
    #[test]
    fn detection_is_monotone(pressure in pressure(), class in 0_usize..5, more in 0.0..1e6) {
        let thresholds = Thresholds::default();
        let before = detect(&pressure, &thresholds);
        let mut higher = pressure;
        let raise = |m: &mut Measured<f64>| if let Measured::Value(v) = m { *v += more };
        match class {
            0 => higher.exits_per_vcpu += more,
            1 => raise(&mut higher.disk_p99_us),
            2 => raise(&mut higher.network_error_share),
            3 => raise(&mut higher.allocation_failures),
            _ => raise(&mut higher.thermal_throttles),
        }
        let after = detect(&higher, &thresholds);
        for class in Class::ALL {
            // None is below every severity.
            prop_assert!(severity(&before, class) <= severity(&after, class));
        }
    }

    #[test]
    fn each_kind_looks_at_its_own_figure(pressure in pressure()) {
        let found = detect(&pressure, &Thresholds::default());
        let beyond = [
            pressure.exits_per_vcpu > 100_000.0,
            pressure.disk_p99_us.get().is_some_and(|v| v > 1000.0),
            pressure.network_error_share.get().is_some_and(|v| v > 0.001),
            pressure.allocation_failures.get().is_some_and(|v| v > 0.0),
            pressure.thermal_throttles.get().is_some_and(|v| v > 0.0),
        ];
        for (class, beyond) in Class::ALL.into_iter().zip(beyond) {
            prop_assert_eq!(severity(&found, class).is_some(), beyond, "{:?}", class);
        }
        // The worst first, each with advice.
        prop_assert!(found.is_sorted_by_key(|b| std::cmp::Reverse(b.severity)));
        prop_assert!(found.iter().all(|b| b.value > b.threshold && b.recommendation.len() > 20));
    }

    #[test]
    fn an_idle_machine_has_none(vcpus in 1_u32..256, seconds in 0.01_f64..100.0, total in any::<u32>()) {
        let mut before = at(0.0);
        before.vcpus = vcpus;
        before.exits.by_kind[0] = total.into();
        before.disk.read_latency = Latency(durations(&[u64::from(total)]));
        before.memory.allocation_failures = Measured::Value(3);
        let after = Sample { at: Duration::from_secs_f64(seconds), ..before.clone() };
        let rates = Rates::between(&before, &after);
        prop_assert_eq!(detect(&Pressure::of(&rates), &Thresholds::default()), []);
        let health = assess(Some(&rates), Vec::new(), FlatReport::of(&after), &HealthLimits::default());
        prop_assert_eq!(health.status, Status::Healthy);
    }

    #[test]
    fn severity_grows_with_the_excess(times in 1.001_f64..9.0, factor in 1.0_f64..10.0) {
        let of = |times: f64| {
            let pressure = Pressure { exits_per_vcpu: times * 100_000.0, ..Pressure::default() };
            severity(&detect(&pressure, &Thresholds::default()), Class::IoBottleneck)
        };
        prop_assert!(of(times).is_some());
        prop_assert!(of(times) <= of(times * factor));
    }
}

#[test]
fn severities_begin_where_the_documentation_says() {
    let of = |times: f64| {
        let pressure = Pressure {
            disk_p99_us: Measured::Value(times * 1000.0),
            ..Pressure::default()
        };
        severity(
            &detect(&pressure, &Thresholds::default()),
            Class::DiskBottleneck,
        )
    };
    assert_eq!(of(1.0), None);
    assert_eq!(of(1.01), Some(Severity::Low));
    assert_eq!(of(2.0), Some(Severity::Medium));
    assert_eq!(of(5.0), Some(Severity::High));
    assert_eq!(of(10.0), Some(Severity::Critical));
    let failed = |times: f64| {
        let pressure = Pressure {
            allocation_failures: Measured::Value(times),
            ..Pressure::default()
        };
        severity(
            &detect(&pressure, &Thresholds::default()),
            Class::MemoryBottleneck,
        )
    };
    assert_eq!(failed(1.0), Some(Severity::Medium));
    assert_eq!(failed(10.0), Some(Severity::High));
    assert_eq!(failed(100.0), Some(Severity::Critical));
}

#[test]
fn the_exit_rate_is_per_vcpu_and_thresholds_can_be_set() {
    let mut after = at(1.0);
    after.exits.by_kind[0] = 199_000;
    let rates = Rates::between(&at(0.0), &after);
    // Two vCPUs share them.
    assert_eq!(detect(&Pressure::of(&rates), &Thresholds::default()), []);
    after.vcpus = 1;
    let rates = Rates::between(&at(0.0), &after);
    let found = detect(&Pressure::of(&rates), &Thresholds::default());
    assert_eq!(found[0].tuple().0, "vm_exit_rate");
    assert_eq!(
        serde_json::to_value(&found[0]).unwrap()["type"],
        "IO_BOTTLENECK"
    );
    let strict: Thresholds = serde_json::from_value(json!({"exits_per_vcpu": 1000.0})).unwrap();
    assert_eq!(strict.disk_p99_us, 1000.0);
    let found = detect(&Pressure::of(&rates), &strict);
    assert_eq!(found[0].severity, Severity::Critical);
    assert!(serde_json::from_value::<Thresholds>(json!({"exits": 1})).is_err());
}

// Health --------------------------------------------------------------------------------------

#[test]
fn health_says_what_is_wrong_and_what_nobody_knows() {
    let mut before = at(0.0);
    before.memory.allocation_failures = Measured::Absent("no group");
    let mut after = at(1.0);
    after.memory.allocation_failures = Measured::Absent("no group");
    after.disk.reads = 100;
    after.disk.read_latency = Latency(durations(&[8_000_000; 100]));
    after.disk.errors = 50;
    after.bump_exits(5_000_000);
    let rates = Rates::between(&before, &after);
    let bottlenecks = detect(&Pressure::of(&rates), &Thresholds::default());
    let health = assess(
        Some(&rates),
        bottlenecks,
        FlatReport::of(&after),
        &HealthLimits::default(),
    );
    let status = |name: &str| {
        health
            .checks
            .iter()
            .find(|c| c.name == name)
            .unwrap()
            .status
    };
    assert_eq!(status("disk_latency"), Status::Degraded);
    assert_eq!(status("disk_errors"), Status::Critical);
    assert_eq!(status("exit_rate"), Status::Critical);
    assert_eq!(status("memory"), Status::Unknown);
    assert_eq!(status("network_errors"), Status::Unknown);
    assert_eq!(health.status, Status::Critical);
    assert!(
        health
            .issues
            .iter()
            .any(|i| i.contains("50.0 failed disk requests"))
    );
    let health = health
        .with(Check::new("phase", Status::Healthy, "running"))
        .with_error("disk0: input/output error");
    let text = health.to_string();
    assert!(text.starts_with("status: critical\n"), "{text}");
    assert!(
        text.contains("memory               unknown   no group"),
        "{text}"
    );
    assert!(
        text.contains("bottleneck: vm_exit_rate (critical)"),
        "{text}"
    );
    assert!(text.contains("error: disk0:"), "{text}");
    let json = serde_json::to_value(&health).unwrap();
    assert_eq!(json["status"], "critical");
    assert_eq!(json["metrics"]["total_exits"], 5_000_000);
    assert_eq!(json["bottlenecks"].as_array().unwrap().len(), 2);
    assert_eq!(json["errors"], json!(["disk0: input/output error"]));
}

#[test]
fn without_samples_nobody_can_tell_and_age_is_no_illness() {
    let unknown = assess(
        None,
        Vec::new(),
        FlatReport::default(),
        &HealthLimits::default(),
    );
    assert_eq!(unknown.status, Status::Unknown);
    assert!(unknown.issues.is_empty());
    let (mut before, mut after) = (at(0.0), at(1.0));
    before.bump_exits(1_000_000_000);
    after.bump_exits(1_000_000_001);
    let rates = Rates::between(&before, &after);
    let health = assess(
        Some(&rates),
        Vec::new(),
        FlatReport::of(&after),
        &HealthLimits::default(),
    );
    assert_eq!(health.status, Status::Healthy);
}

impl Sample {
    fn bump_exits(&mut self, n: u64) {
        self.exits.by_kind[0] = n;
    }
}

// Reports -------------------------------------------------------------------------------------

#[test]
fn the_flat_report_knows_what_it_does_not_know() {
    let report = serde_json::to_value(FlatReport::of(&at(0.0))).unwrap();
    assert_eq!(report["total_exits"], 0);
    assert_eq!(
        report["disk_latency_us"],
        json!({"unavailable": "no disk request completed yet"})
    );
    let mut sample = at(1.0);
    sample.exits.time = Latency(durations(&[2000, 4000]));
    sample.memory.allocated = 1 << 30;
    sample.memory.resident = Measured::Value(1 << 28);
    sample.net.tx_dropped = 2;
    sample.net.rx_errors = 3;
    let report = serde_json::to_value(FlatReport::of(&sample)).unwrap();
    assert_eq!(report["avg_exit_time_us"], 3.0);
    assert_eq!(report["memory_efficiency"], 0.25);
    assert_eq!(report["network_errors"], 5);
}
