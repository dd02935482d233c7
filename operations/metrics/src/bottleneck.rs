//! Which of five things holds the machine up. Pure.

use crate::{Measured, Rates};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Kind of a bottleneck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Class {
    /// Too many exits that reach the VMM.
    IoBottleneck,
    /// Disk requests take too long.
    DiskBottleneck,
    /// Too many frames fail or are lost.
    NetworkBottleneck,
    /// Allocations fail.
    MemoryBottleneck,
    /// The host lowers its clock.
    ThermalBottleneck,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::IoBottleneck,
        Self::DiskBottleneck,
        Self::NetworkBottleneck,
        Self::MemoryBottleneck,
        Self::ThermalBottleneck,
    ];

    /// The key in reports.
    pub fn key(self) -> &'static str {
        match self {
            Self::IoBottleneck => "vm_exit_rate",
            Self::DiskBottleneck => "disk_latency",
            Self::NetworkBottleneck => "network_errors",
            Self::MemoryBottleneck => "memory_allocation_failures",
            Self::ThermalBottleneck => "thermal_throttling",
        }
    }

    /// What may help.
    fn recommendation(self) -> &'static str {
        match self {
            Self::IoBottleneck => {
                "the guest accesses emulated registers all the time: see the top exits; use virtio \
                 devices, and a guest driver that knows them"
            }
            Self::DiskBottleneck => {
                "the disk's backend is slow: look at the host's disk with iostat, use direct I/O with \
                 io_uring or a faster medium, more queues, or limit other users of the disk"
            }
            Self::NetworkBottleneck => {
                "frames fail or are lost: check the tap device and its bridge, let guest and host agree on \
                 the MTU, and use a virtio-net driver with enough buffers"
            }
            Self::MemoryBottleneck => {
                "the VMM's control group ran out of memory: raise its memory.max, or give the guest less \
                 memory"
            }
            Self::ThermalBottleneck => {
                "the host's processors are too hot for their clock: check its cooling, or move load to \
                 another host"
            }
        }
    }
}

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Just beyond the threshold.
    Low,
    /// Twice the threshold.
    Medium,
    /// Five times the threshold.
    High,
    /// Ten times the threshold.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        })
    }
}

/// From when on something is a bottleneck: beyond these values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Exits that reach the VMM, per second and vCPU.
    pub exits_per_vcpu: f64,
    /// 99th percentile of disk requests in microseconds.
    pub disk_p99_us: f64,
    /// Share of frames that fail or are lost.
    pub network_error_share: f64,
    /// Failed allocations within the window.
    pub allocation_failures: f64,
    /// Throttling events within the window.
    pub thermal_throttles: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            exits_per_vcpu: 100_000.0,
            disk_p99_us: 1000.0,
            network_error_share: 0.001,
            allocation_failures: 0.0,
            thermal_throttles: 0.0,
        }
    }
}

/// What weighs on the machine: the inputs of detection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Exits that reach the VMM, per second and vCPU.
    pub exits_per_vcpu: f64,
    /// 99th percentile of disk requests in microseconds.
    pub disk_p99_us: Measured<f64>,
    /// Share of frames that fail or are lost.
    pub network_error_share: Measured<f64>,
    /// Failed allocations.
    pub allocation_failures: Measured<f64>,
    /// Throttling events.
    pub thermal_throttles: Measured<f64>,
}

impl Pressure {
    /// Of what happened in a window.
    pub fn of(rates: &Rates) -> Self {
        let p99 = rates.disk_latency().quantile_us(0.99);
        Self {
            exits_per_vcpu: rates.exits_per_vcpu,
            disk_p99_us: Measured::of(p99, "no disk request completed"),
            network_error_share: rates.net_error_share,
            allocation_failures: rates.allocation_failures.map(|n| n as f64),
            thermal_throttles: rates.thermal_throttles.map(|n| n as f64),
        }
    }

    fn value(&self, class: Class) -> Measured<f64> {
        match class {
            Class::IoBottleneck => Measured::Value(self.exits_per_vcpu),
            Class::DiskBottleneck => self.disk_p99_us,
            Class::NetworkBottleneck => self.network_error_share,
            Class::MemoryBottleneck => self.allocation_failures,
            Class::ThermalBottleneck => self.thermal_throttles,
        }
    }
}

impl Thresholds {
    fn value(&self, class: Class) -> f64 {
        match class {
            Class::IoBottleneck => self.exits_per_vcpu,
            Class::DiskBottleneck => self.disk_p99_us,
            Class::NetworkBottleneck => self.network_error_share,
            Class::MemoryBottleneck => self.allocation_failures,
            Class::ThermalBottleneck => self.thermal_throttles,
        }
    }
}

/// Something that holds the machine up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bottleneck {
    /// What kind.
    #[serde(rename = "type")]
    pub class: Class,
    /// Its key: `vm_exit_rate`, `disk_latency`, `network_errors`, `memory_allocation_failures`,
    /// `thermal_throttling`.
    pub key: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What was measured.
    pub value: f64,
    /// What it should not exceed.
    pub threshold: f64,
    /// What to do about it.
    pub recommendation: &'static str,
}

impl Bottleneck {
    /// As the tuple that scripts know: issue, severity, suggestion.
    pub fn tuple(&self) -> (&'static str, Severity, &'static str) {
        (self.key, self.severity, self.recommendation)
    }
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            severity,
            value,
            threshold,
            recommendation,
            class,
        } = self;
        match class {
            Class::IoBottleneck => write!(
                f,
                "{key} ({severity}): {value:.0} exits per second and vCPU, more than {threshold:.0}"
            ),
            Class::DiskBottleneck => write!(
                f,
                "{key} ({severity}): 99 % of disk requests within {value:.0} µs, more than {threshold:.0} µs"
            ),
            Class::NetworkBottleneck => write!(
                f,
                "{key} ({severity}): {:.3} % of frames failed or lost, more than {:.3} %",
                value * 100.0,
                threshold * 100.0
            ),
            Class::MemoryBottleneck | Class::ThermalBottleneck => {
                write!(
                    f,
                    "{key} ({severity}): {value:.0} times, more than {threshold:.0}"
                )
            }
        }?;
        write!(f, "; {recommendation}")
    }
}

/// The bottlenecks under `pressure`, the worst first. What was not measured is none.
pub fn detect(pressure: &Pressure, thresholds: &Thresholds) -> Vec<Bottleneck> {
    let mut found: Vec<Bottleneck> = Class::ALL
        .into_iter()
        .filter_map(|class| {
            let value = pressure.value(class).get()?;
            let threshold = thresholds.value(class);
            if value.is_nan() || value <= threshold {
                return None;
            }
            Some(Bottleneck {
                class,
                key: class.key(),
                severity: severity(value, threshold),
                value,
                threshold,
                recommendation: class.recommendation(),
            })
        })
        .collect();
    found.sort_by_key(|bottleneck| std::cmp::Reverse(bottleneck.severity));
    found
}

/// By how many times the threshold was passed. Where nothing at all should happen, once is medium
/// already, and what counts is how often.
fn severity(value: f64, threshold: f64) -> Severity {
    if threshold > 0.0 {
        match value / threshold {
            times if times >= 10.0 => Severity::Critical,
            times if times >= 5.0 => Severity::High,
            times if times >= 2.0 => Severity::Medium,
            _ => Severity::Low,
        }
    } else {
        match value {
            times if times >= 100.0 => Severity::Critical,
            times if times >= 10.0 => Severity::High,
            _ => Severity::Medium,
        }
    }
}
