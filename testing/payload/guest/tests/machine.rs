//! What the VMM hands over, the tables, memory, the CPU.

use crate::boot::VEC_AUTO;
use crate::cpu::{self, tsc};
use crate::out::Test;
use crate::{acpi, apic, boot, cmdline, mem, time};
use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

/// PVH's start-info page.
pub fn handover(test: &mut Test) {
    let h = boot::handover();
    test.eq("magic of the start info", h.magic, 0x336e_c578_u32);
    test.check(h.version >= 1, "start info without a memory map");
    test.check(h.rsdp_at != 0, "no RSDP in the start info");
    test.check(h.ranges > 0, "no memory map");
    let mut end = 0;
    for range in &h.memory[..h.ranges] {
        test.check(range.len > 0, "an empty range in the memory map");
        test.check(range.start >= end, "memory map is not sorted, or overlaps");
        test.check(
            (1..=7).contains(&range.kind),
            "unknown kind in the memory map",
        );
        end = range.start.saturating_add(range.len);
    }
}

/// Checksums, and the tables that a guest needs.
pub fn acpi(test: &mut Test) {
    let rsdp = acpi::rsdp();
    if !test.check(rsdp != 0, "no RSDP") {
        return;
    }
    test.check(acpi::sums_to_zero(rsdp, 20), "checksum of the RSDP");
    if acpi::bytes(rsdp, 36)[15] >= 2 {
        test.check(
            acpi::sums_to_zero(rsdp, 36),
            "extended checksum of the RSDP",
        );
    }
    for (at, name, len) in acpi::tables() {
        let name = core::str::from_utf8(name).unwrap_or("????");
        if !(36..=1 << 20).contains(&len) || !acpi::sums_to_zero(at, len) {
            test.fail(format_args!("table {name} at {at:#x}: length or checksum"));
        }
    }
    let Some(fadt) = acpi::fadt() else {
        return test.fail(format_args!("no FADT"));
    };
    test.check(fadt.len >= 244, "FADT shorter than in ACPI 2.0");
    test.check(acpi::s5_type().is_some(), "no _S5_ in the DSDT");
    test.check(
        fadt.pm1a_control != 0 || fadt.sleep_control_at != 0,
        "no way to power off",
    );
    test.check(
        fadt.flags & 1 << 10 != 0 && fadt.reset_at != 0,
        "no reset register",
    );
    let mut ids = [0; boot::MAX_CPUS];
    let cpus = acpi::cpus(&mut ids);
    test.check(cpus >= 1, "no CPU in the MADT");
    if let Some(want) = cmdline::value("want_cpus").and_then(cmdline::number) {
        test.eq("CPUs in the MADT", cpus as u64, want);
    }
    for (i, id) in ids[..cpus].iter().enumerate() {
        test.check(!ids[..i].contains(id), "an APIC id twice in the MADT");
    }
    if crate::pci::present() {
        test.check(acpi::ecam().is_some(), "a PCI host bridge but no MCFG");
    }
}

/// Touches every 2 MiB of RAM, also above 4 GiB; `want_memory=` is what the map should add up to.
pub fn memory(test: &mut Test) {
    let h = boot::handover();
    let ram = h.memory[..h.ranges].iter().filter(|r| r.kind == 1);
    let total: u64 = ram.clone().map(|r| r.len).sum();
    test.note(format_args!("{} KiB of RAM", total >> 10));
    if let Some(want) = cmdline::value("want_memory").and_then(cmdline::number) {
        // Firmware tables and the legacy hole may take some.
        test.check(
            total <= want && total + (2 << 20) >= want,
            "RAM is not what was asked for",
        );
    }
    // Every place holds its own address at the same time: aliases would show.
    let places = |start: u64, len: u64| {
        let first = start.next_multiple_of(4096).max(start);
        (first..start + len)
            .step_by(2 << 20)
            .chain([(start + len - 8) & !7])
            .filter(|&at| at >= mem::mark())
    };
    for range in ram.clone() {
        mem::map(range.start, range.len);
    }
    for range in ram.clone() {
        for at in places(range.start, range.len) {
            cpu::write64(at, at ^ 0x5a5a_5a5a_5a5a_5a5a);
        }
    }
    for range in ram {
        for at in places(range.start, range.len) {
            if !test.eq_at("memory", at, cpu::read64(at), at ^ 0x5a5a_5a5a_5a5a_5a5a) {
                return;
            }
        }
    }
}

