//! The guest-physical memory map.
//!
//! ```text
//! 0x0000_0000  RAM, with the traditional holes below 1 MiB reserved
//!              … the last of it holds the ACPI tables and pages set aside for devices
//! 0xb000_0000  PCI Express configuration space (ECAM), 256 MiB, at most the end of low RAM
//! 0xc000_0000  32-bit device windows
//! 0xfec0_0000  I/O APIC, local APICs, and pages that the hypervisor keeps to itself
//! 4 GiB        RAM above the hole
//!              64-bit device windows, above all RAM
//! ```

use serde::{Deserialize, Serialize};

/// Low RAM ends here at the latest.
pub(crate) const LOW_RAM_END: u64 = 0xb000_0000;
/// PCI Express configuration space, buses 0 to 255.
pub(crate) const ECAM: Range = Range {
    base: 0xb000_0000,
    len: 256 << 20,
};
/// 32-bit device windows.
pub(crate) const MMIO32: Range = Range {
    base: 0xc000_0000,
    len: 0xfec0_0000 - 0xc000_0000,
};
/// High RAM begins here.
pub(crate) const HIGH_RAM: u64 = 1 << 32;
/// I/O ports for BARs.
pub(crate) const IO_PORTS: Range = Range {
    base: 0xc000,
    len: 0x4000,
};
/// Where firmware tables that are found by scanning live (SMBIOS 3.x §5.2.2: 0xf0000 to 0xfffff).
pub(crate) const SCANNED: Range = Range {
    base: 0xf_0000,
    len: 0x1_0000,
};
/// Pages that KVM keeps to itself for guests in real mode (its TSS and identity map; Linux,
/// Documentation/virt/kvm/api.rst, `KVM_SET_TSS_ADDR` and `KVM_SET_IDENTITY_MAP_ADDR`).
const HYPERVISOR: Range = Range {
    base: 0xfeff_c000,
    len: 0x4000,
};
const EBDA: Range = Range {
    base: 0x9_fc00,
    len: 0x400,
};
const MIB: u64 = 1 << 20;

/// A run of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Range {
    /// The byte after the last.
    pub const fn end(self) -> u64 {
        self.base + self.len
    }
}

/// What an address range is to the guest (ACPI 6.5 table 15.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// Memory.
    Ram,
    /// Not to be touched.
    Reserved,
    /// Memory that holds ACPI tables.
    Acpi,
}

/// One entry of the memory map given to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapEntry {
    /// Where.
    pub range: Range,
    /// What.
    pub kind: MemoryKind,
}

/// Where everything is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// RAM, ascending.
    pub ram: Vec<Range>,
    /// The guest's memory map, ascending.
    pub map: Vec<MapEntry>,
    /// RAM set aside for ACPI tables.
    pub acpi: Range,
    /// RAM set aside for SMBIOS.
    pub smbios: Range,
    /// PCI Express configuration space, if there is PCI.
    pub ecam: Option<Range>,
    /// 32-bit device windows.
    pub mmio32: Range,
    /// 64-bit device windows.
    pub mmio64: Option<Range>,
    /// I/O ports for BARs.
    pub io_ports: Range,
}

/// How much of `size` bytes of RAM lies below the hole: it ends at a page of the backing size, or
/// the hole would split a huge page.
pub(crate) fn low_ram(size: u64, page: u64) -> u64 {
    size.min(LOW_RAM_END - LOW_RAM_END % page)
}

/// Lays memory out: `size` bytes of RAM, `reserved` bytes of it (a multiple of the page) set aside
/// for devices and `acpi` for tables, in an address space of `bits`.
pub(crate) fn lay_out(
    size: u64,
    page: u64,
    acpi: u64,
    reserved: u64,
    pci: bool,
    bits: u8,
) -> Result<(Layout, Range), String> {
    let space = 1u64.checked_shl(bits.into()).unwrap_or(u64::MAX);
    let low = low_ram(size, page);
    let high = size - low;
    let Some(top) = HIGH_RAM
        .checked_add(high)
        .filter(|top| high == 0 || *top <= space)
    else {
        let most = low.saturating_add(space.saturating_sub(HIGH_RAM));
        return Err(format!(
            "{size} bytes do not fit the {bits} physical address bits of this host; use at most {most}"
        ));
    };
    let mut ram = vec![Range { base: 0, len: low }];
    if high != 0 {
        ram.push(Range {
            base: HIGH_RAM,
            len: high,
        });
    }
    let aside = reserved + acpi;
    let usable_end = low
        .checked_sub(aside)
        .filter(|end| *end > MIB)
        .ok_or_else(|| {
            format!("{size} bytes leave no room beside {aside} bytes of tables; use at least 8M")
        })?;
    let devices = Range {
        base: usable_end,
        len: reserved,
    };
    let acpi = Range {
        base: usable_end + reserved,
        len: acpi,
    };
    let mut map = vec![
        (
            Range {
                base: 0,
                len: EBDA.base,
            },
            MemoryKind::Ram,
        ),
        (EBDA, MemoryKind::Reserved),
        (SCANNED, MemoryKind::Reserved),
        (
            Range {
                base: MIB,
                len: usable_end - MIB,
            },
            MemoryKind::Ram,
        ),
        (devices, MemoryKind::Reserved),
        (acpi, MemoryKind::Acpi),
    ];
    if pci {
        map.push((ECAM, MemoryKind::Reserved));
    }
    map.push((HYPERVISOR, MemoryKind::Reserved));
    if high != 0 {
        map.push((
            Range {
                base: HIGH_RAM,
                len: high,
            },
            MemoryKind::Ram,
        ));
    }
    map.retain(|(range, _)| range.len != 0);
    // 64-bit windows take the quarter of the address space above RAM, at a round address.
    let mmio64 = top
        .checked_next_multiple_of(1 << 36)
        .filter(|base| pci && *base < space)
        .map(|base| Range {
            base,
            len: (space - base).min(1 << 40),
        });
    let layout = Layout {
        ram,
        map: map
            .into_iter()
            .map(|(range, kind)| MapEntry { range, kind })
            .collect(),
        acpi,
        smbios: SCANNED,
        ecam: pci.then_some(ECAM),
        mmio32: MMIO32,
        mmio64,
        io_ports: IO_PORTS,
    };
    Ok((layout, devices))
}
