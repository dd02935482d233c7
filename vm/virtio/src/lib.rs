//! virtio: the device trait, frozen queues and one transport state machine over PCI and MMIO.
//!
//! A device model implements [`VirtioDevice`] and hands out [`QueueTask`]s, which own the queues
//! and run on worker threads. Everything about status, features, queue set-up, reset, interrupts,
//! save and restore is in one state machine, worn by two register layouts. Virtio 1.2 throughout;
//! legacy and transitional interfaces are absent on purpose.
#![forbid(unsafe_code)]

mod chain;
mod device;
mod interrupt;
mod kind;
mod mmio;
mod patience;
mod pci;
mod queue;
mod saved;
#[cfg(test)]
mod tests;
mod transport;
mod worker;

pub use chain::{Chain, ChainError, Descriptor};
pub use device::{
    Activation, Progress, QueueTask, Shape, TASK_TOKENS, TaskError, VirtioDevice, VirtioKind,
};
pub use interrupt::{Interrupt, NO_VECTOR};
pub use kind::Virtio;
pub use patience::Patience;
pub use queue::{QueueError, QueueLayout, QueueProgress, VirtQueue};
