//! The transport state machine behind both register layouts, driven as a driver does, with a
//! device that copies what it reads to what it writes.

use crate::device::{Activation, Progress, QueueTask, Shape, TaskError, VirtioDevice, VirtioKind};
use crate::{Interrupt, VirtQueue, Virtio};
use nyx_device::{
    Attach, BoxError, ConfigError, Device, Erased, FaultKind, Hit, PciHooks, Slot, Wiring,
};
use nyx_inspect::{Inspect, Json, Visitor};
use nyx_memory::DmaSpace;
use nyx_reactor::{Interest, Poller};
use nyx_state::{Persist, RestoreError, SaveError, Stateless};
use nyx_testkit::Bench;
use parking_lot::Mutex;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

// The device ---------------------------------------------------------------------------------

/// Copies the readable part of every chain to its writable part. While `held`, it keeps chains in
/// flight.
struct Mirror {
    interrupt: Option<Arc<Interrupt>>,
    config: [u8; 8],
    held: Arc<Mutex<bool>>,
}

struct MirrorTask {
    queue: VirtQueue,
    dma: DmaSpace,
    held: Arc<Mutex<bool>>,
    waiting: Vec<crate::Chain>,
    draining: bool,
}

impl MirrorTask {
    fn serve(&mut self) -> Result<Progress, TaskError> {
        let view = self.dma.view();
        while !self.draining {
            self.queue.disable_kicks();
            while let Some(chain) = self.queue.pop(&view)? {
                self.waiting.push(chain);
            }
            if !self.queue.enable_kicks() {
                break;
            }
        }
        drop(view);
        self.finish();
        Ok(Progress::Wait)
    }

    fn finish(&mut self) {
        if *self.held.lock() {
            return;
        }
        let view = self.dma.view();
        for chain in self.waiting.drain(..) {
            let len = chain.readable_len().min(chain.writable_len()).min(4096) as usize;
            let mut bytes = vec![0; len];
            let copied = chain
                .read_into(&view, 0, &mut bytes)
                .and_then(|()| chain.write(&view, 0, &bytes))
                .map_or(0, |()| len as u32);
            assert_ne!(bytes, b"die!", "the guest found a bug");
            self.queue.push(chain.head(), copied);
        }
        self.queue.notify();
    }
}

impl QueueTask for MirrorTask {
    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        poller.add(&**self.queue.kick_event(), 0, Interest::Readable)
    }
    fn ready(&mut self, _: u64, _: &Poller) -> Result<Progress, TaskError> {
        self.queue.take_kick();
        self.serve()
    }
    fn resume(&mut self, _: &Poller) -> Result<Progress, TaskError> {
        self.draining = false;
        self.serve()
    }
    fn drain(&mut self) -> Result<bool, TaskError> {
        self.draining = true;
        self.finish();
        Ok(self.waiting.is_empty())
    }
    fn queues(&self) -> Vec<&VirtQueue> {
        vec![&self.queue]
    }
}

