//! The controller itself.

use super::entry::Entry;
use super::saved::SavedIoapic;
use nyx_device::{
    AccessResult, BadAccess, Device, Drain, Hit, IoapicRoutePort, IrqController, Lifecycle, Msi,
    MsiSink, Registers, ResetKind, read_register,
};
use nyx_inspect::{About, Counter, Inspect, Leaf, Visitor};
use nyx_state::{Persist, RestoreError, SaveError};
use std::sync::Arc;

/// Interrupt inputs.
pub const PINS: usize = 24;

/// Version register: version 0x20 (which has an EOI register), last entry 23 (§3.2.2).
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

/// An I/O APIC.
pub struct Ioapic {
    // Wiring
    msi: Arc<dyn MsiSink>,
    routes: Option<Arc<IoapicRoutePort>>,
    told: Vec<Option<Msi>>,
    running: bool,
    // Configuration
    initial_id: u8,
    // State
    id: u8,
    select: u8,
    entries: [Entry; PINS],
    levels: [bool; PINS],
    /// Edges that came while the machine was paused.
    held_edges: [bool; PINS],
    // Statistics
    delivered: [Counter; PINS],
    ended: Counter,
    lost_edges: Counter,
}

impl Ioapic {
    /// An I/O APIC in its reset state that calls itself `id` (4 bits), delivers to `msi` and tells
    /// `routes`, if any, which messages need an end-of-interrupt exit.
    pub fn new(id: u8, msi: Arc<dyn MsiSink>, routes: Option<Arc<IoapicRoutePort>>) -> Self {
        Self {
            msi,
            routes,
            told: vec![None; PINS],
            running: false,
            initial_id: id & 0xf,
            id: id & 0xf,
            select: 0,
            entries: [Entry::RESET; PINS],
            levels: [false; PINS],
            held_edges: [false; PINS],
            delivered: Default::default(),
            ended: Counter::default(),
            lost_edges: Counter::default(),
        }
    }

    /// Sends the message of `pin`.
    fn send(&self, pin: usize) {
        if let (Some(entry), Some(delivered)) = (self.entries.get(pin), self.delivered.get(pin)) {
            delivered.inc();
            self.msi.signal(entry.message());
        }
    }

    /// Delivers a level-triggered `pin` that asserts and is not in service yet.
    fn service_level(&mut self, pin: usize) {
        let high = self.running && self.levels.get(pin).is_some_and(|high| *high);
        let Some(entry) = self.entries.get_mut(pin) else {
            return;
        };
        if high && entry.is_level() && !entry.is_masked() && !entry.is_in_service() {
            entry.set_in_service(true);
            self.send(pin);
        }
    }

    /// Delivers an edge on `pin`.
    fn service_edge(&mut self, pin: usize) {
        let Some(entry) = self.entries.get(pin) else {
            return;
        };
        if !self.running {
            if let Some(held) = self.held_edges.get_mut(pin) {
                *held = true;
            }
        } else if entry.is_masked() {
            self.lost_edges.inc();
        } else {
            self.send(pin);
        }
    }

    /// Tells the kernel about level-triggered messages, if they changed. One that is masked while
    /// in service stays: its end must be heard of.
    fn publish(&mut self) {
        let Some(routes) = &self.routes else {
            return;
        };
        let needs_end = |e: &Entry| e.is_level() && (!e.is_masked() || e.is_in_service());
        let table: Vec<Option<Msi>> = self
            .entries
            .iter()
            .map(|e| needs_end(e).then(|| e.message()))
            .collect();
        if table != self.told {
            (routes.0)(&table);
            self.told = table;
        }
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            // §3.2.1 and §3.2.3: the arbitration id follows the id.
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION,
            _ => {
                let bits = self.selected_entry().map_or(u64::MAX, |(pin, _)| {
                    self.entries.get(pin).map_or(u64::MAX, |e| e.bits())
                });
                if self.select & 1 == 0 {
                    bits as u32
                } else {
                    (bits >> 32) as u32
                }
            }
        }
    }

    /// The pin whose entry is selected, and whether it is the upper half.
    fn selected_entry(&self) -> Option<(usize, bool)> {
        let index = self.select.checked_sub(0x10)?;
        let pin = usize::from(index / 2);
        (pin < PINS).then_some((pin, index % 2 == 1))
    }

    fn write_selected(&mut self, value: u32) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xf;
        } else if let Some((pin, high)) = self.selected_entry() {
            if let Some(entry) = self.entries.get_mut(pin) {
                entry.write_half(high, value);
            }
            self.publish();
            self.service_level(pin);
        }
    }
}

impl IrqController for Ioapic {
    fn set_level(&mut self, pin: u32, high: bool) {
        let pin = pin as usize;
        let Some(level) = self.levels.get_mut(pin) else {
            return;
        };
        let rose = high && !*level;
        *level = high;
        match self.entries.get(pin) {
            Some(entry) if entry.is_level() => self.service_level(pin),
            Some(_) if rose => self.service_edge(pin),
            _ => {}
        }
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let Some(entry) = self.entries.get_mut(pin) else {
                continue;
            };
            if entry.is_level() && entry.is_in_service() && entry.vector() == vector {
                entry.set_in_service(false);
                self.ended.inc();
                self.service_level(pin);
            }
        }
        self.publish();
    }
}

