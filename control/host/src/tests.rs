//! Judgements on injected facts, and one look at this host.

use crate::facts::{Cgroups, CpuFacts, Facts, HugePagePool, KvmFacts, ModuleParameter, ToolFacts};
use crate::read::{has_capability, huge_pages, parse_choice, parse_cpuinfo, parse_meminfo};
use crate::{GuestKernels, Report, Status, examine};
use proptest::prelude::*;

const NATIVE_BELOW: f64 = nyx_kvm::GuestKernelSpeed::NATIVE_BELOW_NANOSECONDS;

const ALL: [&str; 21] = [
    "KVM_CAP_X2APIC_API",
    "KVM_CAP_IOEVENTFD",
    "KVM_CAP_IOEVENTFD_ANY_LENGTH",
    "KVM_CAP_TSC_DEADLINE_TIMER",
    "KVM_CAP_VCPU_EVENTS",
    "KVM_CAP_DEBUGREGS",
    "KVM_CAP_XSAVE",
    "KVM_CAP_XCRS",
    "KVM_CAP_XSAVE2",
    "KVM_CAP_SREGS2",
    "KVM_CAP_USER_NMI",
    "KVM_CAP_ADJUST_CLOCK",
    "KVM_CAP_KVMCLOCK_CTRL",
    "KVM_CAP_GET_TSC_KHZ",
    "KVM_CAP_TSC_CONTROL",
    "KVM_CAP_READONLY_MEM",
    "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
    "KVM_CAP_MEMORY_FAULT_INFO",
    "KVM_CAP_NESTED_STATE",
    "KVM_CAP_HYPERV",
    "KVM_CAP_X86_SMM",
];

/// A server with everything.
fn perfect() -> Facts {
    Facts {
        kvm: Ok(KvmFacts {
            capabilities: ALL.map(|name| (name, 1)).to_vec(),
            max_vcpus: 1024,
            physical_address_bits: 46,
            speed: Some((0.31, true)),
            speed_error: None,
        }),
        cpu: CpuFacts {
            vendor: "GenuineIntel".into(),
            model: "Some Xeon".into(),
            count: 8,
            flags: ["vmx", "ept", "unrestricted_guest"]
                .map(String::from)
                .into(),
        },
        kvm_modules: vec!["kvm_intel".into()],
        parameters: vec![ModuleParameter {
            module: "kvm_intel",
            name: "nested",
            value: "Y".into(),
        }],
        memory_kib: (64 << 20, 32 << 20),
        huge_pages: vec![HugePagePool {
            size_kib: 2048,
            total: 512,
            free: 500,
        }],
        transparent_huge_pages: Some("madvise".into()),
        tun: Ok(()),
        net_admin: true,
        vhost_net: Ok(()),
        vhost_vsock: Ok(()),
        io_uring: Ok(()),
        io_uring_disabled: Some(0),
        user_namespace: Some(Ok(())),
        max_user_namespaces: Some(10_000),
        unprivileged_userns_clone: None,
        apparmor_restricts_userns: None,
        root: false,
        cgroups: Cgroups::V2("cpu memory io".into()),
        kernel: "6.12.95+deb13-amd64".into(),
        tools: vec![ToolFacts {
            name: "passt",
            path: Some("/usr/bin/passt".into()),
            version: "passt 2025".into(),
        }],
    }
}

fn judge(change: impl FnOnce(&mut Facts)) -> Report {
    let mut facts = perfect();
    change(&mut facts);
    Report::from_facts(&facts)
}

/// The one finding that is not as it should be.
fn only(report: &Report) -> &crate::Finding {
    let mut bad = report.findings.iter().filter(|f| f.status != Status::Ok);
    let one = bad.next().expect("something is wrong");
    assert_eq!(bad.next(), None);
    one
}

