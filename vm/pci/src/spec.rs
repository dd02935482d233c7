//! Register offsets and bits: PCI Local Bus 3.0 §6.1 and §6.8.2, PCI Power Management 1.2 §3.2,
//! PCI Express Base 5.0 §7.5.3.

/// Offsets in a type 0 header (PCI Local Bus 3.0 figure 6-1).
pub(crate) mod header {
    pub(crate) const VENDOR: usize = 0x00;
    pub(crate) const DEVICE: usize = 0x02;
    pub(crate) const COMMAND: usize = 0x04;
    pub(crate) const STATUS: usize = 0x06;
    pub(crate) const REVISION: usize = 0x08;
    pub(crate) const INTERFACE: usize = 0x09;
    pub(crate) const SUBCLASS: usize = 0x0a;
    pub(crate) const CLASS: usize = 0x0b;
    pub(crate) const CACHE_LINE: usize = 0x0c;
    pub(crate) const TYPE: usize = 0x0e;
    pub(crate) const BAR0: usize = 0x10;
    pub(crate) const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub(crate) const SUBSYSTEM: usize = 0x2e;
    pub(crate) const CAPABILITIES: usize = 0x34;
    pub(crate) const INTERRUPT_LINE: usize = 0x3c;
    pub(crate) const INTERRUPT_PIN: usize = 0x3d;
    /// First byte behind the header.
    pub(crate) const END: usize = 0x40;
    /// First byte behind what a conventional function has; capabilities end here.
    pub(crate) const CONVENTIONAL_END: usize = 0x100;
    /// Header type bit: the device has more than one function.
    pub(crate) const MULTI_FUNCTION: u8 = 0x80;
}

/// Command register (PCI Local Bus 3.0 table 6-1).
pub(crate) mod command {
    pub(crate) const IO: u16 = 1 << 0;
    pub(crate) const MEMORY: u16 = 1 << 1;
    pub(crate) const MASTER: u16 = 1 << 2;
    pub(crate) const PARITY: u16 = 1 << 6;
    pub(crate) const SERR: u16 = 1 << 8;
    pub(crate) const INTX_DISABLE: u16 = 1 << 10;
    /// What a guest may change.
    pub(crate) const WRITABLE: u16 = IO | MEMORY | MASTER | PARITY | SERR | INTX_DISABLE;
}

/// Status register (PCI Local Bus 3.0 table 6-2).
pub(crate) mod status {
    pub(crate) const INTERRUPT: u16 = 1 << 3;
    pub(crate) const CAPABILITIES: u16 = 1 << 4;
    /// Error bits that a guest clears by writing ones: master parity error, signalled and received
    /// aborts, signalled system error, detected parity error.
    pub(crate) const CLEARABLE: u16 = 0xf900;
}

/// Flag bits of a base address register (PCI Local Bus 3.0 §6.2.5.1).
pub(crate) mod bar {
    pub(crate) const IO: u32 = 1;
    pub(crate) const MEMORY64: u32 = 4;
    pub(crate) const PREFETCHABLE: u32 = 8;
}

/// Capability ids (PCI Local Bus 3.0 appendix H).
pub(crate) mod capability {
    pub(crate) const POWER: u8 = 0x01;
    pub(crate) const VENDOR: u8 = 0x09;
    pub(crate) const EXPRESS: u8 = 0x10;
    pub(crate) const MSIX: u8 = 0x11;
}

/// Power management capability (PCI Power Management 1.2 §3.2).
pub(crate) mod power {
    /// PMCSR, counted from the capability.
    pub(crate) const CONTROL: usize = 4;
    /// Version 3, no auxiliary power, neither D1 nor D2, no PME.
    pub(crate) const CAPABILITIES: u16 = 3;
    /// PMCSR: the transition from D3hot to D0 keeps all state.
    pub(crate) const NO_SOFT_RESET: u16 = 1 << 3;
    /// PMCSR: the power state field.
    pub(crate) const STATE: u8 = 3;
    pub(crate) const D0: u8 = 0;
    pub(crate) const D3_HOT: u8 = 3;
}

/// PCI Express capability (PCI Express Base 5.0 §7.5.3).
pub(crate) mod express {
    /// Length of the capability's version 2, in bytes.
    pub(crate) const LEN: usize = 0x3c;
    /// Version 2 of a root complex integrated endpoint.
    pub(crate) const CAPABILITIES: u16 = 2 | 9 << 4;
    /// Role-based error reporting, as every function since 1.1 has; payloads of 128 bytes. Without
    /// function-level reset: it would have to finish within 100 ms (§6.6.2) however long the
    /// backend takes to drain, and a configuration write must not block.
    pub(crate) const DEVICE: u32 = 1 << 15;
    /// Device control, counted from the capability.
    pub(crate) const DEVICE_CONTROL: usize = 8;
    /// Device status, counted from the capability.
    pub(crate) const DEVICE_STATUS: usize = 10;
    /// Reset value: relaxed ordering, no snoop, read requests of 512 bytes.
    pub(crate) const DEVICE_CONTROL_RESET: u16 = 1 << 4 | 1 << 11 | 2 << 12;
    /// Error reporting enables, relaxed ordering, no snoop, maximum read request.
    pub(crate) const DEVICE_CONTROL_WRITABLE: u16 = 0xf | 1 << 4 | 1 << 11 | 7 << 12;
    /// The four error-detected bits.
    pub(crate) const DEVICE_STATUS_CLEARABLE: u16 = 0xf;
}

/// MSI-X (PCI Local Bus 3.0 §6.8.2).
pub(crate) mod msix {
    /// Message control, counted from the capability.
    pub(crate) const CONTROL: usize = 2;
    pub(crate) const ENABLE: u16 = 1 << 15;
    pub(crate) const FUNCTION_MASK: u16 = 1 << 14;
    /// Most vectors a function can have.
    pub(crate) const MAX_VECTORS: u16 = 2048;
    /// Bytes of a table entry.
    pub(crate) const ENTRY: u64 = 16;
}
