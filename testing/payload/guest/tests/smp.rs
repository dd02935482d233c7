//! Several CPUs.

use crate::boot::VEC_AUTO;
use crate::cpu::{self, inb, inl, outb, tsc};
use crate::out::Test;
use crate::pci::Function;
use crate::{acpi, apic, cmdline, mem, smp, time};
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);
static WRONG: AtomicU32 = AtomicU32::new(0);
static LATEST: AtomicU64 = AtomicU64::new(0);
const VECTOR: u8 = VEC_AUTO + 6;

/// Starts them all, one of the few tests whose time grows with the machine.
pub fn all_cpus(test: &mut Test) {
    let from = tsc();
    let (running, wanted) = smp::start();
    test.note(format_args!(
        "{running} CPUs up in {} us",
        (tsc() - from) * 1_000_000 / time::rate()
    ));
    test.eq("CPUs running", running as u64, wanted as u64);
    if let Some(want) = cmdline::value("want_cpus").and_then(cmdline::number) {
        test.eq("CPUs wanted", running as u64, want);
    }
    COUNT.store(0, Ordering::Relaxed);
    WRONG.store(0, Ordering::Relaxed);
    let done = smp::run(
        |cpu| {
            COUNT.fetch_add(1, Ordering::AcqRel);
            let right = apic::id() == smp::apic_id(cpu)
                && (apic::id() > 254 || __cpuid_count(1, 0).ebx >> 24 == apic::id())
                && (__cpuid_count(0, 0).eax < 0xb
                    || __cpuid_count(0xb, 0).ebx == 0
                    || __cpuid_count(0xb, 0).edx == apic::id());
            WRONG.fetch_add(u32::from(!right), Ordering::AcqRel);
        },
        time::seconds(30),
    );
    test.check(done, "not every CPU ends its work within 30 s");
    test.eq(
        "CPUs that worked",
        COUNT.load(Ordering::Acquire),
        running as u32,
    );
    test.eq(
        "CPUs with a wrong APIC id",
        WRONG.load(Ordering::Acquire),
        0_u32,
    );
    // Time does not go back from one CPU to the next.
    LATEST.store(0, Ordering::Release);
    WRONG.store(0, Ordering::Release);
    smp::run(
        |_| {
            for _ in 0..1000 {
                let seen = LATEST.load(Ordering::Acquire);
                let now = tsc();
                WRONG.fetch_add(u32::from(now < seen), Ordering::AcqRel);
                LATEST.fetch_max(now, Ordering::AcqRel);
            }
        },
        time::seconds(30),
    );
    test.eq(
        "times that went back between CPUs",
        WRONG.load(Ordering::Acquire),
        0_u32,
    );
}

/// Interrupts between CPUs: each other CPU is sent one and takes it; a broadcast reaches all.
pub fn interrupts(test: &mut Test) {
    let (running, _) = smp::start();
    if running < 2 {
        return test.skip("one CPU");
    }
    for cpu in 1..running {
        let record = mem::cpu_record(cpu);
        let counter = &raw const record.counters[usize::from(VECTOR)];
        let before = cpu::shared_read(counter);
        apic::send(smp::apic_id(cpu), 0x4000 | u32::from(VECTOR));
        let taken = time::until(time::seconds(10), || {
            cpu::shared_read(counter) == before + 1
        });
        if !taken {
            test.fail(format_args!("CPU {cpu} does not take an interrupt"));
        }
    }
    // All but self.
    let own = cpu::taken(VECTOR);
    let before: u32 = (1..running)
        .map(|cpu| mem::cpu_record(cpu).counters[usize::from(VECTOR)])
        .sum();
    apic::send(0, 0xc4000 | u32::from(VECTOR));
    let all = || {
        (1..running)
            .map(|cpu| {
                cpu::shared_read(&raw const mem::cpu_record(cpu).counters[usize::from(VECTOR)])
            })
            .sum::<u32>()
    };
    test.check(
        time::until(time::seconds(10), || all() == before + running as u32 - 1),
        "a broadcast does not reach every CPU",
    );
    test.eq(
        "own interrupts after a broadcast to others",
        cpu::taken(VECTOR),
        own,
    );
}

/// The UART's pin, aimed at each CPU in turn.
pub fn pin_targets(test: &mut Test) {
    const PIN_VECTOR: u8 = VEC_AUTO + 8;
    let (running, _) = smp::start();
    if running < 2 {
        return test.skip("one CPU");
    }
    if inb(0x3fd) == 0xff {
        return test.skip("no UART at COM1");
    }
    time::until(time::seconds(1), || inb(0x3fd) & 0x60 == 0x60);
    outb(0x3fc, 0x0b);
    let (pin, _) = acpi::isa_route(4);
    let counter = |cpu: usize| {
        cpu::shared_read(&raw const mem::cpu_record(cpu).counters[usize::from(PIN_VECTOR)])
    };
    let mut missed = 0_u64;
    for target in 1..running.min(32) {
        apic::route(pin, PIN_VECTOR, 0, smp::apic_id(target));
        let before = counter(target);
        outb(0x3f9, 2);
        missed += u64::from(!time::until(time::seconds(10), || {
            counter(target) == before + 1
        }));
        inb(0x3fa);
        outb(0x3f9, 0);
    }
    apic::mask(pin);
    test.eq(
        "CPUs that took no interrupt of the UART aimed at them",
        missed,
        0_u64,
    );
}

/// All CPUs on the same devices at once.
pub fn hammer(test: &mut Test) {
    let (running, _) = smp::start();
    WRONG.store(0, Ordering::Release);
    let has_uart = inb(0x3fd) != 0xff;
    COUNT.store(u32::from(has_uart), Ordering::Release);
    let rounds = cmdline::number_or("hammer", 500);
    LATEST.store(rounds, Ordering::Release);
    // Page tables are extended here, once, before others look at the same places.
    let _ = (Function::at(0, 0, 0).ecam(), acpi::fadt());
    let done = smp::run(
        |cpu| {
            let rounds = LATEST.load(Ordering::Acquire);
            let bridge = Function::at(0, 0, 0).ecam();
            let pm = acpi::fadt().map_or(0, |f| f.pm_timer);
            for i in 0..rounds {
                if COUNT.load(Ordering::Acquire) != 0 {
                    // Whoever wrote last, it is a value that somebody writes.
                    outb(0x3ff, 0x80 | cpu as u8 & 0x7f);
                    WRONG.fetch_add(u32::from(inb(0x3ff) & 0x80 == 0), Ordering::AcqRel);
                }
                outb(0x80, i as u8);
                if pm != 0 {
                    let _ = inl(pm);
                }
                let version = cpu::read32(apic::ioapic_base() + 0x10);
                let _ = version;
                if let Some(page) = bridge {
                    WRONG.fetch_add(u32::from(cpu::read32(page) == u32::MAX), Ordering::AcqRel);
                }
                let _ = inb(0x64);
            }
        },
        time::seconds(120),
    );
    test.check(done, "not every CPU ends within 120 s");
    test.eq("wrong values", WRONG.load(Ordering::Acquire), 0_u32);
    test.note(format_args!("{running} CPUs, {rounds} rounds"));
}
