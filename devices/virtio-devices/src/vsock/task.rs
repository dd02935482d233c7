//! All queues and connections of a socket device, on one thread.

use super::Shared;
use super::connection::{Connection, Stage, payload_room};
use super::listener::Listener;
use super::packet::{HEADER, HOST, Header, STREAM, op};
use crate::loan::Loan;
use crate::queues::BATCH;
use nyx_memory::{DmaSpace, DmaView};
use nyx_reactor::{Interest, Poller};
use nyx_virtio::{Chain, Progress, QueueTask, TaskError, VirtQueue};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const RECEIVE_KICK: u64 = 0;
const TRANSMIT_KICK: u64 = 1;
const EVENT_KICK: u64 = 2;
const LISTENER: u64 = 3;
/// No descriptor: go on with whatever is unfinished.
const MORE: u64 = 4;
/// Connection `n` has token `CONNECTIONS + n`.
const CONNECTIONS: u64 = 16;

/// Most connections at a time.
pub(crate) const MAX_CONNECTIONS: usize = 1024;
/// Host programs taken in one wakeup.
const ACCEPTS: usize = 16;
/// RSTs for unknown connections that wait for room; beyond it no packets are taken.
const MAX_RESETS: usize = 64;
/// Most bytes of payload in one packet to the guest.
const MAX_PAYLOAD: usize = 64 << 10;
/// Bytes the guest may have on the way, per connection: much for few, little for many, so that a
/// guest that fills them all does not take more than 72 MiB of the host.
const ALLOWANCES: [(usize, u32); 2] = [(32, 256 << 10), (MAX_CONNECTIONS, 64 << 10)];
/// Ports from here on are the host's ends of its own connections.
const FIRST_PORT: u32 = 1 << 30;
/// The only event there is (§5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

pub(crate) struct VsockTask {
    // Wiring
    /// To the guest.
    receive: Option<VirtQueue>,
    /// From the guest.
    transmit: Option<VirtQueue>,
    events: Option<VirtQueue>,
    dma: DmaSpace,
    listener: Loan<Listener>,
    shared: Arc<Shared>,
    // State
    connections: Vec<Option<Connection>>,
    /// By the host's and the guest's port.
    ports: BTreeMap<(u32, u32), usize>,
    free: Vec<usize>,
    /// Connections with something to say, in turn.
    ready: VecDeque<usize>,
    resets: VecDeque<Header>,
    /// Connections whose registration may be out of date.
    touched: Vec<usize>,
    next_port: u32,
    listening: bool,
    /// The host refused to accept: wait until something is closed, or happens.
    exhausted: bool,
    /// A header and its payload on their way to the guest.
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    draining: bool,
}

impl VsockTask {
    pub(crate) fn new(
        queues: [Option<VirtQueue>; 3],
        dma: DmaSpace,
        listener: Loan<Listener>,
        shared: Arc<Shared>,
    ) -> Self {
        let [receive, transmit, events] = queues;
        Self {
            receive,
            transmit,
            events,
            dma,
            listener,
            shared,
            connections: Vec::new(),
            ports: BTreeMap::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            touched: Vec::new(),
            next_port: FIRST_PORT,
            listening: false,
            exhausted: false,
            outgoing: vec![0; HEADER + MAX_PAYLOAD],
            incoming: vec![0; MAX_PAYLOAD],
            draining: false,
        }
    }

    fn serve(&mut self, token: u64, poller: &Poller) -> Result<Progress, TaskError> {
        if self.draining {
            return Ok(Progress::Wait);
        }
        let dma = self.dma.clone();
        let view = dma.view();
        if token == TRANSMIT_KICK {
            self.exhausted = false;
        }
        if matches!(token, LISTENER | MORE) {
            self.welcome();
        }
        if let Some(index) = token
            .checked_sub(CONNECTIONS)
            .and_then(|i| usize::try_from(i).ok())
        {
            self.stir(index);
        }
        if matches!(token, EVENT_KICK | MORE) {
            self.announce(&view)?;
        }
        // Room for RSTs first, then what makes them.
        let mut more = self.speak(&view)?;
        if matches!(token, TRANSMIT_KICK | RECEIVE_KICK | MORE) {
            more |= self.hear(&view)?;
            more |= self.speak(&view)?;
        }
        self.arm(poller)?;
        Ok(if more {
            Progress::Again(MORE)
        } else {
            Progress::Wait
        })
    }

    // Connections -----------------------------------------------------------------------------

    fn count(&self) -> usize {
        self.connections.len() - self.free.len()
    }

    fn insert(&mut self, connection: Connection) -> usize {
        let index = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        if let Some(slot) = self.connections.get_mut(index) {
            *slot = Some(connection);
        }
        self.shared.counters.connections.set(self.count() as u64);
        index
    }

