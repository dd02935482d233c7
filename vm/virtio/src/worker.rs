//! The thread that hosts a [`QueueTask`].

use crate::device::{Progress, QueueTask, TASK_TOKENS, TaskError};
use crate::{Interrupt, QueueProgress};
use nyx_device::{Drain, DrainToken, Threads};
use nyx_reactor::{EventFd, Interest, Poller};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// Token of the command event; beyond every task's.
const COMMAND: u64 = TASK_TOKENS;

enum Command {
    Park(DrainToken),
    Resume,
    End(DrainToken),
}

struct Shared {
    /// `None` once the thread is gone: a command is dropped then, and its token with it.
    commands: Mutex<Option<Vec<Command>>>,
    event: EventFd,
    /// Progress of the task's queues, valid while it is parked.
    parked: Mutex<Option<Vec<(u16, QueueProgress)>>>,
}

impl Shared {
    fn send(&self, command: Command) {
        match &mut *self.commands.lock() {
            Some(commands) => commands.push(command),
            None => return,
        }
        self.event.signal();
    }
}

/// Handle of one worker thread. Dropping it ends the thread after its work has drained.
pub(crate) struct Worker {
    shared: Arc<Shared>,
}

impl Worker {
    /// Starts a thread that serves `task`.
    pub(crate) fn start(
        threads: &Threads,
        role: &str,
        task: Box<dyn QueueTask>,
        interrupt: Arc<Interrupt>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            commands: Mutex::new(Some(Vec::new())),
            event: EventFd::new()?,
            parked: Mutex::default(),
        });
        let poller = Poller::new()?;
        poller.add(&shared.event, COMMAND, Interest::Readable)?;
        let thread = Thread {
            shared: shared.clone(),
            poller,
            task,
            interrupt,
            broken: false,
        };
        threads.spawn(role, move || thread.run())?;
        Ok(Self { shared })
    }

    /// Finishes what is in flight and stops taking work.
    pub(crate) fn park(&self) -> Drain {
        let (drain, token) = Drain::pending();
        self.shared.send(Command::Park(token));
        drain
    }

    /// Goes on after [`Worker::park`].
    pub(crate) fn resume(&self) {
        self.shared.send(Command::Resume);
    }

    /// Finishes what is in flight, drops the task and ends the thread. May be asked repeatedly.
    pub(crate) fn end(&self) -> Drain {
        let (drain, token) = Drain::pending();
        self.shared.send(Command::End(token));
        drain
    }

    /// Progress of the task's queues; `None` unless parked.
    pub(crate) fn progress(&self) -> Option<Vec<(u16, QueueProgress)>> {
        self.shared.parked.lock().clone()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let (_, token) = Drain::pending();
        self.shared.send(Command::End(token));
    }
}

struct Thread {
    shared: Arc<Shared>,
    poller: Poller,
    task: Box<dyn QueueTask>,
    interrupt: Arc<Interrupt>,
    broken: bool,
}

/// Closes the command queue when the thread ends, so that nobody waits for an answer of it. One
/// that ends by a panic leaves a device that needs a reset.
struct Farewell {
    shared: Arc<Shared>,
    interrupt: Arc<Interrupt>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let unheard = self.shared.commands.lock().take();
        drop(unheard);
        if std::thread::panicking() {
            self.interrupt.need_reset();
        }
    }
}

/// What the thread is asked to reach.
enum Goal {
    Serve,
    Park(Vec<DrainToken>),
    End(Vec<DrainToken>),
}

impl Thread {
    fn run(self) {
        // Dropped in reverse, even by a panic: the task goes before the tokens. Once they are gone
        // the device may give the task's backend to another one, and the guest its memory.
        let _farewell = Farewell {
            shared: self.shared.clone(),
            interrupt: self.interrupt.clone(),
        };
        let mut goal = Goal::Serve;
        let mut thread = self;
        thread.pursue(&mut goal);
    }

