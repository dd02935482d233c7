//! How a run ends: `then=`.

use crate::cpu::{self, outb};
use crate::{acpi, cmdline, out, time};
use core::sync::atomic::{AtomicBool, Ordering};

/// Says `done`, then ends as asked: `poweroff` (the default), `reset`, `reset-i8042`, `reset-cf9`,
/// `triple`, `panic`, `pvpanic`, `hang`, `idle`, `nothing`. With `boots=N` the Nth boot powers off
/// instead of resetting once more.
pub fn end() -> ! {
    let how = cmdline::value("then").unwrap_or("poweroff");
    if how == "panic" {
        panic!("asked for on the command line");
    }
    let resets = how.starts_with("reset") || how == "triple";
    let last = resets && boot_number() >= cmdline::number_or("boots", u64::MAX);
    out::end();
    leave(if last { "poweroff" } else { how })
}

/// Which boot this is, counting from 1, where something outlives a reset: RAM, or the clock's memory.
/// Counts on with every call.
fn boot_number() -> u64 {
    const COUNT_AT: u64 = 0x9_0000;
    const MAGIC: u64 = 0x7275_6e73_6f66_6172;
    const CMOS: u8 = 0x6e; // firmware uses some of those below
    let in_ram = if cpu::read64(COUNT_AT) == MAGIC {
        cpu::read64(COUNT_AT + 8)
    } else {
        0
    };
    outb(0x70, CMOS);
    // The complement beside it tells a count from what firmware left there.
    let count = cpu::inb(0x71);
    outb(0x70, CMOS + 1);
    let in_cmos = if cpu::inb(0x71) == !count {
        u64::from(count)
    } else {
        0
    };
    let number = in_ram.max(in_cmos) + 1;
    cpu::write64(COUNT_AT, MAGIC);
    cpu::write64(COUNT_AT + 8, number);
    for (index, value) in [(CMOS, number as u8), (CMOS + 1, !(number as u8))] {
        outb(0x70, index);
        outb(0x71, value);
    }
    out::line(format_args!("note boot {number}"));
    number
}

/// Ends as asked, without a word.
pub fn leave(how: &str) -> ! {
    match how {
        "poweroff" => acpi::power_off(),
        "reset" => acpi::reset(),
        "reset-i8042" => outb(0x64, 0xfe),
        "reset-cf9" => {
            outb(0xcf9, 0x02);
            outb(0xcf9, 0x06);
        }
        "triple" => cpu::triple_fault(),
        "pvpanic" => {
            outb(0x505, 1);
            time::pause(time::seconds(2));
        }
        "hang" => loop {
            core::hint::spin_loop();
        },
        _ => {}
    }
    if how != "idle" && how != "nothing" {
        // The machine may take a moment. Then: say so, and try what is left.
        time::pause(time::seconds(5));
        out::line(format_args!("fail {how}: the machine is still here"));
        acpi::power_off();
        outb(0xf4, 0x7f); // a debug-exit port, where there is one
        time::pause(time::seconds(1));
        outb(0x64, 0xfe);
    }
    loop {
        cpu::ring0_halt();
    }
}

/// Ends after a bug in the payload or an exception that nobody asked for.
pub fn broken() -> ! {
    static TWICE: AtomicBool = AtomicBool::new(false);
    if TWICE.swap(true, Ordering::AcqRel) {
        // The tables that say how to power off may be what is broken.
        outb(0x64, 0xfe);
        loop {
            cpu::ring0_halt();
        }
    }
    out::end();
    outb(0x505, 1);
    leave("poweroff")
}
