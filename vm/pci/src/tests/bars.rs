//! BARs: sizing, moving, decoding, doorbells.

use super::probe::{Bench, HIGH, MEMORY, PIN, PORTS, TABLE, demand, placement};
use crate::{BuildError, Function};
use nyx_device::{
    BarSpace, Bdf, FaultPort, FunctionDemand, Lifecycle, PciPort, Placement, ResetKind, Space,
};
use std::sync::Arc;

const MASTER: u16 = 4;

#[test]
fn planned_addresses_decode_from_power_on() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    assert_eq!(f.read16(4), 3);
    assert_eq!(f.read(0x10), 0xe000_0000);
    assert_eq!(f.read(0x14), 0xe001_0000);
    assert_eq!((f.read(0x18), f.read(0x1c)), (0xc, 0x40));
    assert_eq!(f.read(0x20), 0xc041);
    assert_eq!(f.read(0x24), 0);
    assert_eq!(f.read(0x3c) & 0xffff, 0x0110);
    assert_eq!(bench.mapped(), [MEMORY, TABLE, HIGH]);
    assert_eq!(bench.read32(MEMORY + 8), 0xa0a0_a0a0);
    assert_eq!(bench.read32(HIGH + 8), 0xa2a2_a2a2);
    let mut byte = [0];
    bench.spaces.pio.read(PORTS + 3, &mut byte);
    assert_eq!(byte, [0xa4]);
    bench.write32(MEMORY + 0x10, 7);
    assert_eq!(f.heard.lock().writes, [(0, 0x10, vec![7, 0, 0, 0])]);
}

#[test]
fn without_decoding_nothing_is_mapped_until_the_guest_says_so() {
    let bench = Bench::default();
    let (function, ..) = bench.function(&placement());
    let faults = FaultPort::new("f".into(), bench.faults.clone());
    let slot = function.decoding(false).plug(faults);
    assert_eq!(bench.mapped(), [0; 0]);
    slot.with(|f| f.config_write(4, &[2, 0]));
    assert_eq!(bench.mapped(), [MEMORY, TABLE, HIGH]);
    assert_eq!(bench.spaces.pio.windows().len(), 0);
}

#[test]
fn a_function_plugged_into_a_running_machine_claims_nothing_until_it_is_placed() {
    let bench = Bench::default();
    let (function, ..) = bench.function(&placement());
    let faults = FaultPort::new("f".into(), bench.faults.clone());
    let slot = function.hot_plugged().plug(faults);
    let read = |at: u16| {
        let mut data = [0; 4];
        slot.with(|f| f.config_read(at, &mut data));
        u32::from_le_bytes(data)
    };
    assert_eq!((read(4) & 7, bench.mapped()), (0, vec![]));
    assert_eq!((read(0x10), read(0x14)), (0, 0));
    assert_eq!((read(0x18), read(0x1c), read(0x20)), (0xc, 0, 1));
    // Decoding alone maps nothing.
    slot.with(|f| f.config_write(4, &[3, 0]));
    assert_eq!(bench.mapped(), [0; 0]);
    slot.with(|f| f.config_write(0x10, &0xd000_0000u32.to_le_bytes()));
    assert_eq!(bench.mapped(), [0xd000_0000]);
    // A reset puts it where the plan has it.
    slot.with(|f| f.reset(ResetKind::Warm));
    assert_eq!(bench.mapped(), [MEMORY, TABLE, HIGH]);
}

#[test]
fn bars_are_sized_as_linux_does_it() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    f.command(0);
    let size = |at: u16| {
        let before = f.read(at);
        f.write(at, u32::MAX);
        let mask = f.read(at);
        f.write(at, before);
        assert_eq!(f.read(at), before);
        mask
    };
    assert_eq!(size(0x10), 0xffff_c000);
    assert_eq!(size(0x14), 0xffff_f000);
    assert_eq!((size(0x18), size(0x1c)), (0xffff_000c, 0xffff_ffff));
    assert_eq!(size(0x20), 0x0000_ffe1);
    assert_eq!(size(0x24), 0);
    // No expansion ROM.
    assert_eq!(size(0x30), 0);
    f.command(3);
    assert_eq!(bench.mapped(), [MEMORY, TABLE, HIGH]);
    assert_eq!(*bench.bells.tries.lock(), 2, "sizing binds nothing anew");
}

