//! The clock and its memory.

use super::calendar::{Civil, DAY, Format};
use super::saved::SavedRtc;
use crate::ports::{read_each, write_each};
use nyx_device::{
    AccessResult, Device, Drain, Hit, IrqLine, Lifecycle, Registers, ResetKind, Timer, VmClock,
};
use nyx_inspect::{About, Counter, Inspect, Leaf, Visitor};
use nyx_state::{Persist, RestoreError, SaveError};
use std::time::Duration;

/// Bytes of memory, the clock's registers among them.
pub(super) const BYTES: usize = 128;
const SECOND: i128 = 1_000_000_000;
/// How long before the fields change an update is announced: 244 us of warning and 1984 us of
/// update (data sheet, table 6).
const UPDATE: i128 = 2_228_000;
/// Alarms further away than this are looked at in steps: the host may set its clock meanwhile.
const LONGEST_SLEEP: i128 = 60 * SECOND;

const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const WEEKDAY: usize = 0x06;
const DAY_OF_MONTH: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
pub(super) const A: usize = 0x0a;
pub(super) const B: usize = 0x0b;
const C: usize = 0x0c;
const D: usize = 0x0d;
const CENTURY: usize = 0x32;

/// Register A: update in progress.
pub(super) const UIP: u8 = 0x80;
/// Register B: setting the time, updates inhibited.
const SET: u8 = 0x80;
/// Registers B and C: periodic interrupt.
const PERIODIC: u8 = 0x40;
/// Registers B and C: alarm interrupt.
const ALARM: u8 = 0x20;
/// Registers B and C: update-ended interrupt.
const UPDATED: u8 = 0x10;
/// Register B: square wave. Kept, without a pin.
const SQUARE_WAVE: u8 = 0x08;
/// Register B: binary, not BCD.
const BINARY: u8 = 0x04;
/// Register B: 24 hours.
const HOURS24: u8 = 0x02;
/// The flags of register C.
pub(super) const FLAGS: u8 = PERIODIC | ALARM | UPDATED;
/// Register C: the interrupt pin is active.
const IRQF: u8 = 0x80;
/// Register D: valid RAM and time.
const VRT: u8 = 0x80;

/// Register A after power-on: a 32.768 kHz crystal, 1024 Hz periodic rate, as a PC's firmware
/// leaves it.
const RESET_A: u8 = 0x26;

/// Guest memory as the PC AT's firmware would have recorded it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemorySize {
    /// Bytes of RAM below 4 GiB.
    pub low: u64,
    /// Bytes of RAM above 4 GiB.
    pub high: u64,
}

impl MemorySize {
    fn record(self, memory: &mut [u8; BYTES]) {
        let kib = |bytes: u64| (bytes >> 10).min(0xffff).to_le_bytes();
        let units = |bytes: u64, most: u64| (bytes >> 16).min(most).to_le_bytes();
        let base = kib(self.low.min(640 << 10));
        let extended = kib(self.low.saturating_sub(1 << 20));
        let above_16m = units(self.low.saturating_sub(16 << 20), 0xffff);
        let above_4g = units(self.high, 0xff_ffff);
        (memory[0x15], memory[0x16]) = (base[0], base[1]);
        (memory[0x17], memory[0x18]) = (extended[0], extended[1]);
        (memory[0x30], memory[0x31]) = (extended[0], extended[1]);
        (memory[0x34], memory[0x35]) = (above_16m[0], above_16m[1]);
        (memory[0x5b], memory[0x5c], memory[0x5d]) = (above_4g[0], above_4g[1], above_4g[2]);
        // The AT's checksum covers 0x10 to 0x2d, high byte first.
        let sum: u16 = memory[0x10..0x2e].iter().map(|&b| u16::from(b)).sum();
        [memory[0x2e], memory[0x2f]] = sum.to_be_bytes();
    }
}

