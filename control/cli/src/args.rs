//! The command line. It says the same as the file, in flags.

use clap::{Args, Parser, Subcommand};
use nyx_spec::{
    BootConfig, ByteSize, ConsoleConfig, Cpus, DebugConsoleConfig, DiskConfig, HugePageSize,
    MemoryConfig, MemoryValue, NetConfig, Rng, Transport, VmConfig, VsockConfig, parse_json,
    parse_options, parse_toml,
};
use std::path::{Path, PathBuf};

/// Virtual machines on Linux/KVM.
#[derive(Parser)]
#[command(
    name = "nyx",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
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
}

#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Print how long each stage of the start took
    #[arg(long)]
    pub(crate) timing: bool,
}

#[derive(Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Print the plan as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Write each ACPI table to a file in this folder (for iasl)
    #[arg(long, value_name = "DIR")]
    pub(crate) acpi: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// Print the findings as JSON
    #[arg(long)]
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
    /// Disk: PATH[,readonly][,format=raw][,serial=S][,direct][,queues=N][,engine=auto|io_uring|threads][,block-size=512|4096][,name=N]
    #[arg(long, value_name = "DISK")]
    disk: Vec<String>,
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
