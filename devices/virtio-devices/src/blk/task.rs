//! One virtqueue of a block device and the backend queue behind it.

use super::Medium;
use super::request::{self, Extents, Request, Rules};
use crate::queues::BATCH;
use nyx_device::{BlockDone, BlockOp, BlockQueue, BlockRequest, FaultKind};
use nyx_inspect::Histogram;
use nyx_memory::{DmaSpace, DmaView};
use nyx_reactor::{Interest, Poller};
use nyx_virtio::{Chain, Patience, Progress, QueueTask, TaskError, VirtQueue};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};

const KICK: u64 = 0;
const DONE: u64 = 1;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;

/// What is left to do for a request in flight.
enum Next {
    /// Nothing: report the outcome.
    Report,
    /// A flush: the guest believes that there is no volatile cache (§5.2.6.2).
    Flush,
    /// More ranges to discard or zero.
    Ranges { left: Extents, zeroes: bool },
}

/// Which latency a backend request counts towards.
#[derive(Clone, Copy)]
enum Timed {
    Read,
    Write,
    Flush,
    Discard,
}

impl Timed {
    fn of(op: &BlockOp) -> Self {
        match op {
            BlockOp::Read(_) => Self::Read,
            BlockOp::Write(_) => Self::Write,
            BlockOp::Flush => Self::Flush,
            BlockOp::Discard { .. } | BlockOp::WriteZeroes { .. } => Self::Discard,
        }
    }

    fn histogram(self, medium: &Medium) -> &Histogram {
        let counters = &medium.counters;
        match self {
            Self::Read => &counters.read_latency,
            Self::Write => &counters.write_latency,
            Self::Flush => &counters.flush_latency,
            Self::Discard => &counters.discard_latency,
        }
    }
}

/// What a slot holds.
struct Flight {
    request: InFlight,
    timed: Timed,
    since: Instant,
}

/// A request the backend works on.
struct InFlight {
    chain: Chain,
    /// Bytes the guest finds in its buffers on success, without the status.
    read: u32,
    next: Next,
}

pub(crate) struct BlkTask {
    // Wiring
    queue: VirtQueue,
    io: Box<dyn BlockQueue>,
    dma: DmaSpace,
    medium: Arc<Medium>,
    // Configuration
    /// Writes are durable when they complete, whatever the cache mode in the configuration space.
    write_through: bool,
    // State
    /// Indexed by request id; as many as the queue has entries.
    slots: Vec<Option<Flight>>,
    free: Vec<u16>,
    done: Vec<BlockDone>,
    /// Requests were answered that the driver does not see yet.
    answered: bool,
    /// Requests were handed to the backend since the last kick, the first of them at this time: reading
    /// the clock for each would cost more than the difference tells.
    submitted: Option<Instant>,
    draining: bool,
    /// Writes for which the backend had no room; at most as many as the queue has entries.
    held: Vec<Chain>,
    patience: Patience,
}

impl BlkTask {
    pub(crate) fn new(
        queue: VirtQueue,
        io: Box<dyn BlockQueue>,
        dma: DmaSpace,
        medium: Arc<Medium>,
        write_through: bool,
    ) -> Self {
        let size = queue.size();
        Self {
            slots: (0..size).map(|_| None).collect(),
            // Popped from the end: low ids are used most and stay warm.
            free: (0..size).rev().collect(),
            done: Vec::with_capacity(usize::from(size)),
            queue,
            io,
            dma,
            medium,
            write_through,
            answered: false,
            submitted: None,
            draining: false,
            held: Vec::new(),
            patience: Patience::default(),
        }
    }

    /// Reports what is done, then starts what is new.
    fn serve(&mut self) -> Result<Progress, TaskError> {
        let dma = self.dma.clone();
        let view = dma.view();
        self.reap(&view)?;
        let mut left = BATCH;
        while !self.draining {
            self.queue.disable_kicks();
            while left != 0 && !self.free.is_empty() {
                let Some(chain) = self.queue.pop(&view)? else {
                    break;
                };
                left -= 1;
                self.start(chain, &view)?;
            }
            // A backend that completes within the kick is answered in this same wakeup.
            self.reap(&view)?;
            self.answer();
            if left == 0 {
                return Ok(Progress::Again(KICK));
            }
            // What is in flight tells of itself; nothing else is there to wait for but the driver.
            if self.io.in_flight() == 0 && self.patience.wait(&self.queue) {
                continue;
            }
            // With every slot taken, a completion is what brings the task back.
            if self.free.is_empty() || !self.queue.enable_kicks() {
                break;
            }
        }
        self.answer();
        Ok(Progress::Wait)
    }

