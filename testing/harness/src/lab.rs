//! The lab: a PC with AMD-V emulated in software, in which `/dev/kvm` runs guest kernels as on real
//! hardware, and which runs any command of this machine as it is.
//!
//! ```text
//!   this machine                         the lab (QEMU, stock Debian kernel)
//!   /  ───────── 9p, read-only ───────▶  lower layer ┐ overlay ▶ /   (writes stay in memory)
//!   a folder ─── 9p, read-write ──────▶  where asked │
//!   Session ──── control port ────────▶  agent.sh ───┴▶ sh command
//!        ◀────── out, err ports ───────  its output, as it comes
//!   kernel log file ◀── serial port ───  the kernel's messages
//! ```
//!
//! The command sees this machine's files, root rights, `/dev/kvm`, `/dev/net/tun`, `/dev/vhost-net`,
//! `/dev/vhost-vsock`, a control group of its own and a private network. When it ends, what it left running is
//! ended too. Unix sockets of this machine cannot be reached through its files, and what is written outside
//! a shared folder is gone afterwards. Memory is the limit of what can be written (three quarters of it).
//!
//! The lab is slow (some twenty times slower than this machine) and faithful; it is a ground for tests, not a sandbox.

mod keeper;
mod session;
mod stream;
mod terminal;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

pub use session::{Input, Session};

use crate::guests::{self, Flavour, Kernel};
use crate::initramfs::Initramfs;
use crate::{packages, workspace};

const INIT: &str = include_str!("lab/init.sh");
const AGENT: &str = include_str!("lab/agent.sh");

/// Modules that the lab's root file system and its ports need.
const ROOT_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9p",
    "9pnet_virtio",
    "overlay",
];

/// Modules that commands count on, inserted meanwhile. Others load when asked for.
const HOST_MODULES: &[&str] = &[
    "kvm_amd",
    "tun",
    "vhost_net",
    "vhost_vsock",
    "virtio_net",
    "virtio_blk",
    "virtio_rng",
    "bridge",
    "veth",
    "ext4",
    "crc32c_generic",
    "loop",
];

/// Modules added when the lab has an IOMMU.
const IOMMU_MODULES: &[&str] = &["vfio_pci", "vfio_iommu_type1", "nvme"];

/// How many logs of earlier labs are kept.
const KEPT_LOGS: usize = 20;

/// A folder of this machine seen in the lab, read-write or read-only.
#[derive(Clone, Debug)]
pub struct Share {
    /// The folder here.
    pub here: PathBuf,
    /// Where the lab sees it; made if absent.
    pub there: PathBuf,
    /// May the lab write to it?
    pub is_writable: bool,
}

/// The machine to emulate.
#[derive(Clone, Debug)]
pub struct Lab {
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Folders seen in the lab besides the read-only root.
    pub shares: Vec<Share>,
    /// Is there a VT-d IOMMU, for passing devices through?
    pub has_iommu: bool,
    /// Further arguments of QEMU: devices to pass through, drives, sockets to another lab.
    pub qemu_arguments: Vec<OsString>,
    /// How long it may take until the agent answers.
    pub boot_timeout: Duration,
}

impl Default for Lab {
    fn default() -> Self {
        Self {
            cpus: 2,
            memory_mib: 6144,
            shares: Vec::new(),
            has_iommu: false,
            qemu_arguments: Vec::new(),
            boot_timeout: Duration::from_secs(120),
        }
    }
}

/// A command to run in the lab.
#[derive(Clone, Debug)]
pub struct LabCommand {
    /// Program and arguments, passed on byte for byte.
    pub argv: Vec<OsString>,
    /// The environment. Without it the command has `PATH`, `HOME` and `TERM` only.
    pub env: Vec<(OsString, OsString)>,
    /// The folder to run in.
    pub cwd: PathBuf,
    /// How long it may run; then the whole lab is ended.
    pub timeout: Duration,
}

