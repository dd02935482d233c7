//! Network device (Virtio 1.2 §5.1).

mod control;
mod mac;
mod receive;
mod task;
#[cfg(test)]
mod tests;
mod transmit;

pub use mac::{Mac, MacError, stable_mac};

use crate::loan::Shelf;
use crate::queues;
use control::Control;
use nyx_device::{
    BackendSpec, BoxError, ConfigError, NetBackend, NetLink, NetOffloads, NetQueue, Wiring,
};
use nyx_inspect::{Counter, Field, Inspect, Visitor};
use nyx_reactor::EventFd;
use nyx_state::{Persist, RestoreError, SaveError};
use nyx_virtio::{Activation, Interrupt, QueueTask, Shape, TaskError, VirtioDevice, VirtioKind};
use parking_lot::Mutex;
use receive::Receiver;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use task::PairTask;
use transmit::Transmitter;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

/// Length of `struct virtio_net_hdr_v1`; with VERSION_1 every frame has it, `num_buffers` and all
/// (§5.1.6.1).
pub(crate) const HEADER: usize = 12;
/// The longest frame either way, header included: an IP packet of 64 KiB, as segmentation offloads
/// make them, behind an Ethernet header with two VLAN tags.
pub(crate) const LONGEST: usize = HEADER + 22 + 65_535;
/// Most queue pairs of one device.
const MAX_PAIRS: u16 = 8;

/// Configuration of a network device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Where frames go.
    pub backend: BackendSpec,
    /// Address of the guest's interface. When absent, [`stable_mac`] of the unit's name, which is
    /// the same in every machine: whoever writes configurations should fill in one that also
    /// depends on the machine.
    #[serde(default)]
    pub mac: Option<Mac>,
    /// Largest packet the guest should send, 68 to 65535 bytes; the guest's own choice when absent.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Queue pairs, 1 to 8; each has a thread of its own.
    #[serde(default = "queues::one")]
    pub queue_pairs: u16,
    /// Entries of each queue; a power of two from 4 to 1024.
    #[serde(default = "queues::default_size")]
    pub queue_size: u16,
}

/// The kind `virtio-net`.
#[derive(Clone, Copy, Debug)]
pub struct NetKind;

impl VirtioKind for NetKind {
    const KIND: &'static str = "virtio-net";
    type Config = NetConfig;

    fn shape(config: &NetConfig) -> Result<Shape, ConfigError> {
        queues::check_count("queue_pairs", config.queue_pairs, MAX_PAIRS)?;
        queues::check_size(config.queue_size)?;
        // RFC 791: every link carries 68 bytes.
        if let Some(mtu) = config.mtu
            && mtu < 68
        {
            return Err(ConfigError::new(
                "mtu",
                format!("{mtu} is not from 68 to 65535"),
            ));
        }
        // Network controller, Ethernet. The queue after the pairs is the control queue.
        let queues = config.queue_pairs * 2 + 1;
        Ok(Shape {
            device_id: VIRTIO_ID_NET as u16,
            queues,
            class: [0x02, 0x00, 0x00],
        })
    }

    fn build(
        mut config: NetConfig,
        wiring: &mut Wiring<'_>,
    ) -> Result<Box<dyn VirtioDevice>, BoxError> {
        if config.mac.is_none() {
            config.mac = Some(Mac::new(stable_mac(&wiring.placement.name))?);
        }
        let backend = wiring.backends.net(&config.backend)?;
        Ok(Box::new(Net::new(&config, backend)?))
    }
}

