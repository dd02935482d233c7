//! Entropy device (Virtio 1.2 §5.4).

#[cfg(test)]
mod tests;

use crate::queues::BATCH;
use nyx_device::{BoxError, ConfigError, Wiring};
use nyx_inspect::{Counter, Inspect, Visitor};
use nyx_memory::DmaSpace;
use nyx_reactor::{Interest, Poller};
use nyx_state::{Persist, RestoreError, SaveError, Stateless};
use nyx_virtio::{
    Activation, Progress, QueueTask, Shape, TaskError, VirtQueue, VirtioDevice, VirtioKind,
};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

const KICK: u64 = 0;
const QUEUE_SIZE: u16 = 64;
/// Bytes drawn at once; also what one wakeup holds in memory.
const CHUNK: usize = 4096;
/// Bytes one request gets. A device may return less than was asked for, as long as it is not
/// nothing (§5.4.6.1).
const MAX_REQUEST: u64 = 64 << 10;
/// Bytes one wakeup draws before it looks at commands again.
const MAX_WAKEUP: u64 = 1 << 20;

/// Configuration of an entropy device: there is nothing to configure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngConfig {}

/// The kind `virtio-rng`.
#[derive(Clone, Copy, Debug)]
pub struct RngKind;

impl VirtioKind for RngKind {
    const KIND: &'static str = "virtio-rng";
    type Config = RngConfig;

    fn shape(_: &RngConfig) -> Result<Shape, ConfigError> {
        // No base class fits.
        Ok(Shape {
            device_id: VIRTIO_ID_RNG as u16,
            queues: 1,
            class: [0xff, 0x00, 0x00],
        })
    }

    fn build(_: RngConfig, _: &mut Wiring<'_>) -> Result<Box<dyn VirtioDevice>, BoxError> {
        Ok(Box::new(Rng::default()))
    }
}

/// What an entropy device has done.
#[derive(Debug, Default, Inspect)]
#[inspect(prefix = "rng")]
struct RngCounters {
    /// Requests for random bytes.
    requests: Counter,
    /// Random bytes given to the guest.
    bytes: Counter,
    /// Requests with no writable memory.
    refused: Counter,
}

/// An entropy device, fed by the host kernel's generator.
#[derive(Debug, Default)]
pub struct Rng {
    counters: Arc<RngCounters>,
}

impl VirtioDevice for Rng {
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueTask>>, TaskError> {
        let dma = activation.dma;
        let tasks = activation.queues.into_iter().map(|queue| {
            let counters = self.counters.clone();
            let task = RngTask {
                queue,
                dma: dma.clone(),
                counters,
                draining: false,
            };
            Box::new(task) as Box<dyn QueueTask>
        });
        Ok(tasks.collect())
    }

    fn reset(&mut self) {}
}

impl Inspect for Rng {
    fn inspect(&self, v: &mut dyn Visitor) {
        self.counters.inspect(v);
    }
}

impl Persist for Rng {
    type Saved = Stateless;

    fn save(&self) -> Result<Stateless, SaveError> {
        let Self { counters: _ } = self;
        Ok(Stateless {})
    }

    fn restore(&mut self, _: Stateless) -> Result<(), RestoreError> {
        Ok(())
    }
}

struct RngTask {
    queue: VirtQueue,
    dma: DmaSpace,
    counters: Arc<RngCounters>,
    draining: bool,
}

impl RngTask {
    fn serve(&mut self) -> Result<Progress, TaskError> {
        let dma = self.dma.clone();
        let view = dma.view();
        let mut entropy = [0; CHUNK];
        let (mut chains, mut bytes) = (BATCH, MAX_WAKEUP);
        while !self.draining {
            self.queue.disable_kicks();
            while chains != 0 && bytes != 0 {
                let Some(chain) = self.queue.pop(&view)? else {
                    break;
                };
                let wanted = chain.writable_len().min(MAX_REQUEST).min(bytes);
                let mut done = 0;
                while done < wanted {
                    let len = (wanted - done).min(CHUNK as u64) as usize;
                    let part = entropy.get_mut(..len).unwrap_or_default();
                    draw(part)?;
                    if chain.write(&view, done, part).is_err() {
                        break;
                    }
                    done += len as u64;
                }
                self.counters.requests.inc();
                self.counters.bytes.add(done);
                if done == 0 {
                    self.counters.refused.inc();
                }
                chains -= 1;
                bytes -= done;
                self.queue.fill(chain.head(), done as u32);
            }
            if chains == 0 || bytes == 0 {
                self.answer();
                return Ok(Progress::Again(KICK));
            }
            if !self.queue.enable_kicks() {
                break;
            }
        }
        self.answer();
        Ok(Progress::Wait)
    }

    fn answer(&mut self) {
        self.queue.publish();
        self.queue.notify();
    }
}

/// Fills `bytes` from the kernel. A signal may cut a large draw short.
fn draw(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(got) => bytes = bytes.split_at_mut_checked(got).unwrap_or_default().1,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

impl QueueTask for RngTask {
    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        poller.add(self.queue.kick_event(), KICK, Interest::Readable)
    }

    fn ready(&mut self, _: u64, _: &Poller) -> Result<Progress, TaskError> {
        self.queue.take_kick();
        self.serve()
    }

    fn resume(&mut self, _: &Poller) -> Result<Progress, TaskError> {
        self.draining = false;
        self.serve()
    }

    fn drain(&mut self) -> Result<bool, TaskError> {
        self.draining = true;
        Ok(true)
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        vec![&self.queue]
    }
}
