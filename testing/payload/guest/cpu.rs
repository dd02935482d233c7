//! Ports, memory-mapped registers, time, and the operations that need ring 0.

use crate::boot::{PerCpu, percpu0};
use core::arch::asm;
use core::ptr;

macro_rules! port {
    ($in:ident, $out:ident, $type:ty, $register:tt) => {
        /// Reads a port.
        #[inline(always)]
        pub fn $in(port: u16) -> $type {
            let value: $type;
            // SAFETY: the TSS allows every port; what a device does on a read is the test's subject.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nostack));
            }
            value
        }
        /// Writes a port.
        #[inline(always)]
        pub fn $out(port: u16, value: $type) {
            // SAFETY: as above; devices that write memory do so only where the tests told them to.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nostack));
            }
        }
    };
}
port!(inb, outb, u8, "al");
port!(inw, outw, u16, "ax");
port!(inl, outl, u32, "eax");

/// Writes bytes to one port with a single string instruction.
pub fn outsb(port: u16, bytes: &[u8]) {
    // SAFETY: reads `bytes` only.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _, options(nostack));
    }
}

/// Reads bytes from one port with a single string instruction.
pub fn insb(port: u16, bytes: &mut [u8]) {
    // SAFETY: writes `bytes` only.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rdi") bytes.as_mut_ptr() => _, inout("rcx") bytes.len() => _, options(nostack));
    }
}

/// Reads 16-bit words from one port with a single string instruction.
pub fn insw(port: u16, words: &mut [u16]) {
    // SAFETY: writes `words` only.
    unsafe {
        asm!("rep insw", in("dx") port, inout("rdi") words.as_mut_ptr() => _, inout("rcx") words.len() => _, options(nostack));
    }
}

macro_rules! register {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads a memory-mapped register, with one access of exactly this width, aligned or not.
        #[inline(always)]
        pub fn $read(at: u64) -> $type {
            let value: $type;
            // SAFETY: every address the tests use is mapped; see `port!` for the effects. Written
            // as one instruction because a volatile read of an unaligned pointer would be undefined.
            unsafe {
                asm!(concat!("mov ", $register, ", [{at}]"), at = in(reg) at, out($register) value, options(nostack, preserves_flags));
            }
            value
        }
        /// Writes a memory-mapped register, with one access of exactly this width, aligned or not.
        #[inline(always)]
        pub fn $write(at: u64, value: $type) {
            // SAFETY: as above.
            unsafe {
                asm!(concat!("mov [{at}], ", $register), at = in(reg) at, in($register) value, options(nostack, preserves_flags));
            }
        }
    };
}
register!(read8, write8, u8, "al");
register!(read16, write16, u16, "ax");
register!(read32, write32, u32, "eax");
register!(read64, write64, u64, "rax");

/// Reads `width` (1, 2, 4 or 8) bytes at `at`.
pub fn read(at: u64, width: u32) -> u64 {
    match width {
        1 => read8(at).into(),
        2 => read16(at).into(),
        4 => read32(at).into(),
        _ => read64(at),
    }
}

/// Writes `width` (1, 2, 4 or 8) bytes at `at`.
pub fn write(at: u64, width: u32, value: u64) {
    match width {
        1 => write8(at, value as u8),
        2 => write16(at, value as u16),
        4 => write32(at, value as u32),
        _ => write64(at, value),
    }
}

/// All ones, `width` bytes wide.
pub const fn ones(width: u32) -> u64 {
    if width >= 8 {
        u64::MAX
    } else {
        (1 << (8 * width)) - 1
    }
}

/// The time-stamp counter, after all earlier loads.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: reads only registers.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// Reads memory that a device may write at any time.
#[inline(always)]
pub fn shared_read<T: Copy>(at: *const T) -> T {
    // SAFETY: callers pass aligned pointers to memory that stays mapped.
    unsafe { ptr::read_volatile(at) }
}

/// Writes memory that a device may read at any time.
#[inline(always)]
pub fn shared_write<T: Copy>(at: *mut T, value: T) {
    // SAFETY: as above.
    unsafe { ptr::write_volatile(at, value) }
}

