//! One stream between a guest program and a host program.
//!
//! ```text
//!  host connects ─▶ greeting ──"CONNECT n"──▶ requested ──RESPONSE──┐
//!                                                                   ▼
//!  guest REQUEST ───────── connect to the host's socket ────▶ established
//!                                                                   │ nothing more either way
//!                                        RST of the guest           ▼
//!                          gone ◀────────────────────────────── closing
//! ```
//!
//! From every state an error leads to `dead`: the guest is still owed a RST.

use super::packet::{CLOSED, HEADER, HOST, Header, NO_RECEIVE, NO_SEND, STREAM, op};
use nyx_reactor::Interest;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// Longest greeting, line end included.
const GREETING: usize = 32;

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The host program has not said yet which port it wants.
    Greeting,
    /// The guest has not answered yet.
    Requested,
    /// Bytes flow.
    Established,
    /// Both sides know that nothing flows any more; the guest confirms with a RST.
    Closing,
    /// The guest is owed a RST, and then it is gone.
    Dead,
}

/// Packets the guest is owed, besides data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owed {
    pub(crate) request: bool,
    pub(crate) response: bool,
    pub(crate) shutdown: bool,
    pub(crate) credit_update: bool,
    pub(crate) credit_request: bool,
}

/// The greeting makes no sense, or the host program has gone.
#[derive(Debug)]
pub(crate) struct Hopeless;

pub(crate) struct Connection {
    /// `None` once nothing can be read or written.
    socket: Option<OwnedFd>,
    pub(crate) stage: Stage,
    pub(crate) host_port: u32,
    pub(crate) guest_port: u32,
    greeting: Vec<u8>,
    // To the guest
    pub(crate) owed: Owed,
    /// The socket may have bytes.
    pub(crate) readable: bool,
    /// Halves of which the guest is to be told that they are over: [`NO_SEND`], [`NO_RECEIVE`].
    over: u32,
    /// Bytes sent, modulo 2³².
    sent: u32,
    guest_alloc: u32,
    guest_forwarded: u32,
    /// A credit request is on its way.
    asked: bool,
    // From the guest
    /// Bytes the guest may have on the way to the host program.
    allowance: u32,
    received: u32,
    forwarded: u32,
    /// What the guest last heard of `forwarded`.
    told: u32,
    /// Bytes the host program did not take yet, at most `allowance`.
    waiting: VecDeque<u8>,
    /// Halves the guest has ended.
    guest_over: u32,
    // The task's bookkeeping
    /// It is in the list of those with something to say.
    pub(crate) listed: bool,
    /// What its socket is registered for.
    pub(crate) armed: Option<Interest>,
}

impl Connection {
    fn new(socket: OwnedFd, stage: Stage, (host_port, guest_port): (u32, u32)) -> Self {
        Self {
            socket: Some(socket),
            stage,
            host_port,
            guest_port,
            greeting: Vec::new(),
            owed: Owed::default(),
            readable: false,
            over: 0,
            sent: 0,
            guest_alloc: 0,
            guest_forwarded: 0,
            asked: false,
            allowance: 0,
            received: 0,
            forwarded: 0,
            told: 0,
            waiting: VecDeque::new(),
            guest_over: 0,
            listed: false,
            armed: None,
        }
    }

    /// A host program that is about to say what it wants.
    pub(crate) fn greeting(socket: OwnedFd) -> Self {
        Self::new(socket, Stage::Greeting, (0, 0))
    }

    /// A guest program's connection to a host program that took it.
    pub(crate) fn answered(socket: OwnedFd, ports: (u32, u32), allowance: u32) -> Self {
        let mut connection = Self::new(socket, Stage::Established, ports);
        connection.allowance = allowance;
        connection.owed.response = true;
        connection
    }

    /// The socket, for the poller.
    pub(crate) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Whether the host program has closed its end.
    pub(crate) fn is_hung_up(&self) -> bool {
        self.socket.as_ref().is_none_or(hung_up)
    }

    /// Reads `CONNECT <port>\n`; the port once the line is complete.
    pub(crate) fn greet(&mut self) -> Result<Option<u32>, Hopeless> {
        let socket = self.socket.as_ref().ok_or(Hopeless)?;
        let mut bytes = [0; GREETING];
        let room = GREETING - self.greeting.len().min(GREETING);
        let room = bytes.get_mut(..room).unwrap_or_default();
        // Looked at first: what follows the line belongs to the guest.
        let seen = match rustix::net::recv(socket, &mut *room, RecvFlags::PEEK) {
            Ok((_, seen @ 1..)) => room.get(..seen).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            _ => return Err(Hopeless),
        };
        let end = seen.iter().position(|&b| b == b'\n');
        let take = end.map_or(seen.len(), |end| end + 1);
        self.greeting.extend(seen.get(..take).unwrap_or_default());
        let mut sink = [0; GREETING];
        let sink = sink.get_mut(..take).unwrap_or_default();
        rustix::net::recv(socket, sink, RecvFlags::empty()).map_err(|_| Hopeless)?;
        if end.is_none() {
            return if self.greeting.len() < GREETING {
                Ok(None)
            } else {
                Err(Hopeless)
            };
        }
        let line = std::str::from_utf8(&self.greeting).map_err(|_| Hopeless)?;
        let mut words = line.split_ascii_whitespace();
        let (Some(verb), Some(port), None) = (words.next(), words.next(), words.next()) else {
            return Err(Hopeless);
        };
        if !verb.eq_ignore_ascii_case("connect") {
            return Err(Hopeless);
        }
        Ok(Some(port.parse().map_err(|_| Hopeless)?))
    }