#[test]
fn sizing_with_decoding_on_maps_nothing_at_the_top() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    for at in [0x10, 0x18, 0x1c, 0x20] {
        let before = f.read(at);
        f.write(at, u32::MAX);
        let all = [bench.spaces.mmio.windows(), bench.spaces.pio.windows()].concat();
        let tops = [0xffff, 0xffff_ffff, u64::MAX];
        assert!(all.iter().all(|w| !tops.contains(&w.1)), "{all:x?}");
        f.write(at, before);
    }
    f.write(0x18, u32::MAX);
    f.write(0x1c, u32::MAX);
    assert_eq!(bench.mapped(), [MEMORY, TABLE]);
    f.write(0x18, 0);
    f.write(0x1c, 0x40);
    assert_eq!(bench.mapped(), [MEMORY, TABLE, HIGH]);
}

#[test]
fn a_moved_bar_takes_its_window_and_doorbells_along() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    assert_eq!(bench.bound(), [MEMORY + 0x3000, HIGH + 0x10]);
    f.write(0x10, 0xd000_4000);
    assert_eq!(bench.mapped(), [0xd000_4000, TABLE, HIGH]);
    assert_eq!(bench.bound(), [HIGH + 0x10, 0xd000_7000]);
    assert_eq!(bench.read32(MEMORY), u32::MAX);
    assert_eq!(bench.read32(0xd000_4000 + 8), 0xa0a0_a0a0);
    // Both halves of a 64-bit BAR in one access, as ECAM allows.
    let there = 0x7f_ffff_0000u64;
    f.with(|function| function.config_write(0x18, &there.to_le_bytes()));
    assert_eq!(bench.mapped(), [0xd000_4000, TABLE, there]);
    assert_eq!(bench.read32(there + 4), 0xa2a2_a2a2);
    f.write(0x20, 0xd000);
    assert_eq!(bench.spaces.pio.windows()[0].0, 0xd000);
}

#[test]
fn doorbells_stay_while_decoding_is_off() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    let bound = bench.bound();
    for _ in 0..3 {
        f.command(0);
        assert_eq!(bench.mapped(), [0; 0]);
        assert_eq!(bench.bound(), bound);
        f.write(0x10, u32::MAX);
        f.write(0x10, MEMORY as u32);
        f.command(3 | MASTER);
        assert_eq!(bench.mapped(), [MEMORY, TABLE, HIGH]);
    }
    assert_eq!(*bench.bells.tries.lock(), 2);
    // Moved while decoding was off: rebound when it is back on.
    f.command(0);
    f.write(0x10, 0xd000_0000);
    f.command(3);
    assert_eq!(bench.bound(), [HIGH + 0x10, 0xd000_3000]);
    assert_eq!(bench.bells.bound.lock()[1].0, Space::Mmio);
}

#[test]
fn a_refused_doorbell_is_an_ordinary_write() {
    let bench = Bench::default();
    *bench.bells.refuse.lock() = true;
    let f = bench.plug(&placement());
    assert_eq!(bench.bound(), [0; 0]);
    bench.write32(MEMORY + 0x3000, 1);
    assert_eq!(f.heard.lock().writes, [(0, 0x3000, vec![1, 0, 0, 0])]);
}

#[test]
fn an_occupied_address_is_refused_counted_and_tried_again() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    let other = bench.plug(&Placement {
        bdf: Some(Bdf::new(4, 0)),
        bars: [(0, 0xd000_0000)].into(),
        ..placement()
    });
    f.write(0x10, 0xd000_0000);
    assert_eq!(f.with(|f| f.refused_mappings()), 1);
    assert_eq!(bench.mapped(), [0xd000_0000, TABLE, HIGH]);
    assert_eq!(f.read(0x10), 0xd000_0000);
    assert_eq!(
        bench.read32(HIGH + 4),
        0xa2a2_a2a2,
        "the function still works"
    );
    other.command(0);
    f.command(3 | MASTER);
    assert_eq!(
        bench.mapped(),
        [TABLE, HIGH],
        "a change of nothing that decodes maps nothing"
    );
    f.command(0);
    f.command(3);
    assert_eq!(bench.mapped(), [0xd000_0000, TABLE, HIGH]);
    bench.write32(0xd000_0000 + 4, 9);
    assert_eq!(f.heard.lock().writes.len(), 1);
}

