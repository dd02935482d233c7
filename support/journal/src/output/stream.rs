//! Connections of outputs to peers: made when needed, written with a limit in time.

use super::Stop;
use crate::config::host_and_port;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const CONNECT: Duration = Duration::from_secs(5);
/// How long a peer may take no byte until the connection is given up.
const STALLED: Duration = Duration::from_secs(30);
/// How often a wait looks whether the output is to be closed.
const GLANCE: Duration = Duration::from_millis(250);

/// Where a peer is.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    Unix(PathBuf),
    Udp(String, u16),
    Tcp(String, u16),
}

impl Peer {
    pub(crate) fn new(make: fn(String, u16) -> Self, address: &str, port: Option<u16>) -> Self {
        // The address has been checked.
        let (host, port) = host_and_port(address, port).unwrap_or((address, 0));
        make(host.into(), port)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Udp(host, port) => write!(f, "udp {host}:{port}"),
            Self::Tcp(host, port) => write!(f, "tcp {host}:{port}"),
        }
    }
}

fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{host} has no address"),
        ));
    }
    Ok(addresses)
}

/// Connects to the first address that answers.
pub(crate) fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in resolve(host, port)? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn ready(fd: &impl AsFd, flags: PollFlags, limit: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, flags)];
    let limit = Timespec::try_from(limit).ok();
    match poll(&mut fds, limit.as_ref()) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Waits until `fd` may take bytes.
pub(crate) fn wait_writable(fd: &impl AsFd) -> io::Result<()> {
    ready(fd, PollFlags::OUT, STALLED).map(drop)
}

/// Waits for a socket that is not ready; an error when that takes too long or is to end.
pub(crate) struct Wait<'a> {
    stop: &'a Stop,
    since: Instant,
}

impl<'a> Wait<'a> {
    pub(crate) fn new(stop: &'a Stop) -> Self {
        Self {
            stop,
            since: Instant::now(),
        }
    }

    /// There was progress.
    pub(crate) fn reset(&mut self) {
        self.since = Instant::now();
    }

    pub(crate) fn on(&self, fd: &impl AsFd, flags: PollFlags) -> io::Result<()> {
        loop {
            if ready(fd, flags, GLANCE)? {
                return Ok(());
            }
            // A closing output has waited for a glance; that must do.
            if self.stop.is_set() || self.since.elapsed() > STALLED {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the peer takes no more bytes",
                ));
            }
        }
    }
}

/// Writes all of `bytes` to a socket that does not block.
pub(crate) fn write_all(mut stream: &TcpStream, mut bytes: &[u8], stop: &Stop) -> io::Result<()> {
    let mut wait = Wait::new(stop);
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = bytes.get(count..).unwrap_or_default();
                wait.reset();
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait.on(stream, PollFlags::OUT)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether the peer has closed the connection. Without looking, the first write after that would
/// seem to work and be lost. What the peer sends is thrown away.
fn is_closed(stream: &TcpStream) -> bool {
    let mut bytes = [0_u8; 512];
    // A peer that talks without end is not listened to without end.
    for _ in 0..64 {
        match rustix::net::recv(stream, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return true,
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return false,
            Err(_) => return true,
        }
    }
    false
}

enum Socket {
    Unix(UnixDatagram),
    Udp(UdpSocket),
    Tcp(TcpStream),
}

/// A connection without encryption, made anew when it breaks.
pub(crate) struct Link {
    peer: Peer,
    stop: Stop,
    socket: Option<Socket>,
}

/// Why a frame did not go out.
pub(crate) enum Unsent {
    /// The connection is gone.
    Broken(io::Error),
    /// A datagram cannot be so long.
    TooLong,
}

impl Link {
    pub(crate) fn new(peer: Peer, stop: &Stop) -> Self {
        Self {
            peer,
            stop: stop.clone(),
            socket: None,
        }
    }

    fn open(&self) -> io::Result<Socket> {
        match &self.peer {
            Peer::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                socket.connect(path)?;
                Ok(Socket::Unix(socket))
            }
            Peer::Udp(host, port) => {
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for address in resolve(host, *port)? {
                    let any: SocketAddr = if address.is_ipv4() {
                        ([0, 0, 0, 0], 0).into()
                    } else {
                        ([0_u16; 8], 0).into()
                    };
                    let tried = UdpSocket::bind(any).and_then(|socket| {
                        socket.connect(address)?;
                        socket.set_nonblocking(true)?;
                        Ok(socket)
                    });
                    match tried {
                        Ok(socket) => return Ok(Socket::Udp(socket)),
                        Err(e) => last = e,
                    }
                }
                Err(last)
            }
            Peer::Tcp(host, port) => connect(host, *port).map(Socket::Tcp),
        }
    }

    /// Sends one frame, as one datagram or as bytes of the stream.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<(), Unsent> {
        self.try_send(frame).map_err(|e| {
            let too_long = e.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error());
            if too_long {
                return Unsent::TooLong;
            }
            self.socket = None;
            let message = format!("{}: {e}", self.peer);
            Unsent::Broken(io::Error::new(e.kind(), message))
        })
    }

    fn try_send(&mut self, frame: &[u8]) -> io::Result<()> {
        if let Some(Socket::Tcp(stream)) = &self.socket
            && is_closed(stream)
        {
            self.socket = None;
        }
        if self.socket.is_none() {
            self.socket = Some(self.open()?);
        }
        let Some(socket) = &self.socket else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        match socket {
            Socket::Tcp(stream) => write_all(stream, frame, &self.stop),
            Socket::Unix(socket) => self.datagram(socket, || socket.send(frame)),
            Socket::Udp(socket) => {
                // The first send after a datagram that nobody took reports that, not its own fate.
                let sent = self.datagram(socket, || socket.send(frame));
                match sent {
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                        self.datagram(socket, || socket.send(frame))
                    }
                    sent => sent,
                }
            }
        }
    }

    fn datagram(&self, fd: &impl AsFd, send: impl Fn() -> io::Result<usize>) -> io::Result<()> {
        let wait = Wait::new(&self.stop);
        loop {
            match send() {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait.on(fd, PollFlags::OUT)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}
