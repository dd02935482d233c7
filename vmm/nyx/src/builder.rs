//! The fluent builder: the same description as a file, the flags and the API, call by call.

use crate::features::Feature;
use crate::parts::{Console, Disk, IntoIsolation, IntoPciId, Isolation, Net};
use crate::profile::GuestProfile;
use crate::refusal::{BuildError, BuildErrorKind, BuildErrors, invalid, not_yet, promised_format};
use crate::size::IntoSize;
use crate::vm::Vm;
use crate::written;
use nyx_boot::{Initrd, Kernel};
use nyx_journal::{AuditConfig, JournalConfig};
use nyx_spec::{
    ConsoleKind, CpuConfig, Cpus, DebugConsoleConfig, HugePageSize, MemoryConfig, MemoryValue,
    NetKind, ParseError, Rng, RngConfig, Transport, VmConfig, VsockConfig, parse_toml,
};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Hears what the guest prints on its first serial port.
pub(crate) type SerialSink = Arc<Mutex<dyn FnMut(&[u8]) + Send>>;

/// Describes a machine, call by call, and makes it.
///
/// ```no_run
/// use nyx::{SizeUnits, VmBuilder};
///
/// let mut vm = VmBuilder::new()
///     .kernel("/boot/vmlinuz")
///     .cmdline("quiet")
///     .memory(1.gib())
///     .cpus(2)
///     .disk("/srv/root.img")
///     .nic("virtio")
///     .with_metrics()
///     .build()?;
/// let ending = vm.run()?;
/// println!("{ending}\n{}", vm.get_performance_report());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Every call that describes the machine has its counterpart in a file: [`to_toml`](Self::to_toml) and
/// [`from_toml`](Self::from_toml) are each other's undo. What belongs to this process and not to the
/// machine is not in the file: the callback of [`serial`](Self::serial), and metrics, error handling and
/// hot-plug, which `nyx run` always has. [`beyond_the_file`](Self::beyond_the_file) names them.
///
/// A call for what this version of Nyx does not have is refused by name in [`build`](Self::build) and
/// wherever the description is written down; it is never ignored. Nothing that was not asked for is in
/// the machine.
#[derive(Clone, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct VmBuilder {
    config: VmConfig,
    features: BTreeSet<Feature>,
    serial: Option<SerialSink>,
    /// What was asked for and cannot be had, in the order of the calls.
    refused: Vec<BuildError>,
    /// Firmware was asked for, so that a missing kernel is not another mistake.
    wants_firmware: bool,
}

/// The name by which the documents of Nyx know [`VmBuilder`].
pub type ProductionVMBuilder = VmBuilder;
/// Another name by which the documents of Nyx know [`VmBuilder`].
pub type VMBuilder = VmBuilder;

impl fmt::Debug for VmBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmBuilder")
            .field("config", &self.config)
            .field("features", &self.features)
            .field("serial", &self.serial.is_some())
            .field("refused", &self.refused)
            .finish()
    }
}

/// What the machine is.
impl VmBuilder {
    /// A machine with one vCPU, 256 MiB, an entropy device and COM1 on standard input and output.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on from a description.
    pub fn from_config(config: VmConfig) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    /// Goes on from a description in TOML.
    ///
    /// # Errors
    ///
    /// It cannot be read; the sentence names the line, the key and the nearest known one.
    pub fn from_toml(text: &str) -> Result<Self, ParseError> {
        parse_toml(text).map(Self::from_config)
    }

    /// Goes on from a description in a file: TOML, or JSON if its name ends in `.json`.
    ///
    /// # Errors
    ///
    /// It cannot be opened or read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ParseError> {
        let path = path.as_ref();
        let about = |what: String| ParseError(format!("{}: {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| about(e.to_string()))?;
        let config = if path.extension().is_some_and(|e| e == "json") {
            nyx_spec::parse_json(&text)
        } else {
            parse_toml(&text)
        };
        config.map(Self::from_config).map_err(|e| about(e.0))
    }

    /// Takes over the memory, vCPUs, network and firmware that `profile` recommends.
    pub fn profile(self, profile: GuestProfile) -> Self {
        profile.apply(self)
    }

    /// Names the machine: letters, digits, `.`, `_`, `-`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = Some(name.into());
        self
    }

