//! The breakpoints of one debugger: INT3 in guest memory, and the processor's four.

use crate::memory::Physical;
use crate::paging::Paging;
use nyx_hypervisor::{DebugControl, HARDWARE_BREAKPOINTS, HardwareBreakpoint, WatchAccess};
use std::collections::BTreeMap;

/// INT3 (Intel SDM vol. 2).
const INT3: u8 = 0xcc;

/// Most breakpoints in memory: they cost a look at each memory access of the debugger.
const MOST_SOFTWARE: usize = 4096;

/// What a breakpoint waits for, as its user sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BreakpointKind {
    /// INT3 in memory.
    Software,
    /// An instruction, by the processor.
    Hardware,
    /// A write of so many bytes.
    Write(u8),
    /// A read of so many bytes; accesses that change nothing count as reads.
    Read(u8),
    /// A read or a write of so many bytes.
    Access(u8),
}

/// A breakpoint for a list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakpointRow {
    /// Linear address.
    pub address: u64,
    /// What it waits for.
    pub kind: BreakpointKind,
    /// How often it was met.
    pub hits: u64,
}

#[derive(Clone, Copy, Debug)]
struct Software {
    physical: u64,
    original: u8,
    hits: u64,
}

#[derive(Clone, Copy, Debug)]
struct Hardware {
    address: u64,
    kind: BreakpointKind,
    /// What was there at the last look, for [`BreakpointKind::Read`].
    before: u64,
    hits: u64,
}

impl Hardware {
    fn bytes(&self) -> u8 {
        match self.kind {
            BreakpointKind::Software | BreakpointKind::Hardware => 1,
            BreakpointKind::Write(n) | BreakpointKind::Read(n) | BreakpointKind::Access(n) => n,
        }
    }

    fn value(&self, memory: &Physical<'_>, paging: &Paging) -> u64 {
        let mut bytes = [0; 8];
        let len = usize::from(self.bytes()).min(8);
        memory.read_virtual(paging, self.address, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }
}

/// What stopped a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    Software,
    Hardware,
    Watch(BreakpointKind, u64),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Breakpoints {
    software: BTreeMap<u64, Software>,
    hardware: [Option<Hardware>; HARDWARE_BREAKPOINTS],
    /// Those that were met and taken back: gdb takes all of them back at every stop.
    past: BTreeMap<(u64, BreakpointKind), u64>,
}

impl Breakpoints {
    /// Sets INT3 at `address`, by the first of `tables` that map it. Where none does (a kernel that has
    /// not started yet) or memory cannot be written, one of the processor's breakpoints stands in;
    /// `false` when none is left.
    pub(crate) fn add_software(
        &mut self,
        memory: &Physical<'_>,
        tables: &[Paging],
        address: u64,
    ) -> bool {
        if self.software.contains_key(&address)
            || self.find(address, BreakpointKind::Software).is_some()
        {
            return true;
        }
        let room = self.software.len() < MOST_SOFTWARE;
        let placed = room && tables.iter().any(|t| self.place(memory, t, address));
        placed || self.add_hardware(memory, None, address, BreakpointKind::Software)
    }

    fn place(&mut self, memory: &Physical<'_>, paging: &Paging, address: u64) -> bool {
        let Some(found) = paging.translate(memory, address) else {
            return false;
        };
        let physical = found.physical;
        let original = match self.at_physical(physical) {
            // Another linear address of the same place.
            Some(other) => other.original,
            None => {
                let mut byte = [0];
                if memory.read(physical, &mut byte) == 0 || memory.write(physical, &[INT3]) == 0 {
                    return false;
                }
                let mut now = [0];
                memory.read(physical, &mut now);
                if now != [INT3] {
                    return false;
                }
                byte[0]
            }
        };
        let hits = self.past(address, BreakpointKind::Software);
        self.software.insert(
            address,
            Software {
                physical,
                original,
                hits,
            },
        );
        true
    }

    fn at_physical(&self, physical: u64) -> Option<&Software> {
        self.software.values().find(|s| s.physical == physical)
    }

    fn past(&mut self, address: u64, kind: BreakpointKind) -> u64 {
        self.past.remove(&(address, kind)).unwrap_or(0)
    }

    fn remember(&mut self, address: u64, kind: BreakpointKind, hits: u64) {
        if hits != 0 && self.past.len() < MOST_SOFTWARE {
            self.past.insert((address, kind), hits);
        }
    }

    /// Takes a breakpoint of [`Breakpoints::add_software`] back; `false` if there is none.
    pub(crate) fn remove_software(&mut self, memory: &Physical<'_>, address: u64) -> bool {
        let Some(gone) = self.software.remove(&address) else {
            return self.remove_hardware(address, BreakpointKind::Software);
        };
        if self.at_physical(gone.physical).is_none() {
            restore(memory, &gone);
        }
        self.remember(address, BreakpointKind::Software, gone.hits);
        true
    }

    fn find(&self, address: u64, kind: BreakpointKind) -> Option<usize> {
        let same = |h: &Hardware| h.address == address && h.kind == kind;
        self.hardware
            .iter()
            .position(|slot| slot.as_ref().is_some_and(same))
    }

    /// Takes one of the processor's breakpoints; `false` when none is left, or for a length or an
    /// alignment that the processor lacks (Intel SDM vol. 3 §18.2.5).
    pub(crate) fn add_hardware(
        &mut self,
        memory: &Physical<'_>,
        paging: Option<&Paging>,
        address: u64,
        kind: BreakpointKind,
    ) -> bool {
        if self.find(address, kind).is_some() {
            return true;
        }
        let mut new = Hardware {
            address,
            kind,
            before: 0,
            hits: 0,
        };
        let bytes = new.bytes();
        if !matches!(bytes, 1 | 2 | 4 | 8) || !address.is_multiple_of(bytes.into()) {
            return false;
        }
        new.before = paging.map_or(0, |paging| new.value(memory, paging));
        new.hits = self.past(address, kind);
        match self.hardware.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => {
                *slot = Some(new);
                true
            }
            None => false,
        }
    }

