//! The one owner of a machine: hears what happens, decides, acts.
//!
//! ```text
//!   built ──start──▶ running ──pause──▶ paused        any ──off, stop, kill──▶ ended
//!                     ▲   │  ◀─resume──
//!                     └───┘ reset: quiesce, reset units and vCPUs, load again
//! ```
//!
//! It is a thread with a mailbox. What it decides is on the [`Board`](crate::board::Board), so that nobody who
//! only wants to know waits for it. An operation that waits for the guest (a stop, a removal) is kept in
//! `pending` and holds nothing up; one that brings the machine to rest is done on the spot.

use crate::admission::Admission;
use crate::control::{Control, Desk, Request};
mod devices;

use crate::firmware::{FirmwareError, entry_state};
use crate::mailbox::{Mailbox, Message, Waiting};
use crate::prepare::Prepared;
use nyx_api::{Code, Happening, Phase, Problem, Progress};
use nyx_boot::RamContent;
use nyx_catalog::{Backends, KINDS};
use nyx_device::{Fault, FaultKind, GenerationChange, PowerButton, PowerRequest, ResetKind};
use nyx_diagnose::Stage;
use nyx_hypervisor::{Hypervisor, SystemEvent};
use nyx_machine::{AssembleError, Machine, Ports, StuckUnits, VcpuEvent};
use nyx_metrics::{Metrics, Setup};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest switched itself off.
    PoweredOff,
    /// Somebody stopped it.
    Stopped,
    /// Somebody killed it: nothing was written back.
    Killed,
    /// The guest said that it panicked.
    GuestPanic,
    /// The guest's CPU gave up (triple fault).
    TripleFault {
        /// Which vCPU.
        vcpu: u32,
    },
    /// The machine could not go on.
    Broken(String),
}

impl Ending {
    /// Its name in events and bundles.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PoweredOff => "powered-off",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::GuestPanic => "guest-panic",
            Self::TripleFault { .. } => "triple-fault",
            Self::Broken(_) => "broken",
        }
    }

    /// More about it, for a person.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::TripleFault { vcpu } => Some(format!("vCPU {vcpu} gave up")),
            Self::Broken(why) => Some(why.clone()),
            Self::PoweredOff | Self::Stopped | Self::Killed | Self::GuestPanic => None,
        }
    }
}

/// A machine could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be assembled.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// Firmware's part failed.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// vCPU 0 refused its entry state.
    #[error("cannot set the entry state: {0}")]
    Entry(String),
}

/// Something its user may want to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The machine starts (again).
    Started {
        /// How often it was reset before.
        resets: u64,
    },
    /// A unit reported a fault.
    Fault(Fault),
    /// So many faults were reported that further ones stay untold.
    FaultsMuted,
    /// The machine is paused because a disk of the host is full.
    PausedWithoutSpace {
        /// The device that has something to write.
        unit: String,
    },
}

/// How a machine is to start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// It waits for [`Request::Resume`] before its first instruction.
    pub paused: bool,
}

/// A machine and the mailbox of its owner.
pub struct Vmm {
    machine: Machine,
    prepared: Prepared,
    mail: Receiver<Message>,
    waiting: Arc<Waiting>,
    /// What devices that come later report to, and what opens their backends.
    mailbox: Arc<Mailbox>,
    backends: Backends,
    control: Control,
    notice: Box<dyn Fn(Notice) + Send>,
    /// Operations that have not started.
    queue: VecDeque<(u64, Request)>,
    /// Operations that wait for the guest.
    pending: Vec<Pending>,
    faults: u64,
    quiesce_timeout: Duration,
    finish_timeout: Duration,
}

/// An operation that waits for the guest.
struct Pending {
    id: u64,
    begun: Instant,
    deadline: Instant,
    what: Wait,
}

/// What the guest is to do.
#[derive(PartialEq, Eq)]
enum Wait {
    /// Switch itself off, or it is stopped at the deadline.
    PowerOff,
    /// Let go of the device of this name, or it stays.
    Ejection(String),
    /// Notice that the device of this name is gone.
    Parting(String),
}

