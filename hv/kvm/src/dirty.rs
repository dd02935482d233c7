//! KVM's dirty log as a source of dirty runs.
//!
//! With manual protection a page is write-protected again only when it is reported, in pieces of
//! 1 GiB, so that a large guest is not stalled by one long pass over its page tables. Without,
//! reading the log protects everything at once.

use crate::capabilities::Capabilities;
use crate::ioctl;
use crate::slots::{Slot, Slots};
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use nyx_memory::{DirtySource, Extent, PAGE};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use vm_memory::GuestAddress;

/// Pages cleared at once: 1 GiB.
const PIECE: u64 = 1 << 18;

/// Asks for manual protection and says whether it was granted. `INITIALLY_SET` is not asked for:
/// it would report every page after logging begins, written or not.
pub(crate) fn enable_manual_protect(vm: &VmFd, capabilities: &Capabilities) -> bool {
    if capabilities.manual_dirty_log & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE == 0 {
        return false;
    }
    let cap = kvm_enable_cap {
        cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        args: [KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap).is_ok()
}

/// See the module.
pub(crate) struct DirtyLog(pub(crate) Arc<Slots>);

impl DirtySource for DirtyLog {
    fn log(&mut self, on: bool) -> io::Result<()> {
        self.0.log(on)
    }

    fn drain(&mut self, report: &mut dyn FnMut(Extent)) -> io::Result<()> {
        let Some(slots) = self.0.logged() else {
            return Ok(());
        };
        for (number, slot) in slots {
            let bitmap = match self.0.vm.get_dirty_log(number, slot.len as usize) {
                Ok(bitmap) => bitmap,
                // The slot went away since it was listed; so did its pages.
                Err(e) if e.errno() == libc::ENOENT => continue,
                Err(e) => return Err(io::Error::from_raw_os_error(e.errno())),
            };
            if self.0.manual_protect {
                self.clear(number, slot, &bitmap)?;
            }
            runs(&bitmap, slot.len / PAGE, |first, pages| {
                report(Extent {
                    base: GuestAddress(slot.base + first * PAGE),
                    len: (pages * PAGE) as usize,
                });
            });
        }
        Ok(())
    }
}

impl DirtyLog {
    /// Protects the pages in `bitmap` again. This comes before they are reported: a write after it
    /// is logged anew, so the reader of the page cannot miss it.
    fn clear(&self, number: u32, slot: Slot, bitmap: &[u64]) -> io::Result<()> {
        // SAFETY: the descriptor is open for as long as `self.0.vm` lives.
        let vm = unsafe { BorrowedFd::borrow_raw(self.0.vm.as_raw_fd()) };
        let pages = slot.len / PAGE;
        for (i, piece) in bitmap.chunks((PIECE / 64) as usize).enumerate() {
            let first = i as u64 * PIECE;
            if first >= pages || piece.iter().all(|&w| w == 0) {
                continue;
            }
            let count = (pages - first).min(PIECE) as u32;
            ioctl::clear_dirty_log(vm, number, first, count, piece)?;
        }
        Ok(())
    }
}

/// Calls `emit(first, count)` for every run of ones among the first `bits` bits.
fn runs(bitmap: &[u64], bits: u64, mut emit: impl FnMut(u64, u64)) {
    let mut start = None;
    for (i, &word) in bitmap.iter().enumerate() {
        let base = i as u64 * 64;
        // Whole words of one kind are the common case, and need no look at single bits.
        match (word, start) {
            (0, None) | (u64::MAX, Some(_)) => continue,
            (u64::MAX, None) => {
                start = Some(base);
                continue;
            }
            _ => {}
        }
        let mut bit = 0;
        while bit < 64 {
            let rest = word >> bit;
            let step = match start {
                None => rest.trailing_zeros(),
                Some(_) => rest.trailing_ones(),
            }
            .min(64 - bit);
            bit += step;
            if bit == 64 {
                break;
            }
            match start.take() {
                None => start = Some(base + u64::from(bit)),
                Some(first) => emit_within(bits, first, base + u64::from(bit), &mut emit),
            }
        }
    }
    if let Some(first) = start {
        emit_within(bits, first, bitmap.len() as u64 * 64, &mut emit);
    }
}

fn emit_within(bits: u64, first: u64, end: u64, emit: &mut impl FnMut(u64, u64)) {
    let end = end.min(bits);
    if first < end {
        emit(first, end - first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn collected(bitmap: &[u64], bits: u64) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        runs(bitmap, bits, |first, count| out.push((first, count)));
        out
    }

    #[test]
    fn runs_cross_words() {
        assert_eq!(
            collected(&[1 << 63, u64::MAX, 0b101], 192),
            [(63, 66), (130, 1)]
        );
        assert_eq!(collected(&[u64::MAX], 10), [(0, 10)]);
        assert_eq!(collected(&[0, 0], 128), []);
        assert_eq!(collected(&[], 64), []);
    }

    proptest! {
        #[test]
        fn runs_are_exactly_the_set_bits(
            words in proptest::collection::vec(
                prop_oneof![Just(0u64), Just(u64::MAX), any::<u64>()], 0..6),
            cut in 0u64..64,
        ) {
            let bits = (words.len() as u64 * 64).saturating_sub(cut);
            let expected: Vec<u64> = (0..bits)
                .filter(|b| words[(b / 64) as usize] >> (b % 64) & 1 == 1)
                .collect();
            let runs = collected(&words, bits);
            let got: Vec<u64> = runs.iter().flat_map(|&(f, c)| f..f + c).collect();
            prop_assert_eq!(got, expected);
            // Maximal: a gap lies between any two.
            prop_assert!(runs.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0));
        }
    }
}
