//! The GDB server: one thread, one client at a time.
//!
//! ```text
//!   listening ──client──▶ idle (all vCPUs held) ⇄ running ──detach, loss──▶ listening
//! ```
//!
//! A client that goes, by `detach` or by breaking its connection, leaves no breakpoint behind and the
//! guest goes on.

use crate::frames::{Frames, Oversize, PACKET, Unit};
use crate::listen::{Client, Listen, Listener, Stream};
use crate::target::GuestTarget;
use crate::watch::{Event, Watch};
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{
    DisconnectReason, GdbStub, GdbStubBuilder, GdbStubError, MultiThreadStopReason,
};
use nyx_machine::{AttachError, DebugError, DebugPort};
use nyx_reactor::EventFd;
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// What a debugger may ask of a machine's owner. The answers come later, if at all.
pub trait MachineCommands: Send + Sync {
    /// Reset the platform.
    fn reset(&self);
    /// Inject an NMI.
    fn nmi(&self);
    /// End the machine.
    fn stop(&self);
    /// A few lines on what the machine is, for `monitor info`.
    fn describe(&self) -> String {
        String::new()
    }
}

/// Whether the guest waits for a debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It runs; a debugger may come at any time.
    Running,
    /// It does not run before the first debugger lets it.
    Held,
}

