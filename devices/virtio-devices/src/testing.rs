//! The driver's side, for tests: queues in guest RAM, and a task run without a thread.

use nyx_device::{Fault, FaultPort, FaultSink, IrqLine, IrqSink};
use nyx_inspect::Json;
use nyx_memory::{DmaSpace, Ram};
use nyx_reactor::{EventFd, Poller};
use nyx_virtio::{
    Activation, Interrupt, Progress, QueueLayout, QueueProgress, QueueTask, TaskError, VirtQueue,
    VirtioDevice,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

pub(crate) const RAM: u64 = 16 << 20;
/// Rings live below, buffers above.
pub(crate) const BUFFERS: u64 = 2 << 20;
/// Where two regions of RAM meet.
const BORDER: u64 = BUFFERS + 0x1000;
/// Buffers of one queue.
const ROOM: u64 = 1 << 20;

struct Silent;
impl IrqSink for Silent {
    fn set_level(&self, _: u32, _: bool) {}
}
impl FaultSink for Silent {
    fn fault(&self, _: Fault) {}
}

/// Memory, interrupts and queues of one device under test.
pub(crate) struct Rig {
    pub(crate) dma: DmaSpace,
    memory: GuestMemoryAtomic<Ram>,
    pub(crate) interrupt: Arc<Interrupt>,
    next_ring: u64,
}

impl Rig {
    pub(crate) fn new() -> Self {
        // Two regions, so that some buffer of nearly every test lies across their border.
        let ranges = [
            (GuestAddress(0), BORDER as usize),
            (GuestAddress(BORDER), (RAM - BORDER) as usize),
        ];
        let ram = Ram::from_ranges(&ranges).unwrap();
        let memory = GuestMemoryAtomic::new(ram);
        let faults = FaultPort::new("unit".into(), Arc::new(Silent));
        let line = IrqLine::new(Arc::new(Silent), 0);
        Self {
            dma: DmaSpace::identity(memory.clone()),
            memory,
            interrupt: Arc::new(Interrupt::on_line(line, 64, faults)),
            next_ring: 0x1000,
        }
    }

    /// Both sides of a new queue.
    pub(crate) fn queue(&mut self, index: u16, size: u16, features: u64) -> (VirtQueue, Driver) {
        let base = self.next_ring;
        let entries = u64::from(size);
        let layout = QueueLayout {
            size,
            descriptors: base,
            driver: base + entries * 16,
            device: (base + entries * 18 + 6).next_multiple_of(4),
        };
        self.next_ring = (layout.device + entries * 8 + 6).next_multiple_of(0x1000);
        assert!(self.next_ring < BUFFERS);
        let kick = Arc::new(EventFd::new().unwrap());
        let wires = (self.interrupt.clone(), kick.clone());
        let progress = QueueProgress::default();
        let queue =
            VirtQueue::new(index, layout, progress, features, &self.dma.view(), wires).unwrap();
        let driver = Driver {
            memory: self.memory.clone(),
            layout,
            kick,
            next_descriptor: 0,
            available: 0,
            used: 0,
            // Every queue has buffers of its own.
            buffers: BUFFERS + u64::from(index) * ROOM,
            next_buffer: BUFFERS + u64::from(index) * ROOM,
            chains: BTreeMap::new(),
        };
        (queue, driver)
    }

    /// Activates `device` with all of its queues and the features `features`.
    pub(crate) fn activate(
        &mut self,
        device: &mut dyn VirtioDevice,
        features: u64,
    ) -> (Vec<Running>, Vec<Driver>) {
        let sizes = device.queue_sizes();
        let (queues, drivers): (Vec<_>, Vec<_>) = sizes
            .into_iter()
            .enumerate()
            .map(|(index, size)| self.queue(index as u16, size, features))
            .unzip();
        let tasks = self.start(device, features, queues);
        (tasks, drivers)
    }

    pub(crate) fn start(
        &self,
        device: &mut dyn VirtioDevice,
        features: u64,
        queues: Vec<VirtQueue>,
    ) -> Vec<Running> {
        let (dma, interrupt) = (self.dma.clone(), self.interrupt.clone());
        device.connect(interrupt.clone());
        let tasks = device
            .activate(Activation {
                features,
                queues,
                dma,
                interrupt,
            })
            .unwrap();
        tasks.into_iter().map(Running::new).collect()
    }

    pub(crate) fn interrupts(&self, kind: &str) -> u64 {
        Json::of(&*self.interrupt)[kind].as_u64().unwrap()
    }
}

/// One descriptor to offer.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// The device reads these bytes.
    Read(Vec<u8>),
    /// The device writes up to this many.
    Write(usize),
    /// As it stands: address, length, writable.
    Raw(u64, u32, bool),
}

/// The driver's side of one queue. Descriptors and buffers are handed out in rounds, never freed:
/// tests offer little at a time.
pub(crate) struct Driver {
    memory: GuestMemoryAtomic<Ram>,
    pub(crate) layout: QueueLayout,
    pub(crate) kick: Arc<EventFd>,
    next_descriptor: u16,
    available: u16,
    used: u16,
    buffers: u64,
    next_buffer: u64,
    /// Writable runs by head.
    chains: BTreeMap<u16, Vec<(u64, usize)>>,
}

/// A chain that the device returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) head: u16,
    pub(crate) len: u32,
    /// Everything in the writable part, whatever `len` says.
    pub(crate) bytes: Vec<u8>,
}

