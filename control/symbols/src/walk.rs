//! Stacks of vCPUs in a Linux kernel.
//!
//! With unwinding tables (ORC) every frame is known; with frame pointers those of functions that keep
//! one; without either, words on the stack that could be return addresses are shown with a `?`, as the
//! kernel does itself.

use crate::memory::{Cpu, GuestMemory, KERNEL_IMAGE, MODULES, u64_at};
use crate::orc::State;
use crate::table::{Location, Symbols};
use std::fmt;

/// How a frame was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The instruction pointer.
    Pointer,
    /// By unwinding tables or frame pointers.
    Unwound,
    /// A word on the stack that looks like a return address.
    Guess,
}

/// One line of a stack trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its address.
    pub address: u64,
    /// What that means; `None` for code without symbols.
    pub location: Option<Location>,
    /// How it was found.
    pub trust: Trust,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.trust == Trust::Guess { "? " } else { "" };
        match &self.location {
            Some(location) => write!(f, "{:#018x} {mark}{location}", self.address),
            None => write!(f, "{:#018x} {mark}??", self.address),
        }
    }
}

/// Most frames of a stack.
const MOST_FRAMES: usize = 64;
/// Most words that a search looks at: a kernel stack has 16 KiB.
const MOST_WORDS: usize = 2048;
/// A frame on one stack is not larger than that.
const MOST_FRAME: u64 = 16 << 10;

/// The stack's words, from the sample or else from memory.
pub(crate) struct Stack<'s, M> {
    pub(crate) cpu: &'s Cpu,
    pub(crate) memory: &'s mut M,
}

impl<M: GuestMemory> Stack<'_, M> {
    pub(crate) fn word(&mut self, address: u64) -> Option<u64> {
        let sampled = address
            .checked_sub(self.cpu.rsp)
            .and_then(|offset| usize::try_from(offset).ok())
            .and_then(|offset| u64_at(&self.cpu.stack, offset));
        sampled.or_else(|| {
            let mut bytes = [0; 8];
            let found = self.memory.read(self.cpu.index, address, &mut bytes);
            found.then(|| u64::from_le_bytes(bytes))
        })
    }
}

fn in_kernel(address: u64) -> bool {
    KERNEL_IMAGE.contains(&address) || MODULES.contains(&address)
}

impl Symbols {
    fn frame(&self, address: u64, trust: Trust) -> Frame {
        // A return address belongs to the call before it, which may be the last of its function.
        let of = match trust {
            Trust::Pointer => address,
            Trust::Unwound | Trust::Guess => address.wrapping_sub(1),
        };
        let location = self.lookup(of).map(|mut location| {
            location.offset = location.offset.wrapping_add(address.wrapping_sub(of));
            location
        });
        Frame {
            address,
            location,
            trust,
        }
    }

    /// The stack of `cpu`, innermost frame first. In a program (not the kernel) there is one frame.
    pub fn stack(&self, memory: &mut impl GuestMemory, cpu: &Cpu) -> Vec<Frame> {
        let mut frames = vec![self.frame(cpu.rip, Trust::Pointer)];
        if cpu.cpl != 0 {
            return frames;
        }
        let mut stack = Stack { cpu, memory };
        let unwound = self
            .by_orc(&mut stack)
            .or_else(|| self.by_frame_pointers(&mut stack));
        match unwound {
            Some(addresses) => {
                frames.extend(addresses.into_iter().map(|a| self.frame(a, Trust::Unwound)));
            }
            None => {
                let guesses = self.by_search(&mut stack);
                frames.extend(guesses.into_iter().map(|a| self.frame(a, Trust::Guess)));
            }
        }
        frames
    }

    fn by_orc<M: GuestMemory>(&self, stack: &mut Stack<'_, M>) -> Option<Vec<u64>> {
        let orc = self.orc.as_ref()?;
        let mut state = State::of(stack.cpu);
        let mut found = Vec::new();
        while found.len() < MOST_FRAMES {
            let still = state.ip.wrapping_sub(self.slide);
            let Some(next) = orc.step(still, &state, stack) else {
                break;
            };
            // Into a program, or nowhere.
            if !in_kernel(next.ip) {
                break;
            }
            found.push(next.ip);
            state = next;
        }
        (!found.is_empty()).then_some(found)
    }

    /// Frame pointers, if there are at least two in a row.
    fn by_frame_pointers<M: GuestMemory>(&self, stack: &mut Stack<'_, M>) -> Option<Vec<u64>> {
        let mut found = Vec::new();
        let mut low = stack.cpu.rsp;
        let mut frame = stack.cpu.rbp;
        while found.len() < MOST_FRAMES && frame.is_multiple_of(8) {
            let within = frame >= low && frame - low < MOST_FRAME;
            let (Some(next), Some(back)) = (stack.word(frame), stack.word(frame.wrapping_add(8)))
            else {
                break;
            };
            if !within || !self.is_return_address(back) {
                break;
            }
            found.push(back);
            low = frame.saturating_add(16);
            frame = next;
        }
        (found.len() >= 2).then_some(found)
    }

    /// Words that could be return addresses.
    fn by_search<M: GuestMemory>(&self, stack: &mut Stack<'_, M>) -> Vec<u64> {
        let mut found = Vec::new();
        let start = stack.cpu.rsp & !7;
        // What was sampled; without a sample, to the end of the page it is in.
        let words = match stack.cpu.stack.len() / 8 {
            0 => (4096 - start % 4096) as usize / 8,
            words => words,
        };
        for n in 0..words.min(MOST_WORDS) as u64 {
            let Some(word) = start.checked_add(8 * n).and_then(|a| stack.word(a)) else {
                break;
            };
            if in_kernel(word) && self.is_return_address(word) {
                found.push(word);
                if found.len() == MOST_FRAMES {
                    break;
                }
            }
        }
        found
    }
}
