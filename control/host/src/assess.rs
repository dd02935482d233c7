//! From facts to findings: pure.

use crate::facts::{Cgroups, CpuFacts, Facts, HugePagePool, KvmFacts, Probe, ToolFacts};
use crate::report::{Finding, GuestKernels, Report, Status};
use nyx_kvm::GuestKernelSpeed;

/// Capabilities that Nyx uses when they are there, and what their absence costs. What it cannot do
/// without is refused when KVM is opened.
const CAPABILITIES: &[(&str, &str)] = &[
    ("KVM_CAP_X2APIC_API", "at most 254 CPUs in a machine"),
    (
        "KVM_CAP_IOEVENTFD",
        "every queue notification is an exit: slower disks and networks",
    ),
    (
        "KVM_CAP_IOEVENTFD_ANY_LENGTH",
        "notifications of any width are exits: slower disks and networks",
    ),
    (
        "KVM_CAP_TSC_DEADLINE_TIMER",
        "guests use the slower local APIC timer",
    ),
    (
        "KVM_CAP_VCPU_EVENTS",
        "pending exceptions and NMIs are lost when a machine is saved",
    ),
    (
        "KVM_CAP_DEBUGREGS",
        "debug registers are lost when a machine is saved",
    ),
    ("KVM_CAP_XSAVE", "FPU state is lost when a machine is saved"),
    (
        "KVM_CAP_XCRS",
        "extended control registers are lost when a machine is saved",
    ),
    ("KVM_CAP_XSAVE2", "guests get no AMX"),
    (
        "KVM_CAP_SREGS2",
        "32-bit PAE guests reload their page pointers when restored",
    ),
    (
        "KVM_CAP_USER_NMI",
        "no NMI can be injected into a hung guest",
    ),
    ("KVM_CAP_ADJUST_CLOCK", "a restored guest's kvmclock jumps"),
    (
        "KVM_CAP_KVMCLOCK_CTRL",
        "guests report soft lockups after a pause",
    ),
    (
        "KVM_CAP_GET_TSC_KHZ",
        "a restored guest may run with a wrong clock frequency unnoticed",
    ),
    (
        "KVM_CAP_TSC_CONTROL",
        "machines move only between hosts of the same TSC frequency",
    ),
    (
        "KVM_CAP_READONLY_MEM",
        "firmware flash is served by exits: slow firmware start",
    ),
    (
        "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
        "large guests stall while dirty memory is collected",
    ),
    (
        "KVM_CAP_MEMORY_FAULT_INFO",
        "a failure of host memory is reported without its address",
    ),
    (
        "KVM_CAP_NESTED_STATE",
        "guests cannot run virtual machines themselves",
    ),
    ("KVM_CAP_HYPERV", "Windows guests run slower"),
    (
        "KVM_CAP_X86_SMM",
        "UEFI Secure Boot variables cannot be protected from the guest's kernel",
    ),
];

fn finding(id: &str, title: &str, status: Status, evidence: impl Into<String>) -> Finding {
    Finding {
        id: id.into(),
        title: title.into(),
        status,
        evidence: evidence.into(),
        consequence: None,
        fix: None,
    }
}

impl Finding {
    fn costs(mut self, consequence: impl Into<String>) -> Self {
        self.consequence = Some(consequence.into());
        self
    }

