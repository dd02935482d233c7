//! The guest's boot memory map: which physical ranges are RAM, and which it must leave alone.

use std::ops::Range;

use crate::layout::LOW_RAM_NEEDED;

/// Most ranges a boot memory map can carry: the size of the table in Linux's `boot_params`
/// (Linux, Documentation/arch/x86/zero-page.rst, `e820_table`).
pub const MAX_RANGES: usize = 128;

/// What a physical range is. The numbers are those of both e820 (ACPI 6.5 §15, table 15.374) and
/// the PVH start info (`XEN_HVM_MEMMAP_TYPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum MemoryKind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be used: device windows, firmware.
    Reserved = 2,
    /// ACPI tables, usable as RAM once read.
    Acpi = 3,
    /// ACPI memory to be preserved over sleep states; FACS.
    Nvs = 4,
}

/// One entry of the boot memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First guest physical address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// What the range is.
    pub kind: MemoryKind,
}

/// Why a list of ranges is not a boot memory map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryMapError {
    /// More ranges than the boot protocols can carry.
    #[error("the memory map has {0} ranges, but boot protocols carry at most {MAX_RANGES}")]
    TooMany(usize),
    /// A range of no bytes, or one that ends beyond 2^64.
    #[error("the memory map's range of {len:#x} bytes at {base:#x} is empty or ends beyond 2^64")]
    Malformed {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A range that begins before its predecessor ends.
    #[error("the memory map's ranges at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    /// RAM missing where boot structures go.
    #[error("the memory map has no RAM at 0..{LOW_RAM_NEEDED:#x}, where boot structures go")]
    NoLowRam,
}

/// A checked boot memory map: sorted by address, without overlap, low RAM present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    ranges: Vec<MemoryRange>,
}

impl MemoryMap {
    /// Sorts and checks `ranges`.
    pub fn build(mut ranges: Vec<MemoryRange>) -> Result<Self, MemoryMapError> {
        if ranges.len() > MAX_RANGES {
            return Err(MemoryMapError::TooMany(ranges.len()));
        }
        ranges.sort_by_key(|range| range.base);
        let mut previous: Option<Range<u64>> = None;
        for range in &ranges {
            let end = range
                .base
                .checked_add(range.len)
                .filter(|_| range.len > 0)
                .ok_or(MemoryMapError::Malformed {
                    base: range.base,
                    len: range.len,
                })?;
            if let Some(before) = &previous
                && range.base < before.end
            {
                return Err(MemoryMapError::Overlap(before.start, range.base));
            }
            previous = Some(range.base..end);
        }
        let map = MemoryMap { ranges };
        if !map.is_ram(0..LOW_RAM_NEEDED) {
            return Err(MemoryMapError::NoLowRam);
        }
        Ok(map)
    }

    /// The ranges in ascending order.
    pub fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    /// Contiguous stretches of RAM in ascending order, adjacent ranges joined.
    pub fn ram(&self) -> Vec<Range<u64>> {
        let mut stretches: Vec<Range<u64>> = Vec::new();
        for range in self
            .ranges
            .iter()
            .filter(|range| range.kind == MemoryKind::Ram)
        {
            let end = range.base.saturating_add(range.len);
            match stretches.last_mut() {
                Some(last) if last.end == range.base => last.end = end,
                _ => stretches.push(range.base..end),
            }
        }
        stretches
    }

    /// Is every byte of `range` RAM?
    pub fn is_ram(&self, range: Range<u64>) -> bool {
        self.ram()
            .iter()
            .any(|ram| ram.start <= range.start && range.end <= ram.end)
    }

    /// End of the RAM that reaches up from 1 MiB, or of the highest RAM below `limit`, for messages.
    pub(crate) fn ram_end_below(&self, limit: u64) -> u64 {
        self.ram()
            .iter()
            .filter(|ram| ram.start < limit)
            .map(|ram| ram.end.min(limit))
            .max()
            .unwrap_or(0)
    }