impl VirtioDevice for Mirror {
    fn features(&self) -> u64 {
        1 << 3
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![8, 8]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data
            .iter_mut()
            .zip(self.config.get(from..).unwrap_or_default())
        {
            *byte = *value;
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if (offset, data) == (0, &[0xcc]) {
            self.interrupt.as_ref().unwrap().config();
        }
    }
    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueTask>>, TaskError> {
        let Activation { queues, dma, .. } = activation;
        Ok(queues
            .into_iter()
            .map(|queue| {
                let (dma, held) = (dma.clone(), self.held.clone());
                Box::new(MirrorTask {
                    queue,
                    dma,
                    held,
                    waiting: Vec::new(),
                    draining: false,
                }) as _
            })
            .collect())
    }
    fn reset(&mut self) {}
    fn connect(&mut self, interrupt: Arc<Interrupt>) {
        self.interrupt = Some(interrupt);
    }
}
impl Inspect for Mirror {
    fn inspect(&self, _: &mut dyn Visitor) {}
}
impl Persist for Mirror {
    type Saved = Stateless;
    fn save(&self) -> Result<Stateless, SaveError> {
        Ok(Stateless {})
    }
    fn restore(&mut self, _: Stateless) -> Result<(), RestoreError> {
        Ok(())
    }
}

struct MirrorKind;
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MirrorConfig {}
#[derive(Default)]
struct Held(Arc<Mutex<bool>>);

impl VirtioKind for MirrorKind {
    const KIND: &'static str = "virtio-mirror";
    type Config = MirrorConfig;
    fn shape(_: &MirrorConfig) -> Result<Shape, ConfigError> {
        Ok(Shape {
            device_id: 42,
            queues: 2,
            class: [0xff, 0, 0],
        })
    }
    fn build(_: MirrorConfig, wiring: &mut Wiring<'_>) -> Result<Box<dyn VirtioDevice>, BoxError> {
        let held = wiring
            .extensions
            .get::<Held>()
            .map(|h| h.0.clone())
            .unwrap_or_default();
        let config = *b"nyxnyx!!";
        Ok(Box::new(Mirror {
            interrupt: None,
            config,
            held,
        }))
    }
}

nyx_testkit::conformance!(over_pci, Virtio<MirrorKind>, json!({}), Attach::Pci);
nyx_testkit::conformance!(over_mmio, Virtio<MirrorKind>, json!({}), Attach::Mmio);

// The driver ---------------------------------------------------------------------------------

/// Where the registers of one layout are.
#[derive(Clone, Copy)]
enum Reg {
    FeatureSelect,
    Features,
    AcceptSelect,
    Accept,
    Status,
    QueueSelect,
    QueueSize,
    QueueReady,
    Descriptors,
    Driver,
    Device,
}

struct Rig {
    bench: Bench,
    slot: Arc<Slot<dyn Device>>,
    attach: Attach,
    held: Arc<Mutex<bool>>,
    available: u16,
}

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const DATA: u64 = 0x8000;
const READY: u8 = 0x0b;
const LIVE: u8 = 0x0f;
const NEEDS_RESET: u8 = 0x40;

impl Rig {
    fn new(attach: Attach) -> Self {
        let mut bench = Bench::of(&Erased::<Virtio<MirrorKind>>::new(), json!({}), attach);
        let held = Held::default().0;
        bench.extensions.offer(Arc::new(Held(held.clone())));
        let slot = bench.plug(bench.build::<Virtio<MirrorKind>>());
        slot.with(|d| d.start());
        Self {
            bench,
            slot,
            attach,
            held,
            available: 0,
        }
    }

    fn at(&self, reg: Reg) -> (u64, usize) {
        match (self.attach, reg) {
            (Attach::Pci, Reg::FeatureSelect) => (0, 4),
            (Attach::Pci, Reg::Features) => (4, 4),
            (Attach::Pci, Reg::AcceptSelect) => (8, 4),
            (Attach::Pci, Reg::Accept) => (12, 4),
            (Attach::Pci, Reg::Status) => (20, 1),
            (Attach::Pci, Reg::QueueSelect) => (22, 2),
            (Attach::Pci, Reg::QueueSize) => (24, 2),
            (Attach::Pci, Reg::QueueReady) => (28, 2),
            (Attach::Pci, Reg::Descriptors) => (32, 4),
            (Attach::Pci, Reg::Driver) => (40, 4),
            (Attach::Pci, Reg::Device) => (48, 4),
            (Attach::Mmio, Reg::FeatureSelect) => (0x14, 4),
            (Attach::Mmio, Reg::Features) => (0x10, 4),
            (Attach::Mmio, Reg::AcceptSelect) => (0x24, 4),
            (Attach::Mmio, Reg::Accept) => (0x20, 4),
            (Attach::Mmio, Reg::Status) => (0x70, 4),
            (Attach::Mmio, Reg::QueueSelect) => (0x30, 4),
            (Attach::Mmio, Reg::QueueSize) => (0x38, 4),
            (Attach::Mmio, Reg::QueueReady) => (0x44, 4),
            (Attach::Mmio, Reg::Descriptors) => (0x80, 4),
            (Attach::Mmio, Reg::Driver) => (0x90, 4),
            (Attach::Mmio, Reg::Device) => (0xa0, 4),
        }
    }

