//! PCI: configuration space through CF8/CFC and ECAM, BARs, capabilities, MSI-X.

use crate::cpu::{self, inb, inl, inw, ones, outb, outl, outw};
use crate::{acpi, mem};
use core::sync::atomic::{AtomicU64, Ordering};

/// Offsets in a type 0 header (PCI Local Bus 3.0, 6.1).
pub mod header {
    pub const VENDOR: u16 = 0x00;
    pub const DEVICE: u16 = 0x02;
    pub const COMMAND: u16 = 0x04;
    pub const STATUS: u16 = 0x06;
    pub const REVISION: u16 = 0x08;
    pub const CLASS: u16 = 0x0a;
    pub const TYPE: u16 = 0x0e;
    pub const BAR0: u16 = 0x10;
    pub const SUBSYSTEM_ID: u16 = 0x2e;
    pub const ROM: u16 = 0x30;
    pub const CAPABILITIES: u16 = 0x34;
    pub const LINE: u16 = 0x3c;
    pub const PIN: u16 = 0x3d;
}

/// Command register bits.
pub mod command {
    pub const IO: u16 = 1;
    pub const MEMORY: u16 = 2;
    pub const MASTER: u16 = 4;
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// One function, reached through CF8/CFC.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Function {
    pub bus: u8,
    /// Device number shifted by 3, and function.
    pub devfn: u8,
}

/// A base address register, sized.
#[derive(Clone, Copy, Default)]
pub struct Bar {
    pub address: u64,
    pub size: u64,
    pub is_io: bool,
    pub is_64bit: bool,
    pub prefetchable: bool,
}

impl Function {
    /// The function at bus, device, function.
    pub fn at(bus: u8, device: u8, function: u8) -> Self {
        Self {
            bus,
            devfn: device << 3 | function & 7,
        }
    }

    /// Its device number.
    pub fn device(self) -> u8 {
        self.devfn >> 3
    }

    fn select(self, offset: u16) -> u16 {
        let address = 1 << 31
            | u32::from(self.bus) << 16
            | u32::from(self.devfn) << 8
            | u32::from(offset & 0xfc);
        outl(0xcf8, address);
        0xcfc + (offset & 3)
    }

    /// Reads `width` bytes (1, 2 or 4).
    pub fn read(self, offset: u16, width: u32) -> u32 {
        let port = self.select(offset);
        match width {
            1 => inb(port).into(),
            2 => inw(port).into(),
            _ => inl(port),
        }
    }

    /// Writes `width` bytes (1, 2 or 4).
    pub fn write(self, offset: u16, width: u32, value: u32) {
        let port = self.select(offset);
        match width {
            1 => outb(port, value as u8),
            2 => outw(port, value as u16),
            _ => outl(port, value),
        }
    }

    pub fn read8(self, offset: u16) -> u8 {
        self.read(offset, 1) as u8
    }
    pub fn read16(self, offset: u16) -> u16 {
        self.read(offset, 2) as u16
    }
    pub fn read32(self, offset: u16) -> u32 {
        self.read(offset, 4)
    }
    pub fn write16(self, offset: u16, value: u16) {
        self.write(offset, 2, value.into());
    }
    pub fn write32(self, offset: u16, value: u32) {
        self.write(offset, 4, value);
    }

    /// Vendor and device id.
    pub fn ids(self) -> (u16, u16) {
        (self.read16(header::VENDOR), self.read16(header::DEVICE))
    }

    /// Whether a function answers.
    pub fn exists(self) -> bool {
        self.read16(header::VENDOR) != 0xffff
    }

    /// The address of its ECAM page, if the machine has ECAM for its bus.
    pub fn ecam(self) -> Option<u64> {
        let (base, first, last) = acpi::ecam()?;
        if self.bus < first || self.bus > last {
            return None;
        }
        let at = base + (u64::from(self.bus - first) << 20) + (u64::from(self.devfn) << 12);
        mem::map(at, 4096);
        Some(at)
    }

