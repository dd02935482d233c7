//! Guest symbols and stacks, read outside the VMM.
//!
//! ```text
//!   vmlinux (ELF, DWARF) ─┐
//!   System.map ───────────┼─▶ Symbols ── align: KASLR solved ──▶ lookup, stack, to_elf (for gdb)
//!   the guest's kallsyms ─┘      ▲
//!                                └── GuestMemory: whatever reaches the guest (the control socket)
//! ```
//!
//! Files are the user's, guest memory is the guest's: both are parsed with bounds, here and not in the
//! process that runs the machine.
#![forbid(unsafe_code)]

mod align;
mod elf;
mod kallsyms;
mod map;
mod memory;
mod orc;
mod table;
#[cfg(test)]
mod tests;
mod walk;
mod write;

pub use elf::Lines;
pub use memory::{Cpu, GuestMemory};
pub use table::{Location, Module, OpenError, Symbol, SymbolKind, Symbols};
pub use walk::{Frame, Trust};