/// What a network device has done.
#[derive(Debug, Default, Inspect)]
#[inspect(prefix = "net")]
pub(crate) struct NetCounters {
    /// Frames carried: rx to the guest, tx from it.
    #[inspect(metric = "packets", label(direction = "rx"))]
    rx_frames: Counter,
    /// Bytes of the frames carried: rx to the guest, tx from it.
    #[inspect(metric = "bytes", label(direction = "rx"))]
    rx_bytes: Counter,
    /// Frames that no buffers on offer could hold.
    #[inspect(
        metric = "dropped",
        label(direction = "rx", reason = "oversize"),
        help = "Frames that were lost, by reason."
    )]
    rx_oversize: Counter,
    /// Frames lost to a pause.
    #[inspect(
        metric = "dropped",
        label(direction = "rx", reason = "pause"),
        help = "Frames that were lost, by reason."
    )]
    rx_dropped: Counter,
    /// Transfers that failed in the backend.
    #[inspect(metric = "errors", label(direction = "rx"))]
    rx_errors: Counter,
    /// Times the guest had no buffers on offer.
    rx_starved: Counter,
    /// Receive buffers too small for a header, or not memory.
    bad_buffers: Counter,
    /// Frames carried: rx to the guest, tx from it.
    #[inspect(metric = "packets", label(direction = "tx"))]
    tx_frames: Counter,
    /// Bytes of the frames carried: rx to the guest, tx from it.
    #[inspect(metric = "bytes", label(direction = "tx"))]
    tx_bytes: Counter,
    /// Frames malformed or too long.
    #[inspect(
        metric = "dropped",
        label(direction = "tx", reason = "malformed"),
        help = "Frames that were lost, by reason."
    )]
    tx_dropped: Counter,
    /// Transfers that failed in the backend.
    #[inspect(metric = "errors", label(direction = "tx"))]
    tx_errors: Counter,
    /// Times the wire took no more frames.
    tx_stalls: Counter,
    /// Commands of the driver on the control queue.
    commands: Counter,
    /// Commands that were refused.
    refused_commands: Counter,
}

/// What the device and its tasks share.
pub(crate) struct Shared {
    counters: Arc<NetCounters>,
    mac: Mutex<Mac>,
    max_pairs: u16,
    /// Pairs the driver uses; one until it says otherwise (§5.1.6.5.6).
    pairs: AtomicU16,
    /// One for each pair, signalled when that number changes.
    pair_events: Vec<EventFd>,
    promiscuous: AtomicBool,
    all_multicast: AtomicBool,
    link_up: AtomicBool,
}

impl Shared {
    fn pairs(&self) -> u16 {
        self.pairs.load(Ordering::Acquire)
    }

    fn set_pairs(&self, pairs: u16) {
        self.pairs.store(pairs, Ordering::Release);
        for event in &self.pair_events {
            event.signal();
        }
    }

    /// The other end of the wire is gone.
    fn link_down(&self, interrupt: &Interrupt) {
        if self.link_up.swap(false, Ordering::AcqRel) {
            interrupt.config();
        }
    }

    fn pair_event(&self, pair: u16) -> Option<&EventFd> {
        self.pair_events.get(usize::from(pair))
    }
}

/// A network device.
pub struct Net {
    // Wiring
    backend: Box<dyn NetBackend>,
    wires: Vec<Shelf<Box<dyn NetQueue>>>,
    shared: Arc<Shared>,
    interrupt: Option<Arc<Interrupt>>,
    // Configuration
    offloads: NetOffloads,
    mac: Mac,
    mtu: Option<u16>,
    queue_size: u16,
}

impl Net {
    /// A device over `backend`.
    pub fn new(config: &NetConfig, mut backend: Box<dyn NetBackend>) -> Result<Self, BoxError> {
        let (wanted, present) = (config.queue_pairs, backend.queue_pairs());
        if wanted > present {
            let what = backend.describe();
            let reason = format!("{wanted} wanted, but {what} has {present}");
            return Err(ConfigError::new("queue_pairs", reason).into());
        }
        let mac = config
            .mac
            .ok_or_else(|| ConfigError::new("mac", "no address is given"))?;
        let offloads = backend.offloads();
        let mut queues = backend.take_queues()?;
        for spare in queues.iter_mut().skip(wanted.into()) {
            spare.set_in_service(false)?;
        }
        let events: io::Result<Vec<_>> = (0..wanted).map(|_| EventFd::new()).collect();
        let shared = Shared {
            counters: Arc::default(),
            mac: Mutex::new(mac),
            max_pairs: wanted,
            pairs: AtomicU16::new(1),
            pair_events: events?,
            promiscuous: AtomicBool::new(false),
            all_multicast: AtomicBool::new(false),
            link_up: AtomicBool::new(backend.link() == NetLink::Up),
        };
        Ok(Self {
            // Spare queues are kept too, so that they stay detached.
            wires: queues.into_iter().map(Shelf::new).collect(),
            backend,
            shared: Arc::new(shared),
            interrupt: None,
            // Without a header on the wire there is no way to say what is left to do to a frame.
            offloads: if offloads.vnet_header {
                offloads
            } else {
                NetOffloads::default()
            },
            mac,
            mtu: config.mtu,
            queue_size: config.queue_size,
        })
    }

