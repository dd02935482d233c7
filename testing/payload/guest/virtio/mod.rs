//! A virtio 1.2 driver: PCI and MMIO transports, split queues, device start-up.

pub mod blk;
pub mod broken;
pub mod console;
pub mod net;
pub mod queue;
pub mod rng;
pub mod transport;
pub mod transport_tests;
pub mod vsock;

use crate::{apic, cpu, mem, time};
use queue::Queue;
use transport::Transport;

/// Device status bits (virtio 1.2, 2.1).
pub mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
}

/// Features of all devices (virtio 1.2, 6).
pub mod feature {
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    pub const RING_PACKED: u64 = 1 << 34;
}

/// Device types (virtio 1.2, 5).
pub mod kind {
    pub const NET: u32 = 1;
    pub const BLOCK: u32 = 2;
    pub const CONSOLE: u32 = 3;
    pub const ENTROPY: u32 = 4;
    pub const VSOCK: u32 = 19;
}

/// First of the vectors that queue interrupts use.
pub const VEC_QUEUE: u8 = 0x60;
/// Configuration-change vector.
pub const VEC_CONFIG: u8 = 0x5f;

/// How a device is to interrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Interrupts {
    /// Not at all: queues are polled.
    Polled,
    /// By MSI-X, queue `n` on vector `VEC_QUEUE + n`.
    Msix,
    /// By its wire; the test routes the pin.
    Wire,
}

/// A device in operation.
pub struct Device {
    pub transport: Transport,
    pub features: u64,
    pub queues: [Option<Queue>; 16],
}

/// What `Device::start` is asked for.
#[derive(Clone, Copy)]
pub struct Setup {
    /// Features to accept of those offered; VERSION_1 is always among them.
    pub features: u64,
    /// Queues to set up; those past the device's own number are left out.
    pub queues: u16,
    /// Entries per queue; 0 for the device's maximum.
    pub size: u16,
    pub interrupts: Interrupts,
}

impl Setup {
    /// Polled queues of the greatest size, with indirect descriptors and event indices.
    pub const fn polled(queues: u16) -> Self {
        Self {
            features: u64::MAX,
            queues,
            size: 0,
            interrupts: Interrupts::Polled,
        }
    }

    /// The same with another queue size.
    pub const fn with_size(self, size: u16) -> Self {
        Self { size, ..self }
    }

    /// The same with other features.
    pub const fn with_features(self, features: u64) -> Self {
        Self { features, ..self }
    }

    /// The same with other interrupts.
    pub const fn with_interrupts(self, interrupts: Interrupts) -> Self {
        Self { interrupts, ..self }
    }
}

impl Device {
    /// Resets the device and brings it to DRIVER_OK (virtio 1.2, 3.1.1); the error says what failed.
    pub fn start(transport: Transport, setup: Setup) -> Result<Self, &'static str> {
        let mut device = Self::negotiate(transport, setup)?;
        for index in 0..setup.queues.min(transport.queues()).min(16) {
            device.set_up_queue(index, setup)?;
        }
        device.go();
        Ok(device)
    }

    /// Resets the device and settles the features.
    pub fn negotiate(transport: Transport, setup: Setup) -> Result<Self, &'static str> {
        if !transport.reset() {
            return Err("status does not become 0 on reset");
        }
        transport.set_status(status::ACKNOWLEDGE);
        transport.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let offered = transport.features();
        if offered & feature::VERSION_1 == 0 {
            return Err("VERSION_1 not offered");
        }
        // Not driven here: packed rings, and translation by an IOMMU.
        let drivable = !(feature::RING_PACKED | feature::ACCESS_PLATFORM);
        let features = offered & (setup.features | feature::VERSION_1) & drivable;
        transport.accept(features);
        transport.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        if transport.status() & status::FEATURES_OK == 0 {
            return Err("features refused");
        }
        if setup.interrupts == Interrupts::Msix {
            let msix = transport.msix().ok_or("no MSI-X capability")?;
            let to = apic::id();
            msix.control(true, false);
            msix.set(0, VEC_CONFIG, to);
            for entry in 1..msix.vectors.min(17) {
                msix.set(entry, VEC_QUEUE + entry as u8 - 1, to);
            }
            transport.set_config_vector(0);
        } else if let Some(msix) = transport.msix() {
            msix.control(false, false);
        }
        Ok(Self {
            transport,
            features,
            queues: [const { None }; 16],
        })
    }

    /// Sets up one queue.
    pub fn set_up_queue(&mut self, index: u16, setup: Setup) -> Result<(), &'static str> {
        let max = self.transport.select(index);
        if max == 0 {
            return Ok(());
        }
        let size = if setup.size == 0 {
            max
        } else {
            setup.size.min(max)
        };
        let mut queue = Queue::new(index, size, self.features);
        let vector = (setup.interrupts == Interrupts::Msix).then(|| {
            let vectors = self.transport.msix().map_or(1, |m| m.vectors);
            (index + 1).min(vectors - 1)
        });
        queue.notify_at = self.transport.install(&queue, vector)?;
        if setup.interrupts == Interrupts::Polled {
            queue.silence();
        }
        self.queues[usize::from(index)] = Some(queue);
        Ok(())
    }

    /// Sets DRIVER_OK.
    pub fn go(&self) {
        self.transport.set_status(
            status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK,
        );
    }

    /// Whether a feature was agreed on.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// A queue that `start` set up; queue 0 always is.
    pub fn queue(&mut self, index: u16) -> &mut Queue {
        match &mut self.queues[usize::from(index)] {
            Some(queue) => queue,
            None => panic!("queue {index} was not set up"),
        }
    }

    /// Whether the device has said that it needs a reset.
    pub fn needs_reset(&self) -> bool {
        self.transport.status() & status::NEEDS_RESET != 0
    }
}

/// Every virtio device of one type, at most eight: PCI functions, then MMIO devices.
pub fn find(kind: u32) -> impl Iterator<Item = Transport> {
    all().filter(move |transport| transport.kind() == kind)
}

/// Every virtio device.
pub fn all() -> impl Iterator<Item = Transport> {
    transport::pci_devices().chain(transport::mmio_devices())
}

/// Memory for device access, of a page or more.
pub struct Buffer {
    pub at: u64,
    pub len: usize,
}

impl Buffer {
    /// Zeroed memory.
    pub fn new(len: usize) -> Self {
        Self {
            at: mem::alloc(len as u64, 4096) as u64,
            len,
        }
    }

    /// The bytes as they are now.
    pub fn bytes(&self) -> &mut [u8] {
        cpu::fence();
        // SAFETY: allocated by `new` and never freed while in use; the payload looks at it only
        // when the device has said that it is done.
        unsafe { core::slice::from_raw_parts_mut(self.at as *mut u8, self.len) }
    }

    /// Fills with one byte.
    pub fn fill(&self, byte: u8) {
        self.bytes().fill(byte);
        cpu::fence();
    }
}

/// How long a request may take before it counts as lost.
pub fn patience() -> u64 {
    time::seconds(10)
}

/// A cheap repeatable sequence of numbers (SplitMix64).
pub struct Sequence(pub u64);

impl Sequence {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// The next number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
