//! Tests of the builder: every call in the file, every refusal by name, all problems at once.

use crate::{
    BuildErrorKind, BuildErrors, Console, ConsoleKind, Disk, DiskEngine, DiskFormat, Feature,
    HugePageSize, Isolation, Net, OnEnospc, PciId, ProductionVMBuilder, SizeUnits, Transport,
    VmBuilder,
};
use nyx_spec::{ConsoleDevice, Cpus, parse_json, parse_toml};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn bootable() -> VmBuilder {
    VmBuilder::new().kernel("vmlinuz")
}

fn lines(errors: &BuildErrors) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// A call that describes the machine.
#[derive(Clone, Debug)]
enum Call {
    Name(String),
    Memory(u64),
    Pages(HugePageSize),
    Shared(bool),
    Prefault(bool),
    Cpus(u32),
    Topology(u32, u32, u32),
    Kernel(String),
    Initrd(String),
    Cmdline(String),
    Transport(bool),
    Disk(Disk),
    Net(Net),
    Nic,
    Console(Console),
    Headless,
    DebugConsole(ConsoleKind, Option<String>),
    Vsock(u32, String),
    Rng(bool),
    RngNamed(String),
    /// One that says no to something, or is about this process.
    Quiet(u8),
}

fn call(builder: VmBuilder, call: &Call) -> VmBuilder {
    match call.clone() {
        Call::Name(name) => builder.name(name),
        Call::Memory(bytes) => builder.memory(bytes),
        Call::Pages(pages) => builder.huge_pages(pages),
        Call::Shared(on) => builder.shared_memory(on),
        Call::Prefault(on) => builder.prefault(on),
        Call::Cpus(count) => builder.cpus(count),
        Call::Topology(a, b, c) => builder.topology(a, b, c),
        Call::Kernel(path) => builder.kernel(path),
        Call::Initrd(path) => builder.initrd(path),
        Call::Cmdline(text) => builder.cmdline(text),
        Call::Transport(true) => builder.transport(Transport::Mmio),
        Call::Transport(false) => builder.transport(Transport::Pci),
        Call::Disk(disk) => builder.disk(disk),
        Call::Net(net) => builder.net(net),
        Call::Nic => builder.nic("virtio"),
        Call::Console(console) => builder.console(console),
        Call::Headless => builder.headless(),
        Call::DebugConsole(kind, path) => builder.debug_console(kind, path.map(Into::into)),
        Call::Vsock(cid, path) => builder.vsock(cid, path),
        Call::Rng(on) => builder.rng(on),
        Call::RngNamed(name) => builder.rng_named(name),
        Call::Quiet(0) => builder.gpu(false),
        Call::Quiet(1) => builder.ahci(false).legacy(true).numa_nodes(1),
        Call::Quiet(2) => builder.with_metrics().with_logging(),
        Call::Quiet(3) => builder.serial(|_| ()),
        Call::Quiet(4) => builder.with_performance_tracing(),
        Call::Quiet(5) => builder.with_audit_trail("/var/audit").with_control_socket(),
        Call::Quiet(_) => builder.iommu_large_pages(false).cpu_affinity([]),
    }
}

fn kind() -> impl Strategy<Value = ConsoleKind> {
    use ConsoleKind::{File, Null, Pty, Socket, Stdio};
    select(vec![Stdio, Pty, File, Socket, Null])
}

fn disk() -> impl Strategy<Value = Disk> {
    use DiskEngine::{Auto, IoUring, Threads};
    let shape = (
        option::of(any::<u32>()),
        option::of(any::<u16>()),
        option::of(any::<u16>()),
    );
    let texts = (
        any::<String>(),
        option::of(any::<String>()),
        option::of(any::<String>()),
    );
    let flags = (
        any::<bool>(),
        any::<bool>(),
        select(vec![Auto, IoUring, Threads]),
    );
    (texts, flags, shape).prop_map(
        |((path, name, serial), (readonly, direct, engine), shape)| {
            let mut disk = Disk::new(path).format(DiskFormat::Raw).engine(engine);
            disk = if direct {
                disk.on_enospc(OnEnospc::Report)
            } else {
                disk
            };
            disk = if readonly { disk.read_only() } else { disk };
            disk = if direct { disk.direct() } else { disk };
            disk.config.name = name;
            disk.config.serial = serial;
            (
                disk.config.block_size,
                disk.config.queues,
                disk.config.queue_size,
            ) = shape;
            disk
        },
    )
}