    /// Guest memory: `1.gib()`, a number of bytes, or text like `"4GB"`.
    pub fn memory(mut self, size: impl IntoSize) -> Self {
        match size.into_size() {
            Ok(size) => {
                self.config.memory = match self.config.memory {
                    MemoryValue::Size(_) => MemoryValue::Size(size),
                    MemoryValue::Table(table) => MemoryValue::Table(MemoryConfig { size, ..table }),
                }
            }
            Err(why) => self.refused.push(invalid("memory", why)),
        }
        self
    }

    fn memory_table(mut self, change: impl FnOnce(&mut MemoryConfig)) -> Self {
        let mut table = self.config.memory.table();
        change(&mut table);
        let plain = MemoryConfig {
            size: table.size,
            ..MemoryConfig::default()
        };
        self.config.memory = if table == plain {
            MemoryValue::Size(table.size)
        } else {
            MemoryValue::Table(table)
        };
        self
    }

    /// Huge pages behind guest memory.
    pub fn huge_pages(self, pages: HugePageSize) -> Self {
        self.memory_table(|table| table.huge_pages = pages)
    }

    /// Guest memory in a memfd, for helpers that map it.
    pub fn shared_memory(self, shared: bool) -> Self {
        self.memory_table(|table| table.shared = shared)
    }

    /// Commits every page before the guest starts.
    pub fn prefault(self, prefault: bool) -> Self {
        self.memory_table(|table| table.prefault = prefault)
    }

    fn cpu_table(mut self, change: impl FnOnce(&mut CpuConfig)) -> Self {
        let mut table = match self.config.cpus {
            Cpus::Table(table) => table,
            Cpus::Count(count) => CpuConfig {
                count,
                sockets: None,
                cores: None,
                threads: None,
            },
        };
        change(&mut table);
        self.config.cpus = written::cpus(table);
        self
    }

    /// How many vCPUs.
    pub fn cpus(self, count: u32) -> Self {
        self.cpu_table(|table| table.count = i64::from(count))
    }

    /// How the vCPUs are arranged; the product must be their number.
    pub fn topology(self, sockets: u32, cores: u32, threads: u32) -> Self {
        self.cpu_table(|table| {
            table.sockets = Some(sockets);
            table.cores = Some(cores);
            table.threads = Some(threads);
        })
    }