    /// Forgets a connection; closing its socket takes that out of the poller.
    fn remove(&mut self, index: usize) {
        self.exhausted = false;
        let Some(slot) = self.connections.get_mut(index) else {
            return;
        };
        let Some(connection) = slot.take() else {
            return;
        };
        let ports = (connection.host_port, connection.guest_port);
        if self.ports.get(&ports) == Some(&index) {
            self.ports.remove(&ports);
        }
        self.free.push(index);
        self.shared.counters.connections.set(self.count() as u64);
    }

    /// Makes room for one more connection of the guest's, at the expense of one that is as good as
    /// gone or has not begun.
    fn make_room(&mut self) -> bool {
        if self.count() < MAX_CONNECTIONS {
            return true;
        }
        let dispensable =
            |c: &Option<Connection>| c.as_ref().is_some_and(Connection::is_dispensable);
        match self.connections.iter().position(dispensable) {
            Some(index) => {
                self.remove(index);
                true
            }
            None => {
                self.shared.counters.refused_connections.inc();
                false
            }
        }
    }

    fn allowance(&self) -> u32 {
        let count = self.count();
        ALLOWANCES
            .iter()
            .find(|(most, _)| count < *most)
            .map_or(64 << 10, |(_, bytes)| *bytes)
    }

    /// Lists a connection if it has something to say, and has its registration looked at.
    fn touch(&mut self, index: usize) {
        let Some(Some(connection)) = self.connections.get_mut(index) else {
            return;
        };
        self.touched.push(index);
        if !connection.listed && connection.has_packet() {
            connection.listed = true;
            self.ready.push_back(index);
        }
    }