fn net() -> impl Strategy<Value = Net> {
    let texts = (
        option::of(any::<String>()),
        option::of(any::<String>()),
        option::of(any::<String>()),
        vec(any::<String>(), 0..3),
    );
    let shape = (
        option::of(vec(any::<i32>(), 0..3)),
        option::of(any::<u16>()),
        option::of(any::<u16>()),
    );
    (
        0..3_usize,
        texts,
        shape,
        any::<bool>(),
        option::of(any::<[u8; 5]>()),
    )
        .prop_map(
            |(kind, (name, tap, network, forward), (fds, mtu, queues), loopback, mac)| {
                let mut net = [Net::user(), Net::tap(), Net::null()][kind].clone();
                (net.config.name, net.config.tap, net.config.network) =
                    (name, tap.clone(), network);
                net.config.address = tap;
                net.config.forward = forward;
                (net.config.fds, net.config.mtu, net.config.queues) = (fds, mtu, queues);
                net.config.host_loopback = loopback;
                if let Some([a, b, c, d, e]) = mac {
                    net = net.mac(format!("52:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}"));
                }
                net
            },
        )
}

fn console() -> impl Strategy<Value = Console> {
    let texts = (option::of(any::<String>()), option::of(any::<String>()));
    (kind(), texts, any::<bool>(), any::<bool>()).prop_map(
        |(kind, (name, path), append, is_virtio)| {
            let mut console = Console::null();
            console.config.kind = kind;
            console.config.name = name;
            console.config.path = path.map(Into::into);
            console.config.append = append;
            if is_virtio { console.virtio() } else { console }
        },
    )
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    use HugePageSize::{Off, Size1G, Size2M, Transparent};
    let one = prop_oneof![
        any::<String>().prop_map(Call::Name),
        any::<u64>().prop_map(Call::Memory),
        select(vec![Off, Transparent, Size2M, Size1G]).prop_map(Call::Pages),
        any::<bool>().prop_map(Call::Shared),
        any::<bool>().prop_map(Call::Prefault),
        any::<u32>().prop_map(Call::Cpus),
        any::<(u32, u32, u32)>().prop_map(|(a, b, c)| Call::Topology(a, b, c)),
        any::<String>().prop_map(Call::Kernel),
        any::<String>().prop_map(Call::Initrd),
        any::<String>().prop_map(Call::Cmdline),
        any::<bool>().prop_map(Call::Transport),
        disk().prop_map(Call::Disk),
        net().prop_map(Call::Net),
        Just(Call::Nic),
        console().prop_map(Call::Console),
        Just(Call::Headless),
        (kind(), option::of(any::<String>())).prop_map(|(k, p)| Call::DebugConsole(k, p)),
        (any::<u32>(), any::<String>()).prop_map(|(cid, path)| Call::Vsock(cid, path)),
        any::<bool>().prop_map(Call::Rng),
        any::<String>().prop_map(Call::RngNamed),
        (0..7_u8).prop_map(Call::Quiet),
    ];
    vec(one, 0..24)
}

proptest! {
    #[test]
    fn whatever_the_builder_says_the_file_says(calls in calls()) {
        let builder = calls.iter().fold(VmBuilder::new(), call);
        let config = builder.to_config().unwrap();
        let toml = builder.to_toml().unwrap();
        let read = parse_toml(&toml);
        prop_assert_eq!(read.as_ref(), Ok(&config), "{}", toml);
        let read = parse_json(&builder.to_json().unwrap());
        prop_assert_eq!(read.as_ref(), Ok(&config));
        // And a builder that goes on from the file says the same again.
        let again = VmBuilder::from_toml(&toml).unwrap();
        prop_assert_eq!(again.to_config().unwrap(), config);
    }

    #[test]
    fn the_builder_finds_wrong_what_the_file_finds_wrong(calls in calls()) {
        let builder = calls.iter().fold(VmBuilder::new(), call);
        let in_file = builder.to_config().unwrap().validate();
        let sentences = in_file.as_ref().err().map_or(0, Vec::len);
        let found = builder.validate().err().map_or(0, |errors| errors.iter().count());
        // Identical sentences are told once.
        prop_assert!(found <= sentences);
        prop_assert_eq!(found == 0, sentences == 0);
    }
}

