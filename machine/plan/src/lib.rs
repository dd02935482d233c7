//! From a specification to addresses, interrupts and slots, as a pure function.
//!
//! A [`MachinePlan`] is data only: it is printed by `nyx plan`, compared in golden tests, stored in
//! snapshots and sent first in a migration. Nothing here touches the host.
#![forbid(unsafe_code)]

mod boot;
mod extend;
mod layout;
mod resolve;
mod show;
#[cfg(test)]
mod tests;

pub use boot::{BootDisk, BootPlan};
pub use extend::{PlaceError, RemoveError, slot_of};
pub use layout::{Layout, MapEntry, MemoryKind, Range};
pub use resolve::{CpuPlan, HostFacts, IntxRoute, MachinePlan, RamPlan, resolve};
pub use show::Listing;