    /// Offsets of its capabilities and their ids, at most 48 (a loop ends there).
    pub fn capabilities(self) -> impl Iterator<Item = (u8, u16)> {
        let mut next = if self.read16(header::STATUS) & 0x10 == 0 {
            0
        } else {
            self.read8(header::CAPABILITIES) & 0xfc
        };
        let mut left = 48;
        core::iter::from_fn(move || {
            if next < 0x40 || left == 0 {
                return None;
            }
            left -= 1;
            let at = u16::from(next);
            next = self.read8(at + 1) & 0xfc;
            Some((self.read8(at), at))
        })
    }

    /// The offset of the first capability with this id.
    pub fn capability(self, id: u8) -> Option<u16> {
        self.capabilities()
            .find(|&(found, _)| found == id)
            .map(|(_, at)| at)
    }

    /// Sizes BAR `index` with decoding off, and puts its address back.
    pub fn bar(self, index: u8) -> Bar {
        let at = header::BAR0 + 4 * u16::from(index);
        let enabled = self.read16(header::COMMAND);
        self.write16(header::COMMAND, enabled & !3);
        let low = self.read32(at);
        self.write32(at, u32::MAX);
        let mask = self.read32(at);
        self.write32(at, low);
        let mut bar = Bar::default();
        if low & 1 != 0 {
            bar = Bar {
                address: (low & !3).into(),
                size: u64::from((mask & !3) as u16).wrapping_neg() & 0xffff,
                is_io: true,
                ..bar
            };
        } else if low & 6 == 4 {
            let high = self.read32(at + 4);
            self.write32(at + 4, u32::MAX);
            let high_mask = self.read32(at + 4);
            self.write32(at + 4, high);
            let mask = u64::from(high_mask) << 32 | u64::from(mask & !15);
            bar = Bar {
                address: u64::from(high) << 32 | u64::from(low & !15),
                size: mask.wrapping_neg(),
                is_64bit: true,
                ..bar
            };
            bar.prefetchable = low & 8 != 0;
        } else if mask & !15 != 0 {
            bar = Bar {
                address: (low & !15).into(),
                size: u64::from((mask & !15).wrapping_neg()),
                ..bar
            };
            bar.prefetchable = low & 8 != 0;
        }
        self.write16(header::COMMAND, enabled);
        bar
    }

    /// Turns decoding and bus mastering on, and gives BARs that firmware left at zero an address.
    pub fn enable(self) {
        let mut index = 0;
        while index < 6 {
            let bar = self.bar(index);
            if bar.size != 0 && bar.address == 0 {
                self.place(index, bar);
            }
            index += if bar.is_64bit { 2 } else { 1 };
        }
        let command = self.read16(header::COMMAND);
        self.write16(
            header::COMMAND,
            command | command::IO | command::MEMORY | command::MASTER,
        );
    }

    /// Places a BAR: direct boot may leave this to the guest.
    fn place(self, index: u8, bar: Bar) {
        static NEXT_MEMORY: AtomicU64 = AtomicU64::new(0);
        static NEXT_IO: AtomicU64 = AtomicU64::new(0);
        let (next, first) = if bar.is_io {
            (&NEXT_IO, crate::cmdline::number_or("pci_io", 0xc000))
        } else {
            (
                &NEXT_MEMORY,
                crate::cmdline::number_or("pci_mem", 0xe800_0000),
            )
        };
        let from = next.load(Ordering::Relaxed).max(first);
        let address = from.next_multiple_of(bar.size);
        next.store(address + bar.size, Ordering::Relaxed);
        let at = header::BAR0 + 4 * u16::from(index);
        self.write32(at, address as u32);
        if bar.is_64bit {
            self.write32(at + 4, (address >> 32) as u32);
        }
    }

