//! Where the id is, when it changes, and who hears.

use super::*;
use nyx_device::{AnyUnit, Device, DeviceKind, GenerationChange, ResetKind, Slot};
use nyx_testkit::{Bench, conformance, json};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

const GUID: &str = "12345678-9abc-4def-8123-456789abcdef";

conformance!(conforms, VmGenId, json!({}));
conformance!(conforms_with_id, VmGenId, json!({"guid": GUID}));

struct Board {
    bench: Bench,
    change: Arc<GenerationChange>,
    slot: Arc<Slot<dyn Device>>,
}

impl Board {
    fn new() -> Self {
        let mut bench = Bench::new::<VmGenId>(json!({"guid": GUID}));
        let change = Arc::new(GenerationChange::default());
        bench.extensions.offer(change.clone());
        let device = bench.build::<VmGenId>();
        let slot = bench.plug(device);
        slot.start();
        Self {
            bench,
            change,
            slot,
        }
    }
    fn in_memory(&self) -> [u8; 16] {
        let mut guid = [0; 16];
        let at = GuestAddress(self.bench.placement.reserved_ram.unwrap() + 40);
        self.bench.dma.view().read_slice(&mut guid, at).unwrap();
        guid
    }
    fn pulses(&self) -> usize {
        let event = self.bench.placement.irqs["event"];
        let rises = self.bench.pins.rises(event);
        self.bench.pins.take_changes();
        rises
    }
}

const IN_MEMORY: [u8; 16] = [
    0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a, 0xef, 0x4d, 0x81, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
];

#[test]
fn the_id_lies_in_memory_as_a_guid() {
    let board = Board::new();
    assert_eq!(board.in_memory(), IN_MEMORY);
    assert_eq!(board.pulses(), 0);
}

#[test]
fn a_new_generation_has_a_new_id_and_an_edge() {
    let board = Board::new();
    board.change.announce();
    let second = board.in_memory();
    assert_ne!(second, IN_MEMORY);
    assert_eq!(board.pulses(), 1);
    board.slot.wake();
    assert_eq!(
        (board.in_memory(), board.pulses()),
        (second, 0),
        "once for each announcement"
    );
    board.slot.reset(ResetKind::Warm);
    assert_eq!(
        board.in_memory(),
        second,
        "a reboot does not make another machine"
    );
}

#[test]
fn what_the_guest_overwrites_is_put_back_by_a_reset() {
    let board = Board::new();
    let at = GuestAddress(board.bench.placement.reserved_ram.unwrap() + 40);
    board.bench.dma.view().write_slice(&[0; 16], at).unwrap();
    board.slot.reset(ResetKind::Warm);
    assert_eq!(board.in_memory(), IN_MEMORY);
}

#[test]
fn a_clone_announced_before_resume_is_heard_on_resume() {
    let first = Board::new();
    drop(AnyUnit::stop(&*first.slot));
    let blob = first.slot.save().unwrap().unwrap();
    let clone = Board::new();
    drop(AnyUnit::stop(&*clone.slot));
    clone.slot.restore(&blob).unwrap();
    assert_eq!((clone.in_memory(), clone.pulses()), (IN_MEMORY, 0));
    clone.change.announce();
    assert_eq!(clone.pulses(), 0);
    clone.slot.start();
    assert_eq!(clone.pulses(), 1);
    assert_ne!(clone.in_memory(), IN_MEMORY);
}

#[test]
fn uuids_read_back_what_they_print() {
    let uuid: Uuid = GUID.parse().unwrap();
    assert_eq!(uuid.to_string(), GUID);
    let random = Uuid::random().unwrap();
    assert_eq!(random.to_string().parse::<Uuid>().unwrap(), random);
    assert_eq!((random.bytes()[6] >> 4, random.bytes()[8] >> 6), (4, 2));
    assert_ne!(random, Uuid::random().unwrap());
    let bad = [
        "",
        "12345678",
        "12345678-9abc-4def-8123-456789abcdeg",
        "1234567-89abc-4def-8123-456789abcdef",
        "+2345678-9abc-4def-8123-456789abcdef",
    ];
    for text in bad {
        assert!(text.parse::<Uuid>().is_err(), "{text}");
    }
}

#[test]
fn a_bad_guid_is_refused_with_an_example() {
    let config = json!({"guid": "nonsense"});
    let error = serde_json::from_value::<VmGenIdConfig>(config)
        .unwrap_err()
        .to_string();
    assert!(error.contains("\"nonsense\" is not a UUID like"), "{error}");
}

#[test]
fn the_dsdt_names_the_address_and_the_event() {
    let bench = Bench::new::<VmGenId>(json!({}));
    let fragments = VmGenId::acpi(&VmGenIdConfig::default(), &bench.placement);
    let [nyx_device::Fragment::SystemBus(bytes)] = &fragments[..] else {
        panic!("one fragment under the system bus");
    };
    let address = (bench.placement.reserved_ram.unwrap() as u32 + 40).to_le_bytes();
    let has = |wanted: &[u8]| bytes.windows(wanted.len()).any(|w| w == wanted);
    assert!(has(b"VM_Gen_Counter") && has(b"ACPI0013") && has(&address));
}