    /// Takes host programs that connect.
    fn welcome(&mut self) {
        for _ in 0..ACCEPTS {
            // Beyond the limit they wait in the backlog.
            if self.count() >= MAX_CONNECTIONS {
                return;
            }
            let socket = match self.listener.accept() {
                Ok(socket) => socket,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // Out of descriptors, most likely: trying again at once would spin.
                    self.exhausted = true;
                    self.shared.counters.refused_connections.inc();
                    return;
                }
            };
            let index = self.insert(Connection::greeting(socket));
            self.touch(index);
        }
    }

    /// A connection's socket has something: bytes, room, or an end.
    fn stir(&mut self, index: usize) {
        let Some(Some(connection)) = self.connections.get_mut(index) else {
            return;
        };
        match connection.stage {
            Stage::Greeting => match connection.greet() {
                Ok(None) => {}
                Ok(Some(port)) => {
                    let allowance = self.allowance();
                    let host_port = self.choose_port(port);
                    if let Some(Some(connection)) = self.connections.get_mut(index) {
                        connection.request((host_port, port), allowance);
                        self.ports.insert((host_port, port), index);
                        self.shared.counters.host_connections.inc();
                    }
                }
                Err(_) => return self.remove(index),
            },
            // Only its end is waited for here. The event may be one of a socket that had this place
            // before, so it is asked.
            Stage::Requested => {
                if !connection.is_hung_up() {
                    return;
                }
                if connection.owed.request {
                    // The guest has not heard of it.
                    return self.remove(index);
                }
                connection.kill();
            }
            Stage::Established => {
                connection.readable = true;
                connection.flush();
            }
            Stage::Closing | Stage::Dead => {}
        }
        self.touch(index);
    }

    /// A host port that is free towards `guest_port`. There are far more ports than connections.
    fn choose_port(&mut self, guest_port: u32) -> u32 {
        for _ in 0..=MAX_CONNECTIONS {
            let port = self.next_port;
            // The last number means "any port".
            self.next_port = if port >= u32::MAX - 1 {
                FIRST_PORT
            } else {
                port + 1
            };
            if !self.ports.contains_key(&(port, guest_port)) {
                return port;
            }
        }
        self.next_port
    }

    /// Brings registrations up to date.
    fn arm(&mut self, poller: &Poller) -> io::Result<()> {
        for index in std::mem::take(&mut self.touched) {
            let Some(Some(connection)) = self.connections.get_mut(index) else {
                continue;
            };
            let wanted = connection.interest();
            if wanted != connection.armed
                && let Some(socket) = connection.socket()
            {
                let token = CONNECTIONS + index as u64;
                match (connection.armed, wanted) {
                    (None, Some(interest)) => poller.add(socket, token, interest)?,
                    (Some(_), Some(interest)) => poller.modify(socket, token, interest)?,
                    (Some(_), None) => poller.remove(socket)?,
                    (None, None) => {}
                }
            }
            connection.armed = wanted;
        }
        let listening = self.count() < MAX_CONNECTIONS && !self.exhausted;
        if listening != self.listening {
            if listening {
                poller.add(&*self.listener, LISTENER, Interest::Readable)?;
            } else {
                poller.remove(&*self.listener)?;
            }
            self.listening = listening;
        }
        Ok(())
    }

    // From the guest --------------------------------------------------------------------------

    /// Takes packets; `true` if there may be more.
    fn hear(&mut self, view: &DmaView<'_>) -> Result<bool, TaskError> {
        let Some(mut queue) = self.transmit.take() else {
            return Ok(false);
        };
        let result = self.packets(&mut queue, view);
        queue.publish();
        queue.notify();
        self.transmit = Some(queue);
        result
    }

    fn packets(&mut self, queue: &mut VirtQueue, view: &DmaView<'_>) -> Result<bool, TaskError> {
        queue.disable_kicks();
        for _ in 0..BATCH {
            if self.resets.len() >= MAX_RESETS {
                // The guest has to make room for answers first; its kick of the other queue
                // brings the task back here.
                return Ok(false);
            }
            let Some(chain) = queue.pop(view)? else {
                if queue.enable_kicks() {
                    queue.disable_kicks();
                    continue;
                }
                return Ok(false);
            };
            if self.packet(&chain, view).is_none() {
                self.shared.counters.bad_packets.inc();
            }
            queue.fill(chain.head(), 0);
        }
        Ok(true)
    }

    /// `None` for a packet that makes no sense.
    fn packet(&mut self, chain: &Chain, view: &DmaView<'_>) -> Option<()> {
        let header = Header::from_bytes(&chain.read(view, 0).ok()?);
        // §5.10.6.4.1: not from this guest, so there is nobody to answer to.
        if header.src_cid != self.shared.cid {
            return None;
        }
        let known = self.ports.get(&(header.dst_port, header.src_port)).copied();
        if header.dst_cid != HOST || header.kind != STREAM {
            return self.unknown(&header);
        }
        let Some(index) = known else {
            if header.op != op::REQUEST {
                return self.unknown(&header);
            }
            self.reach(&header);
            return Some(());
        };
        let connection = self.connections.get_mut(index)?.as_mut()?;
        connection.credit(&header);
        let sensible = match header.op {
            op::RESPONSE if connection.stage == Stage::Requested => {
                connection.establish();
                true
            }
            op::RST => {
                connection.flush();
                self.remove(index);
                return Some(());
            }
            op::SHUTDOWN => {
                connection.guest_ends(header.flags);
                true
            }
            op::RW => return self.payload(index, &header, chain, view),
            op::CREDIT_UPDATE => true,
            op::CREDIT_REQUEST => {
                connection.owed.credit_update = true;
                true
            }
            _ => {
                connection.kill();
                false
            }
        };
        self.touch(index);
        sensible.then_some(())
    }

    /// Answers a packet that belongs to no connection.
    fn unknown(&mut self, header: &Header) -> Option<()> {
        if header.op != op::RST {
            self.resets.push_back(header.reset());
        }
        None
    }

    /// A guest program wants a host program.
    fn reach(&mut self, header: &Header) {
        let ports = (header.dst_port, header.src_port);
        let socket = if self.make_room() {
            self.listener.connect(header.dst_port).ok()
        } else {
            None
        };
        let Some(socket) = socket else {
            self.shared.counters.refused_connections.inc();
            self.resets.push_back(header.reset());
            return;
        };
        self.shared.counters.guest_connections.inc();
        let mut connection = Connection::answered(socket, ports, self.allowance());
        connection.credit(header);
        let index = self.insert(connection);
        self.ports.insert(ports, index);
        self.touch(index);
    }

    fn payload(
        &mut self,
        index: usize,
        header: &Header,
        chain: &Chain,
        view: &DmaView<'_>,
    ) -> Option<()> {
        let connection = self.connections.get_mut(index)?.as_mut()?;
        let held = chain.readable_len().saturating_sub(HEADER as u64);
        let mut sensible = u64::from(header.len) <= held && connection.allows(header.len);
        let mut done = 0;
        while sensible && done < header.len as usize {
            let len = (header.len as usize - done).min(MAX_PAYLOAD);
            let part = self.incoming.get_mut(..len)?;
            if chain.read_into(view, (HEADER + done) as u64, part).is_err() {
                sensible = false;
                break;
            }
            connection.accept(part);
            done += len;
        }
        self.shared.counters.from_guest_bytes.add(done as u64);
        if !sensible {
            connection.kill();
        }
        self.touch(index);
        sensible.then_some(())
    }

    // To the guest ----------------------------------------------------------------------------

    /// Says what there is to say, as far as the guest offers buffers; `true` if the bound for one
    /// wakeup was reached.
    fn speak(&mut self, view: &DmaView<'_>) -> Result<bool, TaskError> {
        let Some(mut queue) = self.receive.take() else {
            return Ok(false);
        };
        let result = self.answers(&mut queue, view);
        queue.publish();
        queue.notify();
        self.receive = Some(queue);
        result
    }

    fn answers(&mut self, queue: &mut VirtQueue, view: &DmaView<'_>) -> Result<bool, TaskError> {
        queue.disable_kicks();
        for _ in 0..BATCH {
            if self.resets.is_empty() && self.ready.is_empty() {
                return Ok(false);
            }
            let Some(chain) = queue.pop(view)? else {
                if queue.enable_kicks() {
                    queue.disable_kicks();
                    continue;
                }
                return Ok(false);
            };
            if chain.writable_len() < HEADER as u64 {
                self.shared.counters.bad_buffers.inc();
                queue.fill(chain.head(), 0);
                continue;
            }
            match self.answer(&chain, view) {
                Some(len) => queue.fill(chain.head(), len),
                None => queue.undo_pop(),
            }
        }
        Ok(true)
    }

    /// Puts one packet into `chain` and returns its length; `None` if there was none after all.
    fn answer(&mut self, chain: &Chain, view: &DmaView<'_>) -> Option<u32> {
        if let Some(reset) = self.resets.pop_front() {
            let written = chain.write(view, 0, &reset.to_bytes());
            return Some(if written.is_ok() {
                HEADER as u32
            } else {
                self.lost()
            });
        }
        let index = self.ready.pop_front()?;
        let connection = self.connections.get_mut(index)?.as_mut()?;
        connection.listed = false;
        let room = payload_room(chain.writable_len(), MAX_PAYLOAD);
        let payload = self.outgoing.get_mut(HEADER..HEADER + room)?;
        let packet = connection.packet(self.shared.cid, payload);
        let gone = connection.stage == Stage::Dead && packet.is_some();
        let Some(header) = packet else {
            let stuck = room == 0 && connection.has_packet();
            self.touch(index);
            // Offering nothing but headers, the guest would have the task try for ever.
            return stuck.then(|| self.lost());
        };
        let len = HEADER + header.len as usize;
        let bytes = self.outgoing.get_mut(..len)?;
        for (to, from) in bytes.iter_mut().zip(header.to_bytes()) {
            *to = from;
        }
        let written = chain.write(view, 0, bytes).is_ok();
        if !written {
            // A hole in a stream cannot be mended.
            connection.kill();
        }
        if gone {
            self.remove(index);
        } else {
            self.touch(index);
        }
        self.shared.counters.to_guest_bytes.add(header.len.into());
        Some(if written { len as u32 } else { self.lost() })
    }

    fn lost(&self) -> u32 {
        self.shared.counters.bad_buffers.inc();
        0
    }

    /// After a restore, no connection of the past exists any more: says so.
    fn announce(&mut self, view: &DmaView<'_>) -> Result<(), TaskError> {
        let Some(queue) = &mut self.events else {
            return Ok(());
        };
        if !self.shared.reset_owed.load(Ordering::Acquire) {
            return Ok(());
        }
        for _ in 0..BATCH {
            let mut chain = queue.pop(view)?;
            if chain.is_none() && queue.enable_kicks() {
                chain = queue.pop(view)?;
            }
            let Some(chain) = chain else { break };
            let told = chain.write(view, 0, &TRANSPORT_RESET.to_le_bytes()).is_ok();
            queue.fill(chain.head(), if told { 4 } else { 0 });
            if told {
                self.shared.reset_owed.store(false, Ordering::Release);
                break;
            }
        }
        queue.publish();
        queue.notify();
        Ok(())
    }
}

