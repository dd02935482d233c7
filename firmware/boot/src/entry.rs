//! The state a processor must have when it enters the kernel, as plain values.

use crate::layout;

/// Which entry convention a kernel is started by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// PVH: 32-bit protected mode, paging off, `ebx` = start info
    /// (Xen, docs/misc/pvh.pandoc; the ABI Linux implements in arch/x86/platform/pvh).
    Pvh,
    /// Linux's 64-bit boot protocol: long mode, identity map, `rsi` = `boot_params`
    /// (Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
    Linux64,
}

/// One segment register with its hidden part, in the fields of a descriptor (Intel SDM vol. 3 §3.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Visible selector.
    pub selector: u16,
    /// Descriptor type, 4 bits.
    pub type_: u8,
    /// Code or data (true) or system (false) segment.
    pub s: bool,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// 64-bit code segment.
    pub l: bool,
    /// Default operand size 32 bits.
    pub db: bool,
    /// Limit counted in 4 KiB pages in the descriptor.
    pub g: bool,
}

impl Segment {
    /// The low eight bytes of the descriptor that loads this segment (SDM vol. 3 figure 3-8).
    pub fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.g { self.limit >> 12 } else { self.limit });
        let base = self.base;
        let access = u64::from(self.type_ & 0xf)
            | u64::from(self.s) << 4
            | u64::from(self.dpl & 3) << 5
            | u64::from(self.present) << 7;
        let flags = u64::from(self.l) << 1 | u64::from(self.db) << 2 | u64::from(self.g) << 3;
        (limit & 0xffff)
            | (base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | flags << 52
            | (base >> 24 & 0xff) << 56
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit: size in bytes less one.
    pub limit: u16,
}

/// Everything the boot processor's registers must hold at the kernel's first instruction.
/// Registers not named are zero. The other processors wait for INIT and SIPI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuEntry {
    /// The convention these values follow.
    pub protocol: Protocol,
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer (neither protocol promises a stack; the kernel sets its own).
    pub rsp: u64,
    /// PVH: the start info's address.
    pub rbx: u64,
    /// Linux: the address of `boot_params`.
    pub rsi: u64,
    /// Flags: interrupts off.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// Data segments DS, ES, FS, GS and SS: all the same.
    pub data: Segment,
    /// Task register: a busy TSS.
    pub tr: Segment,
    /// Global descriptor table, written to guest memory by the loader.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table: none.
    pub idt: DescriptorTable,
}

/// `__BOOT_CS` of Linux's boot protocol.
const CODE_SELECTOR: u16 = 0x10;
/// `__BOOT_DS` of Linux's boot protocol.
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
/// Null, null, code, data, and a task descriptor of two slots in long mode.
const GDT_SLOTS: usize = 6;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4; // reads as one on every processor since the 486
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

impl CpuEntry {
    /// 32-bit entry at `rip` as PVH demands: flat segments, paging off, TSS with base 0 and limit 0x67.
    pub fn pvh(rip: u32) -> Self {
        Self::flat(Protocol::Pvh, u64::from(rip))
    }

    /// 64-bit entry at `rip` with `rsi` pointing at [`layout::BOOT_PARAMS`].
    pub fn linux64(rip: u64) -> Self {
        Self::flat(Protocol::Linux64, rip)
    }

    fn flat(protocol: Protocol, rip: u64) -> Self {
        let long = protocol == Protocol::Linux64;
        let flat = Segment {
            base: 0,
            limit: 0xffff_ffff,
            selector: DATA_SELECTOR,
            type_: 0x3, // read/write, accessed
            s: true,
            dpl: 0,
            present: true,
            l: false,
            db: true,
            g: true,
        };
        CpuEntry {
            protocol,
            rip,
            rsp: layout::STACK_TOP,
            rbx: if long { 0 } else { layout::PVH_START_INFO },
            rsi: if long { layout::BOOT_PARAMS } else { 0 },
            rflags: RFLAGS_RESERVED,
            cr0: CR0_PE | CR0_ET | if long { CR0_PG } else { 0 },
            cr3: if long { layout::PAGE_TABLES } else { 0 },
            cr4: if long { CR4_PAE } else { 0 },
            efer: if long { EFER_LME | EFER_LMA } else { 0 },
            // Execute/read, accessed; the L and D bits exclude each other (SDM vol. 3 §5.2.1).
            cs: Segment {
                selector: CODE_SELECTOR,
                type_: 0xb,
                l: long,
                db: !long,
                ..flat
            },
            data: flat,
            // Busy TSS: 11 means 32-bit in protected mode, 64-bit in long mode. VM entry refuses any other.
            tr: Segment {
                limit: 0x67,
                selector: TASK_SELECTOR,
                type_: 0xb,
                s: false,
                db: false,
                g: false,
                ..flat
            },
            gdt: DescriptorTable {
                base: layout::GDT,
                limit: (GDT_SLOTS * 8 - 1) as u16,
            },
            idt: DescriptorTable::default(),
        }
    }