/// A real-time clock.
pub struct Rtc {
    // Wiring
    irq: IrqLine,
    clock: VmClock,
    timer: Timer,
    running: bool,
    // Configuration
    memory_size: MemorySize,
    // State
    /// What was written to port 0x70: an index and, in bit 7, the NMI mask.
    index: u8,
    memory: [u8; BYTES],
    /// Register C without IRQF.
    flags: u8,
    /// Nanoseconds from the host's wall clock to the guest's.
    offset: i128,
    /// The second up to which alarms and updates are accounted for; none yet after a reset.
    seen_second: Option<i64>,
    /// The period of the periodic interrupt up to which it is accounted for.
    seen_period: Option<u128>,
    // Statistics
    interrupts: Counter,
    time_sets: Counter,
}

impl Rtc {
    /// A clock that shows the host's time. `timer` wakes it.
    pub fn new(irq: IrqLine, clock: VmClock, timer: Timer, memory_size: MemorySize) -> Self {
        let mut rtc = Self {
            irq,
            clock,
            timer,
            running: false,
            memory_size,
            index: 0,
            memory: [0; BYTES],
            flags: 0,
            offset: 0,
            seen_second: None,
            seen_period: None,
            interrupts: Counter::default(),
            time_sets: Counter::default(),
        };
        rtc.power_on();
        rtc
    }

    /// The battery was changed.
    fn power_on(&mut self) {
        self.memory = [0; BYTES];
        self.memory[A] = RESET_A;
        self.memory[B] = HOURS24;
        self.memory_size.record(&mut self.memory);
        self.offset = 0;
    }

    fn format(&self) -> Format {
        let b = self.memory[B];
        Format {
            binary: b & BINARY != 0,
            hours24: b & HOURS24 != 0,
        }
    }

    /// The divider chain is held in reset (register A, DV 110 and 111).
    fn is_divider_reset(&self) -> bool {
        self.memory[A] & 0x60 == 0x60
    }

    /// The fields hold what was written and do not advance.
    fn is_frozen(&self) -> bool {
        self.memory[B] & SET != 0 || self.is_divider_reset()
    }

    /// Nanoseconds since the Unix epoch, as the guest has it.
    fn now(&self) -> i128 {
        i128::try_from(self.clock.wall().as_nanos()).unwrap_or(0) + self.offset
    }

    fn second(&self) -> i64 {
        i64::try_from(self.now().div_euclid(SECOND)).unwrap_or(0)
    }

    /// How far the present second has gone.
    fn phase(&self) -> i128 {
        self.now().rem_euclid(SECOND)
    }

    /// Sets the time without touching what is already accounted for.
    fn set_time(&mut self, seconds: i64, phase: i128) {
        self.offset += i128::from(seconds) * SECOND + phase - self.now();
        self.seen_second = Some(seconds);
        self.time_sets.inc();
    }

    /// Writes the present time into the fields.
    fn latch(&mut self) {
        let civil = Civil::from_seconds(self.second());
        for register in [
            SECONDS,
            MINUTES,
            HOURS,
            WEEKDAY,
            DAY_OF_MONTH,
            MONTH,
            YEAR,
            CENTURY,
        ] {
            if let Some(value) = self.field(register, civil) {
                self.memory[register] = value;
            }
        }
    }

    /// The fields as a time.
    fn latched(&self) -> i64 {
        let format = self.format();
        let read = |register: usize| format.read(self.memory[register]);
        // Four digits: what does not fit them would be a time that no snapshot takes back.
        let year = i64::from(read(CENTURY) % 100) * 100 + i64::from(read(YEAR) % 100);
        Civil {
            year,
            month: read(MONTH),
            day: read(DAY_OF_MONTH),
            hour: format.read_hour(self.memory[HOURS]),
            minute: read(MINUTES),
            second: read(SECONDS),
        }
        .seconds()
    }