    /// Asks the guest for a connection.
    pub(crate) fn request(&mut self, (host_port, guest_port): (u32, u32), allowance: u32) {
        (self.host_port, self.guest_port) = (host_port, guest_port);
        self.greeting = Vec::new();
        self.stage = Stage::Requested;
        self.allowance = allowance;
        self.owed.request = true;
    }

    /// The guest took the connection: tells the host program.
    pub(crate) fn establish(&mut self) {
        self.stage = Stage::Established;
        self.readable = true;
        let line = format!("OK {}\n", self.host_port);
        let sent = self.socket.as_ref().map(|s| send(s, line.as_bytes()));
        // Nothing was ever written to this socket, so the line fits unless the program has gone.
        if sent != Some(Ok(line.len())) {
            self.kill();
        }
    }

    /// Ends it; the guest is owed a RST.
    pub(crate) fn kill(&mut self) {
        self.socket = None;
        self.waiting = VecDeque::new();
        self.owed = Owed::default();
        self.stage = Stage::Dead;
    }

    // To the guest ----------------------------------------------------------------------------

    /// Takes the guest's side of the flow control, which every packet carries (§5.10.6.3).
    pub(crate) fn credit(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.room() != 0 {
            self.asked = false;
            self.owed.credit_request = false;
        }
    }

    /// Bytes the guest has room for.
    fn room(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_alloc.saturating_sub(on_the_way)
    }

    fn may_read(&self) -> bool {
        self.stage == Stage::Established
            && self.over & NO_SEND == 0
            && self.guest_over & NO_RECEIVE == 0
    }

    /// Whether there is something to say to the guest.
    pub(crate) fn has_packet(&mut self) -> bool {
        if self.readable && self.may_read() && self.room() == 0 && !self.asked {
            self.asked = true;
            self.owed.credit_request = true;
        }
        self.stage == Stage::Dead
            || self.owed != Owed::default()
            || self.readable && self.may_read() && self.room() != 0
    }

    /// The next packet for the guest, its payload in `payload`; `None` if there is none after all.
    pub(crate) fn packet(&mut self, guest: u64, payload: &mut [u8]) -> Option<Header> {
        let mut len = 0;
        let op = self.choose(payload, &mut len)?;
        // Every packet brings the counters along.
        self.owed.credit_update = false;
        self.told = self.forwarded;
        self.sent = self.sent.wrapping_add(len);
        if op == op::SHUTDOWN && self.over == CLOSED {
            self.socket = None;
            self.waiting = VecDeque::new();
            self.stage = Stage::Closing;
        }
        Some(Header {
            src_cid: HOST,
            dst_cid: guest,
            src_port: self.host_port,
            dst_port: self.guest_port,
            len,
            kind: STREAM,
            op,
            flags: if op == op::SHUTDOWN { self.over } else { 0 },
            buf_alloc: self.allowance,
            fwd_cnt: self.forwarded,
        })
    }

    /// What the next packet is; its payload, if it has one, goes to `payload`.
    fn choose(&mut self, payload: &mut [u8], len: &mut u32) -> Option<u16> {
        if self.stage != Stage::Dead {
            if std::mem::take(&mut self.owed.request) {
                return Some(op::REQUEST);
            }
            if std::mem::take(&mut self.owed.response) {
                self.readable = true;
                return Some(op::RESPONSE);
            }
            if let Some(read) = self.read(payload) {
                *len = read;
                return Some(op::RW);
            }
        }
        // Reading may have found an error.
        if self.stage == Stage::Dead {
            Some(op::RST)
        } else if std::mem::take(&mut self.owed.shutdown) {
            Some(op::SHUTDOWN)
        } else if std::mem::take(&mut self.owed.credit_request) {
            Some(op::CREDIT_REQUEST)
        } else {
            self.owed.credit_update.then_some(op::CREDIT_UPDATE)
        }
    }

