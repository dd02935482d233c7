//! All queues of a console device, on one thread.

use super::port::{self, News, PortState, Step};
use super::{Port, Shared};
use crate::loan::Loan;
use crate::queues::BATCH;
use nyx_device::{CharBackend, WindowSize};
use nyx_memory::{DmaSpace, DmaView};
use nyx_reactor::{Interest, Poller};
use nyx_virtio::{Chain, Interrupt, Progress, QueueTask, TaskError, VirtQueue};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

// Kinds of control message (§5.3.6.2).
const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A token below this is a queue index.
const QUEUES: u64 = 1 << 16;
/// A backend has news.
const BACKENDS: u64 = QUEUES;
/// No descriptor: go on with whatever is unfinished.
const MORE: u64 = QUEUES + 1;

/// Control queues, with MULTIPORT only (§5.3.2).
const CONTROL_IN: u16 = 2;
const CONTROL_OUT: u16 = 3;

/// One port's queues and backend.
pub(crate) struct PortTask {
    pub(crate) backend: Loan<Box<dyn CharBackend>>,
    pub(crate) input: Option<VirtQueue>,
    pub(crate) output: Option<VirtQueue>,
}

pub(crate) struct ConsoleTask {
    // Wiring
    pub(crate) ports: Vec<PortTask>,
    /// To the guest, and from it.
    pub(crate) control: Option<(VirtQueue, VirtQueue)>,
    pub(crate) dma: DmaSpace,
    pub(crate) shared: Arc<Shared>,
    pub(crate) interrupt: Arc<Interrupt>,
    // Configuration
    pub(crate) multiport: bool,
    // State
    pub(crate) draining: bool,
}

impl ConsoleTask {
    fn serve(&mut self, token: u64) -> Result<Progress, TaskError> {
        if self.draining {
            return Ok(Progress::Wait);
        }
        let (dma, shared) = (self.dma.clone(), self.shared.clone());
        let view = dma.view();
        let mut states = shared.states.lock();
        let all = token == MORE;
        let mut more = false;
        if all || token == u64::from(CONTROL_OUT) {
            more |= self.hear(&mut states, &view)?;
        }
        self.emergency();
        for (index, ((task, state), port)) in self
            .ports
            .iter_mut()
            .zip(states.iter_mut())
            .zip(&shared.ports)
            .enumerate()
        {
            let kicked = |queue: &Option<VirtQueue>| {
                queue
                    .as_ref()
                    .is_some_and(|q| u64::from(q.index()) == token)
            };
            let news = port.news.swap(false, Ordering::AcqRel) || all;
            if news {
                Self::look(task, state, port, self.multiport);
                if index == 0 {
                    shared.set_size(state.size);
                    if !self.multiport && state.news & News::Resize as u8 != 0 {
                        state.news &= !(News::Resize as u8);
                        self.interrupt.config();
                    }
                }
            }
            // Opening a port has it look for input too, by way of the control queue.
            let input = news || kicked(&task.input) || token == u64::from(CONTROL_OUT);
            if input
                && (state.guest_open || !self.multiport)
                && let Some(queue) = &mut task.input
            {
                let step = port::input(queue, &mut **task.backend, &view, &shared.counters)?;
                more |= step == Step::More;
            }
            if (news || kicked(&task.output))
                && let Some(queue) = &mut task.output
            {
                let (backend, written) = (&mut **task.backend, &mut state.written);
                let step = port::output(queue, backend, written, &view, &shared.counters)?;
                more |= step == Step::More;
            }
        }
        self.speak(&mut states, &view)?;
        Ok(if more {
            Progress::Again(MORE)
        } else {
            Progress::Wait
        })
    }

    /// Compares what the guest knows of a backend with what is.
    fn look(task: &PortTask, state: &mut PortState, port: &Port, multiport: bool) {
        let open = task.backend.is_connected();
        if open != state.host_open {
            state.host_open = open;
            if state.ready {
                state.tell(News::Open);
            }
        }
        let size = task.backend.window_size();
        if size != state.size && size.is_some() {
            state.size = size;
            // A port that is not ready yet is told when it is.
            if port.console && (state.ready || !multiport) {
                state.tell(News::Resize);
            }
        }
    }

    /// Characters that the driver wrote to the configuration space while the backend was lent.
    fn emergency(&mut self) {
        let bytes = std::mem::take(&mut *self.shared.emergency.lock());
        if !bytes.is_empty()
            && let Some(port) = self.ports.first_mut()
        {
            // What a blocked backend does not take is lost; a guest in this state cannot wait.
            let _ = port.backend.write(&bytes);
        }
    }

    /// Takes control messages of the guest; `true` if there may be more.
    fn hear(&mut self, states: &mut [PortState], view: &DmaView<'_>) -> Result<bool, TaskError> {
        let Some((_, queue)) = &mut self.control else {
            return Ok(false);
        };
        let mut more = true;
        for _ in 0..BATCH {
            let Some(chain) = queue.pop(view)? else {
                if queue.enable_kicks() {
                    continue;
                }
                more = false;
                break;
            };
            if Self::obey(&chain, states, &self.shared, view).is_none() {
                self.shared.counters.refused_messages.inc();
            }
            queue.fill(chain.head(), 0);
        }
        queue.publish();
        queue.notify();
        Ok(more)
    }

