//! A debugger's hold on a machine: beside its owner, from another thread, one at a time.
//!
//! ```text
//!   DebugPort (cheap handle) ──attach──▶ Debugger ── hold, release, vcpu(n, …) ──▶ vCPU threads
//!        │                                   ▲
//!        └─ glimpse (no hold needed)         └── DebugSink: stopped, starting, ended
//! ```
//!
//! A vCPU that a debugger holds stays put when the owner lets the machine run, and one that the owner
//! brought to rest stays put when the debugger releases it. A machine without a debugger pays
//! nothing: the sink is looked at on debug exits only.

use crate::vcpu::Reins;
use nyx_hypervisor::{DebugControl, DebugStop, HvError, Vcpu, VcpuDebug};
use nyx_memory::DmaSpace;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Hears what a debugger must hear.
pub trait DebugSink: Send + Sync {
    /// A vCPU met a breakpoint or ended a step. Called on its thread, at an instruction boundary;
    /// what it returns decides whether the vCPU stays held (`true`) or goes on.
    fn stopped(&self, vcpu: u32, stop: &DebugStop, state: &mut dyn VcpuDebug) -> bool;
    /// The owner lets the machine run: at its start, after a pause, after a reset that may have
    /// replaced memory. Called before any vCPU runs.
    fn starting(&self);
    /// The machine has ended. May come more than once.
    fn ended(&self);
}

/// Who holds a vCPU.
#[derive(Clone, Copy)]
pub(crate) enum Holder {
    /// The debugger.
    Debugger = 0,
    /// [`DebugPort::glimpse`], for a moment.
    Glimpse = 1,
}

/// Where a machine's debugger sits, if there is one.
#[derive(Default)]
pub(crate) struct DebugDesk {
    sink: Mutex<Option<Arc<dyn DebugSink>>>,
    /// One glimpse at a time.
    glimpse: Mutex<()>,
}

impl DebugDesk {
    fn sink(&self) -> Option<Arc<dyn DebugSink>> {
        self.sink.lock().clone()
    }

    pub(crate) fn starting(&self) {
        if let Some(sink) = self.sink() {
            sink.starting();
        }
    }

    pub(crate) fn ended(&self) {
        if let Some(sink) = self.sink() {
            sink.ended();
        }
    }

    /// Whether the vCPU is to rest: then `hold` was called.
    pub(crate) fn stopped(
        &self,
        index: u32,
        stop: DebugStop,
        vcpu: &mut dyn Vcpu,
        hold: impl FnOnce(),
    ) -> bool {
        let Some(state) = vcpu.debug() else {
            return false;
        };
        let Some(sink) = self.sink() else {
            // The debugger has gone in this very moment. A breakpoint instruction is not its own any
            // more; a step or a hardware breakpoint was.
            if stop.exception == DebugStop::BP {
                let _ = state.return_to_guest(&stop);
            }
            let _ = state.control(&DebugControl::default());
            return false;
        };
        let stays = sink.stopped(index, &stop, state);
        // Under the lock, so that a debugger that leaves releases what it holds, this vCPU included.
        let seat = self.sink.lock();
        let stays = stays && seat.is_some();
        if stays {
            hold();
        }
        stays
    }
}

/// There is a debugger already.
#[derive(Debug, thiserror::Error)]
#[error("the machine has a debugger already")]
pub struct AttachError;

/// A vCPU did not do what a debugger asked.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// There is no such vCPU, or it has ended.
    #[error("there is no vCPU {0}")]
    NoVcpu(usize),
    /// It does not come to rest.
    #[error("vCPU {0} does not come to rest")]
    Stuck(usize),
    /// The hypervisor cannot debug.
    #[error("this hypervisor cannot debug guests")]
    Unsupported,
    /// The hypervisor refused.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
}

/// How long a vCPU may take to get to an instruction boundary. A register access of a device never
/// takes that long.
const PATIENCE: Duration = Duration::from_secs(5);

