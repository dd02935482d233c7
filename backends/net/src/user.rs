//! User-mode networking: slirp4netns(1) as a process of its own, joined by a packet socket.
//!
//! slirp4netns listens on a Unix packet socket (`--target-type=bess`), so neither namespaces nor
//! privileges are needed: one frame is one packet. It starts in a private directory that is gone
//! again once both sides are connected, and ends when a pipe from this process closes, so that it
//! does not outlive even a killed machine.

use crate::OpenError;
use crate::address::{Cidr, netmask};
use crate::port::{Behind, Port};
use nyx_device::{NetBackend, NetLink, NetOffloads, NetQueue};
use nyx_memory::PinnedBuffers;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long slirp4netns may take to start. It takes 5 ms on an idle machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most of an answer or of last words that is read.
const MOST: u64 = 4096;

/// Configuration of kind `user`.
///
/// The guest gets the fifteenth address of the network by DHCP (10.0.2.15); the host is the second
/// (10.0.2.2), a name server the third (10.0.2.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// The guest's network.
    #[serde(default = "default_network")]
    pub network: String,
    /// Ports of the host that lead to the guest: `tcp:127.0.0.1:8080:80`, `udp:5353:53` (the host's
    /// address is 127.0.0.1 unless said), or with the guest's address `tcp:0.0.0.0:22:10.0.2.20:22`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forward: Vec<String>,
    /// Answer name queries at the third address.
    #[serde(default = "yes")]
    pub dns: bool,
    /// Let the guest reach services on the host's own 127.0.0.1 as the second address. Off, because
    /// such services often trust whoever reaches them.
    #[serde(default)]
    pub host_loopback: bool,
    /// Offer IPv6 too.
    #[serde(default)]
    pub ipv6: bool,
    /// Largest payload of a frame, in bytes; at most 65521.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// slirp4netns, where it is not found by its name.
    #[serde(default = "default_program")]
    pub program: PathBuf,
}

fn default_network() -> String {
    "10.0.2.0/24".to_owned()
}

fn default_mtu() -> u16 {
    1500
}

fn default_program() -> PathBuf {
    "slirp4netns".into()
}

fn yes() -> bool {
    true
}

impl Default for UserConfig {
    fn default() -> Self {
        Self {
            network: default_network(),
            forward: Vec::new(),
            dns: true,
            host_loopback: false,
            ipv6: false,
            mtu: default_mtu(),
            program: default_program(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the host that leads to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    protocol: Protocol,
    host: SocketAddrV4,
    guest: SocketAddrV4,
}

impl std::fmt::Display for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} -> {}",
            self.protocol.name(),
            self.host,
            self.guest
        )
    }
}

