//! The local APIC (in xAPIC mode) and the I/O APIC, as drivers see them.

use crate::boot::VEC_SPURIOUS;
use crate::cpu::{outb, read32, write32};
use core::sync::atomic::{AtomicU64, Ordering};

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

/// Lets this CPU's LAPIC deliver interrupts, and silences the 8259s, whose vectors after firmware
/// are those of exceptions.
pub fn enable() {
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    write32(LAPIC + lapic::SPURIOUS, 0x100 | u32::from(VEC_SPURIOUS));
}

/// This CPU's APIC id.
pub fn id() -> u32 {
    read32(LAPIC + lapic::ID) >> 24
}

/// Ends the interrupt in service.
pub fn eoi() {
    write32(LAPIC + lapic::EOI, 0);
}

/// Whether `vector` is requested or in service (`at` is `lapic::IRR` or `lapic::ISR`).
pub fn bit(at: u64, vector: u8) -> bool {
    let word = read32(LAPIC + at + u64::from(vector / 32) * 0x10);
    word & 1 << (vector % 32) != 0
}

/// Sends an inter-processor interrupt: `command` is the low word of the ICR.
pub fn send(to: u32, command: u32) {
    write32(LAPIC + lapic::ICR_HIGH, to << 24);
    write32(LAPIC + lapic::ICR_LOW, command);
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