    /// What time register `register` shows at `civil`; `None` if it is not one.
    fn field(&self, register: usize, civil: Civil) -> Option<u8> {
        let format = self.format();
        Some(match register {
            SECONDS => format.write(civil.second),
            MINUTES => format.write(civil.minute),
            HOURS => format.write_hour(civil.hour),
            WEEKDAY => format.write(civil.weekday()),
            DAY_OF_MONTH => format.write(civil.day),
            MONTH => format.write(civil.month),
            YEAR => format.write(civil.year.rem_euclid(100) as u8),
            CENTURY => format.write(civil.year.div_euclid(100).rem_euclid(100) as u8),
            _ => return None,
        })
    }

    /// Whether alarm byte `register` accepts `value`: 0xc0 and above accept anything.
    fn alarm_accepts(&self, register: usize, value: u8) -> bool {
        let byte = self.memory[register];
        let format = self.format();
        let wanted = if register == HOURS_ALARM {
            format.read_hour(byte)
        } else {
            format.read(byte)
        };
        byte >= 0xc0 || wanted == value
    }

    /// The first second after `after` at which the alarm matches. None if a byte is no time of day.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let mut at = after.checked_add(1)?;
        let end = after.checked_add(DAY)?;
        // Skips whole hours and minutes, so that it ends within 24 + 60 + 60 steps and a few.
        while at <= end {
            let time = at.rem_euclid(DAY);
            if !self.alarm_accepts(HOURS_ALARM, (time / 3600) as u8) {
                at += 3600 - time % 3600;
            } else if !self.alarm_accepts(MINUTES_ALARM, (time / 60 % 60) as u8) {
                at += 60 - time % 60;
            } else if !self.alarm_accepts(SECONDS_ALARM, (time % 60) as u8) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// Binary digits of the 32.768 kHz period count that one period takes (data sheet, table 5).
    fn period_shift(&self) -> Option<u32> {
        let rate = u32::from(self.memory[A] & 0x0f);
        match rate {
            _ if self.is_divider_reset() => None,
            0 => None,
            1 | 2 => Some(rate + 6),
            _ => Some(rate - 1),
        }
    }

    /// Periods since power-on.
    fn period(&self) -> Option<u128> {
        let ticks = self.clock.now().as_nanos() * 32_768 / 1_000_000_000;
        Some(ticks >> self.period_shift()?)
    }

    /// The flags with what happened since anyone looked.
    fn present_flags(&self) -> u8 {
        let mut flags = self.flags;
        if let (false, Some(seen)) = (self.is_frozen(), self.seen_second) {
            let now = self.second();
            if now > seen {
                flags |= UPDATED;
                if self.next_alarm(seen).is_some_and(|alarm| alarm <= now) {
                    flags |= ALARM;
                }
            }
        }
        if let (Some(seen), Some(period)) = (self.seen_period, self.period())
            && period > seen
        {
            flags |= PERIODIC;
        }
        flags
    }

    /// Takes the time into account, drives the wire and arms the timer if an interrupt may come.
    fn evaluate(&mut self) {
        self.flags = self.present_flags();
        self.seen_second = if self.is_frozen() {
            self.seen_second
        } else {
            Some(self.second())
        };
        self.seen_period = self.period();
        self.drive();
        match self.next_event() {
            Some(wait) => {
                let wait = u64::try_from(wait).unwrap_or(0);
                self.timer
                    .arm(self.clock.now().saturating_add(Duration::from_nanos(wait)));
            }
            None => self.timer.disarm(),
        }
    }

    /// Nanoseconds until an enabled interrupt may come, rounded up.
    fn next_event(&self) -> Option<i128> {
        let enabled = |bit| self.memory[B] & bit != 0;
        if self.flags & self.memory[B] & FLAGS != 0 {
            // The pin is active until register C is read.
            return None;
        }
        let mut next = None;
        let mut sooner = |wait: i128| next = Some(next.map_or(wait, |n: i128| n.min(wait)));
        if let (true, Some(shift)) = (enabled(PERIODIC), self.period_shift()) {
            let now = self.clock.now().as_nanos();
            let period = ((now * 32_768 / 1_000_000_000) >> shift) + 1;
            let at = ((period << shift) * 1_000_000_000).div_ceil(32_768);
            sooner(i128::try_from(at - now).unwrap_or(0));
        }
        if !self.is_frozen() {
            if enabled(UPDATED) {
                sooner(SECOND - self.phase());
            }
            if let (true, Some(alarm)) = (enabled(ALARM), self.next_alarm(self.second())) {
                let wait = i128::from(alarm) * SECOND - self.now();
                sooner(wait.clamp(0, LONGEST_SLEEP));
            }
        }
        next
    }

    fn drive(&self) {
        let active = self.flags & self.memory[B] & FLAGS != 0;
        if active && !self.irq.is_high() {
            self.interrupts.inc();
        }
        self.irq.set(active);
    }

    fn read_memory(&mut self) -> u8 {
        let register = usize::from(self.index & 0x7f);
        match register {
            A => {
                let updating = !self.is_frozen() && self.phase() >= SECOND - UPDATE;
                self.memory[A] & !UIP | if updating { UIP } else { 0 }
            }
            C => {
                self.evaluate();
                let flags = std::mem::take(&mut self.flags);
                let active = flags & self.memory[B] & FLAGS != 0;
                self.evaluate();
                flags | if active { IRQF } else { 0 }
            }
            D => VRT,
            _ if self.is_frozen() => self.memory[register],
            _ => {
                let civil = Civil::from_seconds(self.second());
                self.field(register, civil).unwrap_or(self.memory[register])
            }
        }
    }

    fn write_memory(&mut self, value: u8) {
        let register = usize::from(self.index & 0x7f);
        self.evaluate();
        match register {
            A => {
                let (was_frozen, was_reset) = (self.is_frozen(), self.is_divider_reset());
                let before = self.period_shift();
                if !was_frozen && value & 0x60 == 0x60 {
                    self.latch();
                }
                self.memory[A] = value & !UIP;
                if was_reset && !self.is_divider_reset() {
                    // The first update comes half a second after the divider is released.
                    let half = SECOND / 2 - self.phase();
                    self.offset += half;
                }
                if before != self.period_shift() {
                    self.seen_period = self.period();
                }
                self.thaw(was_frozen);
            }
            B => {
                let was_frozen = self.is_frozen();
                if !was_frozen && value & SET != 0 {
                    self.latch();
                }
                // Setting SET clears UIE.
                self.memory[B] = if value & SET != 0 {
                    value & !UPDATED
                } else {
                    value
                };
                self.thaw(was_frozen);
            }
            C | D => {}
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY_OF_MONTH | MONTH | YEAR | CENTURY => {
                let running = !self.is_frozen();
                if running {
                    self.latch();
                }
                self.memory[register] = value;
                if running {
                    self.set_time(self.latched(), self.phase());
                }
            }
            _ => self.memory[register] = value,
        }
        self.evaluate();
    }

    /// Goes on from the fields, if they were frozen and are no longer.
    fn thaw(&mut self, was_frozen: bool) {
        if was_frozen && !self.is_frozen() {
            self.set_time(self.latched(), self.phase());
        }
    }
}

impl Registers for Rtc {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        read_each(at.offset, data, |offset| match offset {
            // The index port is write-only on a PC AT.
            0 => Some(0xff),
            1 => Some(self.read_memory()),
            _ => None,
        })
    }

    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        write_each(at.offset, data, |offset, value| {
            match offset {
                0 => self.index = value,
                1 => self.write_memory(value),
                _ => return false,
            }
            true
        })
    }
}