    fn mend(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl Report {
    /// Judges `facts`.
    pub fn from_facts(facts: &Facts) -> Self {
        let speed = facts.kvm.as_ref().ok().and_then(|kvm| kvm.speed);
        let guest_kernels = match speed {
            None => GuestKernels::Unavailable,
            Some((_, true)) => GuestKernels::Native,
            Some((_, false)) => GuestKernels::Emulated,
        };
        let mut findings = vec![kvm(facts), guest_kernel_speed(facts), virtualization(facts)];
        if let Ok(kvm) = &facts.kvm {
            findings.extend(capabilities(kvm));
        }
        findings.extend([
            kernel(&facts.kernel),
            processors(&facts.cpu),
            memory(facts.memory_kib),
            huge_pages(&facts.huge_pages),
            transparent_huge_pages(facts.transparent_huge_pages.as_deref()),
            tun(facts),
            io_uring(facts),
            user_namespaces(facts),
            cgroups(&facts.cgroups),
            vhost("vhost-net", &facts.vhost_net, "vhost_net", "network"),
            vhost("vhost-vsock", &facts.vhost_vsock, "vhost_vsock", "vsock"),
        ]);
        findings.extend(facts.tools.iter().map(tool));
        Self {
            guest_kernels,
            nanoseconds_per_instruction: speed.map(|(ns, _)| ns),
            findings,
        }
    }
}

fn kvm(facts: &Facts) -> Finding {
    match &facts.kvm {
        Ok(kvm) => {
            let modules = match facts.kvm_modules.as_slice() {
                [] => "built in".into(),
                modules => modules.join(", "),
            };
            finding(
                "kvm",
                "KVM",
                Status::Ok,
                format!(
                    "usable ({modules}), up to {} CPUs, {} physical address bits",
                    kvm.max_vcpus, kvm.physical_address_bits
                ),
            )
        }
        Err(why) => {
            // The sentence from opening KVM is "what: how to mend it".
            let (evidence, fix) = why
                .split_once(": ")
                .unwrap_or((why, "see the kernel's log"));
            finding("kvm", "KVM", Status::Missing, evidence)
                .costs("no virtual machine can run")
                .mend(fix)
        }
    }
}

fn guest_kernel_speed(facts: &Facts) -> Finding {
    let title = "Guest kernels";
    let id = "guest-kernels";
    let threshold = GuestKernelSpeed::NATIVE_BELOW_NANOSECONDS;
    match &facts.kvm {
        Err(_) => finding(id, title, Status::Missing, "not measured: KVM is not usable")
            .costs("no virtual machine can run"),
        Ok(KvmFacts { speed: Some((ns, true)), .. }) => finding(
            id,
            title,
            Status::Ok,
            format!("native: {ns:.2} ns per instruction (native is below {threshold} ns)"),
        ),
        Ok(KvmFacts { speed: Some((ns, false)), .. }) => finding(
            id,
            title,
            Status::Warning,
            format!("emulated: {ns:.0} ns per instruction (native is below {threshold} ns)"),
        )
        .costs("guest programs run at full speed, but a stock kernel takes ten minutes and more to boot")
        .mend(
            "use a host with VT-x or AMD-V; if this is a virtual machine, turn on nested \
             virtualization for it",
        ),
        Ok(kvm) => finding(
            id,
            title,
            Status::Missing,
            kvm.speed_error.clone().unwrap_or_else(|| "not measured".into()),
        )
        .costs("virtual machines may not run")
        .mend("see the kernel's log for what KVM says"),
    }
}

fn virtualization(facts: &Facts) -> Finding {
    let title = "CPU virtualization";
    let has = |flag: &str| facts.cpu.flags.contains(flag);
    let (id, vendor) = ("cpu-virtualization", facts.cpu.vendor.as_str());
    let (extension, paging) = if has("vmx") {
        ("VT-x", has("ept"))
    } else if has("svm") {
        ("AMD-V", has("npt"))
    } else {
        let evidence = format!("neither vmx nor svm among the CPU's flags ({vendor})");
        return match &facts.kvm {
            Ok(_) => finding(id, title, Status::Warning, evidence)
                .costs("KVM works by a software backend: guest kernels are emulated"),
            Err(_) => finding(id, title, Status::Missing, evidence).costs("KVM cannot run"),
        }
        .mend(
            "enable VT-x or AMD-V in the firmware settings, or nested virtualization if this is \
             itself a virtual machine",
        );
    };
    let mut evidence = format!("{extension} ({vendor})");
    for parameter in &facts.parameters {
        evidence += &format!(", {} {}", parameter.name, parameter.value);
    }
    // Kernels that list the features of VT-x list this one; older ones say it by the parameter.
    let unrestricted = has("svm")
        || has("unrestricted_guest")
        || facts
            .parameters
            .iter()
            .any(|p| p.name == "unrestricted_guest" && p.value == "Y");
    let listed = has("ept") || has("vnmi") || has("svm");
    if listed && !paging {
        finding(id, title, Status::Warning, evidence + ", no nested paging")
            .costs("guest page tables are shadowed in software: guests run much slower")
            .mend("enable nested paging (EPT or NPT) in the firmware settings or the outer hypervisor")
    } else if listed && !unrestricted {
        finding(
            id,
            title,
            Status::Warning,
            evidence + ", no unrestricted guest",
        )
        .costs("real-mode code, as in firmware, is emulated and slow")
        .mend("load kvm_intel with unrestricted_guest=1, if the CPU has it")
    } else {
        finding(id, title, Status::Ok, evidence)
    }
}

fn capabilities(kvm: &KvmFacts) -> Vec<Finding> {
    let answer = |name: &str| {
        kvm.capabilities
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| *v)
    };
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(name, _)| answer(name).unwrap_or(0) == 0)
        .collect();
    let present = CAPABILITIES.len() - missing.len();
    let mut findings = vec![finding(
        "kvm-capabilities",
        "KVM capabilities",
        if missing.is_empty() {
            Status::Ok
        } else {
            Status::Warning
        },
        format!("{present} of the {} that Nyx uses", CAPABILITIES.len()),
    )];
    if !missing.is_empty() {
        findings[0].consequence = Some("see the ones missing".into());
        findings[0].fix = Some("a newer kernel or other hardware may have them".into());
    }
    findings.extend(missing.into_iter().map(|(name, consequence)| {
        let short = name.trim_start_matches("KVM_CAP_");
        let id = format!("kvm-cap-{}", short.to_lowercase().replace('_', "-"));
        finding(&id, short, Status::Missing, format!("{name} is absent")).costs(*consequence)
    }));
    findings
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    };
    let evidence = format!("Linux {release}");
    match version {
        Some(v) if v < (5, 14) => finding("kernel", "Kernel", Status::Warning, evidence)
            .costs("guest memory cannot be prefaulted, and io_uring lacks operations")
            .mend("use Linux 5.14 or newer"),
        _ => finding("kernel", "Kernel", Status::Ok, evidence),
    }
}