    /// Reads what the guest has room for; `None` when there is nothing.
    fn read(&mut self, payload: &mut [u8]) -> Option<u32> {
        if !self.readable || !self.may_read() {
            return None;
        }
        let len = payload.len().min(self.room() as usize);
        let part = payload.get_mut(..len).filter(|part| !part.is_empty())?;
        let socket = self.socket.as_ref()?;
        match rustix::net::recv(socket, part, RecvFlags::empty()) {
            Ok((_, 0)) => {
                self.readable = false;
                self.over |= NO_SEND;
                if hung_up(socket) {
                    self.over |= NO_RECEIVE;
                }
                self.owed.shutdown = true;
                None
            }
            Ok((_, read)) => Some(read as u32),
            Err(Errno::AGAIN) => {
                self.readable = false;
                None
            }
            Err(Errno::INTR) => None,
            Err(_) => {
                self.kill();
                None
            }
        }
    }

    // From the guest --------------------------------------------------------------------------

    /// Whether a payload of `len` bytes respects what the guest was allowed.
    pub(crate) fn allows(&self, len: u32) -> bool {
        let on_the_way = self.received.wrapping_sub(self.forwarded);
        self.stage == Stage::Closing
            || self.stage == Stage::Established
                && self.guest_over & NO_SEND == 0
                && len <= self.allowance.saturating_sub(on_the_way)
    }

    /// Takes a payload, or a part of one, that [`Connection::allows`].
    pub(crate) fn accept(&mut self, bytes: &[u8]) {
        self.received = self.received.wrapping_add(bytes.len() as u32);
        let mut rest = bytes;
        if self.over & NO_RECEIVE != 0 || self.stage == Stage::Closing {
            // Nobody will read it; the guest has been told or is about to be.
            self.forward(bytes.len());
            return;
        }
        if self.waiting.is_empty() {
            let sent = self.write(bytes);
            rest = bytes.get(sent..).unwrap_or_default();
        }
        self.waiting.extend(rest);
    }

    /// Writes what waits for the host program.
    pub(crate) fn flush(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        while !waiting.is_empty() {
            let (first, _) = waiting.as_slices();
            let sent = self.write(first);
            if self.over & NO_RECEIVE != 0 {
                // What is left of it goes the way of what was just lost.
                self.forward(waiting.len().saturating_sub(sent));
                waiting.clear();
            }
            if sent == 0 {
                break;
            }
            waiting.drain(..sent.min(waiting.len()));
        }
        self.waiting = waiting;
        self.settle();
    }

    /// Writes to the socket and returns how much is dealt with: sent, or lost with its reader.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(socket) = &self.socket else { return 0 };
        let done = match send(socket, bytes) {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                // The host program receives no more. What it sent before may still be unread.
                self.over |= NO_RECEIVE;
                self.owed.shutdown = true;
                self.readable = true;
                bytes.len()
            }
        };
        self.forward(done);
        done
    }

    fn forward(&mut self, count: usize) {
        self.forwarded = self.forwarded.wrapping_add(count as u32);
        // Told before the guest runs dry.
        let free = self
            .allowance
            .saturating_sub(self.received.wrapping_sub(self.told));
        if free < self.allowance / 2 {
            self.owed.credit_update = true;
        }
    }

    /// The guest ends halves of the connection.
    pub(crate) fn guest_ends(&mut self, halves: u32) {
        self.guest_over |= halves & CLOSED;
        self.settle();
    }

    /// Passes the end of the guest's bytes on, once they all are.
    fn settle(&mut self) {
        if !self.waiting.is_empty() || self.stage == Stage::Dead {
            return;
        }
        if self.guest_over == CLOSED {
            self.kill();
        } else if self.guest_over & NO_SEND != 0
            && let Some(socket) = &self.socket
        {
            // Repeated calls are harmless; a peer that has gone needs no word.
            let _ = rustix::net::shutdown(socket, Shutdown::Write);
        }
    }

    // Polling ---------------------------------------------------------------------------------

    /// What its socket should be registered for; a socket that nobody reads or writes has to go,
    /// for its hang-up would be reported for ever.
    pub(crate) fn interest(&self) -> Option<Interest> {
        self.socket.as_ref()?;
        let reading = self.stage == Stage::Greeting || self.may_read() && !self.readable;
        match (reading, !self.waiting.is_empty()) {
            (true, true) => Some(Interest::Both),
            (true, false) => Some(Interest::Readable),
            (false, true) => Some(Interest::Writable),
            // While the guest makes up its mind, a host program that gives up is of interest.
            (false, false) if self.stage == Stage::Requested => Some(Interest::Nothing),
            (false, false) => None,
        }
    }

    /// Whether it only waits for a confirmation, or for a greeting, and may be forgotten when
    /// connections run out.
    pub(crate) fn is_dispensable(&self) -> bool {
        matches!(self.stage, Stage::Greeting | Stage::Closing | Stage::Dead)
    }
}

/// Room in a packet for payload besides the header.
pub(crate) fn payload_room(chain: u64, most: usize) -> usize {
    chain.saturating_sub(HEADER as u64).min(most as u64) as usize
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn hung_up(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let polled = rustix::event::poll(&mut fds, Some(&now));
    let [fd] = fds;
    polled.is_err() || fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
