//! The validated form, and how it is made.

use crate::config::{
    BootConfig, ConsoleConfig, ConsoleDevice, ConsoleKind, Cpus, DiskConfig, DiskEngine,
    DiskFormat, HugePageSize, MacAddress, NetConfig, NetKind, OnEnospc, Rng, Transport, VmConfig,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A problem with a description: which field, and one sentence with the mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// Path of the field: `disks[0].path`.
    pub field: String,
    /// What is wrong with which value, and how to mend it.
    pub reason: String,
}

/// vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSpec {
    /// How many in all.
    pub count: u32,
    /// Sockets.
    pub sockets: u32,
    /// Cores in a socket.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

/// Guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySpec {
    /// Bytes.
    pub size: u64,
    /// Huge pages behind it.
    pub huge_pages: HugePageSize,
    /// Shared with other processes.
    pub shared: bool,
    /// Commit every page before the guest starts.
    pub prefault: bool,
}

/// What to boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSpec {
    /// Kernel.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Command line as the user gave it.
    pub cmdline: String,
}

/// What a device is to the machine as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Part of the platform.
    Platform,
    /// A serial port: number, port and interrupt.
    Serial {
        /// 0 for COM1.
        number: u8,
        /// Base port.
        port: u16,
        /// ISA interrupt.
        irq: u32,
    },
    /// A virtio console.
    VirtioConsole,
    /// A disk.
    Disk(DiskRole),
    /// Anything else.
    Other,
}

/// What is known of a disk for choosing the root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRole {
    /// Position among the disks: 0 is the guest's `vda`.
    pub index: u32,
    /// Image.
    pub path: PathBuf,
    /// Refuses writes.
    pub readonly: bool,
}

/// One device: a kind and that kind's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Unit name; unique, stable for the life of the VM.
    pub name: String,
    /// Tag of the kind in the catalogue.
    pub kind: String,
    /// The kind's own configuration.
    pub config: Value,
    /// What it is to the machine.
    pub role: Role,
    /// Where in the description it comes from.
    pub field: String,
}

/// A validated machine: what it is, not where things are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Name.
    pub name: String,
    /// vCPUs.
    pub cpus: CpuSpec,
    /// Guest memory.
    pub memory: MemorySpec,
    /// What to boot.
    pub boot: BootSpec,
    /// How virtio devices are attached.
    pub transport: Transport,
    /// Devices beyond the platform's own, in order.
    pub devices: Vec<DeviceSpec>,
}

/// Smallest guest memory: enough for a kernel to start and fail in words.
const MIN_MEMORY: u64 = 4 << 20;
const PAGE: u64 = 4096;
/// COM3 and COM4 traditionally share the interrupts of COM1 and COM2, which edge-triggered wires do
/// not survive; they get free ones, and ACPI says which.
const SERIAL_PORTS: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 5), (0x2e8, 7)];

#[derive(Default)]
struct Problems(Vec<SpecError>);

impl Problems {
    fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.0.push(SpecError {
            field: field.into(),
            reason: reason.into(),
        });
    }
}

