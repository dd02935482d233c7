//! Timer, button, sleep and events.

use super::*;
use nyx_device::{AnyUnit, Device, GeneralEvents, Hit, PowerButton, PowerRequest, Registers, Slot};
use nyx_testkit::{Bench, conformance, json};
use std::sync::Arc;
use std::time::Duration;

const SCI: u32 = 9;

conformance!(conforms, Pm, json!({}));

struct Board {
    bench: Bench,
    button: Arc<PowerButton>,
    slot: Arc<Slot<dyn Device>>,
}

impl Board {
    fn new() -> Self {
        let mut bench = Bench::new::<Pm>(json!({}));
        let button = Arc::new(PowerButton::default());
        bench.extensions.offer(button.clone());
        let device = bench.build::<Pm>();
        let slot = bench.plug(device);
        slot.start();
        Self {
            bench,
            button,
            slot,
        }
    }
    fn read16(&self, port: u16) -> u16 {
        let mut data = [0; 2];
        self.slot
            .with(|d| d.read(Hit::new(0, port.into()), &mut data))
            .unwrap()
            .unwrap();
        u16::from_le_bytes(data)
    }
    fn write16(&self, port: u16, value: u16) {
        let write = |d: &mut (dyn Device + 'static)| {
            d.write(Hit::new(0, port.into()), &value.to_le_bytes())
        };
        self.slot.with(write).unwrap().unwrap();
    }
    fn timer(&self) -> u32 {
        let mut data = [0; 4];
        self.slot
            .with(|d| d.read(Hit::new(0, PM_TIMER.into()), &mut data))
            .unwrap()
            .unwrap();
        u32::from_le_bytes(data)
    }
    fn sci(&self) -> bool {
        self.bench.pins.is_high(SCI)
    }
}

#[test]
fn the_timer_counts_3579545_a_second_and_wraps() {
    let board = Board::new();
    assert_eq!(board.timer(), 0);
    board.bench.clock.set(Duration::from_secs(1));
    assert_eq!(board.timer(), 3_579_545);
    board.bench.clock.set(Duration::from_secs(1200));
    assert_eq!(board.timer(), (1200u64 * 3_579_545) as u32);
    let mut byte = [0];
    board
        .slot
        .with(|d| d.read(Hit::new(0, 9), &mut byte))
        .unwrap()
        .unwrap();
    assert_eq!(byte[0], ((1200u64 * 3_579_545) >> 8) as u8);
}

#[test]
fn the_top_bit_raises_an_interrupt_and_arms_a_timer_only_on_request() {
    let board = Board::new();
    assert_eq!(board.bench.clock.armed_timers(), 0);
    // 2^31 ticks are 599.93 seconds.
    board.bench.clock.set(Duration::from_secs(599));
    assert_eq!(board.read16(0) & 1, 0);
    board.bench.clock.set(Duration::from_secs(600));
    assert_eq!(board.read16(0) & 1, 1);
    assert!(!board.sci());
    board.write16(2, 1);
    assert!(board.sci());
    assert_eq!(board.bench.clock.armed_timers(), 1);
    board.write16(0, 1);
    assert!(!board.sci());
    board.bench.clock.set(Duration::from_secs(1200));
    board.slot.wake();
    assert!(board.sci());
    board.write16(2, 0);
    assert_eq!((board.sci(), board.bench.clock.armed_timers()), (false, 0));
}

#[test]
fn the_power_button_is_a_status_and_an_sci() {
    let board = Board::new();
    board.write16(2, 1 << 8);
    board.button.press();
    assert_eq!((board.read16(0), board.sci()), (1 << 8, true));
    board.write16(0, 1 << 8);
    assert_eq!((board.read16(0), board.sci()), (0, false));
}

#[test]
fn a_press_during_a_pause_is_heard_after_it() {
    let board = Board::new();
    board.write16(2, 1 << 8);
    drop(AnyUnit::stop(&*board.slot));
    board.button.press();
    assert!(!board.sci());
    board.slot.start();
    assert!(board.sci());
}

