//! A cable that is not plugged in.

use crate::OpenError;
use nyx_device::{NetBackend, NetLink, NetOffloads, NetQueue};
use nyx_memory::PinnedBuffers;
use rustix::event::{EventfdFlags, eventfd};
use serde::Deserialize;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NullConfig {}

/// A descriptor that never becomes readable.
pub(crate) fn quiet() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

pub(crate) struct Null {
    queue: Option<NullQueue>,
}

impl Null {
    pub(crate) fn open() -> Result<Self, OpenError> {
        let fd = quiet().map_err(|e| OpenError::system("create an eventfd", e))?;
        Ok(Self {
            queue: Some(NullQueue { fd }),
        })
    }
}

struct NullQueue {
    fd: OwnedFd,
}

impl NetBackend for Null {
    fn offloads(&self) -> NetOffloads {
        NetOffloads::default()
    }

    fn queue_pairs(&self) -> u16 {
        1
    }

    fn take_queues(&mut self) -> io::Result<Vec<Box<dyn NetQueue>>> {
        let queue = self.queue.take().ok_or(io::ErrorKind::ResourceBusy)?;
        Ok(vec![Box::new(queue)])
    }

    fn link(&self) -> NetLink {
        NetLink::Down
    }

    fn describe(&self) -> String {
        "null".to_owned()
    }
}

impl NetQueue for NullQueue {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn receive(&mut self, _: &PinnedBuffers) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn receive_bytes(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&mut self, _: &PinnedBuffers) -> io::Result<()> {
        Ok(())
    }

    fn set_offloads(&mut self, _: NetOffloads) -> io::Result<()> {
        Ok(())
    }
}