    fn answer(&mut self) {
        if std::mem::take(&mut self.answered) {
            self.queue.publish();
            self.queue.notify();
        }
    }

    /// Hands one request to the backend, or answers it.
    fn start(&mut self, chain: Chain, view: &DmaView<'_>) -> Result<(), TaskError> {
        let counters = &self.medium.counters;
        request::status_at(&chain)?;
        let rules = Rules {
            capacity: self.medium.capacity(),
            ..self.medium.rules
        };
        match request::parse(&chain, view, &rules) {
            Ok(Request::Transfer { offset, len, op }) => {
                let (read, next) = if matches!(op, BlockOp::Read(_)) {
                    counters.reads.inc();
                    counters.read_bytes.add(len);
                    (len as u32, Next::Report)
                } else {
                    counters.writes.inc();
                    counters.written_bytes.add(len);
                    let flush = self.medium.has_cache
                        && (self.write_through || !self.medium.writeback.load(Ordering::Acquire));
                    (0, if flush { Next::Flush } else { Next::Report })
                };
                self.submit(InFlight { chain, read, next }, offset, op);
            }
            Ok(Request::Flush) => {
                counters.flushes.inc();
                if !self.medium.has_cache {
                    return self.finish(&chain, 0, OK, view);
                }
                self.submit(
                    InFlight {
                        chain,
                        read: 0,
                        next: Next::Report,
                    },
                    0,
                    BlockOp::Flush,
                );
            }
            Ok(Request::GetId(len)) => {
                counters.ids.inc();
                let id = self.medium.id.get(..len).unwrap_or_default();
                let status = if chain.write(view, 0, id).is_ok() {
                    OK
                } else {
                    IOERR
                };
                return self.finish(&chain, len as u32, status, view);
            }
            Ok(Request::Discard(left)) => {
                counters.discards.inc();
                return self.ranges(chain, left, false, view);
            }
            Ok(Request::WriteZeroes(left)) => {
                counters.write_zeroes.inc();
                return self.ranges(chain, left, true, view);
            }
            Err(refusal) => {
                counters.refused.inc();
                return self.finish(&chain, 0, refusal.0, view);
            }
        }
        Ok(())
    }

    /// Ranges go one after the other, so that a request never needs more than one slot.
    fn ranges(
        &mut self,
        chain: Chain,
        mut left: Extents,
        zeroes: bool,
        view: &DmaView<'_>,
    ) -> Result<(), TaskError> {
        let Some(extent) = left.pop() else {
            // Zeroes obey the cache mode like any write; a discard's effect need not be durable.
            let through = self.write_through || !self.medium.writeback.load(Ordering::Acquire);
            if zeroes && self.medium.has_cache && through {
                let flush = InFlight {
                    chain,
                    read: 0,
                    next: Next::Report,
                };
                self.submit(flush, 0, BlockOp::Flush);
                return Ok(());
            }
            return self.finish(&chain, 0, OK, view);
        };
        let op = if zeroes {
            BlockOp::WriteZeroes {
                len: extent.len,
                may_unmap: extent.may_unmap,
            }
        } else {
            BlockOp::Discard { len: extent.len }
        };
        let next = Next::Ranges { left, zeroes };
        self.submit(
            InFlight {
                chain,
                read: 0,
                next,
            },
            extent.offset,
            op,
        );
        Ok(())
    }

    fn submit(&mut self, request: InFlight, offset: u64, op: BlockOp) {
        // A slot is free: `serve` takes no chain without one, and a follow-up reuses its own.
        let Some(id) = self.free.pop() else { return };
        let since = *self.submitted.get_or_insert_with(Instant::now);
        if let Some(slot) = self.slots.get_mut(usize::from(id)) {
            *slot = Some(Flight {
                request,
                timed: Timed::of(&op),
                since,
            });
        }
        self.io.submit(BlockRequest {
            id: id.into(),
            offset,
            op,
        });
    }

