//! One queue pair of a network device and the wire behind it.

use super::Shared;
use super::control::Control;
use super::receive::{self, Receiver};
use super::transmit::{self, Transmitter};
use crate::loan::Loan;
use nyx_device::NetQueue;
use nyx_reactor::{Interest, Poller};
use nyx_virtio::{Interrupt, Progress, QueueTask, TaskError, VirtQueue};
use std::io;
use std::sync::Arc;

const RECEIVE_KICK: u64 = 0;
const TRANSMIT_KICK: u64 = 1;
const CONTROL_KICK: u64 = 2;
const WIRE: u64 = 3;
/// The guest changed the number of pairs in use.
const PAIRS: u64 = 4;
/// No descriptor: go on with whatever is unfinished.
const MORE: u64 = 5;

pub(crate) struct PairTask {
    // Wiring
    wire: Loan<Box<dyn NetQueue>>,
    receiver: Option<Receiver>,
    transmitter: Option<Transmitter>,
    control: Option<Control>,
    shared: Arc<Shared>,
    interrupt: Arc<Interrupt>,
    /// Which pair this is.
    pair: u16,
    // State
    /// Frames on the wire are of interest: the guest has room for them.
    receiving: bool,
    /// The wire did not take a frame.
    blocked: bool,
    /// What the wire is registered for.
    armed: Option<Interest>,
    enabled: bool,
    draining: bool,
}

impl PairTask {
    pub(crate) fn new(
        wire: Loan<Box<dyn NetQueue>>,
        receiver: Option<Receiver>,
        transmitter: Option<Transmitter>,
        control: Option<Control>,
        (shared, interrupt, pair): (Arc<Shared>, Arc<Interrupt>, u16),
    ) -> Self {
        let enabled = pair < shared.pairs();
        Self {
            wire,
            receiver,
            transmitter,
            control,
            shared,
            interrupt,
            pair,
            receiving: true,
            blocked: false,
            armed: None,
            enabled,
            draining: false,
        }
    }

    /// Follows the number of pairs in use.
    fn follow_pairs(&mut self) -> io::Result<()> {
        let enabled = self.pair < self.shared.pairs();
        if enabled != self.enabled {
            self.wire.set_in_service(enabled)?;
            self.enabled = enabled;
            self.receiving = true;
        }
        Ok(())
    }

    fn serve(&mut self, token: u64, poller: &Poller) -> Result<Progress, TaskError> {
        if self.draining {
            return Ok(Progress::Wait);
        }
        let mut more = false;
        if matches!(token, CONTROL_KICK | MORE)
            && let Some(control) = &mut self.control
        {
            more |= control.round()?;
        }
        self.follow_pairs()?;
        // A kick of one side says nothing of the other: do not ask the wire for nothing.
        if (matches!(token, TRANSMIT_KICK | MORE) || self.blocked && token == WIRE)
            && let Some(transmitter) = &mut self.transmitter
        {
            let outcome = transmitter.round(&mut **self.wire)?;
            self.blocked = outcome == transmit::Outcome::Blocked;
            more |= outcome == transmit::Outcome::More;
        }
        if !matches!(token, TRANSMIT_KICK | CONTROL_KICK)
            && self.enabled
            && let Some(receiver) = &mut self.receiver
        {
            let outcome = receiver.round(&mut **self.wire, token == RECEIVE_KICK)?;
            self.receiving = matches!(outcome, receive::Outcome::Empty | receive::Outcome::More);
            more |= outcome == receive::Outcome::More;
            if outcome == receive::Outcome::Dead {
                self.shared.link_down(&self.interrupt);
            }
        }
        self.arm(poller)?;
        Ok(if more {
            Progress::Again(MORE)
        } else {
            Progress::Wait
        })
    }

    /// Asks for exactly what can be used: a wire that nobody reads would wake the thread for ever.
    fn arm(&mut self, poller: &Poller) -> io::Result<()> {
        let receiving = self.receiving && self.enabled && self.receiver.is_some();
        let wanted = match (receiving, self.blocked) {
            (true, true) => Some(Interest::Both),
            (true, false) => Some(Interest::Readable),
            (false, true) => Some(Interest::Writable),
            // A registered descriptor reports errors whatever the interest, so it has to go.
            (false, false) => None,
        };
        if wanted == self.armed {
            return Ok(());
        }
        match (self.armed, wanted) {
            (None, Some(interest)) => poller.add(self.wire.fd(), WIRE, interest)?,
            (Some(_), Some(interest)) => poller.modify(self.wire.fd(), WIRE, interest)?,
            (Some(_), None) => poller.remove(self.wire.fd())?,
            (None, None) => {}
        }
        self.armed = wanted;
        Ok(())
    }
}

impl QueueTask for PairTask {
    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        let kicks = [
            (RECEIVE_KICK, self.receiver.as_ref().map(|r| &r.queue)),
            (TRANSMIT_KICK, self.transmitter.as_ref().map(|t| &t.queue)),
            (CONTROL_KICK, self.control.as_ref().map(|c| &c.queue)),
        ];
        for (token, queue) in kicks {
            if let Some(queue) = queue {
                poller.add(queue.kick_event(), token, Interest::Readable)?;
            }
        }
        if let Some(event) = self.shared.pair_event(self.pair) {
            poller.add(event, PAIRS, Interest::Readable)?;
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, poller: &Poller) -> Result<Progress, TaskError> {
        match token {
            RECEIVE_KICK => self.receiver.as_ref().map(|r| r.queue.take_kick()),
            TRANSMIT_KICK => self.transmitter.as_ref().map(|t| t.queue.take_kick()),
            CONTROL_KICK => self.control.as_ref().map(|c| c.queue.take_kick()),
            PAIRS => self.shared.pair_event(self.pair).map(|event| event.clear()),
            _ => None,
        };
        self.serve(token, poller)
    }

    fn resume(&mut self, poller: &Poller) -> Result<Progress, TaskError> {
        self.draining = false;
        self.receiving = true;
        self.serve(MORE, poller)
    }

    fn drain(&mut self) -> Result<bool, TaskError> {
        self.draining = true;
        if let Some(receiver) = &mut self.receiver {
            receiver.park();
        }
        // Nothing else is ever in flight: a frame is sent or it was not taken.
        Ok(true)
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        let receive = self.receiver.as_ref().map(|r| &r.queue);
        let transmit = self.transmitter.as_ref().map(|t| &t.queue);
        let control = self.control.as_ref().map(|c| &c.queue);
        receive.into_iter().chain(transmit).chain(control).collect()
    }
}