    /// The highest page-aligned place for `len` bytes in RAM within `window` that misses `taken`.
    pub(crate) fn highest_fit(
        &self,
        len: u64,
        window: Range<u64>,
        taken: &[Range<u64>],
    ) -> Option<u64> {
        const PAGE: u64 = 4096;
        let mut best = None;
        for ram in self.ram() {
            let floor = ram.start.max(window.start);
            let mut ceiling = ram.end.min(window.end);
            // Walk down past whatever is in the way; each round lowers the ceiling below one obstacle.
            while let Some(place) = ceiling.checked_sub(len).map(|at| at / PAGE * PAGE) {
                if place < floor {
                    break;
                }
                match taken
                    .iter()
                    .filter(|t| t.start < place + len && place < t.end)
                    .map(|t| t.start)
                    .min()
                {
                    Some(obstacle) => ceiling = obstacle,
                    None => {
                        best = best.max(Some(place));
                        break;
                    }
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: u64, len: u64, kind: MemoryKind) -> MemoryRange {
        MemoryRange { base, len, kind }
    }

    fn map() -> MemoryMap {
        MemoryMap::build(vec![
            range(0x10_0000, 0x3ff0_0000, MemoryKind::Ram),
            range(0, 0x9_fc00, MemoryKind::Ram),
            range(0x9_fc00, 0x6_0400, MemoryKind::Reserved),
            range(0x4000_0000, 0x1000_0000, MemoryKind::Ram),
            range(1 << 32, 1 << 30, MemoryKind::Ram),
        ])
        .unwrap()
    }

    #[test]
    fn sorts_and_joins_ram() {
        assert_eq!(
            map().ram(),
            [0..0x9_fc00, 0x10_0000..0x5000_0000, 1 << 32..5 << 30]
        );
        assert!(map().is_ram(0x3fff_f000..0x4000_1000));
        assert!(!map().is_ram(0x9_f000..0xa_0000));
        assert_eq!(map().ram_end_below(1 << 32), 0x5000_0000);
    }

    #[test]
    fn refuses_what_is_no_map() {
        let low = range(0, 0x9_fc00, MemoryKind::Ram);
        assert_eq!(
            MemoryMap::build(vec![low, range(0x9_f000, 0x1000, MemoryKind::Acpi)]),
            Err(MemoryMapError::Overlap(0, 0x9_f000))
        );
        assert_eq!(
            MemoryMap::build(vec![low, range(u64::MAX, 2, MemoryKind::Ram)]),
            Err(MemoryMapError::Malformed {
                base: u64::MAX,
                len: 2
            })
        );
        assert_eq!(
            MemoryMap::build(vec![low, range(1 << 20, 0, MemoryKind::Ram)]),
            Err(MemoryMapError::Malformed {
                base: 1 << 20,
                len: 0
            })
        );
        assert_eq!(MemoryMap::build(vec![]), Err(MemoryMapError::NoLowRam));
        let many = (0..200).map(|i| range(i * 2, 1, MemoryKind::Ram)).collect();
        assert_eq!(MemoryMap::build(many), Err(MemoryMapError::TooMany(200)));
    }

    #[test]
    fn finds_the_highest_place_past_obstacles() {
        let map = map();
        let below = 0x10_0000..1 << 32;
        assert_eq!(
            map.highest_fit(0x1800, below.clone(), &[]),
            Some(0x4fff_e000)
        );
        let taken = [0x4fff_f000..0x5000_0000, 0x4000_0000..0x4fff_e800];
        assert_eq!(
            map.highest_fit(0x1000, below.clone(), &taken),
            Some(0x3fff_f000)
        );
        assert_eq!(
            map.highest_fit(0x1000, 0x10_0000..0x8000_0000, &[]),
            Some(0x4fff_f000)
        );
        assert_eq!(map.highest_fit(0x5000_0000, below, &[]), None);
    }
}
