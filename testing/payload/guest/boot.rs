//! The way into ring 3 (`boot.s`), the record each CPU keeps, and what PVH hands over.

use crate::{cmdline, mem, out};
use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, Ordering};

/// CPUs the descriptor table has room for.
pub const MAX_CPUS: usize = 1024;
/// First vector that ring 3 must end at the LAPIC itself.
pub const VEC_MANUAL: u8 = 0x20;
/// First vector that its stub ends.
pub const VEC_AUTO: u8 = 0x50;
/// The LAPIC's spurious vector.
pub const VEC_SPURIOUS: u8 = 0xff;

/// PE, MP, ET, NE, WP, PG.
const CR0: u32 = 0x8001_0033;
/// PAE, OSFXSR, OSXMMEXCPT: ring 3 is compiled with SSE2.
const CR4: u32 = 0x620;

/// What each CPU's interrupt stubs write; reached through GS, whose base is relative to CPU 0's.
#[repr(C, align(64))]
pub struct PerCpu {
    /// Interrupts taken, by vector.
    pub counters: [u32; 256],
    /// The last exception in ring 3.
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cr2: u64,
    /// Where ring 3 goes on after an exception.
    pub resume: u64,
    /// Top of the ring-0 stack, as in the TSS.
    pub rsp0: u64,
    /// 0 for the first CPU.
    pub index: u64,
}

/// CPU 0's record.
#[unsafe(no_mangle)]
pub static mut percpu0: PerCpu = PerCpu {
    counters: [0; 256],
    vector: 0,
    error: 0,
    rip: 0,
    cr2: 0,
    resume: 0,
    rsp0: 0,
    index: 0,
};

global_asm!(
    include_str!("boot.s"),
    MAX_CPUS = const MAX_CPUS,
    VEC_MANUAL = const VEC_MANUAL,
    VEC_AUTO = const VEC_AUTO,
    VEC_SPURIOUS = const VEC_SPURIOUS,
    SEL_KCODE = const 0x08,
    SEL_UDATA = const 0x1b,
    SEL_UCODE = const 0x23,
    SEL_TSS0 = const 0x28,
    CR0 = const CR0,
    CR4 = const CR4,
    PC_COUNTERS = const offset_of!(PerCpu, counters),
    PC_VECTOR = const offset_of!(PerCpu, vector),
    PC_ERROR = const offset_of!(PerCpu, error),
    PC_RIP = const offset_of!(PerCpu, rip),
    PC_CR2 = const offset_of!(PerCpu, cr2),
    PC_RESUME = const offset_of!(PerCpu, resume),
    PC_RSP0 = const offset_of!(PerCpu, rsp0),
    options(att_syntax)
);

unsafe extern "C" {
    fn unexpected_fault();
    static ring0_stack_top: u8;
    static payload_end: u8;
    static mut bss_start: u8;
    static bss_end: u8;
}

/// PVH's `hvm_start_info` (Xen: xen/include/public/arch-x86/hvm/start_info.h).
#[repr(C)]
pub struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modules_at: u64,
    cmdline_at: u64,
    rsdp_at: u64,
    memory_map_at: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// One entry of the PVH memory map.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemoryRange {
    pub start: u64,
    pub len: u64,
    /// 1 is RAM, 2 reserved, 3 ACPI tables, 4 ACPI NVS.
    pub kind: u32,
    reserved: u32,
}

/// A module (the initrd is the first) as PVH lists it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Module {
    pub start: u64,
    pub len: u64,
    cmdline_at: u64,
    reserved: u64,
}

/// What the VMM handed over, copied before anything may overwrite it.
pub struct Handover {
    pub magic: u32,
    pub version: u32,
    pub start_info_at: u64,
    pub rsdp_at: u64,
    pub memory: [MemoryRange; 32],
    pub ranges: usize,
    pub modules: [Module; 4],
    pub module_count: usize,
}

static mut HANDOVER: Handover = Handover {
    magic: 0,
    version: 0,
    start_info_at: 0,
    rsdp_at: 0,
    memory: [MemoryRange {
        start: 0,
        len: 0,
        kind: 0,
        reserved: 0,
    }; 32],
    ranges: 0,
    modules: [Module {
        start: 0,
        len: 0,
        cmdline_at: 0,
        reserved: 0,
    }; 4],
    module_count: 0,
};

/// What the VMM handed over.
pub fn handover() -> &'static Handover {
    // SAFETY: written once, in `init`, before any other CPU runs.
    unsafe { &*(&raw const HANDOVER) }
}

/// First address past the payload and its bss.
pub fn end_of_payload() -> u64 {
    (&raw const payload_end) as u64
}

/// Set by every boot: after a reset that loaded the file again but did not clear what follows it, it
/// is already set.
static BOOTED: AtomicBool = AtomicBool::new(false);

/// Copies what the VMM handed over and makes faults, output and allocation work.
pub fn init(info: *const StartInfo) {
    if BOOTED.load(Ordering::Relaxed) {
        let start = &raw mut bss_start;
        // SAFETY: the statics of an earlier boot, which this one has not used yet; stacks lie elsewhere.
        unsafe {
            start.write_bytes(0, (&raw const bss_end) as usize - start as usize);
        }
    }
    BOOTED.store(true, Ordering::Relaxed);
    // SAFETY: only this CPU runs; PVH promises `info` to be readable, and all of the low 4 GiB is
    // mapped, so even a wrong pointer reads something.
    unsafe {
        percpu0.resume = unexpected_fault as *const () as u64;
        percpu0.rsp0 = (&raw const ring0_stack_top) as u64;
        let h = &mut *(&raw mut HANDOVER);
        let info = &*info;
        h.start_info_at = &raw const *info as u64;
        h.magic = info.magic;
        h.version = info.version;
        if info.magic == 0x336e_c578 {
            h.rsdp_at = info.rsdp_at;
            cmdline::init(info.cmdline_at as *const u8);
            h.module_count = (info.modules as usize).min(h.modules.len());
            for i in 0..h.module_count {
                h.modules[i] = *(info.modules_at as *const Module).add(i);
            }
            // The map is there from version 1 on.
            if info.version >= 1 {
                h.ranges = (info.memory_map_entries as usize).min(h.memory.len());
                for i in 0..h.ranges {
                    h.memory[i] = *(info.memory_map_at as *const MemoryRange).add(i);
                }
            }
        }
    }
    out::init();
    mem::init();
}

/// Called by `unexpected_fault`: says what happened, and ends.
#[unsafe(no_mangle)]
extern "C" fn report_fault() -> ! {
    let cpu = crate::cpu::this_cpu();
    out::line(format_args!(
        "fail payload: unexpected exception {} (error {:#x}, rip {:#x}, address {:#x}, cpu {})",
        cpu.vector, cpu.error, cpu.rip, cpu.cr2, cpu.index
    ));
    crate::ending::broken()
}
