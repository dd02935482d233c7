//! Composes a machine from a plan: fabric, unit graph, vCPU threads, quiesce.
//!
//! It knows traits, not kinds: no field and no function here names a device kind.
#![forbid(unsafe_code)]

mod assemble;
mod debug;
mod fabric;
mod graph;
mod hotplug;
mod machine;
#[cfg(test)]
mod tests;
mod vcpu;
mod view;

pub use assemble::{AssembleError, Ports};
pub use debug::{AttachError, DebugError, DebugPort, DebugSink, Debugger};
pub use graph::{Quiesced, StuckUnits, UnitGraph};
pub use hotplug::{Detach, Detaching, DeviceAttachError};
pub use machine::{Machine, QuiescedMachine};
pub use vcpu::{ExitCounters, VcpuEvent, VcpuSet, VcpuSink};
pub use view::View;
