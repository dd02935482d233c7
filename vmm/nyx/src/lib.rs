//! The library: build a machine, run it, steer it.
#![forbid(unsafe_code)]

mod builder;
mod console;
mod door;
mod ending;
mod events;
mod faults;
mod features;
mod lifecycle;
mod logger;
mod parts;
mod profile;
mod refusal;
mod report;
mod running;
pub mod size;
#[cfg(test)]
mod tests;
mod vm;
mod written;

pub use builder::{ProductionVMBuilder, VMBuilder, VmBuilder};
pub use console::{ConsoleSession, WaitForError};
pub use ending::Ending;
pub use events::Events;
pub use faults::{FaultRecord, Faults};
pub use features::Feature;
pub use lifecycle::State;
pub use logger::Logger;
pub use parts::{Console, Disk, IntoIsolation, IntoPciId, Isolation, Net, PciId};
pub use profile::{Boot, BootNeeds, GuestProfile};
pub use refusal::{BuildError, BuildErrorKind, BuildErrors};
pub use report::PerformanceReport;
pub use running::RunningVm;
pub use size::{IntoSize, SizeUnits};
pub use vm::{RunMetrics, StartError, Vm};

pub use nyx_api as api;
pub use nyx_diagnose as diagnose;
pub use nyx_journal as journal;
pub use nyx_metrics as metrics;
pub use nyx_spec::{
    ByteSize, ConsoleKind, DiskConfig, DiskEngine, DiskFormat, HugePageSize, NetConfig, Transport,
    VmConfig,
};
pub use nyx_vmm::{Control, Request};
