//! What a virtio device model implements.

use crate::{Interrupt, QueueError, VirtQueue};
use nyx_device::{BoxError, ConfigError, Wiring};
use nyx_inspect::Inspect;
use nyx_memory::DmaSpace;
use nyx_reactor::Poller;
use nyx_state::PersistBlob;
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::sync::Arc;

/// What a running device works with, from DRIVER_OK until reset.
pub struct Activation {
    /// Features both sides agreed on.
    pub features: u64,
    /// The queues that the driver enabled, ascending by index; not every index need be there.
    pub queues: Vec<VirtQueue>,
    /// Guest memory.
    pub dma: DmaSpace,
    /// Interrupts: configuration changes and complaints; queues notify by themselves.
    pub interrupt: Arc<Interrupt>,
}

/// Why a task gave up.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The driver broke a queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The driver broke the device's own protocol.
    #[error("{0}")]
    Protocol(&'static str),
    /// The host failed.
    #[error("{0}")]
    Host(#[from] io::Error),
}

/// The part of a device that owns queues and runs on a worker thread of its own.
///
/// ```text
///              start            drain() == true
///   (activated) ───▶ serving ───────────────────▶ parked ──▶ resume ──▶ serving
///                       │ Err                        │
///                       ▼                            ▼
///                    broken (the device needs a reset)   dropped (device reset)
/// ```
///
/// `ready` does a bounded amount of work for one wakeup and returns; a level-triggered descriptor
/// that is still ready, or [`Progress::Again`], brings it back.
pub trait QueueTask: Send {
    /// Registers descriptors with tokens of the task's own choice below [`QueueTask::TOKENS`], the
    /// kick events of its queues among them. Called once, on the worker thread.
    fn register(&mut self, poller: &Poller) -> io::Result<()>;
    /// Serves one ready token.
    fn ready(&mut self, token: u64, poller: &Poller) -> Result<Progress, TaskError>;
    /// Looks at every queue and source once: kicks may have been missed while parked.
    fn resume(&mut self, poller: &Poller) -> Result<Progress, TaskError>;
    /// Takes no new work; `true` once nothing is in flight. Called again after every `ready` for
    /// a completion until it is.
    fn drain(&mut self) -> Result<bool, TaskError>;
    /// The queues it owns.
    fn queues(&self) -> Vec<&VirtQueue>;
}

/// Tokens of a task must be below this.
pub const TASK_TOKENS: u64 = 1 << 32;

/// Whether a task wants to go on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Wait for a descriptor.
    Wait,
    /// The bound for one wakeup was reached and work is left: call `ready` again with this token
    /// after looking at commands.
    Again(u64),
}

/// A virtio device model, unaware of its transport.
pub trait VirtioDevice: PersistBlob + Inspect + Send {
    /// Device-specific feature bits offered; the transport adds its own (VERSION_1, ring features).
    fn features(&self) -> u64;
    /// Largest size of each queue; powers of two, at most 32768.
    fn queue_sizes(&self) -> Vec<u16>;
    /// Reads device-specific configuration; bytes beyond it read zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes device-specific configuration; read-only bytes stay.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }
    /// Sets to work: splits the queues over tasks, one thread each. Called at DRIVER_OK and again
    /// after a restore.
    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueTask>>, TaskError>;
    /// The driver reset the device; its tasks are gone.
    fn reset(&mut self);
    /// Something that holds this unit's waker has news.
    fn wake(&mut self) {}
    /// The interrupt handle, given once when the transport is built, for configuration changes
    /// outside of any task.
    fn connect(&mut self, interrupt: Arc<Interrupt>) {
        let _ = interrupt;
    }
}

/// What the planner must know of a virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Device type (Virtio 1.2 §5).
    pub device_id: u16,
    /// Number of queues.
    pub queues: u16,
    /// PCI class code: base class, subclass, programming interface.
    pub class: [u8; 3],
}

/// A kind of virtio device; [`crate::Virtio`] makes a [`nyx_device::DeviceKind`] of it, over PCI or
/// MMIO.
pub trait VirtioKind: Send + Sync + 'static {
    /// The tag in plans, such as `virtio-blk`.
    const KIND: &'static str;
    /// Its configuration.
    type Config: Serialize + DeserializeOwned;
    /// What it is. Pure.
    fn shape(config: &Self::Config) -> Result<Shape, ConfigError>;
    /// Makes it, backends opened.
    fn build(
        config: Self::Config,
        wiring: &mut Wiring<'_>,
    ) -> Result<Box<dyn VirtioDevice>, BoxError>;
}
