//! One port of a console device: what the guest and the host know of each other, and the bytes
//! between them.

use super::ConsoleCounters;
use nyx_device::{CharBackend, WindowSize};
use nyx_memory::DmaView;
use nyx_virtio::{TaskError, VirtQueue};
use std::io;

/// Bytes copied at once.
const CHUNK: usize = 4096;
/// Chains filled with input in one wakeup.
const INPUT_CHAINS: usize = 64;
/// Bytes written out in one wakeup.
const OUTPUT_BYTES: u64 = 256 << 10;

/// What the guest still has to be told of a port, in the order in which it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The port exists.
    Add = 1,
    /// It is a console.
    Console = 2,
    /// Its name.
    Name = 4,
    /// The size of its terminal.
    Resize = 8,
    /// Whether somebody is at the other end.
    Open = 16,
}

impl News {
    pub(crate) const ALL: [Self; 5] = [
        Self::Add,
        Self::Console,
        Self::Name,
        Self::Resize,
        Self::Open,
    ];
    /// Every bit there is.
    pub(crate) const MASK: u8 = 31;
}

/// What outlives a task.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortState {
    /// The guest said PORT_READY.
    pub(crate) ready: bool,
    /// The guest has it open.
    pub(crate) guest_open: bool,
    /// Somebody is at the host's end, as last seen.
    pub(crate) host_open: bool,
    /// Bits of [`News`].
    pub(crate) news: u8,
    /// Bytes of the next chain of output that are already out.
    pub(crate) written: u64,
    /// Of the terminal, as last seen.
    pub(crate) size: Option<WindowSize>,
}

impl PortState {
    pub(crate) fn tell(&mut self, news: News) {
        self.news |= news as u8;
    }
}

/// Whether a port is done for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Wait for a kick or for news of the backend.
    Wait,
    /// The bound for one wakeup was reached.
    More,
}

/// Moves input to the guest: only as much as it offers buffers for, the rest stays where it is.
pub(crate) fn input(
    queue: &mut VirtQueue,
    backend: &mut dyn CharBackend,
    view: &DmaView<'_>,
    counters: &ConsoleCounters,
) -> Result<Step, TaskError> {
    queue.disable_kicks();
    let mut step = Step::More;
    for _ in 0..INPUT_CHAINS {
        let Some(chain) = queue.pop(view)? else {
            if queue.enable_kicks() {
                queue.disable_kicks();
                continue;
            }
            step = Step::Wait;
            break;
        };
        let mut bytes = [0; CHUNK];
        let room = chain.writable_len().min(CHUNK as u64) as usize;
        let room = bytes.get_mut(..room).unwrap_or_default();
        if room.is_empty() {
            queue.fill(chain.head(), 0);
            continue;
        }
        match backend.read(room) {
            Ok(len @ 1..) => {
                let got = room.get(..len).unwrap_or_default();
                // What goes to a buffer that is no memory is lost, as is the guest's own doing.
                let sent = if chain.write(view, 0, got).is_ok() {
                    got.len()
                } else {
                    0
                };
                counters.input_bytes.add(sent as u64);
                queue.fill(chain.head(), sent as u32);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => queue.undo_pop(),
            // Nothing there, the end, or a failure: its news is what brings this port back.
            other => {
                if other.is_err_and(|e| e.kind() != io::ErrorKind::WouldBlock) {
                    counters.errors.inc();
                }
                queue.undo_pop();
                step = Step::Wait;
                break;
            }
        }
    }
    queue.publish();
    queue.notify();
    Ok(step)
}

/// Moves output to the backend. A chain that the backend does not take in full stays in the queue,
/// with `written` saying how much of it is out: nothing is ever in flight.
pub(crate) fn output(
    queue: &mut VirtQueue,
    backend: &mut dyn CharBackend,
    written: &mut u64,
    view: &DmaView<'_>,
    counters: &ConsoleCounters,
) -> Result<Step, TaskError> {
    queue.disable_kicks();
    let mut budget = OUTPUT_BYTES;
    let mut chains = queue.size();
    let mut step = Step::More;
    'chains: while budget != 0 && chains != 0 {
        let Some(chain) = queue.pop(view)? else {
            if queue.enable_kicks() {
                queue.disable_kicks();
                chains -= 1;
                continue;
            }
            step = Step::Wait;
            break;
        };
        chains -= 1;
        while *written < chain.readable_len() {
            let mut bytes = [0; CHUNK];
            let len = (chain.readable_len() - *written)
                .min(CHUNK as u64)
                .min(budget) as usize;
            let part = bytes.get_mut(..len).unwrap_or_default();
            if part.is_empty() {
                queue.undo_pop();
                break 'chains;
            }
            if chain.read_into(view, *written, part).is_err() {
                counters.errors.inc();
                break;
            }
            match backend.write(part) {
                Ok(count @ 1..) => {
                    let count = count.min(len) as u64;
                    *written += count;
                    budget -= count;
                    counters.output_bytes.add(count);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => budget -= 1,
                Ok(0) => {
                    step = blocked(queue, counters);
                    break 'chains;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    step = blocked(queue, counters);
                    break 'chains;
                }
                Err(_) => {
                    // The rest of it has nowhere to go.
                    counters.errors.inc();
                    break;
                }
            }
        }
        *written = 0;
        queue.fill(chain.head(), 0);
    }
    queue.publish();
    queue.notify();
    Ok(step)
}

fn blocked(queue: &mut VirtQueue, counters: &ConsoleCounters) -> Step {
    counters.output_stalls.inc();
    queue.undo_pop();
    Step::Wait
}