    /// `struct virtio_net_config` (§5.1.4) up to the MTU.
    fn config_space(&self) -> [u8; 12] {
        let up = self.shared.link_up.load(Ordering::Acquire);
        let status = if up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        let [a, b, c, d, e, f] = self.shared.mac.lock().bytes();
        let [s0, s1] = status.to_le_bytes();
        let [p0, p1] = self.shared.max_pairs.to_le_bytes();
        let [m0, m1] = self.mtu.unwrap_or(0).to_le_bytes();
        [a, b, c, d, e, f, s0, s1, p0, p1, m0, m1]
    }

    /// What the guest takes, of what the backend can give (§5.1.3.1 says what depends on what).
    fn accepted(&self, features: u64) -> NetOffloads {
        let has = |bit: u32| features & 1 << bit != 0;
        let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
        NetOffloads {
            vnet_header: self.offloads.vnet_header,
            checksum,
            tso4: checksum && has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: checksum && has(VIRTIO_NET_F_GUEST_TSO6),
            uso: checksum && has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
        }
    }
}

impl VirtioDevice for Net {
    fn features(&self) -> u64 {
        let NetOffloads {
            vnet_header: _,
            checksum,
            tso4,
            tso6,
            uso,
        } = self.offloads;
        let offer = |on: bool, bit: u32| u64::from(on) << bit;
        let always = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_RX,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
        ];
        always.into_iter().map(|bit| offer(true, bit)).sum::<u64>()
            | offer(self.mtu.is_some(), VIRTIO_NET_F_MTU)
            | offer(self.shared.max_pairs > 1, VIRTIO_NET_F_MQ)
            | offer(checksum, VIRTIO_NET_F_CSUM)
            | offer(checksum, VIRTIO_NET_F_GUEST_CSUM)
            | offer(checksum && tso4, VIRTIO_NET_F_HOST_TSO4)
            | offer(checksum && tso4, VIRTIO_NET_F_GUEST_TSO4)
            | offer(checksum && tso6, VIRTIO_NET_F_HOST_TSO6)
            | offer(checksum && tso6, VIRTIO_NET_F_GUEST_TSO6)
            | offer(checksum && (tso4 || tso6), VIRTIO_NET_F_HOST_ECN)
            | offer(checksum && (tso4 || tso6), VIRTIO_NET_F_GUEST_ECN)
            | offer(checksum && uso, VIRTIO_NET_F_HOST_USO)
            | offer(checksum && uso, VIRTIO_NET_F_GUEST_USO4)
            | offer(checksum && uso, VIRTIO_NET_F_GUEST_USO6)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        // Which queue is the control queue depends on what is negotiated, so all are of one size.
        vec![self.queue_size; usize::from(self.shared.max_pairs) * 2 + 1]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        queues::read_config(&self.config_space(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueTask>>, TaskError> {
        let Activation {
            features,
            mut queues,
            dma,
            interrupt,
        } = activation;
        let has = |bit: u32| features & 1 << bit != 0;
        let bare = !self.offloads.vnet_header;
        let merge = has(VIRTIO_NET_F_MRG_RXBUF);
        // §5.1.2: the control queue follows the last pair; there is one pair without MQ.
        let pairs = if has(VIRTIO_NET_F_MQ) {
            self.shared.max_pairs
        } else {
            1
        };
        if self.shared.pairs() > pairs {
            return Err(TaskError::Protocol(
                "more queue pairs in use than were negotiated",
            ));
        }
        let accepted = self.accepted(features);
        let mut take = |index: u16| {
            let at = queues.iter().position(|q| q.index() == index)?;
            Some(queues.remove(at))
        };
        let mut control = take(pairs * 2)
            .filter(|_| has(VIRTIO_NET_F_CTRL_VQ))
            .map(|queue| Control::new(queue, dma.clone(), self.shared.clone(), features));
        let mut tasks: Vec<Box<dyn QueueTask>> = Vec::new();
        for (pair, shelf) in (0..self.shared.max_pairs).zip(&self.wires) {
            let mut wire = shelf.lend()?;
            wire.set_offloads(accepted)?;
            wire.set_in_service(pair < self.shared.pairs())?;
            if pair >= pairs {
                continue;
            }
            let counters = || self.shared.counters.clone();
            let receiver = take(pair * 2)
                .map(|queue| Receiver::new(queue, dma.clone(), counters(), merge, bare));
            let transmitter = take(pair * 2 + 1)
                .map(|queue| Transmitter::new(queue, dma.clone(), counters(), bare));
            let place = (self.shared.clone(), interrupt.clone(), pair);
            let task = PairTask::new(wire, receiver, transmitter, control.take(), place);
            tasks.push(Box::new(task));
        }
        Ok(tasks)
    }

    fn reset(&mut self) {
        *self.shared.mac.lock() = self.mac;
        self.shared.pairs.store(1, Ordering::Release);
        self.shared.promiscuous.store(false, Ordering::Relaxed);
        self.shared.all_multicast.store(false, Ordering::Relaxed);
    }

    /// The link may have gone or come back.
    fn wake(&mut self) {
        let up = self.backend.link() == NetLink::Up;
        if self.shared.link_up.swap(up, Ordering::AcqRel) != up
            && let Some(interrupt) = &self.interrupt
        {
            interrupt.config();
        }
    }

    fn connect(&mut self, interrupt: Arc<Interrupt>) {
        self.interrupt = Some(interrupt);
    }
}

impl Inspect for Net {
    fn inspect(&self, v: &mut dyn Visitor) {
        self.backend.describe().visit("backend", v);
        self.shared.mac.lock().to_string().visit("mac", v);
        self.shared.link_up.visit("link_up", v);
        self.shared.pairs().visit("queue_pairs", v);
        self.shared.promiscuous.visit("promiscuous", v);
        self.shared.all_multicast.visit("all_multicast", v);
        self.shared.counters.inspect(v);
    }
}

/// Saved form.
mod saved {
    use nyx_state::{Saved, minicbor};

    #[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
    #[cbor(map)]
    pub struct NetState {
        /// Address, as the driver may have changed it.
        #[n(0)]
        pub mac: [u8; 6],
        /// Queue pairs in use.
        #[n(1)]
        pub pairs: u16,
        /// Promiscuous mode.
        #[n(2)]
        pub promiscuous: bool,
        /// All multicast frames are wanted.
        #[n(3)]
        pub all_multicast: bool,
    }

    impl Saved for NetState {
        const NAME: &'static str = "virtio-net/1";
    }
}

impl Persist for Net {
    type Saved = saved::NetState;

    fn save(&self) -> Result<Self::Saved, SaveError> {
        // The link is the backend's, the rest is configuration.
        let Self {
            backend: _,
            wires: _,
            shared,
            interrupt: _,
            offloads: _,
            mac: _,
            mtu: _,
            queue_size: _,
        } = self;
        Ok(saved::NetState {
            mac: shared.mac.lock().bytes(),
            pairs: shared.pairs(),
            promiscuous: shared.promiscuous.load(Ordering::Relaxed),
            all_multicast: shared.all_multicast.load(Ordering::Relaxed),
        })
    }

    fn restore(&mut self, saved: Self::Saved) -> Result<(), RestoreError> {
        let mac = Mac::new(saved.mac).map_err(|_| RestoreError::Invalid("a bad MAC address"))?;
        if !(1..=self.shared.max_pairs).contains(&saved.pairs) {
            return Err(RestoreError::Invalid(
                "more queue pairs than the device has",
            ));
        }
        *self.shared.mac.lock() = mac;
        self.shared.pairs.store(saved.pairs, Ordering::Release);
        self.shared
            .promiscuous
            .store(saved.promiscuous, Ordering::Relaxed);
        self.shared
            .all_multicast
            .store(saved.all_multicast, Ordering::Relaxed);
        Ok(())
    }
}
