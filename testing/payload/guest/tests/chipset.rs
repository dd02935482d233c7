//! I/O APIC, RTC, i8042, ACPI PM registers, debug ports, and what nobody claims.

use crate::boot::VEC_AUTO;
use crate::cpu::{
    self, inb, inl, inw, ones, outb, outl, outw, read8, read32, write8, write16, write32, write64,
};
use crate::out::Test;
use crate::{acpi, apic, cmdline, mem, time};

/// The 82093AA: identity, redirection entries, odd accesses.
pub fn ioapic(test: &mut Test) {
    let mut ids = [0; 1];
    acpi::cpus(&mut ids);
    let base = apic::ioapic_base();
    let version = apic::ioapic_read(1);
    if version == u32::MAX {
        return test.skip("no I/O APIC");
    }
    test.check(matches!(version & 0xff, 0x11..=0x2f), "version");
    let pins = (version >> 16 & 0xff) + 1;
    test.eq("pins", pins, cmdline::number_or("ioapic_pins", 24));
    // The version cannot be written.
    apic::ioapic_write(1, !version);
    test.eq("version after a write", apic::ioapic_read(1), version);
    let id = apic::ioapic_read(0);
    apic::ioapic_write(0, u32::MAX);
    test.eq("id, four bits", apic::ioapic_read(0), 0x0f00_0000_u32);
    apic::ioapic_write(0, id);
    test.eq("id, put back", apic::ioapic_read(0), id);
    test.eq(
        "selector reads back",
        {
            write32(base, 1);
            read32(base) & 0xff
        },
        1_u32,
    );
    for pin in 0..pins {
        let (low, high) = (0x10 + 2 * pin, 0x11 + 2 * pin);
        test.eq_at(
            "mask bit of pin",
            pin.into(),
            apic::ioapic_read(low) >> 16 & 1,
            1_u32,
        );
        // Delivery status and remote IRR are read-only; the rest of 17 bits is not.
        apic::ioapic_write(low, u32::MAX);
        test.eq_at(
            "entry of ones, pin",
            pin.into(),
            apic::ioapic_read(low) & 0x1_ffff,
            0x1_afff_u32,
        );
        apic::ioapic_write(low, apic::MASKED);
        test.eq_at(
            "entry, masked, pin",
            pin.into(),
            apic::ioapic_read(low),
            apic::MASKED,
        );
        apic::ioapic_write(high, 0xa500_0000);
        test.eq_at(
            "destination of pin",
            pin.into(),
            apic::ioapic_read(high) >> 24,
            0xa5_u32,
        );
        apic::ioapic_write(high, 0);
    }
    // Indices that do not exist, and accesses of every width and offset.
    for index in [3, 0x0f, 0x10 + 2 * pins, 0x7f, 0xff] {
        let _ = apic::ioapic_read(index);
        apic::ioapic_write(index, 0xffff_ffff);
    }
    write32(base, 1);
    for offset in 0..0x20 {
        for width in [1, 2, 4, 8] {
            let _ = cpu::read(base + offset, width);
        }
    }
    for offset in 1..0x30 {
        write8(base + offset, 0);
        write16(base + offset, 0);
        if offset % 16 > 4 {
            write32(base + offset, 0);
            write64(base + offset, 0);
        }
    }
    // A window past the registers (beyond 0x40 is the EOI register of later versions).
    let _ = read32(base + 0xffc);
    for pin in 0..pins {
        apic::mask(pin);
        apic::ioapic_write(0x11 + 2 * pin, 0);
    }
    test.eq("version in the end", apic::ioapic_read(1), version);
    let _ = read8(base);
}

fn cmos(index: u8) -> u8 {
    outb(0x70, index);
    inb(0x71)
}

fn set_cmos(index: u8, value: u8) {
    outb(0x70, index);
    outb(0x71, value);
}