impl Lifecycle for Rtc {
    fn start(&mut self) {
        self.running = true;
        self.evaluate();
    }

    fn stop(&mut self) -> Drain {
        self.running = false;
        Drain::idle()
    }

    /// The RESET pin disables interrupts and clears the flags; the battery keeps the rest, except
    /// over a cold reset, which is a new machine.
    fn reset(&mut self, kind: ResetKind) {
        let Self {
            irq: _,
            clock: _,
            timer: _,
            running: _,
            memory_size: _,
            index,
            memory,
            flags,
            offset: _,
            seen_second,
            seen_period,
            interrupts: _,
            time_sets: _,
        } = self;
        *index = 0;
        *flags = 0;
        memory[B] &= !(FLAGS | SQUARE_WAVE);
        (*seen_second, *seen_period) = (None, None);
        if kind == ResetKind::Cold {
            self.power_on();
        }
        self.timer.disarm();
        self.drive();
    }

    fn wake(&mut self) {
        if self.running {
            self.evaluate();
        }
    }
}

impl Persist for Rtc {
    type Saved = SavedRtc;

    fn save(&self) -> Result<SavedRtc, SaveError> {
        let Self {
            irq: _,
            clock: _,
            timer: _,
            running: _,
            memory_size: _,
            index,
            memory,
            flags: _,
            offset,
            seen_second,
            seen_period: _,
            interrupts: _,
            time_sets: _,
        } = self;
        // A guest that waits for an alarm or an update gets those of the time in between, too.
        let waits = memory[B] & (ALARM | UPDATED) != 0;
        let seen = if self.is_frozen() {
            *seen_second
        } else {
            Some(self.second())
        };
        Ok(SavedRtc {
            index: *index,
            memory: memory.to_vec(),
            flags: self.present_flags(),
            offset_seconds: i64::try_from(offset.div_euclid(SECOND))
                .map_err(|_| SaveError::Unsupported("the clock is centuries away"))?,
            offset_nanoseconds: u32::try_from(offset.rem_euclid(SECOND)).unwrap_or(0),
            seen_second: seen.filter(|_| waits),
        })
    }