impl LabCommand {
    /// A command in the present folder, with ten minutes to run.
    pub fn new<A: Into<OsString>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: std::env::current_dir().unwrap_or_else(|_| "/".into()),
            timeout: Duration::from_secs(600),
        }
    }

    /// A shell script; any number of commands in one go.
    pub fn script(text: &str) -> Self {
        Self::new(["/bin/sh", "-c", text])
    }

    /// The same with another limit.
    #[must_use]
    pub fn within(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The shell script that runs this command and nothing else.
    fn as_script(&self) -> Result<Vec<u8>> {
        if self.argv.is_empty() {
            bail!("no command to run in the lab");
        }
        let mut script = b"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb\n".to_vec();
        for (name, value) in &self.env {
            if !is_shell_name(name) {
                bail!(
                    "{} cannot be the name of an environment variable",
                    name.display()
                );
            }
            script.extend_from_slice(b"export ");
            script.extend_from_slice(name.as_bytes());
            script.push(b'=');
            quote(value, &mut script)?;
            script.push(b'\n');
        }
        script.extend_from_slice(b"cd ");
        quote(self.cwd.as_os_str(), &mut script)?;
        script.extend_from_slice(b" || exit 126\nexec");
        for argument in &self.argv {
            script.push(b' ');
            quote(argument, &mut script)?;
        }
        script.push(b'\n');
        Ok(script)
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this exit code (128 + n for signal n).
    Exited(i32),
    /// Not within its time; the lab is gone.
    TimedOut,
}

/// What came of a command.
#[derive(Clone, Debug)]
pub struct LabOutput {
    /// How it ended.
    pub ending: Ending,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// How long the command took, without the lab's boot.
    pub took: Duration,
}

impl LabOutput {
    /// Its standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Gives itself if the command ended with 0, else an error quoting its output.
    pub fn success(self) -> Result<Self> {
        if self.ending == Ending::Exited(0) {
            return Ok(self);
        }
        bail!(
            "the command in the lab ended with {:?}\n{}{}",
            self.ending,
            self.text(),
            String::from_utf8_lossy(&self.stderr)
        )
    }
}

impl Lab {
    /// Installs, fetches and builds what the lab is made of; fast when it is all there.
    pub fn prepare() -> Result<()> {
        packages::install_emulator()?;
        let kernel = guests::kernel(Flavour::Full)?;
        Self::default().initramfs(&kernel).map(drop)
    }

    /// Boots a lab, runs one command in it and ends it.
    pub fn run(&self, command: &LabCommand) -> Result<LabOutput> {
        let mut session = self.boot()?;
        let output = session.run(command)?;
        session.end()?;
        Ok(output)
    }

    /// Boots a lab and waits until it takes commands.
    pub fn boot(&self) -> Result<Session> {
        Self::prepare()?;
        let kernel = guests::kernel(Flavour::Full)?;
        let initramfs = self.initramfs(&kernel)?;
        Session::boot(self, &kernel, &initramfs, &log_file()?)
    }

    fn initramfs(&self, kernel: &Kernel) -> Result<PathBuf> {
        let passthrough = if self.has_iommu { IOMMU_MODULES } else { &[] };
        let later: Vec<&str> = HOST_MODULES.iter().chain(passthrough).copied().collect();
        let modules = line(kernel.modules.as_os_str());
        let release = line(OsStr::new(&kernel.release));
        let image = Initramfs {
            init: INIT,
            kernel,
            required: ROOT_MODULES,
            wanted: &[],
            later: &later,
            files: &[
                ("agent.sh", 0o644, AGENT.as_bytes()),
                ("modules-folder", 0o644, &modules),
                ("release", 0o644, &release),
            ],
        };
        image.cached(if self.has_iommu { "lab-iommu" } else { "lab" })
    }

    /// The arguments of QEMU, but for the ports, whose sockets are in `sockets`.
    fn arguments(
        &self,
        kernel: &Kernel,
        initramfs: &Path,
        log: &Path,
        sockets: &Path,
    ) -> Result<Vec<OsString>> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add =
            |words: &[&OsStr]| arguments.extend(words.iter().map(|&word| word.to_owned()));
        let text = |word: &'static str| OsStr::new(word);
        // Threads of translated code, one for each processor; Milan is the first model whose every feature
        // QEMU's AMD-V emulation copes with.
        add(&[
            text("-nodefaults"),
            text("-no-user-config"),
            text("-no-reboot"),
        ]);
        add(&[
            text("-display"),
            text("none"),
            text("-monitor"),
            text("none"),
        ]);
        add(&[text("-accel"), text("tcg,thread=multi")]);
        add(&[text("-cpu"), text("EPYC-Milan,+svm,+npt")]);
        add(&[text("-machine"), text("q35,kernel-irqchip=split")]);
        add(&[text("-smp"), OsStr::new(&self.cpus.to_string())]);
        add(&[text("-m"), OsStr::new(&self.memory_mib.to_string())]);
        // The unpacked kernel, entered by PVH: unpacking it in emulation would take a second.
        add(&[text("-kernel"), kernel.vmlinux.as_os_str()]);
        add(&[text("-initrd"), initramfs.as_os_str()]);
        let mut line = String::from("console=ttyS0 panic=-1 mitigations=off tsc=reliable quiet");
        if self.has_iommu {
            line.push_str(" intel_iommu=on iommu=pt");
            // 39 bits of address are too few for BARs placed high.
            let device = "intel-iommu,intremap=on,caching-mode=on,aw-bits=48";
            add(&[text("-device"), text(device)]);
        }
        add(&[text("-append"), OsStr::new(&line)]);
        add(&[
            text("-chardev"),
            &option("file,id=log,path=", log.as_os_str(), "")?,
        ]);
        add(&[text("-serial"), text("chardev:log")]);
        add(&[text("-device"), text("virtio-serial-pci,max_ports=8")]);
        for port in session::PORTS {
            let chardev = format!("socket,id={},path=", port.id());
            add(&[
                text("-chardev"),
                &option(&chardev, sockets.join(port.id()).as_os_str(), "")?,
            ]);
            add(&[text("-device"), OsStr::new(&port.device())]);
        }
        let root = "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap";
        add(&[text("-fsdev"), text(root)]);
        add(&[
            text("-device"),
            text("virtio-9p-pci,fsdev=host,mount_tag=host"),
        ]);
        for (number, share) in self.shares.iter().enumerate() {
            let here = fs::canonicalize(&share.here)
                .with_context(|| format!("cannot share {}", share.here.display()))?;
            let before = format!("local,id=share{number},path=");
            let after = if share.is_writable {
                ",readonly=off"
            } else {
                ",readonly=on"
            };
            let after = format!("{after},security_model=none,multidevs=remap");
            add(&[text("-fsdev"), &option(&before, here.as_os_str(), &after)?]);
            let device = format!("virtio-9p-pci,fsdev=share{number},mount_tag=share{number}");
            add(&[text("-device"), OsStr::new(&device)]);
        }
        // Away from 10.0.2.0/24, which the guests' own user-mode networks use.
        add(&[
            text("-netdev"),
            text("user,id=net,net=192.168.76.0/24,restrict=on"),
        ]);
        add(&[text("-device"), text("virtio-net-pci,netdev=net,romfile=")]);
        add(&[
            text("-object"),
            text("rng-random,id=rng,filename=/dev/urandom"),
        ]);
        add(&[text("-device"), text("virtio-rng-pci,rng=rng")]);
        arguments.extend(self.qemu_arguments.iter().cloned());
        Ok(arguments)
    }
}

