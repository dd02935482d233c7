//! Building and placing the tables.

use std::ops::Range;

use crate::dsdt;
use crate::platform::{
    AcpiPlatform, CpuEntry, PciRoot, PmBlock, Polarity, Scope, SourceOverride, Spcr, Trigger,
};

const OEM: [u8; 6] = *b"NYX   ";
const OEM_TABLE: [u8; 8] = *b"NYXVM   ";
const OEM_REVISION: u32 = 1;
const CREATOR: [u8; 4] = *b"NYX ";
const CREATOR_REVISION: u32 = 1;

const HEADER: usize = 36;
const FOUR_GIB: u64 = 1 << 32;
/// Guest physical address of every processor's local APIC.
const LOCAL_APIC: u32 = 0xfee0_0000;

/// Why a description cannot be put into tables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No processor.
    #[error("no processor is described")]
    NoCpu,
    /// More processors than names `C000` to `CFFF`, or two of one number.
    #[error("processor number {0} is used twice or is above 4095")]
    CpuNumber(u32),
    /// A PCI window that is empty, ends before it begins, or lies where it may not.
    #[error("the PCI window {first:#x}..={last:#x} is empty or lies where it may not ({why})")]
    Window {
        /// First address.
        first: u64,
        /// Last address.
        last: u64,
        /// The rule it breaks.
        why: &'static str,
    },
    /// A device or pin number that PCI does not have, or a pin described twice.
    #[error("the interrupt route of PCI device {device} pin {pin} is impossible or given twice")]
    Route {
        /// Device number.
        device: u8,
        /// Pin number from 0.
        pin: u8,
    },
    /// AML for a host bridge that is not described.
    #[error("AML is given for the PCI host bridge, but no host bridge is described")]
    NoPciRoot,
    /// The base is not aligned to 64 bytes.
    #[error("the tables' address {0:#x} is not aligned to 64 bytes")]
    Alignment(u64),
    /// The tables would end beyond 2^64, or a table beyond its length field.
    #[error("the tables are too large to be placed at {0:#x}")]
    TooLarge(u64),
}

/// One table and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Four letters.
    pub signature: [u8; 4],
    /// Guest physical address.
    pub address: u64,
    /// Header and body, checksum set.
    pub bytes: Vec<u8>,
}

impl Table {
    /// The signature as text.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.signature).into_owned()
    }
}

/// A finished set of tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Root pointer.
    pub rsdp: Vec<u8>,
    /// Guest physical address of the root pointer: the base given to [`build`].
    pub rsdp_address: u64,
    /// All tables in ascending order of address.
    pub tables: Vec<Table>,
}

impl Tables {
    /// Guest physical range from the root pointer to the end of the last table.
    pub fn range(&self) -> Range<u64> {
        let last = self.tables.last();
        let end = last.map_or(self.rsdp_address + self.rsdp.len() as u64, |t| {
            t.address + t.bytes.len() as u64
        });
        self.rsdp_address..end
    }

    /// The table with `signature`.
    pub fn table(&self, signature: &[u8; 4]) -> Option<&Table> {
        self.tables
            .iter()
            .find(|table| &table.signature == signature)
    }

    /// Everything to be written to guest memory: address and bytes.
    pub fn writes(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let tables = self
            .tables
            .iter()
            .map(|table| (table.address, table.bytes.as_slice()));
        std::iter::once((self.rsdp_address, self.rsdp.as_slice())).chain(tables)
    }
}

