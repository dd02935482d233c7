//! The one owner of a machine: hears what happens, decides, acts.
//!
//! ```text
//!   built ──start──▶ running ──off, kill──▶ ended
//!                     ▲   │
//!                     └───┘ reset: quiesce, reset units and vCPUs, load again
//! ```

use crate::firmware::{FirmwareError, entry_state};
use crate::prepare::Prepared;
use nyx_boot::RamContent;
use nyx_catalog::{Backends, KINDS};
use nyx_device::{
    Fault, FaultSink, GenerationChange, PowerButton, PowerRequest, PowerSink, ResetKind,
};
use nyx_hypervisor::{Hypervisor, SystemEvent};
use nyx_inspect::Json;
use nyx_machine::{AssembleError, Machine, Ports, StuckUnits, VcpuEvent, VcpuSink};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest switched itself off.
    PoweredOff,
    /// Somebody stopped it.
    Stopped,
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

/// Asked of a running machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Press the power button.
    PowerButton,
    /// Reset the platform.
    Reset,
    /// Inject an NMI.
    Nmi,
    /// Switch off at once.
    Stop,
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
}

enum Message {
    Power(PowerRequest),
    Vcpu(u32, VcpuEvent),
    Fault(Fault),
    Command(Command),
}

struct Mailbox(Sender<Message>);

impl FaultSink for Mailbox {
    fn fault(&self, fault: Fault) {
        // An actor that has ended hears nothing.
        let _ = self.0.send(Message::Fault(fault));
    }
}
impl PowerSink for Mailbox {
    fn request(&self, request: PowerRequest) {
        let _ = self.0.send(Message::Power(request));
    }
}
impl VcpuSink for Mailbox {
    fn event(&self, vcpu: u32, event: VcpuEvent) {
        let _ = self.0.send(Message::Vcpu(vcpu, event));
    }
}

/// Sends commands to a machine from any thread.
#[derive(Clone)]
pub struct Control(Sender<Message>);

impl Control {
    /// Asks; a machine that has ended does not hear.
    pub fn send(&self, command: Command) {
        let _ = self.0.send(Message::Command(command));
    }
}

/// A machine and the mailbox of its owner.
pub struct Vmm {
    machine: Machine,
    prepared: Prepared,
    mail: Receiver<Message>,
    control: Control,
    notice: Box<dyn Fn(Notice) + Send>,
    resets: u64,
    quiesce_timeout: Duration,
}

/// A unit that has not come to rest by then is stuck.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Faults beyond this many are not shown.
const SHOWN_FAULTS: u64 = 64;

impl Vmm {
    /// Assembles the machine and loads it, at rest. `escape` hears console escapes; `notice` hears
    /// what a user may want to know.
    pub fn new(
        prepared: Prepared,
        hypervisor: &dyn Hypervisor,
        backends: &Backends,
        notice: Box<dyn Fn(Notice) + Send>,
    ) -> Result<Self, RunError> {
        let (tell, mail) = channel();
        let mailbox = Arc::new(Mailbox(tell.clone()));
        let ports = Ports {
            faults: mailbox.clone(),
            power: mailbox.clone(),
            vcpus: mailbox,
            backends,
        };
        let machine = Machine::assemble(prepared.plan.clone(), KINDS, hypervisor, &ports)?;
        let vmm = Self {
            machine,
            prepared,
            mail,
            control: Control(tell),
            notice,
            resets: 0,
            quiesce_timeout: QUIESCE_TIMEOUT,
        };
        vmm.load(RamContent::Zero)?;
        Ok(vmm)
    }

    /// A handle to command the machine with.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The machine's state tree.
    pub fn inspect(&self) -> serde_json::Value {
        Json::of(&self.machine)
    }

    fn load(&self, content: RamContent) -> Result<(), RunError> {
        let Prepared {
            tables,
            boot,
            kernel,
            initrd,
            ..
        } = &self.prepared;
        tables.install(&self.machine.ram(), boot, kernel, initrd.as_ref(), content)?;
        self.machine
            .set_entry(entry_state(&boot.entry))
            .map_err(RunError::Entry)
    }

    /// Runs the machine to its end.
    pub fn run(mut self) -> Ending {
        self.start();
        let mut faults = 0_u64;
        loop {
            // The control handle keeps the channel open, so receiving cannot fail.
            let Ok(message) = self.mail.recv() else {
                return Ending::Stopped;
            };
            match message {
                Message::Power(PowerRequest::Off)
                | Message::Vcpu(_, VcpuEvent::System(SystemEvent::Shutdown)) => {
                    return Ending::PoweredOff;
                }
                Message::Power(PowerRequest::Reset)
                | Message::Command(Command::Reset)
                | Message::Vcpu(_, VcpuEvent::System(SystemEvent::Reset)) => {
                    if let Err(ending) = self.reset() {
                        return ending;
                    }
                }
                Message::Power(PowerRequest::GuestPanic)
                | Message::Vcpu(_, VcpuEvent::System(SystemEvent::Crash)) => {
                    return Ending::GuestPanic;
                }
                Message::Vcpu(vcpu, VcpuEvent::TripleFault) => {
                    return Ending::TripleFault { vcpu };
                }
                Message::Vcpu(vcpu, event) => return broken(vcpu, &event),
                Message::Fault(fault) => {
                    faults += 1;
                    match faults {
                        ..=SHOWN_FAULTS => (self.notice)(Notice::Fault(fault)),
                        n if n == SHOWN_FAULTS + 1 => (self.notice)(Notice::FaultsMuted),
                        // The guest decides how often it misbehaves; the user's terminal is not
                        // its to fill. Devices count on.
                        _ => {}
                    }
                }
                Message::Command(Command::PowerButton) => {
                    if let Some(button) = self.machine.extensions().get::<PowerButton>() {
                        button.press();
                    }
                }
                Message::Command(Command::Nmi) => self.machine.nmi(),
                Message::Command(Command::Stop) => return Ending::Stopped,
            }
        }
    }

    fn start(&mut self) {
        (self.notice)(Notice::Started {
            resets: self.resets,
        });
        self.machine.start();
    }

    fn reset(&mut self) -> Result<(), Ending> {
        let deadline = Instant::now() + self.quiesce_timeout;
        let stuck = |e: StuckUnits| Ending::Broken(format!("cannot reset: {e}"));
        let mut quiesced = self.machine.quiesce(deadline).map_err(stuck)?;
        let reset = quiesced.reset(ResetKind::Warm);
        quiesced.keep();
        reset.map_err(|e| Ending::Broken(format!("cannot reset: {e}")))?;
        // Requests of the guest that was are void now; commands of users are not.
        let mail: Vec<_> = self.mail.try_iter().collect();
        for message in mail {
            if matches!(message, Message::Command(_) | Message::Fault(_)) {
                let _ = self.control.0.send(message);
            }
        }
        self.load(RamContent::Unknown)
            .map_err(|e| Ending::Broken(format!("cannot load after a reset: {e}")))?;
        self.resets += 1;
        self.start();
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
