//! The Unix socket that host programs connect to, and the ones that guest programs reach.

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process serves it.
    #[error("socket {0:?} is in use by a running process; choose another path or stop that one")]
    Live(PathBuf),
    /// Something else is there.
    #[error("{0:?} exists and is not a socket; choose another path")]
    NotSocket(PathBuf),
    /// The kernel refused.
    #[error("cannot listen on {path:?}: {source}")]
    Refused {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    path: PathBuf,
}

/// A socket's path, removed when this goes. Apart from the [`Listener`], which a worker thread may
/// hold a little longer than the device lives.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    /// Device and inode, so that nobody else's socket is removed.
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Listens on `path`, for the owner only. A socket that nobody listens on any more is replaced.
    pub(crate) fn bind(path: &Path) -> Result<(Self, Claim), ListenError> {
        let refused = |source: Errno| ListenError::Refused {
            path: path.into(),
            source: source.into(),
        };
        let address = SocketAddrUnix::new(path).map_err(refused)?;
        remove_stale(path)?;
        let fd = socket().map_err(refused)?;
        // The mode of the socket becomes that of the path, so it is never open to others.
        rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(refused)?;
        rustix::net::bind(&fd, &address).map_err(refused)?;
        let claim = Claim {
            path: path.into(),
            identity: identity(path),
        };
        rustix::net::listen(&fd, BACKLOG).map_err(refused)?;
        Ok((
            Self {
                fd,
                path: path.into(),
            },
            claim,
        ))
    }

    /// Takes the next connection; `WouldBlock` when none waits.
    pub(crate) fn accept(&self) -> io::Result<OwnedFd> {
        Ok(rustix::net::accept_with(&self.fd, FLAGS)?)
    }

    /// Connects to the program that serves guest connections to `port`: it listens on this path
    /// followed by `_` and the port.
    pub(crate) fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let fd = socket()?;
        // A full backlog says EAGAIN: as good as nobody there.
        rustix::net::connect(&fd, &SocketAddrUnix::new(path.as_os_str())?)?;
        Ok(fd)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // It may be gone in this moment; then there is nothing to remove.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path)
        .ok()
        .map(|m| (m.dev(), m.ino()))
}

fn socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Refused {
        path: path.into(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NotSocket(path.into()));
        }
        Ok(_) => {}
    }
    let address = SocketAddrUnix::new(path).map_err(|e| failed(e.into()))?;
    let probe = socket().map_err(|e| failed(e.into()))?;
    match rustix::net::connect(&probe, &address) {
        // Only this says that nobody listens; anything else may be somebody busy.
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(failed),
        _ => Err(ListenError::Live(path.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_or_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves it behind");
        let first = Listener::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::Live(_)), "{error}");
        assert!(path.exists());
        drop(first);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenError::NotSocket(_))
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn somebody_elses_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let first = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