/// Makes the value that brings the sum of all bytes to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// Puts a system description table together (§5.2.6).
fn sdt(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(signature);
    bytes.extend(((HEADER + body.len()) as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(OEM);
    bytes.extend(OEM_TABLE);
    bytes.extend(OEM_REVISION.to_le_bytes());
    bytes.extend(CREATOR);
    bytes.extend(CREATOR_REVISION.to_le_bytes());
    bytes.extend(body);
    let sum = checksum(&bytes);
    if let Some(place) = bytes.get_mut(9) {
        *place = sum;
    }
    bytes
}

/// Places tables one after another.
struct Shelf {
    next: u64,
    tables: Vec<Table>,
}

impl Shelf {
    /// Puts `bytes` at the next multiple of 64 and returns the address.
    fn put(&mut self, bytes: Vec<u8>) -> Result<u64, BuildError> {
        // §5.2.10 wants the FACS at a multiple of 64; the others may as well have it.
        let address = self
            .next
            .checked_next_multiple_of(64)
            .ok_or(BuildError::TooLarge(self.next))?;
        let too_large = BuildError::TooLarge(address);
        u32::try_from(bytes.len()).map_err(|_| too_large.clone())?;
        self.next = address.checked_add(bytes.len() as u64).ok_or(too_large)?;
        let signature = bytes.first_chunk::<4>().copied().unwrap_or_default();
        self.tables.push(Table {
            signature,
            address,
            bytes,
        });
        Ok(address)
    }
}

/// Builds the tables of `platform` for the guest physical address `base`, a multiple of 64.
///
/// The root pointer is at `base` itself. Sizes do not depend on `base` while everything lies below 4 GiB; at or
/// above it the RSDT, which holds 32-bit addresses, is left out.
pub fn build(platform: &AcpiPlatform, base: u64) -> Result<Tables, BuildError> {
    check(platform)?;
    if !base.is_multiple_of(64) {
        return Err(BuildError::Alignment(base));
    }
    const RSDP_LEN: u64 = 36;
    let next = base
        .checked_add(RSDP_LEN)
        .ok_or(BuildError::TooLarge(base))?;
    let mut shelf = Shelf {
        next,
        tables: Vec::new(),
    };

    let facs = match platform.pm {
        Some(_) => Some(shelf.put(facs())?),
        None => None, // §5.2.10: optional on hardware-reduced machines
    };
    let dsdt = shelf.put(sdt(*b"DSDT", 2, &dsdt::terms(platform)))?;
    let mut listed = vec![shelf.put(fadt(platform, facs, dsdt))?];
    listed.push(shelf.put(madt(platform))?);
    if let Some(ecam) = &platform.ecam {
        // PCI Firmware 3.3 §4.1.2: 8 reserved bytes, then base, segment, buses, 4 reserved.
        let mut body = vec![0; 8];
        body.extend(ecam.base.to_le_bytes());
        body.extend([0, 0, ecam.start_bus, ecam.end_bus, 0, 0, 0, 0]);
        listed.push(shelf.put(sdt(*b"MCFG", 1, &body))?);
    }
    if let Some(console) = &platform.spcr {
        listed.push(shelf.put(spcr(console))?);
    }
    for extra in &platform.extra_tables {
        listed.push(shelf.put(sdt(extra.signature, extra.revision, &extra.body))?);
    }

    let narrow = listed
        .iter()
        .map(|address| u32::try_from(*address))
        .collect::<Result<Vec<_>, _>>();
    let mut rsdt = 0;
    if let Ok(narrow) = narrow {
        let body = narrow
            .iter()
            .flat_map(|address| address.to_le_bytes())
            .collect::<Vec<_>>();
        let table = sdt(*b"RSDT", 1, &body);
        let end = shelf
            .next
            .checked_next_multiple_of(64)
            .and_then(|at| at.checked_add(table.len() as u64));
        if end.is_some_and(|end| end <= FOUR_GIB) {
            rsdt = shelf.put(table)? as u32;
        }
    }
    let body = listed
        .iter()
        .flat_map(|address| address.to_le_bytes())
        .collect::<Vec<_>>();
    let xsdt = shelf.put(sdt(*b"XSDT", 1, &body))?;
    Ok(Tables {
        rsdp: rsdp(rsdt, xsdt),
        rsdp_address: base,
        tables: shelf.tables,
    })
}

fn check(platform: &AcpiPlatform) -> Result<(), BuildError> {
    if platform.cpus.is_empty() {
        return Err(BuildError::NoCpu);
    }
    let mut numbers: Vec<u32> = platform.cpus.iter().map(|cpu| cpu.processor_uid).collect();
    numbers.sort_unstable();
    for pair in numbers.windows(2) {
        if let [a, b] = pair
            && a == b
        {
            return Err(BuildError::CpuNumber(*a));
        }
    }
    if let Some(last) = numbers.last().filter(|last| **last > 0xfff) {
        return Err(BuildError::CpuNumber(*last));
    }
    match &platform.pci_root {
        Some(root) => check_root(root),
        None if platform.fragments.iter().any(|f| f.scope == Scope::Pci0) => {
            Err(BuildError::NoPciRoot)
        }
        None => Ok(()),
    }
}

fn check_root(root: &PciRoot) -> Result<(), BuildError> {
    let window = |first: u64, last: u64, allowed: bool, why| {
        if first <= last && allowed {
            Ok(())
        } else {
            Err(BuildError::Window { first, last, why })
        }
    };
    window(
        (*root.buses.start()).into(),
        (*root.buses.end()).into(),
        true,
        "buses ascend",
    )?;
    for io in &root.io {
        let (first, last) = (*io.start(), *io.end());
        let clear = last < 0xcf8 || first > 0xcff;
        window(
            first.into(),
            last.into(),
            clear,
            "ports 0xcf8 to 0xcff are the bridge's own",
        )?;
    }
    let low = &root.mmio32;
    window(
        low.start,
        low.end.wrapping_sub(1),
        low.end <= FOUR_GIB && !low.is_empty(),
        "it must end at or below 4 GiB",
    )?;
    if let Some(high) = &root.mmio64 {
        let allowed = high.start >= FOUR_GIB && !high.is_empty();
        window(
            high.start,
            high.end.wrapping_sub(1),
            allowed,
            "it must begin at or above 4 GiB",
        )?;
    }
    let mut seen = [false; 128];
    for entry in &root.prt {
        let error = BuildError::Route {
            device: entry.device,
            pin: entry.pin,
        };
        let slot = seen.get_mut(usize::from(entry.device) * 4 + usize::from(entry.pin));
        match slot.filter(|_| entry.pin < 4) {
            Some(slot) if !*slot => *slot = true,
            _ => return Err(error),
        }
    }
    Ok(())
}

/// Root pointer, revision 2 (§5.2.5.3): one checksum over the first 20 bytes, one over all.
fn rsdp(rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(36);
    bytes.extend(b"RSD PTR ");
    bytes.push(0);
    bytes.extend(OEM);
    bytes.push(2);
    bytes.extend(rsdt.to_le_bytes());
    bytes.extend(36u32.to_le_bytes());
    bytes.extend(xsdt.to_le_bytes());
    bytes.extend([0; 4]);
    let first = bytes.get(..20).map_or(0, checksum);
    if let Some(place) = bytes.get_mut(8) {
        *place = first;
    }
    let extended = checksum(&bytes);
    if let Some(place) = bytes.get_mut(32) {
        *place = extended;
    }
    bytes
}

/// Firmware control structure, version 2 (§5.2.10); it has no checksum.
fn facs() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let mut put = |at: usize, value: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    };
    put(0, b"FACS");
    put(4, &64u32.to_le_bytes());
    put(32, &[2]);
    bytes
}

