//! How a device reaches the machine's owner: faults, power, threads.

use crate::{UnitName, Waker};
use parking_lot::Mutex;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// What went wrong, in VMM terms. Ordinary guest exceptions are not faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// KVM could not enter or emulate.
    VcpuFailed,
    /// The guest broke a device's protocol: a bad ring, a chain that loops.
    Protocol,
    /// A bus master touched what it must not.
    Dma,
    /// A backend failed: I/O error, peer gone.
    Backend,
    /// A backend has no room for what the guest writes. The device keeps the request and tries it again when it
    /// is stopped and started: whoever hears of this brings the machine to rest until there is room.
    NoSpace,
    /// A handler or worker thread panicked; its device is isolated.
    Panicked,
    /// A unit would not quiesce.
    Stuck,
}

/// A report from a vCPU, a worker, a slot or the quiesce path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who.
    pub unit: UnitName,
    /// What.
    pub kind: FaultKind,
    /// In one sentence.
    pub what: String,
}

/// Receives faults. Must not block.
pub trait FaultSink: Send + Sync {
    /// Takes one report.
    fn fault(&self, fault: Fault);
}

/// A unit's way to report faults.
#[derive(Clone)]
pub struct FaultPort {
    unit: UnitName,
    sink: Arc<dyn FaultSink>,
}

impl FaultPort {
    /// A port that reports in the name of `unit`.
    pub fn new(unit: UnitName, sink: Arc<dyn FaultSink>) -> Self {
        Self { unit, sink }
    }
    /// Reports `what`.
    pub fn report(&self, kind: FaultKind, what: impl fmt::Display) {
        self.sink.fault(Fault {
            unit: self.unit.clone(),
            kind,
            what: what.to_string(),
        });
    }
    /// In whose name this port reports.
    pub fn unit(&self) -> &UnitName {
        &self.unit
    }
}

impl fmt::Debug for FaultPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultPort").field(&self.unit).finish()
    }
}

/// What the guest asks of the machine as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Soft off (ACPI S5).
    Off,
    /// Platform reset.
    Reset,
    /// The guest says it panicked.
    GuestPanic,
}

/// Receives power requests. Must not block.
pub trait PowerSink: Send + Sync {
    /// Takes one request.
    fn request(&self, request: PowerRequest);
}

/// A device's way to ask for power-off or reset.
#[derive(Clone)]
pub struct PowerPort(Arc<dyn PowerSink>);

impl PowerPort {
    /// A port to `sink`.
    pub fn new(sink: Arc<dyn PowerSink>) -> Self {
        Self(sink)
    }
    /// Asks.
    pub fn request(&self, request: PowerRequest) {
        self.0.request(request);
    }
}

impl fmt::Debug for PowerPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PowerPort")
    }
}

/// Something that happens outside the machine and that one unit turns into a guest-visible event.
#[derive(Debug, Default)]
struct Event {
    happened: AtomicBool,
    waker: Mutex<Waker>,
}

impl Event {
    fn raise(&self) {
        self.happened.store(true, Ordering::Release);
        // Waking takes a slot lock, under which a unit may bind: never hold this one meanwhile.
        let waker = self.waker.lock().clone();
        waker.wake();
    }
    fn bind(&self, waker: &Waker) {
        *self.waker.lock() = waker.clone();
    }
    fn take(&self) -> bool {
        self.happened.swap(false, Ordering::AcqRel)
    }
}

/// The machine's power button, offered to the ACPI power-management unit through
/// [`crate::Extensions`] and pressed from any thread.
#[derive(Debug, Default)]
pub struct PowerButton(Event);

impl PowerButton {
    /// Presses and releases it: a guest with ACPI begins an orderly shutdown.
    pub fn press(&self) {
        self.0.raise();
    }
    /// Says which unit notices; the last call counts.
    pub fn bind(&self, waker: &Waker) {
        self.0.bind(waker);
    }
    /// Whether it was pressed since the last call.
    pub fn take_press(&self) -> bool {
        self.0.take()
    }
}

/// Says that the machine became another one (restored from a snapshot, cloned), so that the guest
/// must reseed what has to be unique. Offered to the VM generation id unit through
/// [`crate::Extensions`].
#[derive(Debug, Default)]
pub struct GenerationChange(Event);

impl GenerationChange {
    /// Asks for a new generation id.
    pub fn announce(&self) {
        self.0.raise();
    }
    /// Says which unit hears; the last call counts.
    pub fn bind(&self, waker: &Waker) {
        self.0.bind(waker);
    }
    /// Whether a change was announced since the last call.
    pub fn take_announcement(&self) -> bool {
        self.0.take()
    }
}

/// A device's way to host threads: named after the unit, and a panic becomes a fault.
#[derive(Clone, Debug)]
pub struct Threads {
    faults: FaultPort,
}

impl Threads {
    /// Threads in the name of the unit that `faults` reports for.
    pub fn new(faults: FaultPort) -> Self {
        Self { faults }
    }

    /// Spawns a thread called `role` of this unit.
    pub fn spawn(
        &self,
        role: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let faults = self.faults.clone();
        // The kernel keeps 15 bytes: the role first, since it tells threads of one unit apart.
        let name = format!("{role} {}", faults.unit());
        std::thread::Builder::new().name(name).spawn(move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
                faults.report(FaultKind::Panicked, panic_text(&*panic));
            }
        })
    }
}

/// The message of a caught panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).into(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a message".into(),
    }
}