    fn read_at(&self, offset: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        let done = self
            .slot
            .with(|d| d.read(Hit::new(0, offset), &mut bytes[..len]));
        done.unwrap().unwrap();
        u64::from_le_bytes(bytes)
    }

    fn write_at(&self, offset: u64, len: usize, value: u64) {
        let bytes = value.to_le_bytes();
        self.slot
            .with(|d| d.write(Hit::new(0, offset), &bytes[..len]))
            .unwrap()
            .unwrap();
    }

    fn read(&self, reg: Reg) -> u64 {
        let (offset, len) = self.at(reg);
        self.read_at(offset, len)
    }

    fn write(&self, reg: Reg, value: u64) {
        let (offset, len) = self.at(reg);
        self.write_at(offset, len, value);
    }

    fn status(&self) -> u8 {
        self.read(Reg::Status) as u8
    }

    fn offered(&self) -> u64 {
        self.write(Reg::FeatureSelect, 0);
        let low = self.read(Reg::Features);
        self.write(Reg::FeatureSelect, 1);
        low | self.read(Reg::Features) << 32
    }

    fn negotiate(&self, features: u64) {
        self.write(Reg::Status, 1);
        self.write(Reg::Status, 3);
        self.write(Reg::AcceptSelect, 0);
        self.write(Reg::Accept, features & 0xffff_ffff);
        self.write(Reg::AcceptSelect, 1);
        self.write(Reg::Accept, features >> 32);
        self.write(Reg::Status, READY.into());
    }

    fn set_up_queue(&self, descriptors: u64) {
        self.write(Reg::QueueSelect, 0);
        self.write(Reg::QueueSize, 4);
        self.write(Reg::Descriptors, descriptors);
        self.write(Reg::Driver, AVAIL);
        self.write(Reg::Device, USED);
        self.write(Reg::QueueReady, 1);
    }

    fn live(&self, features: u64) {
        self.negotiate(features | 1 << 32);
        assert_eq!(self.status(), READY);
        self.set_up_queue(DESC);
        self.write(Reg::Status, LIVE.into());
    }

    fn poke<const N: usize>(&self, at: u64, bytes: [u8; N]) {
        self.bench
            .dma
            .view()
            .write_slice(&bytes, GuestAddress(at))
            .unwrap();
    }

    fn peek<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.bench
            .dma
            .view()
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "a descriptor has that many fields"
    )]
    fn descriptor(&self, table: u64, index: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table + index * 16;
        self.poke(at, addr.to_le_bytes());
        self.poke(at + 8, len.to_le_bytes());
        self.poke(at + 12, flags.to_le_bytes());
        self.poke(at + 14, next.to_le_bytes());
    }

    fn offer(&mut self, head: u16) {
        self.poke(
            AVAIL + 4 + u64::from(self.available % 4) * 2,
            head.to_le_bytes(),
        );
        self.available = self.available.wrapping_add(1);
        self.poke(AVAIL + 2, self.available.to_le_bytes());
        self.kick();
    }

    fn kick(&self) {
        match self.attach {
            Attach::Pci => self.write_at(0x3000, 2, 0),
            Attach::Mmio => self.write_at(0x50, 4, 0),
        }
    }

    fn used(&self) -> u16 {
        u16::from_le_bytes(self.peek(USED + 2))
    }

    fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline, "{what} did not happen");
            std::thread::yield_now();
        }
    }

    /// Sends `text` through the mirror and returns what came back.
    fn mirror(&mut self, text: [u8; 4]) -> [u8; 4] {
        self.poke(DATA, text);
        self.poke(DATA + 64, [0; 4]);
        self.descriptor(DESC, 0, DATA, 4, 1, 1);
        self.descriptor(DESC, 1, DATA + 64, 4, 2, 0);
        let before = self.used();
        self.offer(0);
        self.wait("the mirror", || self.used() == before.wrapping_add(1));
        self.peek(DATA + 64)
    }

    fn interrupted(&self) -> bool {
        match self.attach {
            Attach::Pci => self.bench.pci.as_ref().unwrap().is_intx_high(),
            Attach::Mmio => self.read_at(0x60, 4) != 0,
        }
    }

    fn quiesce(&self) {
        let drain = self.slot.with(|d| d.stop()).unwrap();
        drain
            .wait(Instant::now() + Duration::from_secs(10))
            .unwrap();
    }
}

