//! Socket device (Virtio 1.2 §5.10): streams between guest and host programs.
//!
//! The host's side is a Unix socket, with the protocol that users of Firecracker and Cloud
//! Hypervisor know. A host program connects to it, writes `CONNECT <port>\n` and, once the guest
//! has taken the connection, reads `OK <host port>\n`; the rest is the stream. A guest program that
//! connects to the host's port `P` reaches whoever listens on the socket's path followed by `_P`.

mod connection;
mod listener;
mod packet;
mod task;
#[cfg(test)]
mod tests;

pub use listener::ListenError;

use crate::loan::Shelf;
use crate::queues;
use listener::{Claim, Listener};
use nyx_device::{BoxError, ConfigError, Wiring};
use nyx_inspect::{Counter, Field, Gauge, Inspect, Visitor};
use nyx_state::{Persist, RestoreError, SaveError};
use nyx_virtio::{Activation, QueueTask, Shape, TaskError, VirtioDevice, VirtioKind};
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use task::VsockTask;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

const QUEUE_SIZE: u16 = 256;
/// Longest path: `sun_path` (unix(7)) less its end and the longest `_<port>`.
const MAX_PATH: usize = 107 - 11;

/// Configuration of a socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address, 3 to 4294967294.
    pub cid: u32,
    /// Path of the host's Unix socket, at most 96 bytes.
    pub socket: PathBuf,
}

/// The kind `virtio-vsock`.
#[derive(Clone, Copy, Debug)]
pub struct VsockKind;

impl VirtioKind for VsockKind {
    const KIND: &'static str = "virtio-vsock";
    type Config = VsockConfig;

    fn shape(config: &VsockConfig) -> Result<Shape, ConfigError> {
        let VsockConfig { cid, socket } = config;
        // §5.10.4: 0, 1, 2 and the largest have meanings of their own.
        if !(3..u32::MAX).contains(cid) {
            let reason = format!("{cid} is not from 3 to {}", u32::MAX - 1);
            return Err(ConfigError::new("cid", reason));
        }
        let len = socket.as_os_str().as_bytes().len();
        if len == 0 || len > MAX_PATH {
            let reason = format!("a path of {len} bytes is not of 1 to {MAX_PATH}");
            return Err(ConfigError::new("socket", reason));
        }
        // Simple communication controller, other.
        let class = [0x07, 0x80, 0x00];
        Ok(Shape {
            device_id: VIRTIO_ID_VSOCK as u16,
            queues: 3,
            class,
        })
    }

    fn build(config: VsockConfig, _: &mut Wiring<'_>) -> Result<Box<dyn VirtioDevice>, BoxError> {
        Ok(Box::new(Vsock::new(&config)?))
    }
}

/// What a socket device has done.
#[derive(Debug, Default, Inspect)]
#[inspect(prefix = "vsock")]
pub(crate) struct VsockCounters {
    /// Connections open now.
    #[inspect(metric = "open_connections")]
    connections: Gauge,
    /// Connections made, by who asked for them.
    #[inspect(metric = "connections", label(from = "host"))]
    host_connections: Counter,
    /// Connections made, by who asked for them.
    #[inspect(metric = "connections", label(from = "guest"))]
    guest_connections: Counter,
    /// Connections that nobody took, or beyond the limit.
    refused_connections: Counter,
    /// Bytes carried: rx to the guest, tx from it.
    #[inspect(metric = "bytes", label(direction = "rx"))]
    to_guest_bytes: Counter,
    /// Bytes carried: rx to the guest, tx from it.
    #[inspect(metric = "bytes", label(direction = "tx"))]
    from_guest_bytes: Counter,
    /// Packets malformed, of no connection, or against the rules of one.
    bad_packets: Counter,
    /// Buffers too small for a header, or not memory.
    bad_buffers: Counter,
}

/// What the device and its task share.
pub(crate) struct Shared {
    cid: u64,
    /// The guest has to be told that its connections are gone.
    reset_owed: AtomicBool,
    counters: VsockCounters,
}

/// A socket device.
pub struct Vsock {
    listener: Shelf<Listener>,
    _claim: Claim,
    socket: PathBuf,
    shared: Arc<Shared>,
}

impl Vsock {
    /// Listens on the configured path.
    pub fn new(config: &VsockConfig) -> Result<Self, ListenError> {
        let (listener, claim) = Listener::bind(&config.socket)?;
        let shared = Shared {
            cid: config.cid.into(),
            reset_owed: AtomicBool::new(false),
            counters: VsockCounters::default(),
        };
        Ok(Self {
            listener: Shelf::new(listener),
            _claim: claim,
            socket: config.socket.clone(),
            shared: Arc::new(shared),
        })
    }
}

impl VirtioDevice for Vsock {
    fn features(&self) -> u64 {
        // Streams need none (§5.10.3.1).
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        queues::read_config(&self.shared.cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueTask>>, TaskError> {
        let Activation {
            features: _,
            mut queues,
            dma,
            interrupt: _,
        } = activation;
        let mut take = |index: u16| {
            let at = queues.iter().position(|q| q.index() == index)?;
            Some(queues.remove(at))
        };
        let queues = [take(0), take(1), take(2)];
        let listener = self.listener.lend()?;
        Ok(vec![Box::new(VsockTask::new(
            queues,
            dma,
            listener,
            self.shared.clone(),
        ))])
    }

    fn reset(&mut self) {
        self.shared.reset_owed.store(false, Ordering::Release);
    }
}

impl Inspect for Vsock {
    fn inspect(&self, v: &mut dyn Visitor) {
        self.shared.cid.visit("cid", v);
        self.socket.to_string_lossy().visit("socket", v);
        self.shared.counters.inspect(v);
    }
}

/// Saved form.
mod saved {
    use nyx_state::{Saved, minicbor};

    /// Connections do not survive: their other ends are programs of another host, or of another
    /// time.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
    #[cbor(map)]
    pub struct VsockState {}

    impl Saved for VsockState {
        const NAME: &'static str = "virtio-vsock/1";
    }
}

impl Persist for Vsock {
    type Saved = saved::VsockState;

    fn save(&self) -> Result<Self::Saved, SaveError> {
        let Self {
            listener: _,
            _claim: _,
            socket: _,
            shared: _,
        } = self;
        Ok(saved::VsockState {})
    }

    fn restore(&mut self, _: Self::Saved) -> Result<(), RestoreError> {
        self.shared.reset_owed.store(true, Ordering::Release);
        Ok(())
    }
}
