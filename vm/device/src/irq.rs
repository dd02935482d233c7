//! Interrupt wires and message-signalled interrupts.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The far end of a wire: an interrupt-controller pin.
pub trait IrqSink: Send + Sync {
    /// Sets the level of `pin`.
    fn set_level(&self, pin: u32, high: bool);
}

/// A device that takes interrupt wires and turns them into CPU interrupts.
pub trait IrqController {
    /// The level of input `pin` is now `high`.
    fn set_level(&mut self, pin: u32, high: bool);
    /// A CPU finished serving `vector`; a level-triggered input that is still high fires again.
    fn end_of_interrupt(&mut self, vector: u8);
}

struct Wire {
    pin: u32,
    sink: Arc<dyn IrqSink>,
    drivers: Mutex<BTreeMap<u32, bool>>,
}

/// One driver of a possibly shared level-triggered wire.
///
/// Deliberately not `Clone`: two handles would disagree about who asserts. Share the *wire* with
/// [`IrqLine::share`] instead. Dropping the line deasserts it, so unplugging a device cannot leave
/// an interrupt stuck.
pub struct IrqLine {
    wire: Arc<Wire>,
    key: u32,
}

impl IrqLine {
    /// Drives `pin` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, pin: u32) -> Self {
        let drivers = Mutex::new(BTreeMap::from([(0, false)]));
        Self {
            wire: Arc::new(Wire { pin, sink, drivers }),
            key: 0,
        }
    }

    /// Adds another driver to the same wire.
    pub fn share(&self) -> Self {
        let mut drivers = self.wire.drivers.lock();
        let key = drivers.last_key_value().map_or(0, |(k, _)| k + 1);
        drivers.insert(key, false);
        drop(drivers);
        Self {
            wire: self.wire.clone(),
            key,
        }
    }

    /// Sets this driver's level; the wire is the OR of all drivers. The controller hears of every
    /// change of the wire, and of nothing else.
    pub fn set(&self, high: bool) {
        let mut drivers = self.wire.drivers.lock();
        let before = drivers.values().any(|&d| d);
        drivers.insert(self.key, high);
        let after = drivers.values().any(|&d| d);
        if before != after {
            self.wire.sink.set_level(self.wire.pin, after);
        }
    }

    /// This driver's level.
    pub fn is_high(&self) -> bool {
        self.wire
            .drivers
            .lock()
            .get(&self.key)
            .copied()
            .unwrap_or(false)
    }

    /// Raises and lowers the wire, for an edge-triggered pin.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        let mut drivers = self.wire.drivers.lock();
        let before = drivers.values().any(|&d| d);
        drivers.remove(&self.key);
        let after = drivers.values().any(|&d| d);
        if before != after {
            self.wire.sink.set_level(self.wire.pin, after);
        }
    }
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IrqLine")
            .field("pin", &self.wire.pin)
            .finish_non_exhaustive()
    }
}

/// A message-signalled interrupt as the guest programmed it (PCI Local Bus 3.0 §6.8.1; the x86
/// meaning of address and data is in Intel SDM vol. 3 §11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Delivers MSIs of one requester. vIOMMU interrupt remapping is a wrapper implementing this.
pub trait MsiSink: Send + Sync {
    /// Delivers one message to the CPUs.
    fn signal(&self, msi: Msi);
}

/// Where an I/O APIC says which messages of its pins need an end-of-interrupt exit, taken from
/// [`crate::Extensions`]; `None` for a pin that needs none. Absent where nobody has to be told.
pub struct IoapicRoutePort(pub IoapicRouteFn);

/// Takes the whole table, by pin.
pub type IoapicRouteFn = Box<dyn Fn(&[Option<Msi>]) + Send + Sync>;

impl std::fmt::Debug for IoapicRoutePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IoapicRoutePort")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Pins(Mutex<Vec<(u32, bool)>>);
    impl IrqSink for Pins {
        fn set_level(&self, pin: u32, high: bool) {
            self.0.lock().push((pin, high));
        }
    }

    #[test]
    fn a_shared_wire_is_the_or_of_its_drivers_and_dropping_one_releases_it() {
        let pins = Arc::new(Pins::default());
        let a = IrqLine::new(pins.clone(), 4);
        let b = a.share();
        a.set(true);
        b.set(true);
        a.set(false);
        assert_eq!(*pins.0.lock(), [(4, true)]);
        drop(b);
        assert_eq!(*pins.0.lock(), [(4, true), (4, false)]);
    }
}