impl Wait {
    fn describe(&self) -> String {
        match self {
            Self::PowerOff => "waiting for the guest to switch itself off".into(),
            Self::Ejection(name) => format!("waiting for the guest to let go of {name}"),
            Self::Parting(name) => {
                format!("giving the guest a moment to notice that {name} is gone")
            }
        }
    }

    /// The device that it is about.
    fn device(&self) -> Option<&str> {
        match self {
            Self::PowerOff => None,
            Self::Ejection(name) | Self::Parting(name) => Some(name),
        }
    }
}

/// A unit that has not come to rest by then is stuck.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an ended machine's last writes and console output may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);
/// Faults beyond this many are not shown.
const SHOWN_FAULTS: u64 = 64;
/// How often the progress of a wait is told.
const TICK: Duration = Duration::from_secs(1);

impl Vmm {
    /// Assembles the machine and loads it, at rest. `notice` hears what a user may want to know.
    pub fn new(
        prepared: Prepared,
        hypervisor: &dyn Hypervisor,
        backends: &Backends,
        desk: Desk,
        notice: Box<dyn Fn(Notice) + Send>,
    ) -> Result<Self, RunError> {
        let Desk { mail, control } = desk;
        let waiting = control.0.waiting.clone();
        let mailbox = Arc::new(Mailbox {
            mail: control.mail(),
            waiting: waiting.clone(),
        });
        let ports = Ports {
            faults: mailbox.clone(),
            power: mailbox.clone(),
            vcpus: mailbox.clone(),
            hotplug: mailbox.clone(),
            backends,
        };
        let boot = tracing::info_span!(target: "boot", "assemble").entered();
        let machine = Machine::assemble(prepared.plan.clone(), KINDS, hypervisor, &ports)?;
        drop(boot);
        control.introduce(prepared.config.clone(), machine.clock());
        let vmm = Self {
            machine,
            prepared,
            mail,
            waiting,
            mailbox,
            backends: backends.clone(),
            control,
            notice,
            queue: VecDeque::new(),
            pending: Vec::new(),
            faults: 0,
            quiesce_timeout: QUIESCE_TIMEOUT,
            finish_timeout: FINISH_TIMEOUT,
        };
        vmm.load(RamContent::Zero)?;
        *vmm.control.0.watchers.debug.lock() = Some(vmm.machine.debug_port());
        vmm.show();
        Ok(vmm)
    }

    /// A handle to steer the machine with.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// A debugger's way to vCPUs and memory. It keeps guest memory alive: drop it with the machine.
    pub fn debug_port(&self) -> nyx_machine::DebugPort {
        self.machine.debug_port()
    }

    /// The machine's state tree.
    pub fn inspect(&self) -> serde_json::Value {
        self.control.inspect()
    }

    /// Lets watchers see what the machine consists of now.
    fn show(&self) {
        let view = self.machine.view();
        let watchers = &self.control.0.watchers;
        match watchers.metrics.get() {
            Some(metrics) => metrics.set_tree(Arc::new(view.clone())),
            None => {
                let plan = self.machine.plan();
                let memory = plan.layout.ram.iter().map(|range| range.len).sum();
                let name = self.control.identity().name.as_str();
                let setup = Setup::new(name, plan.topology.count, memory);
                let metrics = Metrics::new(setup, Arc::new(view.clone()));
                // Nobody else sets it.
                let _ = watchers.metrics.set(Arc::new(metrics));
            }
        }
        self.control.show(view, self.machine.plan().clone());
    }

    fn load(&self, content: RamContent) -> Result<(), RunError> {
        let Prepared {
            tables,
            boot,
            kernel,
            initrd,
            ..
        } = &self.prepared;
        let _span = tracing::info_span!(target: "boot", "load").entered();
        tables.install(&self.machine.ram(), boot, kernel, initrd.as_ref(), content)?;
        self.machine
            .set_entry(entry_state(&boot.entry))
            .map_err(RunError::Entry)
    }

