//! The debugger's side of a machine: a GDB server over its vCPUs and memory.
//!
//! ```text
//!   gdb ──socket──▶ server (one thread) ─▶ gdbstub ─▶ target ─▶ Debugger (nyx-machine) ─▶ vCPU threads
//!                      ▲                                │
//!                      └── eventfd ◀── watch (on the vCPU's thread: ours or the guest's?)
//! ```
//!
//! One vCPU is one thread of gdb's. Nothing here runs, and no thread exists, unless a debugger was
//! asked for. What a client sends is hostile: it may end its own session, nothing else.
//!
//! Symbols are read elsewhere, outside the process of the machine; what they need of a machine is in
//! [`sample`], [`read_virtual`] and [`read_physical`].
#![forbid(unsafe_code)]

mod arch;
mod breakpoints;
mod frames;
mod listen;
mod memory;
mod monitor;
mod paging;
mod sample;
mod server;
mod target;
#[cfg(test)]
mod tests;
mod watch;

pub use breakpoints::{BreakpointKind, BreakpointRow};
pub use listen::{Listen, ListenError};
pub use memory::{MemoryError, read_physical, read_virtual, write_physical, write_virtual};
pub use paging::{Paging, PhysicalRead, Translation};
pub use sample::{VcpuSample, sample};
pub use server::{GdbServer, MachineCommands, Start, StartError};