#[test]
fn two_functions_can_trade_places_with_their_doorbells() {
    let bench = Bench::default();
    let a = bench.plug(&placement());
    let b = bench.plug(&Placement {
        bdf: Some(Bdf::new(4, 0)),
        bars: [(0, 0xd000_0000)].into(),
        ..placement()
    });
    a.command(0);
    b.command(0);
    a.write(0x10, 0xd000_0000);
    b.write(0x10, MEMORY as u32);
    a.command(2);
    b.command(2);
    assert_eq!(bench.read32(MEMORY + 4), 0xa0a0_a0a0);
    bench.write32(MEMORY + 4, 1);
    bench.write32(0xd000_0000 + 4, 1);
    assert_eq!(
        (a.heard.lock().writes.len(), b.heard.lock().writes.len()),
        (1, 1)
    );
    let mut bound = bench.bound();
    bound.sort_unstable();
    assert_eq!(bound, [0xd000_3000, MEMORY + 0x3000, HIGH + 0x10]);
}

#[test]
fn a_sleeping_function_decodes_nothing_and_says_nothing() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    f.command(7);
    let power = f.capability(1);
    assert_eq!(f.read16(power + 2), 3);
    assert_eq!(f.read16(power + 4), 8, "D0, no soft reset");
    f.write16(power + 4, 3);
    assert_eq!(bench.mapped(), [0; 0]);
    assert_eq!(f.heard.lock().bus_master, [true, false]);
    for unsupported in [1, 2] {
        f.write16(power + 4, unsupported);
        assert_eq!(f.read16(power + 4), 11);
    }
    f.write16(power + 4, 0);
    assert_eq!(bench.mapped(), [MEMORY, TABLE, HIGH]);
    assert_eq!(f.heard.lock().bus_master, [true, false, true]);
    assert_eq!(*bench.bells.tries.lock(), 2);
}

#[test]
fn a_function_that_leaves_takes_everything_with_it() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    f.port.set_intx(true);
    assert!(bench.pins.is_high(PIN));
    let there = Arc::downgrade(&f.slot);
    drop(f.slot);
    assert!(
        there.upgrade().is_none(),
        "its windows do not keep it alive"
    );
    assert_eq!(bench.mapped(), [0; 0]);
    assert_eq!(bench.bound(), [0; 0]);
    assert!(!bench.pins.is_high(PIN));
    // A worker that has not heard yet.
    f.port.set_intx(true);
    f.port.fire(0);
    assert!(!bench.pins.is_high(PIN));
    assert_eq!(bench.msis.take(), []);
}

#[test]
fn impossible_plans_are_refused() {
    let refused = |change: &dyn Fn(&mut Placement)| {
        let bench = Bench::default();
        let mut placement = placement();
        let port = bench.port(&demand());
        change(&mut placement);
        let (probe, _) = bench.probe(port.clone());
        Function::new(
            &placement,
            probe,
            port,
            bench.spaces.clone(),
            bench.bells.clone(),
        )
        .err()
    };
    let bar = |index, reason| Some(BuildError::Bar { index, reason });
    let pci = |p: &mut Placement| p.demand.pci.take().unwrap();
    assert_eq!(refused(&|_| ()), None);
    assert_eq!(refused(&|p| drop(pci(p))), Some(BuildError::NotPlanned));
    assert_eq!(refused(&|p| p.bdf = None), Some(BuildError::NotPlanned));
    let change =
        |change: &dyn Fn(&mut FunctionDemand)| refused(&|p| change(p.demand.pci.as_mut().unwrap()));
    assert_eq!(
        change(&|d| d.msix_vectors = 3),
        Some(BuildError::Vectors(3))
    );
    assert_eq!(
        change(&|d| d.bars[0].len = 0x3000),
        bar(0, "impossible length")
    );
    assert_eq!(
        change(&|d| d.bars[2].len = 512),
        bar(4, "impossible length")
    );
    assert_eq!(change(&|d| d.bars[1].index = 5), bar(5, "no such register"));
    assert_eq!(
        change(&|d| d.bars[0].index = 3),
        bar(2, "another BAR has the same register")
    );
    assert_eq!(
        refused(&|p| *p.bars.get_mut(&0).unwrap() += 0x1000),
        bar(0, "the address is not a multiple of the length")
    );
    assert_eq!(
        refused(&|p| *p.bars.get_mut(&0).unwrap() = 1 << 32),
        bar(0, "the address is out of reach")
    );
    assert_eq!(
        change(&|d| d.bars[0].space = BarSpace::Memory64),
        bar(1, "another BAR has the same register")
    );
}
