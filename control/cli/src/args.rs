//! The command line. It says the same as the file, in flags.

use crate::analysis::{AuditVerb, DebugArgs, StackArgs, WhyArgs};
use crate::complete::CompletionArgs;
use crate::console::ConsoleArgs;
use crate::devices::{DiskVerb, NetVerb};
use crate::output::Format;
use crate::ps::PsArgs;
use crate::show::{CancelArgs, InspectArgs, MetricsArgs, NameArgs, TraceArgs};
use crate::steer::{SteerArgs, StopArgs};
use crate::top::TopArgs;
use crate::watch::{EventsArgs, LogFilterArgs, LogsArgs};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use nyx_spec::{
    BootConfig, ByteSize, ConsoleConfig, Cpus, DebugConsoleConfig, DiskConfig, HugePageSize,
    MemoryConfig, MemoryValue, NetConfig, OnEnospc, Rng, Transport, VmConfig, VsockConfig,
    parse_json, parse_options, parse_toml,
};
use std::path::{Path, PathBuf};

/// Virtual machines on Linux/KVM.
#[derive(Parser)]
#[command(
    name = "nyx",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = crate::exit::HELP_OTHERS
)]
pub(crate) struct Cli {
    /// How results and errors are printed
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Run a virtual machine
    #[command(after_help = crate::exit::HELP)]
    Run(RunArgs),
    /// Show what a machine would look like: memory map, slots, interrupts, tables
    Plan(PlanArgs),
    /// Examine this host: what works, what is missing, what that costs, how to mend it. Exit code 1
    /// means that no virtual machine can run
    Doctor(DoctorArgs),
    /// List running machines
    #[command(visible_alias = "list")]
    Ps(PsArgs),
    /// Show what a machine is and does
    Describe(NameArgs),
    /// Join a machine's console: what was said last comes first, Ctrl-A x leaves
    Console(ConsoleArgs),
    /// Make a guest's time stand still
    Pause(SteerArgs),
    /// Let a paused guest go on
    Resume(SteerArgs),
    /// Reset a machine, as its reset button would
    Reset(SteerArgs),
    /// Stop a machine: the power button first, the plug if that does not help in time
    Stop(StopArgs),
    /// End a machine's process at once; what the guest has not yet written is lost
    Kill(SteerArgs),
    /// Press a machine's power button, and leave the rest to the guest
    PowerButton(SteerArgs),
    /// Inject a non-maskable interrupt, to which many kernels answer with a crash dump
    Nmi(SteerArgs),
    /// Add, remove and list disks
    #[command(subcommand)]
    Disk(DiskVerb),
    /// Add, remove and list network devices
    #[command(subcommand)]
    Net(NetVerb),
    /// Watch all machines: processor, exits, disk and network
    Top(TopArgs),
    /// Show a machine's inner state as a tree
    Inspect(InspectArgs),
    /// Show what happened to a machine
    Events(EventsArgs),
    /// Show a machine's journal
    Logs(LogsArgs),
    /// Show or change what a machine's journal records
    LogFilter(LogFilterArgs),
    /// Show a machine's metrics (Prometheus text), its performance report or its samples
    Metrics(MetricsArgs),
    /// Show whether all is well with a machine; exit code 1 when its state is critical
    Health(NameArgs),
    /// List what was asked of a machine and what became of it
    Operations(NameArgs),
    /// Cancel an operation
    Cancel(CancelArgs),
    /// Write a machine's spans as a trace for Perfetto
    Trace(TraceArgs),
    /// Explain why a machine's boot failed, or how far it is
    Why(WhyArgs),
    /// Connect a debugger to a machine's guest
    Debug(DebugArgs),
    /// Show what a guest's processors do: the kernel's stacks with symbols
    Stack(StackArgs),
    /// Examine an audit trail
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Print what completes commands and names in a shell
    Completion(CompletionArgs),
}

/// The verbs as `nyx --help` groups them.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Make machines", &["run", "plan", "doctor"]),
    (
        "Watch them",
        &[
            "ps", "top", "describe", "console", "events", "logs", "metrics", "health", "inspect",
        ],
    ),
    (
        "Steer them",
        &[
            "pause",
            "resume",
            "reset",
            "stop",
            "kill",
            "power-button",
            "nmi",
        ],
    ),
    (
        "Change them",
        &["disk", "net", "log-filter", "operations", "cancel"],
    ),
    ("Find faults", &["why", "debug", "stack", "trace", "audit"]),
    ("Shell", &["completion", "help"]),
];