#[test]
fn a_file_holds_what_was_said_and_nothing_more() {
    let builder = bootable()
        .name("web1")
        .memory(2.gib())
        .cpus(2)
        .disk("/srv/root.img")
        .disk(Disk::new("/srv/data.img").read_only().serial("D1"))
        .net(Net::user().forward("tcp:127.0.0.1:8080:80"))
        .console(Console::pty());
    let expected = "\
name = \"web1\"
cpus = 2
memory = \"2G\"

[boot]
kernel = \"vmlinuz\"

[[disks]]
path = \"/srv/root.img\"

[[disks]]
path = \"/srv/data.img\"
readonly = true
serial = \"D1\"

[[nets]]
kind = \"user\"
forward = [\"tcp:127.0.0.1:8080:80\"]

[[consoles]]
kind = \"pty\"
";
    assert_eq!(builder.to_toml().unwrap(), expected);
    assert_eq!(VmBuilder::new().to_toml().unwrap(), "");
}

#[test]
fn what_a_file_cannot_say_is_named_in_it() {
    let builder = bootable()
        .serial(|_| ())
        .with_metrics()
        .with_error_handling();
    let expected = ["serial", "with_error_handling", "with_metrics"];
    assert_eq!(builder.beyond_the_file(), expected);
    let toml = builder.to_toml().unwrap();
    let first =
        "# Set up by the program and not said here: serial, with_error_handling, with_metrics.\n";
    assert!(toml.starts_with(first), "{toml}");
    let config = parse_toml(&toml).unwrap();
    let consoles = config.consoles.unwrap();
    assert_eq!(consoles.len(), 1);
    assert_eq!(consoles[0].kind, ConsoleKind::Null);
    assert_eq!(consoles[0].device, ConsoleDevice::Serial);
    // With a console of its own, the port keeps it.
    let builder = bootable().serial(|_| ()).console(Console::pty());
    let consoles = builder.to_config().unwrap().consoles.unwrap();
    assert_eq!((consoles.len(), consoles[0].kind), (1, ConsoleKind::Pty));
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    type Make = fn(VmBuilder) -> VmBuilder;
    let cases: [(&str, Make); 26] = [
        ("uefi", |b| b.uefi("OVMF.fd")),
        ("bios", |b| b.bios("seabios.bin")),
        ("gpu", |b| b.gpu(true)),
        ("ahci", |b| b.ahci(true)),
        ("nic", |b| b.nic("e1000")),
        ("disk", |b| b.disk("a.qcow2")),
        ("disk", |b| b.disk("a.vhdx")),
        ("disk", |b| b.disk("a.vmdk")),
        ("legacy", |b| b.legacy(false)),
        ("with_tpm", VmBuilder::with_tpm),
        ("with_live_migration", VmBuilder::with_live_migration),
        ("with_snapshot", VmBuilder::with_snapshot),
        ("with_iommu", VmBuilder::with_iommu),
        ("enable_iommu", VmBuilder::enable_iommu),
        ("passthrough_device", |b| {
            b.passthrough_device(0x300, "STRICT")
        }),
        ("passthrough_device", |b| {
            b.passthrough_device("03:00.0", Isolation::Shared)
        }),
        ("passthrough_device", |b| {
            b.passthrough_device(PciId::new(1), Isolation::Unmanaged)
        }),
        ("iommu_large_pages", |b| b.iommu_large_pages(true)),
        ("iommu_interrupt_coalescing", |b| {
            b.iommu_interrupt_coalescing(true)
        }),
        ("iommu_batch_invalidation", |b| {
            b.iommu_batch_invalidation(true)
        }),
        ("cpu_affinity", |b| b.cpu_affinity(0..16)),
        ("with_debug_symbols", |b| b.with_debug_symbols("app.dbg")),
        ("with_breakpoints", VmBuilder::with_breakpoints),
        ("allow_nested_vm", |b| b.allow_nested_vm(true)),
        ("enable_msi", |b| b.enable_msi(false)),
        ("numa_nodes", |b| b.numa_nodes(2)),
    ];
    for (method, make) in cases {
        for builder in [make(VmBuilder::new()), make(bootable())] {
            let refused = builder.to_config().unwrap_err();
            let said = lines(&refused);
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with(&format!("{method}: ")), "{said:?}");
            assert!(
                said[0].contains("not part of this version of Nyx; "),
                "{said:?}"
            );
            assert_eq!(refused.not_in_this_version(), [method]);
            assert_eq!(
                builder.to_toml().unwrap_err(),
                refused,
                "no file is silent about it"
            );
            assert_eq!(builder.to_json().unwrap_err(), refused);
        }
        // Alone it is the only thing wrong, and firmware is a kernel's stead.
        assert_eq!(
            lines(&make(bootable()).validate().unwrap_err()).len(),
            1,
            "{method}"
        );
        assert!(make(bootable()).build().is_err(), "{method}");
    }
    for firmware in [VmBuilder::new().uefi("f"), VmBuilder::new().bios("f")] {
        assert_eq!(lines(&firmware.validate().unwrap_err()).len(), 1);
    }
}

