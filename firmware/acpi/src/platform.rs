//! The description that ACPI tables are made of.

use std::ops::{Range, RangeInclusive};

/// Everything the tables say about a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AcpiPlatform {
    /// Processors in the order of their numbers; the first one boots.
    pub cpus: Vec<CpuEntry>,
    /// I/O interrupt controllers.
    pub ioapics: Vec<IoapicEntry>,
    /// ISA interrupts that are not identity-mapped edge-triggered active-high global interrupts.
    pub overrides: Vec<SourceOverride>,
    /// Fixed power management hardware; without it the machine is hardware-reduced.
    pub pm: Option<PmBlock>,
    /// Sleep registers of a hardware-reduced machine; not used when `pm` is present.
    pub sleep: Option<SleepRegisters>,
    /// Reset register.
    pub reset: Option<ResetRegister>,
    /// Memory-mapped PCI configuration space.
    pub ecam: Option<Ecam>,
    /// PCI host bridge.
    pub pci_root: Option<PciRoot>,
    /// Serial console to be found without the DSDT.
    pub spcr: Option<Spcr>,
    /// A pair of 8259 interrupt controllers is present.
    pub pic: bool,
    /// An 8042 keyboard controller is present: tells the guest to look for it, adds no device
    /// (see [`parts::i8042`](crate::parts::i8042)).
    pub i8042: bool,
    /// A CMOS clock with its century in register 0x32 is present: see [`parts::rtc`](crate::parts::rtc).
    pub rtc: bool,
    /// VGA hardware is present, so the guest may probe it and the host bridge decodes its window.
    pub vga: bool,
    /// AML from device kinds.
    pub fragments: Vec<Fragment>,
    /// Whole tables from device kinds.
    pub extra_tables: Vec<ExtraTable>,
}

/// One processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuEntry {
    /// Local APIC id, or x2APIC id.
    pub apic_id: u32,
    /// Number that ties the MADT entry to the DSDT's processor device.
    pub processor_uid: u32,
    /// Present at boot; otherwise it may be plugged later.
    pub enabled: bool,
}

/// One I/O APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoapicEntry {
    /// I/O APIC id.
    pub id: u8,
    /// Guest physical address of its registers.
    pub address: u32,
    /// First global system interrupt of its pins.
    pub gsi_base: u32,
}

/// When an interrupt line counts as active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polarity {
    /// Active high.
    High,
    /// Active low.
    Low,
}

/// How an interrupt line is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// On its rising (active) edge.
    Edge,
    /// As long as it is active.
    Level,
}

/// An ISA interrupt that arrives differently (ACPI 6.5 §5.2.12.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceOverride {
    /// ISA interrupt number.
    pub isa_irq: u8,
    /// Global system interrupt it arrives at.
    pub gsi: u32,
    /// Active level.
    pub polarity: Polarity,
    /// Sampling.
    pub trigger: Trigger,
}

/// Fixed power management registers in I/O space: PM1a event at `base` (4 bytes), PM1a control at `base + 4`
/// (2 bytes), a 32-bit PM timer at `base + 8` (ACPI 6.5 §4.8.3). There is no SMI command port: the hardware is
/// always in ACPI mode, so it must read SCI_EN as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PmBlock {
    /// First port.
    pub base: u16,
    /// Global system interrupt of the SCI.
    pub sci_gsi: u32,
    /// General purpose events.
    pub gpe0: Option<GpeBlock>,
    /// SLP_TYP value that switches the machine off, 0 to 7.
    pub s5_type: u8,
}

/// A general purpose event block (ACPI 6.5 §4.8.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpeBlock {
    /// First port: status registers, then as many enable registers.
    pub port: u16,
    /// Bytes of both halves together; even.
    pub len: u8,
}

/// Sleep registers of a hardware-reduced machine, one byte each in I/O space (ACPI 6.5 §4.8.3.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SleepRegisters {
    /// SLEEP_CONTROL_REG port.
    pub control: u16,
    /// SLEEP_STATUS_REG port.
    pub status: u16,
    /// SLP_TYP value that switches the machine off, 0 to 7.
    pub s5_type: u8,
}

/// A byte port that resets the machine when `value` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetRegister {
    /// I/O port.
    pub port: u16,
    /// Byte to write.
    pub value: u8,
}

/// Memory-mapped configuration space of PCI segment 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ecam {
    /// Guest physical address that bus 0 has or would have.
    pub base: u64,
    /// First bus decoded.
    pub start_bus: u8,
    /// Last bus decoded.
    pub end_bus: u8,
}

impl Ecam {
    /// Guest physical range that is decoded: 1 MiB per bus.
    pub fn range(&self) -> Range<u64> {
        let bus = |number: u64| self.base.saturating_add(number << 20);
        bus(self.start_bus.into())..bus(u64::from(self.end_bus) + 1)
    }
}

/// PCI Express control that may be left to the guest without risk: power management events, error reporting and
/// the capability structures (PCI Firmware 3.3 §4.5.1). Native hot-plug needs slots and is not in it.
pub const NATIVE_CONTROL: u32 = 1 << 2 | 1 << 3 | 1 << 4;

/// The PCI host bridge `\_SB.PCI0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciRoot {
    /// Buses below the bridge.
    pub buses: RangeInclusive<u8>,
    /// Ports passed on to PCI devices; CF8 to CFF, the bridge's own, must not be among them.
    pub io: Vec<RangeInclusive<u16>>,
    /// Memory below 4 GiB passed on.
    pub mmio32: Range<u64>,
    /// Memory above 4 GiB passed on.
    pub mmio64: Option<Range<u64>>,
    /// Interrupt pins of the devices on the root bus.
    pub prt: Vec<PrtEntry>,
    /// PCI Express features the guest may control itself, bits of the `_OSC` control field.
    pub native_control: u32,
}

/// Where one interrupt pin of a device on the root bus arrives: level-triggered, active low or as the I/O APIC
/// is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrtEntry {
    /// Device number, 0 to 31.
    pub device: u8,
    /// 0 for INTA to 3 for INTD.
    pub pin: u8,
    /// Global system interrupt.
    pub gsi: u32,
}

/// A 16550 serial console in I/O space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spcr {
    /// First port.
    pub port: u16,
    /// Global system interrupt.
    pub gsi: u32,
    /// 9600, 19200, 57600 or 115200; anything else means "as it is set".
    pub baud: u32,
}

/// Where a piece of AML goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The root of the name space.
    Root,
    /// `\_SB`.
    SystemBus,
    /// `\_SB.PCI0`; only with a [`PciRoot`].
    Pci0,
    /// `\_GPE`: methods named after general purpose events.
    Gpe,
}

/// AML of a device kind, complete terms, taken over byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Where it goes.
    pub scope: Scope,
    /// Encoded terms.
    pub aml: Vec<u8>,
}

/// A table of a device kind; header and checksum are added here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraTable {
    /// Four letters.
    pub signature: [u8; 4],
    /// Revision of the table's definition.
    pub revision: u8,
    /// What follows the 36-byte header.
    pub body: Vec<u8>,
}