/// The command line, with its verbs in groups.
pub(crate) fn command() -> clap::Command {
    use std::fmt::Write as _;
    let mut command = Cli::command();
    command.build();
    let mut verbs = String::new();
    for (title, names) in GROUPS {
        // Writing to a String cannot fail.
        let _ = write!(verbs, "\n{title}:\n");
        for name in names {
            let verb = command.find_subcommand(name);
            let about = verb.and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let first = about.split(". ").next().unwrap_or_default();
            let _ = writeln!(verbs, "  {name:<13} {first}");
        }
    }
    Cli::command().help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{verbs}\nOptions:\n{{options}}{{after-help}}"
    ))
}

#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Leave the machine running in the background; `nyx console` joins it
    #[arg(long, conflicts_with = "timing")]
    pub(crate) daemon: bool,
    /// This is the process that stays in the background
    #[arg(long, hide = true)]
    pub(crate) in_background: bool,
    /// Wait for `nyx resume` before the first instruction
    #[arg(long)]
    pub(crate) paused: bool,
    /// Wait for gdb before the first instruction: PORT, HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true, default_missing_value = "1234")]
    pub(crate) gdb: Option<String>,
    /// Least severe level of the journal: trace, debug, info, warn, error, fatal or off
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Levels by component, like device=debug,*=info
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Vec<String>,
    /// Another output of the journal: console, file,path=P[,rotate=daily], syslog[,address=A], network,address=A
    #[arg(long, value_name = "OUTPUT")]
    pub(crate) log_to: Vec<String>,
    /// Signed audit trail: PATH[,fsync=always]
    #[arg(long, value_name = "AUDIT")]
    pub(crate) audit: Option<String>,
    /// Keep spans from the start; `nyx trace` shows them
    #[arg(long)]
    pub(crate) trace: bool,
    /// No control socket: `nyx ps` and the other commands do not find the machine
    #[arg(long, conflicts_with = "daemon")]
    pub(crate) no_api: bool,
    /// Print how long each stage of the start took
    #[arg(long)]
    pub(crate) timing: bool,
}

#[derive(Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The same as `-o json`
    #[arg(long, hide = true)]
    pub(crate) json: bool,
    /// Write each ACPI table to a file in this folder (for iasl)
    #[arg(long, value_name = "DIR")]
    pub(crate) acpi: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// The same as `-o json`
    #[arg(long, hide = true)]
    pub(crate) json: bool,
}

/// A machine: from a file, from flags, or from a file amended by flags.
#[derive(Args)]
pub(crate) struct MachineArgs {
    /// Description of the machine (TOML, or JSON if it ends in .json)
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name of the machine
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Number of vCPUs
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    cpus: Option<i64>,
    /// Guest memory, like 512M or 4G
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Huge pages behind guest memory: off, transparent, 2M or 1G
    #[arg(long, value_name = "SIZE")]
    huge_pages: Option<String>,
    /// Make guest memory shareable (memfd)
    #[arg(long)]
    shared_memory: bool,
    /// Commit all guest memory before the start
    #[arg(long)]
    prefault: bool,
    /// Kernel: bzImage, or ELF with a PVH entry
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// Kernel command line; console= and root= are added when absent
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Disk: PATH[,readonly][,format=raw][,serial=S][,direct][,queues=N][,engine=auto|io_uring|threads][,block-size=512|4096][,on-enospc=pause|report][,name=N]
    #[arg(long, value_name = "DISK")]
    disk: Vec<String>,
    /// When the host has no room for what the guest writes: pause the machine until it is resumed, or report an error
    /// to the guest. For every disk; DISK takes on_enospc= too
    #[arg(long, value_name = "POLICY", value_parser = ["pause", "report"])]
    on_enospc: Option<String>,
    /// Network: user[,forward=tcp:HOST:PORT:GUESTPORT]… or tap[,tap=IFACE][,fds=N] with [,mac=M][,mtu=N][,queues=N][,name=N]
    #[arg(long, value_name = "NET")]
    net: Vec<String>,
    /// Console: stdio, pty[,path=LINK], file,path=P, socket,path=P or null, with [,device=serial|virtio]
    #[arg(long, value_name = "CONSOLE")]
    console: Vec<String>,
    /// Socket device: cid=N,socket=PATH
    #[arg(long, value_name = "VSOCK")]
    vsock: Option<String>,
    /// No entropy device
    #[arg(long)]
    no_rng: bool,
    /// Debug console at port 0xe9: stdio, file,path=P, …
    #[arg(long, value_name = "CONSOLE")]
    debug_console: Option<String>,
    /// No PCI: virtio devices are attached by memory-mapped windows
    #[arg(long)]
    no_pci: bool,
}