/// The MC146818's registers and memory.
pub fn rtc(test: &mut Test) {
    if cmos(0x0d) == 0xff && cmos(0x0a) == 0xff {
        return test.skip("no RTC");
    }
    test.eq("valid RAM and time in register D", cmos(0x0d), 0x80_u8);
    test.eq("divider and rate in register A", cmos(0x0a) & 0x7f, 0x26_u8);
    test.eq("24 hours in register B", cmos(0x0b) & 2, 2_u8);
    for index in 0x50..0x60 {
        let old = cmos(index);
        set_cmos(index, 0xab ^ index);
        test.eq_at("CMOS byte", index.into(), cmos(index), 0xab ^ index);
        set_cmos(index, old);
    }
    // Bit 7 of the index is the NMI mask, no part of the address.
    set_cmos(0x50, 0x3c);
    test.eq("CMOS byte with NMI masked", cmos(0x80 | 0x50), 0x3c_u8);
    outb(0x70, 0);
    // Read-only registers.
    set_cmos(0x0d, 0);
    test.eq("register D after a write", cmos(0x0d), 0x80_u8);
    cmos(0x0c);
    // The periodic flag (bit 6) comes at any time, also with its interrupt off.
    test.eq("register C after a read", cmos(0x0c) & 0xbf, 0_u8);
    // BCD and binary show the same time.
    let b = cmos(0x0b);
    let read = |index: u8| {
        time::until(time::millis(20), || cmos(0x0a) & 0x80 == 0);
        cmos(index)
    };
    set_cmos(0x0b, b & !4);
    let bcd = [read(4), read(7), read(8), read(9)];
    set_cmos(0x0b, b | 4);
    let binary = [read(4), read(7), read(8), read(9)];
    set_cmos(0x0b, b);
    for (b, want) in bcd.into_iter().zip(binary) {
        test.check(b & 0xf < 10 && b >> 4 < 10, "a digit above 9 in BCD");
        test.eq("BCD beside binary", (b >> 4) * 10 + (b & 0xf), want);
    }
    test.check(
        (1..=31).contains(&binary[1]) && (1..=12).contains(&binary[2]),
        "no such date",
    );
    for port in [0x70, 0x71] {
        let _ = (inw(port), inl(port));
    }
    outb(0x70, 0x0d);
}

/// Takes about two seconds: update in progress, the seconds go on, update and alarm interrupts.
pub fn rtc_time(test: &mut Test) {
    const VECTOR: u8 = VEC_AUTO + 5;
    if cmos(0x0d) == 0xff && cmos(0x0a) == 0xff {
        return test.skip("no RTC");
    }
    test.check(
        time::until(time::seconds(3), || cmos(0x0a) & 0x80 != 0),
        "no update in progress within 3 s",
    );
    test.check(
        time::until(time::seconds(1), || cmos(0x0a) & 0x80 == 0),
        "update in progress does not end",
    );
    let second = cmos(0);
    let mut ids = [0; 1];
    acpi::cpus(&mut ids);
    let (pin, flags) = acpi::isa_route(8);
    apic::enable();
    apic::route(pin, VECTOR, flags & !apic::LEVEL, apic::id());
    cpu::irq_on();
    let old = [cmos(1), cmos(3), cmos(5), cmos(0x0b)];
    // Alarm on every second: all three alarm bytes "any".
    for index in [1, 3, 5] {
        set_cmos(index, 0xff);
    }
    cmos(0x0c);
    let before = cpu::taken(VECTOR);
    set_cmos(0x0b, old[3] | 0x30);
    test.check(
        time::until(time::seconds(3), || cpu::taken(VECTOR) != before),
        "no interrupt within 3 s of alarm and update",
    );
    test.eq(
        "register C: request, alarm, update",
        cmos(0x0c) & 0xb0,
        0xb0_u8,
    );
    test.eq("register C when it was read", cmos(0x0c) & 0xbf, 0_u8);
    set_cmos(0x0b, old[3]);
    for (index, value) in [1, 3, 5].into_iter().zip(old) {
        set_cmos(index, value);
    }
    test.check(
        time::until(time::seconds(3), || cmos(0) != second),
        "the seconds do not go on",
    );
    apic::mask(pin);
    cpu::irq_off();
}

