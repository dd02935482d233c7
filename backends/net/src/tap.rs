//! TAP interfaces (Documentation/networking/tuntap.rst of the kernel).

use crate::OpenError;
use crate::address::{self, Cidr};
use crate::interface::{Interface, exists, name_of, request};
use crate::port::{Behind, Port};
use nyx_device::{NetBackend, NetLink, NetOffloads, NetQueue};
use nyx_memory::PinnedBuffers;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Length of the header before each frame: `virtio_net_hdr_v1` (Virtio 1.2 §5.1.6).
const HEADER: libc::c_int = 12;
/// Most queues of one interface (MAX_TAP_QUEUES of the kernel).
const MAX_QUEUES: u16 = 256;

const CSUM: libc::c_uint = 0x01;
const TSO4: libc::c_uint = 0x02;
const TSO6: libc::c_uint = 0x04;
const TSO_ECN: libc::c_uint = 0x08;
const USO4: libc::c_uint = 0x20;
const USO6: libc::c_uint = 0x40;

/// Configuration of kind `tap`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapConfig {
    /// The interface, at most 15 bytes. One that does not exist is created, and removed when the
    /// machine ends; `%d` stands for the first free number. By default `nyx%d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Descriptors of a TAP opened by whoever started this process, one per queue, instead of a name.
    #[serde(default, alias = "fd", skip_serializing_if = "Vec::is_empty")]
    pub fds: Vec<i32>,
    /// Queue pairs, 1 by default; with `fds`, as many as there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// The host's own address on this network, with its prefix length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The host's own MAC address on this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Largest payload of a frame, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Set the interface up or down. Unless said, it is set up if that is permitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up: Option<bool>,
}

/// An attached TAP interface.
pub(crate) struct Tap {
    name: String,
    queues: Vec<OwnedFd>,
    pairs: u16,
    offloads: NetOffloads,
    mtu: Option<u16>,
    gone: Arc<AtomicBool>,
}

impl Tap {
    pub(crate) fn open(config: &TapConfig) -> Result<Self, OpenError> {
        // Everything that can be refused is refused before an interface exists.
        let cidr = config
            .address
            .as_deref()
            .map(|text| {
                text.parse::<Cidr>().map_err(|()| {
                    OpenError::field("address", text, "is not an address like 10.1.2.1/24")
                })
            })
            .transpose()?;
        let mac = config
            .mac
            .as_deref()
            .map(|text| {
                address::mac(text).ok_or_else(|| {
                    OpenError::field(
                        "mac",
                        text,
                        "is not a station's address like 52:54:00:12:34:56",
                    )
                })
            })
            .transpose()?;
        if let Some(mtu @ ..68) = config.mtu {
            return Err(OpenError::field(
                "mtu",
                mtu,
                "is below the 68 bytes every link must carry",
            ));
        }
        let (name, queues, created) = if config.fds.is_empty() {
            let name = config.name.as_deref().unwrap_or("nyx%d");
            check_name(name)?;
            let existed = exists(name);
            let (name, queues) = attach(name, config.queues.unwrap_or(1), existed)?;
            (name, queues, !existed)
        } else {
            let (name, queues) = adopt(config)?;
            (name, queues, false)
        };
        let has_header = queues
            .first()
            .is_some_and(|q| features(q).is_ok_and(|flags| flags & libc::IFF_VNET_HDR != 0));
        if has_header {
            for queue in &queues {
                set_int(queue, libc::TUNSETVNETHDRSZ as libc::Ioctl, HEADER)
                    .map_err(|e| OpenError::system(format!("set up TAP `{name}`"), e))?;
            }
        }
        let offloads = queues
            .first()
            .map_or_else(NetOffloads::default, |q| probe(q, has_header));
        let link = Interface::named(&name).map_err(|e| OpenError::system("open a socket", e))?;
        if let Some(mac) = mac {
            link.set_mac(mac)?;
        }
        // Setting it takes rights that reading does not: whoever prepared the interface may have done it.
        if let Some(mtu) = config.mtu
            && !link.mtu().is_ok_and(|present| present == mtu)
        {
            link.set_mtu(mtu)?;
        }
        if let Some(cidr) = cidr {
            link.set_address(cidr)?;
        }
        match config.up {
            Some(up) => link.set_up(up)?,
            None if created => link.set_up(true)?,
            // Prepared by somebody with more rights, who may have left it down for a reason.
            None if !link.is_up().unwrap_or(true) => {
                let _ = link.set_up(true);
            }
            None => {}
        }
        let pairs = u16::try_from(queues.len()).unwrap_or(MAX_QUEUES);
        let mtu = link.mtu().ok();
        Ok(Self {
            name,
            queues,
            pairs,
            offloads,
            mtu,
            gone: Arc::default(),
        })
    }
}