impl Forward {
    /// Reads `tcp|udp:[HOST:]PORT:[GUEST:]PORT`.
    pub(crate) fn parse(text: &str, guest: Ipv4Addr) -> Option<Self> {
        let mut parts = text.split(':');
        let protocol = match parts.next()? {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        let rest: Vec<&str> = parts.collect();
        let (host, host_port, guest, guest_port) = match rest[..] {
            [host_port, guest_port] => (Ipv4Addr::LOCALHOST, host_port, guest, guest_port),
            [host, host_port, guest_port] => (host.parse().ok()?, host_port, guest, guest_port),
            [host, host_port, guest, guest_port] => (
                host.parse().ok()?,
                host_port,
                guest.parse().ok()?,
                guest_port,
            ),
            _ => return None,
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
        Some(Self {
            protocol,
            host: SocketAddrV4::new(host, port(host_port)?),
            guest: SocketAddrV4::new(guest, port(guest_port)?),
        })
    }
}

/// A directory of our own with nothing in it but sockets; removed on drop.
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn create() -> Result<Self, OpenError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let mut failure = None;
        for base in runtime
            .into_iter()
            .chain([std::env::temp_dir(), "/tmp".into()])
        {
            // The path of a socket in there must fit into 107 bytes.
            if !base.is_absolute() || base.as_os_str().as_bytes().len() > 70 {
                continue;
            }
            for _ in 0..100 {
                let serial = NEXT.fetch_add(1, Ordering::Relaxed);
                let path = base.join(format!("nyx-net-{}-{serial}", std::process::id()));
                match DirBuilder::new().mode(0o700).create(&path) {
                    Ok(()) => return Ok(Self(path)),
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(e) => {
                        failure = Some(e);
                        break;
                    }
                }
            }
        }
        let source = failure.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into());
        Err(OpenError::system(
            "create a directory for the sockets of slirp4netns",
            source,
        ))
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        for name in ["frames", "control"] {
            let _ = std::fs::remove_file(self.0.join(name));
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A running slirp4netns; killed and reaped on drop.
struct Stack {
    child: Child,
    /// slirp4netns ends when this is closed, which the kernel does however we end.
    _alive: OwnedFd,
    words: File,
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stack {
    /// Starts slirp4netns and returns it with the pipe on which it will say that it is ready.
    fn spawn(
        config: &UserConfig,
        sandbox: &[&str],
        directory: &Path,
    ) -> Result<(Self, OwnedFd), OpenError> {
        let system = |e: rustix::io::Errno| OpenError::system("start slirp4netns", e);
        let (ready, ready_there) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
        let (alive_there, alive) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
        let words = memfd_create("words", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(system)?;
        // Both streams append to the same text.
        rustix::fs::fcntl_setfl(&words, OFlags::APPEND).map_err(system)?;
        let words = File::from(words);
        let stream = || {
            words
                .try_clone()
                .map_err(|e| OpenError::system("start slirp4netns", e))
        };
        let mut command = Command::new(&config.program);
        command
            .arg("--target-type=bess")
            .arg(format!("--ready-fd={}", ready_there.as_raw_fd()))
            .arg(format!("--exit-fd={}", alive_there.as_raw_fd()))
            .arg(format!("--mtu={}", config.mtu))
            .arg(format!("--cidr={}", config.network))
            .arg("--api-socket")
            .arg(directory.join("control"))
            .args((!config.host_loopback).then_some("--disable-host-loopback"))
            .args((!config.dns).then_some("--disable-dns"))
            .args(config.ipv6.then_some("--enable-ipv6"))
            .args(sandbox)
            .arg(directory.join("frames"))
            .stdin(Stdio::null())
            .stdout(stream()?)
            .stderr(stream()?)
            // Ctrl-C on the terminal is for the machine, not for its network.
            .process_group(0);
        let keep = [ready_there.as_raw_fd(), alive_there.as_raw_fd()];
        // SAFETY: between fork and exec only system calls are made. Descriptors that somebody left
        // inheritable (a passed TAP) stay here; the two pipe ends go.
        unsafe {
            command.pre_exec(move || {
                libc::syscall(
                    libc::SYS_close_range,
                    3,
                    libc::c_uint::MAX,
                    libc::CLOSE_RANGE_CLOEXEC,
                );
                for fd in keep {
                    if libc::fcntl(fd, libc::F_SETFD, 0) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let program = config.program.display().to_string();
        let child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => OpenError::Absent(program),
            _ => OpenError::system(format!("start {program}"), e),
        })?;
        Ok((
            Self {
                child,
                _alive: alive,
                words,
            },
            ready,
        ))
    }

    /// Connects to the packet socket that slirp4netns is about to listen on.
    fn connect(&mut self, path: &Path, deadline: Instant) -> Result<OwnedFd, String> {
        let address = SocketAddrUnix::new(path).map_err(|e| e.to_string())?;
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .map_err(|e| e.to_string())?;
            match connect(&socket, &address) {
                Ok(()) => return Ok(socket),
                Err(e) if Instant::now() > deadline => {
                    return Err(format!("does not listen: {}", io::Error::from(e)));
                }
                Err(_) => {}
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("ended at once ({status}): {}", self.last_words()));
            }
            // There is nothing to wait on: neither the socket nor its listening announces itself.
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Waits for slirp4netns to say that it is ready.
    fn await_ready(&mut self, ready: OwnedFd, deadline: Instant) -> Result<(), String> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let polled = rustix::io::retry_on_intr(|| {
            let mut fds = [PollFd::new(&ready, PollFlags::IN)];
            poll(&mut fds, Some(&timeout))
        });
        if !matches!(polled, Ok(1)) {
            return Err("did not become ready in time".to_owned());
        }
        let mut byte = [0];
        match File::from(ready).read(&mut byte) {
            Ok(1) => Ok(()),
            _ => {
                // The pipe closed without a word: it has ended or is about to.
                let _ = self.child.kill();
                let _ = self.child.wait();
                Err(format!("gave up: {}", self.last_words()))
            }
        }
    }

    /// The last lines that slirp4netns wrote, as one.
    fn last_words(&self) -> String {
        let len = self.words.metadata().map_or(0, |m| m.len());
        let start = len.saturating_sub(MOST);
        let mut text = vec![0; (len - start) as usize];
        let read = self.words.read_at(&mut text, start).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..read]);
        let lines: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        let last = lines
            .iter()
            .rev()
            .take(3)
            .rev()
            .copied()
            .collect::<Vec<_>>()
            .join("; ");
        if last.is_empty() {
            "it said nothing".to_owned()
        } else {
            last
        }
    }
}

/// Asks slirp4netns for a forward over its control socket.
fn add_forward(control: &Path, forward: Forward) -> Result<(), String> {
    let request = serde_json::json!({
        "execute": "add_hostfwd",
        "arguments": {
            "proto": forward.protocol.name(),
            "host_addr": forward.host.ip().to_string(),
            "host_port": forward.host.port(),
            "guest_addr": forward.guest.ip().to_string(),
            "guest_port": forward.guest.port(),
        },
    });
    let exchange = || -> io::Result<Vec<u8>> {
        let mut socket = UnixStream::connect(control)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(request.to_string().as_bytes())?;
        socket.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        socket.take(MOST).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|e| format!("cannot be set up: {e}"))?;
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
    if answer.get("return").is_some() {
        return Ok(());
    }
    // slirp4netns does not say why; taking the port ourselves does.
    let taken = match forward.protocol {
        Protocol::Tcp => TcpListener::bind(forward.host).map(drop),
        Protocol::Udp => UdpSocket::bind(forward.host).map(drop),
    };
    Err(match taken.map_err(|e| (e.kind(), e)) {
        Err((io::ErrorKind::AddrInUse, _)) => format!(
            "cannot be set up: {} port {} of the host is in use, choose another",
            forward.protocol.name(),
            forward.host
        ),
        Err((io::ErrorKind::PermissionDenied, _)) => {
            "cannot be set up: ports below 1024 need root, choose another".to_owned()
        }
        Err((io::ErrorKind::AddrNotAvailable, _)) => {
            format!(
                "cannot be set up: {} is no address of this host",
                forward.host.ip()
            )
        }
        Err((_, e)) => format!("cannot be set up: {e}"),
        Ok(()) => "was refused by slirp4netns".to_owned(),
    })
}

/// The user-mode network of one machine.
pub(crate) struct User {
    socket: Option<OwnedFd>,
    // Dropped by field order: the socket before its peer, so that the peer sees it close.
    stack: Stack,
    network: String,
    forwards: usize,
    mtu: u16,
    gone: Arc<AtomicBool>,
}

impl User {
    pub(crate) fn open(config: &UserConfig) -> Result<Self, OpenError> {
        let base = check_network(&config.network)?;
        if !(68..=65521).contains(&config.mtu) {
            return Err(OpenError::field(
                "mtu",
                config.mtu,
                "is not between 68 and 65521",
            ));
        }
        let guest = Ipv4Addr::from(u32::from(base).wrapping_add(15));
        let forwards = config
            .forward
            .iter()
            .map(|text| {
                Forward::parse(text, guest).ok_or_else(|| {
                    let why =
                        "is not tcp|udp:[HOST:]PORT:[GUEST:]PORT, as in tcp:127.0.0.1:8080:80";
                    OpenError::field("forward", text, why)
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        // As much confinement as this slirp4netns and this host allow. The mount sandbox joins a
        // user namespace that an unprivileged machine does not have.
        let strict: &[&[&str]] = &[&["--enable-sandbox", "--enable-seccomp"]];
        let plain: &[&[&str]] = &[&["--enable-seccomp"], &[]];
        let strict = if rustix::process::geteuid().is_root() {
            strict
        } else {
            &[]
        };
        let mut failure = None;
        for sandbox in strict.iter().chain(plain) {
            match Self::start(config, sandbox, &forwards) {
                Ok(user) => return Ok(user),
                Err(e @ OpenError::Stack { .. }) => failure = failure.or(Some(e)),
                Err(e) => return Err(e),
            }
        }
        Err(failure.unwrap_or_else(|| OpenError::Absent(config.program.display().to_string())))
    }

    /// Process id of slirp4netns.
    pub(crate) fn pid(&self) -> u32 {
        self.stack.child.id()
    }

    fn start(
        config: &UserConfig,
        sandbox: &[&str],
        forwards: &[Forward],
    ) -> Result<Self, OpenError> {
        let deadline = Instant::now() + PATIENCE;
        let directory = PrivateDirectory::create()?;
        let (mut stack, ready) = Stack::spawn(config, sandbox, &directory.0)?;
        let failed = |why| OpenError::Stack {
            program: config.program.display().to_string(),
            why,
        };
        let socket = stack
            .connect(&directory.0.join("frames"), deadline)
            .map_err(failed)?;
        stack.await_ready(ready, deadline).map_err(failed)?;
        for (forward, text) in forwards.iter().zip(&config.forward) {
            add_forward(&directory.0.join("control"), *forward)
                .map_err(|why| OpenError::field("forward", text, why))?;
        }
        // From here on it may say what it likes, without filling the host's memory.
        let _ = fcntl_add_seals(&stack.words, SealFlags::GROW);
        Ok(Self {
            socket: Some(socket),
            stack,
            network: config.network.clone(),
            forwards: forwards.len(),
            mtu: config.mtu,
            gone: Arc::default(),
        })
    }
}

fn check_network(text: &str) -> Result<Ipv4Addr, OpenError> {
    let refuse = |why: String| Err(OpenError::field("network", text, why));
    let Ok(Cidr {
        address: IpAddr::V4(address),
        prefix,
    }) = text.parse()
    else {
        return refuse("is not an IPv4 network like 10.0.2.0/24".to_owned());
    };
    // The guest is the fifteenth address; slirp4netns takes nothing narrower either.
    if !(8..=25).contains(&prefix) {
        return refuse("must have a prefix length of 8 to 25".to_owned());
    }
    let base = address & netmask(prefix);
    if base != address {
        return refuse(format!("has host bits set: use {base}/{prefix}"));
    }
    Ok(base)
}

impl NetBackend for User {
    fn offloads(&self) -> NetOffloads {
        NetOffloads::default()
    }

    fn queue_pairs(&self) -> u16 {
        1
    }

    fn take_queues(&mut self) -> io::Result<Vec<Box<dyn NetQueue>>> {
        let socket = self.socket.take().ok_or(io::ErrorKind::ResourceBusy)?;
        let port = Port::new(socket, Behind::Socket, Arc::clone(&self.gone));
        Ok(vec![Box::new(UserQueue { port })])
    }

    fn mtu(&self) -> Option<u16> {
        Some(self.mtu)
    }

    fn link(&self) -> NetLink {
        if self.gone.load(Ordering::Relaxed) {
            NetLink::Down
        } else {
            NetLink::Up
        }
    }

    fn describe(&self) -> String {
        match self.forwards {
            0 => format!(
                "user {} (slirp4netns, process {})",
                self.network,
                self.pid()
            ),
            n => format!(
                "user {}, {n} ports forwarded (slirp4netns, process {})",
                self.network,
                self.pid()
            ),
        }
    }
}

struct UserQueue {
    port: Port,
}

impl NetQueue for UserQueue {
    fn fd(&self) -> BorrowedFd<'_> {
        self.port.fd()
    }

    fn receive(&mut self, buffers: &PinnedBuffers) -> io::Result<usize> {
        self.port.receive(buffers)
    }

    fn receive_bytes(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.port.receive_bytes(bytes)
    }

    fn send(&mut self, buffers: &PinnedBuffers) -> io::Result<()> {
        self.port.send(buffers)
    }

    fn set_offloads(&mut self, _: NetOffloads) -> io::Result<()> {
        Ok(())
    }
}
