//! Block device (Virtio 1.2 §5.2).

mod request;
mod task;
#[cfg(test)]
mod tests;

use crate::queues;
use nyx_device::{
    BackendSpec, BlockBackend, BlockGeometry, BoxError, ConfigError, FaultPort, Wiring,
};
use nyx_inspect::{Counter, Histogram, Inspect, Visitor};
use nyx_state::{Persist, RestoreError, SaveError};
use nyx_virtio::{Activation, Interrupt, QueueTask, Shape, TaskError, VirtioDevice, VirtioKind};
use request::{ID_LEN, MAX_SEGMENT_SECTORS, MAX_SEGMENTS, Rules, SECTOR};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use task::BlkTask;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

/// Most request queues of one device.
const MAX_QUEUES: u16 = 16;
/// Offset of `writeback` in the configuration space.
const WRITEBACK: u64 = 32;

/// Configuration of a block device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlkConfig {
    /// Where the blocks are.
    pub backend: BackendSpec,
    /// Request queues, 1 to 16; each has a thread of its own.
    #[serde(default = "queues::one")]
    pub queues: u16,
    /// Entries of each queue; a power of two from 4 to 1024.
    #[serde(default = "queues::default_size")]
    pub queue_size: u16,
    /// Identifier for the guest's eyes, at most 20 bytes of printable ASCII; the backend's own when
    /// absent.
    #[serde(default)]
    pub serial: Option<String>,
    /// Refuse writes, even if the backend would take them.
    #[serde(default)]
    pub read_only: bool,
    /// Keep a write for which the backend has no room, report [`FaultKind::NoSpace`](nyx_device::FaultKind), and try it
    /// again after the next stop and start; without, the guest sees an I/O error.
    #[serde(default)]
    pub hold_without_space: bool,
}

/// The kind `virtio-blk`.
#[derive(Clone, Copy, Debug)]
pub struct BlkKind;

impl VirtioKind for BlkKind {
    const KIND: &'static str = "virtio-blk";
    type Config = BlkConfig;

    fn shape(config: &BlkConfig) -> Result<Shape, ConfigError> {
        queues::check_count("queues", config.queues, MAX_QUEUES)?;
        queues::check_size(config.queue_size)?;
        if let Some(serial) = &config.serial
            && (serial.len() > ID_LEN || !serial.bytes().all(|b| matches!(b, b' '..=b'~')))
        {
            let reason = format!("{serial:?} is not at most {ID_LEN} printable ASCII characters");
            return Err(ConfigError::new("serial", reason));
        }
        // Mass storage, other.
        let class = [0x01, 0x80, 0x00];
        Ok(Shape {
            device_id: VIRTIO_ID_BLOCK as u16,
            queues: config.queues,
            class,
        })
    }

    fn build(
        config: BlkConfig,
        wiring: &mut Wiring<'_>,
    ) -> Result<Box<dyn VirtioDevice>, BoxError> {
        let backend = wiring.backends.block(&config.backend)?;
        Ok(Box::new(Blk::new(
            &config,
            backend,
            Some(wiring.faults.clone()),
        )?))
    }
}

/// What a block device has done.
#[derive(Debug, Default, Inspect)]
#[inspect(prefix = "blk")]
pub(crate) struct BlkCounters {
    /// Requests of the driver, by what it asked for.
    #[inspect(metric = "requests", label(op = "read"))]
    pub(crate) reads: Counter,
    /// Bytes that requests asked to read or write.
    #[inspect(metric = "bytes", label(op = "read"))]
    pub(crate) read_bytes: Counter,
    /// Requests of the driver, by what it asked for.
    #[inspect(metric = "requests", label(op = "write"))]
    pub(crate) writes: Counter,
    /// Bytes that requests asked to read or write.
    #[inspect(metric = "bytes", label(op = "write"))]
    pub(crate) written_bytes: Counter,
    /// Requests of the driver, by what it asked for.
    #[inspect(metric = "requests", label(op = "flush"))]
    pub(crate) flushes: Counter,
    /// Requests of the driver, by what it asked for.
    #[inspect(metric = "requests", label(op = "discard"))]
    pub(crate) discards: Counter,
    /// Requests of the driver, by what it asked for.
    #[inspect(metric = "requests", label(op = "write_zeroes"))]
    pub(crate) write_zeroes: Counter,
    /// Requests of the driver, by what it asked for.
    #[inspect(metric = "requests", label(op = "get_id"))]
    pub(crate) ids: Counter,
    /// Requests kept because the backend has no room, each time it said so.
    pub(crate) held: Counter,
    /// Time from a request's hand-over to the backend until its completion was seen.
    #[inspect(metric = "latency", label(op = "read"))]
    pub(crate) read_latency: Histogram,
    /// Time from a request's hand-over to the backend until its completion was seen.
    #[inspect(metric = "latency", label(op = "write"))]
    pub(crate) write_latency: Histogram,
    /// Time from a request's hand-over to the backend until its completion was seen.
    #[inspect(metric = "latency", label(op = "flush"))]
    pub(crate) flush_latency: Histogram,
    /// Time from a request's hand-over to the backend until its completion was seen. Each range of a
    /// request counts by itself.
    #[inspect(metric = "latency", label(op = "discard"))]
    pub(crate) discard_latency: Histogram,
    /// Requests that the device refused: malformed, out of bounds, unsupported.
    pub(crate) refused: Counter,
    /// Requests that the backend failed.
    #[inspect(metric = "errors")]
    pub(crate) failed: Counter,
}

