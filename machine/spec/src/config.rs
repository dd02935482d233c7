//! The wire form: what a TOML or JSON file, the command line and the API say.

use crate::ByteSize;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use utoipa::ToSchema;

/// A virtual machine as its user describes it. Version 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VmConfig {
    /// Name of the machine: letters, digits, `.`, `_` and `-`.
    pub name: Option<String>,
    /// Number of vCPUs, or a table with their topology.
    pub cpus: Cpus,
    /// Size of guest memory, or a table.
    pub memory: MemoryValue,
    /// What to boot.
    pub boot: BootConfig,
    /// How virtio devices are attached.
    pub transport: Transport,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces.
    pub nets: Vec<NetConfig>,
    /// Consoles. Without any, COM1 is on stdin and stdout.
    pub consoles: Option<Vec<ConsoleConfig>>,
    /// A socket device between host and guest.
    pub vsock: Option<VsockConfig>,
    /// An entropy device; on by default.
    pub rng: Rng,
    /// A debug console at port 0xe9.
    pub debug_console: Option<DebugConsoleConfig>,
    /// The journal of the machine's process.
    #[schema(value_type = Option<Object>)]
    pub journal: Option<nyx_journal::JournalConfig>,
}

/// Number of vCPUs or their topology.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Cpus {
    /// This many, one socket of single-threaded cores.
    Count(i64),
    /// In this arrangement.
    Table(CpuConfig),
}

impl Default for Cpus {
    fn default() -> Self {
        Self::Count(1)
    }
}

/// vCPUs and their topology.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// How many in all.
    pub count: i64,
    /// Sockets.
    #[serde(default)]
    pub sockets: Option<u32>,
    /// Cores in a socket.
    #[serde(default)]
    pub cores: Option<u32>,
    /// Threads in a core.
    #[serde(default)]
    pub threads: Option<u32>,
}

/// Size of guest memory or a table about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum MemoryValue {
    /// This much, in ordinary private pages.
    Size(ByteSize),
    /// With options.
    Table(MemoryConfig),
}

impl Default for MemoryValue {
    fn default() -> Self {
        Self::Size(ByteSize(256 << 20))
    }
}

impl MemoryValue {
    /// As a table.
    pub fn table(&self) -> MemoryConfig {
        match self {
            Self::Size(size) => MemoryConfig {
                size: *size,
                ..MemoryConfig::default()
            },
            Self::Table(table) => table.clone(),
        }
    }
}

/// Guest memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// How much.
    pub size: ByteSize,
    /// Huge pages behind it.
    #[serde(default)]
    pub huge_pages: HugePageSize,
    /// Shared (memfd), for vhost-user and the like.
    #[serde(default)]
    pub shared: bool,
    /// Commit every page before the guest starts.
    #[serde(default)]
    pub prefault: bool,
}

/// Huge pages behind guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum HugePageSize {
    /// None.
    #[default]
    #[serde(rename = "off")]
    Off,
    /// Whatever the kernel finds (THP).
    #[serde(rename = "transparent")]
    Transparent,
    /// From the 2 MiB pool.
    #[serde(rename = "2M")]
    Size2M,
    /// From the 1 GiB pool.
    #[serde(rename = "1G")]
    Size1G,
}

/// What to boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BootConfig {
    /// Kernel: a bzImage, or an ELF with a PVH or 64-bit Linux entry.
    #[schema(value_type = Option<String>)]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[schema(value_type = Option<String>)]
    pub initrd: Option<PathBuf>,
    /// Kernel command line. `console=` and `root=` are added when absent.
    pub cmdline: Option<String>,
}

/// How virtio devices are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// As PCI functions.
    #[default]
    Pci,
    /// By memory-mapped windows; the machine has no PCI.
    Mmio,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Name of the device; `disk0`, `disk1`, … by default.
    #[serde(default)]
    pub name: Option<String>,
    /// Image file or block device.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Format of the image. Never guessed.
    #[serde(default)]
    pub format: DiskFormat,
    /// Refuse writes.
    #[serde(default)]
    pub readonly: bool,
    /// Serial number the guest sees, at most 20 bytes.
    #[serde(default)]
    pub serial: Option<String>,
    /// What to do when the host has no room for what the guest writes.
    #[serde(default)]
    pub on_enospc: OnEnospc,
    /// Bypass the host's page cache (O_DIRECT).
    #[serde(default)]
    pub direct: bool,
    /// How requests reach the kernel.
    #[serde(default)]
    pub engine: DiskEngine,
    /// Logical block size shown to the guest: 512 or 4096.
    #[serde(default)]
    pub block_size: Option<u32>,
    /// Request queues; one per vCPU, at most 4, by default.
    #[serde(default)]
    pub queues: Option<u16>,
    /// Entries of each queue.
    #[serde(default)]
    pub queue_size: Option<u16>,
}

