//! Each rule: what it must find, and what only resembles it.

use super::RULES;
use crate::scene::{
    Answer, Console, Device, Interface, Neighbour, NeighbourState, Outcome, Probe, Scene,
};
use crate::stages::{Reached, Stage};
use crate::verdict::Verdict;
use crate::{Confidence, diagnose, worth_keeping};
use std::collections::BTreeSet;

/// A rule, a scene in which it speaks, one in which it must not.
struct Case {
    id: &'static str,
    yes: Scene,
    no: Scene,
}

/// A machine with a disk, a network card, an entropy device and COM1, that said this and was stopped.
fn said(text: &str) -> Scene {
    let device = |name: &str, kind: &str, guest: Option<&str>| Device {
        name: name.into(),
        kind: kind.into(),
        guest: guest.map(str::to_owned),
        ..Device::default()
    };
    let mut scene = Scene {
        consoles: vec![Console {
            name: "com1".into(),
            device: "ttyS0".into(),
            head: text.into(),
            ..Console::default()
        }],
        ..Scene::default()
    };
    scene.machine.name = "web".into();
    scene.machine.kernel = "/boot/vmlinuz".into();
    scene.machine.initrd = Some("/boot/initrd".into());
    scene.machine.cmdline = "console=ttyS0 root=/dev/vda".into();
    scene.machine.memory = 256 << 20;
    scene.machine.has_pci = true;
    scene.machine.devices = vec![
        device("disk0", "virtio-blk", Some("vda")),
        device("net0", "virtio-net", None),
        device("rng", "virtio-rng", None),
        device("com1", "serial", Some("ttyS0")),
    ];
    scene
}

trait With {
    fn ended(self, outcome: Outcome) -> Self;
    fn line(self, cmdline: &str) -> Self;
    fn driven(self, kind: &str, activations: u64) -> Self;
    fn without(self, kind: &str) -> Self;
    fn alter(self, change: impl FnOnce(&mut Scene)) -> Self;
}

impl With for Scene {
    fn ended(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }
    fn line(mut self, cmdline: &str) -> Self {
        self.machine.cmdline = cmdline.into();
        self
    }
    fn driven(mut self, kind: &str, activations: u64) -> Self {
        let devices = self.machine.devices.iter_mut();
        devices
            .filter(|device| device.kind == kind)
            .for_each(|device| device.activations = Some(activations));
        self
    }
    fn without(mut self, kind: &str) -> Self {
        self.machine.devices.retain(|device| device.kind != kind);
        self
    }
    fn alter(mut self, change: impl FnOnce(&mut Scene)) -> Self {
        change(&mut self);
        self
    }
}

fn running(seconds: u64) -> Outcome {
    Outcome::Running {
        for_ms: seconds * 1000 + 500,
        silent_ms: seconds * 1000,
    }
}

fn broken(why: &str) -> Scene {
    said("Linux version 6.1\n").ended(Outcome::Broken { why: why.into() })
}

fn tap(carrier: bool, to_guest: u64, from_guest: u64) -> impl FnOnce(&mut Scene) {
    move |scene| {
        scene.host.interfaces.push(Interface {
            name: "nyx0".into(),
            exists: true,
            is_up: Some(true),
            carrier: Some(carrier),
            to_guest: Some(to_guest),
            from_guest: Some(from_guest),
        });
    }
}

fn neighbour(mac: Option<&str>) -> impl FnOnce(&mut Scene) {
    let state = match mac {
        Some(mac) => NeighbourState::Resolved { mac: mac.into() },
        None => NeighbourState::Incomplete,
    };
    move |scene| {
        scene.host.neighbours.push(Neighbour {
            address: "10.9.0.2".into(),
            interface: "nyx0".into(),
            state,
            expected: Some("52:54:00:AB:cd:ef".into()),
        });
    }
}

fn probed(answer: Answer) -> impl FnOnce(&mut Scene) {
    move |scene| {
        scene.host.probes.push(Probe {
            target: "10.9.0.2:22".into(),
            answer,
        });
    }
}