    /// `None` for a message that is malformed or unknown.
    fn obey(
        chain: &Chain,
        states: &mut [PortState],
        shared: &Shared,
        view: &DmaView<'_>,
    ) -> Option<()> {
        let [i0, i1, i2, i3, e0, e1, v0, v1] = chain.read(view, 0).ok()?;
        let id = usize::try_from(u32::from_le_bytes([i0, i1, i2, i3])).ok()?;
        let value = u16::from_le_bytes([v0, v1]);
        match u16::from_le_bytes([e0, e1]) {
            DEVICE_READY if value == 1 => {
                for state in states {
                    state.tell(News::Add);
                }
            }
            // The driver could not set itself up; it will reset the device or not use it.
            DEVICE_READY => {}
            PORT_READY => {
                let (state, port) = (states.get_mut(id)?, shared.ports.get(id)?);
                state.ready = value == 1;
                if !state.ready {
                    return Some(());
                }
                if port.console {
                    state.tell(News::Console);
                    if state.size.is_some() {
                        state.tell(News::Resize);
                    }
                }
                if port.name.is_some() {
                    state.tell(News::Name);
                }
                state.tell(News::Open);
            }
            PORT_OPEN => states.get_mut(id)?.guest_open = value == 1,
            _ => return None,
        }
        Some(())
    }

    /// Tells the guest what it does not know, as far as it offers buffers.
    fn speak(&mut self, states: &mut [PortState], view: &DmaView<'_>) -> Result<(), TaskError> {
        let Some((queue, _)) = &mut self.control else {
            return Ok(());
        };
        let mut told = 0;
        for (id, (state, port)) in states.iter_mut().zip(&self.shared.ports).enumerate() {
            for news in News::ALL {
                if state.news & news as u8 == 0 {
                    continue;
                }
                let mut chain = queue.pop(view)?;
                if chain.is_none() && queue.enable_kicks() {
                    chain = queue.pop(view)?;
                }
                let Some(chain) = chain else {
                    // A kick of this queue brings the task back.
                    queue.publish();
                    queue.notify();
                    return Ok(());
                };
                state.news &= !(news as u8);
                let message = message(id as u32, news, state, port);
                let sent = chain.write(view, 0, &message).is_ok();
                if !sent {
                    // Too short or no memory: the guest will not learn of it.
                    self.shared.counters.refused_messages.inc();
                }
                queue.fill(chain.head(), if sent { message.len() as u32 } else { 0 });
                told += 1;
            }
        }
        if told != 0 {
            queue.publish();
            queue.notify();
        }
        Ok(())
    }
}

/// `struct virtio_console_control` and what follows it (§5.3.6.2).
fn message(id: u32, news: News, state: &PortState, port: &Port) -> Vec<u8> {
    let (event, value) = match news {
        News::Add => (DEVICE_ADD, 1),
        News::Console => (CONSOLE_PORT, 1),
        News::Name => (PORT_NAME, 1),
        News::Resize => (RESIZE, 0),
        News::Open => (PORT_OPEN, state.host_open.into()),
    };
    let mut bytes = Vec::with_capacity(16);
    bytes.extend(id.to_le_bytes());
    bytes.extend(event.to_le_bytes());
    bytes.extend(u16::to_le_bytes(value));
    match news {
        News::Name => bytes.extend(port.name.as_deref().unwrap_or_default().bytes()),
        News::Resize => {
            let WindowSize { columns, rows } = state.size.unwrap_or(WindowSize {
                columns: 0,
                rows: 0,
            });
            // Linux before 6.15 takes rows first, against the standard. A device with a single
            // plain console has no control queue and is right for every driver.
            bytes.extend(columns.to_le_bytes());
            bytes.extend(rows.to_le_bytes());
        }
        News::Add | News::Console | News::Open => {}
    }
    bytes
}

impl QueueTask for ConsoleTask {
    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        for queue in self.queues() {
            poller.add(queue.kick_event(), queue.index().into(), Interest::Readable)?;
        }
        poller.add(&*self.shared.event, BACKENDS, Interest::Readable)
    }

    fn ready(&mut self, token: u64, _: &Poller) -> Result<Progress, TaskError> {
        if token == BACKENDS {
            self.shared.event.clear();
        } else if let Some(queue) = self
            .queues()
            .into_iter()
            .find(|q| u64::from(q.index()) == token)
        {
            queue.take_kick();
        }
        self.serve(token)
    }

    fn resume(&mut self, _: &Poller) -> Result<Progress, TaskError> {
        self.draining = false;
        self.serve(MORE)
    }

    fn drain(&mut self) -> Result<bool, TaskError> {
        self.draining = true;
        Ok(true)
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        let ports = self
            .ports
            .iter()
            .flat_map(|p| p.input.iter().chain(&p.output));
        ports
            .chain(self.control.iter().flat_map(|(to, from)| [to, from]))
            .collect()
    }
}

/// Queues of port `id` (§5.3.2): to the guest, and from it.
pub(crate) fn port_queues(id: u16) -> (u16, u16) {
    if id == 0 {
        (0, 1)
    } else {
        (id * 2 + 2, id * 2 + 3)
    }
}

/// The control queues: to the guest, and from it.
pub(crate) fn control_queues() -> (u16, u16) {
    (CONTROL_IN, CONTROL_OUT)
}