    /// The kernel to boot: a bzImage, or an ELF with a PVH or 64-bit Linux entry.
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.boot.kernel = Some(path.into());
        self
    }

    /// An initial RAM disk.
    pub fn initrd(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.boot.initrd = Some(path.into());
        self
    }

    /// The kernel's command line. `console=` and `root=` are added when absent.
    pub fn cmdline(mut self, cmdline: impl Into<String>) -> Self {
        self.config.boot.cmdline = Some(cmdline.into());
        self
    }

    /// How virtio devices are attached: as PCI functions, or by memory windows without PCI.
    pub fn transport(mut self, transport: Transport) -> Self {
        self.config.transport = transport;
        self
    }

    /// Adds a disk: a path, or a [`Disk`] with options. The first is the guest's `vda`.
    pub fn disk(mut self, disk: impl Into<Disk>) -> Self {
        let disk = disk.into();
        if !disk.format_is_stated
            && let Some(format) = promised_format(&disk.config.path)
        {
            let path = disk.config.path.display();
            self.refused.push(not_yet(
                "disk",
                &format!("{path}: {format} images are"),
                "convert it to a raw image, or state format(DiskFormat::Raw) if it is one",
            ));
        }
        self.config.disks.push(disk.config);
        self
    }

    /// Adds a network interface by its model: `"virtio"`. It is on a user-mode network; [`net`](Self::net)
    /// says more.
    pub fn nic(mut self, model: &str) -> Self {
        match model.to_ascii_lowercase().as_str() {
            "virtio" | "virtio-net" => return self.net(Net::user()),
            "e1000" | "e1000e" | "rtl8139" => self.refused.push(not_yet(
                "nic",
                &format!("the {model} is"),
                "use nic(\"virtio\")",
            )),
            _ => self.refused.push(invalid(
                "nic",
                format!("{model:?} is not a model; use \"virtio\""),
            )),
        }
        self
    }

    /// Adds a network interface.
    pub fn net(mut self, net: impl Into<Net>) -> Self {
        let net = net.into();
        let problems = net.problems.into_iter().map(|why| invalid("net", why));
        self.refused.extend(problems);
        self.config.nets.push(net.config);
        self
    }

    /// Adds a console. Without any, COM1 is on standard input and output.
    pub fn console(mut self, console: impl Into<Console>) -> Self {
        let list = self.config.consoles.get_or_insert_default();
        list.push(console.into().config);
        self
    }

    /// A machine that has nobody at its consoles: COM1 is there, and its last output is kept.
    pub fn headless(mut self) -> Self {
        self.config.consoles = Some(vec![Console::null().config]);
        self
    }

    /// Calls `sink` with whatever the guest prints on its first serial port, from a thread of its own and
    /// in order. Without another [`console`](Self::console) the port has nothing else at its end.
    ///
    /// A file cannot say this; in [`to_toml`](Self::to_toml) the port has nothing at its end.
    pub fn serial(mut self, sink: impl FnMut(&[u8]) + Send + 'static) -> Self {
        self.serial = Some(Arc::new(Mutex::new(sink)));
        self
    }

    /// A debug console at port 0xe9.
    pub fn debug_console(mut self, kind: ConsoleKind, path: Option<PathBuf>) -> Self {
        self.config.debug_console = Some(DebugConsoleConfig { kind, path });
        self
    }

    /// A socket device: the guest's context id, and the Unix socket on the host.
    pub fn vsock(mut self, cid: u32, socket: impl Into<PathBuf>) -> Self {
        self.config.vsock = Some(VsockConfig {
            cid,
            socket: socket.into(),
        });
        self
    }

    /// An entropy device; there is one unless it is taken away.
    pub fn rng(mut self, present: bool) -> Self {
        self.config.rng = match self.config.rng {
            Rng::Table(table) if present => Rng::Table(table),
            _ => Rng::Flag(present),
        };
        self
    }

    /// Names the entropy device.
    pub fn rng_named(mut self, name: impl Into<String>) -> Self {
        self.config.rng = Rng::Table(RngConfig {
            name: Some(name.into()),
        });
        self
    }
}

/// What is asked of the process around the machine.
impl VmBuilder {
    fn with(mut self, feature: Feature) -> Self {
        self.features.insert(feature);
        self
    }

    /// Keeps the faults that devices report, for [`RunningVm::faults`](crate::RunningVm::faults). Faults
    /// are contained and told as events whether asked for or not.
    pub fn with_error_handling(self) -> Self {
        self.with(Feature::ErrorHandling)
    }

    /// Makes Nyx's journal hear this process's `tracing` events, keep the last 10 000 and write them to
    /// standard error: `device` from DEBUG on, the rest from INFO. Without it the process's own subscriber,
    /// if there is one, hears them.
    pub fn with_logging(self) -> Self {
        let mut journal = JournalConfig::default();
        // A word that it knows.
        let known = journal.add_output("console");
        debug_assert!(known.is_ok());
        self.with_journal(journal)
    }

    /// [`with_logging`](Self::with_logging), as `journal` says: levels, outputs, rotation, audit trail.
    pub fn with_journal(mut self, journal: JournalConfig) -> Self {
        // Asked for before: spans stay asked for.
        let is_tracing = self.is_enabled(Feature::PerformanceTracing);
        let journal = self.config.journal.insert(journal);
        journal.trace.enabled |= is_tracing;
        self
    }

    /// Keeps an audit trail that is signed and cannot be changed unseen, in the file `path`.
    pub fn with_audit_trail(mut self, path: impl Into<PathBuf>) -> Self {
        let journal = self.config.journal.get_or_insert_default();
        journal.audit = Some(AuditConfig::new(path));
        self
    }

    /// [`with_audit_trail`](Self::with_audit_trail), by another name.
    pub fn enable_audit_trail(self, path: impl Into<PathBuf>) -> Self {
        self.with_audit_trail(path)
    }

    /// Gives the machine a control socket, so that `nyx ps`, `nyx console`, `nyx top` and all other
    /// commands find it by its name. `nyx kill` ends the machine and not the program.
    pub fn with_control_socket(self) -> Self {
        self.with(Feature::ControlSocket)
    }

    /// Samples the counters while the machine runs, for
    /// [`get_performance_report`](crate::Vm::get_performance_report).
    pub fn with_metrics(self) -> Self {
        self.with(Feature::Metrics)
    }