impl VmConfig {
    /// Applies defaults and checks everything that can be checked without touching the host.
    /// Reports all problems at once.
    pub fn validate(&self) -> Result<VmSpec, Vec<SpecError>> {
        let mut problems = Problems::default();
        let name = self.name.clone().unwrap_or_else(|| "nyx".into());
        check_name("name", &name, &mut problems);
        let cpus = cpus(&self.cpus, &mut problems);
        let memory = memory(self, &mut problems);
        let boot = boot(&self.boot, &mut problems);
        let mut devices = Vec::new();
        for (index, disk) in self.disks.iter().enumerate() {
            let field = format!("disks[{index}]");
            devices.push(disk_device(field, index, disk, cpus, &mut problems));
        }
        for (index, net) in self.nets.iter().enumerate() {
            let field = format!("nets[{index}]");
            devices.push(net_device(field, index, net, &name, &mut problems));
        }
        match &self.rng {
            Rng::Flag(false) => {}
            Rng::Flag(true) => devices.push(rng_device(None)),
            Rng::Table(table) => devices.push(rng_device(table.name.clone())),
        }
        if let Some(vsock) = &self.vsock {
            if vsock.cid < 3 || vsock.cid == u32::MAX {
                problems.add(
                    "vsock.cid",
                    format!("{} is reserved; use 3 to 4294967294", vsock.cid),
                );
            }
            devices.push(DeviceSpec {
                name: "vsock".into(),
                kind: "virtio-vsock".into(),
                config: json!({ "cid": vsock.cid, "socket": vsock.socket }),
                role: Role::Other,
                field: "vsock".into(),
            });
        }
        // Consoles come last: opening one truncates a file or makes a terminal raw, which should not
        // happen for a machine that is then refused for its disk.
        consoles(self, &mut devices, &mut problems);
        devices
            .iter_mut()
            .for_each(|device| drop_nulls(&mut device.config));
        let mut seen = BTreeSet::new();
        for device in &devices {
            check_name(
                &format!("{}.name", device.field),
                &device.name,
                &mut problems,
            );
            if !seen.insert(device.name.clone()) {
                problems.add(
                    format!("{}.name", device.field),
                    format!(
                        "{:?} is the name of another device; choose another",
                        device.name
                    ),
                );
            }
        }
        match (problems.0.is_empty(), boot) {
            (true, Some(boot)) => Ok(VmSpec {
                name,
                cpus,
                memory,
                boot,
                transport: self.transport,
                devices,
            }),
            _ => Err(problems.0),
        }
    }
}

/// The lowest number whose default name, `prefix` and it, is not `taken`.
fn free_number(prefix: &str, taken: &dyn Fn(&str) -> bool) -> usize {
    (0..)
        .find(|n| !taken(&format!("{prefix}{n}")))
        .unwrap_or_default()
}

/// Checks one device that is described on its own.
fn added(mut device: DeviceSpec, mut problems: Problems) -> Result<DeviceSpec, Vec<SpecError>> {
    drop_nulls(&mut device.config);
    check_name(
        &format!("{}.name", device.field),
        &device.name,
        &mut problems,
    );
    if problems.0.is_empty() {
        Ok(device)
    } else {
        Err(problems.0)
    }
}

/// A disk for a machine that exists already and has vCPUs as `cpus` says. A disk without a name gets
/// the first `diskN` that is not `taken`. Reports all problems at once, with fields under `disk`.
pub fn added_disk(
    disk: &DiskConfig,
    cpus: CpuSpec,
    taken: &dyn Fn(&str) -> bool,
) -> Result<DeviceSpec, Vec<SpecError>> {
    let mut problems = Problems::default();
    let index = free_number("disk", taken);
    let device = disk_device("disk".into(), index, disk, cpus, &mut problems);
    added(device, problems)
}

/// A network device for the machine called `vm`, which exists already. One without a name gets the
/// first `netN` that is not `taken`. Reports all problems at once, with fields under `net`.
pub fn added_net(
    net: &NetConfig,
    vm: &str,
    taken: &dyn Fn(&str) -> bool,
) -> Result<DeviceSpec, Vec<SpecError>> {
    let mut problems = Problems::default();
    let index = free_number("net", taken);
    if net.fds.is_some() {
        let reason = "open file descriptors do not reach a machine that runs; name an interface";
        problems.add("net.fds", reason);
    }
    let device = net_device("net".into(), index, net, vm, &mut problems);
    added(device, problems)
}

/// What the user left open is left to the kind's own defaults.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn check_name(field: &str, name: &str, problems: &mut Problems) {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fine) || name.starts_with('.') {
        problems.add(
            field,
            format!("{name:?} is not a name; use 1 to 64 letters, digits, '.', '_' or '-'"),
        );
    }
}

