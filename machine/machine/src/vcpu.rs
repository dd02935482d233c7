//! vCPU threads: a three-state machine each, and nothing else.
//!
//! ```text
//!   resting ──run──▶ running ──rest, exit that ends it──▶ resting ──end──▶ (gone)
//! ```
//!
//! A running vCPU looks at its orders only when it was kicked, so the exit path carries no check.
//!
//! Beside its goal a vCPU may be held by a debugger: it runs only when its goal is to run and nobody
//! holds it.

use crate::debug::{DebugDesk, Holder};
use crate::fabric::Controller;
use nyx_device::BusView;
use nyx_hypervisor::{Broken, DebugStop, Direction, Exit, HvError, Kick, SystemEvent, Vcpu};
use nyx_inspect::{Counter, Histogram, Inspect, Visitor};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// Told to the machine's owner by a vCPU, which now rests. The vCPU never decides what happens to
/// the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// Triple fault.
    TripleFault,
    /// The guest asks through the hypervisor's interface.
    System(SystemEvent),
    /// KVM could not go on.
    Broken(Broken),
    /// A KVM call failed.
    Failed(String),
}

/// Receives vCPU events, with the index of the vCPU. Must not block.
pub trait VcpuSink: Send + Sync {
    /// Takes one event.
    fn event(&self, vcpu: u32, event: VcpuEvent);
}

/// Exits of one vCPU that reached user space, by kind. Written by its thread only, so counting one is a
/// plain addition.
///
/// Times are from the return of `KVM_RUN` until the exit is served, of one exit in [`SAMPLED`]: reading
/// the clock for every one would cost a tenth of an exit.
#[derive(Debug, Default, Inspect)]
#[inspect(prefix = "vcpu")]
#[repr(align(128))]
pub struct ExitCounters {
    /// Port accesses.
    #[inspect(
        metric = "exits",
        label(kind = "pio"),
        help = "Exits of the guest that reached the VMM, by kind."
    )]
    pub exits_pio: Counter,
    /// Memory-mapped accesses.
    #[inspect(
        metric = "exits",
        label(kind = "mmio"),
        help = "Exits of the guest that reached the VMM, by kind."
    )]
    pub exits_mmio: Counter,
    /// Ends of interrupts.
    #[inspect(
        metric = "exits",
        label(kind = "eoi"),
        help = "Exits of the guest that reached the VMM, by kind."
    )]
    pub exits_eoi: Counter,
    /// Kicks and signals.
    #[inspect(
        metric = "exits",
        label(kind = "interrupted"),
        help = "Exits of the guest that reached the VMM, by kind."
    )]
    pub exits_interrupted: Counter,
    /// Everything else.
    #[inspect(
        metric = "exits",
        label(kind = "other"),
        help = "Exits of the guest that reached the VMM, by kind."
    )]
    pub exits_other: Counter,
    /// Time in the VMM of port accesses.
    #[inspect(
        metric = "exit",
        label(kind = "pio"),
        help = "Time in the VMM per exit, by kind; one exit in 61 is timed."
    )]
    pub pio_time: Histogram,
    /// Time in the VMM of memory-mapped accesses.
    #[inspect(
        metric = "exit",
        label(kind = "mmio"),
        help = "Time in the VMM per exit, by kind; one exit in 61 is timed."
    )]
    pub mmio_time: Histogram,
    /// Time in the VMM of ends of interrupts.
    #[inspect(
        metric = "exit",
        label(kind = "eoi"),
        help = "Time in the VMM per exit, by kind; one exit in 61 is timed."
    )]
    pub eoi_time: Histogram,
    /// Time in the VMM of everything else.
    #[inspect(
        metric = "exit",
        label(kind = "other"),
        help = "Time in the VMM per exit, by kind; one exit in 61 is timed."
    )]
    pub other_time: Histogram,
    /// What the hypervisor counts by itself.
    pub hypervisor: HypervisorCounts,
}

/// What a hypervisor counts of a vCPU, for as long as the vCPU lives.
#[derive(Default)]
pub struct HypervisorCounts(Mutex<Option<Box<dyn Inspect + Send + Sync>>>);

