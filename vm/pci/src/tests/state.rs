//! Capabilities, save and restore, reset, topology, inspection.

use super::probe::{Bench, HIGH, MEMORY, PIN, Plugged, TABLE, demand, placement};
use crate::{AttachError, BuildError, CapabilityOverflow, Function, SavedFunction};
use nyx_device::{AnyUnit, Bdf, Lifecycle, Msi, PciPort, Placement, ResetKind};
use nyx_inspect::Json;
use nyx_state::{Persist, RestoreError};

fn save(f: &Plugged) -> SavedFunction {
    f.with(|function| function.save().unwrap())
}

/// A function that a guest has used: moved, MSI-X on, one vector pending behind its mask.
fn used(bench: &Bench) -> Plugged {
    let f = bench.plug(&placement());
    f.write(0x10, 0xd000_0000);
    f.write(0x18, 0x1234_0000);
    f.write(0x1c, 0x41);
    f.command(6);
    f.msix_control(0x8000);
    bench.write32(TABLE + 16, 0xfee0_1000);
    bench.write32(TABLE + 24, 0x31);
    f.port.fire(1);
    bench.write32(0xd000_0000, 0xcafe);
    f.write(f.capability(9), 0);
    f
}

#[test]
fn the_express_capability_is_that_of_an_integrated_endpoint() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    let at = f.capability(0x10);
    assert_eq!(f.read16(at + 2), 0x0092);
    assert_eq!(f.read(at + 4), 0x8000, "no function-level reset");
    assert_eq!(f.read16(at + 8), 0x2810);
    f.write16(at + 8, u16::MAX);
    assert_eq!(f.read16(at + 8), 0x781f);
    assert_eq!(f.read(0x100), 0, "no extended capability");
}

#[test]
fn vendor_capabilities_are_the_devices_to_answer() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    let first = f.capability(9);
    let second = first + 8;
    assert_eq!(
        f.read(first),
        u32::from_le_bytes([9, second as u8, 0x11, 0x11])
    );
    assert_eq!(f.read16(second), 9);
    assert_eq!(f.read16(second + 16), 0x2222);
    assert_eq!(f.read16(second + 18), 0x5a5a);
    f.write(first + 2, 0xffff_ffff);
    assert_eq!(
        f.read(first),
        u32::from_le_bytes([9, second as u8, 0x11, 0x11])
    );
    f.write(second + 1, 0x0403_0201);
    assert_eq!(f.read(second), u32::from_le_bytes([9, 0, 2, 3]));
    // An access over both: each hears of its part.
    f.with(|function| function.config_write(first + 5, &[7; 6]));
    let heard = f.heard.lock();
    let part = |index, offset, bytes: &[u8]| (index, offset, bytes.to_vec());
    assert_eq!(
        heard.capability,
        [
            part(0, 0, &[0xff; 4]),
            part(1, 0, &[2, 3, 4]),
            part(0, 3, &[7; 2]),
            part(1, 0, &[7]),
        ]
    );
}

#[test]
fn there_is_room_for_what_virtio_needs_and_more_is_refused() {
    // Virtio 1.2 §4.1.4: common, notify, ISR, device, access; and one shared memory region.
    let virtio = [16, 20, 16, 16, 20, 24].map(|len| vec![0; len - 2]);
    let build = |capabilities: Vec<Vec<u8>>| {
        let bench = Bench::default();
        let port = bench.port(&demand());
        let (mut probe, _) = bench.probe(port.clone());
        probe.capabilities = capabilities;
        Function::new(
            &placement(),
            probe,
            port,
            bench.spaces.clone(),
            bench.bells.clone(),
        )
        .err()
    };
    assert_eq!(build(virtio.to_vec()), None);
    let more = [&virtio[..], &[vec![]]].concat();
    assert_eq!(
        build(more),
        Some(BuildError::Capabilities(CapabilityOverflow))
    );
}

#[test]
fn a_device_that_breaks_leaves_its_bus_alone() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    let bdf = Bdf::new(3, 0);
    let _attached = bench.topology.attach(bdf, f.slot.clone()).unwrap();
    f.port.set_intx(true);
    assert_eq!(bench.read32(MEMORY + 0x66), u32::MAX);
    assert_eq!(bench.faults.take()[0].what, "the probe broke");
    assert_eq!(bench.mapped(), [0; 0]);
    assert_eq!(bench.bound(), [0; 0]);
    assert!(!bench.pins.is_high(PIN));
    let mut vendor = [0; 2];
    bench.topology.read(bdf, 0, &mut vendor);
    assert_eq!(vendor, [0xff; 2]);
}

