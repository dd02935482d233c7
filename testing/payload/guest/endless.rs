//! Work that goes on while the host does something to the machine: snapshot, migration, pause.

use crate::cpu::{self, inb, outb, tsc};
use crate::out::{self, Test};
use crate::{cmdline, mem, time};

/// Runs what `run=` names: `tick`, `dirty` or `echo`.
pub fn run() {
    match cmdline::value("run") {
        Some("tick") => tick(),
        Some("dirty") => dirty(),
        Some("echo") => echo(),
        Some(other) => out::line(format_args!("fail {other}: no such work")),
        None => {}
    }
}

/// Pages that hold what only their address and a number tell.
struct Pattern {
    start: u64,
    pages: u64,
}

impl Pattern {
    fn new(len: u64) -> Self {
        let start = mem::mark().next_multiple_of(4096);
        let pages = (len / 4096).min(mem::free().saturating_sub(8192) / 4096);
        Self { start, pages }
    }

    fn write(&self, page: u64, number: u64) {
        let at = self.start + 4096 * page;
        cpu::write64(at, number);
        cpu::write64(at + 8, at ^ number);
        cpu::write64(at + 4088, !at ^ number);
    }

    fn is_intact(&self, page: u64) -> bool {
        let at = self.start + 4096 * page;
        let number = cpu::read64(at);
        cpu::read64(at + 8) == at ^ number && cpu::read64(at + 4088) == !at ^ number
    }

    fn check(&self, test: &mut Test) {
        for page in 0..self.pages {
            if !self.is_intact(page) {
                test.fail(format_args!(
                    "page {page} of {} is not what was written",
                    self.pages
                ));
            }
        }
    }
}

/// Prints `tick N` every `tick_ms=` (100) milliseconds, `ticks=` times (for ever if 0), and checks
/// `hold=` (1M) bytes of memory between.
fn tick() {
    let mut test = Test::new("tick");
    let pattern = Pattern::new(cmdline::number_or("hold", 1 << 20));
    for page in 0..pattern.pages {
        pattern.write(page, page);
    }
    let every = time::millis(cmdline::number_or("tick_ms", 100));
    let ticks = cmdline::number_or("ticks", 0);
    let mut n = 0_u64;
    while ticks == 0 || n < ticks {
        n += 1;
        out::line(format_args!("tick {n}"));
        pattern.check(&mut test);
        time::pause(every);
        // A byte `q` on the serial port ends it.
        if inb(0x3fd) & 1 != 0 && inb(0x3fd) != 0xff && inb(0x3f8) == b'q' {
            break;
        }
    }
}

/// Writes `rate=` (0: as fast as it goes) pages per millisecond over `hold=` (16M) bytes, for
/// `rounds=` rounds (for ever if 0), and checks every page once a round.
fn dirty() {
    let mut test = Test::new("dirty");
    let pattern = Pattern::new(cmdline::number_or("hold", 16 << 20));
    let rate = cmdline::number_or("rate", 0);
    let rounds = cmdline::number_or("rounds", 0);
    let mut round = 0_u64;
    while rounds == 0 || round < rounds {
        let mut next = tsc();
        for page in 0..pattern.pages {
            pattern.write(page, round);
            if rate != 0 && page % rate == 0 {
                next += time::millis(1);
                time::until(time::millis(2), || tsc() >= next);
            }
        }
        pattern.check(&mut test);
        round += 1;
        out::line(format_args!("round {round}"));
    }
}

/// Sends back every byte of the serial port, letters in capitals, until `quit` has come in.
fn echo() {
    out::line(format_args!("echo ready"));
    let mut tail = [0_u8; 4];
    while &tail != b"quit" {
        if inb(0x3fd) & 1 == 0 {
            core::hint::spin_loop();
            continue;
        }
        let byte = inb(0x3f8);
        tail.rotate_left(1);
        tail[3] = byte;
        time::until(time::seconds(1), || inb(0x3fd) & 0x20 != 0);
        outb(0x3f8, byte.to_ascii_uppercase());
    }
    out::line(format_args!(""));
}