/// A register in I/O space as a generic address structure (§5.2.3.2).
fn io_register(port: u16, bits: u8) -> [u8; 12] {
    const SYSTEM_IO: u8 = 1;
    let access = match bits {
        8 => 1,
        16 => 2,
        32 => 3,
        _ => 0, // undefined: wider or odd blocks
    };
    let mut register = [0; 12];
    let [low, high] = port.to_le_bytes();
    register[..6].copy_from_slice(&[SYSTEM_IO, bits, 0, access, low, high]);
    register
}

/// Fixed ACPI description table, revision 6.5 (§5.2.9).
fn fadt(platform: &AcpiPlatform, facs: Option<u64>, dsdt: u64) -> Vec<u8> {
    const LEN: usize = 276;
    const MINOR_VERSION: u8 = 5;
    // §5.2.9, table 5.10
    const WBINVD: u32 = 1 << 0;
    const PROC_C1: u32 = 1 << 2;
    const NO_SLEEP_BUTTON: u32 = 1 << 5; // set means: not a fixed feature
    const NO_POWER_BUTTON: u32 = 1 << 4;
    const NO_FIXED_RTC_WAKE: u32 = 1 << 6;
    const TMR_VAL_EXT: u32 = 1 << 8;
    const RESET_REG_SUP: u32 = 1 << 10;
    const HW_REDUCED_ACPI: u32 = 1 << 20;
    // §5.2.9.3
    const LEGACY_DEVICES: u16 = 1 << 0;
    const HAS_8042: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;
    const NO_ASPM: u16 = 1 << 4;
    const NO_CMOS_RTC: u16 = 1 << 5;

    let mut table = vec![0u8; LEN - HEADER];
    // Offsets as the standard gives them, from the start of the table.
    let mut put = |at: usize, value: &[u8]| {
        if let Some(place) = table.get_mut(at - HEADER..at - HEADER + value.len()) {
            place.copy_from_slice(value);
        }
    };
    let mut flags = WBINVD | NO_SLEEP_BUTTON | NO_FIXED_RTC_WAKE;
    if let Some(facs) = facs {
        match u32::try_from(facs) {
            Ok(facs) => put(36, &facs.to_le_bytes()),
            Err(_) => put(132, &facs.to_le_bytes()), // X_FIRMWARE_CTRL, only one of the two may be set
        }
    }
    if let Ok(dsdt) = u32::try_from(dsdt) {
        put(40, &dsdt.to_le_bytes());
    }
    put(140, &dsdt.to_le_bytes());
    if let Some(pm) = &platform.pm {
        flags |= PROC_C1 | TMR_VAL_EXT;
        let PmBlock {
            base,
            sci_gsi,
            gpe0,
            ..
        } = *pm;
        let (event, control, timer) = (base, base.wrapping_add(4), base.wrapping_add(8));
        put(46, &(sci_gsi as u16).to_le_bytes());
        put(56, &u32::from(event).to_le_bytes());
        put(64, &u32::from(control).to_le_bytes());
        put(76, &u32::from(timer).to_le_bytes());
        put(88, &[4, 2, 0, 4]); // lengths of PM1 event, PM1 control, PM2 control, PM timer
        put(96, &0xffffu16.to_le_bytes()); // C2 and C3 latencies beyond use: not supported
        put(98, &0xffffu16.to_le_bytes());
        put(148, &io_register(event, 32));
        put(172, &io_register(control, 16));
        put(208, &io_register(timer, 32));
        if let Some(gpe) = gpe0 {
            put(80, &u32::from(gpe.port).to_le_bytes());
            put(92, &[gpe.len]);
            // The length counts bits; the registers are accessed by bytes (§4.8.4.1).
            let mut register = io_register(gpe.port, gpe.len.saturating_mul(8));
            register[3] = 1;
            put(220, &register);
        }
    } else {
        flags |= HW_REDUCED_ACPI | NO_POWER_BUTTON;
        if let Some(sleep) = &platform.sleep {
            put(244, &io_register(sleep.control, 8));
            put(256, &io_register(sleep.status, 8));
        }
    }
    if let Some(reset) = &platform.reset {
        flags |= RESET_REG_SUP;
        put(116, &io_register(reset.port, 8));
        put(128, &[reset.value]);
    }
    let mut boot = LEGACY_DEVICES | NO_ASPM;
    boot |= if platform.i8042 { HAS_8042 } else { 0 };
    boot |= if platform.vga { 0 } else { NO_VGA };
    if platform.rtc {
        put(108, &[0x32]); // century register in CMOS
    } else {
        boot |= NO_CMOS_RTC;
    }
    put(109, &boot.to_le_bytes());
    put(112, &flags.to_le_bytes());
    put(131, &[MINOR_VERSION]);
    sdt(*b"FACP", 6, &table)
}

