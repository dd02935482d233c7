//! Redirection, triggering, masking and end of interrupt.

use super::*;
use nyx_device::{Device, Hit, IoapicRoutePort, Msi, ResetKind};
use nyx_testkit::{Bench, conformance, json};
use parking_lot::Mutex;
use std::sync::Arc;

conformance!(conforms, Ioapic, json!({}));

const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;

struct Chip {
    bench: Bench,
    ioapic: Box<dyn Device>,
}

impl Chip {
    fn new() -> Self {
        let bench = Bench::new::<Ioapic>(json!({"id": 2}));
        let mut ioapic = bench.build::<Ioapic>();
        ioapic.start();
        Self { bench, ioapic }
    }
    fn write(&mut self, index: u8, value: u32) {
        self.ioapic.write(Hit::new(0, 0), &[index]).unwrap();
        self.ioapic
            .write(Hit::new(0, 0x10), &value.to_le_bytes())
            .unwrap();
    }
    fn read(&mut self, index: u8) -> u32 {
        self.ioapic
            .write(Hit::new(0, 0), &u32::from(index).to_le_bytes())
            .unwrap();
        let mut data = [0; 4];
        self.ioapic.read(Hit::new(0, 0x10), &mut data).unwrap();
        u32::from_le_bytes(data)
    }
    fn program(&mut self, pin: u8, high: u32, low: u32) {
        self.write(0x11 + 2 * pin, high);
        self.write(0x10 + 2 * pin, low);
    }
    fn set(&mut self, pin: u32, high: bool) {
        self.ioapic
            .as_irq_controller()
            .unwrap()
            .set_level(pin, high);
    }
    fn end(&mut self, vector: u8) {
        self.ioapic
            .as_irq_controller()
            .unwrap()
            .end_of_interrupt(vector);
    }
    fn sent(&self) -> Vec<Msi> {
        self.bench.msis.take()
    }
}

#[test]
fn identification_registers() {
    let mut chip = Chip::new();
    assert_eq!(
        (chip.read(0), chip.read(1), chip.read(2)),
        (2 << 24, 0x0017_0020, 2 << 24)
    );
    chip.write(0, 0xff00_0000);
    assert_eq!((chip.read(0), chip.read(2)), (0x0f00_0000, 0x0f00_0000));
    chip.write(1, 0);
    assert_eq!(chip.read(1), 0x0017_0020);
    assert_eq!(
        (chip.read(0x10), chip.read(0x11)),
        (MASKED, 0),
        "entries begin masked"
    );
    assert_eq!(chip.read(0x40), u32::MAX, "nothing beyond the table");
}

#[test]
fn reserved_and_read_only_bits_do_not_stick() {
    let mut chip = Chip::new();
    chip.program(5, u32::MAX, u32::MAX);
    assert_eq!(
        (chip.read(0x1a), chip.read(0x1b)),
        (0x0001_afff, 0xffff_0000)
    );
}

#[test]
fn an_edge_is_one_message_with_the_programmed_destination() {
    let mut chip = Chip::new();
    // Logical, lowest priority, vector 0x31, destination 0x5a extended by 0x03.
    chip.program(4, 0x5a06_0000, 0x0931);
    chip.set(4, true);
    chip.set(4, true);
    let address = 0xfee0_0000 | 0x5a << 12 | 3 << 5 | 1 << 2;
    assert_eq!(
        chip.sent(),
        [Msi {
            address,
            data: 0x131
        }]
    );
    chip.set(4, false);
    chip.set(4, true);
    assert_eq!(chip.sent().len(), 1);
}

#[test]
fn a_level_fires_until_it_falls() {
    let mut chip = Chip::new();
    chip.program(9, 0x0100_0000, LEVEL | 0x40);
    chip.set(9, true);
    assert_eq!(
        chip.sent(),
        [Msi {
            address: 0xfee0_1000,
            data: 0xc040
        }]
    );
    assert_eq!(chip.read(0x22) & REMOTE_IRR, REMOTE_IRR);
    chip.set(9, false);
    chip.set(9, true);
    assert!(chip.sent().is_empty(), "in service: not again");
    chip.end(0x41);
    assert!(chip.sent().is_empty(), "another vector ended");
    chip.end(0x40);
    assert_eq!(chip.sent().len(), 1, "still high");
    chip.set(9, false);
    chip.end(0x40);
    assert!(chip.sent().is_empty());
    assert_eq!(chip.read(0x22) & REMOTE_IRR, 0);
}