impl MachineArgs {
    /// The description that file and flags give together; flags win, lists are appended.
    pub(crate) fn config(&self) -> Result<VmConfig, String> {
        let mut config = match &self.file {
            Some(path) => read(path)?,
            None => VmConfig::default(),
        };
        if self.name.is_some() {
            config.name.clone_from(&self.name);
        }
        if let Some(count) = self.cpus {
            config.cpus = Cpus::Count(count);
        }
        self.memory(&mut config)?;
        let boot: &mut BootConfig = &mut config.boot;
        boot.kernel = self.kernel.clone().or(boot.kernel.take());
        boot.initrd = self.initrd.clone().or(boot.initrd.take());
        boot.cmdline = self.cmdline.clone().or(boot.cmdline.take());
        let flag = |name: &str, e: nyx_spec::ParseError| format!("{name}: {e}");
        for disk in &self.disk {
            let disk: DiskConfig =
                parse_options(disk, "path", &[]).map_err(|e| flag("--disk", e))?;
            config.disks.push(disk);
        }
        if let Some(policy) = &self.on_enospc {
            let policy = match policy.as_str() {
                "report" => OnEnospc::Report,
                _ => OnEnospc::Pause,
            };
            for disk in &mut config.disks {
                disk.on_enospc = policy;
            }
        }
        for net in &self.net {
            let net: NetConfig =
                parse_options(net, "kind", &["forward", "fds"]).map_err(|e| flag("--net", e))?;
            config.nets.push(net);
        }
        for console in &self.console {
            let console: ConsoleConfig =
                parse_options(console, "kind", &[]).map_err(|e| flag("--console", e))?;
            config.consoles.get_or_insert_default().push(console);
        }
        if let Some(vsock) = &self.vsock {
            let vsock: VsockConfig =
                parse_options(vsock, "cid", &[]).map_err(|e| flag("--vsock", e))?;
            config.vsock = Some(vsock);
        }
        if self.no_rng {
            config.rng = Rng::Flag(false);
        }
        if let Some(console) = &self.debug_console {
            let console: DebugConsoleConfig =
                parse_options(console, "kind", &[]).map_err(|e| flag("--debug-console", e))?;
            config.debug_console = Some(console);
        }
        if self.no_pci {
            config.transport = Transport::Mmio;
        }
        Ok(config)
    }

    fn memory(&self, config: &mut VmConfig) -> Result<(), String> {
        let mut table: MemoryConfig = config.memory.table();
        if let Some(size) = &self.memory {
            let bytes: ByteSize = size.parse().map_err(|e| format!("--memory: {e}"))?;
            table.size = bytes;
        }
        if let Some(size) = &self.huge_pages {
            table.huge_pages = match size.as_str() {
                "off" => HugePageSize::Off,
                "transparent" => HugePageSize::Transparent,
                "2M" => HugePageSize::Size2M,
                "1G" => HugePageSize::Size1G,
                other => {
                    return Err(format!(
                        "--huge-pages: {other:?} is not one of off, transparent, 2M, 1G"
                    ));
                }
            };
        }
        table.shared |= self.shared_memory;
        table.prefault |= self.prefault;
        config.memory = MemoryValue::Table(table);
        Ok(())
    }
}

fn read(path: &Path) -> Result<VmConfig, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("{}: cannot be read: {e}", path.display()))?;
    let json = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let parsed = if json {
        parse_json(&text)
    } else {
        parse_toml(&text)
    };
    parsed.map_err(|e| format!("{}: {e}", path.display()))
}
