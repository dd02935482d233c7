//! The transport state machine: status, features, queue set-up, reset, save and restore
//! (Virtio 1.2 §3.1, §2.1). The PCI and MMIO register layouts are thin coats over it.
//!
//! ```text
//!            ACKNOWLEDGE, DRIVER, FEATURES_OK            DRIVER_OK
//!   reset ─────────────────────────────────▶ set up ────────────────▶ live ──▶ needs reset
//!     ▲                                                                 │            │
//!     └── workers drained ◀──────────── resetting ◀── status := 0 ──────┴────────────┘
//! ```
//!
//! Queue configuration is taken by value at DRIVER_OK; later writes to it are refused and counted.

use crate::device::{Activation, VirtioDevice};
use crate::interrupt::{Exit, Interrupt, QueueCounters};
use crate::queue::{QueueLayout, QueueProgress, VirtQueue};
use crate::saved;
use crate::worker::Worker;
use nyx_device::{BadAccess, Drain, Threads};
use nyx_inspect::{About, Counter, Inspect, Leaf, Visitor};
use nyx_memory::DmaSpace;
use nyx_reactor::EventFd;
use nyx_state::{RestoreError, SaveError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Feature bits every device offers.
const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;
/// DEVICE_NEEDS_RESET: the device's own bit, kept with the interrupts.
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// How long the write that begins a reset waits for the workers.
///
/// The standard has the driver read the status until it is zero (§2.4.2). OVMF at the end of boot
/// services, and Linux over MMIO, do not: they write zero and give the queues' memory to somebody
/// else. Idle workers end within a fraction of a millisecond, and then such a driver is safe, too.
const RESET_PATIENCE: Duration = Duration::from_millis(20);
/// How long parked workers, or those of a device that goes, may take to end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// One queue as the driver sets it up.
pub(crate) struct QueueSetup {
    pub(crate) max_size: u16,
    pub(crate) layout: QueueLayout,
    pub(crate) ready: bool,
    pub(crate) kick: Arc<EventFd>,
    progress: QueueProgress,
}

/// One of the three ring addresses.
#[derive(Clone, Copy)]
pub(crate) enum Area {
    Descriptors,
    Driver,
    Device,
}

/// A reset whose workers have not all ended yet.
struct Resetting {
    workers: Vec<Worker>,
    drain: Drain,
}

pub(crate) struct Transport {
    // Wiring
    pub(crate) device: Box<dyn VirtioDevice>,
    pub(crate) interrupt: Arc<Interrupt>,
    dma: DmaSpace,
    threads: Threads,
    workers: Vec<Worker>,
    // Configuration
    offered: u64,
    // State
    status: u8,
    accepted: u64,
    pub(crate) device_feature_select: u32,
    pub(crate) driver_feature_select: u32,
    pub(crate) queue_select: u16,
    queues: Vec<QueueSetup>,
    resetting: Option<Resetting>,
    /// A reset that a pause took for done, and the status before it.
    interrupted_reset: Option<(u8, Resetting)>,
    // Statistics
    activations: Counter,
    resets: Counter,
    refused_writes: Counter,
}

impl Transport {
    pub(crate) fn new(
        mut device: Box<dyn VirtioDevice>,
        exit: Exit,
        dma: DmaSpace,
        threads: Threads,
        faults: nyx_device::FaultPort,
    ) -> std::io::Result<Self> {
        let mut queues = Vec::new();
        for max_size in device.queue_sizes() {
            queues.push(QueueSetup {
                max_size,
                layout: QueueLayout {
                    size: max_size,
                    ..QueueLayout::default()
                },
                ready: false,
                kick: Arc::new(EventFd::new()?),
                progress: QueueProgress::default(),
            });
        }
        let interrupt = Arc::new(Interrupt::new(exit, queues.len(), faults));
        device.connect(interrupt.clone());
        Ok(Self {
            offered: device.features() | RING_FEATURES,
            device,
            interrupt,
            dma,
            threads,
            workers: Vec::new(),
            status: 0,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            queues,
            resetting: None,
            interrupted_reset: None,
            activations: Counter::default(),
            resets: Counter::default(),
            refused_writes: Counter::default(),
        })
    }

    // Status ---------------------------------------------------------------------------------

    pub(crate) fn status(&mut self) -> u8 {
        self.poll_reset();
        self.status | self.interrupt.status_bits()
    }

    pub(crate) fn set_status(&mut self, status: u8) {
        self.poll_reset();
        if status == 0 {
            self.begin_reset();
            return;
        }
        if self.resetting.is_some() {
            // §2.1.1: the driver has to wait until it reads zero.
            self.refused_writes.inc();
            return;
        }
        // The driver must not clear bits (§2.1.1); DEVICE_NEEDS_RESET is ours.
        let mut new = self.status | (status & !NEEDS_RESET);
        let added = new & !self.status;
        if added & FEATURES_OK != 0 && !self.features_agreed() {
            new &= !FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && (new & FEATURES_OK == 0 || new & FAILED != 0) {
            // §3.1.1: DRIVER_OK comes after an accepted FEATURES_OK.
            new &= !DRIVER_OK;
            self.refused_writes.inc();
        }
        let live = new & DRIVER_OK != 0 && self.status & DRIVER_OK == 0;
        self.status = new;
        if live {
            self.queues
                .iter_mut()
                .for_each(|q| q.progress = QueueProgress::default());
            self.activate();
        }
    }

    fn features_agreed(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn is_live(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// Whether queue configuration is frozen.
    fn is_frozen(&self) -> bool {
        self.is_live() || self.resetting.is_some()
    }

    fn activate(&mut self) {
        self.activations.inc();
        self.interrupt.set_driver_ok(true);
        let view = self.dma.view();
        let mut live = Vec::new();
        for (index, queue) in self.queues.iter().enumerate().filter(|(_, q)| q.ready) {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            let ends = (self.interrupt.clone(), queue.kick.clone());
            match VirtQueue::new(
                index,
                queue.layout,
                queue.progress,
                self.accepted,
                &view,
                ends,
            ) {
                Ok(queue) => live.push(queue),
                Err(e) => return self.interrupt.broken(e),
            }
        }
        drop(view);
        let activation = Activation {
            features: self.accepted,
            queues: live,
            dma: self.dma.clone(),
            interrupt: self.interrupt.clone(),
        };
        let tasks = match self.device.activate(activation) {
            Ok(tasks) => tasks,
            Err(e) => return self.interrupt.broken(e),
        };
        for (number, task) in tasks.into_iter().enumerate() {
            let role = format!("q{number}");
            match Worker::start(&self.threads, &role, task, self.interrupt.clone()) {
                Ok(worker) => self.workers.push(worker),
                // Those that have started stay until the reset that the driver owes now.
                Err(e) => {
                    return self
                        .interrupt
                        .broken(format_args!("cannot start a worker: {e}"));
                }
            }
        }
    }

    fn begin_reset(&mut self) {
        if self.resetting.is_some() {
            return;
        }
        let workers = std::mem::take(&mut self.workers);
        let mut drain = end(&workers);
        drain.finishes_by(Instant::now() + RESET_PATIENCE);
        self.resetting = Some(Resetting { workers, drain });
        self.poll_reset();
    }

    /// Ends the workers and waits for them: what they borrowed of the device must be back before
    /// the device goes on or goes away. Those that are parked end at once.
    fn end_workers(&mut self) {
        let mut workers = std::mem::take(&mut self.workers);
        let interrupted = self.interrupted_reset.take().map(|(_, reset)| reset);
        for resetting in self.resetting.take().into_iter().chain(interrupted) {
            workers.extend(resetting.workers);
        }
        // One that hangs is reported by whoever finds its backend lent.
        end(&workers).finishes_by(Instant::now() + END_PATIENCE);
    }

    /// Ends a reset whose workers have drained; until then status reads what it was.
    fn poll_reset(&mut self) {
        let over = |resetting: &mut Resetting| resetting.drain.is_complete();
        if self.resetting.as_mut().is_some_and(over) {
            self.finish_reset();
        }
    }

    fn finish_reset(&mut self) {
        self.resets.inc();
        self.resetting = None;
        self.status = 0;
        self.accepted = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            queue.layout = QueueLayout {
                size: queue.max_size,
                ..QueueLayout::default()
            };
            queue.ready = false;
            queue.progress = QueueProgress::default();
            queue.kick.clear();
        }
        self.interrupt.reset();
        self.device.reset();
    }

    // Features -------------------------------------------------------------------------------

    pub(crate) fn device_features(&self) -> u32 {
        match self.device_feature_select {
            0 => self.offered as u32,
            1 => (self.offered >> 32) as u32,
            _ => 0,
        }
    }

    pub(crate) fn driver_features(&self) -> u32 {
        match self.driver_feature_select {
            0 => self.accepted as u32,
            1 => (self.accepted >> 32) as u32,
            _ => 0,
        }
    }

    pub(crate) fn set_driver_features(&mut self, bits: u32) {
        self.poll_reset();
        if self.status & FEATURES_OK != 0 || self.resetting.is_some() {
            self.refused_writes.inc();
            return;
        }
        match self.driver_feature_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | u64::from(bits),
            1 => self.accepted = self.accepted & 0xffff_ffff | u64::from(bits) << 32,
            // Bits beyond 63 do not exist here; accepting one of them is not possible.
            _ if bits != 0 => self.refused_writes.inc(),
            _ => {}
        }
    }

    // Queues ---------------------------------------------------------------------------------

    pub(crate) fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    pub(crate) fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::from(self.queue_select))
    }

    pub(crate) fn kicks(&self) -> impl Iterator<Item = &Arc<EventFd>> {
        self.queues.iter().map(|q| &q.kick)
    }

    pub(crate) fn kick(&self, index: u64) {
        if let Some(queue) = usize::try_from(index).ok().and_then(|i| self.queues.get(i)) {
            queue.kick.signal();
        }
    }

    fn edit(&mut self, f: impl FnOnce(&mut QueueSetup) -> bool) {
        self.poll_reset();
        let frozen = self.is_frozen();
        let queue = self.queues.get_mut(usize::from(self.queue_select));
        if frozen || !queue.is_some_and(f) {
            self.refused_writes.inc();
        }
    }

    pub(crate) fn set_queue_size(&mut self, size: u16) {
        self.edit(|q| {
            let fits = size.is_power_of_two() && size <= q.max_size && !q.ready;
            if fits {
                q.layout.size = size;
            }
            fits
        });
    }

    pub(crate) fn set_queue_ready(&mut self, ready: bool) {
        self.edit(|q| {
            q.ready = ready;
            true
        });
    }

    pub(crate) fn queue_address(&self, area: Area) -> u64 {
        self.queue().map_or(0, |q| match area {
            Area::Descriptors => q.layout.descriptors,
            Area::Driver => q.layout.driver,
            Area::Device => q.layout.device,
        })
    }

    pub(crate) fn set_queue_address(&mut self, area: Area, high: bool, half: u32) {
        self.edit(|q| {
            if q.ready {
                return false;
            }
            let address = match area {
                Area::Descriptors => &mut q.layout.descriptors,
                Area::Driver => &mut q.layout.driver,
                Area::Device => &mut q.layout.device,
            };
            *address = if high {
                *address & 0xffff_ffff | u64::from(half) << 32
            } else {
                *address & !0xffff_ffff | u64::from(half)
            };
            true
        });
    }

    // Device-specific configuration ------------------------------------------------------------

    pub(crate) fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.device.read_config(offset, data);
    }

    pub(crate) fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), BadAccess> {
        self.poll_reset();
        if self.resetting.is_some() {
            return Err(BadAccess::NoRegister);
        }
        self.device.write_config(offset, data);
        Ok(())
    }

    // Lifecycle ------------------------------------------------------------------------------

    pub(crate) fn start(&mut self) {
        if let Some((status, mut reset)) = self.interrupted_reset.take()
            && !reset.drain.is_complete()
        {
            // The pause failed: the driver goes on waiting.
            self.status = status;
            self.resetting = Some(reset);
        } else if self.workers.is_empty() {
            // Just restored: the workers of a live device are still to be made.
            if self.is_live() && self.interrupt.status_bits() == 0 {
                self.activate();
            }
        } else {
            self.workers.iter().for_each(Worker::resume);
        }
    }

    pub(crate) fn stop(&mut self) -> Drain {
        let parked = self
            .workers
            .iter()
            .map(Worker::park)
            .fold(Drain::idle(), Drain::and);
        if let Some(reset) = self.resetting.take() {
            // The caller waits for the workers, so the reset may as well be over.
            let status = self.status;
            self.finish_reset();
            self.interrupted_reset = Some((status, reset));
        }
        match &self.interrupted_reset {
            Some((_, reset)) => end(&reset.workers).and(parked),
            None => parked,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.end_workers();
        self.finish_reset();
    }

    // Saved state ----------------------------------------------------------------------------

    pub(crate) fn save(&self) -> Result<saved::Transport, SaveError> {
        if self.resetting.is_some() {
            return Err(SaveError::Unsupported("a reset is in progress"));
        }
        let mut progress: Vec<_> = self.queues.iter().map(|q| q.progress).collect();
        for worker in &self.workers {
            let parked = worker
                .progress()
                .ok_or(SaveError::Unsupported("a worker has not stopped"))?;
            for (index, at) in parked {
                if let Some(slot) = progress.get_mut(usize::from(index)) {
                    *slot = at;
                }
            }
        }
        let queues = self
            .queues
            .iter()
            .zip(progress)
            .enumerate()
            .map(|(i, (q, progress))| saved::Queue {
                size: q.layout.size,
                ready: q.ready,
                descriptors: q.layout.descriptors,
                driver: q.layout.driver,
                device: q.layout.device,
                next_available: progress.next_available,
                next_used: progress.next_used,
                vector: self
                    .interrupt
                    .queue_vector(u16::try_from(i).unwrap_or(u16::MAX)),
            })
            .collect();
        Ok(saved::Transport {
            status: self.status,
            needs_reset: self.interrupt.status_bits() != 0,
            accepted: self.accepted,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            queue_select: self.queue_select,
            queues,
            isr: self.interrupt.isr() as u8,
            config_vector: self.interrupt.config_vector(),
            device: self.device.save_blob()?.into(),
        })
    }

    pub(crate) fn restore(&mut self, saved: saved::Transport) -> Result<(), RestoreError> {
        let invalid = |what| Err(RestoreError::Invalid(what));
        if saved.queues.len() != self.queues.len() {
            return invalid("another number of queues");
        }
        // Before FEATURES_OK the driver may have written anything.
        if saved.status & FEATURES_OK != 0 && saved.accepted & !self.offered != 0 {
            return invalid("features that this device does not offer");
        }
        if saved.status & DRIVER_OK != 0 && saved.status & FEATURES_OK == 0 {
            return invalid("a live device without agreed features");
        }
        for (queue, from) in self.queues.iter().zip(&saved.queues) {
            if !from.size.is_power_of_two() || from.size > queue.max_size {
                return invalid("an impossible queue size");
            }
        }
        self.device.restore_blob(&saved.device.into())?;
        self.end_workers();
        self.status = saved.status & !NEEDS_RESET;
        self.accepted = saved.accepted;
        self.device_feature_select = saved.device_feature_select;
        self.driver_feature_select = saved.driver_feature_select;
        self.queue_select = saved.queue_select;
        self.interrupt.reset();
        for (index, (queue, from)) in self.queues.iter_mut().zip(&saved.queues).enumerate() {
            queue.layout = QueueLayout {
                size: from.size,
                descriptors: from.descriptors,
                driver: from.driver,
                device: from.device,
            };
            queue.ready = from.ready;
            queue.progress = QueueProgress {
                next_available: from.next_available,
                next_used: from.next_used,
            };
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            self.interrupt.set_queue_vector(index, from.vector);
        }
        self.interrupt.set_config_vector(saved.config_vector);
        self.interrupt.set_driver_ok(saved.status & DRIVER_OK != 0);
        self.interrupt.set_needs_reset(saved.needs_reset);
        self.interrupt.set_isr(saved.isr.into());
        Ok(())
    }
}