/// Interrupt flags of MADT entries (§5.2.12.5, table 5.27).
fn interrupt_flags(polarity: Polarity, trigger: Trigger) -> u16 {
    let polarity = match polarity {
        Polarity::High => 0b01,
        Polarity::Low => 0b11,
    };
    let trigger = match trigger {
        Trigger::Edge => 0b01,
        Trigger::Level => 0b11,
    };
    trigger << 2 | polarity
}

/// Multiple APIC description table (§5.2.12).
fn madt(platform: &AcpiPlatform) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    const ONLINE_CAPABLE: u32 = 2;
    const LINT_NMI: u8 = 1;

    let mut body = Vec::new();
    body.extend(LOCAL_APIC.to_le_bytes());
    body.extend(if platform.pic { PCAT_COMPAT } else { 0 }.to_le_bytes());
    let mut any_narrow = false;
    let mut any_wide = false;
    for CpuEntry {
        apic_id,
        processor_uid,
        enabled,
    } in &platform.cpus
    {
        let flags = if *enabled { ENABLED } else { ONLINE_CAPABLE };
        match (u8::try_from(*apic_id), u8::try_from(*processor_uid)) {
            // Id 255 is the broadcast address of an 8-bit APIC, number 255 stands for all processors.
            (Ok(id), Ok(uid)) if id < 255 && uid < 255 => {
                any_narrow = true;
                body.extend([0, 8, uid, id]);
                body.extend(flags.to_le_bytes());
            }
            _ => {
                any_wide = true;
                body.extend([9, 16, 0, 0]);
                body.extend(apic_id.to_le_bytes());
                body.extend(flags.to_le_bytes());
                body.extend(processor_uid.to_le_bytes());
            }
        }
    }
    for ioapic in &platform.ioapics {
        body.extend([1, 12, ioapic.id, 0]);
        body.extend(ioapic.address.to_le_bytes());
        body.extend(ioapic.gsi_base.to_le_bytes());
    }
    for SourceOverride {
        isa_irq,
        gsi,
        polarity,
        trigger,
    } in &platform.overrides
    {
        body.extend([2, 10, 0 /* ISA */, *isa_irq]);
        body.extend(gsi.to_le_bytes());
        body.extend(interrupt_flags(*polarity, *trigger).to_le_bytes());
    }
    if any_narrow {
        body.extend([4, 6, 0xff, 0, 0, LINT_NMI]); // all processors, polarity and trigger of the bus
    }
    if any_wide {
        body.extend([10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, LINT_NMI, 0, 0, 0]);
    }
    sdt(*b"APIC", 5, &body)
}