const NO_ROOT: &str = "\
[    0.912345] VFS: Cannot open root device \"vda\" or unknown-block(0,0): error -6
[    0.912789] Please append a correct \"root=\" boot option; here are the available partitions:
[    0.913456] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)
";
const NO_ROOT_BUT_DISKS: &str = "\
[    0.712345] virtio_blk virtio1: [vda] 524288 512-byte logical blocks (268 MB/256 MiB)
[    0.713456]  vda: vda1 vda2
[    0.912345] VFS: Cannot open root device \"sda1\" or unknown-block(0,0): error -6
[    0.912789] Please append a correct \"root=\" boot option; here are the available partitions:
[    0.912790] fe00          262144 vda
[    0.912791]  driver: virtio_blk
[    0.912792]   fe01          131072 vda1 5d3c1a7e-01
[    0.913456] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)
";
const UP: &str = "\
[    0.000000] Linux version 6.1.0-56-cloud-amd64
[    0.712345] virtio_blk virtio1: [vda] 524288 512-byte logical blocks (268 MB/256 MiB)
[    1.200000] Run /init as init process
[    1.500000] EXT4-fs (vda): mounted filesystem with ordered data mode. Quota mode: none.
[    2.000000] systemd[1]: systemd 252.39-1~deb12u1 running in system mode (+PAM)
";