/// What the device and its tasks share.
pub(crate) struct Medium {
    /// Everything but the capacity, which may change.
    rules: Rules,
    /// In bytes.
    capacity: AtomicU64,
    has_cache: bool,
    /// Cache mode (§5.2.5.2): writes may be volatile until a flush.
    writeback: AtomicBool,
    id: [u8; ID_LEN],
    counters: BlkCounters,
    faults: Option<FaultPort>,
    hold_without_space: bool,
    /// A failing medium is reported once; the counter tells the rest.
    complained: AtomicBool,
}

impl Medium {
    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }
}

/// A block device.
pub struct Blk {
    // Wiring
    backend: Box<dyn BlockBackend>,
    medium: Arc<Medium>,
    interrupt: Option<Arc<Interrupt>>,
    // Configuration
    queues: u16,
    queue_size: u16,
    geometry: BlockGeometry,
}

impl Blk {
    /// A device over `backend`; errors of the medium go to `faults`.
    pub fn new(
        config: &BlkConfig,
        backend: Box<dyn BlockBackend>,
        faults: Option<FaultPort>,
    ) -> Result<Self, ConfigError> {
        let geometry = backend.geometry();
        if !geometry.size.is_multiple_of(SECTOR) {
            let (size, what) = (geometry.size, backend.describe());
            let reason = format!("{what} has {size} bytes, which is no multiple of {SECTOR}");
            return Err(ConfigError::new("backend", reason));
        }
        let mut id = [0; ID_LEN];
        let serial = config
            .serial
            .clone()
            .or_else(|| backend.serial())
            .unwrap_or_default();
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let read_only = config.read_only || geometry.read_only;
        let medium = Medium {
            rules: Rules {
                capacity: geometry.size,
                read_only,
                discard: geometry.discard && !read_only,
                write_zeroes: geometry.write_zeroes && !read_only,
            },
            capacity: AtomicU64::new(geometry.size),
            has_cache: geometry.write_cache,
            writeback: AtomicBool::new(geometry.write_cache),
            id,
            counters: BlkCounters::default(),
            hold_without_space: config.hold_without_space,
            faults,
            complained: AtomicBool::new(false),
        };
        Ok(Self {
            backend,
            medium: Arc::new(medium),
            interrupt: None,
            queues: config.queues,
            queue_size: config.queue_size,
            geometry,
        })
    }

    /// `struct virtio_blk_config` (§5.2.4) up to the fields of secure erase.
    fn config_space(&self) -> [u8; 60] {
        let sectors = self.medium.capacity() / SECTOR;
        // A chain holds the header and the status besides the data.
        let segments = u32::from(self.queue_size.saturating_sub(2));
        let logical = self.geometry.logical_block;
        let physical = self.geometry.physical_block.max(logical);
        let exponent = (physical / logical.max(1)).max(1).ilog2() as u8;
        let alignment = logical / SECTOR as u32;
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in config.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(0, &sectors.to_le_bytes());
        put(12, &segments.to_le_bytes());
        put(20, &logical.to_le_bytes());
        put(24, &[exponent]);
        // In logical blocks; one physical block is the smallest good unit.
        put(26, &(1u16 << exponent.min(15)).to_le_bytes());
        put(32, &[self.medium.writeback.load(Ordering::Acquire).into()]);
        put(34, &self.queues.to_le_bytes());
        if self.medium.rules.discard {
            put(36, &MAX_SEGMENT_SECTORS.to_le_bytes());
            put(40, &(MAX_SEGMENTS as u32).to_le_bytes());
            put(44, &alignment.to_le_bytes());
        }
        if self.medium.rules.write_zeroes {
            put(48, &MAX_SEGMENT_SECTORS.to_le_bytes());
            put(52, &(MAX_SEGMENTS as u32).to_le_bytes());
            put(56, &[1]);
        }
        config
    }
}

