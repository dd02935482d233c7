//! ACPI tables: RSDP, XSDT, FADT, MADT, MCFG; power-off and reset as they describe it.

use crate::cpu::{self, inw, outb, outw};
use crate::{apic, boot, mem, pci};
use core::slice;
use core::sync::atomic::{AtomicU64, Ordering};

/// What the FADT says (ACPI 6.5, 5.2.9), zero where absent.
#[derive(Clone, Copy, Default)]
pub struct Fadt {
    pub sci: u16,
    pub smi_command: u32,
    pub acpi_enable: u8,
    pub pm1a_event: u16,
    pub pm1_event_len: u8,
    pub pm1a_control: u16,
    pub pm_timer: u16,
    pub gpe0: u16,
    pub gpe0_len: u8,
    pub flags: u32,
    pub reset_space: u8,
    pub reset_at: u64,
    pub reset_value: u8,
    pub sleep_control_at: u64,
    pub revision: u8,
    pub len: u32,
}

static RSDP: AtomicU64 = AtomicU64::new(0);

/// Finds the RSDP: where PVH says, else in the BIOS area. 0 if there is none.
pub fn rsdp() -> u64 {
    let known = RSDP.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let given = boot::handover().rsdp_at;
    let scan = (0xe_0000..0x10_0000_u64).step_by(16);
    let found = [given]
        .into_iter()
        .chain(scan)
        .find(|&at| at != 0 && bytes(at, 8) == b"RSD PTR ")
        .unwrap_or(0);
    RSDP.store(found, Ordering::Relaxed);
    found
}

/// Memory as bytes.
pub fn bytes(at: u64, len: usize) -> &'static [u8] {
    mem::map(at, len as u64);
    // SAFETY: mapped, and tables do not change while tests read them.
    unsafe { slice::from_raw_parts(at as *const u8, len) }
}

fn number(at: u64, width: usize) -> u64 {
    let mut value = [0; 8];
    value[..width].copy_from_slice(bytes(at, width));
    u64::from_le_bytes(value)
}

/// Whether the bytes of a table sum to zero.
pub fn sums_to_zero(at: u64, len: usize) -> bool {
    bytes(at, len)
        .iter()
        .fold(0_u8, |sum, &byte| sum.wrapping_add(byte))
        == 0
}

/// The tables of the XSDT (or RSDT): address, signature, length.
pub fn tables() -> impl Iterator<Item = (u64, &'static [u8], usize)> {
    let rsdp = rsdp();
    let (root, width) = match rsdp {
        0 => (0, 8),
        _ if number(rsdp + 15, 1) >= 2 && number(rsdp + 24, 8) != 0 => (number(rsdp + 24, 8), 8),
        _ => (number(rsdp + 16, 4), 4),
    };
    let count = if root == 0 {
        0
    } else {
        (number(root + 4, 4).saturating_sub(36) as usize / width).min(64)
    };
    (0..count).map(move |i| {
        let at = number(root + 36 + (i * width) as u64, width);
        (at, bytes(at, 4), number(at + 4, 4) as usize)
    })
}

/// The first table with this signature, and its length.
pub fn table(signature: &[u8; 4]) -> Option<(u64, usize)> {
    tables()
        .find(|(_, name, _)| name == signature)
        .map(|(at, _, len)| (at, len))
}

/// Reads the FADT.
pub fn fadt() -> Option<Fadt> {
    let (at, len) = table(b"FACP")?;
    let get = |offset: u64, width: usize| {
        if offset as usize + width <= len {
            number(at + offset, width)
        } else {
            0
        }
    };
    // The extended addresses (generic address structures: 4 bytes, then the address) win.
    let either = |narrow: u64, wide: u64| match get(wide + 4, 8) {
        0 => get(narrow, 4) as u16,
        address => address as u16,
    };
    Some(Fadt {
        sci: get(46, 2) as u16,
        smi_command: get(48, 4) as u32,
        acpi_enable: get(52, 1) as u8,
        pm1a_event: either(56, 148),
        pm1_event_len: get(88, 1) as u8,
        pm1a_control: either(64, 172),
        pm_timer: either(76, 208),
        gpe0: either(80, 220),
        gpe0_len: get(92, 1) as u8,
        flags: get(112, 4) as u32,
        reset_space: get(116, 1) as u8,
        reset_at: get(120, 8),
        reset_value: get(128, 1) as u8,
        sleep_control_at: get(248, 8),
        revision: get(8, 1) as u8,
        len: len as u32,
    })
}

/// Entries of the MADT: type and bytes.
pub fn madt() -> impl Iterator<Item = (u8, &'static [u8])> {
    let (at, len) = table(b"APIC").unwrap_or((0, 0));
    let mut offset = 44;
    core::iter::from_fn(move || {
        if at == 0 || offset + 2 > len {
            return None;
        }
        let size = (number(at + offset as u64 + 1, 1) as usize).max(2);
        let entry = bytes(at + offset as u64, size.min(len - offset));
        offset += size;
        Some((entry[0], entry))
    })
}

/// Fills in the APIC ids of enabled CPUs; returns how many there are. Notes the I/O APIC's address.
pub fn cpus(ids: &mut [u32]) -> usize {
    let mut n = 0;
    for (kind, entry) in madt() {
        let id = match kind {
            0 if entry.len() >= 8 && entry[4] & 1 != 0 => u32::from(entry[3]),
            9 if entry.len() >= 16 && entry[8] & 1 != 0 => word(entry, 4),
            1 if entry.len() >= 12 && word(entry, 8) == 0 => {
                apic::set_ioapic_base(word(entry, 4).into());
                continue;
            }
            _ => continue,
        };
        if n < ids.len() {
            ids[n] = id;
            n += 1;
        }
    }
    n
}

