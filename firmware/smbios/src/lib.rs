//! SMBIOS 3 structures as a pure function of a machine's identity.
//!
//! ```text
//! Identity ──build(at)──▶ entry point at `at` (`_SM3_`), structure table right behind it
//! ```
//!
//! Source: DMTF DSP0134, System Management BIOS 3.2 (section numbers in the code). A guest without UEFI looks for
//! the entry point on 16-byte boundaries in 0xf0000..0x100000; one with UEFI is given its address.
//! Numbers that guests use to tell machines apart (serial, UUID) are the caller's to make unique.
#![forbid(unsafe_code)]

mod structures;
#[cfg(test)]
mod tests;

use std::ops::Range;

use structures::{Structure, Table};

/// Who a machine is, as its guest may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Maker of the machine.
    pub manufacturer: String,
    /// Name of the product.
    pub product: String,
    /// Version of the product, and of the firmware tables.
    pub version: String,
    /// Date of the firmware tables, `MM/DD/YYYY` (§7.1).
    pub release_date: String,
    /// Serial number of this machine; empty for none.
    pub serial: String,
    /// UUID of this machine, bytes in the order of its text.
    pub uuid: [u8; 16],
    /// Stock keeping unit; empty for none.
    pub sku: String,
    /// Product family; empty for none.
    pub family: String,
    /// Asset tag of the chassis; empty for none.
    pub asset_tag: String,
    /// Describe a baseboard too.
    pub baseboard: bool,
    /// Processors.
    pub processors: Processors,
    /// Guest physical ranges of RAM, ascending.
    pub memory: Vec<Range<u64>>,
    /// Free strings (type 11); systemd takes credentials from here.
    pub oem_strings: Vec<String>,
}

impl Default for Identity {
    fn default() -> Self {
        Identity {
            manufacturer: "Nyx".into(),
            product: "Nyx Virtual Machine".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            release_date: "01/01/2026".into(),
            serial: String::new(),
            uuid: [0; 16],
            sku: String::new(),
            family: "Virtual Machine".into(),
            asset_tag: String::new(),
            baseboard: false,
            processors: Processors::default(),
            memory: Vec::new(),
            oem_strings: Vec::new(),
        }
    }
}

/// The processors as sockets of equal content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processors {
    /// Model name.
    pub model: String,
    /// Maker of the model; empty for none.
    pub manufacturer: String,
    /// Sockets, at least 1.
    pub sockets: u16,
    /// Cores per socket, at least 1.
    pub cores: u16,
    /// Threads per core, at least 1.
    pub threads: u16,
}

impl Default for Processors {
    fn default() -> Self {
        Processors {
            model: "Nyx vCPU".into(),
            manufacturer: String::new(),
            sockets: 1,
            cores: 1,
            threads: 1,
        }
    }
}

/// Why an identity cannot be put into SMBIOS structures.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A string that would end early or fill the table.
    #[error(
        "the {field} contains a control character or is longer than {MAX_STRING} bytes: {value:?}"
    )]
    Text {
        /// Which field.
        field: &'static str,
        /// Its first characters.
        value: String,
    },
    /// A count that is 0 or does not fit.
    #[error("{what} is {value}, but must be 1 to {max}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// Its value.
        value: u64,
        /// Greatest possible value.
        max: u64,
    },
    /// A range that is empty or overlaps its predecessor.
    #[error("the memory range {start:#x}..{end:#x} is empty or does not follow its predecessor")]
    Memory {
        /// First address.
        start: u64,
        /// First address beyond.
        end: u64,
    },
    /// The address is not a multiple of 16, or the table would end beyond 2^64.
    #[error(
        "the tables cannot be placed at {0:#x}: the address must be a multiple of 16 with room behind it"
    )]
    Place(u64),
}

/// Longest string accepted. SMBIOS itself has no limit since 2.7, but readers do.
pub const MAX_STRING: usize = 1024;
/// Sockets that [`Identity`] may have: one structure each.
pub const MAX_SOCKETS: u16 = 256;
/// Bytes between the entry point and the table.
const TABLE_OFFSET: u64 = 32;

/// Entry point and structure table, and where they belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smbios {
    /// 64-bit entry point (§5.2.2), 24 bytes.
    pub entry_point: Vec<u8>,
    /// Guest physical address of the entry point.
    pub entry_point_address: u64,
    /// Structures, closed by type 127.
    pub table: Vec<u8>,
    /// Guest physical address of the table.
    pub table_address: u64,
}

