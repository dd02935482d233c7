//! What is said over a machine's control socket: requests, answers, events. Types only, no transport.
//!
//! Paths stand in [`paths`], and where the socket is in [`place`]. Times are RFC 3339 in UTC. Every refusal is a [`Problem`].
#![forbid(unsafe_code)]

mod event;
mod machine;
mod operation;
pub mod paths;
pub mod place;
mod problem;

pub use event::{Event, Happening};
pub use machine::{
    ConsoleDescription, DeviceDescription, GdbAddress, GdbRequest, Health, LogEntry, LogFilter,
    Machine, MachineRecord, Phase, Removal, Started, StopRequest, Tracing, VcpuState,
};
pub use operation::{Operation, OperationKind, OperationState, Progress};
pub use problem::{Code, Problem};
