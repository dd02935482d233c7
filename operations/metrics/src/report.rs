//! The performance report, in the two shapes that scripts know.

use crate::bottleneck::Bottleneck;
use crate::sample::{Disk, EXIT_KINDS, Exits, MemoryFigures, Net, ProcessFigures, Sample};
use crate::{Measured, Rates};
use nyx_inspect::{Distribution, Series, Value};
use serde::Serialize;
use std::collections::BTreeMap;

/// The short shape.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FlatReport {
    /// Exits that reached the VMM.
    pub total_exits: u64,
    /// Mean time of an exit in the VMM, of a sample of them.
    pub avg_exit_time_us: Measured<f64>,
    /// Mean time of disk requests.
    pub disk_latency_us: Measured<f64>,
    /// Transfers that failed and frames that were lost.
    pub network_errors: u64,
    /// Share of the memory in RAM that the guest was given and that is in RAM: from 0, nothing touched
    /// yet, to 1.
    pub memory_efficiency: Measured<f64>,
}

impl FlatReport {
    /// Of one sample.
    pub fn of(sample: &Sample) -> Self {
        let Sample {
            exits,
            disk,
            net,
            memory,
            ..
        } = sample;
        let all = crate::Latency(disk.read_latency.0.and(&disk.write_latency.0));
        let efficiency = match (memory.allocated, memory.resident) {
            (0, _) => Measured::Absent("the size of guest memory is unknown"),
            (_, Measured::Absent(why)) => Measured::Absent(why),
            (allocated, Measured::Value(resident)) => {
                Measured::Value((resident as f64 / allocated as f64).min(1.0))
            }
        };
        Self {
            total_exits: exits.total(),
            avg_exit_time_us: Measured::of(exits.time.average_us(), "no exit was timed yet"),
            disk_latency_us: Measured::of(all.average_us(), "no disk request completed yet"),
            network_errors: [net.rx_errors, net.tx_errors, net.rx_dropped, net.tx_dropped]
                .iter()
                .fold(0, |sum, n| sum.saturating_add(*n)),
            memory_efficiency: efficiency,
        }
    }
}

/// Accesses of one device's windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceIo {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Refused ones.
    pub bad: u64,
    /// Bytes that its backend carried, both directions; zero for a device without one.
    pub bytes: u64,
}

impl DeviceIo {
    /// Of each unit in `series`.
    pub fn by_unit(series: &[Series]) -> BTreeMap<String, Self> {
        let mut units: BTreeMap<String, Self> = BTreeMap::new();
        for one in series {
            let (Some(unit), Value::Count(n)) = (one.label("unit"), &one.value) else {
                continue;
            };
            let io = units.entry(unit.into()).or_default();
            let to = match (one.name.as_str(), one.label("direction")) {
                ("nyx_device_accesses_total", Some("read")) => &mut io.reads,
                ("nyx_device_accesses_total", Some("write")) => &mut io.writes,
                ("nyx_device_bad_accesses_total", _) => &mut io.bad,
                (name, _) if name.ends_with("_bytes_total") => &mut io.bytes,
                _ => continue,
            };
            *to = to.saturating_add(*n);
        }
        units
    }
}

/// One kind of exit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopExit {
    /// Its kind, one of [`EXIT_KINDS`].
    pub kind: String,
    /// How many, on all vCPUs.
    pub count: u64,
    /// Of all exits, 0 to 1.
    pub share: f64,
    /// Mean time in the VMM in microseconds, of a sample of them.
    pub avg_us: Measured<f64>,
    /// Longest time in the VMM in microseconds, of the same.
    pub max_us: Measured<f64>,
}

impl TopExit {
    /// The `limit` most frequent kinds in `series`, the most frequent first.
    pub fn of(series: &[Series], limit: usize) -> Vec<Self> {
        let mut kinds: Vec<(&str, u64, Distribution)> = EXIT_KINDS
            .iter()
            .map(|kind| (*kind, 0, Distribution::default()))
            .collect();
        for one in series {
            let Some(to) = kinds
                .iter_mut()
                .find(|(kind, ..)| one.label("kind") == Some(kind))
            else {
                continue;
            };
            match (one.name.as_str(), &one.value) {
                ("nyx_vcpu_exits_total", Value::Count(n)) => to.1 = to.1.saturating_add(*n),
                ("nyx_vcpu_exit_seconds", Value::Histogram(d)) => to.2 = to.2.and(d),
                _ => {}
            }
        }
        let total = kinds.iter().fold(0_u64, |sum, k| sum.saturating_add(k.1));
        kinds.retain(|(_, count, _)| *count != 0);
        kinds.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
        kinds.truncate(limit);
        let us = |nanos: Option<u64>| {
            Measured::of(
                nanos.map(|n| n as f64 / 1e3),
                "no exit of this kind was timed yet",
            )
        };
        kinds
            .into_iter()
            .map(|(kind, count, times)| Self {
                kind: kind.into(),
                count,
                share: count as f64 / total.max(1) as f64,
                avg_us: us(times.average()),
                max_us: us(times.max()),
            })
            .collect()
    }
}

/// The long shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// When, in milliseconds since 1970.
    pub timestamp: u64,
    /// Exits.
    pub hypervisor_metrics: Exits,
    /// Disks.
    pub disk_io: Disk,
    /// Network.
    pub network: Net,
    /// Memory.
    pub memory: MemoryFigures,
    /// Each device.
    pub device_io: BTreeMap<String, DeviceIo>,
    /// Processor time and switches.
    pub process: ProcessFigures,
    /// What happens now, per second; absent with fewer than two samples.
    pub rates: Option<Rates>,
    /// The most frequent exits.
    pub top_exits: Vec<TopExit>,
    /// What holds the machine up.
    pub bottlenecks: Vec<Bottleneck>,
    /// The short shape of the same.
    pub summary: FlatReport,
}
