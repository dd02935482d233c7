//! A descriptor that carries one frame per read and per write.

use crate::null::quiet;
use nyx_memory::{Iovec, PinnedBuffers};
use rustix::io::DupFlags;
use smallvec::SmallVec;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Most buffers of one `readv(2)` (UIO_MAXIOV).
const MAX_IOVECS: usize = 1024;
/// The longest frame there is: a 64 KiB segment with its headers.
const LONGEST: usize = 12 + 14 + 4 + 65_536;

/// What is behind the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// A TAP queue.
    Tap,
    /// A packet socket between processes.
    Socket,
}

/// One end of a cable.
pub(crate) struct Port {
    fd: OwnedFd,
    behind: Behind,
    gone: Arc<AtomicBool>,
}

impl Port {
    /// `fd` is non-blocking. `gone` is set when the other end goes away.
    pub(crate) fn new(fd: OwnedFd, behind: Behind, gone: Arc<AtomicBool>) -> Self {
        Self { fd, behind, gone }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn receive(&mut self, buffers: &PinnedBuffers) -> io::Result<usize> {
        let iovecs = buffers.iovecs();
        if iovecs.len() >= MAX_IOVECS {
            let mut frame = vec![0; buffers.len().min(LONGEST)];
            let len = self.receive_bytes(&mut frame)?;
            return Ok(buffers.write(&frame[..len]));
        }
        let len = self.scatter(iovecs, buffers.len())?;
        buffers.mark_written(len);
        Ok(len)
    }

    pub(crate) fn receive_bytes(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let all = [Iovec {
            base: bytes.as_mut_ptr(),
            len: bytes.len(),
        }];
        self.scatter(&all, bytes.len())
    }

    /// Reads one frame into `iovecs`, which the caller keeps alive and writable, `room` bytes in all.
    fn scatter(&mut self, iovecs: &[Iovec], room: usize) -> io::Result<usize> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Neither a TAP nor a socket tells `readv` that a frame was cut. One byte too much does.
        let mut excess = [0u8];
        let mut list: SmallVec<[Iovec; 20]> = SmallVec::from_slice(iovecs);
        list.push(Iovec {
            base: excess.as_mut_ptr(),
            len: 1,
        });
        loop {
            // SAFETY: every entry is writable memory that outlives the call: the caller's, and
            // `excess`. `Iovec` has the layout of `struct iovec`.
            let got = unsafe {
                libc::readv(
                    self.fd.as_raw_fd(),
                    list.as_ptr().cast(),
                    list.len() as libc::c_int,
                )
            };
            return match usize::try_from(got) {
                // A packet socket whose peer has closed it. A TAP never says this.
                Ok(0) => Err(self.peer_gone()),
                Ok(len) if len > room => Err(io::ErrorKind::InvalidData.into()),
                Ok(len) => Ok(len),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    match error.raw_os_error() {
                        Some(libc::EINTR) => continue,
                        Some(libc::EBADFD | libc::ENODEV | libc::ECONNRESET | libc::ENOTCONN) => {
                            Err(self.peer_gone())
                        }
                        _ => Err(error),
                    }
                }
            };
        }
    }

    pub(crate) fn send(&mut self, buffers: &PinnedBuffers) -> io::Result<()> {
        if self.gone.load(Ordering::Relaxed) {
            // There is no cable: frames vanish.
            return Ok(());
        }
        if buffers.len() > LONGEST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let whole;
        let bounce;
        let iovecs = if buffers.iovecs().len() <= MAX_IOVECS {
            buffers.iovecs()
        } else {
            let mut frame = vec![0; buffers.len()];
            buffers.read(&mut frame);
            bounce = frame;
            whole = [Iovec {
                base: bounce.as_ptr().cast_mut(),
                len: bounce.len(),
            }];
            &whole
        };
        loop {
            // SAFETY: the entries are guest memory that `buffers` pins, or `bounce`; the kernel only
            // reads them. `Iovec` has the layout of `struct iovec`; an all-zero msghdr is valid.
            let sent = unsafe {
                match self.behind {
                    Behind::Tap => libc::writev(
                        self.fd.as_raw_fd(),
                        iovecs.as_ptr().cast(),
                        iovecs.len() as libc::c_int,
                    ),
                    Behind::Socket => {
                        let mut message: libc::msghdr = std::mem::zeroed();
                        message.msg_iov = iovecs.as_ptr().cast_mut().cast();
                        message.msg_iovlen = iovecs.len();
                        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
                        libc::sendmsg(self.fd.as_raw_fd(), &message, flags)
                    }
                }
            };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            return Err(match (error.raw_os_error(), self.behind) {
                (Some(libc::EINTR), _) => continue,
                // EIO of a TAP: the interface is down.
                (Some(libc::EIO), Behind::Tap) | (Some(libc::ENOBUFS), _) => {
                    io::ErrorKind::WouldBlock.into()
                }
                (Some(libc::EMSGSIZE), _) => io::ErrorKind::InvalidInput.into(),
                (Some(libc::EBADFD | libc::ENODEV), Behind::Tap)
                | (Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN), Behind::Socket) => {
                    self.peer_gone()
                }
                _ => error,
            });
        }
    }

    /// Notes that nobody is at the other end any more. A closed socket and a deleted TAP poll as
    /// ready for ever, which would spin the worker: the descriptor's number is given to something
    /// quiet, which also takes the old one out of every epoll set.
    fn peer_gone(&mut self) -> io::Error {
        self.gone.store(true, Ordering::Relaxed);
        if let Ok(quiet) = quiet() {
            let _ = rustix::io::dup3(&quiet, &mut self.fd, DupFlags::CLOEXEC);
        }
        io::ErrorKind::ConnectionReset.into()
    }
}
