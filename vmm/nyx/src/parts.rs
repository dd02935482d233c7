//! Parts of a machine that take more than one word: disks, networks, consoles, host devices.

use nyx_spec::{
    ConsoleConfig, ConsoleDevice, ConsoleKind, DiskConfig, DiskEngine, DiskFormat, MacAddress,
    NetConfig, NetKind, OnEnospc,
};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A disk for [`VmBuilder::disk`](crate::VmBuilder::disk); a path alone is a writable raw image.
///
/// ```
/// use nyx::Disk;
/// let disk = Disk::new("/srv/data.img").read_only().serial("DATA-1").queues(2);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    pub(crate) config: DiskConfig,
    /// The user said so, rather than leaving it open.
    pub(crate) format_is_stated: bool,
}

impl Disk {
    /// The image or block device at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            config: DiskConfig {
                name: None,
                path: path.into(),
                format: DiskFormat::Raw,
                readonly: false,
                serial: None,
                on_enospc: OnEnospc::default(),
                direct: false,
                engine: DiskEngine::Auto,
                block_size: None,
                queues: None,
                queue_size: None,
            },
            format_is_stated: false,
        }
    }

    /// States the format. It is never guessed from what the guest can write; a file name that says
    /// `.qcow2` is refused unless the format is stated.
    #[must_use]
    pub fn format(mut self, format: DiskFormat) -> Self {
        self.config.format = format;
        self.format_is_stated = true;
        self
    }

    /// Names the device; `disk0`, `disk1`, … otherwise.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = Some(name.into());
        self
    }

    /// Refuses writes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.config.readonly = true;
        self
    }

    /// The serial number the guest sees, at most 20 ASCII characters.
    #[must_use]
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.config.serial = Some(serial.into());
        self
    }

    /// Bypasses the host's page cache (`O_DIRECT`).
    #[must_use]
    pub fn direct(mut self) -> Self {
        self.config.direct = true;
        self
    }

    /// How requests reach the kernel.
    #[must_use]
    pub fn engine(mut self, engine: DiskEngine) -> Self {
        self.config.engine = engine;
        self
    }

    /// The logical block size the guest sees: 512 or 4096 bytes.
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.config.block_size = Some(bytes);
        self
    }

    /// Request queues, 1 to 16.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.config.queues = Some(queues);
        self
    }

    /// Entries of each queue, a power of two.
    #[must_use]
    pub fn queue_size(mut self, entries: u16) -> Self {
        self.config.queue_size = Some(entries);
        self
    }

    /// What becomes of the guest when there is no room on the host for what it writes.
    #[must_use]
    pub fn on_enospc(mut self, policy: OnEnospc) -> Self {
        self.config.on_enospc = policy;
        self
    }

    /// The description as a file or the API has it.
    pub fn to_config(&self) -> DiskConfig {
        self.config.clone()
    }
}

impl From<DiskConfig> for Disk {
    fn from(config: DiskConfig) -> Self {
        Self {
            config,
            format_is_stated: true,
        }
    }
}

macro_rules! from_path {
    ($($path:ty)*) => {
        $(impl From<$path> for Disk {
            fn from(path: $path) -> Self {
                Self::new(path)
            }
        })*
    };
}
from_path!(&str String &Path PathBuf &String &PathBuf);

/// A network interface for [`VmBuilder::net`](crate::VmBuilder::net).
///
/// ```
/// use nyx::Net;
/// let net = Net::user().forward("tcp:127.0.0.1:2222:22").mac("52:54:00:12:34:56");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Net {
    pub(crate) config: NetConfig,
    pub(crate) problems: Vec<String>,
}

impl Net {
    fn of(kind: NetKind) -> Self {
        Self {
            config: NetConfig {
                name: None,
                kind,
                tap: None,
                fds: None,
                address: None,
                network: None,
                forward: Vec::new(),
                host_loopback: false,
                mac: None,
                mtu: None,
                queues: None,
            },
            problems: Vec::new(),
        }
    }

    /// A user-mode network stack: needs no privileges.
    pub fn user() -> Self {
        Self::of(NetKind::User)
    }

    /// A TAP interface with a name of the host's choosing; see [`Net::interface`].
    pub fn tap() -> Self {
        Self::of(NetKind::Tap)
    }

    /// A cable to nowhere.
    pub fn null() -> Self {
        Self::of(NetKind::Null)
    }

    /// `tap`: the interface to use or create.
    #[must_use]
    pub fn interface(mut self, name: impl Into<String>) -> Self {
        self.config.tap = Some(name.into());
        self
    }

    /// `tap`: open descriptors of the interface, one per queue pair. They belong to the machine then.
    #[must_use]
    pub fn fds(mut self, fds: impl Into<Vec<i32>>) -> Self {
        self.config.fds = Some(fds.into());
        self
    }

