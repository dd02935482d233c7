//! A listening Unix socket for one client at a time.
//!
//! The newest client takes over: a forgotten or hung client cannot lock its owner out. The last
//! [`HISTORY`] bytes of output are replayed to a new client.

use crate::OpenError;
use crate::watch::{Arm, Edge, Watch};
use nyx_device::CharBackend;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
};
use serde::Deserialize;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of output a new client gets to see.
const HISTORY: usize = 64 << 10;

/// Configuration of kind `socket`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketConfig {
    /// Where to listen. Created with mode 0600, removed when the machine ends.
    pub path: PathBuf,
}

/// A bound path, removed on drop if it still is ours.
struct Bound {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for Bound {
    fn drop(&mut self) {
        if identity(&self.path).is_some_and(|now| now == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path)
        .ok()
        .map(|m| (m.dev(), m.ino()))
}

struct Client {
    stream: OwnedFd,
    /// History not yet sent.
    backlog: VecDeque<u8>,
}

impl Client {
    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| {
            rustix::net::send(
                &self.stream,
                bytes,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            )
        })
    }

    /// Sends what is left of the history.
    fn catch_up(&mut self) -> Result<(), Errno> {
        while !self.backlog.is_empty() {
            let sent = self.send(self.backlog.as_slices().0)?;
            self.backlog.drain(..sent);
        }
        Ok(())
    }

    /// Whether the peer has closed the connection and all it sent has been read. A peer that only
    /// finished sending (`printf … | nc -N`) still wants to see output.
    fn is_gone(&self) -> bool {
        let mut byte = [0];
        let peeked = rustix::io::retry_on_intr(|| {
            rustix::net::recv(
                &self.stream,
                &mut byte,
                RecvFlags::PEEK | RecvFlags::DONTWAIT,
            )
        });
        match peeked {
            Ok((0, _)) => {
                let zero = Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                };
                let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
                poll(&mut fds, Some(&zero)).is_err() || fds[0].revents().contains(PollFlags::HUP)
            }
            Ok(_) | Err(Errno::AGAIN) => false,
            Err(_) => true,
        }
    }
}

#[derive(Default)]
struct Line {
    client: Option<Client>,
    history: VecDeque<u8>,
}

impl Line {
    fn remember(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(HISTORY)..];
        let excess = (self.history.len() + bytes.len()).saturating_sub(HISTORY);
        self.history.drain(..excess);
        self.history.extend(bytes);
    }

    fn connect(&mut self, stream: OwnedFd, arm: &Arm) {
        if let Some(old) = self.client.take() {
            let _ = old.send(b"\r\n[nyx: another client took this console over]\r\n");
        }
        let mut client = Client {
            stream,
            backlog: self.history.clone(),
        };
        let caught_up = client.catch_up();
        let edge = if caught_up.is_ok() {
            Edge::Input
        } else {
            Edge::Both
        };
        if arm.add(&client.stream, CLIENT, edge).is_ok() {
            self.client = Some(client);
        }
    }

    /// After an edge on the client: sends more history, notices that it has gone.
    fn tend(&mut self, arm: &Arm) {
        let Some(client) = &mut self.client else {
            return;
        };
        match client.catch_up() {
            Err(Errno::AGAIN) => {}
            Ok(()) if !client.is_gone() => arm.rearm(&client.stream, CLIENT, Edge::Input),
            _ => self.client = None,
        }
    }
}

const LISTENER: u64 = 0;
const CLIENT: u64 = 1;

pub(crate) struct Socket {
    bound: Bound,
    listener: Arc<OwnedFd>,
    line: Arc<Mutex<Line>>,
    watch: Option<(Watch, Arm)>,
}

impl Socket {
    pub(crate) fn open(config: SocketConfig) -> Result<Self, OpenError> {
        let path = config.path;
        let field = "socket path";
        // Two starters that both find a stale socket must not remove each other's new one. The
        // lock is on the directory, so it leaves no file behind, and ends with this function.
        let parent = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let directory = rustix::fs::open(
            parent,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        if let Ok(directory) = &directory {
            let _ = rustix::fs::flock(directory, FlockOperation::LockExclusive);
        }
        if let Err(why) = make_room(&path) {
            return Err(OpenError::Path { field, path, why });
        }
        let Ok(address) = SocketAddrUnix::new(&path) else {
            return Err(OpenError::Path {
                field,
                path,
                why: "is longer than the 107 bytes of a socket address: choose a shorter one",
            });
        };
        let listener = match listen(&address) {
            Ok(listener) => listener,
            Err(e) => {
                return Err(OpenError::System {
                    action: "listen on",
                    field,
                    path,
                    source: e.into(),
                });
            }
        };
        let identity = identity(&path).unwrap_or_default();
        Ok(Self {
            bound: Bound { path, identity },
            listener: Arc::new(listener),
            line: Arc::default(),
            watch: None,
        })
    }
}

/// Removes a socket that nobody listens on.
fn make_room(path: &Path) -> Result<(), &'static str> {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err("exists and is not a socket: remove it or choose another name");
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            let _ = std::fs::remove_file(path);
            Ok(())
        }
        _ => Err("is in use by a running process: end it or choose another name"),
    }
}

fn listen(address: &SocketAddrUnix) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The console is as powerful as the guest's keyboard: for its owner only. The mode of the
    // socket before bind is the mode of the file after.
    rustix::fs::fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&listener, address)?;
    rustix::net::listen(&listener, 4)?;
    Ok(listener)
}

impl CharBackend for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut line = self.line.lock();
        let sent = match &mut line.client {
            None => Ok(bytes.len()),
            Some(client) => client.catch_up().and_then(|()| client.send(bytes)),
        };
        match sent {
            Ok(sent) => {
                line.remember(&bytes[..sent]);
                Ok(sent)
            }
            Err(Errno::AGAIN) => {
                if let (Some((_, arm)), Some(client)) = (&self.watch, &line.client) {
                    arm.rearm(&client.stream, CLIENT, Edge::Both);
                }
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(_) => {
                line.client = None;
                line.remember(bytes);
                Ok(bytes.len())
            }
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let would_block = Err(io::ErrorKind::WouldBlock.into());
        let mut line = self.line.lock();
        let Some(client) = &line.client else {
            return would_block;
        };
        let got = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&client.stream, &mut *bytes, RecvFlags::DONTWAIT)
        });
        match got {
            Ok((n, _)) if n != 0 || bytes.is_empty() => Ok(n),
            Err(Errno::AGAIN) => would_block,
            // The next client is awaited.
            _ => {
                if client.is_gone() {
                    line.client = None;
                }
                would_block
            }
        }
    }

    fn notify(&mut self, ready: Box<dyn Fn() + Send>) -> io::Result<()> {
        let watch = Watch::new()?;
        watch.add(&*self.listener, LISTENER, Edge::Input)?;
        let (arm, own_arm) = (watch.arm(), watch.arm());
        let (listener, line) = (Arc::clone(&self.listener), Arc::downgrade(&self.line));
        watch.start("char-socket", move |token| {
            let Some(line) = line.upgrade() else {
                return;
            };
            if token == LISTENER {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                while let Ok(stream) = accept_with(&*listener, flags) {
                    line.lock().connect(stream, &arm);
                }
            } else {
                line.lock().tend(&arm);
            }
            ready();
        })?;
        self.watch = Some((watch, own_arm));
        Ok(())
    }

    fn is_connected(&self) -> bool {
        self.line.lock().client.is_some()
    }

    fn describe(&self) -> String {
        format!("socket {}", self.bound.path.display())
    }
}
