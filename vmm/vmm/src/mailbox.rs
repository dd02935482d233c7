//! The actor's mailbox: what reaches it, from whom, and how much of it a guest can make wait.

use crate::control::Request;
use nyx_device::{EjectionSink, Fault, FaultSink, PowerRequest, PowerSink};
use nyx_machine::{VcpuEvent, VcpuSink};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;

pub(crate) enum Message {
    Power(PowerRequest),
    Vcpu(u32, VcpuEvent),
    Fault(Fault),
    /// An operation that is on the board, by number.
    Operation(u64, Request),
    /// Something on the board has changed: look after what is pending.
    Look,
    /// The guest let go of devices; the machine knows which.
    Ejected,
}

/// How much of what a guest can cause at will waits in the mailbox: the owner may be held up, by a
/// terminal that nobody reads.
#[derive(Default)]
pub(crate) struct Waiting {
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
            // One for each device that is there to be ejected, at most.
            Message::Vcpu(..) | Message::Operation(..) | Message::Look | Message::Ejected => true,
        }
    }

    /// `message` has left the mailbox.
    pub(crate) fn heard(&self, message: &Message) {
        match message {
            Message::Fault(_) => {
                self.faults.fetch_sub(1, Ordering::AcqRel);
            }
            Message::Power(request) => {
                self.power.fetch_and(!bit(request), Ordering::AcqRel);
            }
            Message::Vcpu(..) | Message::Operation(..) | Message::Look | Message::Ejected => {}
        }
    }
}

pub(crate) struct Mailbox {
    pub(crate) mail: Sender<Message>,
    pub(crate) waiting: Arc<Waiting>,
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
impl EjectionSink for Mailbox {
    fn ejected(&self) {
        self.put(Message::Ejected);
    }
}
impl VcpuSink for Mailbox {
    fn event(&self, vcpu: u32, event: VcpuEvent) {
        self.put(Message::Vcpu(vcpu, event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

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
