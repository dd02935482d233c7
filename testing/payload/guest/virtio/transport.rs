//! Where a virtio device's registers lie: behind a PCI function (virtio 1.2, 4.1) or in a window of
//! memory (4.2).

use super::queue::Queue;
use crate::cpu::{read8, read16, read32, write8, write16, write32};
use crate::pci::{self, Function, Msix};
use crate::{acpi, apic, cmdline, mem, time};

/// Offsets in the PCI common configuration (virtio 1.2, 4.1.4.3).
pub mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DEVICE_FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const CONFIG_VECTOR: u64 = 16;
    pub const QUEUES: u64 = 18;
    pub const STATUS: u64 = 20;
    pub const GENERATION: u64 = 21;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    pub const QUEUE_DESC: u64 = 32;
    pub const QUEUE_DRIVER: u64 = 40;
    pub const QUEUE_DEVICE: u64 = 48;
}

/// Offsets in an MMIO device's window (virtio 1.2, 4.2.2).
pub mod mmio {
    pub const MAGIC: u64 = 0;
    pub const VERSION: u64 = 4;
    pub const DEVICE_ID: u64 = 8;
    pub const VENDOR: u64 = 12;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM_MAX: u64 = 0x34;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_DRIVER: u64 = 0x90;
    pub const QUEUE_DEVICE: u64 = 0xa0;
    pub const GENERATION: u64 = 0xfc;
    pub const CONFIG: u64 = 0x100;
}

/// The structures of a PCI device.
#[derive(Clone, Copy)]
pub struct PciDevice {
    pub function: Function,
    pub common: u64,
    pub common_len: u32,
    pub notify: u64,
    pub notify_multiplier: u32,
    pub isr: u64,
    pub config: u64,
    pub config_len: u32,
    msix: Option<Msix>,
}

/// An MMIO device's window.
#[derive(Clone, Copy)]
pub struct MmioDevice {
    pub base: u64,
    pub len: u64,
    pub gsi: u32,
}

/// One device's registers.
#[derive(Clone, Copy)]
pub enum Transport {
    Pci(PciDevice),
    Mmio(MmioDevice),
}

/// Where a queue is notified, and how.
#[derive(Clone, Copy, Default)]
pub struct NotifyAt {
    pub address: u64,
    pub is_mmio: bool,
}

impl Transport {
    /// The device type; 0 for an empty MMIO slot.
    pub fn kind(&self) -> u32 {
        match self {
            Self::Pci(d) => u32::from(d.function.ids().1).wrapping_sub(0x1040),
            Self::Mmio(d) => read32(d.base + mmio::DEVICE_ID),
        }
    }

