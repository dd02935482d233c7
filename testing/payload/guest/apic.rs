//! The local APIC and the I/O APIC, as drivers see them.

use crate::boot::{VEC_AUTO, VEC_SPURIOUS};
use crate::cpu::{self, outb, read32, write32};
use crate::time;
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where the local APIC lies.
pub const LAPIC: u64 = 0xfee0_0000;

/// Registers of the local APIC (Intel SDM vol. 3, table "Local APIC Register Address Map").
pub mod lapic {
    pub const ID: u64 = 0x20;
    pub const VERSION: u64 = 0x30;
    pub const EOI: u64 = 0xb0;
    pub const SPURIOUS: u64 = 0xf0;
    pub const ISR: u64 = 0x100;
    pub const IRR: u64 = 0x200;
    pub const ICR_LOW: u64 = 0x300;
    pub const ICR_HIGH: u64 = 0x310;
    pub const TIMER: u64 = 0x320;
    pub const TIMER_INITIAL: u64 = 0x380;
    pub const TIMER_CURRENT: u64 = 0x390;
    pub const TIMER_DIVIDE: u64 = 0x3e0;
}

/// Whether x2APIC mode is in use: registers are MSRs, and ids may be 255 and more.
static X2APIC: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn x2apic_eoi();
}

/// Changes to x2APIC mode on this CPU, and on the others as they start; false if there is none. The
/// interrupt stubs are rewritten: as built they end interrupts through memory.
pub fn use_x2apic() -> bool {
    const STUBS: u64 = 0x10_0000;
    /// Where in a stub the nine bytes of the store to the EOI register are, and their opcode.
    const STORE: u64 = 8;
    const MOV: u8 = 0xa3;
    if __cpuid_count(1, 0).ecx & 1 << 21 == 0 {
        return false;
    }
    X2APIC.store(true, Ordering::Release);
    let target = x2apic_eoi as *const () as u64;
    for vector in u64::from(VEC_AUTO)..u64::from(VEC_SPURIOUS) {
        let at = STUBS + 32 * vector + STORE;
        if cpu::read8(at) == MOV {
            // call x2apic_eoi; 4 x nop
            cpu::write8(at, 0xe8);
            cpu::write32(at + 1, target.wrapping_sub(at + 5) as u32);
            cpu::write32(at + 5, 0x9090_9090);
        }
    }
    enable();
    true
}

/// Whether x2APIC mode is in use.
pub fn is_x2apic() -> bool {
    X2APIC.load(Ordering::Acquire)
}

/// Reads a register of the local APIC.
pub fn get(register: u64) -> u32 {
    if is_x2apic() {
        cpu::rdmsr(0x800 + (register / 16) as u32).unwrap_or(0) as u32
    } else {
        read32(LAPIC + register)
    }
}

/// Writes a register of the local APIC.
pub fn set(register: u64, value: u32) {
    if is_x2apic() {
        let _ = cpu::wrmsr(0x800 + (register / 16) as u32, value.into());
    } else {
        write32(LAPIC + register, value);
    }
}

/// Lets this CPU's LAPIC deliver interrupts, and silences the 8259s, whose vectors after firmware
/// are those of exceptions.
pub fn enable() {
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    if is_x2apic() {
        // SDM vol. 3, 11.12.1: EN and EXTD.
        let _ = cpu::rdmsr(0x1b).and_then(|base| cpu::wrmsr(0x1b, base | 0xc00));
    }
    set(lapic::SPURIOUS, 0x100 | u32::from(VEC_SPURIOUS));
}

/// This CPU's APIC id.
pub fn id() -> u32 {
    let id = get(lapic::ID);
    if is_x2apic() { id } else { id >> 24 }
}

/// Ends the interrupt in service.
pub fn eoi() {
    set(lapic::EOI, 0);
}

/// Ends an interrupt that its stub left to ring 3, and lets the next come.
pub fn end() {
    eoi();
    cpu::irq_on();
}

/// Ends `vector` until it comes no more: false if it comes again and again, as it does while its wire
/// stays high.
pub fn end_for_good(vector: u8) -> bool {
    for _ in 0..20 {
        let before = cpu::taken(vector);
        end();
        time::pause(time::millis(5));
        if cpu::taken(vector) == before && !bit(lapic::ISR, vector) {
            return true;
        }
    }
    false
}

/// Whether `vector` is requested or in service (`at` is `lapic::IRR` or `lapic::ISR`).
pub fn bit(at: u64, vector: u8) -> bool {
    let word = get(at + u64::from(vector / 32) * 0x10);
    word & 1 << (vector % 32) != 0
}

/// Sends an inter-processor interrupt: `command` is the low word of the ICR.
pub fn send(to: u32, command: u32) {
    if is_x2apic() {
        let _ = cpu::wrmsr(0x830, u64::from(to) << 32 | u64::from(command));
    } else {
        write32(LAPIC + lapic::ICR_HIGH, to << 24);
        write32(LAPIC + lapic::ICR_LOW, command);
    }
}

static IOAPIC: AtomicU64 = AtomicU64::new(0xfec0_0000);

/// Where the I/O APIC lies (from the MADT).
pub fn ioapic_base() -> u64 {
    IOAPIC.load(Ordering::Relaxed)
}

/// Notes where the MADT puts the I/O APIC.
pub fn set_ioapic_base(at: u64) {
    IOAPIC.store(at, Ordering::Relaxed);
}

/// Reads a register of the I/O APIC (82093AA section 3.1: index at 0, window at 0x10).
pub fn ioapic_read(index: u32) -> u32 {
    write32(ioapic_base(), index);
    read32(ioapic_base() + 0x10)
}

/// Writes a register of the I/O APIC.
pub fn ioapic_write(index: u32, value: u32) {
    write32(ioapic_base(), index);
    write32(ioapic_base() + 0x10, value);
}

/// Pins of the I/O APIC.
pub fn pins() -> u32 {
    (ioapic_read(1) >> 16 & 0xff) + 1
}

/// Redirection entry bits.
pub const MASKED: u32 = 1 << 16;
pub const LEVEL: u32 = 1 << 15;
pub const REMOTE_IRR: u32 = 1 << 14;
pub const ACTIVE_LOW: u32 = 1 << 13;

/// Routes a pin to `vector` on the CPU with APIC id `to`; `flags` are redirection entry bits.
pub fn route(pin: u32, vector: u8, flags: u32, to: u32) {
    ioapic_write(0x10 + 2 * pin, MASKED);
    ioapic_write(0x11 + 2 * pin, to << 24);
    ioapic_write(0x10 + 2 * pin, u32::from(vector) | flags);
}

/// Masks a pin.
pub fn mask(pin: u32) {
    ioapic_write(0x10 + 2 * pin, MASKED);
}

/// Changes the flag bits of a pin's redirection entry, keeping vector and destination.
pub fn set_flags(pin: u32, flags: u32) {
    let low = ioapic_read(0x10 + 2 * pin);
    ioapic_write(0x10 + 2 * pin, low & 0xfff | flags);
}