impl Driver {
    fn store(&self, at: u64, bytes: &[u8]) {
        self.memory
            .memory()
            .write_slice(bytes, GuestAddress(at))
            .unwrap();
    }
    fn load<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// Memory of the driver's own. Handed out in rounds too: what was handed out a megabyte ago is
    /// handed out again.
    pub(crate) fn buffer(&mut self, len: usize) -> u64 {
        let len = (len as u64).next_multiple_of(16) + 16;
        assert!(len <= ROOM);
        if self.next_buffer + len > self.buffers + ROOM {
            self.next_buffer = self.buffers;
        }
        let at = self.next_buffer;
        self.next_buffer += len;
        at
    }

    pub(crate) fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u32, next: u16) {
        let at = self.layout.descriptors + u64::from(index) * 16;
        self.store(at, &addr.to_le_bytes());
        self.store(at + 8, &len.to_le_bytes());
        self.store(at + 12, &(flags as u16).to_le_bytes());
        self.store(at + 14, &next.to_le_bytes());
    }

    /// Makes `head` available, whatever it is.
    pub(crate) fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.available % self.layout.size);
        self.store(self.layout.driver + 4 + slot * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.store(self.layout.driver + 2, &self.available.to_le_bytes());
    }

    /// Offers one chain and returns its head.
    pub(crate) fn offer(&mut self, parts: &[Part]) -> u16 {
        let size = self.layout.size;
        let head = self.next_descriptor % size;
        let mut runs = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let (addr, len, writable) = match part {
                Part::Read(bytes) => {
                    let addr = self.buffer(bytes.len());
                    self.store(addr, bytes);
                    (addr, bytes.len() as u32, false)
                }
                Part::Write(len) => {
                    let addr = self.buffer(*len);
                    self.store(addr, &vec![0xa5; *len]);
                    runs.push((addr, *len));
                    (addr, *len as u32, true)
                }
                Part::Raw(addr, len, writable) => (*addr, *len, *writable),
            };
            let index = self.next_descriptor % size;
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
            let more = at + 1 != parts.len();
            let mut flags = if writable { VRING_DESC_F_WRITE } else { 0 };
            flags |= if more { VRING_DESC_F_NEXT } else { 0 };
            self.descriptor(index, addr, len, flags, (index + 1) % size);
        }
        self.chains.insert(head, runs);
        self.make_available(head);
        head
    }

    /// Offers and kicks.
    pub(crate) fn send(&mut self, parts: &[Part]) -> u16 {
        let head = self.offer(parts);
        self.kick.signal();
        head
    }

    /// Chains offered and not returned.
    pub(crate) fn outstanding(&self) -> usize {
        self.chains.len()
    }

    /// Takes what the device returned.
    pub(crate) fn used(&mut self) -> Vec<Used> {
        let index = u16::from_le_bytes(self.load(self.layout.device + 2));
        let mut used = Vec::new();
        while self.used != index {
            let slot = u64::from(self.used % self.layout.size);
            let at = self.layout.device + 4 + slot * 8;
            let head = u32::from_le_bytes(self.load(at)) as u16;
            let len = u32::from_le_bytes(self.load(at + 4));
            let runs = self
                .chains
                .remove(&head)
                .unwrap_or_else(|| panic!("{head} twice"));
            let bytes = runs
                .iter()
                .flat_map(|&(at, len)| self.bytes(at, len))
                .collect();
            used.push(Used { head, len, bytes });
            self.used = self.used.wrapping_add(1);
        }
        used
    }

    /// Takes the one chain the device returned.
    pub(crate) fn used_one(&mut self) -> Used {
        let mut used = self.used();
        assert_eq!(used.len(), 1, "{used:?}");
        used.remove(0)
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }
}

/// A task and the poller it is registered with.
pub(crate) struct Running {
    pub(crate) task: Box<dyn QueueTask>,
    poller: Poller,
}

impl Running {
    fn new(mut task: Box<dyn QueueTask>) -> Self {
        let poller = Poller::new().unwrap();
        task.register(&poller).unwrap();
        let mut running = Self { task, poller };
        let first = running.task.resume(&running.poller).unwrap();
        running.follow(first).unwrap();
        running
    }

    pub(crate) fn resume(&mut self) {
        let first = self.task.resume(&self.poller).unwrap();
        self.follow(first).unwrap();
    }

    fn follow(&mut self, mut progress: Progress) -> Result<(), TaskError> {
        // A task that always wants more is a loop that the guest drives.
        for _ in 0..10_000 {
            let Progress::Again(token) = progress else {
                return Ok(());
            };
            progress = self.task.ready(token, &self.poller)?;
        }
        panic!("the task never rests");
    }

    /// One wakeup, if anything is ready: how many descriptors were.
    pub(crate) fn wakeup(&mut self, timeout: Duration) -> Result<usize, TaskError> {
        let ready: Vec<_> = self
            .poller
            .wait(Some(timeout))
            .unwrap()
            .map(|r| r.token)
            .collect();
        for &token in &ready {
            let progress = self.task.ready(token, &self.poller)?;
            self.follow(progress)?;
        }
        Ok(ready.len())
    }

    /// Serves until nothing is ready.
    pub(crate) fn run(&mut self) -> Result<(), TaskError> {
        for _ in 0..10_000 {
            if self.wakeup(Duration::ZERO)? == 0 {
                return Ok(());
            }
        }
        panic!("a descriptor stays ready: the worker would spin");
    }
}