/// Orders earlier stores before later loads, as seen by a device.
#[inline(always)]
pub fn fence() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// An operation that runs in ring 0: assembly that keeps to the gate's few registers.
pub type Ring0 = unsafe extern "C" fn();

unsafe extern "C" {
    fn enter_ring0();
    pub fn r0_nop();
    fn r0_rdmsr();
    fn r0_wrmsr();
    fn r0_irq_on();
    fn r0_irq_off();
    fn r0_wait();
    fn r0_hlt();
    fn r0_lidt();
    fn r0_read_cr();
    fn r0_invlpg();
}

/// Registers in and out of a ring-0 operation.
#[derive(Clone, Copy, Default)]
pub struct Regs {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
}

/// Calls `operation` in ring 0; the error is the vector of the exception that it raised.
pub fn ring0(operation: Ring0, mut regs: Regs) -> Result<Regs, u8> {
    let fault: u64;
    // SAFETY: the gate saves nothing, so all that an operation or the stub may change is listed.
    unsafe {
        asm!(
            "call {gate}",
            gate = sym enter_ring0,
            in("rdi") operation,
            inout("rax") regs.rax,
            inout("rcx") regs.rcx,
            inout("rdx") regs.rdx,
            inout("rsi") regs.rsi,
            out("r11") fault,
        );
    }
    if fault == 0 {
        Ok(regs)
    } else {
        Err((fault - 1) as u8)
    }
}

/// Reads a model-specific register.
pub fn rdmsr(msr: u32) -> Result<u64, u8> {
    let regs = ring0(
        r0_rdmsr,
        Regs {
            rcx: msr.into(),
            ..Regs::default()
        },
    )?;
    Ok(regs.rdx << 32 | regs.rax & 0xffff_ffff)
}

/// Writes a model-specific register.
pub fn wrmsr(msr: u32, value: u64) -> Result<(), u8> {
    let regs = Regs {
        rcx: msr.into(),
        rax: value & 0xffff_ffff,
        rdx: value >> 32,
        rsi: 0,
    };
    ring0(r0_wrmsr, regs).map(|_| ())
}

/// Lets this CPU take interrupts.
pub fn irq_on() {
    let _ = ring0(r0_irq_on, Regs::default());
}

/// Keeps interrupts from this CPU.
pub fn irq_off() {
    let _ = ring0(r0_irq_off, Regs::default());
}

/// Sleeps until an interrupt has been taken. Interrupts must be off, so that none slips in before.
pub fn wait_for_interrupt() {
    let _ = ring0(r0_wait, Regs::default());
}

/// Halts this CPU with interrupts off.
pub fn ring0_halt() {
    let _ = ring0(r0_hlt, Regs::default());
}

/// CR0, CR2, CR3, CR4.
pub fn control_registers() -> [u64; 4] {
    let r = ring0(r0_read_cr, Regs::default()).unwrap_or_default();
    [r.rax, r.rcx, r.rdx, r.rsi]
}

/// Forgets the translation of one address.
pub fn invlpg(at: u64) {
    let _ = ring0(
        r0_invlpg,
        Regs {
            rsi: at,
            ..Regs::default()
        },
    );
}

/// Loads an empty IDT and raises an exception: a triple fault.
pub fn triple_fault() -> ! {
    static EMPTY: [u16; 5] = [0; 5];
    let _ = ring0(
        r0_lidt,
        Regs {
            rsi: EMPTY.as_ptr() as u64,
            ..Regs::default()
        },
    );
    loop {
        // SAFETY: never returns.
        unsafe { asm!("ud2") }
    }
}

/// This CPU's record.
pub fn this_cpu() -> &'static mut PerCpu {
    let base: u64;
    // SAFETY: every CPU's record holds its own index at this place; the record itself is found by
    // index because ring 3 cannot read the GS base.
    unsafe {
        asm!("mov {0}, gs:[{1} + {2}]", out(reg) base, sym percpu0, const core::mem::offset_of!(PerCpu, index), options(nostack));
        crate::mem::cpu_record(base as usize)
    }
}

/// Interrupts this CPU has taken with `vector`.
pub fn taken(vector: u8) -> u32 {
    shared_read(&raw const this_cpu().counters[usize::from(vector)])
}
