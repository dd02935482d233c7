//! Whether all is well, and if not, why. Pure.

use crate::bottleneck::{Bottleneck, Severity};
use crate::{FlatReport, Measured, Rates};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a machine or one aspect of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nobody can tell.
    Unknown,
    /// All is well.
    Healthy,
    /// It works, but worse than it should.
    Degraded,
    /// It hardly works, or is about to stop working.
    Critical,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Critical => "critical",
        })
    }
}

/// One aspect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name, such as `disk_latency`.
    pub name: String,
    /// How it is.
    pub status: Status,
    /// Why it is so, or why nobody can tell.
    pub reason: String,
}

impl Check {
    /// A check with its outcome.
    pub fn new(name: &str, status: Status, reason: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status,
            reason: reason.into(),
        }
    }
}

/// From when on health is impaired: beyond the first value degraded, beyond the second critical. All are
/// rates or quantiles over the window, never totals: a machine does not get ill by age.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthLimits {
    /// Exits that reach the VMM, per second and vCPU.
    pub exits_per_vcpu: (f64, f64),
    /// 99th percentile of disk requests in microseconds.
    pub disk_p99_us: (f64, f64),
    /// Failed disk requests per second.
    pub disk_errors: (f64, f64),
    /// Share of frames that fail or are lost.
    pub network_error_share: (f64, f64),
    /// Refused accesses of the guest per second.
    pub bad_accesses: (f64, f64),
    /// Failed allocations within the window.
    pub allocation_failures: (f64, f64),
    /// Periods without processor within the window.
    pub quota_throttles: (f64, f64),
    /// Throttling events within the window.
    pub thermal_throttles: (f64, f64),
}

impl Default for HealthLimits {
    fn default() -> Self {
        Self {
            exits_per_vcpu: (100_000.0, 1_000_000.0),
            disk_p99_us: (5000.0, 1_000_000.0),
            disk_errors: (0.0, 10.0),
            network_error_share: (0.001, 0.1),
            bad_accesses: (1000.0, f64::INFINITY),
            allocation_failures: (0.0, 10.0),
            quota_throttles: (0.0, f64::INFINITY),
            thermal_throttles: (0.0, f64::INFINITY),
        }
    }
}

/// The report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// The worst of all checks that can tell.
    pub status: Status,
    /// What is wrong, in words.
    pub issues: Vec<String>,
    /// Each aspect.
    pub checks: Vec<Check>,
    /// What holds the machine up.
    pub bottlenecks: Vec<Bottleneck>,
    /// The figures in short.
    pub metrics: FlatReport,
    /// The last errors that its units reported, newest last; filled by whoever keeps them.
    pub errors: Vec<String>,
}

impl Health {
    /// The same with one aspect more, such as what the machine's owner knows.
    #[must_use]
    pub fn with(mut self, check: Check) -> Self {
        if matches!(check.status, Status::Degraded | Status::Critical) {
            self.issues
                .push(format!("{}: {}", check.name, check.reason));
        }
        self.status = self.status.max(check.status);
        self.checks.push(check);
        self
    }

    /// The same with an error that a unit reported.
    #[must_use]
    pub fn with_error(mut self, error: impl Into<String>) -> Self {
        self.errors.push(error.into());
        self
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "status: {}", self.status)?;
        for Check {
            name,
            status,
            reason,
        } in &self.checks
        {
            writeln!(f, "  {name:<20} {:<9} {reason}", status.to_string())?;
        }
        for bottleneck in &self.bottlenecks {
            writeln!(f, "bottleneck: {bottleneck}")?;
        }
        for error in &self.errors {
            writeln!(f, "error: {error}")?;
        }
        Ok(())
    }
}

/// Name, figure, limits, and how to say the figure.
type Aspect = (&'static str, Measured<f64>, (f64, f64), fn(f64) -> String);

/// Health over a window; without one, nobody can tell.
pub fn assess(
    window: Option<&Rates>,
    bottlenecks: Vec<Bottleneck>,
    metrics: FlatReport,
    limits: &HealthLimits,
) -> Health {
    let mut health = Health {
        status: Status::Unknown,
        issues: Vec::new(),
        checks: Vec::new(),
        bottlenecks: Vec::new(),
        metrics,
        errors: Vec::new(),
    };
    let Some(rates) = window else {
        return health.with(Check::new(
            "samples",
            Status::Unknown,
            "fewer than two samples were taken",
        ));
    };
    let p99 = Measured::of(
        rates.disk_latency().quantile_us(0.99),
        "no disk request completed",
    );
    let count = |m: Measured<u64>| m.map(|n| n as f64);
    let checks: [Aspect; 8] = [
        (
            "exit_rate",
            Measured::Value(rates.exits_per_vcpu),
            limits.exits_per_vcpu,
            |v| format!("{v:.0} exits per second and vCPU"),
        ),
        ("disk_latency", p99, limits.disk_p99_us, |v| {
            format!("99 % of disk requests within {v:.0} µs")
        }),
        (
            "disk_errors",
            Measured::Value(rates.disk_errors),
            limits.disk_errors,
            |v| format!("{v:.1} failed disk requests per second"),
        ),
        (
            "network_errors",
            rates.net_error_share,
            limits.network_error_share,
            |v| format!("{:.3} % of frames failed or lost", v * 100.0),
        ),
        (
            "bad_accesses",
            Measured::Value(rates.bad_accesses),
            limits.bad_accesses,
            |v| format!("{v:.0} refused accesses per second"),
        ),
        (
            "memory",
            count(rates.allocation_failures),
            limits.allocation_failures,
            |v| format!("{v:.0} failed allocations"),
        ),
        (
            "cpu_quota",
            count(rates.quota_throttles),
            limits.quota_throttles,
            |v| format!("{v:.0} periods with the processor quota used up"),
        ),
        (
            "thermal",
            count(rates.thermal_throttles),
            limits.thermal_throttles,
            |v| format!("{v:.0} throttling events"),
        ),
    ];
    for (name, value, (degraded, critical), say) in checks {
        health = health.with(match value {
            Measured::Absent(why) => Check::new(name, Status::Unknown, why),
            Measured::Value(value) => {
                let status = if value > critical {
                    Status::Critical
                } else if value > degraded {
                    Status::Degraded
                } else {
                    Status::Healthy
                };
                Check::new(name, status, say(value))
            }
        });
    }
    // A bottleneck that is ten times beyond its bound impairs the machine, whatever the limits say.
    for bottleneck in &bottlenecks {
        if bottleneck.severity == Severity::Critical {
            health.status = health.status.max(Status::Degraded);
            health.issues.push(bottleneck.to_string());
        }
    }
    health.bottlenecks = bottlenecks;
    health
}
