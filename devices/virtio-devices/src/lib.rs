//! virtio device models: blk, net, rng, console and vsock.
//!
//! Each device is a [`nyx_virtio::VirtioKind`], unaware of its transport. The part that touches
//! queues is a [`nyx_virtio::QueueTask`] on a worker thread. Section numbers are those of the
//! Virtual I/O Device (VIRTIO) specification, version 1.2.
//!
//! The guest is hostile here: what it gets wrong about one request fails that request; what breaks
//! the device's protocol stops the task with [`nyx_virtio::TaskError`], and the device then needs a
//! reset. Work per wakeup and every allocation it can drive are bounded.
#![forbid(unsafe_code)]

mod blk;
#[cfg(test)]
mod conformance;
mod console;
mod loan;
mod net;
mod queues;
mod rng;
#[cfg(test)]
mod testing;
mod vsock;

pub use blk::{Blk, BlkConfig, BlkKind};
pub use console::{Console, ConsoleConfig, ConsoleKind, PortConfig};
pub use net::{Mac, MacError, Net, NetConfig, NetKind, stable_mac};
pub use rng::{Rng, RngConfig, RngKind};
pub use vsock::{ListenError, Vsock, VsockConfig, VsockKind};