fn processors(cpu: &CpuFacts) -> Finding {
    let model = if cpu.model.is_empty() {
        "unknown model"
    } else {
        &cpu.model
    };
    finding(
        "cpus",
        "CPUs",
        Status::Ok,
        format!("{} × {model}", cpu.count),
    )
}

fn memory((total, available): (u64, u64)) -> Finding {
    let evidence = format!("{} in all, {} available", size(total), size(available));
    // A small Linux guest and the VMM beside it.
    if available < 256 << 10 {
        finding("memory", "Memory", Status::Warning, evidence)
            .costs("a guest of 256 MiB does not fit")
            .mend("stop other programs or add memory")
    } else {
        finding("memory", "Memory", Status::Ok, evidence)
    }
}

/// KiB for people.
fn size(kib: u64) -> String {
    match kib {
        k if k >= 10 << 20 => format!("{} GiB", k >> 20),
        k if k >= 1 << 20 => format!("{:.1} GiB", k as f64 / f64::from(1 << 20)),
        k if k >= 1 << 10 => format!("{} MiB", k >> 10),
        k => format!("{k} KiB"),
    }
}

fn huge_pages(pools: &[HugePagePool]) -> Finding {
    let (id, title) = ("huge-pages", "Huge pages");
    if pools.is_empty() {
        return finding(id, title, Status::Missing, "the kernel has none")
            .costs("guest memory cannot come from huge pages")
            .mend("use a kernel with CONFIG_HUGETLBFS");
    }
    let evidence: Vec<String> = pools
        .iter()
        .map(|p| format!("{}: {} free of {}", size(p.size_kib), p.free, p.total))
        .collect();
    let found = finding(id, title, Status::Ok, evidence.join(", "));
    if pools.iter().all(|p| p.total == 0) {
        // Nothing is wrong with that: most hosts reserve none.
        found
            .costs("machines that ask for huge pages are refused")
            .mend("sysctl vm.nr_hugepages=N reserves N of 2 MiB")
    } else {
        found
    }
}

