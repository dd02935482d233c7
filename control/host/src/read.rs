//! Reading the facts from this host.

use crate::facts::{
    Cgroups, CpuFacts, Facts, HugePagePool, KvmFacts, ModuleParameter, Probe, ToolFacts,
};
use nyx_kvm::{Kvm, measure_guest_kernel};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Capability to administer networks (`capabilities(7)`).
const CAP_NET_ADMIN: u32 = 12;

impl Facts {
    /// Reads them all.
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse().ok();
        Self {
            kvm: kvm(),
            cpu: parse_cpuinfo(&text("/proc/cpuinfo")),
            kvm_modules: kvm_modules(),
            parameters: parameters(),
            memory_kib: parse_meminfo(&text("/proc/meminfo")),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
            transparent_huge_pages: parse_choice(&text(
                "/sys/kernel/mm/transparent_hugepage/enabled",
            )),
            tun: openable("/dev/net/tun"),
            net_admin: has_capability(&text("/proc/self/status"), CAP_NET_ADMIN),
            vhost_net: openable("/dev/vhost-net"),
            vhost_vsock: openable("/dev/vhost-vsock"),
            io_uring: io_uring::IoUring::new(8)
                .map(drop)
                .map_err(|e| e.to_string()),
            io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled"),
            user_namespace: user_namespace(),
            max_user_namespaces: fs::read_to_string("/proc/sys/user/max_user_namespaces")
                .ok()
                .and_then(|n| n.trim().parse().ok()),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restricts_userns: number(
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            ),
            root: rustix::process::geteuid().is_root(),
            cgroups: cgroups(&text("/proc/self/mounts")),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            tools: ["slirp4netns", "passt", "qemu-img"].map(tool).to_vec(),
        }
    }
}

fn kvm() -> Result<KvmFacts, String> {
    let kvm = Kvm::open().map_err(|e| e.to_string())?;
    let (speed, speed_error) = match measure_guest_kernel(&kvm) {
        Ok(speed) => (
            Some((speed.nanoseconds_per_instruction, speed.is_native())),
            None,
        ),
        Err(e) => (None, Some(e.to_string())),
    };
    Ok(KvmFacts {
        capabilities: kvm.capabilities().all(),
        max_vcpus: kvm.most_vcpus(),
        physical_address_bits: kvm.address_bits(),
        speed,
        speed_error,
    })
}

/// Opens a device for reading and writing, and closes it.
fn openable(path: &str) -> Probe {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(format!("{path} does not exist")),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Err(format!("{path} may not be opened by this user"))
        }
        Err(e) => Err(format!("{path}: {e}")),
    }
}

/// The processor, from the text of `/proc/cpuinfo`.
pub(crate) fn parse_cpuinfo(text: &str) -> CpuFacts {
    let mut cpu = CpuFacts::default();
    let mut flags = BTreeSet::new();
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        match key.trim() {
            "processor" => cpu.count += 1,
            // All CPUs of a machine say the same.
            "vendor_id" if cpu.vendor.is_empty() => cpu.vendor = value.trim().into(),
            "model name" if cpu.model.is_empty() => cpu.model = value.trim().into(),
            "flags" | "vmx flags" if cpu.count <= 1 => {
                flags.extend(value.split_whitespace().map(String::from));
            }
            _ => {}
        }
    }
    cpu.flags = flags;
    cpu
}

/// Total and available memory in KiB, from the text of `/proc/meminfo`.
pub(crate) fn parse_meminfo(text: &str) -> (u64, u64) {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':')
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    (
        field("MemTotal").unwrap_or(0),
        field("MemAvailable").unwrap_or(0),
    )
}

/// The chosen one of `always [madvise] never`.
pub(crate) fn parse_choice(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (choice, _) = rest.split_once(']')?;
    Some(choice.into())
}

/// Whether `/proc/self/status` grants capability `number` effectively.
pub(crate) fn has_capability(status: &str, number: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> number & 1 == 1)
}

/// How control groups are mounted, from the text of `/proc/self/mounts`.
fn cgroups(mounts: &str) -> Cgroups {
    let kinds = || {
        mounts
            .lines()
            .filter_map(|line| line.split_whitespace().nth(2))
    };
    if kinds().any(|kind| kind == "cgroup") {
        return Cgroups::V1;
    }
    match mounts
        .lines()
        .find(|line| line.split_whitespace().nth(2) == Some("cgroup2"))
    {
        Some(line) => {
            let at = line.split_whitespace().nth(1).unwrap_or("/sys/fs/cgroup");
            let controllers =
                fs::read_to_string(Path::new(at).join("cgroup.controllers")).unwrap_or_default();
            Cgroups::V2(controllers.trim().into())
        }
        None => Cgroups::Absent,
    }
}

fn kvm_modules() -> Vec<String> {
    let mut modules: Vec<String> = fs::read_dir("/sys/module")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("kvm_"))
        .collect();
    modules.sort();
    modules
}

fn parameters() -> Vec<ModuleParameter> {
    [
        ("kvm_intel", "nested"),
        ("kvm_intel", "ept"),
        ("kvm_intel", "unrestricted_guest"),
        ("kvm_amd", "nested"),
        ("kvm_amd", "npt"),
        ("kvm_amd", "avic"),
    ]
    .into_iter()
    .filter_map(|(module, name)| {
        let path = format!("/sys/module/{module}/parameters/{name}");
        let value = fs::read_to_string(path).ok()?.trim().to_string();
        Some(ModuleParameter {
            module,
            name,
            value,
        })
    })
    .collect()
}

/// The pools below `root`, each in a folder called `hugepages-<size>kB`.
pub(crate) fn huge_pages(root: &Path) -> Vec<HugePagePool> {
    let pool = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        let size_kib = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        let number = |file: &str| {
            fs::read_to_string(path.join(file))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        Some(HugePagePool {
            size_kib,
            total: number("nr_hugepages")?,
            free: number("free_hugepages")?,
        })
    };
    let folders = fs::read_dir(root).into_iter().flatten();
    let mut pools: Vec<_> = folders
        .filter_map(|entry| pool(entry.ok()?.path()))
        .collect();
    pools.sort_by_key(|p| p.size_kib);
    pools
}

/// Where a program is, by `PATH` and where administrators' programs lie.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
}

fn tool(name: &'static str) -> ToolFacts {
    let Some(path) = find(name) else {
        return ToolFacts {
            name,
            path: None,
            version: String::new(),
        };
    };
    let output = Command::new(&path)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let said = output
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    let version = said.lines().next().unwrap_or("").chars().take(80).collect();
    ToolFacts {
        name,
        path: Some(path.display().to_string()),
        version,
    }
}

/// Tries a user namespace in a child process: nothing of it stays.
fn user_namespace() -> Option<Probe> {
    let unshare = find("unshare")?;
    let output = Command::new(unshare)
        .args(["--user", "--map-root-user", "true"])
        .stdin(Stdio::null())
        .output();
    Some(match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_string()),
        Err(e) => Err(e.to_string()),
    })
}
