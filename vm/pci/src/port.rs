//! A device's way out of its function: the MSI-X table, its pending bits and the interrupt pin.
//!
//! The port is shared by the function, which forwards what the guest programs, and the device and
//! its workers, which fire. Workers of different vectors do not meet: each vector has its own lock,
//! held across the delivery, so that a vector is silent once the write that masked it is done.

use crate::saved::SavedVector;
use crate::spec::msix;
use nyx_device::{AccessResult, BadAccess, FunctionDemand, IrqLine, Msi, MsiSink, PciPort};
use nyx_inspect::{About, Counter, Inspect, Leaf, Visitor};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// What the configuration space says about interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gate {
    /// MSI-X Enable.
    pub(crate) msix_enabled: bool,
    /// MSI-X Function Mask.
    pub(crate) function_mask: bool,
    /// The function may send memory writes, which messages are.
    pub(crate) bus_master: bool,
    /// The pin is disabled, or the function sleeps.
    pub(crate) pin_disabled: bool,
}

const ENABLED: u8 = 1;
const MASKED: u8 = 2;
const MASTER: u8 = 4;

#[derive(Clone, Copy)]
struct Vector {
    message: Msi,
    masked: bool,
    pending: bool,
}

impl Vector {
    /// PCI Local Bus 3.0 §6.8.2.9: masked after reset.
    const RESET: Self = Self {
        message: Msi {
            address: 0,
            data: 0,
        },
        masked: true,
        pending: false,
    };

    fn entry(&self) -> [u8; 16] {
        let low = u128::from(self.message.address) | u128::from(self.message.data) << 64;
        (low | u128::from(self.masked) << 96).to_le_bytes()
    }
    fn set_entry(&mut self, entry: [u8; 16]) {
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, control, ..] = entry;
        // Bits 1:0 of the address are zero (§6.8.2.7); all of vector control but the mask bit is
        // reserved (§6.8.2.9).
        self.message.address = u64::from_le_bytes([a0 & !3, a1, a2, a3, a4, a5, a6, a7]);
        self.message.data = u32::from_le_bytes([d0, d1, d2, d3]);
        self.masked = control & 1 != 0;
    }
}

struct Pin {
    line: Option<IrqLine>,
    /// What the device wants; Interrupt Status shows it (PCI Local Bus 3.0 §6.2.3).
    asserted: bool,
    disabled: bool,
}

impl Pin {
    fn drive(&self, msix_enabled: bool) {
        if let Some(line) = &self.line {
            line.set(self.asserted && !self.disabled && !msix_enabled);
        }
    }
}

/// The interrupts of one function.
pub struct Port {
    // Wiring
    msi: Arc<dyn MsiSink>,
    // State
    gate: AtomicU8,
    vectors: Box<[Mutex<Vector>]>,
    pin: Mutex<Pin>,
    // Statistics
    messages: Counter,
}

impl Port {
    /// The port of the function `demand` asks for: its vectors leave through `msi`, its pin drives
    /// `line`.
    pub fn new(demand: &FunctionDemand, line: Option<IrqLine>, msi: Arc<dyn MsiSink>) -> Arc<Self> {
        let vectors = demand.msix_vectors.min(msix::MAX_VECTORS);
        Arc::new(Self {
            msi,
            gate: AtomicU8::new(0),
            vectors: (0..vectors).map(|_| Mutex::new(Vector::RESET)).collect(),
            pin: Mutex::new(Pin {
                line,
                asserted: false,
                disabled: false,
            }),
            messages: Counter::default(),
        })
    }

    /// How many MSI-X vectors there are.
    pub(crate) fn vectors(&self) -> usize {
        self.vectors.len()
    }

    /// Whether the device asserts its pin, whoever may hear it.
    pub(crate) fn is_pin_asserted(&self) -> bool {
        self.pin.lock().asserted
    }

    /// Applies what configuration space says, and sends what has become possible.
    pub(crate) fn set_gate(&self, gate: Gate) {
        self.set_gate_quietly(gate);
        self.flush();
    }

    /// Applies what configuration space says and leaves pending messages alone.
    fn set_gate_quietly(&self, gate: Gate) {
        let bits = [(gate.msix_enabled, ENABLED), (gate.function_mask, MASKED)]
            .into_iter()
            .chain([(gate.bus_master, MASTER)])
            .fold(0, |bits, (on, bit)| if on { bits | bit } else { bits });
        self.gate.store(bits, Ordering::Release);
        let mut pin = self.pin.lock();
        pin.disabled = gate.pin_disabled;
        pin.drive(gate.msix_enabled);
    }

    /// Sends what is pending and not held back. Takes every vector's lock in turn, so on return no
    /// delivery that began under an older gate is still under way.
    pub(crate) fn flush(&self) {
        for vector in &self.vectors {
            self.deliver(&mut vector.lock());
        }
    }

    fn is_open(&self) -> bool {
        self.gate.load(Ordering::Acquire) & (ENABLED | MASKED | MASTER) == ENABLED | MASTER
    }

    /// PCI Local Bus 3.0 §6.8.3.5: a pending vector is sent once nothing masks it.
    fn deliver(&self, vector: &mut Vector) {
        if vector.pending && !vector.masked && self.is_open() {
            vector.pending = false;
            self.messages.inc();
            self.msi.signal(vector.message);
        }
    }