impl Smbios {
    /// Guest physical range from the entry point to the end of the table.
    pub fn range(&self) -> Range<u64> {
        self.entry_point_address..self.table_address + self.table.len() as u64
    }
}

/// Builds the structures of `identity` for the guest physical address `at`, a multiple of 16.
pub fn build(identity: &Identity, at: u64) -> Result<Smbios, BuildError> {
    if !at.is_multiple_of(16) {
        return Err(BuildError::Place(at));
    }
    let table_address = at.checked_add(TABLE_OFFSET).ok_or(BuildError::Place(at))?;
    check(identity)?;
    let mut table = Table::default();
    firmware(&mut table, identity)?;
    system(&mut table, identity)?;
    if identity.baseboard {
        baseboard(&mut table, identity)?;
    }
    chassis(&mut table, identity)?;
    processors(&mut table, &identity.processors)?;
    oem_strings(&mut table, &identity.oem_strings)?;
    memory(&mut table, &identity.memory)?;
    // §7.33: no boot error.
    table.push(Structure::new(32, BOOT_HANDLE).zeros(6).byte(0));
    table.push(Structure::new(127, END_HANDLE));

    let table = table.bytes;
    table_address
        .checked_add(table.len() as u64)
        .ok_or(BuildError::Place(at))?;
    let entry_point = entry_point(table_address, table.len() as u32);
    Ok(Smbios {
        entry_point,
        entry_point_address: at,
        table,
        table_address,
    })
}

const FIRMWARE_HANDLE: u16 = 0x000;
const SYSTEM_HANDLE: u16 = 0x100;
const BASEBOARD_HANDLE: u16 = 0x200;
const CHASSIS_HANDLE: u16 = 0x300;
const PROCESSOR_HANDLE: u16 = 0x400;
const OEM_STRINGS_HANDLE: u16 = 0xb00;
const ARRAY_HANDLE: u16 = 0x1000;
const DIMM_HANDLE: u16 = 0x1100;
const MAPPED_HANDLE: u16 = 0x1300;
const BOOT_HANDLE: u16 = 0x2000;
const END_HANDLE: u16 = 0x7f00;
/// Stands for "none" where a handle is expected, and for "not provided" of an error structure.
const NO_HANDLE: u16 = 0xffff;
const NOT_PROVIDED: u16 = 0xfffe;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn check(identity: &Identity) -> Result<(), BuildError> {
    let count = |what, value: u16, max: u16| match value {
        1.. if value <= max => Ok(()),
        _ => Err(BuildError::Count {
            what,
            value: value.into(),
            max: max.into(),
        }),
    };
    let processors = &identity.processors;
    count("the number of sockets", processors.sockets, MAX_SOCKETS)?;
    count(
        "the number of cores per socket",
        processors.cores,
        u16::MAX - 1,
    )?;
    let threads_max = (u16::MAX - 1) / processors.cores;
    count(
        "the number of threads per core",
        processors.threads,
        threads_max,
    )?;
    count(
        "the number of memory ranges plus one",
        (identity.memory.len() as u64 + 1).min(0xffff) as u16,
        129,
    )?;
    count(
        "the number of OEM strings plus one",
        (identity.oem_strings.len() as u64 + 1).min(0xffff) as u16,
        256,
    )?;
    let mut previous = 0;
    for Range { start, end } in &identity.memory {
        if start < &previous || start >= end {
            return Err(BuildError::Memory {
                start: *start,
                end: *end,
            });
        }
        previous = *end;
    }
    Ok(())
}

/// 64-bit entry point (§5.2.2).
fn entry_point(table_address: u64, table_len: u32) -> Vec<u8> {
    let mut bytes = b"_SM3_".to_vec();
    bytes.extend([0, 24, 3, 2, 0, 1, 0]); // checksum, length, version 3.2.0, entry point revision, reserved
    bytes.extend(table_len.to_le_bytes());
    bytes.extend(table_address.to_le_bytes());
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    if let Some(place) = bytes.get_mut(5) {
        *place = sum;
    }
    bytes
}

