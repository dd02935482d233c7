//! A unit's place in the machine.

use crate::ports::panic_text;
use crate::{
    Device, Drain, FaultKind, FaultPort, Hit, IrqSink, Lifecycle, ResetKind, Unit, UnitName,
};
use nyx_inspect::{About, Counter, Inspect, Leaf, Visitor};
use nyx_state::{Blob, PersistBlob, RestoreError, SaveError};
use parking_lot::{Mutex, MutexGuard};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};

/// A unit's place on the bus and in the unit graph. Emptying it is how a device leaves.
///
/// An access holds the slot's lock while it runs, so [`Slot::take`] returns only once no access is
/// in flight, and every later access finds the slot empty and reads all-ones. A unit that panics is
/// isolated the same way, and reported.
pub struct Slot<T: ?Sized + Send> {
    name: UnitName,
    faults: FaultPort,
    unit: Mutex<Option<Box<T>>>,
    // The lock keeps those who count these two apart.
    reads: Counter,
    writes: Counter,
    /// Accesses refused by the device.
    pub refused: Counter,
}

impl<T: ?Sized + Send> Slot<T> {
    /// Plugs `unit` in.
    pub fn new(faults: FaultPort, unit: Box<T>) -> Arc<Self> {
        Arc::new(Self {
            name: faults.unit().clone(),
            faults,
            unit: Mutex::new(Some(unit)),
            reads: Counter::default(),
            writes: Counter::default(),
            refused: Counter::default(),
        })
    }
    /// The unit name.
    pub fn name(&self) -> &UnitName {
        &self.name
    }
    /// Removes the unit: hot-unplug and quarantine are the same operation.
    pub fn take(&self) -> Option<Box<T>> {
        self.unit.lock().take()
    }
    /// Puts a unit back after quarantine.
    pub fn put(&self, unit: Box<T>) {
        *self.unit.lock() = Some(unit);
    }
    /// Exclusive access.
    pub fn lock(&self) -> MutexGuard<'_, Option<Box<T>>> {
        self.unit.lock()
    }

    /// Runs `f` on the unit; `None` when the slot is empty. A panic empties the slot.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut guard = self.unit.lock();
        let unit = guard.as_deref_mut()?;
        match catch_unwind(AssertUnwindSafe(|| f(unit))) {
            Ok(result) => Some(result),
            Err(panic) => {
                let unit = guard.take();
                drop(guard);
                self.faults.report(FaultKind::Panicked, panic_text(&*panic));
                // Dropping a unit that panicked may panic again; it is gone either way.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(unit)));
                None
            }
        }
    }
}

/// Anything a bus can route to. Implemented for slots of any device type.
pub trait Target: Send + Sync {
    /// See [`crate::Registers::read`].
    fn read(&self, at: Hit, data: &mut [u8]);
    /// See [`crate::Registers::write`].
    fn write(&self, at: Hit, data: &[u8]);
    /// Name for logs and conflicts.
    fn name(&self) -> &str;
}

impl<T: ?Sized + Device> Target for Slot<T> {
    fn read(&self, at: Hit, data: &mut [u8]) {
        let done = self.with(|device| {
            self.reads.bump();
            device.read(at, data)
        });
        if !matches!(done, Some(Ok(()))) {
            self.refused.inc();
            data.fill(0xff);
        }
    }
    fn write(&self, at: Hit, data: &[u8]) {
        let done = self.with(|device| {
            self.writes.bump();
            device.write(at, data)
        });
        if !matches!(done, Some(Ok(()))) {
            self.refused.inc();
        }
    }
    fn name(&self) -> &str {
        &self.name
    }
}

