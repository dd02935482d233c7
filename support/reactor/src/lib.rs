//! An epoll loop on one thread: typed tokens, event file descriptors and timers.
#![forbid(unsafe_code)]

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::{Errno, read, write};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A 64-bit kernel counter that wakes whoever polls it (`eventfd(2)`), close-on-exec, non-blocking.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Creates one with count zero.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Adds one. A saturated counter is already readable, so that is not an error.
    pub fn signal(&self) {
        // Only EAGAIN is possible on a valid eventfd, and it means "already signalled".
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }

    /// Resets the count and says whether it was non-zero.
    pub fn clear(&self) -> bool {
        let mut count = [0; 8];
        read(&self.0, &mut count).is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<EventFd> for OwnedFd {
    fn from(event: EventFd) -> Self {
        event.0
    }
}

/// What to wait for on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Input is there, or the peer hung up.
    Readable,
    /// Output fits.
    Writable,
    /// Either.
    Both,
    /// Only errors and hang-ups.
    Nothing,
}

/// One descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The token it was added with.
    pub token: u64,
    /// Input is there.
    pub readable: bool,
    /// Output fits.
    pub writable: bool,
    /// The peer is gone, or the descriptor failed.
    pub closed: bool,
}

/// An epoll set, level-triggered.
pub struct Poller {
    epoll: OwnedFd,
    ready: Vec<Ready>,
}

impl Poller {
    /// Creates an empty set.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self {
            epoll,
            ready: Vec::with_capacity(32),
        })
    }

    /// Adds a descriptor. The caller keeps it open until [`Poller::remove`].
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            flags(interest),
        )?)
    }

    /// Changes what to wait for.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            flags(interest),
        )?)
    }

    /// Removes a descriptor.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits until something is ready or `timeout` passes, and returns what is.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = Ready> + use<'_>> {
        let timeout = timeout.map(|t| rustix::event::Timespec {
            tv_sec: t.as_secs() as i64,
            tv_nsec: t.subsec_nanos().into(),
        });
        self.ready.clear();
        // 16 descriptors per wakeup; the rest stay ready for the next one.
        let mut events = [const { MaybeUninit::uninit() }; 16];
        match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok((events, _)) => self.ready.extend(events.iter().map(|event| {
                let got = event.flags;
                Ready {
                    token: event.data.u64(),
                    readable: got.contains(epoll::EventFlags::IN),
                    writable: got.contains(epoll::EventFlags::OUT),
                    closed: got.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR),
                }
            })),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(self.ready.iter().copied())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn flags(interest: Interest) -> epoll::EventFlags {
    match interest {
        Interest::Readable => epoll::EventFlags::IN,
        Interest::Writable => epoll::EventFlags::OUT,
        Interest::Both => epoll::EventFlags::IN | epoll::EventFlags::OUT,
        Interest::Nothing => epoll::EventFlags::empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signalled_event_is_reported_under_its_token_until_cleared() {
        let (event, mut poller) = (EventFd::new().unwrap(), Poller::new().unwrap());
        poller.add(&event, 7, Interest::Readable).unwrap();
        let zero = Some(Duration::ZERO);
        assert_eq!(poller.wait(zero).unwrap().count(), 0);
        event.signal();
        event.signal();
        let ready: Vec<_> = poller.wait(None).unwrap().collect();
        assert_eq!(
            ready,
            [Ready {
                token: 7,
                readable: true,
                writable: false,
                closed: false
            }]
        );
        assert!(event.clear());
        assert!(!event.clear(), "one clear takes all signals");
        assert_eq!(poller.wait(zero).unwrap().count(), 0);
        poller.remove(&event).unwrap();
        event.signal();
        assert_eq!(poller.wait(zero).unwrap().count(), 0);
    }

    #[test]
    fn a_closed_peer_is_reported() {
        let (reader, writer) = io::pipe().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&reader, 1, Interest::Nothing).unwrap();
        drop(writer);
        assert!(poller.wait(None).unwrap().next().unwrap().closed);
    }
}