    /// Follows commands until the end.
    fn pursue(&mut self, goal: &mut Goal) {
        let mut again = None;
        if let Err(e) = self.task.register(&self.poller) {
            self.breaks(&e.into());
        } else {
            again = self.step(|task, poller| task.resume(poller));
        }
        // The task was asked to drain: it takes no work until it is resumed, drained or not.
        let mut draining = false;
        let mut parked = false;
        let mut ready = Vec::new();
        loop {
            // Commands first, so that they are heard under any load.
            let commands = self.shared.commands.lock().as_mut().map(std::mem::take);
            for command in commands.into_iter().flatten() {
                *goal = match (std::mem::replace(goal, Goal::Serve), command) {
                    (Goal::End(mut tokens), Command::Park(token) | Command::End(token)) => {
                        tokens.push(token);
                        Goal::End(tokens)
                    }
                    (Goal::End(tokens), Command::Resume) => Goal::End(tokens),
                    (Goal::Park(mut tokens), Command::End(token)) => {
                        tokens.push(token);
                        Goal::End(tokens)
                    }
                    (Goal::Serve, Command::End(token)) => Goal::End(vec![token]),
                    (Goal::Park(mut tokens), Command::Park(token)) => {
                        tokens.push(token);
                        Goal::Park(tokens)
                    }
                    (Goal::Serve, Command::Park(token)) => Goal::Park(vec![token]),
                    (Goal::Park(_) | Goal::Serve, Command::Resume) => {
                        parked = false;
                        *self.shared.parked.lock() = None;
                        if std::mem::take(&mut draining) {
                            again = self.step(|task, poller| task.resume(poller));
                        }
                        Goal::Serve
                    }
                };
            }
            match goal {
                Goal::Serve => {}
                Goal::Park(tokens) => {
                    again = None;
                    draining = true;
                    if parked || self.drained() {
                        let queues = self.task.queues();
                        let progress = queues.iter().map(|q| (q.index(), q.progress())).collect();
                        *self.shared.parked.lock() = Some(progress);
                        parked = true;
                        tokens.clear();
                    }
                }
                Goal::End(_) => {
                    again = None;
                    if parked || self.drained() {
                        return;
                    }
                }
            }
            if parked {
                self.wait_for_command();
                continue;
            }
            let timeout = again.map(|_| std::time::Duration::ZERO);
            ready.clear();
            let waited = self.poller.wait(timeout);
            if let Err(e) = waited.map(|events| ready.extend(events.map(|event| event.token))) {
                self.breaks(&e.into());
            }
            let first = again.take();
            let mut commanded = false;
            for token in first.into_iter().chain(ready.iter().copied()) {
                if token == COMMAND {
                    // The commands themselves are read at the top of the next round.
                    commanded = self.shared.event.clear();
                } else if !self.broken {
                    // Costs a load and a branch while nobody traces.
                    let span = tracing::debug_span!(target: "io", "serve", token).entered();
                    let next = self.step(|task, poller| task.ready(token, poller));
                    drop(span);
                    again = again.or(next);
                }
            }
            if self.broken {
                // Nothing but a command matters any more; do not spin on ready descriptors.
                again = None;
                if matches!(goal, Goal::Serve) && !commanded {
                    self.wait_for_command();
                }
            }
        }
    }

    /// Blocks until a command arrives, deaf to everything else.
    fn wait_for_command(&self) {
        let mut fds = [rustix::event::PollFd::new(
            &self.shared.event,
            rustix::event::PollFlags::IN,
        )];
        // An interrupted wait goes around the loop once more.
        let _ = rustix::event::poll(&mut fds, None);
        self.shared.event.clear();
    }

    fn step(
        &mut self,
        f: impl FnOnce(&mut dyn QueueTask, &Poller) -> Result<Progress, TaskError>,
    ) -> Option<u64> {
        if self.broken {
            return None;
        }
        match f(&mut *self.task, &self.poller) {
            Ok(Progress::Wait) => None,
            Ok(Progress::Again(token)) => Some(token),
            Err(e) => {
                self.breaks(&e);
                None
            }
        }
    }

    fn drained(&mut self) -> bool {
        match self.task.drain() {
            Ok(drained) => drained,
            Err(e) => {
                // A task that cannot even drain has nothing left to wait for.
                self.breaks(&e);
                true
            }
        }
    }

    fn breaks(&mut self, error: &TaskError) {
        self.broken = true;
        self.interrupt.broken(error);
    }
}
