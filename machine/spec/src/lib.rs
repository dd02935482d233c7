//! The machine as its user describes it: the wire form and its validation.
//!
//! [`VmConfig`] is what files, flags and the API say; it is frozen by its version. [`VmConfig::validate`]
//! turns it into a [`VmSpec`], or reports every problem at once. Addresses are the planner's business.
#![forbid(unsafe_code)]

mod config;
mod parse;
mod size;
mod spec;
#[cfg(test)]
mod tests;

pub use config::{
    BootConfig, ConsoleConfig, ConsoleDevice, ConsoleKind, CpuConfig, Cpus, DebugConsoleConfig,
    DiskConfig, DiskEngine, DiskFormat, HugePageSize, MacAddress, MemoryConfig, MemoryValue,
    NetConfig, NetKind, OnEnospc, Rng, RngConfig, Transport, VmConfig, VsockConfig,
};
pub use parse::{ParseError, parse_json, parse_options, parse_toml};
pub use size::{ByteSize, SizeError};
pub use spec::{BootSpec, CpuSpec, DeviceSpec, DiskRole, MemorySpec, Role, SpecError, VmSpec};
pub use spec::{added_disk, added_net};