/// The GDB server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The machine has a debugger.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Its vCPUs cannot be held.
    #[error(transparent)]
    Hold(#[from] DebugError),
    /// The thread.
    #[error("cannot start the thread of the GDB server: {0}")]
    Thread(#[source] io::Error),
}

struct Quit {
    wanted: AtomicBool,
    wake: Arc<EventFd>,
}

/// A GDB server. Dropping it tells a client that waits, and ends.
pub struct GdbServer {
    quit: Arc<Quit>,
    thread: Option<JoinHandle<()>>,
    address: String,
}

impl GdbServer {
    /// Starts to listen. With [`Start::Held`] all vCPUs are held when this returns, so call it before
    /// the machine is started.
    pub fn start(
        port: DebugPort,
        listen: &Listen,
        start: Start,
        commands: Arc<dyn MachineCommands>,
    ) -> Result<Self, StartError> {
        let listener = Listener::open(listen).map_err(|source| StartError::Listen {
            address: match listen {
                Listen::Tcp(address) => address.to_string(),
                Listen::Unix(path) => path.display().to_string(),
            },
            source,
        })?;
        let address = listener.address();
        let wake = Arc::new(EventFd::new().map_err(StartError::Thread)?);
        let quit = Arc::new(Quit {
            wanted: AtomicBool::new(false),
            wake: wake.clone(),
        });
        let mut server = Server {
            port,
            listener,
            commands,
            quit: quit.clone(),
            wake,
            held: None,
        };
        if start == Start::Held {
            server.held = Some(server.attach()?);
        }
        let thread = std::thread::Builder::new()
            .name("gdb".into())
            .spawn(move || server.body())
            .map_err(StartError::Thread)?;
        Ok(Self {
            quit,
            thread: Some(thread),
            address,
        })
    }

    /// What to tell gdb: `target remote ADDRESS`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for GdbServer {
    fn drop(&mut self) {
        self.quit.wanted.store(true, Ordering::Release);
        self.quit.wake.signal();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

struct Server {
    port: DebugPort,
    listener: Listener,
    commands: Arc<dyn MachineCommands>,
    quit: Arc<Quit>,
    wake: Arc<EventFd>,
    /// The machine waits for its first debugger.
    held: Option<GuestTarget>,
}

/// How a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Oversize(#[from] Oversize),
    #[error("{0}")]
    Protocol(String),
}

impl From<GdbStubError<DebugError, io::Error>> for SessionError {
    fn from(error: GdbStubError<DebugError, io::Error>) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// What there is to do.
#[derive(Default)]
struct Ready {
    bytes: bool,
    newcomer: bool,
}

/// Waits for the listener, the client or a wake-up. Takes the wake-up.
fn wait(listener: &Listener, wake: &EventFd, client: Option<BorrowedFd<'_>>) -> io::Result<Ready> {
    let mut fds = vec![
        PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
    ];
    fds.extend(client.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    loop {
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            other => {
                other?;
                break;
            }
        }
    }
    let ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
    let found = Ready {
        newcomer: ready(0),
        bytes: ready(2),
    };
    wake.clear();
    Ok(found)
}

impl Server {
    fn attach(&self) -> Result<GuestTarget, StartError> {
        let watch = Watch::new(
            self.port.memory().clone(),
            self.port.vcpus(),
            self.wake.clone(),
        );
        let watch = Arc::new(watch);
        let debugger = self.port.attach(watch.clone())?;
        let target = GuestTarget::new(debugger, watch, self.commands.clone());
        target.debugger.hold_all()?;
        Ok(target)
    }

    fn body(mut self) {
        while !self.quit.wanted.load(Ordering::Acquire) {
            match wait(&self.listener, &self.wake, None) {
                Ok(Ready { newcomer: true, .. }) => {}
                Ok(_) => continue,
                Err(e) => {
                    tracing::error!(target: "debug", "the GDB server ends: {e}");
                    return;
                }
            }
            match self.listener.accept() {
                Ok(client) => self.welcome(client),
                Err(e) => tracing::debug!(target: "debug", "a client was lost: {e}"),
            }
        }
    }

    fn welcome(&mut self, client: Client) {
        let target = match self.held.take() {
            Some(target) => Ok(target),
            None => self.attach(),
        };
        let mut target = match target {
            Ok(target) => target,
            Err(e) => {
                tracing::warn!(target: "debug", "a debugger was sent away: {e}");
                return;
            }
        };
        tracing::info!(target: "debug", peer = %client.peer, "a debugger is attached");
        // gdbstub parses what the client sends; a mistake there must not take the VM along.
        let end = catch_unwind(AssertUnwindSafe(|| {
            self.session(&mut target, client.stream)
        }));
        match end {
            Ok(Ok(DisconnectReason::Kill)) => {
                tracing::info!(target: "debug", "the debugger ends the machine");
                self.commands.stop();
            }
            Ok(Ok(_)) => tracing::info!(target: "debug", "the debugger has left"),
            Ok(Err(e)) => tracing::warn!(target: "debug", "the debugger was lost: {e}"),
            Err(_) => tracing::error!(target: "debug", "the debugger's session panicked"),
        }
        drop(target);
    }

    fn session(
        &self,
        target: &mut GuestTarget,
        stream: Box<dyn Stream>,
    ) -> Result<DisconnectReason, SessionError> {
        let link = Link {
            stream,
            unsent: Vec::new(),
        };
        let stub: GdbStub<'_, GuestTarget, Link> = GdbStubBuilder::new(link)
            .packet_buffer_size(PACKET)
            .build()
            .map_err(|e| SessionError::Protocol(e.to_string()))?;
        let mut machine = stub.run_state_machine(target)?;
        let mut frames = Frames::default();
        let mut bytes = [0; 4096];
        let mut unread = 0..0;
        loop {
            machine = match machine {
                GdbStubStateMachine::Disconnected(end) => return Ok(end.get_reason()),
                GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                    target.stop_all();
                    let reason = target.interrupted();
                    interrupt.interrupt_handled(target, Some(reason))?
                }
                GdbStubStateMachine::Running(running) if let Some(event) = next_event(target) => {
                    let reason = match event {
                        Event::Ended => MultiThreadStopReason::Exited(0),
                        Event::Stopped(vcpu, reason) => {
                            target.stop_all();
                            target.stop_reason(vcpu, reason)
                        }
                    };
                    running.report_stop(target, reason)?
                }
                mut machine if unread.is_empty() => {
                    let link = match &mut machine {
                        GdbStubStateMachine::Idle(state) => state.borrow_conn(),
                        GdbStubStateMachine::Running(state) => state.borrow_conn(),
                        GdbStubStateMachine::CtrlCInterrupt(state) => state.borrow_conn(),
                        GdbStubStateMachine::Disconnected(state) => state.borrow_conn(),
                    };
                    unread = 0..self.receive(link, &mut bytes)?;
                    if unread.is_empty() && self.quit.wanted.load(Ordering::Acquire) {
                        // A machine that has ended says so first, to a client that waits.
                        let waits = matches!(machine, GdbStubStateMachine::Running(_));
                        if !(waits && target.watch.lock().ended) {
                            return Ok(DisconnectReason::Disconnect);
                        }
                    }
                    machine
                }
                machine => {
                    let unit = match bytes.get(unread.start) {
                        Some(&byte) => frames.push(byte)?,
                        None => None,
                    };
                    unread.start += 1;
                    match unit {
                        None => machine,
                        Some(unit) => {
                            let ends = unit == Unit::Kill;
                            let machine = feed(machine, target, &frames, unit)?;
                            if ends {
                                return Ok(DisconnectReason::Kill);
                            }
                            machine
                        }
                    }
                }
            };
        }
    }

    /// Waits for bytes of the client or a wake-up (then none). Others who come are sent away.
    fn receive(&self, link: &mut Link, bytes: &mut [u8]) -> Result<usize, SessionError> {
        let ready = wait(&self.listener, &self.wake, Some(link.stream.as_fd()))?;
        if ready.newcomer
            && let Ok(other) = self.listener.accept()
        {
            tracing::warn!(target: "debug", peer = %other.peer, "there is a debugger already");
        }
        if !ready.bytes {
            return Ok(0);
        }
        match link.stream.read(bytes)? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            read => Ok(read),
        }
    }
}

fn next_event(target: &GuestTarget) -> Option<Event> {
    target.watch.lock().events.pop_front()
}

type Machine<'m> = GdbStubStateMachine<'m, GuestTarget, Link>;

/// Gives gdbstub a unit, or answers in its place.
fn feed<'m>(
    mut machine: Machine<'m>,
    target: &mut GuestTarget,
    frames: &Frames,
    unit: Unit,
) -> Result<Machine<'m>, SessionError> {
    let answer = match unit {
        Unit::Pass(bytes) => {
            for byte in bytes {
                machine = match machine {
                    GdbStubStateMachine::Idle(state) => state.incoming_data(target, byte)?,
                    GdbStubStateMachine::Running(state) => state.incoming_data(target, byte)?,
                    // These two take no bytes, and a unit that leads to them ends there.
                    other => return Ok(other),
                };
            }
            return Ok(machine);
        }
        Unit::AskPhysical => {
            if target.physical {
                "1"
            } else {
                "0"
            }
        }
        Unit::SetPhysical(on) => {
            target.physical = on;
            "OK"
        }
        Unit::Kill => "OK",
    };
    if let GdbStubStateMachine::Idle(state) = &mut machine {
        let link = state.borrow_conn();
        link.write_all(&frames.answer(answer))?;
        link.flush()?;
    }
    Ok(machine)
}

/// The connection, with what is not sent yet.
struct Link {
    stream: Box<dyn Stream>,
    unsent: Vec<u8>,
}

impl Connection for Link {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.write_all(&[byte])
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.unsent.extend_from_slice(bytes);
        if self.unsent.len() >= PACKET {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = self.stream.write_all(&self.unsent);
        self.unsent.clear();
        sent?;
        self.stream.flush()
    }
}