/// A little-endian 32-bit number at an offset.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// The ECAM window of segment 0: base, first bus, last bus.
pub fn ecam() -> Option<(u64, u8, u8)> {
    let (at, len) = table(b"MCFG")?;
    (44..len.saturating_sub(15))
        .step_by(16)
        .map(|o| at + o as u64)
        .find(|&e| number(e + 8, 2) == 0)
        .map(|e| {
            (
                number(e, 8),
                number(e + 10, 1) as u8,
                number(e + 11, 1) as u8,
            )
        })
}

/// The I/O APIC pin and redirection flags of an ISA interrupt, after the MADT's overrides.
pub fn isa_route(irq: u8) -> (u32, u32) {
    for (kind, entry) in madt() {
        if kind == 2 && entry.len() >= 10 && entry[3] == irq {
            let flags = u32::from(entry[8]);
            let low = if flags & 3 == 3 { apic::ACTIVE_LOW } else { 0 };
            let level = if flags >> 2 & 3 == 3 { apic::LEVEL } else { 0 };
            return (word(entry, 4), low | level);
        }
    }
    (irq.into(), 0)
}

/// The sleep type of S5, from the DSDT's `_S5_` package (ACPI 6.5, 7.4.2.5). AML is not interpreted:
/// the name and its package opcode are looked for.
pub fn s5_type() -> Option<u16> {
    let aml = dsdt();
    let name = aml.windows(5).position(|w| w == b"_S5_\x12")?;
    let mut at = name + 5;
    at += usize::from(aml.get(at)? >> 6) + 1; // package length
    at += 1; // element count
    match *aml.get(at)? {
        0x0a => Some((*aml.get(at + 1)?).into()), // byte prefix
        0x0b | 0x0c => Some((*aml.get(at + 1)?).into()),
        0x00 => Some(0),
        0x01 => Some(1),
        _ => None,
    }
}

/// Virtio MMIO devices (`LNRO0005`) of the DSDT: base, length, interrupt. As with `_S5_`, AML is not
/// interpreted: the resource descriptors (ACPI 6.5, 6.4) after each name are read.
pub fn virtio_mmio() -> impl Iterator<Item = (u64, u64, u32)> {
    const NAME: &[u8] = b"LNRO0005";
    let aml = dsdt();
    let mut from = 0;
    core::iter::from_fn(move || {
        loop {
            let at = from
                + aml
                    .get(from..)?
                    .windows(NAME.len())
                    .position(|w| w == NAME)?;
            from = at + NAME.len();
            let rest = &aml[from..aml.len().min(from + 160)];
            let end = rest
                .windows(NAME.len())
                .position(|w| w == NAME)
                .unwrap_or(rest.len());
            let rest = &rest[..end];
            // Memory32Fixed: 0x86, length 9, flags, base, length.
            let memory = rest.windows(12).find(|w| w[..3] == [0x86, 9, 0]);
            // Extended interrupt: 0x89, length 6, flags, count 1, number. Or an ISA mask: 0x22, 0x23.
            let extended = rest
                .windows(9)
                .find(|w| w[..3] == [0x89, 6, 0] && w[4] == 1);
            let isa = rest.windows(3).find(|w| matches!(w[0], 0x22 | 0x23));
            let interrupt = extended
                .map(|w| word(w, 5))
                .or_else(|| isa.map(|w| u16::from_le_bytes([w[1], w[2]]).trailing_zeros()));
            if let (Some(memory), Some(interrupt)) = (memory, interrupt) {
                return Some((word(memory, 4).into(), word(memory, 8).into(), interrupt));
            }
        }
    })
}

fn dsdt() -> &'static [u8] {
    let Some((fadt, len)) = table(b"FACP") else {
        return &[];
    };
    let wide = if len >= 148 { number(fadt + 140, 8) } else { 0 };
    let at = if wide != 0 {
        wide
    } else {
        number(fadt + 40, 4)
    };
    bytes(at, number(at + 4, 4) as usize)
}

/// Powers off through S5. Returns if that did not end the machine.
pub fn power_off() {
    if let (Some(fadt), Some(kind)) = (fadt(), s5_type()) {
        if fadt.pm1a_control != 0 {
            let keep = inw(fadt.pm1a_control) & 0x0203;
            outw(fadt.pm1a_control, keep | kind << 10 | 1 << 13);
        } else if fadt.sleep_control_at != 0 {
            // Hardware-reduced ACPI: SLP_TYP in bits 4:2, SLP_EN bit 5.
            let value = (kind as u8) << 2 | 1 << 5;
            let (_, len) = table(b"FACP").unwrap_or((0, 0));
            let space = if len >= 256 {
                number(table(b"FACP").map_or(0, |t| t.0) + 244, 1)
            } else {
                1
            };
            if space == 0 {
                cpu::write8(fadt.sleep_control_at, value);
            } else {
                outb(fadt.sleep_control_at as u16, value);
            }
        }
    }
}

/// Resets through the FADT's reset register. Returns if that did not reset the machine.
pub fn reset() {
    if let Some(fadt) = fadt() {
        match fadt.reset_space {
            0 => cpu::write8(fadt.reset_at, fadt.reset_value),
            1 => outb(fadt.reset_at as u16, fadt.reset_value),
            2 => pci::Function::at(0, (fadt.reset_at >> 32) as u8, (fadt.reset_at >> 16) as u8)
                .write((fadt.reset_at & 0xffff) as u16, 1, fadt.reset_value.into()),
            _ => {}
        }
    }
}