    /// "pci" or "mmio".
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pci(_) => "pci",
            Self::Mmio(_) => "mmio",
        }
    }

    /// A number by which a person finds the device: the PCI device number or the MMIO base.
    pub fn place(&self) -> u64 {
        match self {
            Self::Pci(d) => u64::from(d.function.bus) << 8 | u64::from(d.function.devfn),
            Self::Mmio(d) => d.base,
        }
    }

    /// The status register.
    pub fn status(&self) -> u8 {
        match self {
            Self::Pci(d) => read8(d.common + common::STATUS),
            Self::Mmio(d) => read32(d.base + mmio::STATUS) as u8,
        }
    }

    /// Writes the status register.
    pub fn set_status(&self, status: u8) {
        match self {
            Self::Pci(d) => write8(d.common + common::STATUS, status),
            Self::Mmio(d) => write32(d.base + mmio::STATUS, status.into()),
        }
    }

    /// Resets and waits until the device says that it has; false if it never does.
    pub fn reset(&self) -> bool {
        self.set_status(0);
        time::until(super::patience(), || self.status() == 0)
    }

    /// One 32-bit word of the offered features.
    pub fn feature_word(&self, select: u32) -> u32 {
        match self {
            Self::Pci(d) => {
                write32(d.common + common::DEVICE_FEATURE_SELECT, select);
                read32(d.common + common::DEVICE_FEATURE)
            }
            Self::Mmio(d) => {
                write32(d.base + mmio::DEVICE_FEATURES_SEL, select);
                read32(d.base + mmio::DEVICE_FEATURES)
            }
        }
    }

    /// The offered features.
    pub fn features(&self) -> u64 {
        u64::from(self.feature_word(1)) << 32 | u64::from(self.feature_word(0))
    }

    /// Accepts features.
    pub fn accept(&self, features: u64) {
        for (select, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            match self {
                Self::Pci(d) => {
                    write32(d.common + common::DRIVER_FEATURE_SELECT, select);
                    write32(d.common + common::DRIVER_FEATURE, word);
                }
                Self::Mmio(d) => {
                    write32(d.base + mmio::DRIVER_FEATURES_SEL, select);
                    write32(d.base + mmio::DRIVER_FEATURES, word);
                }
            }
        }
    }

    /// Queues the device has. MMIO does not say: those with a size are counted.
    pub fn queues(&self) -> u16 {
        match self {
            Self::Pci(d) => read16(d.common + common::QUEUES),
            Self::Mmio(_) => (0..64).take_while(|&index| self.select(index) != 0).count() as u16,
        }
    }

    /// Selects a queue; its greatest size, 0 if it does not exist.
    pub fn select(&self, index: u16) -> u16 {
        match self {
            Self::Pci(d) => {
                write16(d.common + common::QUEUE_SELECT, index);
                read16(d.common + common::QUEUE_SIZE)
            }
            Self::Mmio(d) => {
                write32(d.base + mmio::QUEUE_SEL, index.into());
                read32(d.base + mmio::QUEUE_NUM_MAX) as u16
            }
        }
    }

    /// Writes the three addresses of the selected queue.
    pub fn set_addresses(&self, desc: u64, driver: u64, device: u64) {
        let base = match self {
            Self::Pci(d) => d.common,
            Self::Mmio(d) => d.base,
        };
        let offsets = match self {
            Self::Pci(_) => [
                common::QUEUE_DESC,
                common::QUEUE_DRIVER,
                common::QUEUE_DEVICE,
            ],
            Self::Mmio(_) => [mmio::QUEUE_DESC, mmio::QUEUE_DRIVER, mmio::QUEUE_DEVICE],
        };
        for (offset, address) in offsets.into_iter().zip([desc, driver, device]) {
            write32(base + offset, address as u32);
            write32(base + offset + 4, (address >> 32) as u32);
        }
    }

    /// Writes the size of the selected queue.
    pub fn set_size(&self, size: u16) {
        match self {
            Self::Pci(d) => write16(d.common + common::QUEUE_SIZE, size),
            Self::Mmio(d) => write32(d.base + mmio::QUEUE_NUM, size.into()),
        }
    }

    /// Enables the selected queue.
    pub fn enable(&self) {
        match self {
            Self::Pci(d) => write16(d.common + common::QUEUE_ENABLE, 1),
            Self::Mmio(d) => write32(d.base + mmio::QUEUE_READY, 1),
        }
    }

    /// Whether the selected queue is enabled.
    pub fn is_enabled(&self) -> bool {
        match self {
            Self::Pci(d) => read16(d.common + common::QUEUE_ENABLE) == 1,
            Self::Mmio(d) => read32(d.base + mmio::QUEUE_READY) == 1,
        }
    }

    /// Gives the device a queue, already selected by `select`, and where to notify it.
    pub fn install(&self, queue: &Queue, vector: Option<u16>) -> Result<NotifyAt, &'static str> {
        self.set_size(queue.size);
        if let Self::Pci(d) = self {
            let vector = vector.unwrap_or(0xffff);
            write16(d.common + common::QUEUE_VECTOR, vector);
            if read16(d.common + common::QUEUE_VECTOR) != vector {
                return Err("queue vector refused");
            }
        }
        self.set_addresses(queue.desc, queue.avail, queue.used);
        self.enable();
        if !self.is_enabled() {
            return Err("queue does not become enabled");
        }
        Ok(self.notify_at(queue.index))
    }

    /// Where a queue is notified.
    pub fn notify_at(&self, index: u16) -> NotifyAt {
        match self {
            Self::Pci(d) => {
                write16(d.common + common::QUEUE_SELECT, index);
                let off = read16(d.common + common::QUEUE_NOTIFY_OFF);
                let address = d.notify + u64::from(off) * u64::from(d.notify_multiplier);
                NotifyAt {
                    address,
                    is_mmio: false,
                }
            }
            Self::Mmio(d) => NotifyAt {
                address: d.base + mmio::QUEUE_NOTIFY,
                is_mmio: true,
            },
        }
    }

    /// Which MSI-X entry configuration changes use.
    pub fn set_config_vector(&self, entry: u16) {
        if let Self::Pci(d) = self {
            write16(d.common + common::CONFIG_VECTOR, entry);
        }
    }

    /// MSI-X, if the device has it.
    pub fn msix(&self) -> Option<Msix> {
        match self {
            Self::Pci(d) => d.msix,
            Self::Mmio(_) => None,
        }
    }

    /// Reads the interrupt status. On PCI that clears it and lowers the wire (virtio 1.2, 4.1.4.5);
    /// on MMIO it does not.
    pub fn interrupt_status(&self) -> u32 {
        match self {
            Self::Pci(d) => read8(d.isr).into(),
            Self::Mmio(d) => read32(d.base + mmio::INTERRUPT_STATUS),
        }
    }

    /// Acknowledges interrupts.
    pub fn acknowledge(&self, bits: u32) {
        match self {
            Self::Pci(d) => {
                let _ = read8(d.isr);
            }
            Self::Mmio(d) => write32(d.base + mmio::INTERRUPT_ACK, bits),
        }
    }

    /// The I/O APIC pin of its wire. For PCI the interrupt line register is believed.
    pub fn gsi(&self) -> Option<u32> {
        match self {
            Self::Pci(d) => {
                let line = d.function.read8(pci::header::LINE);
                let pin = d.function.read8(pci::header::PIN);
                let line = cmdline::value("intx")
                    .and_then(cmdline::number)
                    .map_or(line, |n| n as u8);
                (pin != 0 && line != 0 && line != 0xff).then_some(line.into())
            }
            Self::Mmio(d) => (d.gsi < apic::pins()).then_some(d.gsi),
        }
    }

    /// The configuration generation.
    pub fn generation(&self) -> u32 {
        match self {
            Self::Pci(d) => read8(d.common + common::GENERATION).into(),
            Self::Mmio(d) => read32(d.base + mmio::GENERATION),
        }
    }

    /// Where the device-specific configuration lies.
    pub fn config(&self) -> u64 {
        match self {
            Self::Pci(d) => d.config,
            Self::Mmio(d) => d.base + mmio::CONFIG,
        }
    }

    /// A 64-bit field of the configuration, read in halves as both transports allow.
    pub fn config64(&self, offset: u64) -> u64 {
        loop {
            let before = self.generation();
            let low = read32(self.config() + offset);
            let high = read32(self.config() + offset + 4);
            if self.generation() == before {
                return u64::from(high) << 32 | u64::from(low);
            }
        }
    }
}

