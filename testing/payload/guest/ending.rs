//! How a run ends: `then=`.

use crate::cpu::{self, outb};
use crate::{acpi, cmdline, out, time};

/// Says `done`, then ends as asked: `poweroff` (the default), `reset`, `reset-i8042`, `reset-cf9`,
/// `triple`, `panic`, `pvpanic`, `hang`, `idle`, `nothing`.
pub fn end() -> ! {
    let how = cmdline::value("then").unwrap_or("poweroff");
    if how == "panic" {
        panic!("asked for on the command line");
    }
    out::end();
    leave(how)
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
    out::end();
    outb(0x505, 1);
    leave("poweroff")
}