#[test]
fn saying_no_is_fine_and_the_last_word_counts() {
    let builder = bootable()
        .gpu(true)
        .gpu(false)
        .ahci(true)
        .ahci(false)
        .legacy(true)
        .iommu_large_pages(false)
        .iommu_interrupt_coalescing(false)
        .iommu_batch_invalidation(false)
        .allow_nested_vm(false)
        .enable_msi(true)
        .numa_nodes(2)
        .numa_nodes(1)
        .cpu_affinity([1])
        .cpu_affinity([]);
    assert_eq!(builder.validate(), Ok(()));
    assert_eq!(
        builder.to_config().unwrap(),
        bootable().to_config().unwrap()
    );
}

#[test]
fn a_format_that_is_stated_is_believed() {
    let builder = bootable().disk(Disk::new("odd.qcow2").format(DiskFormat::Raw));
    assert_eq!(builder.validate(), Ok(()));
}

#[test]
fn all_problems_are_told_at_once() {
    let builder = ProductionVMBuilder::new()
        .uefi("OVMF.fd")
        .memory(-1)
        .cpus(0)
        .disk("")
        .nic("ne2000")
        .net(Net::null().mac("01:00:00:00:00:00").queues(9))
        .vsock(2, "v")
        .passthrough_device("gpu", "SOFT")
        .transport(Transport::Mmio)
        .with_pci_hotplug();
    let said = lines(&builder.validate().unwrap_err());
    let starts = [
        "uefi: OVMF.fd: UEFI firmware is not part",
        "memory: -1 is not a size",
        "nic: \"ne2000\" is not a model",
        "net: \"01:00:00:00:00:00\" is not usable",
        "passthrough_device: \"gpu\" is not a PCI function",
        "passthrough_device: \"SOFT\" is not an isolation",
        "cpus: 0 is not a number of vCPUs",
        "disk: number 1, path: it is empty",
        "net: number 1, queues: 9 is not within 1 to 8",
        "vsock: cid: 2 is reserved",
        "with_pci_hotplug: the machine has no PCI",
    ];
    assert_eq!(said.len(), starts.len(), "{said:#?}");
    for (line, start) in said.iter().zip(starts) {
        assert!(line.starts_with(start), "{line:?} is not {start:?}");
    }
}

#[test]
fn files_that_cannot_be_used_are_told_together() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("empty"), b"").unwrap();
    let errors = VmBuilder::new()
        .kernel(at("none"))
        .initrd(at("nothing"))
        .disk(at("a.img"))
        .disk(at("empty"))
        .cpus(0)
        .build()
        .unwrap_err();
    let said: Vec<_> = errors.iter().map(|e| (e.kind, e.method.as_str())).collect();
    let expected = [
        (BuildErrorKind::Invalid, "cpus"),
        (BuildErrorKind::File, "kernel"),
        (BuildErrorKind::File, "initrd"),
        (BuildErrorKind::File, "disk"),
    ];
    assert_eq!(said, expected, "{errors}");
    assert!(
        errors.to_string().contains("number 1, path: cannot open"),
        "{errors}"
    );
}