    /// Hands submissions to the kernel and takes completions until neither leads to the other.
    fn reap(&mut self, view: &DmaView<'_>) -> Result<(), TaskError> {
        loop {
            if self.submitted.take().is_some() {
                self.io.kick()?;
            }
            let mut done = std::mem::take(&mut self.done);
            self.io.completions(&mut done);
            if !done.is_empty() {
                let now = Instant::now();
                for one in done.drain(..) {
                    self.completed(one, now, view)?;
                }
            }
            self.done = done;
            if self.submitted.is_none() {
                return Ok(());
            }
        }
    }

    fn completed(
        &mut self,
        done: BlockDone,
        now: Instant,
        view: &DmaView<'_>,
    ) -> Result<(), TaskError> {
        let id = usize::try_from(done.id).ok();
        let Some(slot) = id.and_then(|id| self.slots.get_mut(id)) else {
            return Ok(());
        };
        let Some(flight) = slot.take() else {
            return Ok(());
        };
        let InFlight { chain, read, next } = flight.request;
        let took = now.saturating_duration_since(flight.since).as_nanos();
        // The queues of a device share the histogram.
        flight
            .timed
            .histogram(&self.medium)
            .record(u64::try_from(took).unwrap_or(u64::MAX));
        self.free.push(done.id as u16);
        if let Err(error) = done.result {
            if self.medium.hold_without_space && lacks_space(&error) {
                self.medium.counters.held.inc();
                self.held.push(chain);
                if let Some(faults) = &self.medium.faults {
                    faults.report(
                        FaultKind::NoSpace,
                        format_args!("no room for what the guest writes: {error}"),
                    );
                }
                return Ok(());
            }
            self.medium.counters.failed.inc();
            if !self.medium.complained.swap(true, Ordering::Relaxed)
                && let Some(faults) = &self.medium.faults
            {
                faults.report(
                    FaultKind::Backend,
                    format_args!("a disk request failed: {error}"),
                );
            }
            return self.finish(&chain, 0, IOERR, view);
        }
        if read != 0
            && let Some(buffers) = done.buffers
        {
            buffers.mark_written(read as usize);
        }
        match next {
            Next::Report => self.finish(&chain, read, OK, view),
            Next::Flush => {
                self.submit(
                    InFlight {
                        chain,
                        read,
                        next: Next::Report,
                    },
                    0,
                    BlockOp::Flush,
                );
                Ok(())
            }
            Next::Ranges { left, zeroes } => self.ranges(chain, left, zeroes, view),
        }
    }

    fn finish(
        &mut self,
        chain: &Chain,
        read: u32,
        status: u8,
        view: &DmaView<'_>,
    ) -> Result<(), TaskError> {
        chain
            .write(view, request::status_at(chain)?, &[status])
            .map_err(|_| TaskError::Protocol("the status of a block request is not in memory"))?;
        self.queue.fill(chain.head(), read.saturating_add(1));
        self.answered = true;
        Ok(())
    }
}

/// Whether a failed request may work once somebody has made room: the file system is full, or the user's share
/// of it is.
fn lacks_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl QueueTask for BlkTask {
    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        poller.add(self.queue.kick_event(), KICK, Interest::Readable)?;
        if let Some(fd) = self.io.ready_fd() {
            poller.add(fd, DONE, Interest::Readable)?;
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, _: &Poller) -> Result<Progress, TaskError> {
        if token == KICK {
            self.queue.kick_event().clear();
        }
        self.serve()
    }

    fn resume(&mut self, _: &Poller) -> Result<Progress, TaskError> {
        self.draining = false;
        let dma = self.dma.clone();
        let view = dma.view();
        // What was kept goes first. It is read anew from the guest's memory, as if it had just come.
        for chain in std::mem::take(&mut self.held) {
            self.start(chain, &view)?;
            self.reap(&view)?;
        }
        self.serve()
    }

    fn drain(&mut self) -> Result<bool, TaskError> {
        self.draining = true;
        self.serve()?;
        Ok(self.io.in_flight() == 0)
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        vec![&self.queue]
    }
}
