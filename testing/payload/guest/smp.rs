//! The other CPUs: brought up by INIT and SIPI, asleep until there is work.

use crate::boot::{MAX_CPUS, PerCpu, VEC_AUTO, percpu0};
use crate::cpu::{self, fence, tsc};
use crate::{acpi, apic, cmdline, mem, time};
use core::mem::size_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Wakes a CPU that sleeps.
pub const VEC_WAKE: u8 = VEC_AUTO + 0x80;

/// A page below 1 MiB; what PVH put there has been copied.
const TRAMPOLINE: u64 = 0x8000;
const STACK: u64 = 16 << 10;

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    static mut ap_gs_base: u64;
    static mut ap_frame: u64;
    static mut ap_tss_selector: u16;
    static mut tss_descriptors: [u64; 2 * MAX_CPUS];
    fn ap_ring3_entry();
    fn unexpected_fault();
}

static READY: AtomicU32 = AtomicU32::new(1);
static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static WORK: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static BUSY: AtomicU32 = AtomicU32::new(0);

/// CPUs running.
pub fn count() -> usize {
    READY.load(Ordering::Acquire) as usize
}

/// The APIC id of a running CPU.
pub fn apic_id(cpu: usize) -> u32 {
    APIC_IDS[cpu].load(Ordering::Acquire)
}

/// Brings up every CPU of the MADT (or as many as `cpus=` says), one after the other; returns how
/// many run and how many should.
pub fn start() -> (usize, usize) {
    let mut ids = [0; MAX_CPUS];
    let mut wanted = acpi::cpus(&mut ids);
    if let Some(n) = cmdline::value("cpus").and_then(cmdline::number) {
        let n = (n as usize).clamp(1, MAX_CPUS);
        for (i, id) in ids.iter_mut().enumerate().take(n).skip(wanted.max(1)) {
            *id = i as u32;
        }
        wanted = n;
    }
    let wanted = wanted.max(1);
    if count() > 1 {
        return (count(), wanted);
    }
    apic::enable();
    if cmdline::value("x2apic") == Some("1") || ids[..wanted].iter().any(|&id| id > 254) {
        apic::use_x2apic();
    }
    let own = apic::id();
    APIC_IDS[0].store(own, Ordering::Release);
    // SAFETY: the page is RAM that nothing else uses; the bounds come from the linker.
    unsafe {
        let len = (&raw const trampoline_end) as usize - (&raw const trampoline) as usize;
        core::ptr::copy_nonoverlapping(&raw const trampoline, TRAMPOLINE as *mut u8, len);
    }
    let others = ids[..wanted].iter().filter(|&&id| id != own);
    for (index, &id) in (1..).zip(others) {
        if !start_one(index, id) {
            break;
        }
    }
    (count(), wanted)
}

/// Gives the CPU a record, a TSS and stacks, then starts it and waits until it is in ring 3.
fn start_one(index: usize, id: u32) -> bool {
    const TSS: u64 = 0x2080;
    let record = mem::alloc(size_of::<PerCpu>() as u64, 4096) as u64;
    let tss = mem::alloc(TSS, 16) as u64;
    let frame = mem::alloc(64, 64) as *mut u64;
    let ring0_top = mem::alloc(4096, 4096) as u64 + 4096;
    let ring3_top = mem::alloc(STACK, 4096) as u64 + STACK;
    // SAFETY: all fresh memory of this function; the mailbox is read only by the CPU started below.
    unsafe {
        let r = &mut *(record as *mut PerCpu);
        r.index = index as u64;
        r.rsp0 = ring0_top;
        r.resume = unexpected_fault as *const () as u64;
        mem::set_cpu_record(index, record);

        // TSS: RSP0, the bitmap's offset, its closing byte; and its descriptor (SDM vol. 3, 8.2.3).
        ((tss + 4) as *mut u64).write_unaligned(ring0_top);
        ((tss + 0x66) as *mut u16).write_unaligned(0x68);
        ((tss + 0x2068) as *mut u8).write(0xff);
        let low = 0x2068 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        tss_descriptors[2 * index] = low;
        tss_descriptors[2 * index + 1] = tss >> 32;

        let entry = ap_ring3_entry as *const () as u64;
        for (i, word) in [entry, 0x23, 0x2, ring3_top, 0x1b].into_iter().enumerate() {
            frame.add(i).write(word);
        }
        ap_frame = frame as u64;
        ap_gs_base = record.wrapping_sub(&raw const percpu0 as u64);
        ap_tss_selector = 0x28 + 16 * index as u16;
    }
    APIC_IDS[index].store(id, Ordering::Release);
    fence();
    apic::send(id, 0x4500); // INIT
    apic::send(id, 0x4600 | (TRAMPOLINE >> 12) as u32); // start-up
    let until = tsc() + time::seconds(5);
    while count() != index + 1 {
        if tsc() > until {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Where ring 3 begins on the other CPUs.
#[unsafe(no_mangle)]
extern "C" fn ap_main() -> ! {
    let index = cpu::this_cpu().index as usize;
    apic::enable();
    READY.fetch_add(1, Ordering::AcqRel);
    loop {
        let work = WORK[index].swap(0, Ordering::AcqRel);
        if work == 0 {
            // Interrupts are off: a wake-up sent after the look above ends the sleep at once.
            cpu::wait_for_interrupt();
            continue;
        }
        // SAFETY: only `run` stores here, and it stores functions of this type.
        let work: fn(usize) = unsafe { core::mem::transmute(work) };
        work(index);
        BUSY.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Runs `work` on every CPU at once, this one included; false if some did not end within `limit` cycles.
pub fn run(work: fn(usize), limit: u64) -> bool {
    let others = count() - 1;
    BUSY.fetch_add(others as u32, Ordering::AcqRel);
    for (cpu, mailbox) in WORK.iter().enumerate().skip(1).take(others) {
        mailbox.store(work as usize as u64, Ordering::Release);
        apic::send(apic_id(cpu), 0x4000 | u32::from(VEC_WAKE));
    }
    work(0);
    let until = tsc() + limit;
    while BUSY.load(Ordering::Acquire) != 0 {
        if tsc() > until {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Starts `work` on one other CPU and does not wait.
pub fn begin(cpu: usize, work: fn(usize)) {
    BUSY.fetch_add(1, Ordering::AcqRel);
    WORK[cpu].store(work as usize as u64, Ordering::Release);
    apic::send(apic_id(cpu), 0x4000 | u32::from(VEC_WAKE));
}

/// CPUs still at work that `begin` started.
pub fn busy() -> u32 {
    BUSY.load(Ordering::Acquire)
}