/// What to do when the host has no room for what the guest writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnEnospc {
    /// The machine is paused, and the write is tried again when it is resumed.
    #[default]
    Pause,
    /// The guest sees an I/O error.
    Report,
}

/// Format of a disk image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Sector for sector.
    #[default]
    Raw,
}

/// How disk requests reach the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum DiskEngine {
    /// The best that works here.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// io_uring.
    #[serde(rename = "io_uring")]
    IoUring,
    /// Threads.
    #[serde(rename = "threads")]
    Threads,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Name of the device; `net0`, `net1`, … by default.
    #[serde(default)]
    pub name: Option<String>,
    /// What it is attached to.
    pub kind: NetKind,
    /// `tap`: interface to use or create.
    #[serde(default)]
    pub tap: Option<String>,
    /// `tap`: open file descriptors of the interface, one per queue pair.
    #[serde(default)]
    pub fds: Option<Vec<i32>>,
    /// `tap`: address to give the host's side, like `10.1.2.1/24`.
    #[serde(default)]
    pub address: Option<String>,
    /// `user`: guest's network, like `10.0.2.0/24`.
    #[serde(default)]
    pub network: Option<String>,
    /// `user`: ports forwarded to the guest, like `tcp:127.0.0.1:8080:80`.
    #[serde(default)]
    pub forward: Vec<String>,
    /// `user`: let the guest reach services on the host's loopback, at the gateway's address.
    #[serde(default)]
    pub host_loopback: bool,
    /// MAC address; a stable one is made from the machine's and the device's name by default.
    #[serde(default)]
    pub mac: Option<MacAddress>,
    /// Largest packet in bytes that the guest may send.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Queue pairs.
    #[serde(default)]
    pub queues: Option<u16>,
}

/// What a network interface is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetKind {
    /// A user-mode network stack, without privileges.
    User,
    /// A TAP interface.
    Tap,
    /// Nothing.
    Null,
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, pattern = "^[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}$", example = "52:54:00:12:34:56")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// A locally administered unicast address that depends on `seed` only.
    pub fn stable(seed: &str) -> Self {
        // FNV-1a, 64 bits: stable across builds, unlike the standard hasher.
        let hash = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let [a, b, c, ..] = hash.to_be_bytes();
        Self([0x52, 0x54, 0x00, a, b, c])
    }
}

impl FromStr for MacAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| Err(format!("{text:?} is not usable as a MAC address: {why}"));
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            match parts
                .next()
                .filter(|p| p.len() == 2)
                .map(|p| u8::from_str_radix(p, 16))
            {
                Some(Ok(value)) => *byte = value,
                _ => {
                    return refuse("write six pairs of hexadecimal digits, like 52:54:00:12:34:56");
                }
            }
        }
        if parts.next().is_some() {
            return refuse("write six pairs of hexadecimal digits, like 52:54:00:12:34:56");
        }
        if bytes.first().is_some_and(|b| b & 1 != 0) {
            return refuse("it is a group address; make the first byte even");
        }
        if bytes == [0; 6] {
            return refuse("it is all zeroes");
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A console: a terminal and the device the guest drives it by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Name of the device; `com1` … or a port's name by default.
    #[serde(default)]
    pub name: Option<String>,
    /// The host's end.
    pub kind: ConsoleKind,
    /// `file`: where to write; `socket`: where to listen; `pty`: a link to make to the terminal.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// `file`: append instead of truncating.
    #[serde(default)]
    pub append: bool,
    /// The guest's end.
    #[serde(default)]
    pub device: ConsoleDevice,
}

/// The host's end of a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleKind {
    /// This process's stdin and stdout.
    Stdio,
    /// A pseudo-terminal.
    Pty,
    /// A file, for output only.
    File,
    /// A Unix socket.
    Socket,
    /// Nothing.
    Null,
}

/// The guest's end of a console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleDevice {
    /// A 16550 serial port: COM1, COM2, ….
    #[default]
    Serial,
    /// A port of the virtio console: hvc0, hvc1, ….
    Virtio,
}

/// A socket device between host and guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or higher.
    pub cid: u32,
    /// The Unix socket on the host.
    #[schema(value_type = String)]
    pub socket: PathBuf,
}

/// Whether there is an entropy device, or a table about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Rng {
    /// On or off.
    Flag(bool),
    /// With options.
    Table(RngConfig),
}

impl Default for Rng {
    fn default() -> Self {
        Self::Flag(true)
    }
}

/// An entropy device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RngConfig {
    /// Name of the device.
    #[serde(default)]
    pub name: Option<String>,
}

/// A debug console at port 0xe9.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DebugConsoleConfig {
    /// The host's end.
    pub kind: ConsoleKind,
    /// As for a console.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
}
