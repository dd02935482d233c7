//! Functions that come and go while the machine runs: what passes between the machine, which plugs
//! them, and the unit that tells the guest.
//!
//! ```text
//!   machine ──arrived, ask, freed, vanished──▶ PciSlots ──wake──▶ hot-plug unit ──registers──▶ guest
//!      ▲                                          │ └────event────▶ fixed hardware ──SCI──▶ guest
//!      └───────────── EjectionSink ◀── eject ─────┘◀── hot-plug unit ◀── the guest's _EJ0
//! ```

use crate::Waker;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The general purpose events of the ACPI fixed hardware (ACPI 6.5 §5.6.4), offered to it through
/// [`crate::Extensions`] and raised from any thread.
#[derive(Debug, Default)]
pub struct GeneralEvents {
    raised: AtomicU32,
    waker: Mutex<Waker>,
}

impl GeneralEvents {
    /// Raises event `number`, 0 to 31. Wakes the unit that latches it, so it is not to be called
    /// from within that one.
    pub fn raise(&self, number: u8) {
        let bit = 1u32.checked_shl(number.into()).unwrap_or(0);
        self.raised.fetch_or(bit, Ordering::AcqRel);
        let waker = self.waker.lock().clone();
        waker.wake();
    }
    /// Says which unit latches events; the last call counts.
    pub fn bind(&self, waker: &Waker) {
        *self.waker.lock() = waker.clone();
    }
    /// The events raised since the last call, one bit each.
    pub fn take(&self) -> u32 {
        self.raised.swap(0, Ordering::AcqRel)
    }
}

/// Hears that the guest ejected functions. Must not block: it is called within a register access.
pub trait EjectionSink: Send + Sync {
    /// At least one slot of [`PciSlots::ejected`] waits to be emptied.
    fn ejected(&self);
}

/// Nobody removes what the guest ejects, on a bench.
impl EjectionSink for () {
    fn ejected(&self) {}
}

/// What happened to slots, one bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotNews {
    /// A function is there now.
    pub arrived: u32,
    /// The guest is asked to let the function go.
    pub asked: u32,
    /// The guest is not asked any more.
    pub retracted: u32,
    /// The function is gone as the guest wanted: nothing more is to be said of the slot.
    pub freed: u32,
    /// The function is gone and the guest has not been asked.
    pub vanished: u32,
}

#[derive(Debug, Default)]
struct State {
    news: SlotNews,
    occupied: u32,
    ejected: u32,
}

/// The hot-plug slots of PCI bus 0: device numbers, function 0 of each. Offered to the hot-plug unit
/// through [`crate::Extensions`].
///
/// The machine announces, the unit tells the guest; the unit hears the guest eject, the machine
/// empties the slot outside of the register access.
pub struct PciSlots {
    state: Mutex<State>,
    waker: Mutex<Waker>,
    events: Arc<GeneralEvents>,
    ejections: Arc<dyn EjectionSink>,
}

/// The general purpose event by which hot-plug calls on the guest: method `\_GPE._E01`.
pub const HOTPLUG_EVENT: u8 = 1;

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

impl PciSlots {
    /// Slots whose news call through `events`, and whose ejections are reported to `ejections`.
    pub fn new(events: Arc<GeneralEvents>, ejections: Arc<dyn EjectionSink>) -> Self {
        Self {
            state: Mutex::default(),
            waker: Mutex::default(),
            events,
            ejections,
        }
    }

    // The machine's side --------------------------------------------------------------------------

    /// Slot `slot` has held a function since the machine was built.
    pub fn occupied_at_start(&self, slot: u8) {
        self.state.lock().occupied |= bit(slot);
    }

    /// A function was plugged into `slot`.
    pub fn arrived(&self, slot: u8) {
        self.announce(|state| {
            state.occupied |= bit(slot);
            state.news.arrived |= bit(slot);
        });
        self.events.raise(HOTPLUG_EVENT);
    }

    /// The guest is to let go of the function in `slot`.
    pub fn ask(&self, slot: u8) {
        self.announce(|state| state.news.asked |= bit(slot));
        self.events.raise(HOTPLUG_EVENT);
    }

    /// The guest may keep the function in `slot`, if it has not heard otherwise yet.
    pub fn retract(&self, slot: u8) {
        self.announce(|state| {
            state.news.asked &= !bit(slot);
            state.news.retracted |= bit(slot);
        });
    }

    /// The function in `slot` was removed, and the guest expects it.
    pub fn freed(&self, slot: u8) {
        self.announce(|state| {
            state.occupied &= !bit(slot);
            state.ejected &= !bit(slot);
            // Older news that nobody has taken yet are void.
            state.news.arrived &= !bit(slot);
            state.news.asked &= !bit(slot);
            state.news.freed |= bit(slot);
        });
    }

