//! From the wire into the guest (Virtio 1.2 §5.1.6.3, §5.1.6.4).

use super::{HEADER, LONGEST, NetCounters};
use crate::queues::BATCH;
use nyx_device::NetQueue;
use nyx_memory::{DmaSpace, DmaView, PinnedBuffers};
use nyx_virtio::{Chain, TaskError, VirtQueue};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// Where `num_buffers` lies in the header (§5.1.6).
const NUM_BUFFERS: u64 = 10;
/// Failed reads in a row after which the wire is taken for dead.
const PATIENCE: u32 = 64;

/// What became of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The wire is empty: wait for it.
    Empty,
    /// The guest offers too little: wait for its kick, and leave frames on the wire.
    Starved,
    /// The bound for one wakeup was reached.
    More,
    /// The wire is dead.
    Dead,
}

/// The receive side of one queue pair.
///
/// Chains are taken ahead of frames, and together they are one list of buffers: a frame goes from
/// the backend straight to where the guest wants it, over as many chains as it needs when buffers
/// merge. When less than the longest frame is on offer, a frame passes through `spill`, so that one
/// that does not fit is not lost to truncation.
pub(crate) struct Receiver {
    pub(crate) queue: VirtQueue,
    dma: DmaSpace,
    counters: Arc<NetCounters>,
    /// Frames may span chains.
    merge: bool,
    /// The backend's frames have no header; one is made here.
    bare: bool,
    /// Chains taken and not used, oldest first.
    taken: VecDeque<Chain>,
    /// Exactly the writable parts of `taken`, in order; `None` when that list is empty.
    buffers: Option<PinnedBuffers>,
    /// Bytes in `buffers`.
    room: u64,
    spill: Vec<u8>,
    /// Length of a frame in `spill` that waits for room.
    held: Option<usize>,
    errors: u32,
    dead: bool,
}

impl Receiver {
    pub(crate) fn new(
        queue: VirtQueue,
        dma: DmaSpace,
        counters: Arc<NetCounters>,
        merge: bool,
        bare: bool,
    ) -> Self {
        Self {
            queue,
            dma,
            counters,
            merge,
            bare,
            taken: VecDeque::new(),
            buffers: None,
            room: 0,
            spill: Vec::new(),
            held: None,
            errors: 0,
            dead: false,
        }
    }

    /// Moves a bounded number of frames from `wire` to the guest. `kicked` says that the guest made
    /// buffers available since the round before.
    pub(crate) fn round(
        &mut self,
        wire: &mut dyn NetQueue,
        kicked: bool,
    ) -> Result<Outcome, TaskError> {
        let dma = self.dma.clone();
        let view = dma.view();
        self.queue.disable_kicks();
        let outcome = self.frames(wire, kicked, &view);
        self.queue.publish();
        self.queue.notify();
        outcome
    }