fn kbc_wait_write() {
    time::until(time::millis(100), || inb(0x64) & 2 == 0);
}

fn kbc_read() -> Option<u8> {
    time::until(time::millis(100), || inb(0x64) & 1 != 0).then(|| inb(0x60))
}

fn kbc(command: u8) {
    kbc_wait_write();
    outb(0x64, command);
}

fn kbc_with(command: u8, value: u8) {
    kbc(command);
    kbc_wait_write();
    outb(0x60, value);
}

/// The keyboard controller's own commands.
pub fn i8042(test: &mut Test) {
    if inb(0x64) == 0xff {
        return test.skip("no i8042");
    }
    for _ in 0..16 {
        if inb(0x64) & 1 != 0 {
            inb(0x60);
        }
    }
    kbc(0x20);
    let config = kbc_read();
    test.check(config.is_some(), "command byte cannot be read");
    let config = config.unwrap_or(0);
    kbc(0xaa);
    test.eq("self-test", kbc_read().unwrap_or(0), 0x55_u8);
    kbc(0xab);
    test.eq(
        "test of the keyboard port",
        kbc_read().unwrap_or(0xff),
        0_u8,
    );
    // Interrupts off, translation on: what is written reads back.
    for value in [0x40, 0x74, config & !3] {
        kbc_with(0x60, value);
        kbc(0x20);
        test.eq("command byte", kbc_read().unwrap_or(0xff), value);
    }
    for (command, bit, set) in [
        (0xad, 0x10, true),
        (0xae, 0x10, false),
        (0xa7, 0x20, true),
        (0xa8, 0x20, false),
    ] {
        kbc(command);
        kbc(0x20);
        let got = kbc_read().unwrap_or(0) & bit != 0;
        test.eq_at(
            "port disable bit after command",
            command.into(),
            u8::from(got),
            u8::from(set),
        );
    }
    kbc(0xd0);
    let output = kbc_read().unwrap_or(0);
    test.eq("reset line in the output port", output & 1, 1_u8);
    test.eq("A20 in the output port", output >> 1 & 1, 1_u8);
    // A byte put into the output buffer comes out, flagged.
    kbc_with(0xd2, 0x5c);
    test.check(
        time::until(time::millis(100), || inb(0x64) & 1 != 0),
        "output buffer does not become full",
    );
    test.eq(
        "byte put into the output buffer",
        kbc_read().unwrap_or(0),
        0x5c_u8,
    );
    test.eq("output buffer when it was read", inb(0x64) & 1, 0_u8);
    // Unknown commands and wide accesses do no harm.
    for command in [0x00, 0x5f, 0x99, 0xb0, 0xc0] {
        kbc(command);
    }
    let _ = (inw(0x60), inl(0x60), inw(0x64), inl(0x64));
    for _ in 0..16 {
        if inb(0x64) & 1 != 0 {
            inb(0x60);
        }
    }
    kbc_with(0x60, config);
}

