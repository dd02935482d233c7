//! What a machine did, in figures.

use nyx_metrics::{Measured, Report};
use std::fmt;

/// The performance report of a machine: of this moment, or of its end. Displays as text.
#[derive(Clone, Debug, PartialEq)]
pub struct PerformanceReport(Result<Box<Report>, &'static str>);

impl PerformanceReport {
    pub(crate) fn of(report: Report) -> Self {
        Self(Ok(Box::new(report)))
    }

    pub(crate) fn absent(why: &'static str) -> Self {
        Self(Err(why))
    }

    /// The figures; `None` when nothing was measured, see [`why_absent`](Self::why_absent).
    pub fn figures(&self) -> Option<&Report> {
        self.0.as_deref().ok()
    }

    /// Why there are no figures.
    pub fn why_absent(&self) -> Option<&'static str> {
        self.0.as_ref().err().copied()
    }

    /// As JSON: `{"unavailable": …}` when there are none.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.0 {
            // Figures are numbers and texts, which JSON has.
            Ok(report) => serde_json::to_value(report).unwrap_or_default(),
            Err(why) => serde_json::json!({ "unavailable": why }),
        }
    }
}

fn say(f: &mut fmt::Formatter<'_>, what: &str, measured: Measured<f64>, unit: &str) -> fmt::Result {
    match measured {
        Measured::Value(value) => writeln!(f, "{what:<16} {value:.1}{unit}"),
        Measured::Absent(why) => writeln!(f, "{what:<16} – ({why})"),
    }
}

impl fmt::Display for PerformanceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = match &self.0 {
            Ok(report) => report,
            Err(why) => return write!(f, "no figures: {why}"),
        };
        let summary = &report.summary;
        writeln!(f, "{:<16} {}", "exits", summary.total_exits)?;
        say(f, "time of an exit", summary.avg_exit_time_us, " µs")?;
        for exit in &report.top_exits {
            let share = exit.share * 100.0;
            writeln!(f, "  {:<14} {} ({share:.1} %)", exit.kind, exit.count)?;
        }
        let disk = &report.disk_io;
        let what = format!(
            "{} reads, {} writes, {} flushes, {} errors",
            disk.reads, disk.writes, disk.flushes, disk.errors
        );
        writeln!(f, "{:<16} {what}", "disks")?;
        say(f, "disk latency", summary.disk_latency_us, " µs")?;
        let net = &report.network;
        let what = format!(
            "{} packets in, {} out, {} errors",
            net.rx_packets, net.tx_packets, summary.network_errors
        );
        writeln!(f, "{:<16} {what}", "networks")?;
        let efficiency = summary.memory_efficiency.map(|share| share * 100.0);
        say(f, "memory in use", efficiency, " %")?;
        if report.bottlenecks.is_empty() {
            return write!(f, "{:<16} none found", "bottlenecks");
        }
        write!(f, "bottlenecks")?;
        for bottleneck in &report.bottlenecks {
            write!(f, "\n  {bottleneck}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nyx_metrics::{Metrics, Setup};
    use std::sync::Arc;

    #[test]
    fn figures_that_are_absent_say_why() {
        let absent = PerformanceReport::absent("nobody asked");
        assert_eq!(absent.to_string(), "no figures: nobody asked");
        assert_eq!(absent.to_json()["unavailable"], "nobody asked");
        assert_eq!(absent.why_absent(), Some("nobody asked"));
        assert!(absent.figures().is_none());
    }

    #[test]
    fn a_machine_that_did_nothing_has_a_report_too() {
        struct Nothing;
        impl nyx_inspect::Inspect for Nothing {
            fn inspect(&self, _: &mut dyn nyx_inspect::Visitor) {}
        }
        let view = Arc::new(Nothing);
        let report =
            PerformanceReport::of(Metrics::new(Setup::new("vm", 1, 1 << 20), view).report());
        let text = report.to_string();
        assert!(text.starts_with("exits            0\n"), "{text}");
        assert!(
            text.contains("disk latency     – (no disk request completed yet)"),
            "{text}"
        );
        assert_eq!(report.to_json()["summary"]["total_exits"], 0);
        assert_eq!(report.why_absent(), None);
    }
}
