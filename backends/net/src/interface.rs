//! The host's side of a TAP interface: address, MTU, up or down (netdevice(7)).

use crate::OpenError;
use crate::address::{Cidr, netmask};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

/// A host interface, by name.
pub(crate) struct Interface {
    name: String,
    socket: OwnedFd,
}

/// `struct in6_ifreq` (linux/ipv6.h).
#[repr(C)]
struct In6Request {
    address: libc::in6_addr,
    prefix: u32,
    index: libc::c_int,
}

/// A request about the interface `name`; longer names are cut, so check before.
pub(crate) fn request(name: &str) -> libc::ifreq {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let last = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..last].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// The name in a request that the kernel has answered.
pub(crate) fn name_of(request: &libc::ifreq) -> String {
    let bytes = request
        .ifr_name
        .iter()
        .map(|c| *c as u8)
        .take_while(|b| *b != 0)
        .collect();
    String::from_utf8(bytes).unwrap_or_default()
}

pub(crate) fn exists(name: &str) -> bool {
    socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .is_ok_and(|socket| rustix::net::netdevice::name_to_index(&socket, name).is_ok())
}

impl Interface {
    pub(crate) fn named(name: &str) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self {
            name: name.to_owned(),
            socket,
        })
    }

    fn ask(&self, code: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: every code used in this module takes a pointer to one `struct ifreq`.
        match unsafe { libc::ioctl(self.socket.as_raw_fd(), code, std::ptr::from_mut(request)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Largest payload of a frame, in bytes.
    pub(crate) fn mtu(&self) -> io::Result<u16> {
        let mut request = request(&self.name);
        self.ask(libc::SIOCGIFMTU as libc::Ioctl, &mut request)?;
        // SAFETY: SIOCGIFMTU has filled this member.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    pub(crate) fn set_mtu(&self, mtu: u16) -> Result<(), OpenError> {
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_mtu = mtu.into();
        self.ask(libc::SIOCSIFMTU as libc::Ioctl, &mut request)
            .map_err(|e| self.explain("mtu", mtu.to_string(), e, &format!("mtu {mtu}")))
    }

    pub(crate) fn set_mac(&self, mac: [u8; 6]) -> Result<(), OpenError> {
        let mut request = request(&self.name);
        let mut address = libc::sockaddr {
            sa_family: libc::ARPHRD_ETHER,
            sa_data: [0; 14],
        };
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_hwaddr = address;
        let text = mac.map(|octet| format!("{octet:02x}")).join(":");
        self.ask(libc::SIOCSIFHWADDR as libc::Ioctl, &mut request)
            .map_err(|e| self.explain("mac", text.clone(), e, &format!("address {text}")))
    }

    pub(crate) fn is_up(&self) -> io::Result<bool> {
        let mut request = request(&self.name);
        self.ask(libc::SIOCGIFFLAGS as libc::Ioctl, &mut request)?;
        // SAFETY: SIOCGIFFLAGS has filled this member.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok(libc::c_int::from(flags) & libc::IFF_UP != 0)
    }

    pub(crate) fn set_up(&self, up: bool) -> Result<(), OpenError> {
        let word = if up { "up" } else { "down" };
        let set = || {
            let mut request = request(&self.name);
            self.ask(libc::SIOCGIFFLAGS as libc::Ioctl, &mut request)?;
            // SAFETY: SIOCGIFFLAGS has filled this member.
            let flags = unsafe { request.ifr_ifru.ifru_flags };
            let bit = libc::IFF_UP as libc::c_short;
            request.ifr_ifru.ifru_flags = if up { flags | bit } else { flags & !bit };
            self.ask(libc::SIOCSIFFLAGS as libc::Ioctl, &mut request)
        };
        set().map_err(|e| self.explain("up", up.to_string(), e, word))
    }

    /// Gives the host an address on this network.
    pub(crate) fn set_address(&self, cidr: Cidr) -> Result<(), OpenError> {
        let text = format!("{}/{}", cidr.address, cidr.prefix);
        let set = || match cidr.address {
            IpAddr::V4(address) => {
                let mut request = request(&self.name);
                request.ifr_ifru.ifru_addr = sockaddr(address);
                self.ask(libc::SIOCSIFADDR as libc::Ioctl, &mut request)?;
                request.ifr_ifru.ifru_netmask = sockaddr(netmask(cidr.prefix));
                self.ask(libc::SIOCSIFNETMASK as libc::Ioctl, &mut request)
            }
            IpAddr::V6(address) => {
                let index = rustix::net::netdevice::name_to_index(&self.socket, &self.name)?;
                let flags = SocketFlags::CLOEXEC;
                let socket = socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, None)?;
                let mut request = In6Request {
                    address: libc::in6_addr {
                        s6_addr: address.octets(),
                    },
                    prefix: cidr.prefix.into(),
                    index: index.cast_signed(),
                };
                // SAFETY: on an IPv6 socket SIOCSIFADDR takes a `struct in6_ifreq`.
                match unsafe {
                    libc::ioctl(
                        socket.as_raw_fd(),
                        libc::SIOCSIFADDR as libc::Ioctl,
                        std::ptr::from_mut(&mut request),
                    )
                } {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            }
        };
        match set() {
            // The address is there already.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            Err(e) => {
                let by_hand = format!("ip address add {text}");
                Err(self.explain("address", text, e, &by_hand))
            }
            Ok(()) => Ok(()),
        }
    }

    fn explain(
        &self,
        field: &'static str,
        value: String,
        error: io::Error,
        by_hand: &str,
    ) -> OpenError {
        let name = &self.name;
        if error.raw_os_error() != Some(libc::EPERM) {
            return OpenError::system(format!("set {field} {value} of TAP `{name}`"), error);
        }
        let command = match by_hand.strip_prefix("ip ") {
            Some(rest) => format!("sudo ip {rest} dev {name}"),
            None => format!("sudo ip link set dev {name} {by_hand}"),
        };
        let why = format!(
            "cannot be set on TAP `{name}` without CAP_NET_ADMIN: \
            do it before with `{command}` and leave {field} out"
        );
        OpenError::field(field, value, why)
    }
}

fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    // struct sockaddr_in: port, then the address.
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}
