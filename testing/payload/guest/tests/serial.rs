//! The 16550A at COM1 (National PC16550D data sheet). The port is also the one that results are
//! printed on: failures are kept until it is in order again.

use crate::boot::VEC_AUTO;
use crate::cpu::{self, inb, inl, inw, outb, outl, outw};
use crate::out::{self, Test};
use crate::{acpi, apic, cmdline, time};

const BASE: u16 = 0x3f8;
const DATA: u16 = BASE;
const IER: u16 = BASE + 1;
const IIR: u16 = BASE + 2;
const FCR: u16 = BASE + 2;
const LCR: u16 = BASE + 3;
const MCR: u16 = BASE + 4;
const LSR: u16 = BASE + 5;
const MSR: u16 = BASE + 6;
const SCR: u16 = BASE + 7;

const LOOP: u8 = 0x10;

/// Failures to be reported later.
struct Kept {
    list: [(&'static str, u8, u8); 24],
    len: usize,
}

impl Kept {
    fn new() -> Self {
        Self {
            list: [("", 0, 0); 24],
            len: 0,
        }
    }

    fn eq(&mut self, why: &'static str, got: u8, want: u8) {
        if got != want && self.len < self.list.len() {
            self.list[self.len] = (why, got, want);
            self.len += 1;
        }
    }

    fn check(&mut self, holds: bool, why: &'static str) {
        self.eq(why, holds.into(), 1);
    }

    fn report(self, test: &mut Test) {
        out::set_up_uart();
        for (why, got, want) in &self.list[..self.len] {
            test.eq(why, *got, *want);
        }
    }
}

/// Waits until what was printed has left the FIFO.
fn drain() {
    time::until(time::seconds(1), || inb(LSR) & 0x60 == 0x60);
}

fn wait_data() -> bool {
    time::until(time::millis(500), || inb(LSR) & 1 != 0)
}

/// Registers, divisor latch, FIFOs, loopback of data and modem lines.
pub fn registers(test: &mut Test) {
    if inb(LSR) == 0xff {
        return test.skip("no UART at COM1");
    }
    drain();
    let mut k = Kept::new();
    for value in [0, 0x55, 0xaa, 0xff] {
        outb(SCR, value);
        k.eq("scratch register", inb(SCR), value);
    }
    // Interrupt enable: four bits.
    outb(IER, 0xf0);
    k.eq("reserved bits of IER", inb(IER) & 0xf0, 0);
    outb(IER, 0);
    // The divisor latch hides data and IER, and keeps its value.
    outb(LCR, 0x83);
    outb(DATA, 0x34);
    outb(IER, 0x12);
    k.eq("low divisor", inb(DATA), 0x34);
    k.eq("high divisor", inb(IER), 0x12);
    outb(LCR, 0x03);
    k.eq("IER after the divisor latch was written", inb(IER), 0);
    k.eq("LCR", inb(LCR), 0x03);
    outb(LCR, 0x1b);
    k.eq("LCR with parity", inb(LCR), 0x1b);
    outb(LCR, 0x83);
    k.eq("low divisor, read again", inb(DATA), 0x34);
    outb(DATA, 1);
    outb(IER, 0);
    outb(LCR, 0x03);
    // FIFO enable shows in IIR.
    outb(FCR, 0);
    k.eq("IIR without FIFOs", inb(IIR) & 0xc0, 0);
    outb(FCR, 0x07);
    k.eq("IIR with FIFOs", inb(IIR) & 0xc0, 0xc0);
    k.eq("IIR at rest", inb(IIR) & 0x0f, 1);
    k.eq("LSR at rest", inb(LSR), 0x60);
    // Loopback: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
    for lines in 0..16_u8 {
        outb(MCR, LOOP | lines);
        k.eq("MCR in loopback", inb(MCR), LOOP | lines);
        let want = (lines & 1) << 5 | (lines & 2) << 3 | (lines & 4) << 4 | (lines & 8) << 4;
        k.eq("modem lines in loopback", inb(MSR) & 0xf0, want);
        k.eq("modem deltas after a read", inb(MSR) & 0x0f, 0);
    }
    outb(MCR, LOOP);
    inb(MSR);
    outb(MCR, LOOP | 2);
    k.eq("delta of CTS", inb(MSR) & 0x0f, 1);
    outb(MCR, LOOP | 2 | 4);
    k.eq("delta of RI on its rise", inb(MSR) & 0x04, 0);
    outb(MCR, LOOP | 2);
    k.eq("delta of RI on its fall", inb(MSR) & 0x04, 4);
    // Data in loopback, in order, not to the outside.
    outb(MCR, LOOP);
    outb(FCR, 0x07);
    for value in [0x11, 0x22, 0x33] {
        outb(DATA, value);
        time::until(time::millis(500), || inb(LSR) & 0x20 != 0);
    }
    for value in [0x11, 0x22, 0x33] {
        k.check(wait_data(), "looped data arrives");
        k.eq("looped data", inb(DATA), value);
    }
    k.eq("data ready when all is read", inb(LSR) & 1, 0);
    // Overrun: with 17 bytes in a FIFO of 16, the 17th is lost and LSR says so once.
    for value in 0..17 {
        outb(DATA, value);
        time::until(time::millis(500), || inb(LSR) & 0x60 == 0x60);
    }
    // The polls above may have taken the overrun flag: what counts is what can be read.
    let mut got = 0_u8;
    while inb(LSR) & 1 != 0 && got < 32 {
        k.eq("data in a full FIFO", inb(DATA), got);
        got += 1;
    }
    k.eq("bytes kept by a full FIFO", got, 16);
    // FIFO reset empties it.
    outb(DATA, 0x77);
    wait_data();
    outb(FCR, 0x03);
    k.eq("data ready after a FIFO reset", inb(LSR) & 1, 0);
    // Wide and unaligned accesses do no harm.
    outb(MCR, LOOP);
    if !cmdline::is_gentle() {
        for offset in 0..8 {
            let _ = (inw(BASE + offset), inl(BASE + offset));
        }
        outw(SCR, 0x1234);
        outl(SCR - 1, 0x5678_9abc);
    }
    inb(MSR);
    k.report(test);
}

/// Interrupts through the I/O APIC: transmitter empty, data, line by level and by edge.
pub fn interrupts(test: &mut Test) {
    if inb(LSR) == 0xff {
        return test.skip("no UART at COM1");
    }
    const EDGE: u8 = VEC_AUTO + 4;
    const LEVEL: u8 = 0x32;
    let mut ids = [0; 1];
    acpi::cpus(&mut ids);
    let (pin, _) = acpi::isa_route(4);
    apic::enable();
    drain();
    let mut k = Kept::new();
    outb(MCR, 0x0b);
    outb(IER, 0);
    inb(IIR);
    inb(DATA);
    // Edge: each enabling of the transmitter interrupt while it is empty raises the line.
    apic::route(pin, EDGE, 0, apic::id());
    cpu::irq_on();
    for _ in 0..3 {
        let before = cpu::taken(EDGE);
        outb(IER, 2);
        k.check(
            time::until(time::seconds(2), || cpu::taken(EDGE) == before + 1),
            "edge interrupt when the transmitter is empty",
        );
        k.eq("IIR of the transmitter interrupt", inb(IIR) & 0x0f, 2);
        k.eq("IIR after it was read", inb(IIR) & 0x0f, 1);
        outb(IER, 0);
    }
    let before = cpu::taken(EDGE);
    outb(IER, 0);
    time::pause(time::millis(5));
    k.eq(
        "interrupts while disabled",
        (cpu::taken(EDGE) - before) as u8,
        0,
    );
    apic::mask(pin);
    // Level: it comes again after its end until IIR has been read.
    inb(IIR);
    apic::route(pin, LEVEL, apic::LEVEL, apic::id());
    let before = cpu::taken(LEVEL);
    outb(IER, 2);
    k.check(
        time::until(time::seconds(2), || cpu::taken(LEVEL) == before + 1),
        "level interrupt when the transmitter is empty",
    );
    apic::end();
    k.check(
        time::until(time::seconds(2), || cpu::taken(LEVEL) == before + 2),
        "level interrupt again after its end",
    );
    k.eq("IIR of the level interrupt", inb(IIR) & 0x0f, 2);
    k.check(
        apic::end_for_good(LEVEL),
        "level interrupt ends when its cause was read",
    );
    let after = cpu::taken(LEVEL);
    time::pause(time::millis(20));
    k.eq(
        "level interrupts after the cause was read",
        (cpu::taken(LEVEL) - after) as u8,
        0,
    );
    outb(IER, 0);
    apic::mask(pin);
    // Received data, in loopback; OUT2 does not gate it on every model, so IIR is what counts.
    outb(MCR, LOOP | 0x08);
    outb(FCR, 0x07);
    outb(IER, 1);
    outb(DATA, 0x42);
    k.check(wait_data(), "looped data arrives");
    // Bit 3: below the trigger level for four character times.
    k.eq("IIR of received data", inb(IIR) & 0x07, 4);
    k.eq("looped data", inb(DATA), 0x42);
    k.eq("IIR when the data is read", inb(IIR) & 0x0f, 1);
    // Modem status: enabled, then a change of a looped line.
    outb(IER, 8);
    inb(MSR);
    outb(MCR, LOOP | 0x08 | 1);
    k.eq("IIR of a modem line", inb(IIR) & 0x0f, 0);
    inb(MSR);
    k.eq("IIR after MSR was read", inb(IIR) & 0x0f, 1);
    outb(IER, 0);
    cpu::irq_off();
    k.report(test);
}