#[test]
fn a_machine_needs_something_to_boot() {
    let said = lines(&VmBuilder::new().validate().unwrap_err());
    assert_eq!(
        said,
        ["kernel: there is nothing to boot; name a kernel with kernel(path)"]
    );
}

#[test]
fn memory_and_cpus_keep_the_short_form_where_it_says_all() {
    let config = |builder: VmBuilder| builder.to_config().unwrap();
    assert_eq!(config(bootable().cpus(4)).cpus, Cpus::Count(4));
    let topology = bootable().topology(1, 2, 2).cpus(4);
    assert!(matches!(config(topology).cpus, Cpus::Table(_)));
    let memory = bootable().memory("1G").shared_memory(true).memory("2GB");
    let table = config(memory).memory.table();
    assert_eq!((table.size, table.shared), (2.gib(), true));
    let undone = bootable().memory(1.gib()).prefault(true).prefault(false);
    assert_eq!(config(undone), config(bootable().memory(1.gib())));
}

#[test]
fn features_are_off_until_asked_for() {
    let builder = bootable();
    assert!(
        Feature::ALL
            .iter()
            .all(|feature| !builder.is_enabled(*feature))
    );
    let builder = builder
        .with_error_handling()
        .with_logging()
        .with_metrics()
        .with_pci_hotplug()
        .with_performance_tracing()
        .with_control_socket();
    assert!(
        Feature::ALL
            .iter()
            .all(|feature| builder.is_enabled(*feature))
    );
    // The journal is in the file.
    let in_file = [Feature::Logging, Feature::PerformanceTracing];
    let beyond = Feature::ALL.iter().filter(|f| !in_file.contains(f));
    let methods: Vec<_> = beyond.map(|f| f.method()).collect();
    assert_eq!(builder.beyond_the_file(), methods);
    let again = VmBuilder::from_config(builder.to_config().unwrap());
    assert!(in_file.iter().all(|feature| again.is_enabled(*feature)));
    assert_eq!(builder.validate(), Ok(()));
}

#[test]
fn a_file_is_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.toml");
    std::fs::write(&file, bootable().name("filed").to_toml().unwrap()).unwrap();
    let config = VmBuilder::from_file(&file)
        .unwrap()
        .cpus(3)
        .to_config()
        .unwrap();
    assert_eq!(
        (config.name.as_deref(), &config.cpus),
        (Some("filed"), &Cpus::Count(3))
    );
    let json = folder.path().join("m.json");
    std::fs::write(&json, bootable().to_json().unwrap()).unwrap();
    assert!(VmBuilder::from_file(&json).unwrap().validate().is_ok());
    std::fs::write(&file, "memroy = 1").unwrap();
    let refused = VmBuilder::from_file(&file).unwrap_err().to_string();
    assert!(
        refused.contains("m.toml") && refused.contains("memory"),
        "{refused}"
    );
    assert!(VmBuilder::from_file(folder.path().join("none")).is_err());
}

#[test]
fn the_journal_is_described_in_the_file() {
    let plain = bootable().with_performance_tracing();
    let toml = plain.to_toml().unwrap();
    let expected = "\n[journal.trace]\nenabled = true\n";
    assert!(toml.ends_with(expected), "{toml}");
    // The order of the calls makes no difference, and spans stay asked for.
    let both = bootable().with_logging().with_performance_tracing();
    let turned = bootable().with_performance_tracing().with_logging();
    assert_eq!(both.to_config().unwrap(), turned.to_config().unwrap());
    let journal = both.to_config().unwrap().journal.unwrap();
    assert_eq!((journal.outputs.len(), journal.trace.enabled), (1, true));
    // One that makes no sense is refused like everything else.
    let journal = crate::journal::JournalConfig {
        entries: 1,
        ..Default::default()
    };
    let said = lines(&bootable().with_journal(journal).validate().unwrap_err());
    assert!(said[0].starts_with("with_journal: entries"), "{said:?}");
}