    /// The function in `slot` was removed behind the guest's back.
    pub fn vanished(&self, slot: u8) {
        self.freed(slot);
        self.announce(|state| state.news.vanished |= bit(slot));
        self.events.raise(HOTPLUG_EVENT);
    }

    /// The function in `slot` is being removed behind the guest's back: it counts as ejected until the
    /// slot is [freed](PciSlots::freed).
    pub fn withdraw(&self, slot: u8) {
        self.announce(|state| {
            state.ejected |= bit(slot) & state.occupied;
            state.news.arrived &= !bit(slot);
            state.news.asked &= !bit(slot);
            state.news.vanished |= bit(slot);
        });
        self.events.raise(HOTPLUG_EVENT);
    }

    fn announce(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        // Waking takes a slot lock, under which the unit comes back here.
        let waker = self.waker.lock().clone();
        waker.wake();
    }

    /// The slots that the guest ejected and that are not empty yet, one bit each.
    pub fn ejected(&self) -> u32 {
        self.state.lock().ejected
    }

    // The unit's side -----------------------------------------------------------------------------

    /// Says which unit tells the guest; the last call counts.
    pub fn bind(&self, waker: &Waker) {
        *self.waker.lock() = waker.clone();
    }

    /// What happened since the last call.
    pub fn take_news(&self) -> SlotNews {
        std::mem::take(&mut self.state.lock().news)
    }

    /// The slots that hold a function, one bit each.
    pub fn occupied(&self) -> u32 {
        self.state.lock().occupied
    }

    /// The guest ejects the functions in `slots`; those that were not ejected before are returned.
    /// Empty slots are not counted.
    pub fn eject(&self, slots: u32) -> u32 {
        let mut state = self.state.lock();
        let new = slots & state.occupied & !state.ejected;
        state.ejected |= new;
        drop(state);
        if new != 0 {
            self.ejections.ejected();
        }
        new
    }

    /// Replaces what waits to be emptied with a saved state's `slots`. Nobody is told before
    /// [`PciSlots::remind`].
    pub fn restore_ejected(&self, slots: u32) {
        let mut state = self.state.lock();
        state.ejected = slots & state.occupied;
    }

    /// Reports ejections that are still to be done.
    pub fn remind(&self) {
        if self.ejected() != 0 {
            self.ejections.ejected();
        }
    }
}

impl std::fmt::Debug for PciSlots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciSlots")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Heard(AtomicUsize);
    impl EjectionSink for Heard {
        fn ejected(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn news_come_once_and_call_on_the_guest_but_a_freed_slot_does_not() {
        let events = Arc::new(GeneralEvents::default());
        let slots = PciSlots::new(events.clone(), Arc::new(()));
        slots.arrived(3);
        slots.ask(5);
        let expected = SlotNews {
            arrived: 1 << 3,
            asked: 1 << 5,
            ..SlotNews::default()
        };
        assert_eq!(slots.take_news(), expected);
        assert_eq!(slots.take_news(), SlotNews::default());
        assert_eq!((events.take(), events.take()), (1 << HOTPLUG_EVENT, 0));
        slots.freed(3);
        assert_eq!((slots.take_news().freed, events.take()), (1 << 3, 0));
        slots.vanished(5);
        assert_eq!((slots.take_news().vanished, events.take()), (1 << 5, 2));
    }

    #[test]
    fn only_what_is_there_can_be_ejected_and_only_once() {
        let heard = Arc::new(Heard::default());
        let slots = PciSlots::new(Arc::default(), heard.clone());
        assert_eq!(slots.eject(u32::MAX), 0);
        slots.occupied_at_start(1);
        slots.arrived(31);
        assert_eq!(slots.eject(u32::MAX), 1 << 1 | 1 << 31);
        assert_eq!(
            (slots.eject(u32::MAX), slots.ejected()),
            (0, 1 << 1 | 1 << 31)
        );
        assert_eq!(heard.0.load(Ordering::SeqCst), 1);
        slots.freed(1);
        assert_eq!((slots.ejected(), slots.occupied()), (1 << 31, 1 << 31));
        slots.remind();
        assert_eq!(heard.0.load(Ordering::SeqCst), 2);
        slots.restore_ejected(1 << 1);
        slots.remind();
        assert_eq!((slots.ejected(), heard.0.load(Ordering::SeqCst)), (0, 2));
        // Numbers that are no slots do nothing.
        slots.arrived(200);
        assert_eq!(slots.take_news().arrived, 1 << 31);
    }
}
