//! vCPU threads: a three-state machine each, and nothing else.
//!
//! ```text
//!   resting ──run──▶ running ──rest, exit that ends it──▶ resting ──end──▶ (gone)
//! ```
//!
//! A running vCPU looks at its orders only when it was kicked, so the exit path carries no check.

use crate::fabric::Controller;
use nyx_device::BusView;
use nyx_hypervisor::{Broken, Direction, Exit, HvError, Kick, SystemEvent, Vcpu};
use nyx_inspect::{Counter, Inspect, Visitor};
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

/// Exits of one vCPU that reached user space, by kind. Written by its thread only.
#[derive(Debug, Default, Inspect)]
#[repr(align(128))]
pub struct ExitCounters {
    /// Port accesses.
    pub exits_pio: Counter,
    /// Memory-mapped accesses.
    pub exits_mmio: Counter,
    /// Ends of interrupts.
    pub exits_eoi: Counter,
    /// Kicks and signals.
    pub exits_interrupted: Counter,
    /// Everything else.
    pub exits_other: Counter,
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
    jobs: Vec<Job>,
    /// The thread rests: registers are at an instruction boundary.
    resting: bool,
}

struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
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

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Lets every vCPU run.
    pub(crate) fn run(&self) {
        for seat in &self.seats {
            let mut orders = seat.shared.orders.lock();
            if orders.goal != Goal::End {
                orders.goal = Goal::Run;
                orders.resting = false;
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

    /// Ends every thread.
    pub(crate) fn end(&mut self) {
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

impl Inspect for VcpuSet {
    fn inspect(&self, v: &mut dyn Visitor) {
        for (index, seat) in self.seats.iter().enumerate() {
            v.child(&index.to_string(), &*seat.counters);
        }
    }
}

/// Leaves the seat in order when the thread ends, by a panic too: nobody waits for it in vain.
struct Farewell {
    shared: Arc<Shared>,
    sink: Arc<dyn VcpuSink>,
    index: u32,
}

impl Drop for Farewell {
    fn drop(&mut self) {
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
        };
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
                Goal::Run => return true,
                Goal::Rest => {
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
            let event = match self.vcpu.run() {
                Ok(Exit::Interrupted) => {
                    self.counters.exits_interrupted.inc();
                    if self.has_orders() {
                        break self.settle();
                    }
                    None
                }
                Ok(exit) => serve(exit, &mut self.around, &self.counters),
                Err(e) => Some(VcpuEvent::Failed(e.to_string())),
            };
            if let Some(event) = event {
                break self.gives_up(event);
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
        orders.goal != Goal::Run || !orders.jobs.is_empty()
    }

    /// Gets to an instruction boundary, serving what the instruction at hand still needs.
    fn settle(&mut self) {
        loop {
            let event = match self.vcpu.settle() {
                Ok(None) => return,
                Ok(Some(exit)) => serve(exit, &mut self.around, &self.counters),
                Err(e) => Some(VcpuEvent::Failed(e.to_string())),
            };
            if let Some(event) = event {
                return self.gives_up(event);
            }
        }
    }
}

/// Serves one exit; an event if the guest cannot go on by itself.
#[inline]
fn serve(exit: Exit<'_>, around: &mut Surroundings, counters: &ExitCounters) -> Option<VcpuEvent> {
    let event = match exit {
        Exit::Pio {
            port,
            width,
            direction,
            data,
        } => {
            counters.exits_pio.inc();
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
            counters.exits_mmio.inc();
            if write {
                around.mmio.write(address, data);
            } else {
                around.mmio.read(address, data);
            }
            return None;
        }
        Exit::EndOfInterrupt { vector } => {
            counters.exits_eoi.inc();
            if let Some(controller) = around.controller.get() {
                controller.with(|device| {
                    if let Some(controller) = device.as_irq_controller() {
                        controller.end_of_interrupt(vector);
                    }
                });
            }
            return None;
        }
        // With local APICs in the kernel, HLT waits there; what comes here is spurious. Nobody has
        // asked for debug events.
        Exit::Interrupted | Exit::Halt | Exit::Debug { .. } => {
            counters.exits_other.inc();
            return None;
        }
        Exit::Shutdown => VcpuEvent::TripleFault,
        Exit::System(event) => VcpuEvent::System(event),
        Exit::Broken(broken) => VcpuEvent::Broken(broken),
    };
    counters.exits_other.inc();
    Some(event)
}