fn cpus(cpus: &Cpus, problems: &mut Problems) -> CpuSpec {
    let (count, sockets, cores, threads) = match cpus {
        Cpus::Count(count) => (*count, None, None, None),
        Cpus::Table(t) => (t.count, t.sockets, t.cores, t.threads),
    };
    let count = match u32::try_from(count) {
        Ok(0) | Err(_) => {
            problems.add(
                "cpus",
                format!("{count} is not a number of vCPUs; use 1 or more"),
            );
            1
        }
        Ok(count) => count,
    };
    let threads = threads.unwrap_or(1).max(1);
    let sockets = sockets.unwrap_or(1).max(1);
    let cores = cores
        .unwrap_or_else(|| (count / sockets / threads).max(1))
        .max(1);
    // Three factors of 32 bits do not overflow this.
    let product = u128::from(sockets) * u128::from(cores) * u128::from(threads);
    if product != u128::from(count) {
        problems.add(
            "cpus",
            format!(
                "{sockets} sockets of {cores} cores of {threads} threads are {product} vCPUs, not \
                 {count}; make the product equal the count"
            ),
        );
    }
    CpuSpec {
        count,
        sockets,
        cores,
        threads,
    }
}

fn memory(config: &VmConfig, problems: &mut Problems) -> MemorySpec {
    let table = config.memory.table();
    let size = table.size.0;
    if size < MIN_MEMORY {
        let unit = if size <= 1 << 20 {
            format!("; write \"{size}M\" for MiB")
        } else {
            String::new()
        };
        problems.add(
            "memory",
            format!("{size} bytes are too little; use at least 4M{unit}"),
        );
    } else {
        let page = match table.huge_pages {
            HugePageSize::Off | HugePageSize::Transparent => PAGE,
            HugePageSize::Size2M => 2 << 20,
            HugePageSize::Size1G => 1 << 30,
        };
        if !size.is_multiple_of(page) {
            let down = size - size % page;
            problems.add(
                "memory",
                format!("{size} bytes are not a multiple of the {page}-byte page; use {down}"),
            );
        }
    }
    MemorySpec {
        size,
        huge_pages: table.huge_pages,
        shared: table.shared,
        prefault: table.prefault,
    }
}

fn boot(config: &BootConfig, problems: &mut Problems) -> Option<BootSpec> {
    let Some(kernel) = &config.kernel else {
        problems.add(
            "boot.kernel",
            "there is nothing to boot; name a kernel (--kernel PATH)",
        );
        return None;
    };
    Some(BootSpec {
        kernel: kernel.clone(),
        initrd: config.initrd.clone(),
        cmdline: config.cmdline.clone().unwrap_or_default(),
    })
}

/// The backend for the host's end of a console.
fn char_backend(
    field: &str,
    kind: ConsoleKind,
    path: Option<&Path>,
    append: bool,
    problems: &mut Problems,
) -> Value {
    let mut need_path = |what: &str| {
        path.map(Path::to_path_buf).unwrap_or_else(|| {
            problems.add(
                format!("{field}.path"),
                format!("a {what} needs a path (path=PATH)"),
            );
            PathBuf::new()
        })
    };
    match kind {
        ConsoleKind::Stdio => json!({ "kind": "stdio", "config": {} }),
        ConsoleKind::Null => json!({ "kind": "null", "config": {} }),
        ConsoleKind::Pty => json!({ "kind": "pty", "config": { "link": path } }),
        ConsoleKind::File => {
            json!({ "kind": "file", "config": { "path": need_path("file"), "append": append } })
        }
        ConsoleKind::Socket => {
            json!({ "kind": "socket", "config": { "path": need_path("socket") } })
        }
    }
}

