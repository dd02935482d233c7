//! All that is known of a machine that shall be explained: plain data, gathered by others.

use crate::stages::Reached;
use serde::{Deserialize, Serialize};

/// How a machine ended, or that it has not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Outcome {
    /// It was never started.
    Refused {
        /// The sentence that said so.
        error: String,
    },
    /// It still runs.
    Running {
        /// For how long, in milliseconds.
        for_ms: u64,
        /// How long its consoles have been silent, in milliseconds (since the start if they never spoke).
        silent_ms: u64,
    },
    /// The guest switched itself off.
    PoweredOff,
    /// Somebody stopped it.
    Stopped,
    /// The guest said through pvpanic that it panicked.
    GuestPanicked,
    /// A vCPU shut down (triple fault).
    TripleFault {
        /// Which one.
        vcpu: u32,
    },
    /// The machine could not go on.
    Broken {
        /// Why.
        why: String,
    },
    /// The VMM process is gone and did not say how the machine ended.
    Vanished {
        /// The signal that ended it, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// Its exit code, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
    },
}

impl Outcome {
    /// A sentence without a subject: `was stopped from outside`.
    pub fn words(&self) -> String {
        match self {
            Self::Refused { error } => format!("was not started: {error}"),
            Self::Running { for_ms, silent_ms } => format!(
                "has been running for {}; its consoles have been silent for {}",
                crate::render::duration(for_ms.saturating_mul(1_000_000)),
                crate::render::duration(silent_ms.saturating_mul(1_000_000)),
            ),
            Self::PoweredOff => "switched itself off".into(),
            Self::Stopped => "was stopped from outside".into(),
            Self::GuestPanicked => "panicked (it said so through pvpanic)".into(),
            Self::TripleFault { vcpu } => format!("ended when vCPU {vcpu} gave up (triple fault)"),
            Self::Broken { why } => format!("could not go on: {why}"),
            Self::Vanished {
                signal: Some(signal),
                ..
            } => format!("vanished: signal {signal} ended its VMM process"),
            Self::Vanished {
                code: Some(code), ..
            } => format!("vanished: its VMM process ended with exit code {code}"),
            Self::Vanished { .. } => "vanished: its VMM process is gone".into(),
        }
    }
}

/// What one console said: the first of it and the last of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    /// The unit's name: `com1`.
    pub name: String,
    /// The guest's name for it: `ttyS0`, `hvc0`; empty if it has none.
    pub device: String,
    /// The first that was said.
    pub head: String,
    /// The last that was said, where it is not in `head`.
    #[serde(default)]
    pub tail: String,
    /// Bytes between the two that were not kept.
    #[serde(default)]
    pub lost_bytes: u64,
    /// Line feeds among them.
    #[serde(default)]
    pub lost_lines: u64,
    /// Line feeds said before the machine was last reset.
    #[serde(default)]
    pub boot_line: u64,
}

/// One device of the machine, as the plan, the device itself and the host know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The unit's name: `disk0`.
    pub name: String,
    /// Its kind: `virtio-blk`, `virtio-net`, `serial`, …
    pub kind: String,
    /// The guest's name for it where that is fixed by its position: `vda`, `ttyS0`, `hvc0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// The host's end: an image, an interface, a kind of console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The host's interface that its frames pass, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Ethernet address, for a network device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Where it is attached to PCI: `00:02.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// How often a guest driver took it into use (reached DRIVER_OK), where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<u64>,
    /// Frames it handed to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_guest: Option<u64>,
    /// Frames the guest sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_guest: Option<u64>,
    /// Requests that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<u64>,
}

/// What was built: the facts of the plan that matter to a boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// The kernel's path.
    pub kernel: String,
    /// The initial RAM disk's path.
    pub initrd: Option<String>,
    /// The whole kernel command line.
    pub cmdline: String,
    /// Guest memory in bytes; 0 if not known.
    pub memory: u64,
    /// Number of vCPUs; 0 if not known.
    pub cpus: u32,
    /// Whether virtio devices are attached by PCI.
    pub has_pci: bool,
    /// Devices, in the plan's order.
    pub devices: Vec<Device>,
}

/// A network interface of the host that a device's frames pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it exists.
    pub exists: bool,
    /// Whether it is up for its administrator (`IFF_UP`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_up: Option<bool>,
    /// Whether it has a carrier: for a TAP, whether a process holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<bool>,
    /// Frames that went towards the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_guest: Option<u64>,
    /// Frames that came from the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_guest: Option<u64>,
}

/// What the host's neighbour table says of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum NeighbourState {
    /// Asked, not answered.
    Incomplete,
    /// Answered.
    Resolved {
        /// By this Ethernet address.
        mac: String,
    },
}

/// An address asked for on the host's side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The address.
    pub address: String,
    /// The interface on which it was asked for.
    pub interface: String,
    /// What came of it.
    pub state: NeighbourState,
    /// The Ethernet address that should answer, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
}

/// What came of a connection to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Accepted.
    Open,
    /// Refused (ECONNREFUSED).
    Refused,
    /// No way there (EHOSTUNREACH, ENETUNREACH).
    Unreachable,
    /// Nothing within the time given.
    TimedOut,
}

/// A connection that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Address and port.
    pub target: String,
    /// What came of it.
    pub answer: Answer,
}

/// What the host sees; all of it optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// KVM runs the guest's kernel by emulation, not on the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_slow_kvm: Option<bool>,
    /// Interfaces behind the machine's network devices.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// What the neighbour table says.
    #[serde(default)]
    pub neighbours: Vec<Neighbour>,
    /// Connections that were tried.
    #[serde(default)]
    pub probes: Vec<Probe>,
}

/// Everything together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scene {
    /// What was built.
    pub machine: Machine,
    /// How it ended.
    pub outcome: Outcome,
    /// How often it was reset.
    #[serde(default)]
    pub resets: u64,
    /// How long its consoles had been silent when it ended, in milliseconds, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_ms: Option<u64>,
    /// What its consoles said.
    #[serde(default)]
    pub consoles: Vec<Console>,
    /// What the VMM had to complain about: faults of devices, errors of the journal; oldest first.
    #[serde(default)]
    pub errors: Vec<String>,
    /// What the host sees.
    #[serde(default)]
    pub host: Host,
    /// The stages it reached, in order.
    #[serde(default)]
    pub stages: Vec<Reached>,
}

impl Default for Scene {
    fn default() -> Self {
        Self {
            machine: Machine::default(),
            outcome: Outcome::Stopped,
            resets: 0,
            silent_ms: None,
            consoles: Vec::new(),
            errors: Vec::new(),
            host: Host::default(),
            stages: Vec::new(),
        }
    }
}
