//! What a machine's counters mean: samples, trends, bottlenecks, health.
//!
//! ```text
//!   Inspect tree ─┐
//!                 ├─▶ Sample ─▶ History ─▶ Rates ─▶ bottlenecks, Health, Report
//!   /proc, cgroup ┘                                    │
//!        └────────────▶ metrics page, export callbacks ◀┘
//! ```
//!
//! [`Metrics`] is the front: it costs nothing until somebody asks, and its thread runs only while
//! somebody watches. Everything it computes with is pure and can be used by itself. A figure that
//! cannot be measured is [`Measured::Absent`] with the reason, never a made-up number.
#![forbid(unsafe_code)]

mod bottleneck;
mod export;
mod health;
mod history;
mod measured;
mod metrics;
mod pace;
mod process;
mod rates;
mod report;
mod sample;
#[cfg(test)]
mod tests;

pub use bottleneck::{Bottleneck, Class, Pressure, Severity, Thresholds, detect};
pub use export::{ExportCallback, Labels, export};
pub use health::{Check, Health, HealthLimits, Status, assess};
pub use history::{History, Rollup, Trend};
pub use measured::Measured;
pub use metrics::{Metrics, Setup, Tree};
pub use pace::Pace;
pub use process::{Host, ProcessFacts, ThreadFacts};
pub use rates::Rates;
pub use report::{DeviceIo, FlatReport, Report, TopExit};
pub use sample::{Disk, EXIT_KINDS, Exits, Latency, MemoryFigures, Net, ProcessFigures, Sample};