#[test]
fn the_eoi_register_ends_too() {
    let mut chip = Chip::new();
    chip.program(9, 0, LEVEL | 0x40);
    chip.set(9, true);
    chip.sent();
    chip.ioapic
        .write(Hit::new(0, 0x40), &0x40u32.to_le_bytes())
        .unwrap();
    assert_eq!(chip.sent().len(), 1);
}

#[test]
fn unmasking_delivers_a_level_and_forgets_an_edge() {
    let mut chip = Chip::new();
    chip.program(9, 0, MASKED | LEVEL | 0x40);
    chip.program(4, 0, MASKED | 0x50);
    chip.set(9, true);
    chip.set(4, true);
    assert!(chip.sent().is_empty());
    chip.program(4, 0, 0x50);
    assert!(chip.sent().is_empty());
    chip.program(9, 0, LEVEL | 0x40);
    assert_eq!(chip.sent().len(), 1);
}

#[test]
fn switching_to_edge_and_back_ends_a_stuck_interrupt() {
    let mut chip = Chip::new();
    chip.program(9, 0, LEVEL | 0x40);
    chip.set(9, true);
    chip.sent();
    chip.program(9, 0, MASKED | 0x40);
    assert_eq!(chip.read(0x22) & REMOTE_IRR, 0);
    chip.program(9, 0, LEVEL | 0x40);
    assert_eq!(chip.sent().len(), 1);
}

#[test]
fn paused_machines_hold_edges_and_levels() {
    let mut chip = Chip::new();
    chip.program(4, 0, 0x50);
    chip.program(9, 0, LEVEL | 0x40);
    drop(chip.ioapic.stop());
    chip.set(4, true);
    chip.set(9, true);
    assert!(chip.sent().is_empty());
    let blob = chip.ioapic.save_blob().unwrap();
    let mut other = Chip::new();
    drop(other.ioapic.stop());
    other.ioapic.restore_blob(&blob).unwrap();
    // The devices behind the wires are restored after the controller.
    other.set(4, true);
    other.set(9, true);
    assert!(other.sent().is_empty());
    other.ioapic.start();
    let data: Vec<u32> = other.sent().iter().map(|m| m.data).collect();
    assert_eq!(data, [0x50, 0xc040]);
}

#[test]
fn reset_masks_and_keeps_the_wires() {
    let mut chip = Chip::new();
    chip.program(9, 0, LEVEL | 0x40);
    chip.set(9, true);
    chip.sent();
    chip.ioapic.reset(ResetKind::Warm);
    assert_eq!((chip.read(0x22), chip.read(0)), (MASKED, 2 << 24));
    chip.program(9, 0, LEVEL | 0x40);
    assert_eq!(chip.sent().len(), 1, "the wire is still high");
}

#[test]
fn the_kernel_hears_of_level_entries_only_when_they_change() {
    let tables = Arc::new(Mutex::new(Vec::new()));
    let log = tables.clone();
    let mut bench = Bench::new::<Ioapic>(json!({}));
    bench
        .extensions
        .offer(Arc::new(IoapicRoutePort(Box::new(move |table| {
            let some = table
                .iter()
                .enumerate()
                .filter_map(|(pin, msi)| Some((pin, (*msi)?.data)));
            log.lock().push(some.collect::<Vec<_>>());
        }))));
    let mut ioapic = bench.build::<Ioapic>();
    ioapic.start();
    let mut chip = Chip { bench, ioapic };
    chip.program(4, 0, 0x50);
    assert!(tables.lock().is_empty(), "an edge needs no exit");
    chip.program(9, 0, LEVEL | 0x40);
    chip.program(9, 0, LEVEL | 0x40);
    assert_eq!(*tables.lock(), [[(9, 0xc040)]]);
    chip.set(9, true);
    chip.program(9, 0, MASKED | LEVEL | 0x40);
    assert_eq!(
        tables.lock().len(),
        1,
        "masked in service: its end is still due"
    );
    chip.set(9, false);
    chip.end(0x40);
    assert_eq!(*tables.lock(), [vec![(9, 0xc040)], vec![]]);
}

#[test]
fn odd_accesses_are_refused() {
    let mut chip = Chip::new();
    let mut data = [0; 8];
    assert!(chip.ioapic.read(Hit::new(0, 0x20), &mut data[..4]).is_err());
    assert!(chip.ioapic.read(Hit::new(0, 0x10), &mut data).is_err());
    assert!(chip.ioapic.write(Hit::new(0, 0x10), &data[..2]).is_err());
    assert!(chip.ioapic.write(Hit::new(0, 0x11), &data[..1]).is_err());
}
