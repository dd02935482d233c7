//! Measurements: `bench=NAME:COUNT,...`. Each prints `bench NAME COUNT CYCLES`, and once
//! `note tsc-rate HZ` for those who want seconds.

use crate::cpu::{self, inb, outb, tsc};
use crate::{acpi, apic, boot, cmdline, mem, out, smp, time, virtio};

/// Runs the benches that `bench=` names.
pub fn run() {
    let mut any = false;
    for list in cmdline::values("bench") {
        for word in list.split(',').filter(|word| !word.is_empty()) {
            if !any {
                out::line(format_args!("note tsc-rate {}", time::rate()));
                any = true;
            }
            let mut parts = word.split(':');
            let name = parts.next().unwrap_or("");
            let count = parts.next().and_then(cmdline::number);
            one(name, count);
        }
    }
}

/// Times `body`, `count` times.
fn measure(name: &str, count: u64, mut body: impl FnMut()) {
    let start = tsc();
    for _ in 0..count {
        body();
    }
    out::bench(name, count, tsc() - start);
}

fn one(name: &str, count: Option<u64>) {
    let or = |otherwise| count.unwrap_or(otherwise);
    match name {
        // Exits that end in user space.
        "exit-pio" => measure(name, or(10_000), || outb(0x80, 0)),
        "exit-pio-in" => measure(name, or(10_000), || {
            let _ = inb(0x0fe0);
        }),
        "exit-mmio" => measure(name, or(10_000), || {
            let _ = cpu::read32(0xfed8_0000);
        }),
        "exit-mmio-write" => measure(name, or(10_000), || cpu::write32(0xfed8_0000, 0)),
        "exit-uart" => measure(name, or(10_000), || {
            let _ = inb(0x3fd);
        }),
        "exit-ioapic" => measure(name, or(10_000), || {
            let _ = cpu::read32(apic::ioapic_base() + 0x10);
        }),
        // Exits that end in the kernel.
        "lapic" => measure(name, or(10_000), || {
            let _ = apic::id();
        }),
        "gate" => measure(name, or(10_000), || {
            let _ = cpu::ring0(cpu::r0_nop, cpu::Regs::default());
        }),
        "cpuid" => measure(name, or(10_000), || {
            let _ = core::arch::x86_64::__cpuid_count(0, 0);
        }),
        "pm-timer" => {
            let port = acpi::fadt().map_or(0, |f| f.pm_timer);
            measure(name, or(10_000), || {
                let _ = cpu::inl(port);
            });
        }
        "uart-bytes" => measure(name, or(1_000), || outb(0x3f8, b'.')),
        // First touch and second touch of memory, page by page.
        "touch" => touch(name, or(4096)),
        "smp-start" => {
            let start = tsc();
            let (running, _) = smp::start();
            out::bench(name, running as u64, tsc() - start);
        }
        "ipi" => ipi(name, or(1_000)),
        "blk-read-qd1" => virtio::blk::bench(name, false, 4096, 1, or(10_000)),
        "blk-read-qd32" => virtio::blk::bench(name, false, 4096, 32, or(50_000)),
        "blk-write-qd1" => virtio::blk::bench(name, true, 4096, 1, or(10_000)),
        "blk-write-qd32" => virtio::blk::bench(name, true, 4096, 32, or(50_000)),
        "blk-read-128k-qd8" => virtio::blk::bench(name, false, 131_072, 8, or(5_000)),
        "blk-write-128k-qd8" => virtio::blk::bench(name, true, 131_072, 8, or(5_000)),
        "net-tx-64" => virtio::net::bench(name, 64, or(50_000)),
        "net-tx-1514" => virtio::net::bench(name, 1514, or(50_000)),
        _ => out::line(format_args!("fail {name}: no such bench")),
    }
}

fn touch(name: &str, pages: u64) {
    let start_at = mem::mark().next_multiple_of(4096);
    let pages = pages.min(mem::free().saturating_sub(4096) / 4096);
    for pass in 0..2 {
        let start = tsc();
        for page in 0..pages {
            cpu::write8(start_at + 4096 * page, 1);
        }
        let cycles = tsc() - start;
        if pass == 0 {
            out::bench(name, pages, cycles)
        } else {
            out::bench("touch-again", pages, cycles)
        }
    }
}

fn ipi(name: &str, count: u64) {
    const VECTOR: u8 = boot::VEC_AUTO + 7;
    apic::enable();
    cpu::irq_on();
    measure(name, count, || {
        let before = cpu::taken(VECTOR);
        apic::send(apic::id(), 0x4000 | u32::from(VECTOR));
        time::until(time::seconds(1), || cpu::taken(VECTOR) != before);
    });
    cpu::irq_off();
}