fn consoles(config: &VmConfig, devices: &mut Vec<DeviceSpec>, problems: &mut Problems) {
    let default = [ConsoleConfig {
        name: None,
        kind: ConsoleKind::Stdio,
        path: None,
        append: false,
        device: ConsoleDevice::Serial,
    }];
    let consoles = config.consoles.as_deref().unwrap_or(&default);
    let debug_stdio = config
        .debug_console
        .as_ref()
        .is_some_and(|d| d.kind == ConsoleKind::Stdio);
    let on_stdio = consoles
        .iter()
        .filter(|c| c.kind == ConsoleKind::Stdio)
        .count();
    if on_stdio > 1 || (debug_stdio && on_stdio == 1 && config.consoles.is_some()) {
        problems.add(
            "consoles",
            "only one of them can be on stdio; use pty, file or socket",
        );
    }
    let mut serial = 0usize;
    let mut ports = Vec::new();
    for (index, console) in consoles.iter().enumerate() {
        let field = format!("consoles[{index}]");
        // With the debug console on stdio, the default console gives way.
        let kind = match console.kind {
            ConsoleKind::Stdio if debug_stdio => ConsoleKind::Null,
            kind => kind,
        };
        let backend = char_backend(
            &field,
            kind,
            console.path.as_deref(),
            console.append,
            problems,
        );
        match console.device {
            ConsoleDevice::Serial => {
                let Some(&(port, irq)) = SERIAL_PORTS.get(serial) else {
                    problems.add(
                        field,
                        "there are only four serial ports; use device=virtio for more consoles",
                    );
                    continue;
                };
                serial += 1;
                devices.push(DeviceSpec {
                    name: console
                        .name
                        .clone()
                        .unwrap_or_else(|| format!("com{serial}")),
                    kind: "serial".into(),
                    config: json!({ "port": port, "irq": irq, "backend": backend }),
                    role: Role::Serial {
                        number: u8::try_from(serial - 1).unwrap_or(0),
                        port,
                        irq,
                    },
                    field,
                });
            }
            ConsoleDevice::Virtio => ports.push(json!({
                "name": console.name, "backend": backend, "console": true,
            })),
        }
    }
    if !ports.is_empty() {
        devices.push(DeviceSpec {
            name: "console".into(),
            kind: "virtio-console".into(),
            config: json!({ "ports": ports }),
            role: Role::VirtioConsole,
            field: "consoles".into(),
        });
    }
    if let Some(debug) = &config.debug_console {
        let backend = char_backend(
            "debug_console",
            debug.kind,
            debug.path.as_deref(),
            false,
            problems,
        );
        devices.push(DeviceSpec {
            name: "debug-console".into(),
            kind: "debug-console".into(),
            config: json!({ "port": 0xe9, "backend": backend }),
            role: Role::Other,
            field: "debug_console".into(),
        });
    }
}