/// The hypervisor's leaves and this CPU's ids.
pub fn cpuid(test: &mut Test) {
    let leaf1 = __cpuid_count(1, 0);
    test.check(leaf1.ecx & 1 << 31 != 0, "hypervisor bit is not set");
    let leaf = __cpuid_count(0x4000_0000, 0);
    test.check(
        [leaf.ebx, leaf.ecx, leaf.edx] == [0x4b4d_564b, 0x564b_4d56, 0x4d],
        "no KVM signature",
    );
    apic::enable();
    test.eq("initial APIC id", leaf1.ebx >> 24, apic::id());
    if __cpuid_count(0, 0).eax >= 0xb {
        let leaf = __cpuid_count(0xb, 0);
        if leaf.ebx != 0 {
            test.eq("x2APIC id in leaf 0xb", leaf.edx, apic::id());
        }
    }
    // The next timer: 1 microsecond to 100 GHz is no measurement, only sense.
    test.note(format_args!(
        "TSC {} kHz by CPUID or PM timer, measured {:?} kHz",
        time::rate() / 1000,
        time::measured(10).map(|r| r / 1000)
    ));
    let (a, b) = (tsc(), tsc());
    test.check(b > a, "TSC does not move");
}

/// MSRs that must be there, and one that must fault.
pub fn msr(test: &mut Test) {
    test.check(
        cpu::rdmsr(0x1b).is_ok_and(|v| v & 0xffff_f000 == apic::LAPIC),
        "APIC base",
    );
    test.check(
        cpu::rdmsr(0xc000_0080).is_ok_and(|v| v & 0x500 == 0x500),
        "EFER without LME and LMA",
    );
    test.check(
        cpu::rdmsr(0x1234_5678) == Err(13),
        "an unknown MSR can be read",
    );
    test.check(
        cpu::wrmsr(0x1234_5678, 1) == Err(13),
        "an unknown MSR can be written",
    );
    test.check(
        cpu::wrmsr(0xc000_0102, 0xffff_8000_0000_1234).is_ok(),
        "kernel GS base cannot be written",
    );
    test.check(
        cpu::rdmsr(0xc000_0102) == Ok(0xffff_8000_0000_1234),
        "kernel GS base does not read back",
    );
}

/// Exceptions raised by the CPU reach the guest with the right vector.
pub fn exceptions(test: &mut Test) {
    macro_rules! raise {
        ($vector:expr, $why:expr, $code:literal $(, $operand:tt)*) => {{
            let cpu = cpu::this_cpu();
            let old = cpu.resume;
            cpu.vector = 0xffff;
            // SAFETY: the instruction faults, and the stub goes on at the label, registers kept.
            unsafe {
                asm!(
                    "lea {scratch}, [rip + 2f]",
                    "mov [{resume}], {scratch}",
                    $code,
                    "2:",
                    scratch = out(reg) _,
                    resume = in(reg) &raw mut cpu.resume,
                    out("rax") _, out("rdx") _, out("rcx") _,
                );
            }
            cpu.resume = old;
            test.eq($why, cpu::shared_read(&raw const cpu.vector), $vector);
        }};
    }
    raise!(
        0_u64,
        "division by zero",
        "xor edx, edx; xor ecx, ecx; mov eax, 1; div ecx"
    );
    raise!(6_u64, "invalid opcode", "ud2");
    raise!(13_u64, "privileged instruction in ring 3", "mov rax, cr0");
    raise!(
        13_u64,
        "address that is not canonical",
        "mov rax, 0x4000000000000000; mov [rax], al"
    );
    // 128 TiB less 4 KiB: nothing is mapped there.
    raise!(
        14_u64,
        "unmapped address",
        "mov rax, 0x7ffffffff000; mov [rax], al"
    );
    test.eq("CR2", cpu::this_cpu().cr2, 0x7fff_ffff_f000_u64);
}

