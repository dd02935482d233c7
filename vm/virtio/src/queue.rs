//! The split virtqueue, device side (Virtio 1.2 §2.7).
//!
//! A [`VirtQueue`] is made from a frozen copy of its configuration when the driver sets DRIVER_OK;
//! nothing the driver writes to the transport afterwards reaches it. Its rings are pinned, so the
//! hot path does no address lookups. Whatever the driver puts into the rings is checked: every loop
//! is bounded by the queue size, and a broken ring is an error, never a wrong access.

use crate::chain::{Chain, Descriptor};
use crate::interrupt::{Interrupt, QueueCounters};
use nyx_memory::{DmaView, PinError, PinnedRange};
use nyx_reactor::EventFd;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use vm_memory::{Bytes, GuestAddress, Permissions};

/// The driver broke a ring; the device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The rings are not where memory is.
    #[error("queue {queue}: {pin}")]
    Ring {
        /// Queue index.
        queue: u16,
        /// What is not memory.
        pin: PinError,
    },
    /// The rings are not aligned (Virtio 1.2 §2.7: 16, 2 and 4 bytes).
    #[error("queue {queue}: ring at {address:#x} is not aligned")]
    Alignment {
        /// Queue index.
        queue: u16,
        /// The offending address.
        address: u64,
    },
    /// More chains are said to be available than the queue has entries.
    #[error("queue {queue}: {available} chains available in a queue of {size}")]
    Available {
        /// Queue index.
        queue: u16,
        /// Difference of the indices.
        available: u16,
        /// Queue size.
        size: u16,
    },
    /// A descriptor index is beyond the table.
    #[error("queue {queue}: descriptor {index} does not exist")]
    Index {
        /// Queue index.
        queue: u16,
        /// The index.
        index: u16,
    },
    /// A chain is longer than the queue: it loops.
    #[error("queue {queue}: the chain at {head} does not end")]
    Loop {
        /// Queue index.
        queue: u16,
        /// Head of the chain.
        head: u16,
    },
    /// A descriptor is malformed: a read-only one after a writable one, a bad indirect table, or a
    /// length that wraps.
    #[error("queue {queue}: the chain at {head} has {what}")]
    Descriptor {
        /// Queue index.
        queue: u16,
        /// Head of the chain.
        head: u16,
        /// What is wrong.
        what: &'static str,
    },
}

/// Frozen configuration of one queue, as the driver left it at DRIVER_OK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// Number of entries; a power of two, at most 32768.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Driver area: available ring.
    pub driver: u64,
    /// Device area: used ring.
    pub device: u64,
}

/// How far a queue has come; what a snapshot needs beside the layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueProgress {
    /// Next available entry to take.
    pub next_available: u16,
    /// Next used entry to fill.
    pub next_used: u16,
}

/// One split virtqueue in operation.
#[derive(Debug)]
pub struct VirtQueue {
    // Wiring
    index: u16,
    interrupt: Arc<Interrupt>,
    kick: Arc<EventFd>,
    // Configuration
    size: u16,
    descriptors: PinnedRange,
    available: PinnedRange,
    used: PinnedRange,
    event_idx: bool,
    indirect: bool,
    // State
    next_available: u16,
    next_used: u16,
    /// Used index at which the driver was last considered for an interrupt.
    signalled: u16,
    /// No interrupt was considered yet, so the first one is sent without comparing.
    unsignalled: bool,
    // Statistics
    counters: Arc<QueueCounters>,
}

const DESCRIPTOR: usize = 16;
/// Flags and index before the entries of either ring.
const RING_HEADER: usize = 4;

impl VirtQueue {
    /// Pins the rings described by `layout` and starts at `progress`.
    pub fn new(
        index: u16,
        layout: QueueLayout,
        progress: QueueProgress,
        features: u64,
        view: &DmaView<'_>,
        (interrupt, kick): (Arc<Interrupt>, Arc<EventFd>),
    ) -> Result<Self, QueueError> {
        let entries = usize::from(layout.size);
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let pin = |address: u64, len: usize, align: u64| {
            if !address.is_multiple_of(align) {
                return Err(QueueError::Alignment {
                    queue: index,
                    address,
                });
            }
            view.pin_range(GuestAddress(address), len, Permissions::ReadWrite)
                .map_err(|pin| QueueError::Ring { queue: index, pin })
        };
        let counters = interrupt.queues.get(usize::from(index));
        let counters = counters.cloned().unwrap_or_default();
        // Nothing outlives the queue that was there before.
        counters.depth.set(0);
        // The two bytes of used_event and avail_event are part of the layout whether or not the
        // feature was negotiated (§2.7.6, §2.7.8).
        Ok(Self {
            index,
            size: layout.size,
            descriptors: pin(layout.descriptors, entries * DESCRIPTOR, 16)?,
            available: pin(layout.driver, RING_HEADER + entries * 2 + 2, 2)?,
            used: pin(layout.device, RING_HEADER + entries * 8 + 2, 4)?,
            event_idx,
            indirect: features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
            next_available: progress.next_available,
            next_used: progress.next_used,
            signalled: progress.next_used,
            unsignalled: true,
            counters,
            interrupt,
            kick,
        })
    }