/// Serial port console redirection table, revision 2 (Microsoft, SPCR).
fn spcr(console: &Spcr) -> Vec<u8> {
    const FULL_16550: u8 = 0;
    const INTERRUPT_8259: u8 = 1 << 0;
    const INTERRUPT_IOAPIC: u8 = 1 << 1;
    const ANSI: u8 = 3;
    const NO_PCI: [u8; 4] = [0xff; 4];
    let (kind, irq) = match u8::try_from(console.gsi) {
        Ok(irq) if irq < 16 => (INTERRUPT_8259 | INTERRUPT_IOAPIC, irq),
        _ => (INTERRUPT_IOAPIC, 0),
    };
    let baud = match console.baud {
        9600 => 3,
        19200 => 4,
        57600 => 6,
        115_200 => 7,
        _ => 0, // as the firmware left it
    };
    let mut body = vec![FULL_16550, 0, 0, 0];
    body.extend(io_register(console.port, 8));
    body.extend([kind, irq]);
    body.extend(console.gsi.to_le_bytes());
    body.extend([
        baud, 0, /* no parity */
        1, /* stop bit */
        0, /* no flow control */
        ANSI, 0,
    ]);
    body.extend(NO_PCI);
    body.extend([0; 3]); // bus, device, function
    body.extend([0; 4]); // flags
    body.extend([0; 5]); // segment, reserved
    sdt(*b"SPCR", 2, &body)
}