fn transparent_huge_pages(mode: Option<&str>) -> Finding {
    let (id, title) = ("transparent-huge-pages", "Transparent huge pages");
    match mode {
        Some(mode @ ("always" | "madvise")) => finding(id, title, Status::Ok, mode),
        other => finding(id, title, Status::Warning, other.unwrap_or("absent"))
            .costs("guest memory is mapped in small pages: more TLB misses")
            .mend("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
    }
}

fn tun(facts: &Facts) -> Finding {
    let (id, title) = ("tun", "TAP networking");
    match &facts.tun {
        Ok(()) if facts.net_admin => finding(
            id,
            title,
            Status::Ok,
            "/dev/net/tun opens; this user may create interfaces",
        ),
        Ok(()) => finding(
            id,
            title,
            Status::Warning,
            "/dev/net/tun opens; this user may not create interfaces",
        )
        .costs("only TAP interfaces that were made for this user can be used")
        .mend("ip tuntap add NAME mode tap user $USER (as root), or user networking"),
        Err(why) => {
            let fix = if why.contains("does not exist") {
                "modprobe tun"
            } else {
                "chmod 0666 /dev/net/tun, as distributions do by default"
            };
            finding(id, title, Status::Missing, why)
                .costs("no TAP networking; user networking needs it too")
                .mend(fix)
        }
    }
}

fn vhost(id: &str, probe: &Probe, module: &str, what: &str) -> Finding {
    match probe {
        Ok(()) => finding(id, id, Status::Ok, format!("/dev/{id} opens")),
        Err(why) => finding(id, id, Status::Missing, why)
            .costs(format!("{what} queues are served in user space only"))
            .mend(if why.contains("does not exist") {
                format!("modprobe {module}")
            } else {
                format!("let this user open /dev/{id} (group kvm, as a rule)")
            }),
    }
}

fn io_uring(facts: &Facts) -> Finding {
    let (id, title) = ("io-uring", "io_uring");
    match (&facts.io_uring, facts.io_uring_disabled) {
        (Ok(()), _) => finding(id, title, Status::Ok, "a ring was set up"),
        (Err(why), disabled) => {
            let found = match disabled {
                Some(level) if level > 0 => finding(
                    id,
                    title,
                    Status::Warning,
                    format!("{why}; kernel.io_uring_disabled = {level}"),
                )
                .mend("sysctl kernel.io_uring_disabled=0"),
                _ => finding(id, title, Status::Warning, why)
                    .mend("allow io_uring in this container's seccomp profile, or use Linux 5.10 or newer"),
            };
            found.costs("disks are served by worker threads: slower")
        }
    }
}

fn user_namespaces(facts: &Facts) -> Finding {
    let (id, title) = ("user-namespaces", "User namespaces");
    let who = if facts.root { "root" } else { "this user" };
    match &facts.user_namespace {
        Some(Ok(())) => finding(id, title, Status::Ok, format!("{who} may create them")),
        None if facts.max_user_namespaces.unwrap_or(0) > 0 => finding(
            id,
            title,
            Status::Ok,
            "the kernel has them; not tried, for want of unshare",
        ),
        tried => {
            let why = match tried {
                Some(Err(why)) if !why.is_empty() => why.as_str(),
                _ => "the kernel has none",
            };
            let fix = if facts.max_user_namespaces == Some(0) {
                "sysctl user.max_user_namespaces=10000"
            } else if facts.unprivileged_userns_clone == Some(0) {
                "sysctl kernel.unprivileged_userns_clone=1"
            } else if facts.apparmor_restricts_userns == Some(1) {
                "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
            } else {
                "allow them in this container's seccomp profile"
            };
            finding(id, title, Status::Warning, why)
                .costs("helpers run with less isolation; rootless networking may not start")
                .mend(fix)
        }
    }
}

fn cgroups(cgroups: &Cgroups) -> Finding {
    let (id, title) = ("cgroups", "Control groups");
    match cgroups {
        Cgroups::V2(controllers) => {
            let evidence = match controllers.as_str() {
                "" => "version 2, without controllers".into(),
                some => format!("version 2: {some}"),
            };
            finding(id, title, Status::Ok, evidence)
        }
        Cgroups::V1 => finding(id, title, Status::Warning, "version 1")
            .costs("machines cannot be limited in CPU, memory and I/O by Nyx")
            .mend("boot with systemd.unified_cgroup_hierarchy=1"),
        Cgroups::Absent => finding(id, title, Status::Missing, "not mounted")
            .costs("machines cannot be limited in CPU, memory and I/O by Nyx")
            .mend("mount -t cgroup2 none /sys/fs/cgroup"),
    }
}

fn tool(tool: &ToolFacts) -> Finding {
    let (purpose, package) = match tool.name {
        "slirp4netns" => ("user networking needs slirp4netns or passt", "slirp4netns"),
        "passt" => ("user networking needs slirp4netns or passt", "passt"),
        _ => ("disk images cannot be converted", "qemu-utils"),
    };
    match &tool.path {
        Some(path) if tool.version.is_empty() => finding(tool.name, tool.name, Status::Ok, path),
        Some(path) => finding(
            tool.name,
            tool.name,
            Status::Ok,
            format!("{} ({path})", tool.version),
        ),
        None => finding(tool.name, tool.name, Status::Missing, "not installed")
            .costs(purpose)
            .mend(format!("apt-get install {package}")),
    }
}
