//! Composes a machine from a plan: fabric, unit graph, vCPU threads, quiesce.
//!
//! It knows traits, not kinds: no field and no function here names a device kind.
#![forbid(unsafe_code)]

mod assemble;
mod fabric;
mod graph;
mod machine;
#[cfg(test)]
mod tests;
mod vcpu;

pub use assemble::{AssembleError, Ports};
pub use graph::{Quiesced, StuckUnits, UnitGraph};
pub use machine::{Machine, QuiescedMachine};
pub use vcpu::{ExitCounters, VcpuEvent, VcpuSet, VcpuSink};