    /// The global descriptor table matching the segment registers.
    pub fn gdt_bytes(&self) -> [u8; GDT_SLOTS * 8] {
        let mut table = [0; GDT_SLOTS * 8];
        for segment in [&self.cs, &self.data, &self.tr] {
            let slot = usize::from(segment.selector);
            if let Some(bytes) = table.get_mut(slot..slot + 8) {
                bytes.copy_from_slice(&segment.descriptor().to_le_bytes());
            }
        }
        table
    }
}

/// Page tables at [`layout::PAGE_TABLES`] that map the first 4 GiB onto themselves with 2 MiB pages,
/// which every x86-64 processor has, unlike 1 GiB ones.
pub fn identity_page_tables() -> Vec<u8> {
    const PAGE: usize = 4096;
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let base = layout::PAGE_TABLES;
    let pdpt = base + PAGE as u64;
    let directories = pdpt + PAGE as u64;
    let mut entries = vec![0u64; 6 * PAGE / 8];
    for (index, entry) in entries.iter_mut().enumerate() {
        let index = index as u64;
        *entry = match index {
            0 => pdpt | PRESENT_WRITABLE,
            512..516 => (directories + (index - 512) * PAGE as u64) | PRESENT_WRITABLE,
            1024.. => (index - 1024) << 21 | PRESENT_WRITABLE | LARGE,
            _ => 0,
        };
    }
    entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        let long = CpuEntry::linux64(0x100_0200);
        assert_eq!(long.cs.descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(long.data.descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(long.tr.descriptor(), 0x0000_8b00_0000_0067);
        let pvh = CpuEntry::pvh(0x100_0000);
        assert_eq!(pvh.cs.descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(
            pvh.gdt_bytes()[0x10..0x18],
            0x00cf_9b00_0000_ffff_u64.to_le_bytes()
        );
        assert_eq!(pvh.gdt.limit, 47);
        let based = Segment {
            base: 0x1234_5678,
            ..long.tr
        };
        assert_eq!(based.descriptor(), 0x1200_8b34_5678_0067);
    }

    #[test]
    fn entry_modes_follow_their_protocols() {
        let pvh = CpuEntry::pvh(0x100_0000);
        assert_eq!((pvh.cr0, pvh.cr3, pvh.cr4, pvh.efer), (0x11, 0, 0, 0));
        assert_eq!(
            (pvh.rbx, pvh.rsi, pvh.rflags),
            (layout::PVH_START_INFO, 0, 2)
        );
        assert_eq!((pvh.cs.selector, pvh.data.selector), (0x10, 0x18));
        let long = CpuEntry::linux64(0x20_0000);
        assert_eq!((long.cr0, long.cr3, long.cr4), (0x8000_0011, 0x9000, 0x20));
        assert_eq!(
            (long.efer, long.rsi, long.rbx),
            (0x500, layout::BOOT_PARAMS, 0)
        );
    }

    #[test]
    fn identity_map_walks_to_every_address_below_4_gib() {
        let tables = identity_page_tables();
        assert_eq!(tables.len(), 0x6000);
        let entry = |table: u64, index: u64| {
            let at = (table - layout::PAGE_TABLES + index * 8) as usize;
            u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
        };
        for address in (0..4u64 << 30).step_by(0x1ff_f123) {
            let pml4e = entry(layout::PAGE_TABLES, address >> 39 & 511);
            let pdpte = entry(pml4e & !0xfff, address >> 30 & 511);
            let pde = entry(pdpte & !0xfff, address >> 21 & 511);
            assert_eq!((pml4e & 0x83, pdpte & 0x83, pde & 0x83), (3, 3, 0x83));
            assert_eq!((pde & !0x1f_ffff) | (address & 0x1f_ffff), address);
        }
        assert_eq!(
            entry(layout::PAGE_TABLES + 0x1000, 4),
            0,
            "nothing above 4 GiB"
        );
    }
}