    /// Lets disks and networks come and go while the guest runs.
    pub fn with_pci_hotplug(self) -> Self {
        self.with(Feature::PciHotplug)
    }

    /// Keeps spans of boot, I/O and operations in the journal, for
    /// [`Logger::export_trace`](crate::Logger::export_trace).
    pub fn with_performance_tracing(mut self) -> Self {
        let journal = self.config.journal.get_or_insert_default();
        journal.trace.enabled = true;
        self
    }
}

const LEAVE: &str = "leave it out";

/// What this version of Nyx does not have. Saying no to it is fine.
impl VmBuilder {
    fn not_yet(mut self, method: &'static str, what: &str, mend: &str) -> Self {
        self.refused.push(not_yet(method, what, mend));
        self
    }

    /// The last word counts, as for every other setting.
    fn switch(mut self, method: &'static str, on: bool, what: &str, mend: &str) -> Self {
        self.refused.retain(|error| error.method != method);
        if on {
            return self.not_yet(method, what, mend);
        }
        self
    }

    /// UEFI firmware. Not part of this version of Nyx: refused.
    pub fn uefi(mut self, firmware: impl Into<PathBuf>) -> Self {
        self.wants_firmware = true;
        let what = format!("{}: UEFI firmware is", firmware.into().display());
        self.not_yet("uefi", &what, "boot a kernel with kernel(path) instead")
    }

    /// A BIOS. Not part of this version of Nyx: refused.
    pub fn bios(mut self, firmware: impl Into<PathBuf>) -> Self {
        self.wants_firmware = true;
        let what = format!("{}: a BIOS is", firmware.into().display());
        self.not_yet("bios", &what, "boot a kernel with kernel(path) instead")
    }

    /// Graphics. Not part of this version of Nyx: `true` is refused.
    pub fn gpu(self, on: bool) -> Self {
        let mend = "say gpu(false) and use a console";
        self.switch("gpu", on, "a display is", mend)
    }

    /// AHCI instead of virtio disks. Not part of this version of Nyx: `true` is refused.
    pub fn ahci(self, on: bool) -> Self {
        let mend = "say ahci(false); disks are virtio disks then";
        self.switch("ahci", on, "AHCI is", mend)
    }

    /// The ISA devices of a PC. Every machine of this version has the few that Linux looks for (RTC, i8042,
    /// serial ports): `false` is refused.
    pub fn legacy(self, on: bool) -> Self {
        let mend = "say legacy(true)";
        self.switch("legacy", !on, "a machine without ISA devices is", mend)
    }

    /// TPM 2.0. Not part of this version of Nyx: refused.
    pub fn with_tpm(self) -> Self {
        self.not_yet("with_tpm", "TPM 2.0 is", LEAVE)
    }

    /// Dirty tracking and migration. Not part of this version of Nyx: refused.
    pub fn with_live_migration(self) -> Self {
        self.not_yet("with_live_migration", "live migration is", LEAVE)
    }

    /// Snapshots. Not part of this version of Nyx: refused.
    pub fn with_snapshot(self) -> Self {
        self.not_yet("with_snapshot", "snapshots are", LEAVE)
    }

    /// Pass-through and its IOMMU. Not part of this version of Nyx: refused.
    pub fn with_iommu(self) -> Self {
        self.not_yet("with_iommu", "an IOMMU is", LEAVE)
    }

    /// The same as [`with_iommu`](Self::with_iommu).
    pub fn enable_iommu(self) -> Self {
        self.not_yet("enable_iommu", "an IOMMU is", LEAVE)
    }

    /// Gives the guest a PCI function of the host. Not part of this version of Nyx: refused, but the
    /// identifier (`0x0300`, `"03:00.0"`) and the isolation (`"STRICT"`) are checked.
    pub fn passthrough_device(mut self, id: impl IntoPciId, isolation: impl IntoIsolation) -> Self {
        const METHOD: &str = "passthrough_device";
        match (id.into_pci_id(), isolation.into_isolation()) {
            (Ok(id), Ok(Isolation::Strict | Isolation::Shared | Isolation::Unmanaged)) => {
                let what = format!("{id}: giving host devices to a guest is");
                return self.not_yet(METHOD, &what, LEAVE);
            }
            (id, isolation) => {
                let whys = id.err().into_iter().chain(isolation.err());
                self.refused.extend(whys.map(|why| invalid(METHOD, why)));
            }
        }
        self
    }