fn check_name(name: &str) -> Result<(), OpenError> {
    // dev_valid_name() of the kernel; IFNAMSIZ counts the terminating NUL.
    let why = if name.len() >= libc::IFNAMSIZ {
        "is longer than 15 bytes: choose a shorter one"
    } else if name.is_empty() || name == "." || name == ".." {
        "is not an interface name: choose another or leave it out"
    } else if name
        .bytes()
        .any(|b| matches!(b, b'/' | b':' | 0) || b.is_ascii_whitespace())
    {
        "has a character that interface names cannot have: use letters, digits, `-` and `_`"
    } else if name.replacen("%d", "", 1).contains('%') {
        "may have one `%d` and no other `%`"
    } else {
        return Ok(());
    };
    Err(OpenError::field("name", name, why))
}

/// Opens `count` queues of the interface `name`, creating it if need be.
fn attach(name: &str, count: u16, existed: bool) -> Result<(String, Vec<OwnedFd>), OpenError> {
    if count == 0 || count > MAX_QUEUES {
        return Err(OpenError::field(
            "queues",
            count,
            "is not between 1 and 256",
        ));
    }
    let plain = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let mut flags = if count > 1 {
        plain | libc::IFF_MULTI_QUEUE
    } else {
        plain
    };
    let mut actual = name.to_owned();
    let mut queues = Vec::with_capacity(count.into());
    while queues.len() < usize::from(count) {
        let queue = open_tun()?;
        match set_interface(&queue, &actual, flags) {
            Ok(name) => {
                actual = name;
                queues.push(queue);
            }
            // An interface made for several queues can only be attached to as such.
            Err(e)
                if e.raw_os_error() == Some(libc::EINVAL)
                    && existed
                    && flags & libc::IFF_MULTI_QUEUE == 0 =>
            {
                flags |= libc::IFF_MULTI_QUEUE;
            }
            Err(e) => return Err(explain(&actual, count, existed, e)),
        }
    }
    Ok((actual, queues))
}

fn open_tun() -> Result<OwnedFd, OpenError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    open("/dev/net/tun", flags, Mode::empty()).map_err(|e| {
        let e = io::Error::from(e);
        let why = match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                "is absent: `sudo modprobe tun` loads the driver (a container must be given the device)"
            }
            Some(libc::EACCES | libc::EPERM) => {
                "may not be opened by this user: `sudo chmod 0666 /dev/net/tun` is how \
                distributions ship it"
            }
            _ => return OpenError::system("open /dev/net/tun", e),
        };
        OpenError::field("device", "/dev/net/tun", why)
    })
}