impl Drop for Transport {
    /// The backends are given back before the device is gone: a terminal in raw mode or a socket's
    /// path must not outlive the process because a thread came too late.
    fn drop(&mut self) {
        self.end_workers();
    }
}

/// Has `workers` end.
fn end(workers: &[Worker]) -> Drain {
    let drains = workers.iter().map(Worker::end);
    drains.fold(Drain::idle(), Drain::and)
}

impl Inspect for Transport {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.leaf(
            "status",
            Leaf::Hex((self.status | self.interrupt.status_bits()).into()),
        );
        v.leaf("features_offered", Leaf::Hex(self.offered));
        v.leaf("features_accepted", Leaf::Hex(self.accepted));
        v.leaf("workers", Leaf::Number(self.workers.len() as u64));
        v.about(&About::metric(
            "virtio_activations",
            "Times a driver set its virtio device to work.",
        ));
        v.leaf("activations", Leaf::Count(self.activations.get()));
        v.about(&About::metric(
            "virtio_resets",
            "Times a driver reset its virtio device.",
        ));
        v.leaf("resets", Leaf::Count(self.resets.get()));
        v.about(&About::metric(
            "virtio_refused_writes",
            "Writes of a driver to its virtio device's registers that came at the wrong time.",
        ));
        v.leaf("refused_writes", Leaf::Count(self.refused_writes.get()));
        v.child("interrupt", &*self.interrupt);
        struct Queues<'a>(&'a [QueueSetup], &'a [Arc<QueueCounters>]);
        impl Inspect for Queues<'_> {
            fn inspect(&self, v: &mut dyn Visitor) {
                for (i, (setup, counters)) in self.0.iter().zip(self.1).enumerate() {
                    v.about(&About::key("queue"));
                    v.child(&i.to_string(), &Queue(setup, counters));
                }
            }
        }
        struct Queue<'a>(&'a QueueSetup, &'a QueueCounters);
        impl Inspect for Queue<'_> {
            fn inspect(&self, v: &mut dyn Visitor) {
                self.0.inspect(v);
                self.1.inspect(v);
            }
        }
        v.child("queues", &Queues(&self.queues, &self.interrupt.queues));
        struct Model<'a>(&'a dyn VirtioDevice);
        impl Inspect for Model<'_> {
            fn inspect(&self, v: &mut dyn Visitor) {
                self.0.inspect(v);
            }
        }
        v.child("device", &Model(&*self.device));
    }
}

impl Inspect for QueueSetup {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.leaf("size", Leaf::Number(self.layout.size.into()));
        v.leaf("ready", Leaf::Flag(self.ready));
        v.leaf("descriptors", Leaf::Hex(self.layout.descriptors));
    }
}
