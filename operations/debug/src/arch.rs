//! x86-64 as gdb is told about it: every register once, in one table.
//!
//! The names and features are those of gdb's manual ("i386 Features", appendix G.5.3); the control
//! registers and MSRs stand in a feature of our own, which gdb shows like any other.

use gdbstub::arch::{Arch, RegId};
use nyx_hypervisor::{FpuRegisters, Registers};
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

/// What a row of the table stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15.
    General(usize),
    Rip,
    Flags,
    /// Selectors of CS, SS, DS, ES, FS, GS, TR, LDT.
    Selector(usize),
    /// The same segments' bases.
    Base(usize),
    St(usize),
    /// Control, status, tag, fiseg, fioff, foseg, fooff, opcode.
    Fpu(usize),
    Xmm(usize),
    Mxcsr,
    YmmHigh(usize),
    Cr(u8),
    Efer,
    ApicBase,
    GdtBase,
    IdtBase,
    /// One of [`MSRS`].
    Msr(usize),
}

struct Row {
    name: String,
    bytes: usize,
    kind: &'static str,
    place: Place,
}

/// MSRs shown as registers (Intel SDM vol. 4 table 2-2); others are reached by `monitor msr`.
pub(crate) const MSRS: [(u32, &str); 10] = [
    (0xc000_0102, "k_gs_base"),
    (0xc000_0081, "star"),
    (0xc000_0082, "lstar"),
    (0xc000_0083, "cstar"),
    (0xc000_0084, "sfmask"),
    (0xc000_0103, "tsc_aux"),
    (0x174, "sysenter_cs"),
    (0x175, "sysenter_esp"),
    (0x176, "sysenter_eip"),
    (0x277, "pat"),
];

const GENERAL: [&str; 16] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
const SEGMENTS: [&str; 8] = ["cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr"];
/// Segments that gdb knows itself.
const CORE_SEGMENTS: usize = 6;
const FPU: [&str; 8] = [
    "fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop",
];

/// The features and their rows.
fn features() -> Vec<(&'static str, Vec<Row>)> {
    let row = |name: &str, bytes, kind, place| Row {
        name: name.to_owned(),
        bytes,
        kind,
        place,
    };
    let mut core = Vec::new();
    for (n, name) in GENERAL.into_iter().enumerate() {
        let kind = match name {
            "rbp" | "rsp" => "data_ptr",
            _ => "int64",
        };
        core.push(row(name, 8, kind, Place::General(n)));
    }
    core.push(row("rip", 8, "code_ptr", Place::Rip));
    core.push(row("eflags", 4, "eflags", Place::Flags));
    for (n, name) in SEGMENTS.into_iter().enumerate().take(CORE_SEGMENTS) {
        core.push(row(name, 4, "int32", Place::Selector(n)));
    }
    for n in 0..8 {
        core.push(row(&format!("st{n}"), 10, "i387_ext", Place::St(n)));
    }
    for (n, name) in FPU.into_iter().enumerate() {
        core.push(row(name, 4, "int", Place::Fpu(n)));
    }
    let mut sse: Vec<_> = (0..16)
        .map(|n| row(&format!("xmm{n}"), 16, "vec128", Place::Xmm(n)))
        .collect();
    sse.push(row("mxcsr", 4, "mxcsr", Place::Mxcsr));
    let bases = vec![
        row("fs_base", 8, "int64", Place::Base(4)),
        row("gs_base", 8, "int64", Place::Base(5)),
    ];
    let avx = (0..16)
        .map(|n| row(&format!("ymm{n}h"), 16, "uint128", Place::YmmHigh(n)))
        .collect();
    let mut system = vec![
        row("cr0", 8, "cr0", Place::Cr(0)),
        row("cr2", 8, "data_ptr", Place::Cr(2)),
        row("cr3", 8, "int64", Place::Cr(3)),
        row("cr4", 8, "cr4", Place::Cr(4)),
        row("cr8", 8, "int64", Place::Cr(8)),
        row("efer", 8, "efer", Place::Efer),
        row("apic_base", 8, "int64", Place::ApicBase),
        row("gdtr_base", 8, "data_ptr", Place::GdtBase),
        row("idtr_base", 8, "data_ptr", Place::IdtBase),
        row("tr", 4, "int32", Place::Selector(6)),
        row("tr_base", 8, "data_ptr", Place::Base(6)),
        row("ldtr", 4, "int32", Place::Selector(7)),
        row("ldtr_base", 8, "data_ptr", Place::Base(7)),
    ];
    for (n, (_, name)) in MSRS.into_iter().enumerate() {
        system.push(row(name, 8, "int64", Place::Msr(n)));
    }
    vec![
        ("org.gnu.gdb.i386.core", core),
        ("org.gnu.gdb.i386.sse", sse),
        ("org.gnu.gdb.i386.segments", bases),
        ("org.gnu.gdb.i386.avx", avx),
        ("org.nyx.x86.system", system),
    ]
}

