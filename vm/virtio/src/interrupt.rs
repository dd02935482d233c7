//! How a virtio device interrupts its driver, whatever the transport.

use nyx_device::{FaultKind, FaultPort, IrqLine, PciPort};
use nyx_inspect::{Counter, Gauge, Inspect};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

/// No MSI-X vector (Virtio 1.2 §4.1.4.3).
pub const NO_VECTOR: u16 = 0xffff;

/// Used-buffer notification, in the ISR status (Virtio 1.2 §4.1.4.5).
const ISR_QUEUE: u32 = 1;
/// Configuration change, in the ISR status.
const ISR_CONFIG: u32 = 2;

/// Where interrupts leave.
pub(crate) enum Exit {
    Pci(Arc<dyn PciPort>),
    Line(IrqLine),
}

/// What one queue has done since its device was made. Written by the queue's task only.
#[derive(Debug, Default, Inspect)]
#[inspect(prefix = "virtio_queue")]
pub(crate) struct QueueCounters {
    /// Requests returned to the driver.
    pub(crate) requests: Counter,
    /// Requests that the device has taken and not yet returned.
    pub(crate) depth: Gauge,
    /// Times the driver rang the doorbell and was heard; rings in quick succession count once.
    pub(crate) notifications: Counter,
}

/// Interrupts of one device, shared between its transport and its workers. Lock-free when message
/// interrupts are in use.
#[derive(Inspect)]
#[inspect(prefix = "virtio")]
pub struct Interrupt {
    #[inspect(skip)]
    exit: Exit,
    #[inspect(skip)]
    faults: FaultPort,
    /// The pin follows the ISR; both change under this lock.
    #[inspect(skip)]
    pin: Mutex<()>,
    isr: AtomicU32,
    needs_reset: AtomicBool,
    /// The configuration changed since the driver last looked at the generation.
    #[inspect(skip)]
    generation: AtomicU32,
    #[inspect(skip)]
    driver_ok: AtomicBool,
    #[inspect(skip)]
    config_vector: AtomicU16,
    #[inspect(skip)]
    queue_vectors: Vec<AtomicU16>,
    /// Here because this is what transport and queues share; shown with the transport's queues.
    #[inspect(skip)]
    pub(crate) queues: Vec<Arc<QueueCounters>>,
    /// Interrupts that a virtio device sent its driver.
    #[inspect(metric = "interrupts", label(reason = "queue"))]
    queue_interrupts: Counter,
    /// Interrupts that a virtio device sent its driver.
    #[inspect(metric = "interrupts", label(reason = "config"))]
    config_interrupts: Counter,
    /// Times a driver broke the rules of a queue or of its device.
    broken_rings: Counter,
}

impl Interrupt {
    pub(crate) fn new(exit: Exit, queues: usize, faults: FaultPort) -> Self {
        Self {
            exit,
            faults,
            pin: Mutex::new(()),
            isr: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            driver_ok: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            queues: (0..queues).map(|_| Arc::default()).collect(),
            queue_interrupts: Counter::default(),
            config_interrupts: Counter::default(),
            broken_rings: Counter::default(),
        }
    }

    /// Interrupts over `line` with no transport around them, as if the driver had set DRIVER_OK: for
    /// tests of device models.
    pub fn on_line(line: IrqLine, queues: usize, faults: FaultPort) -> Self {
        let interrupt = Self::new(Exit::Line(line), queues, faults);
        interrupt.set_driver_ok(true);
        interrupt
    }

    /// Tells the driver that queue `index` has used buffers.
    pub fn queue(&self, index: u16) {
        self.queue_interrupts.inc();
        let vector = self.queue_vectors.get(usize::from(index));
        self.raise(
            vector.map_or(NO_VECTOR, |v| v.load(Ordering::Relaxed)),
            ISR_QUEUE,
        );
    }

    /// Tells the driver that the device's configuration changed.
    pub fn config(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        // §2.4.2: no notification before DRIVER_OK.
        if self.driver_ok.load(Ordering::Acquire) {
            self.config_interrupts.inc();
            self.raise(self.config_vector.load(Ordering::Relaxed), ISR_CONFIG);
        }
    }

    /// Says that the driver broke the device's protocol and must reset it (Virtio 1.2 §2.1.1).
    pub fn broken(&self, why: impl fmt::Display) {
        self.broken_rings.inc();
        if self.need_reset() {
            self.faults.report(FaultKind::Protocol, why);
        }
    }

    /// Tells the driver that the device needs a reset; `false` if it was told before.
    pub(crate) fn need_reset(&self) -> bool {
        let first = !self.needs_reset.swap(true, Ordering::AcqRel);
        if first {
            self.config();
        }
        first
    }

    fn raise(&self, vector: u16, isr: u32) {
        match &self.exit {
            Exit::Pci(port) if port.msix_enabled() => {
                if vector != NO_VECTOR {
                    port.fire(vector);
                }
            }
            Exit::Pci(port) => {
                let _pin = self.pin.lock();
                self.isr.fetch_or(isr, Ordering::AcqRel);
                port.set_intx(true);
            }
            Exit::Line(line) => {
                let _pin = self.pin.lock();
                self.isr.fetch_or(isr, Ordering::AcqRel);
                line.set(true);
            }
        }
    }

    fn set_pin(&self) {
        let high = self.isr.load(Ordering::Acquire) != 0;
        match &self.exit {
            Exit::Pci(port) => port.set_intx(high && !port.msix_enabled()),
            Exit::Line(line) => line.set(high),
        }
    }

    /// Reads and clears the ISR status (PCI).
    pub(crate) fn take_isr(&self) -> u8 {
        let _pin = self.pin.lock();
        let isr = self.isr.swap(0, Ordering::AcqRel);
        self.set_pin();
        isr as u8
    }

    /// The interrupt status (MMIO).
    pub(crate) fn isr(&self) -> u32 {
        self.isr.load(Ordering::Acquire)
    }

    /// Acknowledges bits of the interrupt status (MMIO).
    pub(crate) fn acknowledge(&self, bits: u32) {
        let _pin = self.pin.lock();
        self.isr.fetch_and(!bits, Ordering::AcqRel);
        self.set_pin();
    }

    pub(crate) fn set_isr(&self, isr: u32) {
        let _pin = self.pin.lock();
        self.isr
            .store(isr & (ISR_QUEUE | ISR_CONFIG), Ordering::Release);
        self.set_pin();
    }

    pub(crate) fn set_driver_ok(&self, on: bool) {
        self.driver_ok.store(on, Ordering::Release);
    }

    /// The status bit to show.
    pub(crate) fn status_bits(&self) -> u8 {
        if self.needs_reset.load(Ordering::Acquire) {
            VIRTIO_CONFIG_S_NEEDS_RESET as u8
        } else {
            0
        }
    }

    pub(crate) fn set_needs_reset(&self, on: bool) {
        self.needs_reset.store(on, Ordering::Release);
    }

    pub(crate) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire) as u8
    }

    pub(crate) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    pub(crate) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(vector, Ordering::Relaxed);
    }

    pub(crate) fn queue_vector(&self, index: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(index))
            .map_or(NO_VECTOR, |v| v.load(Ordering::Relaxed))
    }

    pub(crate) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(v) = self.queue_vectors.get(usize::from(index)) {
            v.store(vector, Ordering::Relaxed);
        }
    }

    /// Back to the state after reset.
    pub(crate) fn reset(&self) {
        self.set_driver_ok(false);
        self.set_needs_reset(false);
        self.set_config_vector(NO_VECTOR);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.set_isr(0);
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt")
            .field("isr", &self.isr())
            .finish_non_exhaustive()
    }
}