    /// Large pages in the IOMMU. Not part of this version of Nyx: `true` is refused.
    pub fn iommu_large_pages(self, on: bool) -> Self {
        self.switch("iommu_large_pages", on, "an IOMMU is", LEAVE)
    }

    /// Fewer interrupts of host devices. Not part of this version of Nyx: `true` is refused.
    pub fn iommu_interrupt_coalescing(self, on: bool) -> Self {
        self.switch("iommu_interrupt_coalescing", on, "an IOMMU is", LEAVE)
    }

    /// Batched flushes of the IOMMU. Not part of this version of Nyx: `true` is refused.
    pub fn iommu_batch_invalidation(self, on: bool) -> Self {
        self.switch("iommu_batch_invalidation", on, "an IOMMU is", LEAVE)
    }

    /// Host CPUs for the vCPUs. Not part of this version of Nyx: refused unless empty.
    pub fn cpu_affinity(self, cpus: impl IntoIterator<Item = usize>) -> Self {
        let mend = "start the process under taskset(1)";
        let on = cpus.into_iter().next().is_some();
        self.switch("cpu_affinity", on, "binding vCPUs to host CPUs is", mend)
    }

    /// A file with the guest's symbols. They are read outside the machine's process: refused.
    pub fn with_debug_symbols(self, symbols: impl Into<PathBuf>) -> Self {
        let what = format!(
            "{}: reading symbols in the machine's process is",
            symbols.into().display()
        );
        let mend = "leave it out and give the file to gdb or to `nyx stack`";
        self.not_yet("with_debug_symbols", &what, mend)
    }

    /// Breakpoints of the builder's own. Not part of this version of Nyx: refused; a debugger sets them.
    pub fn with_breakpoints(self) -> Self {
        let mend = "leave it out and set them with gdb (`nyx run --gdb`)";
        self.not_yet(
            "with_breakpoints",
            "breakpoints set by the library are",
            mend,
        )
    }

    /// Virtualisation inside the guest. Not part of this version of Nyx: `true` is refused.
    pub fn allow_nested_vm(self, on: bool) -> Self {
        self.switch("allow_nested_vm", on, "nested virtualisation is", LEAVE)
    }

    /// Message-signalled interrupts, which every PCI device of Nyx has: `false` is refused.
    pub fn enable_msi(self, on: bool) -> Self {
        let mend = "say enable_msi(true), or transport(Transport::Mmio)";
        self.switch("enable_msi", !on, "PCI without MSI is", mend)
    }

    /// NUMA nodes of the guest. Not part of this version of Nyx: more than one are refused.
    pub fn numa_nodes(self, nodes: u32) -> Self {
        let mend = "say numa_nodes(1)";
        self.switch("numa_nodes", nodes != 1, "several NUMA nodes are", mend)
    }
}

/// What comes of it.
impl VmBuilder {
    /// Whether `feature` was asked for.
    pub fn is_enabled(&self, feature: Feature) -> bool {
        let journal = self.config.journal.as_ref();
        match feature {
            Feature::Logging => journal.is_some(),
            Feature::PerformanceTracing => journal.is_some_and(|journal| journal.trace.enabled),
            other => self.features.contains(&other),
        }
    }