#[test]
fn a_perfect_host_has_nothing_to_mend() {
    let report = judge(|_| {});
    assert_eq!(report.guest_kernels, GuestKernels::Native);
    assert!(
        report.findings.iter().all(|f| f.status == Status::Ok),
        "{report:?}"
    );
    let text = report.render(false);
    assert!(
        text.starts_with("This host runs guest kernels natively."),
        "{text}"
    );
    assert!(!text.contains("mend") && !text.contains('\x1b'));
    assert!(report.render(true).contains("\x1b[32mok\x1b[0m"));
}

#[test]
fn without_kvm_nothing_runs_and_the_mend_is_said_once() {
    let report =
        judge(|f| f.kvm = Err("/dev/kvm does not exist: load KVM with `modprobe x`".into()));
    assert_eq!(report.guest_kernels, GuestKernels::Unavailable);
    assert_eq!(report.nanoseconds_per_instruction, None);
    let kvm = report.finding("kvm").unwrap();
    assert_eq!(kvm.status, Status::Missing);
    assert_eq!(kvm.evidence, "/dev/kvm does not exist");
    assert_eq!(kvm.fix.as_deref(), Some("load KVM with `modprobe x`"));
    assert!(
        report.finding("kvm-capabilities").is_none(),
        "nothing was asked"
    );
    assert_eq!(
        report.finding("guest-kernels").unwrap().status,
        Status::Missing
    );
}

#[test]
fn emulation_is_a_warning_with_its_measure() {
    let report = judge(|f| {
        let kvm = f.kvm.as_mut().unwrap();
        kvm.speed = Some((1612.4, false));
        f.cpu.flags.clear();
        f.kvm_modules = vec!["kvm_pvm".into()];
    });
    assert_eq!(report.guest_kernels, GuestKernels::Emulated);
    assert_eq!(report.nanoseconds_per_instruction, Some(1612.4));
    let speed = report.finding("guest-kernels").unwrap();
    assert_eq!(speed.status, Status::Warning);
    assert!(speed.evidence.contains("1612 ns"), "{}", speed.evidence);
    let cpu = report.finding("cpu-virtualization").unwrap();
    assert_eq!(cpu.status, Status::Warning);
    assert!(
        cpu.consequence
            .as_deref()
            .unwrap()
            .contains("software backend")
    );
    assert!(report.finding("kvm").unwrap().evidence.contains("kvm_pvm"));
}

#[test]
fn a_scratch_machine_that_fails_is_not_native() {
    let report = judge(|f| {
        let kvm = f.kvm.as_mut().unwrap();
        (kvm.speed, kvm.speed_error) = (None, Some("KVM_RUN: refused".into()));
    });
    assert_eq!(report.guest_kernels, GuestKernels::Unavailable);
    assert_eq!(only(&report).evidence, "KVM_RUN: refused");
}

#[test]
fn each_missing_capability_is_named_with_its_cost() {
    for name in ALL {
        let report = judge(|f| {
            f.kvm
                .as_mut()
                .unwrap()
                .capabilities
                .retain(|(n, _)| *n != name);
        });
        let bad: Vec<_> = report
            .findings
            .iter()
            .filter(|f| f.status != Status::Ok)
            .collect();
        let [summary, missing] = bad[..] else {
            panic!("{name}: {bad:?}")
        };
        assert_eq!(
            (summary.id.as_str(), summary.status),
            ("kvm-capabilities", Status::Warning)
        );
        assert_eq!(summary.evidence, "20 of the 21 that Nyx uses");
        assert_eq!(missing.evidence, format!("{name} is absent"));
        assert!(missing.consequence.is_some());
    }
    let zero = judge(|f| f.kvm.as_mut().unwrap().capabilities[18].1 = 0);
    assert!(
        zero.finding("kvm-cap-nested-state").is_some(),
        "zero is absent too"
    );
}