/// A way to a machine's vCPUs and memory for a debugger; cheap to clone, usable from any thread, and
/// valid beyond the machine's end (then every vCPU is gone).
#[derive(Clone)]
pub struct DebugPort {
    reins: Arc<[Reins]>,
    desk: Arc<DebugDesk>,
    memory: DmaSpace,
}

impl std::fmt::Debug for DebugPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DebugPort({} vCPUs)", self.reins.len())
    }
}

impl DebugPort {
    pub(crate) fn new((reins, desk): (Arc<[Reins]>, Arc<DebugDesk>), memory: DmaSpace) -> Self {
        Self {
            reins,
            desk,
            memory,
        }
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> usize {
        self.reins.len()
    }

    /// Guest memory by guest-physical address.
    pub fn memory(&self) -> &DmaSpace {
        &self.memory
    }

    /// Runs `job` on vCPU `index`, at an instruction boundary: the vCPU pauses for as long as the job
    /// takes.
    pub fn vcpu<R: Send + 'static>(
        &self,
        index: usize,
        job: impl FnOnce(&mut dyn VcpuDebug) -> R + Send + 'static,
    ) -> Result<R, DebugError> {
        let reins = self.reins.get(index).ok_or(DebugError::NoVcpu(index))?;
        reins
            .ask(Instant::now() + PATIENCE, |vcpu| vcpu.debug().map(job))
            .ok_or(DebugError::NoVcpu(index))?
            .ok_or(DebugError::Unsupported)
    }

    /// Runs `look` while no vCPU runs, then lets them go on as before. It must not take long: the
    /// guest loses that time.
    pub fn glimpse<R>(&self, look: impl FnOnce(&Self) -> R) -> Result<R, DebugError> {
        let _one = self.desk.glimpse.lock();
        let _release = Release(&self.reins, Holder::Glimpse);
        hold_all(&self.reins, Holder::Glimpse)?;
        Ok(look(self))
    }

    /// Becomes the machine's debugger, which `sink` informs.
    pub fn attach(&self, sink: Arc<dyn DebugSink>) -> Result<Debugger, AttachError> {
        let mut seat = self.desk.sink.lock();
        if seat.is_some() {
            return Err(AttachError);
        }
        *seat = Some(sink);
        drop(seat);
        Ok(Debugger { port: self.clone() })
    }
}

/// Releases all vCPUs when dropped.
struct Release<'r>(&'r [Reins], Holder);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        for reins in self.0 {
            reins.release(self.1);
        }
    }
}

fn hold_all(all: &[Reins], holder: Holder) -> Result<(), DebugError> {
    for reins in all {
        reins.hold(holder);
    }
    let deadline = Instant::now() + PATIENCE;
    match all.iter().position(|reins| !reins.wait_resting(deadline)) {
        None => Ok(()),
        Some(stuck) => Err(DebugError::Stuck(stuck)),
    }
}

/// The machine's debugger. Dropping it takes back every breakpoint condition and releases all vCPUs.
#[derive(Debug)]
pub struct Debugger {
    port: DebugPort,
}

impl Debugger {
    /// Its way to vCPUs and memory.
    pub fn port(&self) -> &DebugPort {
        &self.port
    }

    /// Holds every vCPU and waits until all of them rest.
    pub fn hold_all(&self) -> Result<(), DebugError> {
        hold_all(&self.port.reins, Holder::Debugger)
    }

    /// Releases vCPU `index`; it runs if its owner lets it.
    pub fn release(&self, index: usize) {
        if let Some(reins) = self.port.reins.get(index) {
            reins.release(Holder::Debugger);
        }
    }

    /// Says when vCPU `index` shall stop.
    pub fn control(&self, index: usize, control: DebugControl) -> Result<(), DebugError> {
        self.port
            .vcpu(index, move |vcpu| vcpu.control(&control))?
            .map_err(DebugError::Hypervisor)
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        for index in 0..self.port.vcpus() {
            // A vCPU that has ended needs nothing taken back.
            let _ = self.control(index, DebugControl::default());
        }
        *self.port.desk.sink.lock() = None;
        drop(Release(&self.port.reins, Holder::Debugger));
    }
}