    /// The methods that were called and that a file cannot say, because they are about this process.
    pub fn beyond_the_file(&self) -> Vec<&'static str> {
        let serial = self.serial.is_some().then_some("serial");
        let features = self.features.iter().map(|feature| feature.method());
        serial.into_iter().chain(features).collect()
    }

    /// The description, without a look at whether it makes sense.
    fn config(&self) -> VmConfig {
        let mut config = self.config.clone();
        if self.serial.is_some() && config.consoles.is_none() {
            config.consoles = Some(vec![Console::null().config]);
        }
        config
    }

    /// The description as a file or the API has it.
    ///
    /// # Errors
    ///
    /// Something was asked for that it cannot say, or a value could not be read.
    pub fn to_config(&self) -> Result<VmConfig, BuildErrors> {
        match BuildErrors::from_list(self.refused.clone()) {
            Some(errors) => Err(errors),
            None => Ok(self.config()),
        }
    }

    /// The description as a file. Methods that a file cannot say stand in its first lines, as comments.
    ///
    /// # Errors
    ///
    /// As for [`to_config`](Self::to_config), or a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, BuildErrors> {
        let config = self.to_config()?;
        let body = written::to_toml(&config)
            .map_err(|e| BuildErrors::one(invalid("to_toml", e.to_string())))?;
        let beyond = self.beyond_the_file();
        if beyond.is_empty() {
            return Ok(body);
        }
        let beyond = beyond.join(", ");
        Ok(format!(
            "# Set up by the program and not said here: {beyond}.\n{body}"
        ))
    }

    /// The description as JSON, the body that the control socket knows.
    ///
    /// # Errors
    ///
    /// As for [`to_toml`](Self::to_toml).
    pub fn to_json(&self) -> Result<String, BuildErrors> {
        let config = self.to_config()?;
        serde_json::to_string_pretty(&config)
            .map_err(|e| BuildErrors::one(invalid("to_json", e.to_string())))
    }

    /// Everything that is wrong with the description, without touching the host.
    fn problems(&self) -> Vec<BuildError> {
        let mut problems = self.refused.clone();
        if let Err(errors) = self.config().validate() {
            problems.extend(errors.iter().filter_map(|error| {
                let missing = error.field == "boot.kernel" && self.config.boot.kernel.is_none();
                match (missing, self.wants_firmware) {
                    (true, true) => None,
                    (true, false) => Some(invalid(
                        "kernel",
                        "there is nothing to boot; name a kernel with kernel(path)",
                    )),
                    (false, _) => Some(BuildError::from_spec(error)),
                }
            }));
        }
        if let Some(Err(e)) = self.config.journal.as_ref().map(JournalConfig::validate) {
            problems.push(invalid("with_journal", e.to_string()));
        }
        if self.features.contains(&Feature::PciHotplug) && self.config.transport == Transport::Mmio
        {
            problems.push(invalid(
                "with_pci_hotplug",
                "the machine has no PCI; leave out transport(Transport::Mmio)",
            ));
        }
        problems
    }

    /// Checks everything that can be checked without touching the host.
    ///
    /// # Errors
    ///
    /// Every problem, one sentence each.
    pub fn validate(&self) -> Result<(), BuildErrors> {
        match BuildErrors::from_list(self.problems()) {
            Some(errors) => Err(errors),
            None => Ok(()),
        }
    }

    /// What is wrong with the files that the description names.
    fn file_problems(&self) -> Vec<BuildError> {
        let mut problems = Vec::new();
        let mut add = |field: &str, why: String| {
            problems.push(BuildError::about_field(BuildErrorKind::File, field, &why));
        };
        let boot = &self.config.boot;
        if let Some(Err(e)) = boot.kernel.as_ref().map(Kernel::open) {
            add("boot.kernel", e.to_string());
        }
        if let Some(Err(e)) = boot.initrd.as_ref().map(Initrd::open) {
            add("boot.initrd", e.to_string());
        }
        for (index, disk) in self.config.disks.iter().enumerate() {
            // Opening it for good, locking included, is the device's business.
            let open = std::fs::OpenOptions::new()
                .read(true)
                .write(!disk.readonly)
                .open(&disk.path);
            if let Err(e) = open {
                let why = format!("cannot open {}: {e}", disk.path.display());
                add(&format!("disks[{index}].path"), why);
            }
        }
        problems
    }

    /// Makes the machine, at rest: checks the description and the files it names, opens KVM and lays the
    /// machine out. No file is changed and no device is opened before it runs.
    ///
    /// # Errors
    ///
    /// Every problem, one sentence each. A journal that was asked for is set up last.
    pub fn build(self) -> Result<Vm, BuildErrors> {
        let mut problems = self.problems();
        problems.extend(self.file_problems());
        match BuildErrors::from_list(problems) {
            Some(errors) => Err(errors),
            None => {
                let features = Feature::ALL.into_iter().filter(|f| self.is_enabled(*f));
                Vm::prepare(self.config(), features.collect(), self.serial)
            }
        }
    }

    pub(crate) fn has_user_net(&self) -> bool {
        self.config.nets.iter().any(|net| net.kind == NetKind::User)
    }
}
