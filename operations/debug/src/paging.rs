//! From linear to physical addresses through a guest's page tables (Intel SDM vol. 3 chapter 4).
//!
//! Written by the guest, so nothing in them is trusted: a walk takes at most five reads and cannot
//! loop. Access rights are not looked at: a debugger may look where the guest may not.

use nyx_hypervisor::Registers;

/// Where page tables are read from.
pub trait PhysicalRead {
    /// The eight bytes at guest-physical `address`, if there is memory.
    fn word(&self, address: u64) -> Option<u64>;
}

impl<F: Fn(u64) -> Option<u64>> PhysicalRead for F {
    fn word(&self, address: u64) -> Option<u64> {
        self(address)
    }
}

/// A translated address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub physical: u64,
    /// Bytes from there to the end of the page.
    pub left: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Linear addresses are physical.
    Off,
    /// 32-bit, with 4 MiB pages if so.
    Legacy { large: bool },
    /// Physical address extension.
    Pae,
    /// Long mode with this many levels.
    Long { levels: u32 },
}

/// How a vCPU translates addresses at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    mode: Mode,
    cr3: u64,
}

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Bits 51:12 of an entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

impl Paging {
    /// As these registers say.
    pub fn of(registers: &Registers) -> Self {
        let Registers {
            cr0,
            cr3,
            cr4,
            efer,
            ..
        } = *registers;
        let mode = if cr0 & CR0_PG == 0 {
            Mode::Off
        } else if efer & EFER_LMA != 0 {
            let levels = if cr4 & CR4_LA57 != 0 { 5 } else { 4 };
            Mode::Long { levels }
        } else if cr4 & CR4_PAE != 0 {
            Mode::Pae
        } else {
            let large = cr4 & CR4_PSE != 0;
            Mode::Legacy { large }
        };
        Self { mode, cr3 }
    }

    /// The physical address behind `linear`; `None` if it is not mapped.
    pub fn translate(&self, memory: &impl PhysicalRead, linear: u64) -> Option<Translation> {
        match self.mode {
            Mode::Off => (linear <= u64::from(u32::MAX)).then(|| at(linear, linear, 1 << 12)),
            Mode::Legacy { large } => self.legacy(memory, u32::try_from(linear).ok()?, large),
            Mode::Pae => {
                let linear = u64::from(u32::try_from(linear).ok()?);
                // The four pointers lie at bits 31:5 of CR3 (Intel SDM vol. 3 §4.4.1).
                let pointers = self.cr3 & 0xffff_ffe0;
                let entry = present(memory.word(pointers + 8 * (linear >> 30))?)?;
                walk(memory, entry & FRAME, linear, 2)
            }
            Mode::Long { levels } => {
                // Canonical: all bits above the translated ones equal the highest of those.
                let unused = 64 - (12 + 9 * levels);
                if ((linear << unused) as i64) >> unused != linear as i64 {
                    return None;
                }
                walk(memory, self.cr3 & FRAME, linear, levels)
            }
        }
    }

    fn legacy(&self, memory: &impl PhysicalRead, linear: u32, large: bool) -> Option<Translation> {
        let linear = u64::from(linear);
        let entry = |address: u64| {
            // Entries of four bytes; the words read are of eight.
            let word = memory.word(address & !7)?;
            present(if address & 4 == 0 {
                word & 0xffff_ffff
            } else {
                word >> 32
            })
        };
        let directory = entry((self.cr3 & 0xffff_f000) + 4 * (linear >> 22))?;
        if large && directory & LARGE != 0 {
            // Bits 20:13 are bits 39:32 of the address (Intel SDM vol. 3 §4.3, PSE-36).
            let base = directory & 0xffc0_0000 | (directory >> 13 & 0xff) << 32;
            return Some(at(linear, base, 1 << 22));
        }
        let table = entry((directory & 0xffff_f000) + 4 * (linear >> 12 & 0x3ff))?;
        Some(at(linear, table & 0xffff_f000, 1 << 12))
    }
}

fn present(entry: u64) -> Option<u64> {
    (entry & PRESENT != 0).then_some(entry)
}

/// The place of `linear` in the page of `size` bytes at `base`.
fn at(linear: u64, base: u64, size: u64) -> Translation {
    let offset = linear & (size - 1);
    Translation {
        physical: base & !(size - 1) | offset,
        left: size - offset,
    }
}

