//! Hot-plug registers, as the AML uses them and as no AML would.

use super::*;
use nyx_device::{
    AnyKind, AnyUnit, Attach, Bdf, Device, DeviceKind, EjectionSink, Erased, Fragment,
    GeneralEvents, HOTPLUG_EVENT, Hit, NoDoorbells, PciSlots, Placement, ResetKind, Slot,
};
use nyx_pci::{AddressSpaces, Attachment, Function, Port, Topology};
use nyx_testkit::{Bench, conformance, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

conformance!(
    hotplug_conformance,
    PciHotplug,
    json!({}),
    Attach::Pci,
    |extensions| {
        let slots = PciSlots::new(Arc::default(), Arc::new(()));
        (1..6).for_each(|slot| slots.occupied_at_start(slot));
        extensions.offer(Arc::new(Topology::default()));
        extensions.offer(Arc::new(slots));
    }
);

#[derive(Default)]
struct Ejections(AtomicUsize);
impl EjectionSink for Ejections {
    fn ejected(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Board {
    topology: Topology,
    slots: Arc<PciSlots>,
    events: Arc<GeneralEvents>,
    ejections: Arc<Ejections>,
    unit: Arc<Slot<dyn Device>>,
    attached: Vec<Attachment>,
    bench: Bench,
}

const ARRIVED: u64 = 0x00;
const ASKED: u64 = 0x04;
const EJECT: u64 = 0x08;
const REMOVABLE: u64 = 0x0c;
const BUS: u64 = 0x10;
const GONE: u64 = 0x14;

impl Board {
    /// A board with functions in slots 0, 4 and 31.
    fn new() -> Self {
        let mut bench = Bench::new::<PciHotplug>(json!({}));
        let (topology, events) = (Topology::default(), Arc::<GeneralEvents>::default());
        let ejections = Arc::new(Ejections::default());
        let slots = Arc::new(PciSlots::new(events.clone(), ejections.clone()));
        bench.extensions.offer(Arc::new(topology.clone()));
        bench.extensions.offer(slots.clone());
        let unit = bench.plug(bench.build::<PciHotplug>());
        let mut board = Self {
            topology,
            slots,
            events,
            ejections,
            unit,
            attached: Vec::new(),
            bench,
        };
        for device in [0, 4, 31] {
            board.insert(device);
        }
        board.slots.occupied_at_start(4);
        board.slots.occupied_at_start(31);
        board.unit.start();
        board
    }

    fn insert(&mut self, device: u8) {
        let inner = Bench::new::<HostBridge>(json!({}));
        let placement = Placement {
            bdf: Some(Bdf::new(device, 0)),
            demand: HostBridge::demand(&HostBridgeConfig {}, Attach::Pci).unwrap(),
            ..inner.placement.clone()
        };
        let demand = placement.demand.pci.as_ref().unwrap();
        let port = Port::new(demand, None, self.bench.msis.clone());
        let (device, spaces) = (inner.build::<HostBridge>(), AddressSpaces::default());
        let function =
            Function::new(&placement, device, port, spaces, Arc::new(NoDoorbells)).unwrap();
        let bdf = function.bdf();
        let attached = self
            .topology
            .attach(bdf, function.plug(self.bench.fault_port()));
        self.attached.push(attached.unwrap());
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.unit
            .with(|d| d.read(Hit::new(0, offset), &mut data))
            .unwrap()
            .unwrap();
        u32::from_le_bytes(data)
    }
    fn write(&self, offset: u64, value: u32) {
        self.unit
            .with(|d| d.write(Hit::new(0, offset), &value.to_le_bytes()))
            .unwrap()
            .unwrap();
    }
    fn answers(&self, device: u8) -> bool {
        let mut vendor = [0; 2];
        self.topology.read(Bdf::new(device, 0), 0, &mut vendor);
        vendor != [0xff; 2]
    }
    fn is_called(&self) -> bool {
        self.events.take() == 1 << HOTPLUG_EVENT
    }
}

#[test]
fn an_arrival_is_told_until_it_is_acknowledged() {
    let mut board = Board::new();
    assert!(!board.is_called(), "what was there at the start is no news");
    assert_eq!(board.read(REMOVABLE), 1 << 4 | 1 << 31);
    board.insert(5);
    board.slots.arrived(5);
    assert!(board.is_called());
    assert_eq!(board.read(ARRIVED), 1 << 5);
    board.slots.arrived(6);
    board.write(ARRIVED, 1 << 5);
    assert_eq!(board.read(ARRIVED), 1 << 6, "news of the meantime stay");
    assert_eq!(board.read(REMOVABLE), 1 << 4 | 1 << 5 | 1 << 6 | 1 << 31);
}

#[test]
fn an_ejected_function_is_gone_for_the_guest_at_once_and_for_its_owner_later() {
    let board = Board::new();
    board.slots.ask(4);
    assert!(board.is_called());
    assert_eq!(board.read(ASKED), 1 << 4);
    board.write(ASKED, 1 << 4);
    assert!(board.answers(4));
    board.write(EJECT, 1 << 4);
    assert!(!board.answers(4) && board.answers(31));
    assert_eq!((board.read(EJECT), board.slots.ejected()), (1 << 4, 1 << 4));
    for _ in 0..10 {
        board.write(EJECT, 1 << 4);
    }
    assert_eq!(board.ejections.0.load(Ordering::SeqCst), 1, "said once");
    board.slots.freed(4);
    assert_eq!((board.read(EJECT), board.read(REMOVABLE)), (0, 1 << 31));
    assert!(!board.is_called(), "the guest knows");
}

#[test]
fn neither_the_bridge_nor_an_empty_slot_can_be_ejected() {
    let board = Board::new();
    board.write(EJECT, !(1 << 31));
    assert_eq!(board.slots.ejected(), 1 << 4);
    assert!(board.answers(0) && board.answers(31) && !board.answers(4));
}

#[test]
fn other_buses_have_no_slots() {
    let board = Board::new();
    board.slots.ask(4);
    board.write(BUS, 3);
    for offset in [ARRIVED, ASKED, EJECT, REMOVABLE, GONE] {
        assert_eq!(board.read(offset), 0, "{offset:#x}");
        board.write(offset, u32::MAX);
    }
    assert_eq!(board.read(BUS), 3);
    assert!(board.answers(4));
    board.write(BUS, 0);
    assert_eq!(board.read(ASKED), 1 << 4);
}

#[test]
fn a_surprise_leaves_a_note_and_takes_older_news_along() {
    let board = Board::new();
    board.slots.arrived(9);
    board.slots.ask(9);
    assert!(board.is_called());
    board.slots.vanished(9);
    assert!(board.is_called());
    assert_eq!((board.read(ARRIVED), board.read(ASKED)), (0, 0));
    assert_eq!(board.read(GONE), 1 << 9);
    board.write(GONE, 1 << 9);
    assert_eq!(board.read(GONE), 0);
    board.slots.withdraw(4);
    assert!(board.is_called());
    assert_eq!((board.read(GONE), board.read(EJECT)), (1 << 4, 1 << 4));
    board.slots.freed(4);
    assert_eq!((board.read(GONE), board.read(EJECT)), (1 << 4, 0));
    board.slots.ask(31);
    board.slots.retract(31);
    assert_eq!(board.read(ASKED), 0);
}

#[test]
fn news_survive_a_snapshot_and_an_ejection_in_the_middle_is_completed_after_it() {
    let board = Board::new();
    board.slots.arrived(7);
    board.slots.ask(4);
    board.write(EJECT, 1 << 31);
    drop(AnyUnit::stop(&*board.unit));
    let blob = board.unit.save().unwrap().unwrap();

    let other = Board::new();
    drop(AnyUnit::stop(&*other.unit));
    other.unit.restore(&blob).unwrap();
    assert!(!other.answers(31) && other.answers(4));
    assert_eq!(other.ejections.0.load(Ordering::SeqCst), 0);
    other.unit.start();
    assert_eq!(other.ejections.0.load(Ordering::SeqCst), 1);
    assert_eq!(other.slots.ejected(), 1 << 31);
    assert_eq!((other.read(ARRIVED), other.read(ASKED)), (1 << 7, 1 << 4));

    // And back to a time before it.
    let before = Board::new();
    let early = before.unit.save().unwrap().unwrap();
    other.unit.restore(&early).unwrap();
    assert!(other.answers(31));
    assert_eq!(other.slots.ejected(), 0);
}

#[test]
fn a_reset_voids_news_and_what_its_owner_left_is_back() {
    let board = Board::new();
    board.slots.arrived(7);
    board.write(EJECT, 1 << 4);
    board.write(BUS, 1);
    board.unit.reset(ResetKind::Warm);
    let registers = [ARRIVED, ASKED, BUS, GONE].map(|at| board.read(at));
    assert_eq!(registers, [0; 4]);
    assert_eq!(board.slots.ejected(), 0);
    assert!(board.answers(4));
}

#[test]
fn only_double_words_count() {
    let board = Board::new();
    let mut data = [0; 2];
    let read = board.unit.with(|d| d.read(Hit::new(0, 0), &mut data));
    assert!(read.unwrap().is_err());
    let written = board.unit.with(|d| d.write(Hit::new(0, EJECT), &[0xff]));
    assert!(written.unwrap().is_err());
    let beside = board.unit.with(|d| d.write(Hit::new(0, 2), &[0xff; 4]));
    assert!(beside.unwrap().is_err());
    assert_eq!(board.slots.ejected(), 0);
}

#[test]
fn every_slot_but_the_bridge_has_an_object_and_the_event_a_method() {
    let bench = Bench::new::<PciHotplug>(json!({}));
    let kind = Erased::<PciHotplug>::new();
    let fragments = kind.acpi(&bench.placement).unwrap();
    let [Fragment::PciRoot(slots), Fragment::Events(events)] = &fragments[..] else {
        unreachable!("two fragments")
    };
    let has = |aml: &[u8], name: &str| aml.windows(4).any(|w| w == name.as_bytes());
    assert!(has(slots, "S01_") && has(slots, "S1F_") && has(slots, "_EJ0"));
    assert!(!has(slots, "S00_") && !has(slots, "S20_"));
    assert!(has(events, "_E01"));
    let refused = kind.demand(&json!({ "base": 0xae10 }), Attach::Pci);
    assert!(refused.unwrap_err().to_string().contains("multiple of 32"));
}