/// Virtio devices on PCI.
pub fn pci_devices() -> impl Iterator<Item = Transport> {
    pci::functions().filter_map(|function| {
        let (vendor, device) = function.ids();
        if vendor != 0x1af4 || !(0x1040..0x1080).contains(&device) {
            return None;
        }
        open(function).map(Transport::Pci)
    })
}

/// Finds the structures of a PCI device; none if a required one is missing.
pub fn open(function: Function) -> Option<PciDevice> {
    function.enable();
    let mut found = PciDevice {
        function,
        common: 0,
        common_len: 0,
        notify: 0,
        notify_multiplier: 0,
        isr: 0,
        config: 0,
        config_len: 0,
        msix: None,
    };
    for (id, at) in function.capabilities() {
        if id != 0x09 {
            continue;
        }
        let bar = function.read8(at + 4);
        if bar > 5 {
            continue;
        }
        let Some((base, _)) = function.map_bar(bar) else {
            continue;
        };
        let address = base + u64::from(function.read32(at + 8));
        let len = function.read32(at + 12);
        match function.read8(at + 3) {
            1 if found.common == 0 => (found.common, found.common_len) = (address, len),
            2 if found.notify == 0 => {
                found.notify = address;
                found.notify_multiplier = function.read32(at + 16);
            }
            3 if found.isr == 0 => found.isr = address,
            4 if found.config == 0 => (found.config, found.config_len) = (address, len),
            _ => {}
        }
    }
    found.msix = function.msix();
    (found.common != 0 && found.notify != 0 && found.isr != 0).then_some(found)
}

/// Virtio devices named on the command line as for Linux, `virtio_mmio.device=SIZE@BASE:GSI`, or if
/// there are none, those of the DSDT.
pub fn mmio_devices() -> impl Iterator<Item = Transport> {
    let named = || cmdline::values("virtio_mmio.device").filter_map(named_device);
    let in_acpi = if named().next().is_none() {
        Some(acpi::virtio_mmio())
    } else {
        None
    };
    named()
        .chain(in_acpi.into_iter().flatten())
        .filter_map(|(base, len, gsi)| {
            mem::map(base, len);
            let device = MmioDevice { base, len, gsi };
            // An empty slot has device type 0.
            let answers =
                read32(base + mmio::MAGIC) == 0x7472_6976 && read32(base + mmio::DEVICE_ID) != 0;
            answers.then_some(Transport::Mmio(device))
        })
}

fn named_device(value: &str) -> Option<(u64, u64, u32)> {
    let (size, rest) = value.split_once('@')?;
    let mut parts = rest.split(':');
    let base = cmdline::number(parts.next()?)?;
    let gsi = cmdline::number(parts.next()?)? as u32;
    Some((base, cmdline::number(size)?, gsi))
}
