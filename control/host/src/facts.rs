//! Raw readings, before any judgement; tests make their own.

use std::collections::BTreeSet;

/// What came of trying something: the sentence says why it did not work.
pub type Probe = Result<(), String>;

/// KVM, opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KvmFacts {
    /// The kernel's names of capabilities, and what it answered for each (0: absent).
    pub capabilities: Vec<(&'static str, u32)>,
    /// Most CPUs of one virtual machine.
    pub max_vcpus: u32,
    /// Guest-physical address bits.
    pub physical_address_bits: u8,
    /// Measured nanoseconds for one guest instruction in ring 0, and whether that is native.
    pub speed: Option<(f64, bool)>,
    /// Why there is no measurement.
    pub speed_error: Option<String>,
}

/// The processor, from `/proc/cpuinfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuFacts {
    /// `GenuineIntel`, `AuthenticAMD`, …
    pub vendor: String,
    /// Marketing name.
    pub model: String,
    /// Logical CPUs online.
    pub count: u32,
    /// Feature flags, those of `vmx flags` included.
    pub flags: BTreeSet<String>,
}

/// A parameter of a loaded kernel module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleParameter {
    /// Module.
    pub module: &'static str,
    /// Parameter.
    pub name: &'static str,
    /// Its value, as the kernel prints it.
    pub value: String,
}

/// A pool of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePagePool {
    /// Page size in KiB.
    pub size_kib: u64,
    /// Pages reserved.
    pub total: u64,
    /// Pages unused.
    pub free: u64,
}

/// How control groups are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Version 2 alone, with these controllers.
    V2(String),
    /// Version 1 hierarchies, with or without version 2 beside them.
    V1,
    /// None.
    Absent,
}

/// A program that Nyx can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolFacts {
    /// Its name.
    pub name: &'static str,
    /// Where it is, if it is.
    pub path: Option<String>,
    /// The first line it says of its version.
    pub version: String,
}

/// All readings.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// KVM, or one sentence on why not and how to mend it.
    pub kvm: Result<KvmFacts, String>,
    /// The processor.
    pub cpu: CpuFacts,
    /// Loaded KVM modules, `kvm` itself left out.
    pub kvm_modules: Vec<String>,
    /// Their parameters of interest.
    pub parameters: Vec<ModuleParameter>,
    /// Memory in KiB: all, and available without swapping.
    pub memory_kib: (u64, u64),
    /// Pools of huge pages, small pages first.
    pub huge_pages: Vec<HugePagePool>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub transparent_huge_pages: Option<String>,
    /// Opening `/dev/net/tun`.
    pub tun: Probe,
    /// Whether this process may create network interfaces (CAP_NET_ADMIN).
    pub net_admin: bool,
    /// Opening `/dev/vhost-net`.
    pub vhost_net: Probe,
    /// Opening `/dev/vhost-vsock`.
    pub vhost_vsock: Probe,
    /// Setting up an io_uring.
    pub io_uring: Probe,
    /// `kernel.io_uring_disabled`, where the kernel has it.
    pub io_uring_disabled: Option<u32>,
    /// Creating a user namespace; `None` when there was no program to try it with.
    pub user_namespace: Option<Probe>,
    /// `user.max_user_namespaces`.
    pub max_user_namespaces: Option<u64>,
    /// `kernel.unprivileged_userns_clone`, on kernels of Debian's.
    pub unprivileged_userns_clone: Option<u32>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, on kernels of Ubuntu's.
    pub apparmor_restricts_userns: Option<u32>,
    /// Whether this process is root.
    pub root: bool,
    /// Control groups.
    pub cgroups: Cgroups,
    /// `uname -r`.
    pub kernel: String,
    /// Programs.
    pub tools: Vec<ToolFacts>,
}