/// Type 0 (§7.1).
fn firmware(table: &mut Table, identity: &Identity) -> Result<(), BuildError> {
    const NO_CHARACTERISTICS: u64 = 1 << 3;
    const ACPI: u8 = 1 << 0;
    const TARGETED_CONTENT: u8 = 1 << 2;
    const VIRTUAL_MACHINE: u8 = 1 << 4; // systemd-detect-virt and others go by this bit
    table.push(
        Structure::new(0, FIRMWARE_HANDLE)
            .text("manufacturer", &identity.manufacturer)?
            .text("version", &identity.version)?
            .word(0) // no address segment: there is no ROM
            .text("release date", &identity.release_date)?
            .byte(0)
            .quad(NO_CHARACTERISTICS)
            .byte(ACPI)
            .byte(TARGETED_CONTENT | VIRTUAL_MACHINE)
            .byte(0xff) // no release numbers of firmware
            .byte(0xff)
            .byte(0xff) // nor of an embedded controller
            .byte(0xff)
            .word(0),
    );
    Ok(())
}

/// Type 1 (§7.2).
fn system(table: &mut Table, identity: &Identity) -> Result<(), BuildError> {
    const WOKEN_BY_POWER_SWITCH: u8 = 6;
    table.push(
        Structure::new(1, SYSTEM_HANDLE)
            .text("manufacturer", &identity.manufacturer)?
            .text("product", &identity.product)?
            .text("version", &identity.version)?
            .text("serial number", &identity.serial)?
            .uuid(identity.uuid)
            .byte(WOKEN_BY_POWER_SWITCH)
            .text("SKU", &identity.sku)?
            .text("family", &identity.family)?,
    );
    Ok(())
}

/// Type 2 (§7.3).
fn baseboard(table: &mut Table, identity: &Identity) -> Result<(), BuildError> {
    const HOSTING: u8 = 1;
    const MOTHERBOARD: u8 = 0x0a;
    table.push(
        Structure::new(2, BASEBOARD_HANDLE)
            .text("manufacturer", &identity.manufacturer)?
            .text("product", &identity.product)?
            .text("version", &identity.version)?
            .text("serial number", &identity.serial)?
            .text("asset tag", &identity.asset_tag)?
            .byte(HOSTING)
            .byte(0)
            .word(CHASSIS_HANDLE)
            .byte(MOTHERBOARD)
            .byte(0),
    );
    Ok(())
}

/// Type 3 (§7.4).
fn chassis(table: &mut Table, identity: &Identity) -> Result<(), BuildError> {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const UNKNOWN: u8 = 2;
    table.push(
        Structure::new(3, CHASSIS_HANDLE)
            .text("manufacturer", &identity.manufacturer)?
            .byte(OTHER)
            .text("version", &identity.version)?
            .text("serial number", &identity.serial)?
            .text("asset tag", &identity.asset_tag)?
            .byte(SAFE)
            .byte(SAFE)
            .byte(SAFE)
            .byte(UNKNOWN)
            .double(0)
            .zeros(4) // height, power cords, no contained elements of no size
            .text("SKU", &identity.sku)?,
    );
    Ok(())
}

/// Type 4, one per socket (§7.5).
fn processors(table: &mut Table, processors: &Processors) -> Result<(), BuildError> {
    const CENTRAL: u8 = 3;
    const OTHER: u8 = 1;
    const POPULATED_AND_ENABLED: u8 = 1 << 6 | 1;
    const SIXTY_FOUR_BIT: u16 = 1 << 2;
    const MULTI_CORE: u16 = 1 << 3;
    const HARDWARE_THREADS: u16 = 1 << 4;
    const EXECUTE_PROTECTION: u16 = 1 << 5;
    // The byte says 255 when the count needs the word.
    let narrow = |count: u16| u8::try_from(count).unwrap_or(0xff);
    let threads = processors.cores.saturating_mul(processors.threads);
    let mut characteristics = SIXTY_FOUR_BIT | EXECUTE_PROTECTION;
    characteristics |= if processors.cores > 1 { MULTI_CORE } else { 0 };
    characteristics |= if processors.threads > 1 {
        HARDWARE_THREADS
    } else {
        0
    };
    for socket in 0..processors.sockets {
        table.push(
            Structure::new(4, PROCESSOR_HANDLE + socket)
                .text("socket", &format!("CPU {socket}"))?
                .byte(CENTRAL)
                .byte(OTHER) // family: CPUID tells
                .text("processor manufacturer", &processors.manufacturer)?
                .quad(0) // id: CPUID tells
                .text("processor model", &processors.model)?
                .byte(0) // voltage, clock and speeds unknown
                .word(0)
                .word(0)
                .word(0)
                .byte(POPULATED_AND_ENABLED)
                .byte(OTHER)
                .word(NO_HANDLE) // caches: CPUID tells
                .word(NO_HANDLE)
                .word(NO_HANDLE)
                .zeros(3) // serial number, asset tag, part number
                .byte(narrow(processors.cores))
                .byte(narrow(processors.cores))
                .byte(narrow(threads))
                .word(characteristics)
                .word(u16::from(OTHER))
                .word(processors.cores)
                .word(processors.cores)
                .word(threads),
        );
    }
    Ok(())
}