fn cases() -> Vec<Case> {
    let case = |id, yes, no| Case { id, yes, no };
    let panics = |why: &str| {
        said(&format!(
            "[    1.0] x\n[    2.000000] Kernel panic - not syncing: {why}\n"
        ))
    };
    let up = |more: &str| said(&format!("{UP}{more}"));
    let up_to_login = |more: &str| up(&format!("{more}\nweb login: "));
    vec![
        case(
            "vmm-refused",
            said("").ended(Outcome::Refused { error: "boot.kernel: /k: no kernel for x86".into() }),
            broken("boot.kernel"),
        ),
        case(
            "host-disk-full",
            broken("disk0: write failed: No space left on device (os error 28)"),
            // The guest's own word for its own disk.
            up_to_login("cp: error writing '/x': No space left on device"),
        ),
        case(
            "host-memory-exhausted",
            said("").ended(Outcome::Refused { error: "memory: cannot reserve 64G: Cannot allocate memory (os error 12)".into() }),
            up("sh: fork: Cannot allocate memory\n"),
        ),
        case(
            "vmm-vanished",
            up("").ended(Outcome::Vanished { signal: Some(9), code: None }),
            up("").ended(Outcome::Stopped),
        ),
        case("hypervisor-failed", broken("vCPU 0: KVM internal error 1"), up("KVM internal error\n")),
        case(
            "console-elsewhere",
            said("").line("console=ttyS1,115200n8 root=/dev/vda").ended(running(20)),
            said("").line("console=ttyS1 console=ttyS0,115200").ended(running(20)),
        ),
        case(
            "console-driver-late",
            said("").line("console=hvc0").alter(|scene| {
                scene.machine.devices.push(Device {
                    name: "console".into(),
                    kind: "virtio-console".into(),
                    guest: Some("hvc0".into()),
                    activations: Some(0),
                    ..Device::default()
                });
            }),
            said("").line("console=hvc0 console=ttyS0"),
        ),
        case(
            "console-lost",
            said("[    0.1] x\n[    0.150000] printk: bootconsole [earlyser0] disabled\n").ended(running(60)),
            said("[    0.150000] printk: bootconsole [earlyser0] disabled\n[    0.160000] serial8250: ttyS0 at I/O 0x3f8\n"),
        ),
        case("kernel-silent", said("").ended(running(15)), said("").ended(running(2))),
        case(
            "early-triple-fault",
            said("").ended(Outcome::TripleFault { vcpu: 0 }),
            said("[    0.000000] Linux version 6.1\n").ended(Outcome::TripleFault { vcpu: 0 }),
        ),
        case(
            "triple-fault",
            said("[    1.000000] reboot: machine restart\n").ended(Outcome::TripleFault { vcpu: 1 }),
            said("[    1.000000] reboot: machine restart\n").ended(Outcome::PoweredOff),
        ),
        case(
            "slow-host",
            said("").ended(running(100)).alter(|scene| scene.host.has_slow_kvm = Some(true)),
            up("").ended(running(100)).alter(|scene| scene.host.has_slow_kvm = Some(true)),
        ),
        case(
            "kernel-damaged",
            said("\r\n\r\nXZ-compressed data is corrupt\r\n\r\n -- System halted\r\n"),
            said("[    1.000000] reboot: System halted\n"),
        ),
        case(
            "efi-stub-failed",
            said("EFI stub: ERROR: Failed to handle fs_proto\n"),
            said("EFI stub: Loaded initrd from LINUX_EFI_INITRD_MEDIA_GUID device path\n"),
        ),
        case(
            "nothing-bootable",
            said("Booting from Hard Disk...\r\nBoot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n"),
            said("BdsDxe: loading Boot0001 \"debian\" from HD(1,GPT)\n"),
        ),
        case(
            "cpu-feature-missing",
            said("/init: Fatal glibc error: CPU does not support x86-64-v2\n[    1.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00\n"),
            panics("Attempted to kill init! exitcode=0x00000400"),
        ),
        case(
            "timer-broken",
            panics("IO-APIC + timer doesn't work!  Boot with apic=debug and send a report."),
            said("[    0.000000] ..TIMER: vector=0x30 apic1=0 pin1=2 apic2=-1 pin2=-1\n"),
        ),
        case(
            "initramfs-damaged",
            said("[    0.400000] Initramfs unpacking failed: invalid magic at start of compressed archive\n"),
            said("[    0.400000] Unpacking initramfs...\n[    0.500000] Freeing initrd memory: 7000K\n"),
        ),
        case(
            "initramfs-too-big",
            said("[    0.400000] Initramfs unpacking failed: write error\n"),
            said("[    0.400000] Initramfs unpacking failed: junk within compressed archive\n"),
        ),
        case(
            "initramfs-shell",
            said("mount: bad usage\nBusyBox v1.35.0 built-in shell (ash)\n(initramfs) "),
            up_to_login(""),
        ),
        case("disk-driver-missing", said(NO_ROOT), said(NO_ROOT_BUT_DISKS)),
        case(
            "wrong-root-device",
            said(NO_ROOT_BUT_DISKS).line("root=/dev/sda1"),
            said(NO_ROOT).line("root=/dev/sda1"),
        ),
        case(
            "root-wait-endless",
            said("[    0.912345] Waiting for root device /dev/vdz...\n").ended(running(30)),
            said("[    0.912345] Waiting for root device /dev/vda...\n[    1.0] x\n[    1.100000] VFS: Mounted root (ext4 filesystem) on device 254:0.\n"),
        ),
        case(
            "root-device-absent",
            said("ALERT!  UUID=3c1a-77 does not exist.  Dropping to a shell!\n(initramfs) ").line("root=UUID=3c1a-77 quiet"),
            up_to_login(""),
        ),
        case(
            "filesystem-damaged",
            said("[    1.100000] EXT4-fs (vda): ext4_check_descriptors: Block bitmap for group 0 not in group (block 0)!\n[    1.100001] EXT4-fs (vda): group descriptors corrupted!\n"),
            said("[    1.100000] EXT4-fs (vda): mounted filesystem with ordered data mode\n"),
        ),
        case(
            "disk-changed-behind-guest",
            said("[    1.100000] EXT4-fs error (device vda): __ext4_find_entry:1682: inode #2: comm ls: checksumming directory block 0\n"),
            said("[    1.100000] EXT4-fs error (device vda): ext4_lookup:1784: inode #2: comm ls: deleted inode referenced: 12\n"),
        ),
        case(
            "filesystem-unknown",
            said("[    1.100000] VFS: Cannot open root device \"vda\" or unknown-block(254,0): error -19\n[    1.1] List of all bdev filesystems:\n[    1.200000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(254,0)\n"),
            said(NO_ROOT),
        ),
        case(
            "root-read-only-journal",
            said("[    1.100000] EXT4-fs (vda): INFO: recovery required on readonly filesystem\n[    1.100001] EXT4-fs (vda): write access unavailable, cannot proceed (try mounting with noload)\n"),
            said("[    1.100000] EXT4-fs (vda): INFO: recovery complete\n"),
        ),
        case(
            "root-mount-options",
            said("[    1.100000] EXT4-fs (vda): Unrecognized mount option \"discrad\" or missing value\n"),
            said("[    1.100000] EXT4-fs (vda): mounted filesystem. Opts: discard\n"),
        ),
        case(
            "filesystem-too-new",
            said("[    1.100000] EXT4-fs (vda): couldn't mount because of unsupported optional features (10000)\n"),
            said("[    1.100000] EXT4-fs (vda): couldn't mount as ext3 due to feature incompatibilities\n"),
        ),
        case(
            "disk-errors",
            said("[    9.100000] I/O error, dev vda, sector 12800 op 0x0:(READ) flags 0x0 phys_seg 16 prio class 2\n"),
            said("[    9.100000] blk_update_request: I/O error, dev fd0, sector 0 op 0x0:(READ)\n"),
        ),
        case(
            "init-wrong-architecture",
            said("[    1.100000] Failed to execute /init (error -8)\n[    1.2] Kernel panic - not syncing: No working init found.  Try passing init= option to kernel.\n"),
            said("[    1.100000] Failed to execute /init (error -2)\n"),
        ),
        case(
            "init-missing",
            panics("No working init found.  Try passing init= option to kernel. See Linux Documentation/admin-guide/init.rst for guidance."),
            said("[    1.100000] Run /sbin/init as init process\n"),
        ),
        case(
            "init-library-missing",
            said("/sbin/init: error while loading shared libraries: libselinux.so.1: cannot open shared object file\n[    1.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00\n"),
            up_to_login("foo: error while loading shared libraries: libx.so.1: cannot open\n"),
        ),
        case(
            "kernel-too-old",
            said("FATAL: kernel too old\n[    1.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00\n"),
            said("[    1.000000] too old firmware\n"),
        ),
        case("init-died", panics("Attempted to kill init! exitcode=0x0000000b"), panics("Attempted to kill the idle task!")),
        case(
            "no-initial-console",
            said("[    1.000000] Warning: unable to open an initial console.\n"),
            said("[    1.000000] printk: console [ttyS0] enabled\n"),
        ),
        case(
            "selinux-stopped",
            said("[    3.000000] systemd[1]: Failed to load SELinux policy.\n[!!!!!!] Failed to load SELinux policy.\n"),
            said("[    3.000000] systemd[1]: Successfully loaded SELinux policy in 120ms.\n"),
        ),
        case(
            "modules-mismatch",
            up("[    2.100000] virtio_net: version magic '6.1.0-55-amd64 SMP' should be '6.1.0-56-cloud-amd64 SMP'\n"),
            up("[    2.100000] foo: loading out-of-tree module taints kernel.\n"),
        ),
        case(
            "modules-missing",
            up("modprobe: FATAL: Module nf_tables not found in directory /lib/modules/6.1.0-56-cloud-amd64\n"),
            up("modprobe: INFO: nothing to do\n"),
        ),
        case(
            "module-unsigned",
            up("[    2.100000] Loading of unsigned module is rejected\n"),
            up("[    2.100000] foo: module verification failed: signature and/or required key missing - tainting kernel\n"),
        ),
        case(
            "driver-probe-failed",
            said("[    0.500000] virtio_net: probe of virtio0 failed with error -22\n"),
            said("[    0.500000] virtio-mmio: probe of LNRO0005:00 failed with error -16\n"),
        ),
        case(
            "out-of-memory",
            panics("System is deadlocked on memory"),
            up("[   20.000000] Out of memory: Killed process 412 (python3) total-vm:903212kB\n"),
        ),
        case(
            "out-of-memory-killed",
            up("[   20.000000] Out of memory: Killed process 412 (python3) total-vm:903212kB\n"),
            up("[   20.000000] out_of_memory handler registered\n"),
        ),
        case(
            "fstab-device-absent",
            up("[ TIME ] Timed out waiting for device dev-vdb1.device - /dev/vdb1.\n[DEPEND] Dependency failed for data.mount - /data.\n"),
            up("[  OK  ] Found device dev-vdb1.device - /dev/vdb1.\n"),
        ),
        case(
            "emergency-mode",
            up("You are in emergency mode. After logging in, type \"journalctl -xb\"\n"),
            up("[  OK  ] Started emergency.service - Not an emergency.\n"),
        ),
        case(
            "network-wait-endless",
            up("[**    ] (1 of 2) A start job is running for Wait for Network to be Configured (1min 3s / no limit)\r"),
            up_to_login("[  OK  ] Finished systemd-networkd-wait-online.service - Wait for Network to be Configured.\n"),
        ),
        case(
            "service-failed",
            up("[FAILED] Failed to start nginx.service - A high performance web server.\n"),
            up("[  OK  ] Started nginx.service - A high performance web server.\n"),
        ),
        case(
            "guest-disk-full",
            up_to_login("cp: error writing '/x': No space left on device"),
            broken("No space left on device (os error 28)"),
        ),
        case(
            "kernel-bug",
            up("[   20.000000] BUG: kernel NULL pointer dereference, address: 0000000000000008\n[   20.1] x\n[   20.000001] RIP: 0010:foo+0x12/0x80 [bar]\n"),
            up("[   20.000000] traps: python3[412] general protection fault ip:7f0000 sp:7ffd00 error:0 in libc.so.6\n"),
        ),
        case(
            "cpu-stall",
            up("[   60.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [swapper/0:1]\n"),
            up("[    0.100000] NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.\n"),
        ),
        case(
            "io-hang",
            up("[  242.000000] INFO: task jbd2/vda-8:123 blocked for more than 120 seconds.\n"),
            up("[  242.000000] INFO: task management ready\n"),
        ),
        case(
            "clock-unstable",
            up("[    5.000000] clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large:\n"),
            up("[    1.000000] clocksource: Switched to clocksource kvm-clock\n"),
        ),
        case(
            "entropy-late",
            up("[   12.000000] random: crng init done\n").without("virtio-rng"),
            up("[    0.300000] random: crng init done\n"),
        ),
        case(
            "reset-loop",
            said(NO_ROOT).alter(|scene| scene.resets = 4),
            said(NO_ROOT).alter(|scene| {
                scene.resets = 4;
                scene.stages = vec![Reached {
                    stage: Stage::Guest,
                    // Four resets in a day are an administrator's.
                    after_ns: 86_400_000_000_000,
                    guest_us: None,
                    by: String::new(),
                }];
            }),
        ),
        case(
            "ip-ignored",
            said("[    0.000000] Linux version 6.1\n[    0.000001] Unknown kernel command line parameters \"foo ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off\", will be passed to user space.\n")
                .line("root=/dev/vda ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off"),
            up("[    1.000000] IP-Config: Complete:\n").line("ip=dhcp"),
        ),
        case(
            "net-driver-missing",
            up("").driven("virtio-net", 0),
            up("").driven("virtio-net", 1),
        ),
        case(
            "dhcp-failed",
            up("udhcpc: broadcasting discover\nudhcpc: no lease, failing\n"),
            up("udhcpc: lease of 10.0.2.15 obtained from 10.0.2.2, lease time 86400\n"),
        ),
        case(
            "tap-missing",
            up("").alter(|scene| scene.host.interfaces.push(Interface { name: "nyx0".into(), ..Interface::default() })),
            up("").alter(tap(true, 0, 0)),
        ),
        case("tap-no-carrier", up("").alter(tap(false, 0, 0)), up("").alter(tap(true, 0, 0))),
        case(
            "guest-net-silent",
            up("").alter(tap(true, 12, 0)).alter(neighbour(None)),
            up("").alter(tap(true, 12, 3)),
        ),
        case(
            "address-taken",
            up("").alter(neighbour(Some("02:00:00:00:00:01"))),
            up("").alter(neighbour(Some("52:54:00:ab:CD:ef"))),
        ),
        case("service-not-listening", up("").alter(probed(Answer::Refused)), up("").alter(probed(Answer::Open))),
        case("guest-unreachable", up("").alter(probed(Answer::TimedOut)), up("").alter(probed(Answer::Refused))),
        case(
            "duplicate-discovery",
            up("[    0.300000] virtio-mmio virtio-mmio.0: can't request region for resource [mem 0xd0000000-0xd0000fff]\n[    0.300001] virtio-mmio: probe of virtio-mmio.0 failed with error -16\n"),
            // Nothing works: it is no harmless second attempt.
            said(&format!("[    0.300000] virtio-mmio virtio-mmio.0: can't request region for resource [mem 0xd0000000-0xd0000fff]\n{NO_ROOT}")),
        ),
        case(
            "dma-mask-message",
            up("[    0.300000] virtio-mmio LNRO0005:00: Failed to enable 64-bit or 32-bit DMA.  Trying to continue, but this might not work.\n"),
            up(""),
        ),
        case("kernel-panic", panics("stack-protector: Kernel stack is corrupted in: foo"), up("")),
        case(
            "stalled",
            said("[    0.000000] Linux version 6.1\n[    0.500000] ACPI: Early table checksum verification disabled\n").ended(running(45)),
            up_to_login("").ended(running(45)),
        ),
    ]
}

