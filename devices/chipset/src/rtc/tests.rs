//! Time of day, alarms, interrupts and memory.

use super::calendar::{Civil, Format};
use super::*;
use nyx_device::{Device, Hit, ResetKind};
use nyx_testkit::{Bench, conformance, json};
use std::time::Duration;

const IRQ: u32 = 8;

conformance!(
    conforms,
    Rtc,
    json!({"low_memory": 0xc000_0000u64, "high_memory": 0x1_0000_0000u64})
);

struct Board {
    bench: Bench,
    rtc: Box<dyn Device>,
}

/// The bench's wall clock is 2026-03-01 12:00:00.25, a Sunday.
impl Board {
    fn new() -> Self {
        let bench = Bench::new::<Rtc>(json!({"low_memory": 0xc000_0000u64,
                                             "high_memory": 0x1_0000_0000u64}));
        let mut rtc = bench.build::<Rtc>();
        rtc.start();
        Self { bench, rtc }
    }
    fn get(&mut self, register: u8) -> u8 {
        self.rtc.write(Hit::new(0, 0), &[register]).unwrap();
        let mut data = [0];
        self.rtc.read(Hit::new(0, 1), &mut data).unwrap();
        data[0]
    }
    fn set(&mut self, register: u8, value: u8) {
        self.rtc.write(Hit::new(0, 0), &[register, value]).unwrap();
    }
    fn time(&mut self) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|register| self.get(register))
    }
    fn pass(&mut self, milliseconds: u64) {
        self.bench.pass(Duration::from_millis(milliseconds));
        self.rtc.wake();
    }
    fn irq(&self) -> bool {
        self.bench.pins.is_high(IRQ)
    }
    fn armed(&self) -> usize {
        self.bench.clock.armed_timers()
    }
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (seconds, date, weekday) in [
        (0, (1970, 1, 1), 5),
        (951_782_400, (2000, 2, 29), 3),
        (951_868_800, (2000, 3, 1), 4),
        (1_772_323_200, (2026, 3, 1), 1),
        (4_107_542_400, (2100, 3, 1), 2),
        (-1, (1969, 12, 31), 4),
        (253_402_300_799, (9999, 12, 31), 6),
        (-62_167_219_200, (0, 1, 1), 7),
    ] {
        let civil = Civil::from_seconds(seconds);
        assert_eq!((civil.year, civil.month, civil.day), date, "{seconds}");
        assert_eq!(civil.weekday(), weekday, "{seconds}");
        assert_eq!(civil.seconds(), seconds);
    }
    for day in -800_000..800_000 {
        let civil = Civil::from_seconds(day * 86_400 + 4321);
        assert_eq!(civil.seconds(), day * 86_400 + 4321);
        assert!((1..=31).contains(&civil.day) && (1..=12).contains(&civil.month));
    }
}

#[test]
fn twelve_hours_have_no_zero() {
    let format = Format {
        binary: false,
        hours24: false,
    };
    for (hour, byte) in [
        (0, 0x12),
        (1, 0x01),
        (11, 0x11),
        (12, 0x92),
        (13, 0x81),
        (23, 0x91),
    ] {
        assert_eq!(
            (format.write_hour(hour), format.read_hour(byte)),
            (byte, hour)
        );
    }
}

#[test]
fn the_time_is_the_hosts_in_any_format() {
    let mut board = Board::new();
    assert_eq!(board.time(), [0x20, 0x26, 0x03, 0x01, 1, 0x12, 0, 0]);
    board.pass(90 * 60 * 1000);
    assert_eq!(board.time(), [0x20, 0x26, 0x03, 0x01, 1, 0x13, 0x30, 0]);
    board.set(0x0b, 0x04);
    assert_eq!(board.time(), [20, 26, 3, 1, 1, 0x81, 30, 0]);
}