    /// The address of a memory BAR, mapped.
    pub fn map_bar(self, index: u8) -> Option<(u64, u64)> {
        let bar = self.bar(index);
        if bar.size == 0 || bar.is_io || bar.address == 0 {
            return None;
        }
        mem::map(bar.address, bar.size);
        Some((bar.address, bar.size))
    }

    /// Its MSI-X table, if it has one.
    pub fn msix(self) -> Option<Msix> {
        let at = self.capability(0x11)?;
        let table = self.read32(at + 4);
        let pba = self.read32(at + 8);
        let (table_bar, _) = self.map_bar((table & 7) as u8)?;
        let (pba_bar, _) = self.map_bar((pba & 7) as u8)?;
        Some(Msix {
            function: self,
            at,
            table: table_bar + u64::from(table & !7),
            pba: pba_bar + u64::from(pba & !7),
            vectors: (self.read16(at + 2) & 0x7ff) + 1,
        })
    }
}

/// The MSI-X structures of a function (PCI Local Bus 3.0, 6.8.2).
#[derive(Clone, Copy)]
pub struct Msix {
    function: Function,
    at: u16,
    pub table: u64,
    pub pba: u64,
    pub vectors: u16,
}

impl Msix {
    /// Turns it on or off, and masks the whole function or not.
    pub fn control(self, enable: bool, mask_all: bool) {
        let value = u16::from(enable) << 15 | u16::from(mask_all) << 14;
        self.function.write16(self.at + 2, value);
    }

    /// The control word as it reads.
    pub fn read_control(self) -> u16 {
        self.function.read16(self.at + 2)
    }

    /// Lets entry `entry` raise `vector` on the CPU with APIC id `to`, and unmasks it.
    pub fn set(self, entry: u16, vector: u8, to: u32) {
        let at = self.table + 16 * u64::from(entry);
        cpu::write32(at + 12, 1);
        cpu::write32(at, 0xfee0_0000 | to << 12);
        cpu::write32(at + 4, 0);
        cpu::write32(at + 8, vector.into());
        cpu::write32(at + 12, 0);
    }

    /// Masks or unmasks an entry.
    pub fn mask(self, entry: u16, masked: bool) {
        cpu::write32(self.table + 16 * u64::from(entry) + 12, masked.into());
    }

    /// Whether an entry's pending bit is set.
    pub fn pending(self, entry: u16) -> bool {
        cpu::read32(self.pba + u64::from(entry / 32) * 4) & 1 << (entry % 32) != 0
    }
}

/// Whether the machine answers at CF8/CFC with a host bridge.
pub fn present() -> bool {
    Function::at(0, 0, 0).exists()
}

/// Every function of the buses that can be reached: bus 0 and, through bridges, those behind it.
pub fn functions() -> impl Iterator<Item = Function> {
    let mut last_bus = 0;
    let mut at: u32 = 0;
    let mut skip_functions = false;
    let present = present();
    core::iter::from_fn(move || {
        while present && (at >> 8) <= last_bus && at < 1 << 16 {
            let f = Function {
                bus: (at >> 8) as u8,
                devfn: at as u8,
            };
            at += 1;
            if f.devfn & 7 == 0 {
                skip_functions = false;
            } else if skip_functions {
                continue;
            }
            if !f.exists() {
                skip_functions |= f.devfn & 7 == 0;
                continue;
            }
            let kind = f.read8(header::TYPE);
            if f.devfn & 7 == 0 {
                skip_functions = kind & 0x80 == 0;
            }
            if kind & 0x7f == 1 {
                last_bus = last_bus.max(u32::from(f.read8(0x1a)));
            }
            return Some(f);
        }
        None
    })
}

/// Reads an ECAM register with a width of 1, 2, 4 or 8.
pub fn ecam_read(page: u64, offset: u16, width: u32) -> u64 {
    cpu::read(page + u64::from(offset), width) & ones(width)
}