fn disk_device(
    field: String,
    index: usize,
    disk: &DiskConfig,
    cpus: CpuSpec,
    problems: &mut Problems,
) -> DeviceSpec {
    if disk.path.as_os_str().is_empty() {
        problems.add(
            format!("{field}.path"),
            "it is empty; name an image or a block device",
        );
    }
    if let Some(serial) = disk
        .serial
        .as_ref()
        .filter(|s| s.len() > 20 || !s.is_ascii())
    {
        problems.add(
            format!("{field}.serial"),
            format!("{serial:?} does not fit; use at most 20 ASCII characters"),
        );
    }
    if let Some(size) = disk.block_size.filter(|s| ![512, 4096].contains(s)) {
        problems.add(
            format!("{field}.block_size"),
            format!("{size} is neither 512 nor 4096"),
        );
    }
    if let Some(queues) = disk.queues.filter(|q| !(1..=16).contains(q)) {
        problems.add(
            format!("{field}.queues"),
            format!("{queues} is not within 1 to 16"),
        );
    }
    if let Some(size) = disk.queue_size
        && (!size.is_power_of_two() || !(4..=1024).contains(&size))
    {
        problems.add(
            format!("{field}.queue_size"),
            format!("{size} is not a power of two from 4 to 1024"),
        );
    }
    let DiskFormat::Raw = disk.format;
    let engine = match disk.engine {
        DiskEngine::Auto => "auto",
        DiskEngine::IoUring => "io_uring",
        DiskEngine::Threads => "threads",
    };
    let queues = disk
        .queues
        .unwrap_or_else(|| u16::try_from(cpus.count.min(4)).unwrap_or(4));
    DeviceSpec {
        name: disk.name.clone().unwrap_or_else(|| format!("disk{index}")),
        kind: "virtio-blk".into(),
        config: json!({
            "backend": { "kind": "raw", "config": {
                "path": disk.path, "read_only": disk.readonly, "direct": disk.direct,
                "engine": engine, "block_size": disk.block_size,
            }},
            "queues": queues,
            "queue_size": disk.queue_size.unwrap_or(256),
            "serial": disk.serial,
            "read_only": disk.readonly,
            "hold_without_space": disk.on_enospc == OnEnospc::Pause,
        }),
        role: Role::Disk(DiskRole {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            path: disk.path.clone(),
            readonly: disk.readonly,
        }),
        field,
    }
}

fn net_device(
    field: String,
    index: usize,
    net: &NetConfig,
    vm: &str,
    problems: &mut Problems,
) -> DeviceSpec {
    let name = net.name.clone().unwrap_or_else(|| format!("net{index}"));
    let mut only_for = |what: &str, kind: &str, given: bool, is: bool| {
        if given && !is {
            problems.add(
                format!("{field}.{what}"),
                format!("it is for {kind} networks only"),
            );
        }
    };
    let (is_tap, is_user) = (net.kind == NetKind::Tap, net.kind == NetKind::User);
    only_for("tap", "tap", net.tap.is_some(), is_tap);
    only_for("fds", "tap", net.fds.is_some(), is_tap);
    only_for("address", "tap", net.address.is_some(), is_tap);
    only_for("network", "user", net.network.is_some(), is_user);
    only_for("forward", "user", !net.forward.is_empty(), is_user);
    only_for("host_loopback", "user", net.host_loopback, is_user);
    let pairs = net.queues.unwrap_or(1);
    if !(1..=8).contains(&pairs) {
        problems.add(
            format!("{field}.queues"),
            format!("{pairs} is not within 1 to 8"),
        );
    } else if pairs > 1 && !is_tap {
        problems.add(
            format!("{field}.queues"),
            "only tap networks have several queue pairs",
        );
    }
    if let Some(mtu) = net.mtu.filter(|m| *m < 68) {
        problems.add(
            format!("{field}.mtu"),
            format!("{mtu} is below 68, the least of IPv4"),
        );
    }
    let backend = match net.kind {
        NetKind::Tap => json!({ "kind": "tap", "config": {
            "name": net.tap, "fds": net.fds, "queues": pairs, "address": net.address,
            "mtu": net.mtu,
        }}),
        NetKind::User => json!({ "kind": "user", "config": {
            "network": net.network, "forward": net.forward, "host_loopback": net.host_loopback,
            "mtu": net.mtu,
        }}),
        NetKind::Null => json!({ "kind": "null", "config": {} }),
    };
    let mac = net
        .mac
        .unwrap_or_else(|| MacAddress::stable(&format!("{vm}/{name}")));
    DeviceSpec {
        kind: "virtio-net".into(),
        config: json!({
            "backend": backend, "mac": mac, "mtu": net.mtu, "queue_pairs": pairs,
        }),
        role: Role::Other,
        field,
        name,
    }
}

fn rng_device(name: Option<String>) -> DeviceSpec {
    DeviceSpec {
        name: name.unwrap_or_else(|| "rng".into()),
        kind: "virtio-rng".into(),
        config: json!({}),
        role: Role::Other,
        field: "rng".into(),
    }
}
