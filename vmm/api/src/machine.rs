//! A machine, as its control socket describes it, and small requests.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Put together, not started.
    Built,
    /// The guest runs.
    Running,
    /// The guest's time stands still.
    Paused,
    /// Being reset.
    Resetting,
    /// It is over; the process is about to end.
    Ended,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 5] = [
        Self::Built,
        Self::Running,
        Self::Paused,
        Self::Resetting,
        Self::Ended,
    ];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Resetting => "resetting",
            Self::Ended => "ended",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a machine's process is found: `vm.json` in its runtime folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineRecord {
    /// Twelve hexadecimal digits, unique to this run of the machine.
    pub id: String,
    /// Its name, which is unique among running machines of this user.
    pub name: String,
    /// The process.
    pub pid: u32,
    /// When it was started.
    pub started: String,
    /// Its control socket.
    pub socket: String,
    /// The version of Nyx that runs it.
    pub version: String,
}

/// When the machine started and for how long the guest has run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Started {
    /// When the process started.
    pub at: String,
    /// Milliseconds since then.
    pub uptime_ms: u64,
    /// Milliseconds of guest time, which stands still while the machine is paused.
    pub guest_ms: u64,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// Twelve hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The process.
    pub pid: u32,
    /// The version of Nyx.
    pub version: String,
    /// What it is doing.
    pub phase: Phase,
    /// Since when.
    pub started: Started,
    /// vCPUs.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory: u64,
    /// The kernel it boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The kernel's command line, as Nyx wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// How often it was reset.
    pub resets: u64,
    /// Its disks, nets and other devices that have a name of the user's.
    pub devices: Vec<DeviceDescription>,
    /// Its consoles.
    pub consoles: Vec<ConsoleDescription>,
    /// Where a debugger may connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gdb: Option<String>,
    /// Operations that are under way.
    pub operations: Vec<crate::Operation>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceDescription {
    /// Its name: what `DELETE` takes.
    pub name: String,
    /// `disk`, `net`, `console`, `rng`, `vsock`.
    pub kind: String,
    /// Where the guest finds it: `00:03.0`, or a memory window.
    pub location: String,
    /// What it stands on: a path, an interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Whether it can be removed while the machine runs.
    pub removable: bool,
}

/// A console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsoleDescription {
    /// Its name: what to attach to.
    pub name: String,
    /// What it is connected to besides: `stdio`, `pty`, `file`, `socket`, `null`.
    pub kind: String,
    /// Who is attached over the control socket.
    pub attached: u32,
}

/// How to stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// How many seconds the guest has to switch itself off after the power button was pressed; then
    /// the plug is pulled, in order: what it has written is written. 0 pulls it at once. At most 86400.
    #[serde(default = "thirty")]
    #[schema(minimum = 0, maximum = 86400, default = 30)]
    pub timeout: u32,
}

fn thirty() -> u32 {
    30
}

impl Default for StopRequest {
    fn default() -> Self {
        Self { timeout: thirty() }
    }
}

/// How to remove a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Removal {
    /// Take it away even if the guest does not let go of it.
    #[serde(default)]
    pub force: bool,
}

/// An entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Counts up.
    pub sequence: u64,
    /// When.
    pub time: String,
    /// `trace`, `debug`, `info`, `warn`, `error`, `fatal`.
    pub level: String,
    /// Who.
    pub component: String,
    /// What.
    pub message: String,
    /// More of it.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub fields: std::collections::BTreeMap<String, serde_json::Value>,
}

/// Which entries the journal takes: `*=info,device=debug`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogFilter {
    /// Component and level, comma-separated; `*` is any component.
    #[schema(max_length = 4096, example = "*=info,device=debug")]
    pub filter: String,
}

/// Whether spans are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tracing {
    /// They are.
    pub enabled: bool,
}

/// Whether all is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `healthy`, `degraded`, `unhealthy`.
    pub status: String,
    /// Each check with its result.
    #[schema(value_type = Object)]
    pub checks: serde_json::Value,
}

/// A vCPU at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VcpuState {
    /// Which.
    pub index: u32,
    /// Registers by name, and what the vCPU does.
    #[schema(value_type = Object)]
    pub registers: serde_json::Value,
    /// Bytes from the stack pointer on, as hexadecimal digits, as far as they are mapped and were asked for.
    pub stack: String,
}

/// Where to listen for a debugger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GdbRequest {
    /// `PORT`, `HOST:PORT` on this host's loopback, or `unix:PATH`; a socket in the machine's runtime folder by default.
    #[serde(default)]
    #[schema(max_length = 256)]
    pub listen: Option<String>,
}

/// Where a debugger may connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GdbAddress {
    /// What gdb's `target remote` takes.
    pub address: String,
}