fn both(test: impl Fn(Attach)) {
    test(Attach::Pci);
    test(Attach::Mmio);
}

#[test]
fn a_driver_gets_its_buffers_back_and_an_interrupt() {
    both(|attach| {
        let mut rig = Rig::new(attach);
        assert_eq!(rig.offered(), 1 << 32 | 1 << 29 | 1 << 28 | 1 << 3);
        rig.live(0);
        assert_eq!(rig.mirror(*b"ping"), *b"ping");
        assert_eq!(rig.peek::<8>(USED + 4), [0, 0, 0, 0, 4, 0, 0, 0]);
        rig.wait("the interrupt", || rig.interrupted());
        match attach {
            Attach::Pci => assert_eq!((rig.read_at(0x1000, 1), rig.interrupted()), (1, false)),
            Attach::Mmio => {
                rig.write_at(0x64, 4, 1);
                assert!(!rig.interrupted());
            }
        }
        for n in 0..20 {
            assert_eq!(rig.mirror([n; 4]), [n; 4], "the rings wrap");
        }
    });
}

#[test]
fn queues_count_what_they_carry() {
    both(|attach| {
        let mut rig = busy(attach);
        let queue = |rig: &Rig| Json::of(&*rig.slot)["queues"]["0"].clone();
        rig.wait("the kick", || queue(&rig)["depth"] == 1);
        assert_eq!(queue(&rig)["requests"], 0);
        assert_eq!(queue(&rig)["notifications"], 1);
        *rig.held.lock() = false;
        rig.kick();
        rig.wait("the slow chain", || rig.used() == 1);
        rig.wait("the counters", || queue(&rig)["requests"] == 1);
        assert_eq!(queue(&rig)["depth"], 0);
        rig.mirror(*b"next");
        rig.wait("the counters", || queue(&rig)["requests"] == 2);
        // Accesses of the guest are counted by the slot.
        let mut word = [0; 4];
        nyx_device::Target::read(&*rig.slot, Hit::new(0, 0), &mut word);
        nyx_device::Target::write(&*rig.slot, Hit::new(0, 0), &word);
        let unit = rig.slot.take();
        nyx_device::Target::read(&*rig.slot, Hit::new(0, 0), &mut word);
        drop(unit);
        assert_eq!(word, [0xff; 4]);
        let tree = Json::of(&*rig.slot);
        // The empty slot reads ones and refuses.
        assert_eq!(
            (&tree["window_reads"], &tree["window_writes"]),
            (&1.into(), &1.into())
        );
        assert!(tree["refused_accesses"].as_u64().unwrap() >= 1);
    });
}

#[test]
fn message_interrupts_go_to_the_vectors_the_driver_chose() {
    let mut rig = Rig::new(Attach::Pci);
    let pci = rig.bench.pci.clone().unwrap();
    pci.enable_msix(true);
    rig.negotiate(1 << 32);
    rig.set_up_queue(DESC);
    rig.write_at(16, 2, 0);
    rig.write_at(26, 2, 2);
    assert_eq!((rig.read_at(16, 2), rig.read_at(26, 2)), (0, 2));
    rig.write_at(26, 2, 3);
    assert_eq!(rig.read_at(26, 2), 0xffff, "there are only three vectors");
    rig.write_at(26, 2, 2);
    rig.write(Reg::Status, LIVE.into());
    rig.mirror(*b"ping");
    rig.wait("the message", || pci.take_fired() == [2]);
    rig.write_at(0x2000, 1, 0xcc);
    assert_eq!(pci.take_fired(), [0]);
    assert!(!pci.is_intx_high());
}

#[test]
fn the_order_of_initialisation_is_enforced() {
    both(|attach| {
        let rig = Rig::new(attach);
        rig.negotiate(1 << 32 | 1 << 5);
        assert_eq!(rig.status(), 3, "a feature that was not offered");
        rig.write(Reg::Status, 0);
        rig.negotiate(1 << 3);
        assert_eq!(rig.status(), 3, "not without VERSION_1");
        rig.write(Reg::Status, 0);
        rig.negotiate(1 << 32);
        rig.write(Reg::AcceptSelect, 0);
        rig.write(Reg::Accept, 1 << 3);
        rig.write(Reg::Status, 0);
        rig.write(Reg::Status, 7);
        assert_eq!(rig.status(), 3, "DRIVER_OK without FEATURES_OK");
        assert_eq!(Json::of(&*rig.slot)["workers"], 0);
    });
}

