//! From the guest onto the wire (Virtio 1.2 §5.1.6.2).

use super::{HEADER, LONGEST, NetCounters};
use crate::queues::BATCH;
use nyx_device::NetQueue;
use nyx_memory::{DmaSpace, DmaView};
use nyx_virtio::{Chain, TaskError, VirtQueue};
use std::io;
use std::sync::Arc;
use virtio_bindings::virtio_net::VIRTIO_NET_HDR_GSO_NONE;

/// What became of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The queue is empty: wait for a kick.
    Empty,
    /// The wire takes nothing: wait for it. The guest's queue fills up meanwhile, which is how it
    /// learns to send less.
    Blocked,
    /// The bound for one wakeup was reached.
    More,
}

/// The transmit side of one queue pair.
pub(crate) struct Transmitter {
    pub(crate) queue: VirtQueue,
    dma: DmaSpace,
    counters: Arc<NetCounters>,
    /// The backend's frames have no header; the guest's is taken off here.
    bare: bool,
}

impl Transmitter {
    pub(crate) fn new(
        queue: VirtQueue,
        dma: DmaSpace,
        counters: Arc<NetCounters>,
        bare: bool,
    ) -> Self {
        Self {
            queue,
            dma,
            counters,
            bare,
        }
    }

    /// Moves a bounded number of frames from the guest to `wire`.
    pub(crate) fn round(&mut self, wire: &mut dyn NetQueue) -> Result<Outcome, TaskError> {
        let dma = self.dma.clone();
        let view = dma.view();
        let outcome = self.frames(wire, &view);
        self.queue.publish();
        self.queue.notify();
        outcome
    }

    fn frames(
        &mut self,
        wire: &mut dyn NetQueue,
        view: &DmaView<'_>,
    ) -> Result<Outcome, TaskError> {
        self.queue.disable_kicks();
        for _ in 0..BATCH {
            let Some(chain) = self.queue.pop(view)? else {
                if self.queue.enable_kicks() {
                    self.queue.disable_kicks();
                    continue;
                }
                return Ok(Outcome::Empty);
            };
            match self.send(&chain, wire, view) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.queue.undo_pop();
                    self.counters.tx_stalls.inc();
                    return Ok(Outcome::Blocked);
                }
                Ok(()) => {}
                // What the driver got wrong is not the wire's fault.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.counters.tx_dropped.inc();
                }
                Err(_) => self.counters.tx_errors.inc(),
            }
            self.queue.fill(chain.head(), 0);
        }
        Ok(Outcome::More)
    }

    fn send(&self, chain: &Chain, wire: &mut dyn NetQueue, view: &DmaView<'_>) -> io::Result<()> {
        let refused = || io::Error::from(io::ErrorKind::InvalidInput);
        let len = chain.readable_len();
        // A frame has a destination at least, and none is longer than the longest.
        if len < HEADER as u64 + 14 || len > LONGEST as u64 {
            return Err(refused());
        }
        let skip = if self.bare { HEADER as u64 } else { 0 };
        if self.bare {
            let [flags, segmentation] = chain.read(view, 0).map_err(|_| refused())?;
            // No offload was offered, so nobody here would do what these ask for.
            if flags != 0 || u32::from(segmentation) != VIRTIO_NET_HDR_GSO_NONE {
                return Err(refused());
            }
        }
        let buffers = chain
            .pin_readable(view, skip, len - skip)
            .map_err(|_| refused())?;
        wire.send(&buffers)?;
        self.counters.tx_frames.inc();
        self.counters.tx_bytes.add(len - HEADER as u64);
        Ok(())
    }
}
