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
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
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

/// How much of what a guest can cause at will waits in the mailbox: the owner may be held up, by a
/// terminal that nobody reads.
#[derive(Default)]
struct Waiting {
    faults: AtomicUsize,
    /// One bit for each kind of power request.
    power: AtomicU8,
}

/// Faults that wait to be heard, at most.
const MOST_FAULTS: usize = 256;

fn bit(request: &PowerRequest) -> u8 {
    match request {
        PowerRequest::Off => 1,
        PowerRequest::Reset => 2,
        PowerRequest::GuestPanic => 4,
    }
}

impl Waiting {
    /// Whether there is room for `message`, which then waits.
    fn admit(&self, message: &Message) -> bool {
        match message {
            Message::Fault(_) => {
                let most = |waiting| (waiting < MOST_FAULTS).then_some(waiting + 1);
                let (set, get) = (Ordering::AcqRel, Ordering::Acquire);
                self.faults.fetch_update(set, get, most).is_ok()
            }
            // One that waits says it all.
            Message::Power(request) => {
                let bit = bit(request);
                self.power.fetch_or(bit, Ordering::AcqRel) & bit == 0
            }
            // A vCPU rests after an event, and users are not the guest.
            Message::Vcpu(..) | Message::Command(_) => true,
        }
    }

    /// `message` has left the mailbox.
    fn heard(&self, message: &Message) {
        match message {
            Message::Fault(_) => {
                self.faults.fetch_sub(1, Ordering::AcqRel);
            }
            Message::Power(request) => {
                self.power.fetch_and(!bit(request), Ordering::AcqRel);
            }
            Message::Vcpu(..) | Message::Command(_) => {}
        }
    }
}

struct Mailbox {
    mail: Sender<Message>,
    waiting: Arc<Waiting>,
}

impl Mailbox {
    fn put(&self, message: Message) {
        if self.waiting.admit(&message) {
            // An actor that has ended hears nothing.
            let _ = self.mail.send(message);
        }
    }
}

impl FaultSink for Mailbox {
    fn fault(&self, fault: Fault) {
        self.put(Message::Fault(fault));
    }
}
impl PowerSink for Mailbox {
    fn request(&self, request: PowerRequest) {
        self.put(Message::Power(request));
    }
}
impl VcpuSink for Mailbox {
    fn event(&self, vcpu: u32, event: VcpuEvent) {
        self.put(Message::Vcpu(vcpu, event));
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
    waiting: Arc<Waiting>,
    control: Control,
    notice: Box<dyn Fn(Notice) + Send>,
    resets: u64,
    quiesce_timeout: Duration,
}

/// A unit that has not come to rest by then is stuck.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an ended machine's last writes and console output may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);
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
        let waiting = Arc::new(Waiting::default());
        let mailbox = Arc::new(Mailbox {
            mail: tell.clone(),
            waiting: waiting.clone(),
        });
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
            waiting,
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

    /// Runs the machine to its end. It can be inspected then.
    pub fn run(&mut self) -> Ending {
        let ending = self.serve();
        self.machine.finish(Instant::now() + FINISH_TIMEOUT);
        ending
    }

    fn serve(&mut self) -> Ending {
        self.start();
        let mut faults = 0_u64;
        loop {
            // The control handle keeps the channel open, so receiving cannot fail.
            let Ok(message) = self.mail.recv() else {
                return Ending::Stopped;
            };
            self.waiting.heard(&message);
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
            } else {
                self.waiting.heard(&message);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fault() -> Fault {
        Fault {
            unit: "a".into(),
            kind: nyx_device::FaultKind::Protocol,
            what: "again".into(),
        }
    }

    #[test]
    fn a_guest_cannot_fill_the_mailbox_nor_keep_others_out_of_it() {
        let (mail, inbox) = channel();
        let waiting = Arc::new(Waiting::default());
        let mailbox = Mailbox {
            mail,
            waiting: waiting.clone(),
        };
        for _ in 0..2 * MOST_FAULTS {
            mailbox.fault(fault());
            mailbox.request(PowerRequest::Reset);
        }
        mailbox.request(PowerRequest::Off);
        mailbox.event(0, VcpuEvent::TripleFault);
        let heard: Vec<_> = inbox.try_iter().collect();
        assert_eq!(heard.len(), MOST_FAULTS + 3);
        heard.iter().for_each(|message| waiting.heard(message));
        mailbox.fault(fault());
        mailbox.request(PowerRequest::Reset);
        assert_eq!(inbox.try_iter().count(), 2, "what was heard makes room");
    }
}