static FEATURES: LazyLock<Vec<(&'static str, Vec<Row>)>> = LazyLock::new(features);

fn rows() -> impl Iterator<Item = &'static Row> {
    FEATURES.iter().flat_map(|(_, rows)| rows)
}

/// Names of flag bits: (name, bit).
type Bits = &'static [(&'static str, u8)];

const EFLAGS: Bits = &[
    ("CF", 0),
    ("", 1),
    ("PF", 2),
    ("AF", 4),
    ("ZF", 6),
    ("SF", 7),
    ("TF", 8),
    ("IF", 9),
    ("DF", 10),
    ("OF", 11),
    ("NT", 14),
    ("RF", 16),
    ("VM", 17),
    ("AC", 18),
    ("VIF", 19),
    ("VIP", 20),
    ("ID", 21),
];
const MXCSR: Bits = &[
    ("IE", 0),
    ("DE", 1),
    ("ZE", 2),
    ("OE", 3),
    ("UE", 4),
    ("PE", 5),
    ("DAZ", 6),
    ("IM", 7),
    ("DM", 8),
    ("ZM", 9),
    ("OM", 10),
    ("UM", 11),
    ("PM", 12),
    ("FZ", 15),
];
// Intel SDM vol. 3 §2.5 and §2.2.1.
const CR0: Bits = &[
    ("PE", 0),
    ("MP", 1),
    ("EM", 2),
    ("TS", 3),
    ("ET", 4),
    ("NE", 5),
    ("WP", 16),
    ("AM", 18),
    ("NW", 29),
    ("CD", 30),
    ("PG", 31),
];
const CR4: Bits = &[
    ("VME", 0),
    ("PVI", 1),
    ("TSD", 2),
    ("DE", 3),
    ("PSE", 4),
    ("PAE", 5),
    ("MCE", 6),
    ("PGE", 7),
    ("PCE", 8),
    ("OSFXSR", 9),
    ("OSXMMEXCPT", 10),
    ("UMIP", 11),
    ("LA57", 12),
    ("VMXE", 13),
    ("SMXE", 14),
    ("FSGSBASE", 16),
    ("PCIDE", 17),
    ("OSXSAVE", 18),
    ("SMEP", 20),
    ("SMAP", 21),
    ("PKE", 22),
    ("CET", 23),
    ("PKS", 24),
];
const EFER: Bits = &[
    ("SCE", 0),
    ("LME", 8),
    ("LMA", 10),
    ("NXE", 11),
    ("SVME", 12),
];

static XML: LazyLock<String> = LazyLock::new(xml);

fn xml() -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">\
         <target version=\"1.0\"><architecture>i386:x86-64</architecture>",
    );
    for (feature, rows) in FEATURES.iter() {
        // Writing to a string cannot fail.
        let _ = write!(xml, "<feature name=\"{feature}\">");
        let flags: &[(&str, usize, Bits)] = match *feature {
            "org.gnu.gdb.i386.core" => &[("eflags", 4, EFLAGS)],
            "org.gnu.gdb.i386.sse" => &[("mxcsr", 4, MXCSR)],
            "org.nyx.x86.system" => &[("cr0", 8, CR0), ("cr4", 8, CR4), ("efer", 8, EFER)],
            _ => &[],
        };
        for (id, size, bits) in flags {
            let _ = write!(xml, "<flags id=\"{id}\" size=\"{size}\">");
            for (name, bit) in *bits {
                let _ = write!(
                    xml,
                    "<field name=\"{name}\" start=\"{bit}\" end=\"{bit}\"/>"
                );
            }
            xml.push_str("</flags>");
        }
        if *feature == "org.gnu.gdb.i386.sse" {
            let vectors = [
                ("v4f", "ieee_single", 4),
                ("v2d", "ieee_double", 2),
                ("v16i8", "int8", 16),
                ("v8i16", "int16", 8),
                ("v4i32", "int32", 4),
                ("v2i64", "int64", 2),
            ];
            let names = [
                "v4_float",
                "v2_double",
                "v16_int8",
                "v8_int16",
                "v4_int32",
                "v2_int64",
            ];
            for (id, of, count) in vectors {
                let _ = write!(xml, "<vector id=\"{id}\" type=\"{of}\" count=\"{count}\"/>");
            }
            xml.push_str("<union id=\"vec128\">");
            for (name, (id, _, _)) in names.into_iter().zip(vectors) {
                let _ = write!(xml, "<field name=\"{name}\" type=\"{id}\"/>");
            }
            xml.push_str("<field name=\"uint128\" type=\"uint128\"/></union>");
        }
        for row in rows {
            let Row {
                name, bytes, kind, ..
            } = row;
            let group = match row.place {
                Place::Fpu(_) => " group=\"float\"",
                Place::Msr(_) => " group=\"system\"",
                _ => "",
            };
            let bits = bytes * 8;
            let _ = write!(
                xml,
                "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"{group}/>"
            );
        }
        xml.push_str("</feature>");
    }
    xml.push_str("</target>");
    xml
}