impl std::fmt::Debug for HypervisorCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HypervisorCounts")
    }
}

impl Inspect for HypervisorCounts {
    fn inspect(&self, v: &mut dyn Visitor) {
        if let Some(counts) = &*self.0.lock() {
            counts.inspect(v);
        }
    }
}

/// One exit in so many is timed. A prime, so that a guest's loop of a few accesses does not put the same
/// one under the clock each time.
const SAMPLED: u32 = 61;

impl ExitCounters {
    /// The times of exits like `exit`.
    fn times(&self, exit: &Exit<'_>) -> &Histogram {
        match exit {
            Exit::Pio { .. } => &self.pio_time,
            Exit::Mmio { .. } => &self.mmio_time,
            Exit::EndOfInterrupt { .. } => &self.eoi_time,
            _ => &self.other_time,
        }
    }
}

type Job = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// What a vCPU thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Rest,
    Run,
    End,
}

struct Orders {
    goal: Goal,
    /// Who keeps it from running all the same: see [`Holder`].
    held: [bool; 2],
    jobs: Vec<Job>,
    /// The thread rests: registers are at an instruction boundary.
    resting: bool,
}

impl Orders {
    fn may_run(&self) -> bool {
        self.goal == Goal::Run && self.held == [false; 2]
    }

    /// After a change for the freer: a vCPU that may run does not count as resting from here on.
    fn loosened(&mut self) {
        if self.may_run() {
            self.resting = false;
        }
    }
}

struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
}

/// A vCPU's orders from outside its thread.
#[derive(Clone)]
pub(crate) struct Reins {
    shared: Arc<Shared>,
    kick: Arc<dyn Kick>,
}

impl Reins {
    /// Keeps the vCPU from running; it rests soon.
    pub(crate) fn hold(&self, holder: Holder) {
        let mut orders = self.shared.orders.lock();
        orders.held[holder as usize] = true;
        let resting = orders.resting;
        drop(orders);
        if !resting {
            self.kick.kick();
        }
    }

    /// Takes [`Reins::hold`] back.
    pub(crate) fn release(&self, holder: Holder) {
        let mut orders = self.shared.orders.lock();
        orders.held[holder as usize] = false;
        orders.loosened();
        self.shared.changed.notify_all();
    }

    /// Waits until the vCPU rests; `false` if it does not by `deadline`.
    pub(crate) fn wait_resting(&self, deadline: Instant) -> bool {
        let mut orders = self.shared.orders.lock();
        while !orders.resting {
            let wait = self.shared.changed.wait_until(&mut orders, deadline);
            if wait.timed_out() {
                return orders.resting;
            }
        }
        true
    }

    /// Runs `job` on the vCPU's own thread at an instruction boundary and returns its result: at
    /// once if it rests, between two instructions if it runs. `None` when the vCPU has ended or does
    /// not answer by `deadline`.
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        deadline: Instant,
        job: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> Option<R> {
        let (tell, told) = channel();
        let mut orders = self.shared.orders.lock();
        if orders.goal == Goal::End {
            return None;
        }
        orders.jobs.push(Box::new(move |vcpu| {
            // The asker waits; if it is gone, so is the interest in the result.
            let _ = tell.send(job(vcpu));
        }));
        let resting = orders.resting;
        self.shared.changed.notify_all();
        drop(orders);
        if !resting {
            self.kick.kick();
        }
        told.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .ok()
    }
}

struct Seat {
    shared: Arc<Shared>,
    kick: Arc<dyn Kick>,
    counters: Arc<ExitCounters>,
    thread: Option<JoinHandle<()>>,
}

/// All vCPUs of a machine.
#[derive(Default)]
pub struct VcpuSet {
    seats: Vec<Seat>,
    desk: Arc<DebugDesk>,
}

/// Where a vCPU's accesses go.
pub(crate) struct Surroundings {
    pub(crate) pio: BusView,
    pub(crate) mmio: BusView,
    pub(crate) controller: Controller,
    pub(crate) sink: Arc<dyn VcpuSink>,
}