#[test]
fn s5_powers_off_and_nothing_else_does() {
    let board = Board::new();
    assert_eq!(board.read16(PM1_CONTROL), 1, "SCI_EN");
    board.write16(PM1_CONTROL, 5 << 10);
    board.write16(PM1_CONTROL, 7 << 10 | 1 << 13);
    assert!(board.bench.power.take().is_empty());
    board.write16(PM1_CONTROL, 5 << 10 | 1 << 13);
    assert_eq!(board.bench.power.take(), [PowerRequest::Off]);
    assert_eq!(board.read16(PM1_CONTROL), 5 << 10 | 1, "SLP_EN reads zero");
    // The high byte alone will do.
    board
        .slot
        .with(|d| d.write(Hit::new(0, 5), &[0x34]))
        .unwrap()
        .unwrap();
    assert_eq!(board.bench.power.take(), [PowerRequest::Off]);
}

#[test]
fn general_purpose_events_share_the_sci() {
    let bench = Bench::new::<Pm>(json!({}));
    let mut wiring = bench.wiring();
    let timer = wiring.timer();
    let sci = wiring.irq("sci").unwrap();
    let mut pm = Pm::new(
        sci,
        bench.clock.clone(),
        timer,
        wiring.power.clone(),
        None,
        None,
    );
    pm.raise_event(17);
    assert!(!bench.pins.is_high(SCI));
    pm.write(Hit::new(0, 0x26), &[0x02]).unwrap();
    assert!(bench.pins.is_high(SCI));
    let mut status = [0; 4];
    pm.read(Hit::new(0, GPE0.into()), &mut status).unwrap();
    assert_eq!(u32::from_le_bytes(status), 1 << 17);
    pm.write(Hit::new(0, GPE0.into()), &status).unwrap();
    assert!(!bench.pins.is_high(SCI));
    pm.raise_event(200);
}

#[test]
fn an_event_raised_elsewhere_is_latched_at_once_and_heard_after_a_pause() {
    let mut bench = Bench::new::<Pm>(json!({}));
    let events = Arc::new(GeneralEvents::default());
    bench.extensions.offer(events.clone());
    let slot = bench.plug(bench.build::<Pm>());
    let status = || {
        let mut data = [0; 4];
        slot.with(|d| d.read(Hit::new(0, GPE0.into()), &mut data))
            .unwrap()
            .unwrap();
        u32::from_le_bytes(data)
    };
    slot.with(|d| d.write(Hit::new(0, u64::from(GPE0) + 4), &[2]))
        .unwrap()
        .unwrap();
    events.raise(1);
    assert!(!bench.pins.is_high(SCI), "it is not started yet");
    slot.start();
    assert!(bench.pins.is_high(SCI));
    assert_eq!(status(), 2);
    slot.with(|d| d.write(Hit::new(0, GPE0.into()), &[2]))
        .unwrap()
        .unwrap();
    assert!(!bench.pins.is_high(SCI));
    drop(AnyUnit::stop(&*slot));
    events.raise(1);
    // A snapshot of the pause holds the event.
    let blob = slot.save().unwrap().unwrap();
    let other = Board::new();
    other.slot.restore(&blob).unwrap();
    assert!(other.sci());
}

#[test]
fn time_that_passes_until_the_clock_is_restored_is_no_overflow() {
    let board = Board::new();
    board.write16(2, 1);
    drop(AnyUnit::stop(&*board.slot));
    let blob = board.slot.save().unwrap().unwrap();
    let other = Board::new();
    drop(AnyUnit::stop(&*other.slot));
    other.slot.restore(&blob).unwrap();
    other.bench.clock.set(Duration::from_secs(5000));
    other.slot.start();
    assert_eq!((other.read16(0), other.sci()), (0, false));
    assert_eq!(other.bench.clock.armed_timers(), 1);
}