impl QueueTask for VsockTask {
    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        let kicks = [
            (RECEIVE_KICK, &self.receive),
            (TRANSMIT_KICK, &self.transmit),
            (EVENT_KICK, &self.events),
        ];
        for (token, queue) in kicks {
            if let Some(queue) = queue {
                poller.add(queue.kick_event(), token, Interest::Readable)?;
            }
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, poller: &Poller) -> Result<Progress, TaskError> {
        let queue = match token {
            RECEIVE_KICK => &self.receive,
            TRANSMIT_KICK => &self.transmit,
            EVENT_KICK => &self.events,
            _ => &None,
        };
        if let Some(queue) = queue {
            queue.take_kick();
        }
        self.serve(token, poller)
    }

    fn resume(&mut self, poller: &Poller) -> Result<Progress, TaskError> {
        self.draining = false;
        self.serve(MORE, poller)
    }

    fn drain(&mut self) -> Result<bool, TaskError> {
        self.draining = true;
        // Connections live on; nothing of a queue is held between wakeups.
        Ok(true)
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        [&self.receive, &self.transmit, &self.events]
            .into_iter()
            .flatten()
            .collect()
    }
}

impl Drop for VsockTask {
    fn drop(&mut self) {
        self.shared.counters.connections.set(0);
    }
}