impl Registers for Ioapic {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        let (register, value) = match at.offset {
            0x00..=0x03 => (IOREGSEL, u32::from(self.select)),
            0x10..=0x13 => (IOWIN, self.read_selected()),
            // §3.1: write-only.
            0x40..=0x43 => (EOI, 0),
            _ => return Err(BadAccess::NoRegister),
        };
        let shift = usize::try_from(at.offset - register).map_err(|_| BadAccess::Alignment)?;
        read_register(value.into(), 4, shift, data)
    }

    /// IOREGSEL and EOI have 8 bits and take any width; IOWIN takes 32-bit writes only (§3.1).
    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        let (&low, true) = (data.first().ok_or(BadAccess::Width)?, data.len() <= 4) else {
            return Err(BadAccess::Width);
        };
        match at.offset {
            IOREGSEL => self.select = low,
            IOWIN => {
                let value = data.try_into().map_err(|_| BadAccess::Width)?;
                self.write_selected(u32::from_le_bytes(value));
            }
            EOI => self.end_of_interrupt(low),
            0x01..=0x03 | 0x11..=0x13 | 0x41..=0x43 => return Err(BadAccess::Alignment),
            _ => return Err(BadAccess::NoRegister),
        }
        Ok(())
    }
}

impl Lifecycle for Ioapic {
    fn start(&mut self) {
        self.running = true;
        for pin in 0..PINS {
            if self.held_edges.get_mut(pin).is_some_and(std::mem::take) {
                self.service_edge(pin);
            }
            self.service_level(pin);
        }
    }

    fn stop(&mut self) -> Drain {
        self.running = false;
        Drain::idle()
    }

    /// Masks every pin. The levels stay: they belong to the wires.
    fn reset(&mut self, _: ResetKind) {
        let Self {
            msi: _,
            routes: _,
            told: _,
            running: _,
            initial_id,
            id,
            select,
            entries,
            levels: _,
            held_edges,
            delivered: _,
            ended: _,
            lost_edges: _,
        } = self;
        *id = *initial_id;
        *select = 0;
        *entries = [Entry::RESET; PINS];
        *held_edges = [false; PINS];
        self.publish();
    }
}

impl Persist for Ioapic {
    type Saved = SavedIoapic;

    fn save(&self) -> Result<SavedIoapic, SaveError> {
        let Self {
            msi: _,
            routes: _,
            told: _,
            running: _,
            initial_id: _,
            id,
            select,
            entries,
            levels,
            held_edges,
            delivered: _,
            ended: _,
            lost_edges: _,
        } = self;
        let mask = |flags: &[bool; PINS]| {
            flags
                .iter()
                .rev()
                .fold(0, |mask, flag| mask << 1 | u32::from(*flag))
        };
        Ok(SavedIoapic {
            id: *id,
            select: *select,
            entries: entries.iter().map(|e| e.bits()).collect(),
            levels: mask(levels),
            held_edges: mask(held_edges),
        })
    }

    fn restore(&mut self, saved: SavedIoapic) -> Result<(), RestoreError> {
        let SavedIoapic {
            id,
            select,
            entries,
            levels,
            held_edges,
        } = saved;
        let checked: Option<Vec<Entry>> = entries.into_iter().map(Entry::checked).collect();
        let checked = checked.ok_or(RestoreError::Invalid("a redirection entry is impossible"))?;
        let entries = checked
            .try_into()
            .map_err(|_| RestoreError::Invalid("the redirection table has not 24 entries"))?;
        if id > 0xf {
            return Err(RestoreError::Invalid("the APIC id has more than four bits"));
        }
        if (levels | held_edges) >> PINS != 0 {
            return Err(RestoreError::Invalid("there is no such pin"));
        }
        self.id = id;
        self.select = select;
        self.entries = entries;
        self.levels = std::array::from_fn(|pin| levels >> pin & 1 != 0);
        self.held_edges = std::array::from_fn(|pin| held_edges >> pin & 1 != 0);
        self.publish();
        Ok(())
    }
}

/// One pin, for people.
struct Pin<'a> {
    entry: Entry,
    high: bool,
    delivered: &'a Counter,
}

impl Inspect for Pin<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.leaf("entry", Leaf::Hex(self.entry.bits()));
        v.leaf("vector", Leaf::Hex(self.entry.vector().into()));
        v.leaf("masked", Leaf::Flag(self.entry.is_masked()));
        v.leaf("level_triggered", Leaf::Flag(self.entry.is_level()));
        v.leaf("in_service", Leaf::Flag(self.entry.is_in_service()));
        v.leaf("high", Leaf::Flag(self.high));
        v.about(&About::metric(
            "ioapic_interrupts",
            "Interrupts that the I/O APIC sent, by pin.",
        ));
        v.leaf("delivered", Leaf::Count(self.delivered.get()));
    }
}

impl Inspect for Ioapic {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.leaf("id", Leaf::Number(self.id.into()));
        v.leaf("select", Leaf::Hex(self.select.into()));
        let pins = self.entries.iter().zip(&self.levels).zip(&self.delivered);
        for (number, ((entry, high), delivered)) in pins.enumerate() {
            v.about(&About::key("pin"));
            v.child(
                &format!("pin{number}"),
                &Pin {
                    entry: *entry,
                    high: *high,
                    delivered,
                },
            );
        }
        v.about(&About::metric(
            "ioapic_ends_of_interrupt",
            "Ends of level-triggered interrupts that the I/O APIC heard of.",
        ));
        v.leaf("ended", Leaf::Count(self.ended.get()));
        v.about(&About::metric(
            "ioapic_lost_edges",
            "Edges that came while their pin was masked.",
        ));
        v.leaf("lost_edges", Leaf::Count(self.lost_edges.get()));
    }
}

impl Device for Ioapic {
    fn as_irq_controller(&mut self) -> Option<&mut dyn IrqController> {
        Some(self)
    }
}