/// A QEMU option with a path inside; a comma in the path is doubled, as QEMU wants it.
fn option(before: &str, path: &OsStr, after: &str) -> Result<OsString> {
    let mut bytes = before.as_bytes().to_vec();
    for &byte in path.as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    bytes.extend_from_slice(after.as_bytes());
    Ok(OsString::from_vec(bytes))
}

/// Writes `word` so that a shell takes it as one word, byte for byte.
fn quote(word: &OsStr, script: &mut Vec<u8>) -> Result<()> {
    if word.as_bytes().contains(&0) {
        bail!("{word:?} holds a zero byte");
    }
    script.push(b'\'');
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => script.extend_from_slice(b"'\\''"),
            _ => script.push(byte),
        }
    }
    script.push(b'\'');
    Ok(())
}

fn is_shell_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes
        .first()
        .is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

fn line(text: &OsStr) -> Vec<u8> {
    [text.as_bytes(), b"\n"].concat()
}

/// A new file for the kernel's messages; old ones are removed.
fn log_file() -> Result<PathBuf> {
    let folder = workspace::cache_folder().join("logs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut old: Vec<PathBuf> = fs::read_dir(&folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    // Names begin with the time, so they sort by age.
    old.sort();
    for path in old.iter().take(old.len().saturating_sub(KEPT_LOGS - 1)) {
        // Another lab that starts now may have removed it already.
        let _ = fs::remove_file(path);
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let path = folder.join(format!(
        "lab-{:013}-{}.log",
        now.as_millis(),
        std::process::id()
    ));
    fs::File::create(&path)
        .and_then(|mut file| file.write_all(b""))
        .with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}
