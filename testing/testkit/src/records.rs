//! Sinks that remember what reached them.

use nyx_device::{Fault, FaultSink, IrqSink, Msi, MsiSink, PciPort, PowerRequest, PowerSink};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Interrupt-controller pins that remember every change of level.
#[derive(Debug, Default)]
pub struct RecordedPins {
    changes: Mutex<Vec<(u32, bool)>>,
    levels: Mutex<BTreeMap<u32, bool>>,
}

impl RecordedPins {
    /// The present level of `pin`.
    pub fn is_high(&self, pin: u32) -> bool {
        self.levels.lock().get(&pin).copied().unwrap_or(false)
    }
    /// The pins that are high.
    pub fn high(&self) -> Vec<u32> {
        self.levels
            .lock()
            .iter()
            .filter(|(_, high)| **high)
            .map(|(pin, _)| *pin)
            .collect()
    }
    /// Every change since the last call, in order.
    pub fn take_changes(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.changes.lock())
    }
    /// How often `pin` rose since the last [`RecordedPins::take_changes`].
    pub fn rises(&self, pin: u32) -> usize {
        self.changes
            .lock()
            .iter()
            .filter(|c| **c == (pin, true))
            .count()
    }
}

impl IrqSink for RecordedPins {
    fn set_level(&self, pin: u32, high: bool) {
        self.changes.lock().push((pin, high));
        self.levels.lock().insert(pin, high);
    }
}

/// Message-signalled interrupts that were sent.
#[derive(Debug, Default)]
pub struct RecordedMsis(Mutex<Vec<Msi>>);

impl RecordedMsis {
    /// Takes what was sent since the last call.
    pub fn take(&self) -> Vec<Msi> {
        std::mem::take(&mut self.0.lock())
    }
}

impl MsiSink for RecordedMsis {
    fn signal(&self, msi: Msi) {
        self.0.lock().push(msi);
    }
}

/// Power requests that were made.
#[derive(Debug, Default)]
pub struct RecordedPower(Mutex<Vec<PowerRequest>>);

impl RecordedPower {
    /// Takes what was asked since the last call.
    pub fn take(&self) -> Vec<PowerRequest> {
        std::mem::take(&mut self.0.lock())
    }
}

impl PowerSink for RecordedPower {
    fn request(&self, request: PowerRequest) {
        self.0.lock().push(request);
    }
}

/// Faults that were reported.
#[derive(Debug, Default)]
pub struct RecordedFaults(Mutex<Vec<Fault>>);

impl RecordedFaults {
    /// Takes what was reported since the last call.
    pub fn take(&self) -> Vec<Fault> {
        std::mem::take(&mut self.0.lock())
    }
}

impl FaultSink for RecordedFaults {
    fn fault(&self, fault: Fault) {
        self.0.lock().push(fault);
    }
}

/// A PCI function whose guest side is the test.
#[derive(Debug, Default)]
pub struct RecordedPci {
    fired: Mutex<Vec<u16>>,
    msix: AtomicBool,
    pin: AtomicBool,
}

impl RecordedPci {
    /// The guest switches MSI-X on or off.
    pub fn enable_msix(&self, on: bool) {
        self.msix.store(on, Ordering::Release);
    }
    /// Takes the vectors fired since the last call.
    pub fn take_fired(&self) -> Vec<u16> {
        std::mem::take(&mut self.fired.lock())
    }
    /// The level of the interrupt pin.
    pub fn is_intx_high(&self) -> bool {
        self.pin.load(Ordering::Acquire)
    }
}

impl PciPort for RecordedPci {
    fn msix_enabled(&self) -> bool {
        self.msix.load(Ordering::Acquire)
    }
    fn fire(&self, vector: u16) {
        self.fired.lock().push(vector);
    }
    fn set_intx(&self, high: bool) {
        self.pin.store(high, Ordering::Release);
    }
}