impl VcpuSet {
    /// Gives `vcpu` a thread, resting.
    pub(crate) fn add(
        &mut self,
        index: u32,
        vcpu: Box<dyn Vcpu>,
        around: Surroundings,
    ) -> std::io::Result<Result<(), HvError>> {
        let shared = Arc::new(Shared {
            orders: Mutex::new(Orders {
                goal: Goal::Rest,
                held: [false; 2],
                jobs: Vec::new(),
                resting: true,
            }),
            changed: Condvar::new(),
        });
        let counters = Arc::new(ExitCounters::default());
        let (tell, told) = channel();
        let thread = Thread {
            vcpu,
            index,
            around,
            shared: shared.clone(),
            counters: counters.clone(),
            until_timed: SAMPLED,
            desk: self.desk.clone(),
        };
        let name = format!("vcpu{index}");
        let handle = std::thread::Builder::new()
            .name(name)
            .spawn(move || thread.body(&tell))?;
        let kick = match told.recv() {
            Ok(Ok(kick)) => kick,
            Ok(Err(e)) => return Ok(Err(e)),
            Err(_) => return Err(std::io::Error::other("the vCPU thread ended early")),
        };
        self.seats.push(Seat {
            shared,
            kick,
            counters,
            thread: Some(handle),
        });
        Ok(Ok(()))
    }

    /// Number of vCPUs.
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Each vCPU's counters.
    pub(crate) fn counters(&self) -> Vec<Arc<ExitCounters>> {
        self.seats
            .iter()
            .map(|seat| seat.counters.clone())
            .collect()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// What a debugger reaches the vCPUs by.
    pub(crate) fn reins(&self) -> (Arc<[Reins]>, Arc<DebugDesk>) {
        let reins = self.seats.iter().map(|seat| Reins {
            shared: seat.shared.clone(),
            kick: seat.kick.clone(),
        });
        (reins.collect(), self.desk.clone())
    }

    /// Lets every vCPU run that no debugger holds.
    pub(crate) fn run(&self) {
        self.desk.starting();
        for seat in &self.seats {
            let mut orders = seat.shared.orders.lock();
            if orders.goal != Goal::End {
                orders.goal = Goal::Run;
                orders.loosened();
                seat.shared.changed.notify_all();
            }
        }
    }

    /// Brings every vCPU to rest at an instruction boundary; `false` if one does not get there by
    /// `deadline`.
    pub(crate) fn rest(&self, deadline: Instant) -> bool {
        for seat in &self.seats {
            let mut orders = seat.shared.orders.lock();
            if orders.goal == Goal::Run {
                orders.goal = Goal::Rest;
            }
            let resting = orders.resting;
            drop(orders);
            if !resting {
                seat.kick.kick();
            }
        }
        self.seats.iter().all(|seat| {
            let mut orders = seat.shared.orders.lock();
            while !orders.resting {
                if seat
                    .shared
                    .changed
                    .wait_until(&mut orders, deadline)
                    .timed_out()
                {
                    return orders.resting;
                }
            }
            true
        })
    }

    /// Runs `job` on vCPU `index`'s own thread, which must rest, and returns its result; `None`
    /// when there is no such vCPU or it has ended.
    pub(crate) fn with<R: Send + 'static>(
        &self,
        index: usize,
        job: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> Option<R> {
        let seat = self.seats.get(index)?;
        let (tell, told) = channel();
        let mut orders = seat.shared.orders.lock();
        if orders.goal == Goal::End {
            return None;
        }
        orders.jobs.push(Box::new(move |vcpu| {
            // The asker waits; if it is gone, so is the interest in the result.
            let _ = tell.send(job(vcpu));
        }));
        seat.shared.changed.notify_all();
        drop(orders);
        told.recv().ok()
    }

    /// Interrupts vCPU `index` with an NMI at its next chance.
    pub(crate) fn nmi(&self, index: usize) {
        if let Some(seat) = self.seats.get(index) {
            seat.shared.orders.lock().jobs.push(Box::new(|vcpu| {
                // A vCPU that refuses an NMI is broken, which its next run reports.
                let _ = vcpu.inject_nmi();
            }));
            seat.kick.kick();
            seat.shared.changed.notify_all();
        }
    }

    /// Tells a debugger that the machine is at its end.
    pub(crate) fn farewell(&self) {
        self.desk.ended();
    }

    /// Ends every thread.
    pub(crate) fn end(&mut self) {
        self.desk.ended();
        for seat in &self.seats {
            seat.shared.orders.lock().goal = Goal::End;
            seat.shared.changed.notify_all();
            seat.kick.kick();
        }
        for thread in self.seats.iter_mut().filter_map(|seat| seat.thread.take()) {
            // A thread that panicked has nothing more to say.
            let _ = thread.join();
        }
        self.seats.clear();
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        self.end();
    }
}

/// Leaves the seat in order when the thread ends, by a panic too: nobody waits for it in vain.
struct Farewell {
    shared: Arc<Shared>,
    sink: Arc<dyn VcpuSink>,
    index: u32,
    counters: Arc<ExitCounters>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        // The hypervisor's counts must not outlive the vCPU, and the counters may.
        drop(self.counters.hypervisor.0.lock().take());
        let mut orders = self.shared.orders.lock();
        orders.goal = Goal::End;
        orders.resting = true;
        // Dropping a job tells its asker that there is no result.
        let unheard = std::mem::take(&mut orders.jobs);
        self.shared.changed.notify_all();
        drop(orders);
        drop(unheard);
        if std::thread::panicking() {
            let why = VcpuEvent::Failed("its thread panicked".into());
            self.sink.event(self.index, why);
        }
    }
}

