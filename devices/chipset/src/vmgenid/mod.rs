//! The VM generation id (Microsoft, "Virtual Machine Generation ID", 2012): 16 bytes in guest RAM
//! that change whenever the machine becomes another one, and an interrupt that says so.
//!
//! A guest reseeds its random numbers when it hears of a change; Linux has done so since 5.18. The
//! id changes on request ([`GenerationChange`](nyx_device::GenerationChange)), not by itself: only
//! whoever restores a snapshot knows whether this is a clone or the same machine on another host.
//! It is written again after a reset and a restore.

mod generation;
mod kind;
mod saved;
#[cfg(test)]
mod tests;
mod uuid;

pub use generation::VmGenId;
pub use kind::VmGenIdConfig;
pub use saved::SavedVmGenId;
pub use uuid::{Uuid, UuidError};