    fn frames(
        &mut self,
        wire: &mut dyn NetQueue,
        mut kicked: bool,
        view: &DmaView<'_>,
    ) -> Result<Outcome, TaskError> {
        if self.dead {
            return Ok(Outcome::Dead);
        }
        for _ in 0..BATCH {
            self.refill(view)?;
            if self.taken.is_empty() {
                if self.queue.enable_kicks() {
                    self.queue.disable_kicks();
                    // Each turn takes chains off the ring, so this ends with the bound above.
                    continue;
                }
                self.counters.rx_starved.inc();
                return Ok(Outcome::Starved);
            }
            if let Some(len) = self.held {
                if len as u64 <= self.room {
                    self.held = None;
                    self.deliver_spilled(len, view)?;
                } else if kicked || self.taken.len() >= usize::from(self.queue.size()) / 2 {
                    // More buffers came and still do not do, or half the ring does not: waiting on
                    // would be a stall that the driver may not know how to end.
                    self.held = None;
                    self.counters.rx_oversize.inc();
                } else if self.queue.enable_kicks() {
                    self.queue.disable_kicks();
                    kicked = true;
                } else {
                    return Ok(Outcome::Starved);
                }
                continue;
            }
            match self.receive(wire, view) {
                Ok(()) => self.errors = 0,
                Err(Halt::Task(error)) => return Err(error),
                Err(Halt::Wire(error)) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(Outcome::Empty),
                    io::ErrorKind::InvalidData => self.counters.rx_oversize.inc(),
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::ConnectionReset => return Ok(self.give_up()),
                    _ => {
                        self.counters.rx_errors.inc();
                        self.errors += 1;
                        if self.errors >= PATIENCE {
                            return Ok(self.give_up());
                        }
                    }
                },
            }
        }
        Ok(Outcome::More)
    }

    fn give_up(&mut self) -> Outcome {
        self.dead = true;
        Outcome::Dead
    }

    /// Takes chains until the longest frame fits, or one chain when frames cannot span several.
    fn refill(&mut self, view: &DmaView<'_>) -> Result<(), TaskError> {
        let mut refused = 0;
        while if self.merge {
            self.room < LONGEST as u64
        } else {
            self.taken.is_empty()
        } {
            let Some(chain) = self.queue.pop(view)? else {
                break;
            };
            if self.append(&chain, view) {
                self.room += chain.writable_len();
                self.taken.push_back(chain);
                continue;
            }
            if !self.taken.is_empty() {
                // It is answered when it is the oldest: chains given back on a drain must be the
                // newest ones.
                self.queue.undo_pop();
                break;
            }
            self.counters.bad_buffers.inc();
            self.queue.fill(chain.head(), 0);
            refused += 1;
            if refused == BATCH {
                break;
            }
        }
        Ok(())
    }

    /// Adds the chain's memory to the list; `false` if it cannot hold a header or is not memory.
    fn append(&mut self, chain: &Chain, view: &DmaView<'_>) -> bool {
        // §5.1.6.3.1: the driver provides room for the header at least.
        if chain.writable_len() < HEADER as u64 {
            return false;
        }
        let buffers = self.buffers.get_or_insert_with(|| view.buffers());
        if chain.append_writable(view, buffers).is_ok() {
            return true;
        }
        // The list may hold part of it, or be of an older layout of memory than the chain: rebuild
        // on today's. What was pinned before can be pinned again.
        let mut buffers = view.buffers();
        let old = self
            .taken
            .iter()
            .all(|c| c.append_writable(view, &mut buffers).is_ok());
        let fresh = old && chain.append_writable(view, &mut buffers).is_ok();
        if !fresh {
            buffers = view.buffers();
            for chain in &self.taken {
                // Checked when it was taken; should RAM have shrunk, the frame is cut short.
                let _ = chain.append_writable(view, &mut buffers);
            }
        }
        self.buffers = Some(buffers);
        fresh
    }

    fn receive(&mut self, wire: &mut dyn NetQueue, view: &DmaView<'_>) -> Result<(), Halt> {
        let direct = !self.bare && (!self.merge || self.room >= LONGEST as u64);
        if direct && let Some(buffers) = &self.buffers {
            let len = wire.receive(buffers)?;
            if len == 0 {
                return Err(Halt::Wire(io::ErrorKind::ConnectionReset.into()));
            }
            buffers.mark_written(len);
            return Ok(self.deliver(len, view)?);
        }
        self.spill.resize(LONGEST, 0);
        let header = if self.bare { HEADER } else { 0 };
        let Some((head, body)) = self.spill.split_at_mut_checked(header) else {
            return Ok(());
        };
        head.fill(0);
        let len = wire.receive_bytes(body)?;
        if len == 0 {
            return Err(Halt::Wire(io::ErrorKind::ConnectionReset.into()));
        }
        let len = len.min(body.len()) + header;
        if len as u64 <= self.room {
            return Ok(self.deliver_spilled(len, view)?);
        }
        if self.merge {
            self.held = Some(len);
        } else {
            self.counters.rx_oversize.inc();
        }
        Ok(())
    }

    fn deliver_spilled(&mut self, len: usize, view: &DmaView<'_>) -> Result<(), TaskError> {
        if let Some(buffers) = &self.buffers {
            buffers.write(self.spill.get(..len).unwrap_or_default());
        }
        self.deliver(len, view)
    }

    /// Hands the first `len` bytes of the list to the guest as one frame.
    fn deliver(&mut self, len: usize, view: &DmaView<'_>) -> Result<(), TaskError> {
        if len <= HEADER {
            // Nothing behind the header: not a frame, and the buffers stay.
            self.counters.rx_errors.inc();
            return Ok(());
        }
        let mut chains = 0u16;
        let mut covered = 0;
        for chain in &self.taken {
            chains += 1;
            covered += chain.writable_len();
            if covered >= len as u64 {
                break;
            }
        }
        // Without merging it is 1 as well (§5.1.6.4.1).
        if let Some(first) = self.taken.front() {
            first
                .write(view, NUM_BUFFERS, &chains.to_le_bytes())
                .map_err(|_| TaskError::Protocol("a receive buffer is not in memory"))?;
        }
        let mut left = len as u64;
        for chain in self.taken.drain(..usize::from(chains)) {
            let here = left.min(chain.writable_len());
            left -= here;
            self.queue.fill(chain.head(), here as u32);
        }
        self.room -= covered.min(self.room);
        if self.taken.is_empty() {
            self.buffers = None;
        } else if let Some(buffers) = &mut self.buffers {
            buffers.advance(usize::try_from(covered).unwrap_or(usize::MAX));
        }
        self.counters.rx_frames.inc();
        self.counters.rx_bytes.add((len - HEADER) as u64);
        Ok(())
    }

    /// Gives everything taken back.
    pub(crate) fn park(&mut self) {
        for _ in self.taken.drain(..) {
            self.queue.undo_pop();
        }
        self.buffers = None;
        self.room = 0;
        if self.held.take().is_some() {
            self.counters.rx_dropped.inc();
        }
    }
}

/// Why a frame did not arrive.
enum Halt {
    Wire(io::Error),
    Task(TaskError),
}

impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Self {
        Self::Wire(error)
    }
}

impl From<TaskError> for Halt {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}