fn set_interface(queue: &OwnedFd, name: &str, flags: libc::c_int) -> io::Result<String> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF takes a pointer to one `struct ifreq` and writes the name back.
    match unsafe {
        libc::ioctl(
            queue.as_raw_fd(),
            libc::TUNSETIFF as libc::Ioctl,
            std::ptr::from_mut(&mut request),
        )
    } {
        0 => Ok(name_of(&request)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn explain(name: &str, queues: u16, existed: bool, error: io::Error) -> OpenError {
    let multi = if queues > 1 { " multi_queue" } else { "" };
    let why = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => format!(
            "cannot be {} without CAP_NET_ADMIN: run as root, or prepare it with \
            `sudo ip tuntap add dev NAME mode tap user $USER{multi}`, or use `user` networking",
            if existed {
                "attached to, as it belongs to another user,"
            } else {
                "created"
            }
        ),
        Some(libc::EBUSY) => {
            "is in use by another process: end it or choose another name".to_owned()
        }
        Some(libc::EINVAL) if existed && queues > 1 => format!(
            "exists and is not a TAP interface with several queues: create it with \
            `ip tuntap add dev {name} mode tap multi_queue`, or set queues to 1"
        ),
        Some(libc::EINVAL) if existed => {
            "exists and is not a TAP interface: choose another name".to_owned()
        }
        Some(libc::E2BIG) => format!("has too few free queues for queues = {queues}"),
        _ => return OpenError::system(format!("attach to TAP `{name}`"), error),
    };
    OpenError::field("TAP", name, why)
}

/// Takes descriptors that were passed to this process. They are duplicated: the originals stay, so
/// that the machine can be built again from the same configuration.
fn adopt(config: &TapConfig) -> Result<(String, Vec<OwnedFd>), OpenError> {
    if let Some(name) = &config.name {
        return Err(OpenError::field(
            "name",
            name,
            "cannot be given together with fds: drop one",
        ));
    }
    if let Some(queues) = config.queues
        && usize::from(queues) != config.fds.len()
    {
        let why = format!("does not match the {} fds: drop it", config.fds.len());
        return Err(OpenError::field("queues", queues, why));
    }
    let mut name = None;
    let mut adopted = Vec::with_capacity(config.fds.len().min(MAX_QUEUES.into()));
    for &number in &config.fds {
        let refuse = |why: &str| OpenError::field("fds", number, why);
        if number < 0 {
            return Err(refuse("is not a file descriptor"));
        }
        // SAFETY: the number came from outside, so nobody here owns it; whether it is open at all
        // is what the next call finds out, and it duplicates before anything else is done.
        let passed = unsafe { BorrowedFd::borrow_raw(number) };
        let queue = rustix::io::fcntl_dupfd_cloexec(passed, 3)
            .map_err(|_| refuse("is not open: pass the descriptor on to this process"))?;
        let mut answer = request("");
        // SAFETY: TUNGETIFF fills one `struct ifreq`; on anything but a TUN/TAP it fails.
        let asked = unsafe {
            libc::ioctl(
                queue.as_raw_fd(),
                libc::TUNGETIFF as libc::Ioctl,
                std::ptr::from_mut(&mut answer),
            )
        };
        // SAFETY: TUNGETIFF has filled this member.
        let flags = libc::c_int::from(unsafe { answer.ifr_ifru.ifru_flags });
        if asked != 0 || flags & libc::IFF_TAP == 0 {
            return Err(refuse("is not an attached TAP interface"));
        }
        if flags & libc::IFF_NO_PI == 0 {
            return Err(refuse("was opened without IFF_NO_PI: open it with"));
        }
        let own = name_of(&answer);
        if name.get_or_insert_with(|| own.clone()) != &own {
            return Err(refuse("belongs to another interface than the first one"));
        }
        let status = fcntl_getfl(&queue).map_err(|e| OpenError::system("use fds", e))?;
        fcntl_setfl(&queue, status | OFlags::NONBLOCK)
            .map_err(|e| OpenError::system("use fds", e))?;
        adopted.push(queue);
    }
    Ok((name.unwrap_or_default(), adopted))
}

fn features(queue: &OwnedFd) -> io::Result<libc::c_int> {
    let mut answer = request("");
    // SAFETY: TUNGETIFF fills one `struct ifreq`.
    match unsafe {
        libc::ioctl(
            queue.as_raw_fd(),
            libc::TUNGETIFF as libc::Ioctl,
            std::ptr::from_mut(&mut answer),
        )
    } {
        // SAFETY: the call has filled this member.
        0 => Ok(libc::c_int::from(unsafe { answer.ifr_ifru.ifru_flags })),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_int(queue: &OwnedFd, code: libc::Ioctl, mut value: libc::c_int) -> io::Result<()> {
    // SAFETY: the codes used here take a pointer to one int.
    match unsafe { libc::ioctl(queue.as_raw_fd(), code, std::ptr::from_mut(&mut value)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_offload_bits(fd: BorrowedFd<'_>, bits: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its bits as the argument itself.
    match unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETOFFLOAD as libc::Ioctl,
            libc::c_ulong::from(bits),
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Finds out what the kernel can do, and leaves everything off until the guest accepts it.
fn probe(queue: &OwnedFd, has_header: bool) -> NetOffloads {
    use std::os::fd::AsFd;
    if !has_header {
        return NetOffloads::default();
    }
    let can = |bits| set_offload_bits(queue.as_fd(), bits).is_ok();
    let offloads = NetOffloads {
        vnet_header: true,
        checksum: can(CSUM),
        tso4: can(CSUM | TSO4),
        tso6: can(CSUM | TSO6),
        // Linux 6.2.
        uso: can(CSUM | USO4 | USO6),
    };
    let _ = set_offload_bits(queue.as_fd(), 0);
    offloads
}

impl NetBackend for Tap {
    fn offloads(&self) -> NetOffloads {
        self.offloads
    }

    fn queue_pairs(&self) -> u16 {
        self.pairs
    }

    fn take_queues(&mut self) -> io::Result<Vec<Box<dyn NetQueue>>> {
        if self.queues.is_empty() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let queue = |fd| {
            let port = Port::new(fd, Behind::Tap, Arc::clone(&self.gone));
            Box::new(TapQueue {
                port,
                in_service: true,
            }) as Box<dyn NetQueue>
        };
        Ok(std::mem::take(&mut self.queues)
            .into_iter()
            .map(queue)
            .collect())
    }

    fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    fn link(&self) -> NetLink {
        if self.gone.load(Ordering::Relaxed) {
            NetLink::Down
        } else {
            NetLink::Up
        }
    }

    fn describe(&self) -> String {
        format!("tap {}", self.name)
    }
}

struct TapQueue {
    port: Port,
    in_service: bool,
}

impl NetQueue for TapQueue {
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

    fn set_offloads(&mut self, accepted: NetOffloads) -> io::Result<()> {
        let mut bits = 0;
        if accepted.checksum {
            bits |= CSUM;
            for (on, bit) in [
                (accepted.tso4, TSO4 | TSO_ECN),
                (accepted.tso6, TSO6 | TSO_ECN),
                (accepted.uso, USO4 | USO6),
            ] {
                bits |= if on { bit } else { 0 };
            }
        }
        set_offload_bits(self.port.fd(), bits)
    }

    fn set_in_service(&mut self, on: bool) -> io::Result<()> {
        if on == self.in_service {
            return Ok(());
        }
        let mut request = request("");
        let flag = if on {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        // SAFETY: TUNSETQUEUE takes a pointer to one `struct ifreq`.
        match unsafe {
            libc::ioctl(
                self.port.fd().as_raw_fd(),
                libc::TUNSETQUEUE as libc::Ioctl,
                std::ptr::from_mut(&mut request),
            )
        } {
            0 => {
                self.in_service = on;
                Ok(())
            }
            _ => Err(io::Error::last_os_error()),
        }
    }
}