#[test]
fn amd_and_old_intel() {
    let amd = judge(|f| {
        f.cpu.vendor = "AuthenticAMD".into();
        f.cpu.flags = ["svm", "npt"].map(String::from).into();
    });
    assert!(
        amd.findings.iter().all(|f| f.status == Status::Ok),
        "{amd:?}"
    );
    let no_npt = judge(|f| f.cpu.flags = ["svm"].map(String::from).into());
    assert!(only(&no_npt).evidence.contains("no nested paging"));
    let westmere = judge(|f| f.cpu.flags = ["vmx", "ept"].map(String::from).into());
    assert!(only(&westmere).evidence.contains("no unrestricted guest"));
    // A kernel that lists no features of VT-x proves nothing.
    let silent = judge(|f| f.cpu.flags = ["vmx"].map(String::from).into());
    assert!(
        silent.findings.iter().all(|f| f.status == Status::Ok),
        "{silent:?}"
    );
}

#[test]
fn io_uring_says_who_forbids_it() {
    let sysctl = judge(|f| {
        (f.io_uring, f.io_uring_disabled) = (Err("Operation not permitted".into()), Some(2));
    });
    assert_eq!(
        only(&sysctl).fix.as_deref(),
        Some("sysctl kernel.io_uring_disabled=0")
    );
    let seccomp = judge(|f| f.io_uring = Err("Operation not permitted".into()));
    assert!(only(&seccomp).fix.as_deref().unwrap().contains("seccomp"));
}

#[test]
fn user_namespaces_say_which_switch_is_off() {
    let switch = |change: fn(&mut Facts)| {
        let report = judge(|f| {
            f.user_namespace = Some(Err("unshare failed".into()));
            change(f);
        });
        only(&report).fix.clone().unwrap()
    };
    assert!(switch(|f| f.max_user_namespaces = Some(0)).contains("max_user_namespaces"));
    assert!(switch(|f| f.unprivileged_userns_clone = Some(0)).contains("userns_clone=1"));
    assert!(switch(|f| f.apparmor_restricts_userns = Some(1)).contains("apparmor"));
    assert!(switch(|_| {}).contains("seccomp"));
    let untried = judge(|f| f.user_namespace = None);
    assert_eq!(
        untried.finding("user-namespaces").unwrap().status,
        Status::Ok
    );
}

#[test]
fn networks_memory_kernels_and_tools() {
    assert_eq!(only(&judge(|f| f.net_admin = false)).id, "tun");
    let absent = judge(|f| f.tun = Err("/dev/net/tun does not exist".into()));
    assert_eq!(only(&absent).fix.as_deref(), Some("modprobe tun"));
    let vhost = judge(|f| f.vhost_net = Err("/dev/vhost-net does not exist".into()));
    assert_eq!(only(&vhost).fix.as_deref(), Some("modprobe vhost_net"));
    assert_eq!(only(&judge(|f| f.memory_kib.1 = 1000)).id, "memory");
    assert_eq!(
        only(&judge(|f| f.kernel = "5.10.0-30-amd64".into())).id,
        "kernel"
    );
    for fine in ["5.14.0", "6.1.192-2", "10.0", "rolling"] {
        let report = judge(|f| f.kernel = fine.into());
        assert_eq!(
            report.finding("kernel").unwrap().status,
            Status::Ok,
            "{fine}"
        );
    }
    assert_eq!(only(&judge(|f| f.cgroups = Cgroups::V1)).id, "cgroups");
    assert_eq!(
        only(&judge(|f| f.cgroups = Cgroups::Absent)).status,
        Status::Missing
    );
    let tool = judge(|f| f.tools[0].path = None);
    assert_eq!(only(&tool).fix.as_deref(), Some("apt-get install passt"));
    let thp = judge(|f| f.transparent_huge_pages = Some("never".into()));
    assert_eq!(only(&thp).id, "transparent-huge-pages");
    // An empty pool is how most hosts are, and no fault.
    let pool = judge(|f| f.huge_pages[0].total = 0);
    let pool = pool.finding("huge-pages").unwrap();
    assert_eq!((pool.status, pool.fix.is_some()), (Status::Ok, true));
}

