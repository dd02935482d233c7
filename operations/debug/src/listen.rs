//! Where the GDB server listens.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A place cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It is written in no known form.
    #[error("{0:?} is no place to listen at: say HOST:PORT, PORT or unix:PATH")]
    Form(String),
    /// The host has no address.
    #[error("{0} has no address")]
    Host(String),
    /// Others could reach it.
    #[error(
        "{0} can be reached from other machines, and a debugger may do anything to the guest: \
         listen at 127.0.0.1, or allow it explicitly"
    )]
    Remote(SocketAddr),
}

impl Listen {
    /// Reads `PORT`, `HOST:PORT`, `unix:PATH` or a path with a slash. An address that other machines
    /// reach is refused unless `remote`.
    pub fn parse(text: &str, remote: bool) -> Result<Self, ListenError> {
        let form = || ListenError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(form()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let text = text.strip_prefix("tcp:").unwrap_or(text);
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let port: u16 = port.parse().map_err(|_| form())?;
        let host = match host.trim_start_matches('[').trim_end_matches(']') {
            "" => "127.0.0.1",
            host => host,
        };
        let address = (host, port)
            .to_socket_addrs()
            .ok()
            .and_then(|mut all| all.next())
            .ok_or_else(|| ListenError::Host(host.to_owned()))?;
        if !address.ip().is_loopback() && !remote {
            return Err(ListenError::Remote(address));
        }
        Ok(Self::Tcp(address))
    }
}

/// An open place.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// How long a client may take to take what it is sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

impl Listener {
    pub(crate) fn open(listen: &Listen) -> std::io::Result<Self> {
        match listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            Listen::Unix(path) => {
                // What a server that was killed left behind is in nobody's way.
                let stale = std::fs::symlink_metadata(path)
                    .is_ok_and(|meta| meta.file_type().is_socket())
                    && std::os::unix::net::UnixStream::connect(path).is_err();
                if stale {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    /// What to tell gdb: `target remote ADDRESS`.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.to_string(),
                Err(_) => "?".into(),
            },
            Self::Unix(_, path) => path.display().to_string(),
        }
    }

    pub(crate) fn accept(&self) -> std::io::Result<Client> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
                Ok(Client {
                    stream: Box::new(stream),
                    peer: peer.to_string(),
                })
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
                Ok(Client {
                    stream: Box::new(stream),
                    peer: "a Unix socket".into(),
                })
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Gone already: as well.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A stream of either kind.
pub(crate) trait Stream: std::io::Read + std::io::Write + AsFd + Send {}
impl<S: std::io::Read + std::io::Write + AsFd + Send> Stream for S {}

/// A client that has come.
pub(crate) struct Client {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) peer: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_others_machines_kept_out() {
        let tcp = |text: &str| Ok::<_, String>(Listen::Tcp(text.parse().unwrap()));
        let parse = |text, remote| Listen::parse(text, remote).map_err(|e| e.to_string());
        assert_eq!(parse("1234", false), tcp("127.0.0.1:1234"));
        assert_eq!(parse(":1234", false), tcp("127.0.0.1:1234"));
        assert_eq!(parse("tcp:127.0.0.1:9", false), tcp("127.0.0.1:9"));
        assert_eq!(parse("[::1]:9", false), tcp("[::1]:9"));
        assert_eq!(parse("0.0.0.0:9", true), tcp("0.0.0.0:9"));
        let refused = parse("0.0.0.0:9", false).unwrap_err();
        assert!(refused.starts_with("0.0.0.0:9 can be reached"), "{refused}");
        for path in ["unix:/tmp/a:1", "/tmp/a:1"] {
            assert_eq!(parse(path, false), Ok(Listen::Unix("/tmp/a:1".into())));
        }
        for bad in ["", "unix:", "a:b", "1:99999", "host"] {
            assert!(parse(bad, false).is_err(), "{bad}");
        }
    }
}