/// Walks `levels` tables of 512 entries from the one at `table` on.
fn walk(
    memory: &impl PhysicalRead,
    mut table: u64,
    linear: u64,
    levels: u32,
) -> Option<Translation> {
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let entry = present(memory.word(table + 8 * (linear >> shift & 0x1ff))?)?;
        // Pages of 4 KiB, 2 MiB and 1 GiB; the bit is reserved further up.
        if level == 0 || level <= 2 && entry & LARGE != 0 {
            return Some(at(linear, entry & FRAME, 1 << shift));
        }
        table = entry & FRAME;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    struct Tables(BTreeMap<u64, u64>);
    impl PhysicalRead for Tables {
        fn word(&self, address: u64) -> Option<u64> {
            (address < 1 << 40).then(|| self.0.get(&address).copied().unwrap_or(0))
        }
    }

    fn long(la57: bool) -> Paging {
        Paging::of(&Registers {
            cr0: CR0_PG | 1,
            cr3: 0x1000 | 0x18,
            cr4: CR4_PAE | if la57 { CR4_LA57 } else { 0 },
            efer: EFER_LMA,
            ..Registers::default()
        })
    }

    #[test]
    fn four_levels_with_every_page_size() {
        const NX: u64 = 1 << 63;
        let tables = Tables(BTreeMap::from([
            (0x1000 + 8 * 511, 0x2003),
            (0x2000 + 8 * 510, 0x3003),
            (0x2000 + 8 * 511, NX | 0x4000_0000 | 0x83),
            (0x3000, 0x4003),
            (0x3008, 0x20_0000 | 0x1083), // a large page with PAT
            (0x4000 + 8 * 5, NX | 0xabc_d003),
        ]));
        let go = |linear| long(false).translate(&tables, linear);
        let found = |physical, left| Some(Translation { physical, left });
        assert_eq!(go(0xffff_ffff_8000_5123), found(0xabc_d123, 0xedd));
        assert_eq!(go(0xffff_ffff_8020_0010), found(0x20_0010, 0x1f_fff0));
        assert_eq!(go(0xffff_ffff_c000_0001), found(0x4000_0001, 0x3fff_ffff));
        assert_eq!(go(0xffff_ffff_8000_6000), None, "not present");
        assert_eq!(go(0x0000_ffff_8000_5123), None, "not canonical");
        assert_eq!(go(0x7fff_8000_5123), None, "another half");
    }

    #[test]
    fn five_levels_reach_further() {
        let tables = Tables(BTreeMap::from([
            (0x1000 + 8 * 0x101, 0x2003),
            (0x2000, 0x3003),
            (0x3000, 0x4003),
            (0x4000, 0x5003),
            (0x5000, 0x6003),
        ]));
        let linear = 0xff01_0000_0000_0008;
        assert_eq!(
            long(true).translate(&tables, linear),
            Some(Translation {
                physical: 0x6008,
                left: 0xff8
            })
        );
        assert_eq!(long(false).translate(&tables, linear), None);
    }

    #[test]
    fn older_modes() {
        let tables = Tables(BTreeMap::from([
            // Legacy: entry 1 a table, entry 2 a page of 4 MiB above 4 GiB.
            (0x1000, 0x2003 << 32),
            (0x1008, 0x0140_0000 | 1 << 13 | 0x83),
            (0x2000, 0x7003),
            // PAE: pointer 3.
            (0x1038, 0x3001),
            (0x3000, 0x4003),
            (0x4008, 0x9003),
        ]));
        let mut registers = Registers {
            cr0: CR0_PG | 1,
            cr3: 0x1000,
            cr4: CR4_PSE,
            ..Registers::default()
        };
        let go = |registers: &Registers, linear| {
            Paging::of(registers)
                .translate(&tables, linear)
                .map(|t| t.physical)
        };
        assert_eq!(go(&registers, 0x40_0456), Some(0x7456));
        assert_eq!(go(&registers, 0x80_0456), Some(0x1_0140_0456));
        assert_eq!(go(&registers, 0x1_0040_0456), None);
        registers.cr4 = CR4_PAE;
        registers.cr3 = 0x1020;
        assert_eq!(go(&registers, 0xc000_1234), Some(0x9234));
        registers.cr0 = 1;
        assert_eq!(go(&registers, 0x1234), Some(0x1234));
    }

    #[test]
    fn tables_that_point_to_themselves_or_nowhere_end() {
        let tables = Tables(BTreeMap::from([(0x1000, 0x1003), (0x1008, FRAME | 3)]));
        // Every level leads to the same table; in the end it is the page.
        let found = long(false).translate(&tables, 0x10).map(|t| t.physical);
        assert_eq!(found, Some(0x1010));
        assert_eq!(long(false).translate(&tables, 1 << 39), None);
    }
}