/// Everything that gdb can ask of one vCPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct AllRegisters {
    pub(crate) cpu: Registers,
    pub(crate) fpu: FpuRegisters,
    /// The values of [`MSRS`].
    pub(crate) msrs: [Option<u64>; MSRS.len()],
}

/// x87's tag word from the tag byte: which registers are valid, zero, special or empty (Intel SDM
/// vol. 1 §8.1.7 and §10.5.1.1).
fn tag_word(fpu: &FpuRegisters) -> u16 {
    let top = usize::from(fpu.fsw >> 11 & 7);
    (0..8).fold(0, |word, physical| {
        let st = fpu.st[(physical + 8 - top) % 8];
        let exponent = u16::from_le_bytes([st[8], st[9]]) & 0x7fff;
        let mantissa = st[..8]
            .iter()
            .rev()
            .fold(0_u64, |m, b| m << 8 | u64::from(*b));
        let tag = match (fpu.ftw >> physical & 1, exponent, mantissa) {
            (0, _, _) => 3,
            (_, 0, 0) => 1,
            (_, 0 | 0x7fff, _) => 2,
            (_, _, m) if m >> 63 == 0 => 2,
            _ => 0,
        };
        word | tag << (2 * physical)
    })
}

fn tag_byte(word: u16) -> u8 {
    (0..8).fold(0, |byte, n| byte | u8::from(word >> (2 * n) & 3 != 3) << n)
}

impl AllRegisters {
    fn general(&mut self, n: usize) -> Option<&mut u64> {
        let r = &mut self.cpu;
        [
            &mut r.rax, &mut r.rbx, &mut r.rcx, &mut r.rdx, &mut r.rsi, &mut r.rdi, &mut r.rbp,
            &mut r.rsp, &mut r.r8, &mut r.r9, &mut r.r10, &mut r.r11, &mut r.r12, &mut r.r13,
            &mut r.r14, &mut r.r15,
        ]
        .into_iter()
        .nth(n)
    }

    fn segment(&mut self, n: usize) -> Option<&mut nyx_hypervisor::Segment> {
        let r = &mut self.cpu;
        [
            &mut r.cs, &mut r.ss, &mut r.ds, &mut r.es, &mut r.fs, &mut r.gs, &mut r.tr, &mut r.ldt,
        ]
        .into_iter()
        .nth(n)
    }

    /// The value at `place`; `None` where this vCPU has none.
    fn value(&self, place: Place) -> Option<u128> {
        // The lists of places are of references to change; a copy serves for reading.
        let mut copy = self.clone();
        Some(match place {
            Place::General(n) => (*copy.general(n)?).into(),
            Place::Rip => self.cpu.rip.into(),
            Place::Flags => self.cpu.rflags.into(),
            Place::Selector(n) => copy.segment(n)?.selector.into(),
            Place::Base(n) => copy.segment(n)?.base.into(),
            Place::St(n) => {
                let mut bytes = [0; 16];
                bytes[..10].copy_from_slice(self.fpu.st.get(n)?);
                u128::from_le_bytes(bytes)
            }
            Place::Fpu(n) => match n {
                0 => self.fpu.fcw.into(),
                1 => self.fpu.fsw.into(),
                2 => tag_word(&self.fpu).into(),
                3 => (self.fpu.fip >> 32 & 0xffff).into(),
                4 => (self.fpu.fip & 0xffff_ffff).into(),
                5 => (self.fpu.fdp >> 32 & 0xffff).into(),
                6 => (self.fpu.fdp & 0xffff_ffff).into(),
                _ => self.fpu.fop.into(),
            },
            Place::Xmm(n) => *self.fpu.xmm.get(n)?,
            Place::Mxcsr => self.fpu.mxcsr.into(),
            Place::YmmHigh(n) => *self.fpu.ymm_high.as_ref()?.get(n)?,
            Place::Cr(0) => self.cpu.cr0.into(),
            Place::Cr(2) => self.cpu.cr2.into(),
            Place::Cr(3) => self.cpu.cr3.into(),
            Place::Cr(4) => self.cpu.cr4.into(),
            Place::Cr(_) => self.cpu.cr8.into(),
            Place::Efer => self.cpu.efer.into(),
            Place::ApicBase => self.cpu.apic_base.into(),
            Place::GdtBase => self.cpu.gdt.base.into(),
            Place::IdtBase => self.cpu.idt.base.into(),
            Place::Msr(n) => (*self.msrs.get(n)?)?.into(),
        })
    }

