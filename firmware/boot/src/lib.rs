//! Direct kernel boot: ELF/PVH and bzImage, initrd, command line, boot memory maps.
//!
//! ```text
//! Kernel::open ─▶ BootPlan::build (pure: placements, entry registers) ─▶ BootPlan::load (guest memory)
//! cmdline::compose ─▶ BootRequest.command_line        disk_probe::find_root ─▶ cmdline::compose
//! ```
//!
//! It does not run firmware, does not touch vCPU registers (it says what they must be, [`CpuEntry`]),
//! and does not write ACPI or SMBIOS tables (it passes the RSDP's address on).
#![forbid(unsafe_code)]

mod bzimage;
pub mod cmdline;
mod direct;
pub mod disk_probe;
mod elf;
mod entry;
mod kernel;
pub mod layout;
mod memory_map;
mod source;
#[cfg(test)]
mod tests;

pub use bzimage::BzImage;
pub use direct::{
    BootPlan, BootPlanError, BootRequest, Initrd, LINUX_COMMAND_LINE_MAX, LoadError,
    OpenInitrdError, RamContent,
};
pub use elf::ElfKernel;
pub use entry::{
    CpuEntry, DescriptorTable, Protocol, Segment as SegmentRegister, identity_page_tables,
};
pub use kernel::{Image, Kernel, KernelFault, OpenKernelError, Segment};
pub use memory_map::{MAX_RANGES, MemoryKind, MemoryMap, MemoryMapError, MemoryRange};
pub use source::{Payload, ReadAt};
