//! ORC unwinding tables of Linux's x86-64 kernels (Linux, Documentation/arch/x86/orc-unwinder.rst,
//! arch/x86/include/asm/orc_types.h).
//!
//! Two sorted arrays: addresses, each relative to its own place, and for each how to find the caller's
//! stack pointer and frame pointer from there on.

use crate::memory::{Cpu, GuestMemory, u16_at, u32_at};
use crate::walk::Stack;

/// Bytes of an entry: two offsets and a word of bit fields.
const ENTRY: usize = 6;

// What a pointer is computed from.
const UNDEFINED: u8 = 0;
const PREVIOUS_SP: u8 = 1;
const DX: u8 = 2;
const DI: u8 = 3;
const BP: u8 = 4;
const SP: u8 = 5;
const R10: u8 = 6;
const R13: u8 = 7;
const BP_INDIRECT: u8 = 8;
const SP_INDIRECT: u8 = 9;

// Words of `struct pt_regs` (Linux, arch/x86/include/asm/ptrace.h).
const REGS_BP: u64 = 4 * 8;
const REGS_IP: u64 = 16 * 8;
/// CS, flags and SP come behind the instruction pointer, as the processor pushes them.
const CS: u64 = 8;
const OLD_SP: u64 = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A function's frame.
    Call,
    /// All registers, saved at an interrupt.
    Registers,
    /// What the processor pushes itself.
    Partial,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    sp_offset: i16,
    bp_offset: i16,
    sp: u8,
    bp: u8,
    /// `None`: the stack ends, or nobody knows.
    kind: Option<Kind>,
}

/// The tables.
#[derive(Debug)]
pub(crate) struct Orc {
    /// Where the first array lies in memory.
    base: u64,
    places: Vec<u8>,
    entries: Vec<u8>,
    /// From 6.4 on, with kinds for the end of a stack and for what is unknown.
    with_undefined: bool,
}

/// Registers while unwinding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    pub(crate) ip: u64,
    sp: u64,
    bp: u64,
    /// R10 and R13, as long as they are known.
    others: Option<(u64, u64)>,
    /// `ip` is where an interrupt came, not behind a call.
    exact: bool,
}

impl State {
    pub(crate) fn of(cpu: &Cpu) -> Self {
        Self {
            ip: cpu.rip,
            sp: cpu.rsp,
            bp: cpu.rbp,
            others: Some((cpu.r10, cpu.r13)),
            exact: true,
        }
    }
}

impl Orc {
    /// Tables whose first array was at `base`; `None` if they do not fit each other.
    pub(crate) fn new(base: u64, places: Vec<u8>, entries: Vec<u8>) -> Option<Self> {
        let count = places.len() / 4;
        if count < 2 || !places.len().is_multiple_of(4) || entries.len() < count * ENTRY {
            return None;
        }
        let mut orc = Self {
            base,
            places,
            entries,
            with_undefined: false,
        };
        // Nearly all entries are calls: 0 in the older form, 2 in the newer.
        let step = (count / 256).max(1);
        let twos = (0..count)
            .step_by(step)
            .filter(|n| orc.bits(*n).is_some_and(|bits| bits >> 8 & 7 == 2))
            .count();
        orc.with_undefined = twos * 2 > count.div_ceil(step);
        Some(orc)
    }

    fn bits(&self, n: usize) -> Option<u16> {
        u16_at(&self.entries, n * ENTRY + 4)
    }

    fn place(&self, n: usize) -> Option<u64> {
        let relative = u32_at(&self.places, 4 * n)? as i32;
        let own = self.base.wrapping_add(4 * n as u64);
        Some(own.wrapping_add(i64::from(relative) as u64))
    }

    /// The last entry at or before `ip`.
    fn find(&self, ip: u64) -> Option<Entry> {
        let (mut low, mut high) = (0, self.places.len() / 4);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.place(middle)? <= ip {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let n = low.checked_sub(1)?;
        let bits = self.bits(n)?;
        let kind = match (self.with_undefined, bits >> 8 & 7) {
            (true, 2) => Some(Kind::Call),
            (true, 3) => Some(Kind::Registers),
            (true, 4) => Some(Kind::Partial),
            (true, _) => None,
            (false, bits) => match bits & 3 {
                0 => Some(Kind::Call),
                1 => Some(Kind::Registers),
                2 => Some(Kind::Partial),
                _ => None,
            },
        };
        Some(Entry {
            sp_offset: u16_at(&self.entries, n * ENTRY)? as i16,
            bp_offset: u16_at(&self.entries, n * ENTRY + 2)? as i16,
            sp: (bits & 0xf) as u8,
            bp: (bits >> 4 & 0xf) as u8,
            kind,
        })
    }

    /// The caller's registers; `ip` is the state's, as in the tables.
    pub(crate) fn step<M: GuestMemory>(
        &self,
        ip: u64,
        state: &State,
        stack: &mut Stack<'_, M>,
    ) -> Option<State> {
        // Behind a call that does not return begins another function.
        let of = if state.exact { ip } else { ip.wrapping_sub(1) };
        let entry = self.find(of)?;
        let kind = entry.kind?;
        let add = |value: u64, offset: i16| value.wrapping_add(i64::from(offset) as u64);
        let sp = match entry.sp {
            SP => add(state.sp, entry.sp_offset),
            BP => add(state.bp, entry.sp_offset),
            SP_INDIRECT => add(stack.word(state.sp)?, entry.sp_offset),
            BP_INDIRECT => stack.word(add(state.bp, entry.sp_offset))?,
            R10 => add(state.others?.0, entry.sp_offset),
            R13 => add(state.others?.1, entry.sp_offset),
            // DX and DI are used in a few instructions of entry code only.
            DX | DI | UNDEFINED => return None,
            _ => return None,
        };
        let mut next = match kind {
            Kind::Call => State {
                ip: stack.word(sp.wrapping_sub(8))?,
                sp,
                others: None,
                exact: false,
                ..*state
            },
            Kind::Registers | Kind::Partial => {
                let frame = match kind {
                    Kind::Registers => sp.wrapping_add(REGS_IP),
                    _ => sp,
                };
                if stack.word(frame.wrapping_add(CS))? & 3 != 0 {
                    return None; // it was a program that was interrupted
                }
                State {
                    ip: stack.word(frame)?,
                    sp: stack.word(frame.wrapping_add(OLD_SP))?,
                    bp: match kind {
                        Kind::Registers => stack.word(sp.wrapping_add(REGS_BP))?,
                        _ => state.bp,
                    },
                    others: None,
                    exact: true,
                }
            }
        };
        match entry.bp {
            PREVIOUS_SP => next.bp = stack.word(add(sp, entry.bp_offset))?,
            BP => next.bp = stack.word(add(state.bp, entry.bp_offset))?,
            _ => {}
        }
        // A stack that does not get shorter would be walked for ever. It may get elsewhere: from the
        // stack of interrupts to the one that was interrupted.
        (next.sp != state.sp).then_some(next)
    }
}