    /// Reads the MSI-X table, which fills the first half of a BAR of `len` bytes, or the pending
    /// bits, which begin the second half.
    pub(crate) fn read_table(&self, len: u64, offset: u64, data: &mut [u8]) {
        for (at, out) in (offset..).zip(data) {
            *out = if at < len / 2 {
                self.table_byte(at)
            } else {
                self.pending_byte(at - len / 2)
            };
        }
    }

    fn table_byte(&self, at: u64) -> u8 {
        let entry = usize::try_from(at / msix::ENTRY)
            .ok()
            .and_then(|e| self.vectors.get(e));
        let entry = entry.map_or([0; 16], |vector| vector.lock().entry());
        usize::try_from(at % msix::ENTRY)
            .ok()
            .and_then(|at| entry.get(at))
            .copied()
            .unwrap_or(0)
    }

    fn pending_byte(&self, at: u64) -> u8 {
        let first = usize::try_from(at).ok().and_then(|at| at.checked_mul(8));
        let vectors = first
            .and_then(|first| self.vectors.get(first..))
            .unwrap_or_default();
        let bits = vectors.iter().take(8).enumerate();
        bits.fold(0, |byte, (bit, vector)| {
            byte | u8::from(vector.lock().pending) << bit
        })
    }

    /// Writes the MSI-X table. Only aligned double and quad words count (PCI Local Bus 3.0
    /// §6.8.2); the pending bits are read-only.
    pub(crate) fn write_table(&self, len: u64, offset: u64, data: &[u8]) -> AccessResult {
        if !matches!(data.len(), 4 | 8) {
            return Err(BadAccess::Width);
        }
        if !offset.is_multiple_of(data.len() as u64) {
            return Err(BadAccess::Alignment);
        }
        let entry = usize::try_from(offset / msix::ENTRY).map_err(|_| BadAccess::NoRegister)?;
        let Some(vector) = self.vectors.get(entry).filter(|_| offset < len / 2) else {
            return Ok(());
        };
        let mut vector = vector.lock();
        let mut bytes = vector.entry();
        let at = usize::try_from(offset % msix::ENTRY).map_err(|_| BadAccess::NoRegister)?;
        // An aligned access never leaves the entry.
        if let Some(field) = bytes
            .get_mut(at..)
            .and_then(|rest| rest.get_mut(..data.len()))
        {
            field.copy_from_slice(data);
        }
        vector.set_entry(bytes);
        self.deliver(&mut vector);
        Ok(())
    }

    /// Returns to the power-on state: every vector masked, nothing pending, the pin low.
    pub(crate) fn reset(&self) {
        self.set_gate_quietly(Gate::default());
        for vector in &self.vectors {
            *vector.lock() = Vector::RESET;
        }
        self.set_pin(false);
    }

    /// Silences the port for good: the function is going away, whatever its workers still do.
    pub(crate) fn close(&self) {
        self.reset();
        let line = self.pin.lock().line.take();
        // Dropping the line lowers the wire.
        drop(line);
    }

    fn set_pin(&self, high: bool) {
        let mut pin = self.pin.lock();
        pin.asserted = high;
        pin.drive(self.msix_enabled());
    }

    /// Captures the MSI-X table and the pending bits.
    pub(crate) fn save_vectors(&self) -> Vec<SavedVector> {
        let save = |vector: &Mutex<Vector>| {
            let Vector {
                message,
                masked,
                pending,
            } = *vector.lock();
            SavedVector {
                address: message.address,
                data: message.data,
                masked,
                pending,
            }
        };
        self.vectors.iter().map(save).collect()
    }

    /// Re-applies a saved state. Nothing is sent before [`Port::flush`]: the interrupt controllers
    /// may not be restored yet.
    pub(crate) fn restore(&self, gate: Gate, pin: bool, vectors: &[SavedVector]) {
        for (vector, saved) in self.vectors.iter().zip(vectors) {
            let message = Msi {
                address: saved.address & !3,
                data: saved.data,
            };
            *vector.lock() = Vector {
                message,
                masked: saved.masked,
                pending: saved.pending,
            };
        }
        self.set_gate_quietly(gate);
        self.set_pin(pin);
    }
}

impl PciPort for Port {
    fn msix_enabled(&self) -> bool {
        self.gate.load(Ordering::Acquire) & ENABLED != 0
    }
    fn fire(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            let mut vector = vector.lock();
            vector.pending = true;
            self.deliver(&mut vector);
        }
    }
    fn set_intx(&self, high: bool) {
        self.set_pin(high);
    }
}

impl Inspect for Port {
    fn inspect(&self, v: &mut dyn Visitor) {
        let gate = self.gate.load(Ordering::Acquire);
        let count = |test: fn(&Vector) -> bool| {
            Leaf::Number(
                self.vectors
                    .iter()
                    .filter(|vector| test(&vector.lock()))
                    .count() as u64,
            )
        };
        v.leaf("msix_enabled", Leaf::Flag(gate & ENABLED != 0));
        v.leaf("msix_masked", Leaf::Flag(gate & MASKED != 0));
        v.leaf("vectors", Leaf::Number(self.vectors.len() as u64));
        v.leaf("vectors_unmasked", count(|vector| !vector.masked));
        v.leaf("vectors_pending", count(|vector| vector.pending));
        v.leaf("intx_asserted", Leaf::Flag(self.is_pin_asserted()));
        v.about(&About::metric(
            "pci_messages",
            "Message interrupts that a PCI function sent.",
        ));
        v.leaf("messages", Leaf::Count(self.messages.get()));
    }
}