/// PM timer and the fixed registers of the FADT.
pub fn pm(test: &mut Test) {
    let Some(fadt) = acpi::fadt() else {
        return test.skip("no FADT");
    };
    if fadt.pm_timer != 0 {
        let mut last = inl(fadt.pm_timer);
        let mut moved = 0_u32;
        for _ in 0..200 {
            let now = inl(fadt.pm_timer);
            let step = now.wrapping_sub(last) & 0xff_ffff;
            test.check(step < 0x80_0000, "PM timer went back");
            moved += u32::from(step != 0);
            last = now;
        }
        test.check(moved > 0, "PM timer stands still");
        if fadt.flags & 1 << 8 == 0 {
            test.eq(
                "upper byte of a 24-bit PM timer",
                inl(fadt.pm_timer) >> 24,
                0_u32,
            );
        }
        // Writes are ignored; narrow reads answer.
        outl(fadt.pm_timer, 0);
        let _ = (
            inb(fadt.pm_timer),
            inw(fadt.pm_timer),
            inb(fadt.pm_timer + 3),
        );
    }
    if fadt.pm1a_event != 0 {
        let enable = fadt.pm1a_event + u16::from(fadt.pm1_event_len / 2);
        let old = inw(enable);
        // Power button enable (bit 8) is in every implementation.
        outw(enable, 0x0100);
        test.eq("PM1 enable", inw(enable) & 0x0100, 0x0100_u16);
        outw(enable, 0);
        test.eq("PM1 enable, cleared", inw(enable) & 0x0100, 0_u16);
        outw(enable, old);
        // Status is cleared by writing ones; nothing has been pressed.
        outw(fadt.pm1a_event, 0xffff);
        test.eq(
            "PM1 power button status",
            inw(fadt.pm1a_event) & 0x0100,
            0_u16,
        );
        for offset in 0..u16::from(fadt.pm1_event_len) {
            let _ = (
                inb(fadt.pm1a_event + offset),
                inw(fadt.pm1a_event + offset),
                inl(fadt.pm1a_event + offset),
            );
        }
    }
    if fadt.pm1a_control != 0 {
        if fadt.smi_command != 0 && fadt.acpi_enable != 0 {
            outb(fadt.smi_command as u16, fadt.acpi_enable);
        }
        test.check(
            time::until(time::seconds(1), || inw(fadt.pm1a_control) & 1 != 0),
            "SCI_EN is not set in ACPI mode",
        );
        // A sleep type without SLP_EN does nothing, and SLP_EN reads as 0.
        let old = inw(fadt.pm1a_control);
        outw(fadt.pm1a_control, old & !0x3c00 | 7 << 10);
        test.eq("SLP_EN reads", inw(fadt.pm1a_control) & 0x2000, 0_u16);
        outw(fadt.pm1a_control, old);
    }
    if fadt.gpe0 != 0 && fadt.gpe0_len >= 2 {
        let enable = fadt.gpe0 + u16::from(fadt.gpe0_len / 2);
        let old = inb(enable);
        outb(enable, 0xff);
        let all = inb(enable);
        outb(enable, 0);
        test.eq("GPE0 enable, cleared", inb(enable), 0_u8);
        outb(enable, all);
        test.eq("GPE0 enable", inb(enable), all);
        outb(enable, old);
    }
}

/// pvpanic says which events it knows.
pub fn pvpanic(test: &mut Test) {
    match inb(0x505) {
        0xff => test.skip("no pvpanic"),
        events => {
            test.check(events & 1 != 0, "event 'panicked' is not known");
            let _ = (inw(0x505), inl(0x505));
        }
    }
}

/// Ports 0x80 and 0xe9, and accesses that lie across devices.
pub fn ports(test: &mut Test) {
    // The debug port identifies itself, where it is.
    let found = inb(0xe9);
    if found != 0xff || cmdline::value("debugcon") == Some("1") {
        test.eq("debug port", found, 0xe9_u8);
    }
    for value in 0..4 {
        outb(0x80, value);
    }
    outw(0x80, 0x1234);
    outl(0x80, 0x1234_5678);
    // Across the edges of claimed ranges.
    if cmdline::is_gentle() {
        return;
    }
    for port in [
        0x3f7, 0x3fe, 0x3ff, 0x6f, 0x71, 0x5f, 0x63, 0x65, 0x504, 0x503, 0xcf7, 0xcfa, 0xcfe,
        0xcff, 0xe8, 0xfffc,
    ] {
        let _ = (inw(port), inl(port));
    }
    // Every port once, bytes and words: reads must not break anything. The PCI data ports read
    // configuration space, 0x60 takes a key.
    if cmdline::value("all_ports") == Some("1") {
        for port in 0..=0xffff_u16 {
            let _ = inb(port);
        }
    }
}