#[test]
fn a_restored_function_is_where_it_was() {
    let bench = Bench::default();
    let saved = save(&used(&bench));
    let other = Bench::default();
    let f = other.plug(&placement());
    f.with(|function| function.restore(saved.clone())).unwrap();
    assert_eq!(save(&f), saved);
    f.slot.start();
    assert_eq!(other.mapped(), [0xd000_0000, TABLE, 0x41_1234_0000]);
    assert_eq!(other.bound(), [0xd000_3000, 0x41_1234_0010]);
    assert_eq!(other.spaces.pio.windows().len(), 0);
    assert_eq!(other.read32(0xd000_0000), 0xcafe);
    assert_eq!(f.heard.lock().bus_master, [true]);
    assert!(f.port.msix_enabled());
    assert_eq!(other.msis.take(), []);
    other.write32(TABLE + 28, 0);
    assert_eq!(
        other.msis.take(),
        [Msi {
            address: 0xfee0_1000,
            data: 0x31
        }]
    );
}

#[test]
fn functions_restored_in_any_order_may_have_traded_places() {
    let bench = Bench::default();
    let two = |bench: &Bench| {
        let bars = [(0, 0xd000_0000), (1, 0xd001_0000)].into();
        let second = Placement {
            bdf: Some(Bdf::new(4, 0)),
            bars,
            ..placement()
        };
        (bench.plug(&placement()), bench.plug(&second))
    };
    let (a, b) = two(&bench);
    a.command(0);
    b.command(0);
    a.write(0x10, 0xd000_0000);
    b.write(0x10, MEMORY as u32);
    a.command(3);
    // As both are from power-on, so that restoring changes addresses only.
    b.command(2);
    let saved = (save(&a), save(&b));
    let other = Bench::default();
    let (a, b) = two(&other);
    a.with(|f| f.restore(saved.0)).unwrap();
    b.with(|f| f.restore(saved.1)).unwrap();
    a.slot.start();
    b.slot.start();
    assert_eq!(
        a.with(|f| f.refused_mappings()) + b.with(|f| f.refused_mappings()),
        0
    );
    other.write32(MEMORY + 4, 1);
    assert_eq!(
        (a.heard.lock().writes.len(), b.heard.lock().writes.len()),
        (0, 1)
    );
    let mut bound = other.bound();
    bound.sort_unstable();
    assert_eq!(bound, [0xd000_3000, MEMORY + 0x3000, HIGH + 0x10]);
}

#[test]
fn a_level_is_restored_and_a_message_waits_for_the_start() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    f.port.set_intx(true);
    let mut saved = save(&f);
    let other = Bench::default();
    let f = other.plug(&placement());
    f.with(|function| function.restore(saved.clone())).unwrap();
    assert!(other.pins.is_high(PIN));

    saved = save(&used(&Bench::default()));
    saved.vectors[1].masked = false;
    f.with(|function| function.restore(saved)).unwrap();
    assert_eq!(other.msis.take(), []);
    assert!(!other.pins.is_high(PIN));
    f.slot.start();
    assert_eq!(other.msis.take().len(), 1);
}

#[test]
fn a_hostile_saved_state_is_refused_and_changes_nothing() {
    let bench = Bench::default();
    let saved = save(&used(&bench));
    let refuse = |change: &dyn Fn(&mut SavedFunction)| {
        let bench = Bench::default();
        let f = bench.plug(&placement());
        let before = save(&f);
        let mut saved = saved.clone();
        change(&mut saved);
        let error = f.with(|function| function.restore(saved)).unwrap_err();
        assert_eq!(save(&f), before);
        assert_eq!(bench.mapped(), [MEMORY, TABLE, HIGH]);
        match error {
            RestoreError::Invalid(why) => why,
            other => panic!("{other}"),
        }
    };
    let foreign = "the configuration space is another function's";
    let vectors = "another number of MSI-X vectors";
    let power = usize::from(bench.plug(&placement()).capability(1)) + 4;
    assert_eq!(refuse(&|s| s.config[0] = 0), foreign);
    assert_eq!(
        refuse(&|s| s.config[0x11] |= 1),
        foreign,
        "a misaligned BAR"
    );
    assert_eq!(
        refuse(&|s| s.config[0x18] = 0),
        foreign,
        "a BAR of another type"
    );
    assert_eq!(refuse(&|s| s.config.truncate(255)), foreign);
    assert_eq!(refuse(&|s| s.config.extend([0; 4000])), foreign);
    assert_eq!(refuse(&|s| s.config[power] |= 2), "impossible power state");
    assert_eq!(refuse(&|s| s.vectors.push(s.vectors[0])), vectors);
    assert_eq!(refuse(&|s| s.vectors.clear()), vectors);
}