/// Type 11 (§7.12).
fn oem_strings(table: &mut Table, strings: &[String]) -> Result<(), BuildError> {
    if strings.is_empty() {
        return Ok(());
    }
    let mut structure = Structure::new(11, OEM_STRINGS_HANDLE).byte(strings.len() as u8);
    for string in strings {
        structure = structure.extra_text("OEM string", string)?;
    }
    table.push(structure);
    Ok(())
}

/// Types 16, 17 and 19 (§7.17, §7.18, §7.20): one array with one module that holds all memory.
fn memory(table: &mut Table, ranges: &[Range<u64>]) -> Result<(), BuildError> {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const MULTI_BIT_ECC: u8 = 6;
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const DRAM: u8 = 3; // §7.18.6, memory technology
    let total = ranges
        .iter()
        .map(|range| range.end - range.start)
        .sum::<u64>();

    // Capacity in KiB below 2 TiB, else the mark and the wide field in bytes.
    const WIDE_CAPACITY: u32 = 0x8000_0000;
    let (capacity, wide_capacity) = match u32::try_from(total / KIB) {
        Ok(kib) if kib < WIDE_CAPACITY => (kib, 0),
        _ => (WIDE_CAPACITY, total),
    };
    table.push(
        Structure::new(16, ARRAY_HANDLE)
            .byte(SYSTEM_BOARD)
            .byte(SYSTEM_MEMORY)
            .byte(MULTI_BIT_ECC)
            .double(capacity)
            .word(NOT_PROVIDED)
            .word(1)
            .quad(wide_capacity),
    );

    // Size in MiB below 32 GiB - 1 MiB, else the mark and the wide field in MiB (31 bits).
    const WIDE_SIZE: u16 = 0x7fff;
    let mib = total / MIB;
    let (size, wide_size) = match u16::try_from(mib) {
        Ok(mib) if mib < WIDE_SIZE => (mib, 0),
        _ => (WIDE_SIZE, mib.min(0x7fff_ffff) as u32),
    };
    table.push(
        Structure::new(17, DIMM_HANDLE)
            .word(ARRAY_HANDLE)
            .word(NOT_PROVIDED)
            .word(0xffff) // widths unknown
            .word(0xffff)
            .word(size)
            .byte(DIMM)
            .byte(0)
            .text("memory module", "DIMM 0")?
            .byte(0)
            .byte(RAM)
            .word(1 << 1) // detail: other
            .word(0) // speed unknown
            .zeros(4) // manufacturer, serial number, asset tag, part number
            .byte(0) // rank unknown
            .double(wide_size)
            .word(0) // configured speed
            .zeros(6) // voltages
            .byte(DRAM)
            .word(1 << 3) // operating mode: volatile
            .byte(0)
            .zeros(8) // module and controller ids
            .quad(0) // non-volatile size
            .quad(total)
            .quad(0) // cache size
            .quad(0), // logical size
    );

    for (index, range) in (0u16..).zip(ranges) {
        // In KiB while the last KiB's number fits, else the mark and the wide fields in bytes.
        let (first, last) = (range.start / KIB, (range.end - 1) / KIB);
        let mapped = Structure::new(19, MAPPED_HANDLE + index);
        table.push(match (u32::try_from(first), u32::try_from(last)) {
            (Ok(first), Ok(last)) if last != u32::MAX => mapped
                .double(first)
                .double(last)
                .word(ARRAY_HANDLE)
                .byte(1)
                .quad(0)
                .quad(0),
            _ => mapped
                .double(u32::MAX)
                .double(u32::MAX)
                .word(ARRAY_HANDLE)
                .byte(1)
                .quad(range.start)
                .quad(range.end - 1),
        });
    }
    Ok(())
}
