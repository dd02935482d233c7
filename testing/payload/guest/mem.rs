//! Memory: the C routines the compiler calls, an allocator that never frees, and more page tables.

use crate::boot::{self, PerCpu, percpu0};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _, options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise; backwards where the end of `from` would be overwritten first.
    unsafe {
        if (to as usize).wrapping_sub(from as usize) >= len {
            memcpy(to, from, len);
        } else {
            asm!("std", "rep movsb", "cld",
                inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
                inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _,
                inout("rcx") len => _, options(nostack));
        }
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") len => _, options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for i in 0..len {
        // SAFETY: the caller's promise. Volatile, lest the loop be turned into a call of itself.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, len) }
}

static NEXT: AtomicU64 = AtomicU64::new(0);
static LIMIT: AtomicU64 = AtomicU64::new(0);

/// Gives the allocator the RAM that follows the payload, up to 4 GiB.
pub fn init() {
    let start = boot::end_of_payload();
    let h = boot::handover();
    let mut limit = start + (8 << 20);
    for range in &h.memory[..h.ranges] {
        let end = range.start.saturating_add(range.len);
        if range.kind == 1 && range.start <= start && end > start {
            limit = end.min(1 << 32);
        }
    }
    // An initrd or a start-info page after the payload ends the free room.
    for module in &h.modules[..h.module_count] {
        if module.start >= start && module.start < limit {
            limit = module.start;
        }
    }
    for at in [h.start_info_at, h.rsdp_at] {
        if at >= start && at < limit {
            limit = at & !0xfff;
        }
    }
    NEXT.store(start, Ordering::Relaxed);
    LIMIT.store(limit, Ordering::Relaxed);
}

/// Bytes that can still be allocated.
pub fn free() -> u64 {
    LIMIT
        .load(Ordering::Relaxed)
        .saturating_sub(NEXT.load(Ordering::Relaxed))
}

/// Zeroed memory, never given back; ends the payload when there is none.
pub fn alloc(len: u64, align: u64) -> *mut u8 {
    let start = NEXT.load(Ordering::Relaxed).next_multiple_of(align);
    let end = start + len;
    assert!(end <= LIMIT.load(Ordering::Relaxed), "out of memory");
    NEXT.store(end, Ordering::Relaxed);
    // SAFETY: the range is RAM, mapped, and nobody else's.
    unsafe { core::ptr::write_bytes(start as *mut u8, 0, len as usize) };
    start as *mut u8
}

/// A mark to which `release` returns: tests that need much memory give it back so.
pub fn mark() -> u64 {
    NEXT.load(Ordering::Relaxed)
}

/// Frees all that was allocated since `mark`; the caller keeps no pointer to it.
pub fn release(mark: u64) {
    NEXT.store(mark, Ordering::Relaxed);
}

unsafe extern "C" {
    static mut pml4: [u64; 512];
}

/// Maps a range above 4 GiB to itself (below, all is mapped from the start).
pub fn map(start: u64, len: u64) {
    const TABLE: u64 = 0x27;
    const PAGE: u64 = 0xe7;
    let mut at = start.max(1 << 32) & !0x1f_ffff;
    while at < start + len {
        // SAFETY: walks and extends the tables that this CPU runs on; entries only go from absent
        // to present, which needs no invalidation.
        unsafe {
            let mut table = &raw mut pml4 as *mut u64;
            for shift in [39, 30] {
                let entry = table.add((at >> shift) as usize & 511);
                if *entry & 1 == 0 {
                    *entry = alloc(4096, 4096) as u64 | TABLE;
                }
                table = (*entry & 0x000f_ffff_ffff_f000) as *mut u64;
            }
            let entry = table.add((at >> 21) as usize & 511);
            if *entry & 1 == 0 {
                *entry = at | PAGE;
            }
        }
        at += 0x20_0000;
    }
}

static CPU_RECORDS: [AtomicU64; boot::MAX_CPUS] = [const { AtomicU64::new(0) }; boot::MAX_CPUS];

/// The record of CPU `index`; CPU 0's if there is none.
pub fn cpu_record(index: usize) -> &'static mut PerCpu {
    let at = CPU_RECORDS
        .get(index)
        .map_or(0, |at| at.load(Ordering::Acquire));
    // SAFETY: the table is written before a CPU with that index starts; each CPU touches its own
    // record, and the counters of others only to read.
    unsafe {
        if at == 0 {
            &mut *(&raw mut percpu0)
        } else {
            &mut *(at as *mut PerCpu)
        }
    }
}

/// Notes where the record of CPU `index` lies.
pub fn set_cpu_record(index: usize, at: u64) {
    CPU_RECORDS[index].store(at, Ordering::Release);
}