    /// Runs the machine to its end. It can be inspected then.
    pub fn run(&mut self, start: Start) -> Ending {
        let identity = self.control.identity();
        tracing::info!(target: "audit", machine = identity.name, id = identity.id, "the machine starts");
        if !start.paused {
            self.start();
        }
        let ending = self.serve();
        if ending != Ending::Killed {
            self.machine.finish(Instant::now() + self.finish_timeout);
        }
        let detail = ending.detail();
        tracing::info!(target: "vm", ending = ending.name(), detail, "the machine has ended");
        tracing::info!(target: "audit", ending = ending.name(), "the machine has ended");
        self.control.0.board.end(ending.name().into(), detail);
        // A debugger hears of the end from its server.
        self.control.close_gdb();
        *self.control.0.watchers.debug.lock() = None;
        if let Some(metrics) = self.control.metrics() {
            metrics.stop();
        }
        ending
    }

    fn serve(&mut self) -> Ending {
        loop {
            let message = match self.next_look() {
                None => self.mail.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    self.mail.recv_timeout(left)
                }
            };
            let ending = match message {
                Ok(message) => {
                    self.waiting.heard(&message);
                    self.hear(message)
                }
                Err(RecvTimeoutError::Timeout) => None,
                // The control handle keeps the channel open, so this cannot come.
                Err(RecvTimeoutError::Disconnected) => Some(Ending::Stopped),
            };
            if let Some(ending) = ending.or_else(|| self.look_after_pending()) {
                return ending;
            }
        }
    }

    fn hear(&mut self, message: Message) -> Option<Ending> {
        match message {
            Message::Power(PowerRequest::Off)
            | Message::Vcpu(_, VcpuEvent::System(SystemEvent::Shutdown)) => {
                Some(Ending::PoweredOff)
            }
            Message::Power(PowerRequest::Reset)
            | Message::Vcpu(_, VcpuEvent::System(SystemEvent::Reset)) => {
                self.reset("guest").err().map(Ending::Broken)
            }
            Message::Power(PowerRequest::GuestPanic)
            | Message::Vcpu(_, VcpuEvent::System(SystemEvent::Crash)) => Some(Ending::GuestPanic),
            Message::Vcpu(vcpu, VcpuEvent::TripleFault) => Some(Ending::TripleFault { vcpu }),
            Message::Vcpu(vcpu, event) => Some(broken(vcpu, &event)),
            Message::Fault(fault) => {
                let full = (fault.kind == FaultKind::NoSpace).then(|| fault.unit.to_string());
                self.fault(fault);
                if let Some(unit) = full {
                    self.wait_for_space(unit);
                }
                None
            }
            Message::Operation(id, request) => {
                self.queue.push_back((id, request));
                self.work_off()
            }
            Message::Look => self.work_off(),
            Message::Ejected => {
                self.complete_ejections();
                self.work_off()
            }
        }
    }

    /// Brings the machine to rest until somebody has made room and resumes it.
    fn wait_for_space(&mut self, unit: String) {
        // At rest already, by the same fault of another request perhaps.
        if self.control.phase() != Phase::Running {
            return;
        }
        match self.pause() {
            Ok(()) => {
                tracing::warn!(target: "vm", unit, "paused: the host has no room for what the guest writes");
                (self.notice)(Notice::PausedWithoutSpace { unit });
            }
            Err(problem) => tracing::error!(target: "vm", unit, "{problem}"),
        }
    }

    fn fault(&mut self, fault: Fault) {
        self.faults += 1;
        // The guest decides how often it misbehaves; the user's terminal and the journal are not its to
        // fill. Devices count on.
        if self.faults <= SHOWN_FAULTS {
            let Fault { unit, what, .. } = &fault;
            tracing::warn!(target: "device", unit = &**unit, "{what}");
            self.control.happened(Happening::Fault {
                unit: unit.to_string(),
                what: what.to_string(),
            });
            (self.notice)(Notice::Fault(fault));
        } else if self.faults == SHOWN_FAULTS + 1 {
            tracing::warn!(target: "device", "further faults are counted only");
            self.control.happened(Happening::FaultsMuted);
            (self.notice)(Notice::FaultsMuted);
        }
    }

    /// Starts what waits and may start now.
    fn work_off(&mut self) -> Option<Ending> {
        for (id, request) in std::mem::take(&mut self.queue) {
            match self.control.0.board.begin(id) {
                Admission::Now => {
                    let kind = request.kind();
                    tracing::info!(target: "vm", operation = id, "{kind}");
                    let _span =
                        tracing::info_span!(target: "vm", "operation", id, kind = kind.name())
                            .entered();
                    if let Some(ending) = self.execute(id, request) {
                        return Some(ending);
                    }
                }
                Admission::After(_) => self.queue.push_back((id, request)),
                Admission::Refuse(code, why, mend) => {
                    let why = format!("{}: {why}", request.kind());
                    let problem = Problem::new(code, why).mend(mend);
                    self.control.0.board.finish(id, Err(problem));
                }
            }
        }
        None
    }

    fn execute(&mut self, id: u64, request: Request) -> Option<Ending> {
        let result = match request {
            Request::Kill => return Some(Ending::Killed),
            Request::Stop { timeout } => {
                // A guest that does not run cannot switch itself off.
                let asked = !timeout.is_zero()
                    && self.control.phase() == Phase::Running
                    && self.press_power_button().is_ok();
                if !asked {
                    return Some(Ending::Stopped);
                }
                let begun = Instant::now();
                self.pending.push(Pending {
                    id,
                    begun,
                    deadline: begun + timeout,
                    what: Wait::PowerOff,
                });
                return None;
            }
            Request::Pause => self.pause(),
            Request::Resume => {
                self.start();
                Ok(())
            }
            Request::PowerButton => self.press_power_button(),
            Request::Nmi => {
                self.machine.nmi();
                Ok(())
            }
            Request::Reset => match self.reset("operator") {
                Ok(()) => Ok(()),
                Err(why) => {
                    let problem = Problem::new(Code::Failed, why.clone());
                    self.control.0.board.finish(id, Err(problem));
                    return Some(Ending::Broken(why));
                }
            },
            Request::AddDisk(_) | Request::AddNet(_) => self.add_device(&request),
            Request::RemoveDisk { name, force } | Request::RemoveNet { name, force } => {
                match self.remove_device(id, &name, force) {
                    Ok(true) => Ok(()),
                    Ok(false) => return None,
                    Err(problem) => Err(problem),
                }
            }
        };
        if let Err(problem) = &result {
            tracing::warn!(target: "vm", operation = id, "{problem}");
        }
        self.control.0.board.finish(id, result);
        None
    }

    fn press_power_button(&self) -> Result<(), Problem> {
        match self.machine.extensions().get::<PowerButton>() {
            Some(button) => {
                button.press();
                Ok(())
            }
            None => Err(Problem::new(
                Code::Unsupported,
                "this machine has no power button",
            )),
        }
    }

    /// When to look after operations that wait for the guest.
    fn next_look(&self) -> Option<Instant> {
        let now = Instant::now();
        let tick = now + TICK;
        let looks = self.pending.iter().map(|wait| match wait.deadline {
            // One that is not over by its deadline, because the guest is paused, is looked at now and then.
            passed if passed <= now => tick,
            deadline => deadline.min(tick),
        });
        looks.min()
    }

    /// Tells how far waits are, drops those that were cancelled, and ends the machine whose time is up.
    fn look_after_pending(&mut self) -> Option<Ending> {
        if self.pending.is_empty() {
            return None;
        }
        let now = Instant::now();
        let board = &self.control.0.board;
        let before = self.pending.len();
        let cancelled = |wait: &mut Pending| {
            let open = board
                .operation(wait.id)
                .is_some_and(|o| !o.state.is_final());
            if open {
                let total = wait.deadline - wait.begun;
                let progress = Progress {
                    done: (now - wait.begun).min(total).as_secs(),
                    total: total.as_secs(),
                    what: wait.what.describe(),
                };
                let can_be_cancelled = !matches!(wait.what, Wait::Parting(_));
                board.progress(wait.id, can_be_cancelled, progress);
            }
            !open
        };
        let cancelled: Vec<_> = self.pending.extract_if(.., cancelled).collect();
        let is_over = |wait: &Pending| wait.what == Wait::PowerOff && wait.deadline <= now;
        if self.pending.iter().any(is_over) {
            return Some(Ending::Stopped);
        }
        self.give_up(cancelled);
        if self.pending.len() < before {
            // What was cancelled may have been in the way.
            return self.work_off();
        }
        None
    }

    fn start(&mut self) {
        let resets = self.control.0.board.resets();
        if self.control.phase() != Phase::Paused {
            (self.notice)(Notice::Started { resets });
        }
        if let Some(recorder) = self.control.recorder() {
            match (self.control.phase(), resets) {
                (Phase::Paused, _) => {}
                (_, 0) => recorder.mark(Stage::Guest),
                _ => recorder.restarted(),
            }
        }
        tracing::info!(target: "vm", resets, "the guest runs");
        if self.control.phase() == Phase::Paused {
            self.machine.resume();
        } else {
            self.machine.start();
        }
        self.control.0.board.enter(Phase::Running);
    }

    fn pause(&mut self) -> Result<(), Problem> {
        let deadline = Instant::now() + self.quiesce_timeout;
        let quiesced = self.machine.quiesce(deadline).map_err(|e| {
            Problem::new(Code::Failed, format!("cannot pause: {e}"))
                .mend("what is stuck works on; try again, or kill the machine")
        })?;
        quiesced.keep();
        self.control.0.board.enter(Phase::Paused);
        Ok(())
    }

    /// Resets the platform; a machine that was at rest stays at rest. After an error it cannot go on.
    fn reset(&mut self, by: &str) -> Result<(), String> {
        let phase = self.control.phase();
        self.control.0.board.enter(Phase::Resetting);
        let deadline = Instant::now() + self.quiesce_timeout;
        let stuck = |e: StuckUnits| format!("cannot reset: {e}");
        let mut quiesced = self.machine.quiesce(deadline).map_err(stuck)?;
        let reset = quiesced.reset(ResetKind::Warm);
        quiesced.keep();
        // Removals that the guest was busy with are done.
        let gone = self.machine.take_departed();
        self.departed(&gone);
        reset.map_err(|e| format!("cannot reset: {e}"))?;
        // Requests of the guest that was are void now; those of users are not.
        let mail: Vec<_> = self.mail.try_iter().collect();
        for message in mail {
            if matches!(message, Message::Power(_) | Message::Vcpu(..)) {
                self.waiting.heard(&message);
            } else {
                self.control.send(message);
            }
        }
        self.load(RamContent::Unknown)
            .map_err(|e| format!("cannot load after a reset: {e}"))?;
        let resets = self.control.0.board.count_reset(by);
        tracing::info!(target: "vm", resets, by, "reset");
        if phase == Phase::Paused {
            self.control.0.board.enter(Phase::Paused);
        } else {
            self.start();
        }
        Ok(())
    }

    /// Tells the guest that it became another machine.
    pub fn announce_new_generation(&self) {
        if let Some(change) = self.machine.extensions().get::<GenerationChange>() {
            change.announce();
        }
    }
}

fn broken(vcpu: u32, event: &VcpuEvent) -> Ending {
    Ending::Broken(match event {
        VcpuEvent::Broken(broken) => format!("vCPU {vcpu}: {broken}"),
        VcpuEvent::Failed(why) => format!("vCPU {vcpu}: {why}"),
        VcpuEvent::TripleFault => format!("vCPU {vcpu}: triple fault"),
        VcpuEvent::System(event) => format!("vCPU {vcpu}: unknown system event {event:?}"),
    })
}