    /// Index of this queue in its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Signalled when the driver made chains available.
    pub fn kick_event(&self) -> &Arc<EventFd> {
        &self.kick
    }

    /// Takes note of the driver's kick; whether there was one.
    pub fn take_kick(&self) -> bool {
        let kicked = self.kick.clear();
        if kicked {
            self.counters.notifications.bump();
        }
        kicked
    }

    /// How far it has come.
    pub fn progress(&self) -> QueueProgress {
        QueueProgress {
            next_available: self.next_available,
            next_used: self.next_used,
        }
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    // The ring ranges were pinned with room for every offset used below, so the `None` of an
    // access cannot happen; a ring of zeroes is what it would mean.
    fn available_index(&self) -> u16 {
        self.available.load_u16(2).unwrap_or(self.next_available)
    }

    /// Number of chains waiting, as the driver says.
    pub fn waiting(&self) -> u16 {
        self.available_index().wrapping_sub(self.next_available)
    }

    /// Takes the next chain, checked in full; `None` when none is available.
    pub fn pop(&mut self, view: &DmaView<'_>) -> Result<Option<Chain>, QueueError> {
        let available = self.waiting();
        if available == 0 {
            return Ok(None);
        }
        if available > self.size {
            return Err(QueueError::Available {
                queue: self.index,
                available,
                size: self.size,
            });
        }
        let entry = RING_HEADER + self.slot(self.next_available) * 2;
        let head = self.available.load_u16(entry).unwrap_or(u16::MAX);
        let chain = self.chain(head, view)?;
        self.next_available = self.next_available.wrapping_add(1);
        let depth = &self.counters.depth;
        depth.set(depth.get().saturating_add(1));
        Ok(Some(chain))
    }

    /// Gives the chain taken last back, as if it had not been taken.
    pub fn undo_pop(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
        let depth = &self.counters.depth;
        depth.set(depth.get().saturating_sub(1));
    }

    fn chain(&self, head: u16, view: &DmaView<'_>) -> Result<Chain, QueueError> {
        let queue = self.index;
        let bad = |what| QueueError::Descriptor { queue, head, what };
        let mut chain = Chain::new(head);
        let mut next = Some(head);
        let mut left = self.size;
        while let Some(index) = next {
            left = left
                .checked_sub(1)
                .ok_or(QueueError::Loop { queue, head })?;
            if index >= self.size {
                return Err(QueueError::Index { queue, index });
            }
            let raw = self
                .descriptors
                .read::<DESCRIPTOR>(usize::from(index) * DESCRIPTOR)
                .ok_or(QueueError::Index { queue, index })?;
            let raw = RawDescriptor::from_bytes(raw);
            if raw.flags & VRING_DESC_F_INDIRECT != 0 {
                if !self.indirect {
                    return Err(bad("an indirect descriptor that was not negotiated"));
                }
                if raw.flags & VRING_DESC_F_NEXT != 0 {
                    return Err(bad("an indirect descriptor with a successor"));
                }
                self.indirect_table(&raw, view, &mut chain, &bad)?;
                break;
            }
            chain.push(raw.buffer().map_err(bad)?).map_err(bad)?;
            next = (raw.flags & VRING_DESC_F_NEXT != 0).then_some(raw.next);
        }
        Ok(chain)
    }

    /// §2.7.5.3: a table of descriptors in one buffer. Its length is bounded by the queue size, as
    /// §2.7.5.3.1 demands of the driver.
    fn indirect_table(
        &self,
        table: &RawDescriptor,
        view: &DmaView<'_>,
        chain: &mut Chain,
        bad: &dyn Fn(&'static str) -> QueueError,
    ) -> Result<(), QueueError> {
        let len = table.len as usize;
        if len == 0 || !len.is_multiple_of(DESCRIPTOR) {
            return Err(bad("an indirect table of a wrong length"));
        }
        let entries = len / DESCRIPTOR;
        // Only as many as a chain may have are ever followed, so only those are fetched.
        let fetched = entries.min(usize::from(self.size));
        let mut bytes: SmallVec<[u8; 8 * DESCRIPTOR]> = SmallVec::new();
        bytes.resize(fetched * DESCRIPTOR, 0);
        view.read_slice(&mut bytes, GuestAddress(table.addr))
            .map_err(|_| bad("an indirect table outside memory"))?;
        let (raws, _) = bytes.as_chunks::<DESCRIPTOR>();
        let mut next = Some(0);
        let mut left = fetched;
        while let Some(index) = next {
            left = left
                .checked_sub(1)
                .ok_or_else(|| bad("an indirect table that loops"))?;
            let raw = raws
                .get(usize::from(index))
                .ok_or_else(|| bad("an indirect descriptor beyond its table"))?;
            let raw = RawDescriptor::from_bytes(*raw);
            if raw.flags & VRING_DESC_F_INDIRECT != 0 {
                return Err(bad("an indirect table within an indirect table"));
            }
            chain.push(raw.buffer().map_err(bad)?).map_err(bad)?;
            next = (raw.flags & VRING_DESC_F_NEXT != 0).then_some(raw.next);
        }
        Ok(())
    }

    /// Returns the chain `head` to the driver, with `written` bytes in its writable part.
    pub fn push(&mut self, head: u16, written: u32) {
        self.fill(head, written);
        self.publish();
    }

    /// Like [`VirtQueue::push`], but the driver sees nothing before [`VirtQueue::publish`]: used
    /// for a frame spread over several chains (§5.1.6.4).
    pub fn fill(&mut self, head: u16, written: u32) {
        let entry = RING_HEADER + self.slot(self.next_used) * 8;
        let mut bytes = [0; 8];
        let (id, len) = bytes.split_at_mut(4);
        id.copy_from_slice(&u32::from(head).to_le_bytes());
        len.copy_from_slice(&written.to_le_bytes());
        self.used.write(entry, bytes);
        self.next_used = self.next_used.wrapping_add(1);
        let QueueCounters {
            requests, depth, ..
        } = &*self.counters;
        requests.bump();
        depth.set(depth.get().saturating_sub(1));
    }

    /// Shows the driver everything filled.
    pub fn publish(&mut self) {
        self.used.store_u16(2, self.next_used);
    }

    /// Interrupts the driver if it asked to hear of what was pushed since the last call
    /// (§2.7.7, §2.7.10).
    pub fn notify(&mut self) {
        // The used index must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = RING_HEADER + usize::from(self.size) * 2;
            let event = self.available.load_u16(event).unwrap_or(self.next_used);
            let pushed = self.next_used.wrapping_sub(self.signalled);
            let since = self.next_used.wrapping_sub(event).wrapping_sub(1);
            std::mem::take(&mut self.unsignalled) || since < pushed
        } else {
            let flags = self.available.load_u16(0).unwrap_or(0);
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        let pushed = self.signalled != self.next_used;
        self.signalled = self.next_used;
        if wanted && pushed {
            self.interrupt.queue(self.index);
        }
    }

    /// Asks the driver not to kick, while the device looks at the ring anyway.
    pub fn disable_kicks(&mut self) {
        if !self.event_idx {
            self.used.store_u16(0, VRING_USED_F_NO_NOTIFY as u16);
        }
        // With event indices, leaving avail_event behind is enough.
    }

    /// Asks the driver to kick from now on, and says whether chains arrived meanwhile: if so, look
    /// again, no kick will come for them.
    pub fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            let event = RING_HEADER + usize::from(self.size) * 8;
            self.used.store_u16(event, self.next_available);
        } else {
            self.used.store_u16(0, 0);
        }
        fence(Ordering::SeqCst);
        self.waiting() != 0
    }
}

#[derive(Clone, Copy)]
struct RawDescriptor {
    addr: u64,
    len: u32,
    flags: u32,
    next: u16,
}

impl RawDescriptor {
    fn from_bytes(b: [u8; DESCRIPTOR]) -> Self {
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            l0,
            l1,
            l2,
            l3,
            f0,
            f1,
            n0,
            n1,
        ] = b;
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]).into(),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    fn buffer(&self) -> Result<Descriptor, &'static str> {
        match self.addr.checked_add(self.len.into()) {
            Some(_) => Ok(Descriptor {
                addr: self.addr,
                len: self.len,
                writable: self.flags & VRING_DESC_F_WRITE != 0,
            }),
            None => Err("a buffer that wraps around the address space"),
        }
    }
}