impl VirtioDevice for Blk {
    fn features(&self) -> u64 {
        let rules = &self.medium.rules;
        let offer = |on: bool, bit: u32| u64::from(on) << bit;
        offer(true, VIRTIO_BLK_F_SEG_MAX)
            | offer(true, VIRTIO_BLK_F_BLK_SIZE)
            | offer(true, VIRTIO_BLK_F_TOPOLOGY)
            | offer(rules.read_only, VIRTIO_BLK_F_RO)
            | offer(self.medium.has_cache, VIRTIO_BLK_F_FLUSH)
            | offer(self.medium.has_cache, VIRTIO_BLK_F_CONFIG_WCE)
            | offer(self.queues > 1, VIRTIO_BLK_F_MQ)
            | offer(rules.discard, VIRTIO_BLK_F_DISCARD)
            | offer(rules.write_zeroes, VIRTIO_BLK_F_WRITE_ZEROES)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.queues.into()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        queues::read_config(&self.config_space(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // The cache mode is the only field that a driver may write.
        if let Some(mode) = queues::written_byte(offset, data, WRITEBACK)
            && self.medium.has_cache
        {
            self.medium
                .writeback
                .store(mode & 1 != 0, Ordering::Release);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueTask>>, TaskError> {
        // §5.2.5.2: a driver that knows nothing of flushes gets durable writes.
        let caching = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_CONFIG_WCE;
        let write_through = activation.features & caching == 0;
        let dma = activation.dma;
        activation
            .queues
            .into_iter()
            .map(|queue| {
                let io = self.backend.open_queue()?;
                let medium = self.medium.clone();
                let task = BlkTask::new(queue, io, dma.clone(), medium, write_through);
                Ok(Box::new(task) as Box<dyn QueueTask>)
            })
            .collect()
    }

    fn reset(&mut self) {
        self.medium
            .writeback
            .store(self.medium.has_cache, Ordering::Release);
    }

    /// The medium may have another size.
    fn wake(&mut self) {
        let size = self.backend.geometry().size;
        let size = size - size % SECTOR;
        if self.medium.capacity.swap(size, Ordering::AcqRel) != size
            && let Some(interrupt) = &self.interrupt
        {
            interrupt.config();
        }
    }

    fn connect(&mut self, interrupt: Arc<Interrupt>) {
        self.interrupt = Some(interrupt);
    }
}

impl Inspect for Blk {
    fn inspect(&self, v: &mut dyn Visitor) {
        use nyx_inspect::Field;
        self.backend.describe().visit("backend", v);
        self.medium.capacity().visit("capacity", v);
        self.medium.rules.read_only.visit("read_only", v);
        self.medium.writeback.visit("writeback", v);
        String::from_utf8_lossy(&self.medium.id)
            .trim_end_matches('\0')
            .visit("serial", v);
        // Counters belong to the unit itself, so that their labels are short.
        self.medium.counters.inspect(v);
    }
}

/// Saved form.
mod saved {
    use nyx_state::{Saved, minicbor};

    #[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
    #[cbor(map)]
    pub struct BlkState {
        /// Cache mode.
        #[n(0)]
        pub writeback: bool,
    }

    impl Saved for BlkState {
        const NAME: &'static str = "virtio-blk/1";
    }
}

impl Persist for Blk {
    type Saved = saved::BlkState;

    fn save(&self) -> Result<Self::Saved, SaveError> {
        // The capacity is the backend's, the rest is configuration.
        let Self {
            backend: _,
            medium,
            interrupt: _,
            queues: _,
            queue_size: _,
            geometry: _,
        } = self;
        Ok(saved::BlkState {
            writeback: medium.writeback.load(Ordering::Acquire),
        })
    }

    fn restore(&mut self, saved: Self::Saved) -> Result<(), RestoreError> {
        let writeback = saved.writeback && self.medium.has_cache;
        self.medium.writeback.store(writeback, Ordering::Release);
        Ok(())
    }
}