#[test]
fn texts_of_the_kernel_are_parsed() {
    let cpu = parse_cpuinfo(
        "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A: B\nflags\t\t: fpu vmx\n\
         vmx flags\t: ept vnmi\n\nprocessor\t: 1\nvendor_id\t: X\nflags\t\t: other\n",
    );
    assert_eq!(
        (cpu.vendor.as_str(), cpu.model.as_str(), cpu.count),
        ("GenuineIntel", "A: B", 2)
    );
    assert_eq!(
        cpu.flags.iter().collect::<Vec<_>>(),
        ["ept", "fpu", "vmx", "vnmi"]
    );
    assert_eq!(
        parse_meminfo("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable: 60 kB\n"),
        (100, 60)
    );
    assert_eq!(
        parse_choice("always [madvise] never\n").as_deref(),
        Some("madvise")
    );
    assert_eq!(parse_choice("nothing chosen"), None);
    assert!(has_capability("Name:\tx\nCapEff:\t0000000000001000\n", 12));
    assert!(!has_capability(
        "CapPrm:\t0000000000001000\nCapEff:\t0000000000000fff\n",
        12
    ));
}

#[test]
fn huge_page_pools_are_read_small_ones_first() {
    let root = std::env::temp_dir().join(format!("nyx-host-{}", std::process::id()));
    for (size, total, free) in [("1048576", "4", "3"), ("2048", "512", "0")] {
        let folder = root.join(format!("hugepages-{size}kB"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("nr_hugepages"), format!("{total}\n")).unwrap();
        std::fs::write(folder.join("free_hugepages"), format!("{free}\n")).unwrap();
    }
    std::fs::create_dir_all(root.join("hugepages-oddkB")).unwrap();
    let pools = huge_pages(&root);
    std::fs::remove_dir_all(&root).unwrap();
    assert_eq!(
        pools,
        [
            HugePagePool {
                size_kib: 2048,
                total: 512,
                free: 0
            },
            HugePagePool {
                size_kib: 1 << 20,
                total: 4,
                free: 3
            },
        ]
    );
}

#[test]
fn json_has_the_fields_that_programs_read() {
    let json = serde_json::to_value(judge(|f| f.net_admin = false)).unwrap();
    assert_eq!(json["guest_kernels"], "native");
    assert_eq!(json["nanoseconds_per_instruction"], 0.31);
    let tun = json["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["id"] == "tun")
        .unwrap();
    assert_eq!(tun["status"], "warning");
    assert!(tun["title"].is_string() && tun["evidence"].is_string() && tun["fix"].is_string());
}

#[test]
fn this_host_is_described_without_contradiction() {
    let report = examine();
    let kvm = report.finding("kvm").unwrap();
    let measured = report.nanoseconds_per_instruction;
    match report.guest_kernels {
        GuestKernels::Native => assert!(measured.unwrap() < NATIVE_BELOW),
        GuestKernels::Emulated => assert!(measured.unwrap() >= NATIVE_BELOW),
        GuestKernels::Unavailable => assert_eq!(measured, None),
    }
    assert_eq!(
        kvm.status == Status::Ok,
        report.finding("kvm-capabilities").is_some()
    );
    let cpus = std::thread::available_parallelism().unwrap().get();
    let listed = report.finding("cpus").unwrap();
    let count: usize = listed.evidence.split(' ').next().unwrap().parse().unwrap();
    assert!(count >= cpus, "{}", listed.evidence);
    let mut ids: Vec<_> = report.findings.iter().map(|f| &f.id).collect();
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all, "ids are unique");
    for f in &report.findings {
        assert!(!f.evidence.is_empty(), "{f:?}");
        assert!(f.status == Status::Ok || f.consequence.is_some(), "{f:?}");
    }
    for line in report.render(false).lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
}

proptest! {
    #[test]
    fn no_text_of_the_kernel_is_a_surprise(text in "\\PC*") {
        parse_cpuinfo(&text);
        parse_meminfo(&text);
        parse_choice(&text);
        has_capability(&text, 12);
        let report = judge(|f| {
            f.kernel = text.clone();
            f.kvm = Err(text.clone());
            f.tun = Err(text.clone());
        });
        prop_assert!(!report.render(true).is_empty());
    }
}