struct Thread {
    vcpu: Box<dyn Vcpu>,
    index: u32,
    around: Surroundings,
    shared: Arc<Shared>,
    counters: Arc<ExitCounters>,
    /// Exits until the next one is timed.
    until_timed: u32,
    desk: Arc<DebugDesk>,
}

/// Why a vCPU leaves its loop.
enum Leave {
    /// It cannot go on.
    Event(VcpuEvent),
    /// It came to something that its debugger waits for.
    Debug(DebugStop),
}

impl Thread {
    fn body(mut self, tell: &Sender<Result<Arc<dyn Kick>, HvError>>) {
        let kick = self.vcpu.kick_handle();
        let usable = kick.is_ok();
        if tell.send(kick).is_err() || !usable {
            return;
        }
        let _farewell = Farewell {
            shared: self.shared.clone(),
            sink: self.around.sink.clone(),
            index: self.index,
            counters: self.counters.clone(),
        };
        *self.counters.hypervisor.0.lock() = self.vcpu.statistics();
        while self.resting() {
            self.running();
        }
    }

    /// Waits for orders; `false` means to end.
    fn resting(&mut self) -> bool {
        let mut orders = self.shared.orders.lock();
        loop {
            let jobs = std::mem::take(&mut orders.jobs);
            if !jobs.is_empty() {
                drop(orders);
                jobs.into_iter().for_each(|job| job(&mut *self.vcpu));
                orders = self.shared.orders.lock();
                continue;
            }
            match orders.goal {
                Goal::End => return false,
                Goal::Run if orders.may_run() => return true,
                Goal::Run | Goal::Rest => {
                    orders.resting = true;
                    self.shared.changed.notify_all();
                    self.shared.changed.wait(&mut orders);
                }
            }
        }
    }

    /// Runs the guest until told to rest or until it cannot go on.
    fn running(&mut self) {
        loop {
            let leave = match self.vcpu.run() {
                Ok(Exit::Interrupted) => {
                    self.counters.exits_interrupted.bump();
                    if self.has_orders() {
                        break self.settle();
                    }
                    None
                }
                Ok(exit) => {
                    self.until_timed -= 1;
                    if self.until_timed == 0 {
                        self.until_timed = SAMPLED;
                        timed(exit, &mut self.around, &self.counters)
                    } else {
                        serve(exit, &mut self.around, &self.counters)
                    }
                }
                Err(e) => Some(Leave::Event(VcpuEvent::Failed(e.to_string()))),
            };
            if let Some(leave) = leave
                && self.leaves(leave)
            {
                break;
            }
        }
    }