#[test]
fn a_reset_leads_back_to_the_plan() {
    for kind in [ResetKind::Cold, ResetKind::Warm, ResetKind::Function] {
        let bench = Bench::default();
        let fresh = save(&bench.plug(&placement()));
        let f = used(&bench);
        f.port.set_intx(true);
        f.with(|function| function.reset(kind));
        assert_eq!(save(&f), fresh);
        assert_eq!(bench.mapped(), [MEMORY, TABLE, HIGH]);
        assert_eq!(f.heard.lock().resets, 1);
        assert_eq!(f.heard.lock().bus_master, [true, false]);
        assert!(!bench.pins.is_high(PIN));
        let tries = *bench.bells.tries.lock();
        f.with(|function| function.reset(kind));
        assert_eq!(
            *bench.bells.tries.lock(),
            tries,
            "a reset in place rebinds nothing"
        );
    }
}

#[test]
fn functions_that_traded_places_return_with_the_start_after_a_reset() {
    let bench = Bench::default();
    let bars = [(0, 0xd000_0000)].into();
    let second = Placement {
        bdf: Some(Bdf::new(4, 0)),
        bars,
        ..placement()
    };
    let (a, b) = (bench.plug(&placement()), bench.plug(&second));
    b.command(0);
    a.write(0x10, 0xd000_0000);
    b.write(0x10, MEMORY as u32);
    b.command(2);
    for f in [&a, &b] {
        f.slot.reset(ResetKind::Warm);
    }
    assert_eq!(
        a.with(|f| f.refused_mappings()),
        1,
        "the other one was still there"
    );
    for f in [&a, &b] {
        f.slot.start();
    }
    bench.write32(MEMORY + 4, 1);
    assert_eq!(
        (a.heard.lock().writes.len(), b.heard.lock().writes.len()),
        (1, 0)
    );
    assert_eq!(bench.mapped(), [0xd000_0000, MEMORY, TABLE, HIGH]);
}

#[test]
fn the_topology_routes_and_marks_multi_function_devices() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    let bdf = Bdf::new(3, 0);
    let read = |bdf, offset| {
        let mut data = [0; 4];
        bench.topology.read(bdf, offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(read(bdf, 0), u32::MAX);
    let attached = bench.topology.attach(bdf, f.slot.clone()).unwrap();
    assert_eq!(
        bench.topology.attach(bdf, f.slot.clone()).err(),
        Some(AttachError::Occupied(bdf))
    );
    let nowhere = Bdf::new(32, 0);
    assert_eq!(
        bench.topology.attach(nowhere, f.slot.clone()).err(),
        Some(AttachError::NoAddress(nowhere))
    );
    assert_eq!(read(bdf, 0), 0x5678_1234);
    assert_eq!(read(bdf, 0xc), 0);
    bench.topology.write(bdf, 4, &[0, 0]);
    assert_eq!(bench.mapped(), [0; 0]);
    let second = Placement {
        bdf: Some(Bdf::new(3, 7)),
        bars: [].into(),
        ..placement()
    };
    let second = bench.plug(&second);
    let also = bench
        .topology
        .attach(Bdf::new(3, 7), second.slot.clone())
        .unwrap();
    assert_eq!(bench.topology.functions(), [bdf, Bdf::new(3, 7)]);
    assert_eq!(read(bdf, 0xc), 0x0080_0000);
    let mut kind = [0];
    bench.topology.read(bdf, 0xe, &mut kind);
    assert_eq!(kind, [0x80]);
    drop(also);
    assert_eq!(read(bdf, 0xc), 0);
    // An unplugged function is absent even before it is detached.
    f.slot.clear();
    assert_eq!(read(bdf, 0), u32::MAX);
    bench.topology.write(bdf, 4, &[7, 0]);
    drop(attached);
    assert_eq!(bench.topology.functions(), []);
}

#[test]
fn inspection_shows_the_function_and_the_device() {
    let bench = Bench::default();
    let f = used(&bench);
    let tree = Json::of(&*f.slot);
    assert_eq!(tree["bdf"], "00:03.0");
    assert_eq!(tree["vendor"], "0x1234");
    assert_eq!(tree["class"], "0xff0000");
    assert_eq!(tree["bars"]["0"]["address"], "0xd0000000");
    assert_eq!(tree["bars"]["0"]["doorbells"], 1);
    assert_eq!(tree["bars"]["4"]["mapped"], false);
    assert_eq!(tree["interrupts"]["msix_enabled"], true);
    assert_eq!(tree["interrupts"]["vectors_pending"], 1);
    assert_eq!(tree["device"]["value"], 0xcafe);
}