/// A slot as the unit graph sees it.
pub trait AnyUnit: Send + Sync {
    /// See [`Lifecycle::start`].
    fn start(&self);
    /// See [`Lifecycle::stop`].
    fn stop(&self) -> Drain;
    /// See [`Lifecycle::finish`].
    fn finish(&self) -> Drain;
    /// See [`Lifecycle::reset`].
    fn reset(&self, kind: ResetKind);
    /// See [`Lifecycle::wake`].
    fn wake(&self);
    /// `None` when the slot is empty.
    fn save(&self) -> Option<Result<Blob, SaveError>>;
    /// See [`PersistBlob::restore_blob`].
    fn restore(&self, blob: &Blob) -> Result<(), RestoreError>;
    /// Describes the unit; nothing when the slot is empty.
    fn describe(&self, v: &mut dyn Visitor);
    /// Removes the unit and drops it.
    fn clear(&self);
}

impl<T: ?Sized + Unit> AnyUnit for Slot<T> {
    fn start(&self) {
        self.with(Lifecycle::start);
    }
    fn stop(&self) -> Drain {
        self.with(Lifecycle::stop).unwrap_or_default()
    }
    fn finish(&self) -> Drain {
        self.with(Lifecycle::finish).unwrap_or_default()
    }
    fn reset(&self, kind: ResetKind) {
        self.with(|unit| unit.reset(kind));
    }
    fn wake(&self) {
        self.with(Lifecycle::wake);
    }
    fn save(&self) -> Option<Result<Blob, SaveError>> {
        self.with(|unit| PersistBlob::save_blob(unit))
    }
    fn restore(&self, blob: &Blob) -> Result<(), RestoreError> {
        self.with(|unit| unit.restore_blob(blob))
            .unwrap_or(Err(RestoreError::Invalid("the slot is empty")))
    }
    fn describe(&self, v: &mut dyn Visitor) {
        self.with(|unit| unit.inspect(v));
        const ACCESSES: About = About::metric(
            "device_accesses",
            "Accesses of vCPUs to a device's port and memory windows.",
        );
        v.about(&ACCESSES.labels(&[("direction", "read")]));
        v.leaf("window_reads", Leaf::Count(self.reads.get()));
        v.about(&ACCESSES.labels(&[("direction", "write")]));
        v.leaf("window_writes", Leaf::Count(self.writes.get()));
        v.about(&About::metric(
            "device_bad_accesses",
            "Accesses that a device refused, or that found its slot empty.",
        ));
        v.leaf("refused_accesses", Leaf::Count(self.refused.get()));
    }
    fn clear(&self) {
        drop(self.take());
    }
}

impl<T: ?Sized + Unit> Inspect for Slot<T> {
    fn inspect(&self, v: &mut dyn Visitor) {
        self.describe(v);
    }
}

/// An interrupt controller in its slot is where wires end.
impl<T: ?Sized + Device> IrqSink for Slot<T> {
    fn set_level(&self, pin: u32, high: bool) {
        self.with(|device| {
            if let Some(controller) = device.as_irq_controller() {
                controller.set_level(pin, high);
            }
        });
    }
}

/// Calls [`Lifecycle::wake`] of one unit from any thread: timers, console input, workers.
///
/// It may be handed out before the unit exists; until then, and after the unit is gone, waking does
/// nothing.
#[derive(Clone, Default)]
pub struct Waker(Arc<OnceLock<Weak<dyn AnyUnit>>>);

impl Waker {
    /// A waker of a unit still to be built.
    pub fn new() -> Self {
        Self::default()
    }
    /// Says which unit it wakes; the first call counts.
    pub fn bind(&self, unit: &Arc<impl AnyUnit + 'static>) {
        let unit: Arc<dyn AnyUnit> = unit.clone();
        let _ = self.0.set(Arc::downgrade(&unit));
    }
    /// Wakes the unit. Takes its slot lock, so never call it from within a unit.
    pub fn wake(&self) {
        if let Some(unit) = self.0.get().and_then(Weak::upgrade) {
            unit.wake();
        }
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waker")
            .field("bound", &self.0.get().is_some())
            .finish()
    }
}