    /// Whether it is to rest now.
    #[cold]
    fn leaves(&mut self, leave: Leave) -> bool {
        match leave {
            Leave::Event(event) => {
                self.gives_up(event);
                true
            }
            Leave::Debug(stop) => {
                let (vcpu, shared) = (&mut *self.vcpu, &self.shared);
                self.desk.stopped(self.index, stop, vcpu, || {
                    shared.orders.lock().held[Holder::Debugger as usize] = true;
                })
            }
        }
    }

    /// Rests and says why.
    fn gives_up(&self, event: VcpuEvent) {
        let mut orders = self.shared.orders.lock();
        if orders.goal == Goal::Run {
            orders.goal = Goal::Rest;
        }
        drop(orders);
        self.around.sink.event(self.index, event);
    }

    /// Whether a kick came with something to do. Jobs are done on the spot by `resting`, which a
    /// vCPU whose goal is to run leaves at once.
    fn has_orders(&self) -> bool {
        let orders = self.shared.orders.lock();
        !orders.may_run() || !orders.jobs.is_empty()
    }

    /// Gets to an instruction boundary, serving what the instruction at hand still needs.
    fn settle(&mut self) {
        loop {
            let leave = match self.vcpu.settle() {
                Ok(None) => return,
                Ok(Some(exit)) => serve(exit, &mut self.around, &self.counters),
                Err(e) => Some(Leave::Event(VcpuEvent::Failed(e.to_string()))),
            };
            if let Some(leave) = leave
                && self.leaves(leave)
            {
                return;
            }
        }
    }
}

/// Serves one exit under the clock.
#[cold]
#[inline(never)]
fn timed(exit: Exit<'_>, around: &mut Surroundings, counters: &ExitCounters) -> Option<Leave> {
    let times = counters.times(&exit);
    let start = Instant::now();
    let event = serve(exit, around, counters);
    let nanos = start.elapsed().as_nanos();
    times.record_alone(u64::try_from(nanos).unwrap_or(u64::MAX));
    event
}

/// Serves one exit; an event if the guest cannot go on by itself.
#[inline]
fn serve(exit: Exit<'_>, around: &mut Surroundings, counters: &ExitCounters) -> Option<Leave> {
    let event = match exit {
        Exit::Pio {
            port,
            width,
            direction,
            data,
        } => {
            counters.exits_pio.bump();
            // String instructions are the exception: nearly always it is one element.
            let width = usize::from(width.max(1));
            let pio = &mut around.pio;
            match direction {
                Direction::In if data.len() == width => pio.read(port.into(), data),
                Direction::Out if data.len() == width => pio.write(port.into(), data),
                Direction::In => data
                    .chunks_exact_mut(width)
                    .for_each(|e| pio.read(port.into(), e)),
                Direction::Out => data
                    .chunks_exact_mut(width)
                    .for_each(|e| pio.write(port.into(), e)),
            }
            return None;
        }
        Exit::Mmio {
            address,
            write,
            data,
        } => {
            counters.exits_mmio.bump();
            if write {
                around.mmio.write(address, data);
            } else {
                around.mmio.read(address, data);
            }
            return None;
        }
        Exit::EndOfInterrupt { vector } => {
            counters.exits_eoi.bump();
            if let Some(controller) = around.controller.get() {
                controller.with(|device| {
                    if let Some(controller) = device.as_irq_controller() {
                        controller.end_of_interrupt(vector);
                    }
                });
            }
            return None;
        }
        // With local APICs in the kernel, HLT waits there; what comes here is spurious.
        Exit::Interrupted | Exit::Halt => {
            counters.exits_other.bump();
            return None;
        }
        Exit::Debug(stop) => {
            counters.exits_other.bump();
            return Some(Leave::Debug(stop));
        }
        Exit::Shutdown => VcpuEvent::TripleFault,
        Exit::System(event) => VcpuEvent::System(event),
        Exit::Broken(broken) => VcpuEvent::Broken(broken),
    };
    counters.exits_other.bump();
    Some(Leave::Event(event))
}