    fn restore(&mut self, saved: SavedRtc) -> Result<(), RestoreError> {
        saved.check()?;
        let SavedRtc {
            index,
            memory,
            flags,
            offset_seconds,
            offset_nanoseconds,
            seen_second,
        } = saved;
        self.memory = memory
            .try_into()
            .map_err(|_| RestoreError::Invalid("the clock's memory is not 128 bytes"))?;
        self.index = index;
        self.flags = flags;
        self.offset = i128::from(offset_seconds) * SECOND + i128::from(offset_nanoseconds);
        self.seen_second = seen_second;
        self.seen_period = None;
        self.timer.disarm();
        self.drive();
        Ok(())
    }
}

impl Inspect for Rtc {
    fn inspect(&self, v: &mut dyn Visitor) {
        let c = Civil::from_seconds(self.second());
        let time = format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            c.year, c.month, c.day, c.hour, c.minute, c.second
        );
        v.leaf("time", Leaf::Text(time));
        v.leaf("frozen", Leaf::Flag(self.is_frozen()));
        v.leaf("index", Leaf::Hex(u64::from(self.index & 0x7f)));
        v.leaf("nmi_masked", Leaf::Flag(self.index & 0x80 != 0));
        for (name, register) in [("register_a", A), ("register_b", B)] {
            v.leaf(name, Leaf::Hex(self.memory[register].into()));
        }
        v.leaf("flags", Leaf::Hex(self.present_flags().into()));
        v.about(&About::metric(
            "rtc_interrupts",
            "Interrupts of the real-time clock.",
        ));
        v.leaf("interrupts", Leaf::Count(self.interrupts.get()));
        v.about(&About::metric(
            "rtc_time_sets",
            "Times the guest set the real-time clock.",
        ));
        v.leaf("time_sets", Leaf::Count(self.time_sets.get()));
    }
}

impl Device for Rtc {}