#[test]
fn configuration_is_frozen_once_live() {
    both(|attach| {
        let mut rig = Rig::new(attach);
        rig.live(0);
        for (reg, value) in [
            (Reg::QueueSize, 8),
            (Reg::Descriptors, 0xffff_0000),
            (Reg::Driver, 4),
        ] {
            rig.write(reg, value);
        }
        rig.write(Reg::QueueReady, 0);
        assert_eq!(rig.mirror(*b"safe"), *b"safe");
        let refused = Json::of(&*rig.slot)["refused_writes"].as_u64().unwrap();
        assert!(refused >= 3, "{refused}");
    });
}

#[test]
fn impossible_queue_sizes_are_refused() {
    let rig = Rig::new(Attach::Pci);
    for size in [0, 3, 16, 0xffff] {
        rig.write(Reg::QueueSize, size);
        assert_eq!(rig.read(Reg::QueueSize), 8, "{size}");
    }
    rig.write(Reg::QueueSelect, 7);
    assert_eq!(rig.read(Reg::QueueSize), 0, "no such queue");
}

#[test]
fn every_kind_of_broken_ring_needs_a_reset_and_a_reset_heals() {
    let dead_ram = 1 << 40;
    type BreakIt<'a> = &'a dyn Fn(&mut Rig);
    let cases: [(&str, BreakIt<'_>); 9] = [
        ("available", &|r| r.available = 100),
        ("does not exist", &|r| r.poke(AVAIL + 4, 9u16.to_le_bytes())),
        ("does not end", &|r| r.descriptor(DESC, 0, DATA, 1, 1, 0)),
        ("does not exist", &|r| r.descriptor(DESC, 0, DATA, 1, 1, 77)),
        ("after one to write", &|r| {
            r.descriptor(DESC, 0, DATA, 1, 3, 1);
            r.descriptor(DESC, 1, DATA, 1, 0, 0);
        }),
        ("wraps around", &|r| {
            r.descriptor(DESC, 0, u64::MAX, 2, 0, 0)
        }),
        ("wrong length", &|r| r.descriptor(DESC, 0, DATA, 17, 4, 0)),
        ("outside memory", &|r| {
            r.descriptor(DESC, 0, dead_ram, 32, 4, 0)
        }),
        ("within an indirect", &|r| {
            r.descriptor(DESC, 0, DATA, 16, 4, 0);
            r.descriptor(DATA, 0, DATA, 16, 4, 0);
        }),
    ];
    both(|attach| {
        for (what, break_it) in &cases {
            let mut rig = Rig::new(attach);
            rig.live(1 << 28);
            rig.descriptor(DESC, 0, DATA, 4, 0, 0);
            break_it(&mut rig);
            rig.available = rig.available.wrapping_add(1);
            rig.poke(AVAIL + 2, rig.available.to_le_bytes());
            rig.kick();
            rig.wait(what, || rig.status() == LIVE | NEEDS_RESET);
            let mut faults = Vec::new();
            rig.wait("the fault", || {
                faults.extend(rig.bench.faults.take());
                !faults.is_empty()
            });
            assert_eq!(faults.len(), 1, "{what}");
            assert_eq!(faults[0].kind, FaultKind::Protocol);
            assert!(faults[0].what.contains(what), "{what}: {}", faults[0].what);
            assert_eq!(rig.used(), 0, "{what}: nothing is used");
            rig.write(Reg::Status, 0);
            rig.wait("the reset", || rig.status() == 0);
            rig.available = 0;
            rig.poke(AVAIL + 2, [0; 2]);
            rig.live(0);
            assert_eq!(rig.mirror(*b"heal"), *b"heal", "{what}");
        }
    });
}

#[test]
fn rings_outside_memory_or_misaligned_need_a_reset() {
    both(|attach| {
        for bad in [0xffff_f000, DESC + 8] {
            let rig = Rig::new(attach);
            rig.negotiate(1 << 32);
            rig.set_up_queue(bad);
            rig.write(Reg::Status, LIVE.into());
            assert_eq!(rig.status(), LIVE | NEEDS_RESET, "{bad:#x}");
        }
    });
}

#[test]
fn a_reset_reads_zero_only_once_nothing_is_in_flight() {
    both(|attach| {
        let mut rig = Rig::new(attach);
        rig.live(0);
        *rig.held.lock() = true;
        rig.descriptor(DESC, 0, DATA, 4, 0, 0);
        rig.offer(0);
        rig.wait("the pop", || {
            // The task has taken the chain when its kick is gone.
            std::thread::sleep(Duration::from_millis(1));
            true
        });
        rig.write(Reg::Status, 0);
        assert_eq!(rig.status(), LIVE, "still draining");
        rig.write(Reg::Status, 1);
        assert_eq!(rig.status(), LIVE, "writes wait for the reset");
        *rig.held.lock() = false;
        // A worker looks again when something happens; a kick is something.
        rig.wait("the reset", || {
            rig.kick();
            rig.status() == 0
        });
    });
}

/// A device with one chain in flight for as long as it is held.
fn busy(attach: Attach) -> Rig {
    let mut rig = Rig::new(attach);
    rig.live(0);
    *rig.held.lock() = true;
    rig.poke(DATA, *b"slow");
    rig.descriptor(DESC, 0, DATA, 4, 1, 1);
    rig.descriptor(DESC, 1, DATA + 64, 4, 2, 0);
    rig.offer(0);
    // Its kick is cleared before the chain is taken, and the threshold moves after.
    std::thread::sleep(Duration::from_millis(20));
    rig
}

#[test]
fn a_driver_that_does_not_wait_for_the_reset_of_an_idle_device_needs_not() {
    both(|attach| {
        let mut rig = Rig::new(attach);
        rig.live(0);
        rig.mirror(*b"ping");
        rig.write(Reg::Status, 0);
        rig.negotiate(1 << 32);
        assert_eq!(rig.status(), READY);
    });
}

#[test]
fn a_device_that_was_too_busy_to_pause_goes_on() {
    both(|attach| {
        let mut rig = busy(attach);
        let drain = rig.slot.with(|d| d.stop()).unwrap();
        assert!(
            drain
                .wait(Instant::now() + Duration::from_millis(20))
                .is_err()
        );
        rig.slot.with(|d| d.start());
        *rig.held.lock() = false;
        rig.kick();
        rig.wait("the slow chain", || rig.used() == 1);
        assert_eq!(rig.mirror(*b"next"), *b"next");
    });
}

#[test]
fn a_reset_under_way_survives_a_pause_that_fails() {
    both(|attach| {
        let rig = busy(attach);
        rig.write(Reg::Status, 0);
        assert_eq!(rig.status(), LIVE);
        let drain = rig.slot.with(|d| d.stop()).unwrap();
        assert!(
            drain
                .wait(Instant::now() + Duration::from_millis(20))
                .is_err()
        );
        rig.slot.with(|d| d.start());
        assert_eq!(rig.status(), LIVE, "the chain is still in flight");
        *rig.held.lock() = false;
        rig.wait("the reset", || {
            rig.kick();
            rig.status() == 0
        });
        assert_eq!(rig.used(), 1);
    });
}

#[test]
fn a_reset_under_way_is_over_after_a_pause() {
    both(|attach| {
        let mut rig = busy(attach);
        rig.write(Reg::Status, 0);
        *rig.held.lock() = false;
        let drain = rig.slot.with(|d| d.stop()).unwrap();
        rig.kick();
        drain
            .wait(Instant::now() + Duration::from_secs(10))
            .unwrap();
        rig.slot.with(|d| d.save_blob()).unwrap().unwrap();
        rig.slot.with(|d| d.start());
        assert_eq!(rig.status(), 0);
        rig.available = 0;
        rig.poke(AVAIL + 2, [0; 2]);
        rig.poke(USED + 2, [0; 2]);
        rig.live(0);
        assert_eq!(rig.mirror(*b"anew"), *b"anew");
    });
}

#[test]
fn a_worker_that_panics_leaves_a_device_that_can_be_paused_and_reset() {
    both(|attach| {
        let mut rig = Rig::new(attach);
        rig.live(0);
        rig.poke(DATA, *b"die!");
        rig.descriptor(DESC, 0, DATA, 4, 1, 1);
        rig.descriptor(DESC, 1, DATA + 64, 4, 2, 0);
        rig.offer(0);
        rig.wait("the end", || rig.status() == LIVE | NEEDS_RESET);
        rig.quiesce();
        rig.slot.with(|d| d.start());
        rig.write(Reg::Status, 0);
        assert_eq!(rig.status(), 0);
        rig.wait("the fault", || {
            let said = rig.bench.faults.take();
            said.iter().any(|f| f.kind == FaultKind::Panicked)
        });
        rig.available = 0;
        rig.poke(AVAIL + 2, [0; 2]);
        rig.live(0);
        assert_eq!(rig.mirror(*b"well"), *b"well");
    });
}

#[test]
fn what_tasks_hold_is_back_when_the_device_is_reset_or_gone() {
    both(|attach| {
        let mut rig = Rig::new(attach);
        let without_tasks = Arc::strong_count(&rig.held);
        for _ in 0..20 {
            rig.available = 0;
            rig.poke(AVAIL + 2, [0; 2]);
            rig.poke(USED + 2, [0; 2]);
            rig.live(0);
            rig.mirror(*b"hold");
            assert_eq!(Arc::strong_count(&rig.held), without_tasks + 1);
            rig.quiesce();
            rig.slot.with(|d| d.reset(nyx_device::ResetKind::Warm));
            assert_eq!(Arc::strong_count(&rig.held), without_tasks);
            rig.slot.with(|d| d.start());
        }
        rig.available = 0;
        rig.poke(AVAIL + 2, [0; 2]);
        rig.poke(USED + 2, [0; 2]);
        rig.live(0);
        rig.mirror(*b"gone");
        drop(rig.slot.take());
        assert_eq!(Arc::strong_count(&rig.held), without_tasks - 1);
    });
}

#[test]
fn a_live_device_moves_to_another_machine_mid_stream() {
    both(|attach| {
        let mut rig = Rig::new(attach);
        rig.live(1 << 29);
        rig.mirror(*b"one.");
        rig.mirror(*b"two.");
        rig.quiesce();
        let blob = rig.slot.with(|d| d.save_blob()).unwrap().unwrap();

        let mut other = Rig::new(attach);
        other.quiesce();
        let mut ram = vec![0; 0x10000];
        rig.bench
            .dma
            .view()
            .read_slice(&mut ram, GuestAddress(0))
            .unwrap();
        other
            .bench
            .dma
            .view()
            .write_slice(&ram, GuestAddress(0))
            .unwrap();
        other.available = rig.available;
        other.slot.with(|d| d.restore_blob(&blob)).unwrap().unwrap();
        assert_eq!(other.slot.with(|d| d.save_blob()).unwrap().unwrap(), blob);
        other.slot.with(|d| d.start());
        assert_eq!(other.status(), LIVE);
        assert_eq!(other.mirror(*b"3333"), *b"3333");
        assert_eq!(other.used(), 3);

        // And the first goes on, too.
        rig.slot.with(|d| d.start());
        assert_eq!(rig.mirror(*b"four"), *b"four");
    });
}

#[test]
fn with_event_indices_the_driver_is_interrupted_only_when_it_asked() {
    let mut rig = Rig::new(Attach::Mmio);
    rig.live(1 << 29);
    let used_event = AVAIL + 4 + 8;
    rig.mirror(*b"1st.");
    rig.wait("the first interrupt", || rig.interrupted());
    rig.write_at(0x64, 4, 1);
    rig.poke(used_event, 2u16.to_le_bytes());
    rig.mirror(*b"2nd.");
    std::thread::sleep(Duration::from_millis(5));
    assert!(!rig.interrupted(), "not before the third");
    rig.mirror(*b"3rd.");
    rig.wait("the third's interrupt", || rig.interrupted());
    let avail_event = USED + 4 + 32;
    rig.wait("the kick threshold", || {
        u16::from_le_bytes(rig.peek(avail_event)) == 3
    });
}

#[test]
fn the_configuration_access_capability_reaches_the_bar() {
    let rig = Rig::new(Attach::Pci);
    let with = |f: &mut dyn FnMut(&mut dyn PciHooks)| {
        rig.slot.with(|d| f(d.as_pci_function().unwrap()));
    };
    with(&mut |hooks| {
        let caps = hooks.vendor_capabilities();
        let kinds: Vec<_> = caps.iter().map(|c| c[1]).collect();
        assert_eq!(kinds, [1, 2, 3, 4, 5]);
        // Window: BAR 0, offset 0x2000 (device configuration), 4 bytes.
        assert!(hooks.write_capability(4, 2, &[0]));
        assert!(hooks.write_capability(4, 6, &0x2000u32.to_le_bytes()));
        assert!(hooks.write_capability(4, 10, &4u32.to_le_bytes()));
        let mut data = [0; 4];
        assert!(hooks.read_capability(4, 14, &mut data));
        assert_eq!(&data, b"nyxn");
        // A window that does not exist reads as it was.
        assert!(hooks.write_capability(4, 6, &0xffff_fff0u32.to_le_bytes()));
        assert!(hooks.read_capability(4, 14, &mut data));
        assert!(!hooks.write_capability(0, 2, &[1]), "others are read-only");
    });
}

#[test]
fn hostile_saved_state_is_refused() {
    let mut rig = Rig::new(Attach::Pci);
    rig.live(0);
    rig.mirror(*b"1234");
    rig.quiesce();
    let blob = rig.slot.with(|d| d.save_blob()).unwrap().unwrap();
    let decode = || nyx_state::minicbor::decode::<crate::saved::VirtioPci>(&blob.bytes).unwrap();
    let refuse = |spoil: &dyn Fn(&mut crate::saved::VirtioPci)| {
        let mut saved = decode();
        spoil(&mut saved);
        let bytes = nyx_state::minicbor::to_vec(&saved).unwrap();
        let other = Rig::new(Attach::Pci);
        other.quiesce();
        let blob = nyx_state::Blob {
            name: blob.name.clone(),
            bytes,
        };
        other
            .slot
            .with(|d| d.restore_blob(&blob))
            .unwrap()
            .unwrap_err()
            .to_string()
    };
    type Spoil<'a> = &'a dyn Fn(&mut crate::saved::VirtioPci);
    let cases: [(&str, Spoil<'_>); 6] = [
        ("another number of queues", &|s| {
            s.transport.queues.pop();
        }),
        ("an impossible queue size", &|s| {
            s.transport.queues[0].size = 3
        }),
        ("an impossible queue size", &|s| {
            s.transport.queues[0].size = 0x8000
        }),
        ("features that this device", &|s| {
            s.transport.accepted |= 1 << 60
        }),
        ("without agreed features", &|s| s.transport.status = 4),
        ("vector that does not exist", &|s| {
            s.transport.config_vector = 9
        }),
    ];
    for (what, spoil) in cases {
        let said = refuse(spoil);
        assert!(said.contains(what), "{what}: {said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in the rings: no panic, no hang, and nothing is used twice as often as offered.
    #[test]
    fn random_rings_are_survived(
        table in proptest::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..6), 4),
        heads in proptest::collection::vec(0u16..6, 1..8),
        indirect: bool,
    ) {
        let mut rig = Rig::new(Attach::Pci);
        rig.live(if indirect { 1 << 28 } else { 0 });
        for (i, (addr, len, flags, next)) in table.iter().enumerate() {
            // Mostly in memory, sometimes far out.
            let addr = if addr % 8 == 0 { *addr } else { addr % 0x1_0000 };
            rig.descriptor(DESC, i as u64, addr, len % 0x3000, *flags, *next);
        }
        for head in &heads {
            rig.offer(*head);
        }
        rig.quiesce();
        prop_assert!(usize::from(rig.used()) <= heads.len());
        let said = rig.bench.faults.take();
        prop_assert!(said.iter().all(|f| f.kind == FaultKind::Protocol), "{said:?}");
    }
}