/// The local APIC: identity, self-IPI, priorities, the timer.
pub fn lapic(test: &mut Test) {
    const VECTOR: u8 = VEC_AUTO + 2;
    const MANUAL: u8 = 0x33;
    apic::enable();
    test.check(
        apic::get(apic::lapic::VERSION) & 0xff >= 0x10,
        "LAPIC version below 0x10",
    );
    let before = cpu::taken(VECTOR);
    apic::send(apic::id(), 0x4000 | u32::from(VECTOR));
    test.check(
        time::until(time::millis(100), || apic::bit(apic::lapic::IRR, VECTOR)),
        "a self-IPI is not pending while interrupts are off",
    );
    test.eq("interrupts while off", cpu::taken(VECTOR), before);
    cpu::irq_on();
    test.check(
        time::until(time::seconds(2), || cpu::taken(VECTOR) == before + 1),
        "a pending interrupt is not taken when they are on",
    );
    // A vector that its stub does not end is in service until ring 3 ends it, and not taken again.
    // That is the kernel's doing, not the VMM's, and one software KVM does not: it is told, not judged.
    let before = cpu::taken(MANUAL);
    apic::send(apic::id(), 0x4000 | u32::from(MANUAL));
    test.check(
        time::until(time::seconds(2), || cpu::taken(MANUAL) == before + 1),
        "an interrupt is not taken",
    );
    if !apic::bit(apic::lapic::ISR, MANUAL) {
        test.note(format_args!("interrupts end as they are taken"));
    }
    test.check(
        apic::end_for_good(MANUAL),
        "vector is in service after its end",
    );
    test.eq("interrupts for one IPI", cpu::taken(MANUAL), before + 1);
    // One-shot timer, then periodic.
    let before = cpu::taken(VECTOR);
    apic::set(apic::lapic::TIMER_DIVIDE, 0b1011);
    apic::set(apic::lapic::TIMER, VECTOR.into());
    apic::set(apic::lapic::TIMER_INITIAL, 1_000_000);
    test.check(
        time::until(time::seconds(5), || cpu::taken(VECTOR) != before),
        "one-shot timer does not fire",
    );
    test.eq(
        "timer count after it fired",
        apic::get(apic::lapic::TIMER_CURRENT),
        0_u32,
    );
    let before = cpu::taken(VECTOR);
    apic::set(apic::lapic::TIMER, u32::from(VECTOR) | 1 << 17);
    apic::set(apic::lapic::TIMER_INITIAL, 2_000_000);
    test.check(
        time::until(time::seconds(5), || cpu::taken(VECTOR) >= before + 3),
        "periodic timer does not go on",
    );
    apic::set(apic::lapic::TIMER_INITIAL, 0);
    apic::set(apic::lapic::TIMER, 1 << 16);
    // TSC deadline, where CPUID offers it.
    if __cpuid_count(1, 0).ecx & 1 << 24 != 0 {
        let before = cpu::taken(VECTOR);
        apic::set(apic::lapic::TIMER, u32::from(VECTOR) | 2 << 17);
        let set = cpu::wrmsr(0x6e0, tsc() + time::millis(2));
        test.check(set.is_ok(), "TSC deadline cannot be written");
        test.check(
            time::until(time::seconds(5), || cpu::taken(VECTOR) != before),
            "TSC deadline does not fire",
        );
        apic::set(apic::lapic::TIMER, 1 << 16);
    }
    cpu::irq_off();
    // Sleep ends with an interrupt that was already pending.
    let before = cpu::taken(VECTOR);
    apic::send(apic::id(), 0x4000 | u32::from(VECTOR));
    cpu::wait_for_interrupt();
    test.eq(
        "interrupts that ended a sleep",
        cpu::taken(VECTOR),
        before + 1,
    );
}

/// The initrd: there, and adding up to `initrd_sum=` (all bytes), of `initrd_len=` bytes.
pub fn initrd(test: &mut Test) {
    let h = handover_modules();
    let Some(module) = h.first() else {
        return test.fail(format_args!("no module"));
    };
    let bytes = acpi::bytes(module.start, module.len as usize);
    let sum: u64 = bytes.iter().map(|&b| u64::from(b)).sum();
    test.eq(
        "length of the initrd",
        module.len,
        cmdline::number_or("initrd_len", module.len),
    );
    test.eq(
        "sum of the initrd",
        sum,
        cmdline::number_or("initrd_sum", sum),
    );
}

fn handover_modules() -> &'static [boot::Module] {
    let h = boot::handover();
    &h.modules[..h.module_count]
}
