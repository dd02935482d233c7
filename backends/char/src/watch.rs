//! The backend's own thread: an edge-triggered epoll set, asleep until something happens.
//!
//! Edge-triggered, because nothing is read on this thread: the device reads when it has room, and
//! a level would spin until then.

use nyx_reactor::EventFd;
use rustix::event::epoll;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

const STOP: u64 = u64::MAX;

/// What to wait for, besides hang-ups.
#[derive(Clone, Copy)]
pub(crate) enum Edge {
    /// Only hang-ups and errors.
    Closed,
    /// Input.
    Input,
    /// Input and room for output.
    Both,
    /// Room for output.
    Output,
}

impl Edge {
    fn flags(self) -> epoll::EventFlags {
        let base = epoll::EventFlags::ET | epoll::EventFlags::RDHUP;
        match self {
            Self::Closed => base,
            Self::Input => base | epoll::EventFlags::IN,
            Self::Both => base | epoll::EventFlags::IN | epoll::EventFlags::OUT,
            Self::Output => base | epoll::EventFlags::OUT,
        }
    }
}

/// A thread waiting for edges; it ends when this is dropped.
///
/// The drop does not wait for the thread: the device may hold a lock that its callback wants.
pub(crate) struct Watch {
    epoll: Arc<OwnedFd>,
    stop: Arc<EventFd>,
}

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = EventFd::new()?;
        epoll::add(
            &epoll,
            &stop,
            epoll::EventData::new_u64(STOP),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            epoll: Arc::new(epoll),
            stop: Arc::new(stop),
        })
    }

    /// Waits for `fd` too. Says `false` for what cannot be waited for because it is always ready,
    /// such as a regular file.
    pub(crate) fn add(&self, fd: impl AsFd, token: u64, edge: Edge) -> io::Result<bool> {
        match epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            edge.flags(),
        ) {
            Ok(()) => Ok(true),
            Err(Errno::PERM) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// A handle that changes what to wait for.
    pub(crate) fn arm(&self) -> Arm {
        Arm(Arc::clone(&self.epoll))
    }

    /// Starts the thread: `on_edge` gets the token of every descriptor that changed.
    pub(crate) fn start(
        &self,
        name: &'static str,
        mut on_edge: impl FnMut(u64) + Send + 'static,
    ) -> io::Result<()> {
        let (epoll, stop) = (Arc::clone(&self.epoll), Arc::clone(&self.stop));
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(128 << 10)
            .spawn(move || {
                let mut events = Vec::with_capacity(8);
                loop {
                    events.clear();
                    match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(_) => return,
                    }
                    for event in &events {
                        match event.data.u64() {
                            STOP => {
                                // Keeps the descriptor open until the wait is over.
                                drop(stop);
                                return;
                            }
                            token => on_edge(token),
                        }
                    }
                }
            })?;
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.signal();
    }
}

/// Changes what a [`Watch`] waits for, from any thread.
#[derive(Clone)]
pub(crate) struct Arm(Arc<OwnedFd>);

impl Arm {
    /// Waits for `edge` from now on. What is the case already counts as an edge, so nothing is
    /// lost between a refused write and this call.
    pub(crate) fn rearm(&self, fd: impl AsFd, token: u64, edge: Edge) {
        // Fails only for a descriptor that was never added, which is then never waited for.
        let _ = epoll::modify(&self.0, fd, epoll::EventData::new_u64(token), edge.flags());
    }

    /// Waits for `fd` too.
    pub(crate) fn add(&self, fd: impl AsFd, token: u64, edge: Edge) -> io::Result<()> {
        Ok(epoll::add(
            &self.0,
            fd,
            epoll::EventData::new_u64(token),
            edge.flags(),
        )?)
    }
}