    /// `tap`: address of the host's side, like `10.1.2.1/24`.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.config.address = Some(address.into());
        self
    }

    /// `user`: the guest's network, like `10.0.2.0/24`.
    #[must_use]
    pub fn network(mut self, network: impl Into<String>) -> Self {
        self.config.network = Some(network.into());
        self
    }

    /// `user`: forwards a port of the host, like `tcp:127.0.0.1:8080:80`. May be called again.
    #[must_use]
    pub fn forward(mut self, rule: impl Into<String>) -> Self {
        self.config.forward.push(rule.into());
        self
    }

    /// `user`: lets the guest reach the host's loopback at the gateway's address.
    #[must_use]
    pub fn host_loopback(mut self) -> Self {
        self.config.host_loopback = true;
        self
    }

    /// The Ethernet address, like `52:54:00:12:34:56`; a stable one is made otherwise.
    #[must_use]
    pub fn mac(mut self, mac: impl AsRef<str>) -> Self {
        match MacAddress::from_str(mac.as_ref()) {
            Ok(mac) => self.config.mac = Some(mac),
            Err(why) => self.problems.push(why),
        }
        self
    }

    /// Largest packet in bytes.
    #[must_use]
    pub fn mtu(mut self, bytes: u16) -> Self {
        self.config.mtu = Some(bytes);
        self
    }

    /// Queue pairs, 1 to 8; only TAP interfaces have several.
    #[must_use]
    pub fn queues(mut self, pairs: u16) -> Self {
        self.config.queues = Some(pairs);
        self
    }

    /// Names the device; `net0`, `net1`, … otherwise.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = Some(name.into());
        self
    }

    /// The description as a file or the API has it.
    pub fn to_config(&self) -> NetConfig {
        self.config.clone()
    }
}

impl From<NetConfig> for Net {
    fn from(config: NetConfig) -> Self {
        Self {
            config,
            problems: Vec::new(),
        }
    }
}

/// A console for [`VmBuilder::console`](crate::VmBuilder::console): the first serial one is COM1.
///
/// ```
/// use nyx::Console;
/// let console = Console::socket("/run/user/1000/vm.console").virtio();
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Console {
    pub(crate) config: ConsoleConfig,
}

impl Console {
    fn of(kind: ConsoleKind, path: Option<PathBuf>) -> Self {
        Self {
            config: ConsoleConfig {
                name: None,
                kind,
                path,
                append: false,
                device: ConsoleDevice::Serial,
            },
        }
    }

    /// This process's standard input and output.
    pub fn stdio() -> Self {
        Self::of(ConsoleKind::Stdio, None)
    }

    /// A new pseudo-terminal.
    pub fn pty() -> Self {
        Self::of(ConsoleKind::Pty, None)
    }

    /// A new pseudo-terminal with a symbolic link to it at `path`.
    pub fn pty_at(path: impl Into<PathBuf>) -> Self {
        Self::of(ConsoleKind::Pty, Some(path.into()))
    }

    /// A file that takes the output.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::of(ConsoleKind::File, Some(path.into()))
    }

    /// A listening Unix socket.
    pub fn socket(path: impl Into<PathBuf>) -> Self {
        Self::of(ConsoleKind::Socket, Some(path.into()))
    }

    /// Nothing at the host's end; what the guest prints can still be read with
    /// [`RunningVm::read_serial_output`](crate::RunningVm::read_serial_output).
    pub fn null() -> Self {
        Self::of(ConsoleKind::Null, None)
    }

    /// `file`: appends instead of truncating.
    #[must_use]
    pub fn append(mut self) -> Self {
        self.config.append = true;
        self
    }

    /// A port of the virtio console (hvc0, …) instead of a serial port (ttyS0, …).
    #[must_use]
    pub fn virtio(mut self) -> Self {
        self.config.device = ConsoleDevice::Virtio;
        self
    }

    /// Names the device; `com1`, … otherwise.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = Some(name.into());
        self
    }

    /// The description as a file or the API has it.
    pub fn to_config(&self) -> ConsoleConfig {
        self.config.clone()
    }
}

impl From<ConsoleConfig> for Console {
    fn from(config: ConsoleConfig) -> Self {
        Self { config }
    }
}

/// How a host device that a guest gets is kept apart from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// A domain of its own.
    Strict,
    /// The one domain that all shared devices of this machine are in.
    Shared,
    /// No translation: whoever trusts such a device trusts it with the host.
    Unmanaged,
}

impl Isolation {
    /// The word for it, as documents write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "STRICT",
            Self::Shared => "SHARED",
            Self::Unmanaged => "UNMANAGED",
        }
    }
}

/// What can be given where an isolation is asked for: an [`Isolation`], or its word in any case.
pub trait IntoIsolation {
    /// The isolation, or one sentence about why it is none.
    ///
    /// # Errors
    ///
    /// When the word is unknown.
    fn into_isolation(self) -> Result<Isolation, String>;
}

impl IntoIsolation for Isolation {
    fn into_isolation(self) -> Result<Isolation, String> {
        Ok(self)
    }
}

