//! MSI-X and the pin.

use super::probe::{Bench, PIN, Plugged, TABLE, VECTORS, placement};
use nyx_device::{Msi, PciPort};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;
const PENDING: u64 = TABLE + 0x800;

/// A function with vector `n` programmed to send `0x4000 + n`, unmasked, and bus mastering on.
fn armed(bench: &Bench) -> Plugged {
    let f = bench.plug(&placement());
    f.command(7);
    f.msix_control(ENABLE);
    for vector in 0..u64::from(VECTORS) {
        program(bench, vector);
    }
    f
}

fn program(bench: &Bench, vector: u64) {
    let entry = TABLE + 16 * vector;
    bench.write32(entry, 0xfee0_0003);
    bench.write32(entry + 4, 1);
    bench.write32(entry + 8, 0x4000 + vector as u32);
    bench.write32(entry + 12, 0xffff_fffe);
}

fn message(vector: u32) -> Msi {
    Msi {
        address: 0x1_fee0_0000,
        data: 0x4000 + vector,
    }
}

#[test]
fn the_capability_tells_where_table_and_pending_bits_are() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    let at = f.capability(0x11);
    assert_eq!(f.read16(at + 2), VECTORS - 1);
    assert_eq!((f.read(at + 4), f.read(at + 8)), (1, 0x801));
    f.write(at + 4, u32::MAX);
    f.write16(at + 2, u16::MAX);
    assert_eq!(f.read16(at + 2), 0xc000 | (VECTORS - 1));
    assert_eq!(f.read(at + 4), 1);
}

#[test]
fn a_programmed_vector_is_sent() {
    let bench = Bench::default();
    let f = armed(&bench);
    f.port.fire(2);
    f.port.fire(VECTORS - 1);
    f.port.fire(VECTORS);
    assert_eq!(
        bench.msis.take(),
        [message(2), message(u32::from(VECTORS) - 1)]
    );
    assert_eq!(
        bench.read32(TABLE + 32),
        0xfee0_0000,
        "the address is aligned"
    );
    assert_eq!(bench.read32(TABLE + 44), 0);
}

#[test]
fn a_masked_vector_waits_and_is_sent_once() {
    let bench = Bench::default();
    let f = armed(&bench);
    bench.write32(TABLE + 16 * 65 + 12, 1);
    f.port.fire(65);
    f.port.fire(65);
    assert_eq!(bench.msis.take(), []);
    assert_eq!((bench.read32(PENDING), bench.read32(PENDING + 8)), (0, 2));
    bench.write32(PENDING + 8, 0);
    assert_eq!(bench.read32(PENDING + 8), 2, "pending bits are read-only");
    // Re-programming a masked vector changes what is sent.
    bench.write32(TABLE + 16 * 65 + 8, 0x4001);
    bench.write32(TABLE + 16 * 65 + 12, 0);
    assert_eq!(bench.msis.take(), [message(1)]);
    assert_eq!(bench.read32(PENDING + 8), 0);
    bench.write32(TABLE + 16 * 65 + 12, 0);
    assert_eq!(bench.msis.take(), []);
}

#[test]
fn function_mask_enable_and_bus_mastering_all_hold_back() {
    let bench = Bench::default();
    let f = armed(&bench);
    let hold = |off: &dyn Fn(), on: &dyn Fn()| {
        off();
        f.port.fire(1);
        assert_eq!(bench.msis.take(), []);
        assert_eq!(bench.read32(PENDING), 2);
        on();
        assert_eq!(bench.msis.take(), [message(1)]);
        assert_eq!(bench.read32(PENDING), 0);
    };
    hold(&|| f.msix_control(ENABLE | MASK_ALL), &|| {
        f.msix_control(ENABLE)
    });
    hold(&|| f.msix_control(0), &|| f.msix_control(ENABLE));
    hold(&|| f.command(3), &|| f.command(7));
    assert!(f.port.msix_enabled());
}

#[test]
fn only_aligned_words_change_the_table() {
    let bench = Bench::default();
    let f = armed(&bench);
    let write = |offset: u64, data: &[u8]| bench.spaces.mmio.write(TABLE + offset, data);
    write(8, &[9]);
    write(8, &[9, 9]);
    write(9, &[9, 9, 9, 9]);
    write(4, &[9; 8]);
    assert_eq!(f.slot.refused.get(), 4);
    assert_eq!(bench.read32(TABLE + 8), 0x4000);
    write(8, &[1, 2, 3, 4, 1, 0, 0, 0]);
    assert_eq!(
        (bench.read32(TABLE + 8), bench.read32(TABLE + 12)),
        (0x0403_0201, 1)
    );
    let mut odd = [0; 7];
    bench.spaces.mmio.read(TABLE + 9, &mut odd);
    assert_eq!(odd, [2, 3, 4, 1, 0, 0, 0]);
    // Between the table and the pending bits there is nothing.
    write(0x7f0, &[1; 4]);
    assert_eq!(bench.read32(TABLE + 0x7f0), 0);
}

#[test]
fn the_pin_obeys_interrupt_disable_and_shows_in_the_status() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    f.port.set_intx(true);
    assert!(bench.pins.is_high(PIN));
    assert_eq!(f.read16(6), 0x18);
    f.command(3 | 1 << 10);
    assert!(!bench.pins.is_high(PIN));
    assert_eq!(f.read16(6), 0x18, "the status shows what is pending inside");
    f.port.set_intx(false);
    assert_eq!(f.read16(6), 0x10);
    f.port.set_intx(true);
    assert!(!bench.pins.is_high(PIN));
    f.command(3);
    assert!(bench.pins.is_high(PIN));
    f.msix_control(ENABLE);
    assert!(!bench.pins.is_high(PIN));
    f.msix_control(0);
    assert!(bench.pins.is_high(PIN));
    f.write16(f.capability(1) + 4, 3);
    assert!(!bench.pins.is_high(PIN));
}

#[test]
fn a_vector_is_silent_once_it_is_masked_and_loses_nothing() {
    let bench = Bench::default();
    let f = armed(&bench);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut fired = 0;
            while !stop.load(Ordering::Relaxed) {
                f.port.fire(3);
                fired += 1;
            }
            fired
        });
        for _ in 0..200 {
            bench.write32(TABLE + 60, 1);
            bench.msis.take();
            thread::yield_now();
            assert_eq!(bench.msis.take(), []);
            f.msix_control(ENABLE | MASK_ALL);
            bench.write32(TABLE + 60, 0);
            bench.msis.take();
            thread::yield_now();
            assert_eq!(bench.msis.take(), []);
            f.msix_control(ENABLE);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(worker.join().unwrap() > 0);
    });
    bench.msis.take();
    assert_eq!(
        bench.read32(PENDING),
        0,
        "nothing stays behind an open gate"
    );
}
