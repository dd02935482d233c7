//! The control queue (Virtio 1.2 §5.1.6.5).

use super::{Mac, Shared};
use crate::queues::BATCH;
use nyx_memory::{DmaSpace, DmaView};
use nyx_virtio::{Chain, TaskError, VirtQueue};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET,
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_ERR,
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};

/// The control queue of a device.
pub(crate) struct Control {
    pub(crate) queue: VirtQueue,
    dma: DmaSpace,
    shared: Arc<Shared>,
    features: u64,
}

impl Control {
    pub(crate) fn new(queue: VirtQueue, dma: DmaSpace, shared: Arc<Shared>, features: u64) -> Self {
        Self {
            queue,
            dma,
            shared,
            features,
        }
    }

    /// Obeys a bounded number of commands; `true` if there may be more.
    pub(crate) fn round(&mut self) -> Result<bool, TaskError> {
        let dma = self.dma.clone();
        let view = dma.view();
        let mut more = true;
        for _ in 0..BATCH {
            let Some(chain) = self.queue.pop(&view)? else {
                if self.queue.enable_kicks() {
                    continue;
                }
                more = false;
                break;
            };
            let answer = if self.obey(&chain, &view).is_some() {
                VIRTIO_NET_OK
            } else {
                self.shared.counters.refused_commands.inc();
                VIRTIO_NET_ERR
            };
            self.shared.counters.commands.inc();
            let last = chain.writable_len().checked_sub(1);
            let at = last.ok_or(TaskError::Protocol("a command has no room for its answer"))?;
            chain
                .write(&view, at, &[answer as u8])
                .map_err(|_| TaskError::Protocol("the answer of a command is not in memory"))?;
            self.queue.fill(chain.head(), 1);
        }
        self.queue.publish();
        self.queue.notify();
        Ok(more)
    }

    fn negotiated(&self, bit: u32) -> Option<()> {
        (self.features & 1 << bit != 0).then_some(())
    }

    /// `None` for a command that is malformed, unknown, or of a feature not negotiated.
    fn obey(&self, chain: &Chain, view: &DmaView<'_>) -> Option<()> {
        let [class, command] = chain.read(view, 0).ok()?;
        match (class.into(), command.into()) {
            (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC) => {
                self.negotiated(VIRTIO_NET_F_CTRL_RX)?;
                let [on] = chain.read(view, 2).ok()?;
                self.shared.promiscuous.store(on != 0, Ordering::Relaxed);
            }
            (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI) => {
                self.negotiated(VIRTIO_NET_F_CTRL_RX)?;
                let [on] = chain.read(view, 2).ok()?;
                self.shared.all_multicast.store(on != 0, Ordering::Relaxed);
            }
            // Filtering is a service that a device may render imperfectly (§5.1.6.5.1); every frame
            // on this wire is meant for this guest, so the table changes nothing.
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                self.negotiated(VIRTIO_NET_F_CTRL_RX)?;
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                self.negotiated(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                let mac = Mac::new(chain.read(view, 2).ok()?).ok()?;
                *self.shared.mac.lock() = mac;
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                self.negotiated(VIRTIO_NET_F_MQ)?;
                let pairs = u16::from_le_bytes(chain.read(view, 2).ok()?);
                if !(1..=self.shared.max_pairs).contains(&pairs) {
                    return None;
                }
                self.shared.set_pairs(pairs);
            }
            _ => return None,
        }
        Some(())
    }
}