#[test]
fn setting_the_time_freezes_it_and_goes_on_from_there() {
    let mut board = Board::new();
    board.set(0x0b, 0x82);
    board.pass(5000);
    assert_eq!(board.get(0), 0, "frozen");
    assert_eq!(board.get(0x0a) & 0x80, 0, "and no update in progress");
    for (register, value) in [
        (0x32, 0x19),
        (9, 0x99),
        (8, 0x12),
        (7, 0x31),
        (4, 0x23),
        (2, 0x59),
    ] {
        board.set(register, value);
    }
    board.set(0, 0x58);
    board.set(0x0b, 0x02);
    assert_eq!(board.time(), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58]);
    board.pass(2000);
    assert_eq!(board.time(), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]);
}

#[test]
fn nonsense_in_the_fields_gives_a_time_that_can_be_saved_and_restored() {
    for format in [0x80, 0x82, 0x84, 0x86] {
        for byte in [0x00, 0x7f, 0x99, 0xaa, 0xff] {
            let mut board = Board::new();
            board.set(0x0b, format);
            for register in [0x32, 9, 8, 7, 6, 4, 2, 0] {
                board.set(register, byte);
                assert_eq!(board.get(register), byte, "frozen registers are memory");
            }
            board.set(0x0b, format & 0x7f);
            board.time();
            let blob = board.rtc.save_blob().unwrap();
            Board::new().rtc.restore_blob(&blob).unwrap();
        }
    }
}

#[test]
fn releasing_the_divider_starts_a_second_in_its_middle() {
    let mut board = Board::new();
    // As Linux sets the time: SET, divider reset, fields, SET off, divider on.
    board.set(0x0b, 0x82);
    board.set(0x0a, 0x76);
    board.set(0, 0x30);
    board.pass(700);
    board.set(0x0b, 0x02);
    assert_eq!(board.get(0), 0x30, "held by the divider");
    board.set(0x0a, 0x26);
    board.pass(499);
    assert_eq!(board.get(0), 0x30);
    board.pass(2);
    assert_eq!(board.get(0), 0x31);
}

#[test]
fn an_update_is_announced_before_every_second_and_never_sticks() {
    let mut board = Board::new();
    assert_eq!(board.get(0x0a), 0x26);
    board.pass(748);
    assert_eq!((board.get(0x0a), board.get(0)), (0xa6, 0));
    board.pass(2);
    assert_eq!((board.get(0x0a), board.get(0)), (0x26, 1));
}

#[test]
fn an_alarm_interrupts_once_at_its_time() {
    let mut board = Board::new();
    for (register, value) in [(5, 0x12), (3, 0x01), (1, 0x10)] {
        board.set(register, value);
    }
    board.set(0x0b, 0x22);
    assert_eq!(board.armed(), 1);
    board.pass(60_000);
    assert!(!board.irq());
    board.pass(10_000);
    assert!(board.irq());
    assert_eq!(board.armed(), 0, "nothing more can come until C is read");
    assert_eq!(board.get(0x0c) & 0xb0, 0xb0, "update ended meanwhile, too");
    assert!(!board.irq());
    assert_eq!((board.get(0x0c), board.armed()), (0, 1));
    board.pass(3_600_000);
    assert!(!board.irq(), "not in the next hour");
}

#[test]
fn wildcards_repeat_the_alarm() {
    let mut board = Board::new();
    for (register, value) in [(5, 0xff), (3, 0xc0), (1, 0x05)] {
        board.set(register, value);
    }
    board.set(0x0b, 0x22);
    for minute in 0..3 {
        board.pass(if minute == 0 { 5_000 } else { 60_000 });
        assert!(board.irq(), "minute {minute}");
        assert_eq!(board.get(0x0c) & 0xa0, 0xa0);
    }
    board.set(1, 0x99);
    board.pass(200_000);
    assert_eq!((board.irq(), board.armed()), (false, 0), "no such second");
}