impl IntoIsolation for &str {
    fn into_isolation(self) -> Result<Isolation, String> {
        [Isolation::Strict, Isolation::Shared, Isolation::Unmanaged]
            .into_iter()
            .find(|isolation| isolation.name().eq_ignore_ascii_case(self))
            .ok_or_else(|| format!("{self:?} is not an isolation; use STRICT, SHARED or UNMANAGED"))
    }
}

/// A PCI function of the host: segment, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciId {
    segment: u16,
    /// Bus in bits 15 to 8, device in 7 to 3, function in 2 to 0: the requester id of PCI Express.
    requester: u16,
}

impl PciId {
    /// The function with requester id `requester` in segment 0: `0x0301` is 03:00.1.
    pub fn new(requester: u16) -> Self {
        Self {
            segment: 0,
            requester,
        }
    }

    /// The requester id.
    pub fn requester(self) -> u16 {
        self.requester
    }
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [bus, devfn] = self.requester.to_be_bytes();
        let segment = self.segment;
        write!(
            f,
            "{segment:04x}:{bus:02x}:{:02x}.{}",
            devfn >> 3,
            devfn & 7
        )
    }
}

impl FromStr for PciId {
    type Err = String;

    /// Reads `0000:03:00.1`, `03:00.1`, `0x0301` and `0301`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || {
            format!("{text:?} is not a PCI function; write it like 0000:03:00.0, 03:00.0 or 0x0300")
        };
        let hex = |digits: &str, most: usize| {
            let fine = !digits.is_empty()
                && digits.len() <= most
                && digits.bytes().all(|b| b.is_ascii_hexdigit());
            fine.then(|| u16::from_str_radix(digits, 16).ok())
                .flatten()
                .ok_or_else(refused)
        };
        let Some((front, function)) = text.split_once('.') else {
            let digits = text.strip_prefix("0x").unwrap_or(text);
            return hex(digits, 4).map(Self::new);
        };
        let (front, device) = front.rsplit_once(':').ok_or_else(refused)?;
        let (segment, bus) = front.rsplit_once(':').unwrap_or(("0", front));
        let (segment, bus) = (hex(segment, 4)?, hex(bus, 2)?);
        let (device, function) = (hex(device, 2)?, hex(function, 1)?);
        if device > 31 || function > 7 {
            return Err(refused());
        }
        Ok(Self {
            segment,
            requester: bus << 8 | device << 3 | function,
        })
    }
}

/// What can be given where a PCI function is asked for: a [`PciId`], a requester id like `0x0300`, or text.
pub trait IntoPciId {
    /// The function, or one sentence about why it is none.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn into_pci_id(self) -> Result<PciId, String>;
}

impl IntoPciId for PciId {
    fn into_pci_id(self) -> Result<PciId, String> {
        Ok(self)
    }
}

impl IntoPciId for u16 {
    fn into_pci_id(self) -> Result<PciId, String> {
        Ok(PciId::new(self))
    }
}

impl IntoPciId for i32 {
    fn into_pci_id(self) -> Result<PciId, String> {
        u16::try_from(self)
            .map(PciId::new)
            .map_err(|_| format!("{self:#x} is not a PCI function; a requester id has 16 bits"))
    }
}

impl IntoPciId for &str {
    fn into_pci_id(self) -> Result<PciId, String> {
        self.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_functions_are_read_in_every_form() {
        for text in ["0000:03:00.1", "03:00.1", "0x0301", "0301", "3:0.1"] {
            let id: PciId = text.parse().unwrap();
            assert_eq!(
                (id.requester(), id.to_string().as_str()),
                (0x301, "0000:03:00.1")
            );
        }
        // Not bus 26, device 2, as one document has it.
        assert_eq!(PciId::new(0x1a02).to_string(), "0000:1a:00.2");
        assert_eq!(
            "0001:1a:1f.7".parse::<PciId>().unwrap().to_string(),
            "0001:1a:1f.7"
        );
        for text in [
            "",
            "x",
            "03:20.0",
            "03:00.8",
            "03:00",
            "30000",
            "+300",
            "1:2:3:4.0",
            "gpu",
        ] {
            let refused = text.parse::<PciId>().unwrap_err();
            assert!(refused.contains(&format!("{text:?}")), "{refused}");
        }
        assert_eq!(0x0300.into_pci_id(), Ok(PciId::new(0x300)));
        assert!((-1).into_pci_id().is_err());
    }

    #[test]
    fn isolations_are_read_in_any_case() {
        assert_eq!("strict".into_isolation(), Ok(Isolation::Strict));
        assert_eq!("SHARED".into_isolation(), Ok(Isolation::Shared));
        assert_eq!(
            Isolation::Unmanaged.into_isolation(),
            Ok(Isolation::Unmanaged)
        );
        assert!("soft".into_isolation().unwrap_err().contains("STRICT"));
    }
}
