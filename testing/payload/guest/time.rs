//! Time: the TSC's rate, and waiting with a limit.

use crate::cpu::{self, tsc};
use crate::{acpi, mem};
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicU64, Ordering};

static RATE: AtomicU64 = AtomicU64::new(0);

/// TSC cycles per second: from CPUID or the KVM clock, else measured against the PM timer, else a guess.
pub fn rate() -> u64 {
    let known = RATE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let rate = from_cpuid()
        .or_else(from_kvm_clock)
        .or_else(|| measured(20))
        .unwrap_or(2_000_000_000);
    RATE.store(rate, Ordering::Relaxed);
    rate
}

fn from_cpuid() -> Option<u64> {
    let top = __cpuid_count(0, 0).eax;
    if top >= 0x15 {
        let leaf = __cpuid_count(0x15, 0);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            return Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax));
        }
    }
    // The hypervisors' leaf: TSC rate in kHz.
    let leaf = __cpuid_count(0x4000_0000, 0);
    if leaf.eax >= 0x4000_0010 {
        let khz = __cpuid_count(0x4000_0010, 0).eax;
        if khz != 0 {
            return Some(u64::from(khz) * 1000);
        }
    }
    None
}

/// What the KVM clock's page says: one MSR write, where measuring takes milliseconds. Layout: Linux,
/// Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW.
fn from_kvm_clock() -> Option<u64> {
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    let leaf = __cpuid_count(0x4000_0000, 0);
    if leaf.ebx != 0x4b4d_564b || __cpuid_count(0x4000_0001, 0).eax & 1 << 3 == 0 {
        return None;
    }
    let page = mem::alloc(32, 32) as u64;
    cpu::wrmsr(SYSTEM_TIME, page | 1).ok()?;
    // The page is filled in before the guest runs on; looking twice costs nothing.
    let multiplier = (0..1000)
        .map(|_| cpu::shared_read((page + 24) as *const u32))
        .find(|&m| m != 0);
    let shift = cpu::shared_read((page + 28) as *const i8);
    cpu::wrmsr(SYSTEM_TIME, 0).ok()?;
    // Nanoseconds are (cycles << shift) * multiplier >> 32.
    let rate = (1_000_000_000_u64 << 32) / u64::from(multiplier?);
    Some(if shift < 0 {
        rate << -shift
    } else {
        rate >> shift
    })
}

/// Measures the TSC against the PM timer (3 579 545 Hz) for some milliseconds.
pub fn measured(millis: u32) -> Option<u64> {
    let port = acpi::fadt()?.pm_timer;
    if port == 0 {
        return None;
    }
    let ticks = 3580 * millis;
    let (start, from) = (cpu::inl(port) & 0xff_ffff, tsc());
    let limit = from + 20_000_000_000;
    loop {
        let (now, to) = (cpu::inl(port) & 0xff_ffff, tsc());
        let passed = now.wrapping_sub(start) & 0xff_ffff;
        if passed >= ticks {
            return Some((to - from) * 3_579_545 / u64::from(passed));
        }
        if to > limit {
            return None;
        }
    }
}

/// Cycles in `n` seconds.
pub fn seconds(n: u64) -> u64 {
    rate() * n
}

/// Cycles in `n` milliseconds.
pub fn millis(n: u64) -> u64 {
    rate() * n / 1000
}

/// Waits until `holds`, at most `cycles`; whether it came to hold.
pub fn until(cycles: u64, mut holds: impl FnMut() -> bool) -> bool {
    let end = tsc() + cycles;
    loop {
        if holds() {
            return true;
        }
        if tsc() > end {
            return holds();
        }
        core::hint::spin_loop();
    }
}

/// Waits.
pub fn pause(cycles: u64) {
    until(cycles, || false);
}