#[test]
fn update_interrupts_come_every_second() {
    let mut board = Board::new();
    board.set(0x0b, 0x12);
    board.pass(749);
    assert!(!board.irq());
    board.pass(1);
    assert!(board.irq());
    assert_eq!(board.get(0x0c) & 0xb0, 0x90);
    board.set(0x0b, 0x92);
    assert_eq!(
        (board.get(0x0b), board.armed()),
        (0x82, 0),
        "SET clears UIE"
    );
}

#[test]
fn periodic_interrupts_have_their_rate() {
    let mut board = Board::new();
    for (rate, microseconds) in [(0x26, 977), (0x2f, 500_000), (0x21, 3907), (0x23, 123)] {
        board.set(0x0a, rate);
        board.set(0x0b, 0x42);
        board.get(0x0c);
        board.bench.pass(Duration::from_micros(microseconds));
        board.rtc.wake();
        assert!(board.irq(), "rate {rate:#x}");
        assert_eq!(board.get(0x0c) & 0xc0, 0xc0);
        board.set(0x0b, 0x02);
        assert_eq!(board.armed(), 0);
    }
    board.set(0x0a, 0x20);
    board.set(0x0b, 0x42);
    assert_eq!(board.armed(), 0, "rate none");
}

#[test]
fn flags_show_without_interrupts_enabled() {
    let mut board = Board::new();
    board.get(0x0c);
    board.bench.pass(Duration::from_millis(1100));
    assert_eq!(board.get(0x0c), 0x50);
    assert!(!board.irq());
}

#[test]
fn an_alarm_that_passed_between_two_machines_comes_late_not_never() {
    let mut board = Board::new();
    for (register, value) in [(5, 0x12), (3, 0x00), (1, 0x30)] {
        board.set(register, value);
    }
    board.set(0x0b, 0x22);
    drop(board.rtc.stop());
    let blob = board.rtc.save_blob().unwrap();
    let mut other = Board::new();
    drop(other.rtc.stop());
    other.rtc.restore_blob(&blob).unwrap();
    other.bench.pass(Duration::from_secs(300));
    assert!(!other.irq());
    other.rtc.start();
    assert!(other.irq());
}

#[test]
fn memory_sizes_are_recorded() {
    let mut board = Board::new();
    let pair = |b: &mut Board, r| u16::from_le_bytes([b.get(r), b.get(r + 1)]);
    assert_eq!(pair(&mut board, 0x15), 640);
    assert_eq!(
        (pair(&mut board, 0x17), pair(&mut board, 0x30)),
        (0xffff, 0xffff)
    );
    // 3 GiB less 16 MiB, in units of 64 KiB; 4 GiB above.
    assert_eq!(pair(&mut board, 0x34), 0xbf00);
    assert_eq!(
        [board.get(0x5b), board.get(0x5c), board.get(0x5d)],
        [0, 0, 1]
    );
}

#[test]
fn the_battery_survives_a_warm_reset_only() {
    let mut board = Board::new();
    board.set(0x50, 0x77);
    board.set(4, 0x20);
    board.set(0x0b, 0x72);
    board.rtc.reset(ResetKind::Warm);
    assert_eq!(
        (board.get(0x50), board.get(4), board.get(0x0b)),
        (0x77, 0x20, 0x02)
    );
    assert_eq!((board.armed(), board.irq()), (0, false));
    board.rtc.reset(ResetKind::Cold);
    assert_eq!((board.get(0x50), board.get(4)), (0, 0x12));
}

#[test]
fn the_nmi_mask_is_no_part_of_the_index() {
    let mut board = Board::new();
    board.set(0x50, 0x3c);
    assert_eq!(board.get(0xd0), 0x3c);
    let tree = nyx_inspect::Json::of(&*board.rtc);
    assert_eq!(
        (&tree["nmi_masked"], &tree["index"]),
        (&json!(true), &json!("0x50"))
    );
    assert_eq!(tree["time"], "2026-03-01T12:00:00");
    board.set(0x0d, 0);
    assert_eq!(board.get(0x0d), 0x80);
}