    /// Sets the value at `place`; `None` where this vCPU has none.
    fn set_value(&mut self, place: Place, value: u128) -> Option<()> {
        let (word, half) = (value as u64, value as u32 as u64);
        match place {
            Place::General(n) => *self.general(n)? = word,
            Place::Rip => self.cpu.rip = word,
            // The upper half is reserved; gdb knows 32 bits.
            Place::Flags => self.cpu.rflags = half,
            Place::Selector(n) => self.segment(n)?.selector = value as u16,
            Place::Base(n) => self.segment(n)?.base = word,
            Place::St(n) => {
                let st = self.fpu.st.get_mut(n)?;
                st.copy_from_slice(&value.to_le_bytes()[..10]);
            }
            Place::Fpu(n) => {
                let fpu = &mut self.fpu;
                match n {
                    0 => fpu.fcw = value as u16,
                    1 => fpu.fsw = value as u16,
                    2 => fpu.ftw = tag_byte(value as u16),
                    3 => fpu.fip = fpu.fip & 0xffff_ffff | (half & 0xffff) << 32,
                    4 => fpu.fip = fpu.fip & !0xffff_ffff | half,
                    5 => fpu.fdp = fpu.fdp & 0xffff_ffff | (half & 0xffff) << 32,
                    6 => fpu.fdp = fpu.fdp & !0xffff_ffff | half,
                    _ => fpu.fop = value as u16,
                }
            }
            Place::Xmm(n) => *self.fpu.xmm.get_mut(n)? = value,
            Place::Mxcsr => self.fpu.mxcsr = value as u32,
            Place::YmmHigh(n) => *self.fpu.ymm_high.as_mut()?.get_mut(n)? = value,
            Place::Cr(0) => self.cpu.cr0 = word,
            Place::Cr(2) => self.cpu.cr2 = word,
            Place::Cr(3) => self.cpu.cr3 = word,
            Place::Cr(4) => self.cpu.cr4 = word,
            Place::Cr(_) => self.cpu.cr8 = word,
            Place::Efer => self.cpu.efer = word,
            Place::ApicBase => self.cpu.apic_base = word,
            Place::GdtBase => self.cpu.gdt.base = word,
            Place::IdtBase => self.cpu.idt.base = word,
            Place::Msr(n) => *self.msrs.get_mut(n)? = Some(word),
        }
        Some(())
    }

    /// The bytes of `register`; none where this vCPU lacks it.
    pub(crate) fn get(&self, register: RegisterId, bytes: &mut [u8]) -> usize {
        let Some(row) = rows().nth(register.0) else {
            return 0;
        };
        let Some(value) = self.value(row.place) else {
            return 0;
        };
        match bytes.get_mut(..row.bytes) {
            Some(place) => {
                place.copy_from_slice(&value.to_le_bytes()[..row.bytes]);
                row.bytes
            }
            None => 0,
        }
    }

    /// Sets `register`; `None` where this vCPU lacks it or the size differs.
    pub(crate) fn set(&mut self, register: RegisterId, bytes: &[u8]) -> Option<()> {
        let row = rows().nth(register.0)?;
        (bytes.len() == row.bytes).then_some(())?;
        let mut whole = [0; 16];
        whole[..row.bytes].copy_from_slice(bytes);
        self.set_value(row.place, u128::from_le_bytes(whole))
    }
}