/// INS and OUTS: size and count as asked for.
pub fn string_io(test: &mut Test) {
    let mut bytes = [0_u8; 300];
    cpu::insb(0x0fe0, &mut bytes);
    test.check(
        bytes.iter().all(|&b| b == 0xff),
        "INSB from an unclaimed port does not read ones",
    );
    let mut words = [0_u16; 100];
    cpu::insw(0x0fe0, &mut words);
    test.check(
        words.iter().all(|&w| w == 0xffff),
        "INSW from an unclaimed port does not read ones",
    );
    if inb(0x3fd) != 0xff {
        // The scratch register: every byte of the string is written and read in turn.
        cpu::outsb(0x3ff, b"abcdef");
        test.eq("scratch register after OUTSB", inb(0x3ff), b'f');
        let mut same = [0_u8; 40];
        cpu::insb(0x3ff, &mut same);
        test.check(
            same.iter().all(|&b| b == b'f'),
            "INSB of a register differs from IN",
        );
        cpu::outsb(0x3ff, b"");
        test.eq("scratch register after an empty OUTSB", inb(0x3ff), b'f');
    }
    crate::out::debug_string(b"payload: one string instruction\n");
}

/// What nobody claims reads as ones and ignores writes.
pub fn unclaimed(test: &mut Test) {
    for port in [0x0fe0_u16, 0x1ff8, 0x5000, 0xfff0] {
        outb(port, 0);
        outl(port, 0);
        test.eq_at("byte at unclaimed port", port.into(), inb(port), 0xff_u8);
        test.eq_at("word at unclaimed port", port.into(), inw(port), 0xffff_u16);
        test.eq_at("long at unclaimed port", port.into(), inl(port), u32::MAX);
    }
    let at = cmdline::number_or("unclaimed_mmio", 0xfed8_0000);
    for offset in [0, 1, 2, 3, 5, 0xff8, 0xffe] {
        for width in [1, 2, 4, 8] {
            cpu::write(at + offset, width, 0);
            test.eq_at(
                "unclaimed memory",
                at + offset,
                cpu::read(at + offset, width),
                ones(width),
            );
        }
    }
}

/// Accesses of every width at every offset of the windows that `windows=BASE:LEN,...` lists. What they
/// read is not judged: the machine must live on.
pub fn windows(test: &mut Test) {
    let Some(list) = cmdline::value("windows") else {
        return test.skip("no windows= on the command line");
    };
    for word in list.split(',') {
        let Some((base, len)) = word
            .split_once(':')
            .and_then(|(b, l)| Some((cmdline::number(b)?, cmdline::number(l)?)))
        else {
            test.fail(format_args!("windows={word} is not BASE:LEN"));
            continue;
        };
        mem::map(base, len);
        // Large windows are sampled: both ends in full, steps between.
        let step = if len > 8192 { (len / 4096) | 1 } else { 1 };
        let offsets = || {
            (0..len.min(4096))
                .chain((4096..len).step_by(step as usize))
                .chain(len.saturating_sub(16)..len)
        };
        for offset in offsets() {
            for width in [1, 2, 4, 8] {
                if offset + u64::from(width) <= len {
                    let value = cpu::read(base + offset, width);
                    test.check(
                        value <= ones(width),
                        "a read returns more bits than its width",
                    );
                }
            }
        }
        if cmdline::value("windows_write") == Some("1") {
            for offset in offsets() {
                for width in [1, 2, 4, 8] {
                    if offset + u64::from(width) <= len {
                        cpu::write(base + offset, width, 0xa5a5_a5a5_a5a5_a5a5 & ones(width));
                        cpu::write(base + offset, width, 0);
                    }
                }
            }
        }
    }
}