    /// Takes it back; `false` if there is none.
    pub(crate) fn remove_hardware(&mut self, address: u64, kind: BreakpointKind) -> bool {
        match self
            .find(address, kind)
            .and_then(|at| self.hardware[at].take())
        {
            Some(gone) => {
                self.remember(address, kind, gone.hits);
                true
            }
            None => false,
        }
    }

    /// Takes all back.
    pub(crate) fn clear(&mut self, memory: &Physical<'_>) {
        for gone in std::mem::take(&mut self.software).values() {
            restore(memory, gone);
        }
        self.hardware = [None; HARDWARE_BREAKPOINTS];
    }

    /// Sets breakpoints in memory again that something has overwritten: a kernel that was loaded
    /// anew.
    pub(crate) fn renew(&mut self, memory: &Physical<'_>) {
        for software in self.software.values_mut() {
            let mut byte = [INT3];
            if memory.read(software.physical, &mut byte) == 1 && byte != [INT3] {
                software.original = byte[0];
                memory.write(software.physical, &[INT3]);
            }
        }
    }

    /// When vCPUs shall stop, but for steps.
    pub(crate) fn control(&self) -> DebugControl {
        let hardware = self.hardware.map(|slot| {
            slot.map(|h| HardwareBreakpoint {
                address: h.address,
                len: h.bytes(),
                access: match h.kind {
                    BreakpointKind::Software | BreakpointKind::Hardware => WatchAccess::Execute,
                    BreakpointKind::Write(_) => WatchAccess::Write,
                    BreakpointKind::Read(_) | BreakpointKind::Access(_) => WatchAccess::ReadWrite,
                },
            })
        });
        DebugControl {
            software: !self.software.is_empty(),
            hardware,
            ..DebugControl::default()
        }
    }

    /// Whether INT3 at `address` is ours, also when met by another linear address; counts it.
    pub(crate) fn met_int3(
        &mut self,
        memory: &Physical<'_>,
        paging: &Paging,
        address: u64,
    ) -> bool {
        if let Some(software) = self.software.get_mut(&address) {
            software.hits += 1;
            return true;
        }
        let Some(found) = paging.translate(memory, address) else {
            return false;
        };
        let mut all = self.software.values_mut();
        match all.find(|s| s.physical == found.physical) {
            Some(software) => {
                software.hits += 1;
                true
            }
            None => false,
        }
    }

    /// What the processor's breakpoint `n` waited for, if that came; counts it.
    pub(crate) fn met_hardware(
        &mut self,
        memory: &Physical<'_>,
        paging: &Paging,
        n: usize,
    ) -> Option<Met> {
        let hardware = self.hardware.get_mut(n)?.as_mut()?;
        let met = match hardware.kind {
            BreakpointKind::Software => Met::Software,
            BreakpointKind::Hardware => Met::Hardware,
            BreakpointKind::Read(_) => {
                // The processor stops at writes too; those show.
                let now = hardware.value(memory, paging);
                if std::mem::replace(&mut hardware.before, now) != now {
                    return None;
                }
                Met::Watch(hardware.kind, hardware.address)
            }
            kind => Met::Watch(kind, hardware.address),
        };
        hardware.hits += 1;
        Some(met)
    }

    /// Whether there is still a watchpoint like that.
    pub(crate) fn watches(&self, kind: BreakpointKind, address: u64) -> bool {
        self.find(address, kind).is_some()
    }

    /// Puts what the guest would see in place of our breakpoints into `bytes`, read at `physical`.
    pub(crate) fn hide(&self, physical: u64, bytes: &mut [u8]) {
        for software in self.software.values() {
            let offset = software.physical.checked_sub(physical);
            let place = offset
                .and_then(|o| usize::try_from(o).ok())
                .and_then(|o| bytes.get_mut(o));
            if let Some(byte) = place {
                *byte = software.original;
            }
        }
    }

    /// `bytes` are about to be written at `physical`: our breakpoints stay, with the new bytes under
    /// them.
    pub(crate) fn keep(&mut self, physical: u64, bytes: &mut [u8]) {
        for software in self.software.values_mut() {
            let offset = software.physical.checked_sub(physical);
            let place = offset
                .and_then(|o| usize::try_from(o).ok())
                .and_then(|o| bytes.get_mut(o));
            if let Some(byte) = place {
                software.original = std::mem::replace(byte, INT3);
            }
        }
    }

    /// All of them, by address, with those that were met before they were taken back.
    pub(crate) fn list(&self) -> Vec<BreakpointRow> {
        let software = self.software.iter().map(|(&address, s)| BreakpointRow {
            address,
            kind: BreakpointKind::Software,
            hits: s.hits,
        });
        let hardware = self.hardware.iter().flatten().map(|h| BreakpointRow {
            address: h.address,
            kind: h.kind,
            hits: h.hits,
        });
        let past = self
            .past
            .iter()
            .map(|(&(address, kind), &hits)| BreakpointRow {
                address,
                kind,
                hits,
            });
        let mut rows: Vec<_> = software.chain(hardware).chain(past).collect();
        rows.sort_by_key(|row| row.address);
        rows
    }
}

/// Puts the guest's byte back, unless the guest has replaced ours meanwhile.
fn restore(memory: &Physical<'_>, gone: &Software) {
    let mut byte = [0];
    if memory.read(gone.physical, &mut byte) == 1 && byte == [INT3] {
        memory.write(gone.physical, &[gone.original]);
    }
}