impl gdbstub::arch::Registers for AllRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.cpu.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        for row in rows() {
            let bytes = self.value(row.place).map(u128::to_le_bytes);
            for n in 0..row.bytes {
                write_byte(bytes.and_then(|b| b.get(n).copied()));
            }
        }
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let mut rest = bytes;
        for row in rows() {
            let (own, after) = rest.split_at_checked(row.bytes).ok_or(())?;
            let mut whole = [0; 16];
            whole[..row.bytes].copy_from_slice(own);
            // What this vCPU lacks came as zeros and goes nowhere.
            let _ = self.set_value(row.place, u128::from_le_bytes(whole));
            rest = after;
        }
        Ok(())
    }
}

/// A register by its number in the description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegisterId(usize);

impl RegId for RegisterId {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let row = rows().nth(id)?;
        Some((Self(id), NonZeroUsize::new(row.bytes)))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

/// A vCPU in long mode or on the way there.
pub(crate) enum X86_64 {}

impl Arch for X86_64 {
    type Usize = u64;
    type Registers = AllRegisters;
    type BreakpointKind = usize;
    type RegId = RegisterId;

    fn target_description_xml() -> Option<&'static str> {
        Some(&XML)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gdbstub::arch::Registers as _;

    fn id(name: &str) -> RegisterId {
        RegisterId(rows().position(|row| row.name == name).unwrap())
    }

    fn read(all: &AllRegisters, name: &str) -> Vec<u8> {
        let mut bytes = [0; 16];
        let len = all.get(id(name), &mut bytes);
        bytes[..len].to_vec()
    }

    #[test]
    fn every_register_is_written_and_read_back_alone() {
        for (n, row) in rows().enumerate() {
            let mut all = AllRegisters::default();
            all.fpu.ymm_high = Some([0; 16]);
            let mut bytes = vec![0x11; row.bytes];
            // Registers of gdb's 32 bits that are narrower in the processor.
            if matches!(row.place, Place::Selector(_) | Place::Fpu(0..=3 | 5 | 7)) {
                bytes[2..].fill(0);
            }
            // All of x87's registers "zero".
            if row.place == Place::Fpu(2) {
                bytes[..2].fill(0x55);
            }
            all.set(RegisterId(n), &bytes).unwrap();
            assert_eq!(read(&all, &row.name), bytes, "{}", row.name);
            assert_ne!(all, AllRegisters::default(), "{}", row.name);
            assert_eq!(all.set(RegisterId(n), &bytes[1..]), None);
        }
    }

    #[test]
    fn all_registers_go_through_the_packet_and_absent_ones_stay_so() {
        let mut all = AllRegisters::default();
        all.cpu.rip = 0xffff_ffff_8100_0000;
        all.cpu.cr3 = 0x1234_5000;
        all.cpu.gs.base = 7;
        all.fpu.xmm[15] = u128::MAX - 1;
        all.msrs[2] = Some(0xdead);
        let mut bytes = Vec::new();
        all.gdb_serialize(|byte| bytes.push(byte));
        let missing = bytes.iter().filter(|b| b.is_none()).count();
        assert_eq!(missing, 16 * 16 + 8 * (MSRS.len() - 1));
        // As gdb sends it back: zeros for what is not there.
        let bytes: Vec<u8> = bytes.into_iter().map(|b| b.unwrap_or(0)).collect();
        let mut back = AllRegisters::default();
        back.gdb_deserialize(&bytes).unwrap();
        assert_eq!(back.cpu, all.cpu);
        assert_eq!(back.fpu, all.fpu);
        assert_eq!(back.msrs[2], all.msrs[2]);
        assert!(back.gdb_deserialize(&bytes[1..]).is_err());
    }

    #[test]
    fn x87_tags_are_worked_out() {
        let mut fpu = FpuRegisters {
            ftw: 0b1110_0000,
            fsw: 5 << 11,
            ..FpuRegisters::default()
        };
        fpu.st[0] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]; // 1.0 in register 5
        fpu.st[2] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f]; // infinity in register 7
        assert_eq!(tag_word(&fpu), 0b10_01_00_11_11_11_11_11);
        assert_eq!(tag_byte(tag_word(&fpu)), fpu.ftw);
    }

    #[test]
    fn the_description_names_each_register_once() {
        let xml = X86_64::target_description_xml().unwrap();
        for name in [
            "rip", "fs_base", "cr3", "cr8", "efer", "lstar", "ymm15h", "xmm0",
        ] {
            assert_eq!(
                xml.matches(&format!("name=\"{name}\"")).count(),
                1,
                "{name}"
            );
        }
        assert!(xml.len() < 16 << 10, "{}", xml.len());
    }
}