fn ids(scene: &Scene) -> Vec<String> {
    diagnose(scene)
        .into_iter()
        .map(|verdict| verdict.id)
        .collect()
}

#[test]
fn each_rule_finds_its_own_and_not_what_resembles_it() {
    let mut wrong = Vec::new();
    for Case { id, yes, no } in cases() {
        let found = diagnose(&yes);
        match found.iter().find(|verdict| verdict.id == id) {
            None => wrong.push(format!("{id}: not found; instead {:?}", ids(&yes))),
            Some(verdict) if verdict.evidence.is_empty() => {
                wrong.push(format!("{id}: has no evidence"))
            }
            Some(_) => {}
        }
        if ids(&no).iter().any(|found| found == id) {
            wrong.push(format!("{id}: found where it is not: {:?}", ids(&no)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_rule_has_a_case_and_is_well_formed() {
    let with_case: BTreeSet<&str> = cases().iter().map(|case| case.id).collect();
    let ids: BTreeSet<&str> = RULES.iter().map(|rule| rule.id).collect();
    assert_eq!(ids.len(), RULES.len(), "two rules of one id");
    assert_eq!(with_case, ids);
    for rule in RULES {
        let sentences = [rule.meaning, rule.mend];
        assert!(
            sentences
                .iter()
                .all(|text| text.len() > 5 && text.ends_with(['.', ')'])),
            "{}",
            rule.id
        );
        assert!(!rule.title.ends_with('.'), "{}", rule.id);
        for other in rule.yields_to.iter().filter(|other| **other != "*") {
            assert!(
                ids.contains(other),
                "{} yields to {other}, which is none",
                rule.id
            );
        }
    }
}

#[test]
fn the_first_verdict_is_the_cause() {
    let first = |scene: &Scene| ids(scene).first().cloned().unwrap_or_default();
    assert_eq!(first(&said(NO_ROOT)), "disk-driver-missing");
    assert_eq!(
        first(&said(NO_ROOT_BUT_DISKS).line("root=/dev/sda1")),
        "wrong-root-device"
    );
    // A panic that has a cause is not told again, and neither is a stop on the way.
    assert_eq!(ids(&said(NO_ROOT)), ["disk-driver-missing"]);
    // What goes well is not explained.
    assert!(ids(&said(&format!("{UP}web login: ")).ended(running(100))).is_empty());
    // Somebody stopped a machine that had just spoken: it did not stop on the way.
    let stopped = |silent_ms| {
        said("[    0.000000] Linux version 6.1\n").alter(|scene| scene.silent_ms = silent_ms)
    };
    assert!(ids(&stopped(Some(200))).is_empty() && ids(&stopped(None)).is_empty());
    assert_eq!(ids(&stopped(Some(60_000))), ["stalled"]);
    // On a slow host the generator is late, and so is whoever could wait for it.
    let slow = "[    9.000000] random: crng init done\n[   12.000000] Run /init as init process\n";
    assert!(ids(&said(slow)).is_empty());
}

fn of(scene: &Scene, id: &str) -> Verdict {
    let verdicts = diagnose(scene);
    verdicts
        .into_iter()
        .find(|verdict| verdict.id == id)
        .unwrap()
}

#[test]
fn evidence_and_mend_fit_the_machine() {
    let verdict = of(
        &said(NO_ROOT_BUT_DISKS).line("root=/dev/sda1"),
        "wrong-root-device",
    );
    assert!(
        verdict.explanation.contains("It sees vda, vda1, vda2."),
        "{}",
        verdict.explanation
    );
    assert!(verdict.mend.contains("root=/dev/vda"));
    let first = &verdict.evidence[0];
    assert_eq!((first.source.as_str(), first.line), ("ttyS0", Some(3)));
    assert!(first.text.starts_with("VFS: Cannot open root device"));

    // As Linux 6.1 says these.
    assert_eq!(
        ids(&said(
            "[    5.051338] EXT4-fs (vdb): Couldn't mount because of unsupported optional features (80000000)\n"
        ))[0],
        "filesystem-too-new"
    );
    assert_eq!(
        ids(&said("[    5.109715] ext4: Unknown parameter 'discrad'\n"))[0],
        "root-mount-options"
    );

    // A program's complaint is enough to suspect the driver.
    let verdict = of(
        &said("ip: SIOCGIFFLAGS: No such device\n"),
        "net-driver-missing",
    );
    assert_eq!(verdict.confidence, Confidence::Likely);

    // The device's own word makes it certain; a machine without a disk is told so.
    let verdict = of(
        &said(NO_ROOT).driven("virtio-blk", 0),
        "disk-driver-missing",
    );
    assert_eq!(verdict.confidence, Confidence::Certain);
    let verdict = of(&said(NO_ROOT).without("virtio-blk"), "disk-driver-missing");
    assert!(verdict.mend.contains("--disk"));
    let verdict = of(
        &said(NO_ROOT).line("pci=off root=/dev/vda"),
        "disk-driver-missing",
    );
    assert!(verdict.mend.contains("pci=off"));
    // Drivers that took their disks speak against a missing driver.
    assert_eq!(
        ids(&said(NO_ROOT).driven("virtio-blk", 1))[0],
        "wrong-root-device"
    );

    let died = "reading /etc/app.conf: no such file\n[    3.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000b00\n";
    let verdict = of(&said(died), "init-died");
    assert!(
        verdict.explanation.ends_with("exit code 11."),
        "{}",
        verdict.explanation
    );
    assert_eq!(
        verdict.evidence[1].text,
        "reading /etc/app.conf: no such file"
    );
    let died =
        "[    3.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\n";
    assert!(
        of(&said(died), "init-died")
            .explanation
            .contains("Signal 11 (SIGSEGV")
    );
}

#[test]
fn what_ended_in_order_leaves_no_bundle() {
    let is_kept = |scene: &Scene| worth_keeping(scene, &diagnose(scene));
    assert!(!is_kept(&said(UP)));
    assert!(!is_kept(&said(UP).ended(Outcome::PoweredOff)));
    assert!(is_kept(&said(UP).ended(Outcome::GuestPanicked)));
    assert!(is_kept(&said(NO_ROOT)));
    let silent =
        said("[    0.000000] Linux version 6.1\n").alter(|scene| scene.silent_ms = Some(60_000));
    assert!(!is_kept(&silent));
}

#[test]
fn a_boot_before_the_last_reset_explains_until_the_new_one_came_as_far() {
    let mut scene = said(NO_ROOT);
    scene.consoles[0]
        .head
        .push_str("[    0.000000] Linux version 6.1\n");
    scene.consoles[0].boot_line = 3;
    // Stopped in the middle of its fifth boot, before that one spoke.
    let mut silent = scene.clone();
    silent.consoles[0].head = NO_ROOT.into();
    (silent.resets, silent.silent_ms) = (4, Some(9_000));
    assert_eq!(ids(&silent), ["reset-loop", "disk-driver-missing"]);
    scene.resets = 1;
    scene.outcome = running(0);
    assert_eq!(ids(&scene), ["disk-driver-missing"]);
    scene.consoles[0]
        .head
        .push_str("[    2.000000] systemd[1]: systemd 252 running in system mode\n");
    assert!(ids(&scene).is_empty());
}

mod hostile {
    use super::*;
    use proptest::prelude::*;

    /// Texts that rules look for, to be mixed with anything.
    fn telling() -> Vec<String> {
        cases()
            .iter()
            .flat_map(|case| {
                case.yes
                    .consoles
                    .iter()
                    .flat_map(|c| c.head.lines().map(str::to_owned))
            })
            .collect()
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::PoweredOff),
            Just(Outcome::Stopped),
            Just(Outcome::GuestPanicked),
            any::<u32>().prop_map(|vcpu| Outcome::TripleFault { vcpu }),
            ".{0,40}".prop_map(|why| Outcome::Broken { why }),
            any::<(u64, u64)>()
                .prop_map(|(for_ms, silent_ms)| Outcome::Running { for_ms, silent_ms }),
            any::<Option<i32>>().prop_map(|signal| Outcome::Vanished {
                signal,
                code: signal
            }),
        ]
    }

    fn text() -> impl Strategy<Value = String> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..2000)
            .prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let lines = proptest::collection::vec(
            prop_oneof![
                proptest::sample::select(telling()),
                ".{0,80}".prop_map(|text| text)
            ],
            0..60,
        )
        .prop_map(|lines| lines.join("\n"));
        prop_oneof![bytes, lines]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn anything_is_answered_within_bounds(
            head in text(),
            tail in text(),
            cmdline in ".{0,200}",
            outcome in outcome(),
            numbers in any::<(u64, u64, u64, u64)>(),
            facts in any::<bool>(),
        ) {
            let mut scene = said("").ended(outcome).line(&cmdline);
            scene.consoles[0].head = head;
            scene.consoles[0].tail = tail;
            (scene.resets, scene.consoles[0].boot_line, scene.consoles[0].lost_lines, scene.consoles[0].lost_bytes) = numbers;
            if facts {
                scene = scene.driven("virtio-blk", 0).driven("virtio-net", 0);
            }
            let verdicts = diagnose(&scene);
            prop_assert!(verdicts.len() <= RULES.len());
            for verdict in &verdicts {
                prop_assert!(verdict.evidence.len() <= Verdict::MOST_EVIDENCE);
                prop_assert!(verdict.explanation.len() < 4000 && verdict.mend.len() < 2000);
                for evidence in &verdict.evidence {
                    prop_assert!(evidence.text.len() <= 240);
                    prop_assert!(evidence.text.chars().all(|c| !c.is_control()));
                }
            }
            let bundle = crate::Bundle::new("0", "x", scene);
            let shown = crate::render(&bundle, None);
            prop_assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
            // It comes back from disk as it was.
            let stored = serde_json::to_string(&bundle).unwrap();
            prop_assert_eq!(serde_json::from_str::<crate::Bundle>(&stored).unwrap(), bundle);
        }
    }

    #[test]
    fn a_flood_is_answered_soon() {
        let line =
            "[    1.000000] EXT4-fs (vda): Initramfs unpacking BUG unknown-block( can't \x1b[1m\n";
        let flood = said(&line.repeat(100_000))
            .alter(|scene| scene.consoles.push(scene.consoles[0].clone()));
        let start = std::time::Instant::now();
        diagnose(&flood);
        // A fraction of a second; the bound is for slow machines without optimization.
        assert!(start.elapsed() < std::time::Duration::from_secs(20));
    }
}
