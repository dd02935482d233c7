//! Guests that really fail, each in its own way, and what the diagnosis makes of what they leave.
//!
//! Each test's host half prints what the engine needs beside the console: the plan (`plan`), and facts of the
//! host, one a line behind `fact`. The engine then runs here, on what a stock kernel really said.

use anyhow::{Context, Result};
use nyx_diagnose::{
    Answer, Console, Device, Interface, Machine, Outcome, Probe, Scene, Stage, StageWatch, Verdict,
    diagnose, probe, worth_keeping,
};
use nyx_guest_tests::{GuestTest, Initrd, Report};
use nyx_harness::cpio::Archive;
use nyx_harness::guests::{self, Flavour, Kernel};
use nyx_harness::initramfs::Initramfs;
use nyx_harness::workspace;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A guest that fails, and the verdicts there must be, most important first. What stands behind a star may be
/// anywhere in the list; the others are its beginning.
struct Case {
    test: GuestTest,
    verdicts: &'static [&'static str],
}

impl Case {
    fn is_right(&self, found: &[&str]) -> bool {
        let (anywhere, first): (Vec<&str>, Vec<&str>) = self
            .verdicts
            .iter()
            .copied()
            .partition(|id| id.starts_with('*'));
        found.starts_with(&first)
            && anywhere
                .iter()
                .all(|id| found.contains(&id.trim_start_matches('*')))
            && (!self.verdicts.is_empty() || found.is_empty())
    }
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        const CASES: &[&Case] = &[$(&$name),*];
        pub(crate) const ALL: &[&GuestTest] = &[$(&$name.test),*];
    };
}
cases!(
    NO_DRIVER,
    ROOT_WAIT,
    WRONG_ROOT,
    DAMAGED,
    CHANGED,
    EMPTY,
    DIRTY,
    DISK_ERRORS,
    FILESYSTEMS,
    WRONG_ARCHITECTURE,
    NO_INIT,
    REQUESTED_INIT,
    INIT_DIES,
    NO_LIBRARY,
    ILLEGAL,
    NO_MEMORY,
    BROKEN_INITRAMFS,
    BIG_INITRAMFS,
    CONSOLE_ELSEWHERE,
    CONSOLE_LATE,
    SILENT,
    REFUSED,
    NO_HOST_MEMORY,
    PANICKED,
    GAVE_UP,
    TROUBLES,
    UNSIGNED,
    NO_NET_DRIVER,
    NO_ADDRESS,
    OTHER_ADDRESS,
    VANISHED,
    LATE_ENTROPY,
    GOOD,
);

/// Ends the machine from outside, as somebody does who has seen enough.
const STOP: &str = "kill -TERM $nyx";
/// What every case prints when the machine has ended.
const PLAN: &str = r#"
    echo '--- plan:'
    (with_machine plan -o json)
    echo '--- end of plan'
    echo '--- why:'
    $NYX why ${D##*/} -o json
    echo '--- end of why'
"#;

/// What the cases have in common: they are stopped, and print their plan.
const STOPPED: GuestTest = GuestTest {
    options: "--cpus 1 --memory 256M",
    beside: STOP,
    after: PLAN,
    exit: 6,
    ..GuestTest::NOTHING
};

// --- root file system -------------------------------------------------------------------------------------------

/// A distribution kernel without its initramfs: no driver for the disk. It resets when it panics, for ever.
const NO_DRIVER: Case = Case {
    test: GuestTest {
        name: "why_no_driver",
        initrd: Initrd::Absent,
        options: "--cpus 1 --memory 256M --disk $D/disk",
        cmdline: "root=/dev/vda panic=-1",
        before: "truncate -s 16M $D/disk",
        beside: r#"
            holds "resets" await "nyx: reset 3" $D/errors
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["*disk-driver-missing", "*reset-loop"],
};

const ROOT_WAIT: Case = Case {
    test: GuestTest {
        name: "why_root_wait",
        initrd: Initrd::Absent,
        options: "--cpus 1 --memory 256M --disk $D/disk",
        before: "truncate -s 16M $D/disk",
        cmdline: "root=/dev/vdz rootwait loglevel=7",
        beside: r#"
            holds "waits" await "Waiting for root device"
            sleep 6
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["*root-wait-endless", "*disk-driver-missing"],
};

/// The disk has its driver; root= names another one.
const WRONG_ROOT: Case = Case {
    test: GuestTest {
        name: "why_wrong_root",
        options: "--cpus 1 --memory 256M --disk $D/disk",
        cmdline: "root=/dev/sda1",
        before: "truncate -s 16M $D/disk",
        beside: r#"
            holds "gives up" await "found no root file system"
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["wrong-root-device"],
};

const DAMAGED: Case = Case {
    test: GuestTest {
        name: "why_damaged",
        options: "--cpus 1 --memory 256M --disk $D/disk",
        cmdline: "root=/dev/vda rootfstype=ext4",
        before: r#"
            truncate -s 64M $D/disk
            mke2fs -q -t ext4 -b 4096 $D/disk
            # The group descriptors, behind the superblock.
            dd if=/dev/zero of=$D/disk bs=4096 seek=1 count=8 conv=notrunc 2>/dev/null
        "#,
        beside: r#"
            holds "does not mount" await "nyx-guest: cannot mount"
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["filesystem-damaged"],
};

/// A directory's block was overwritten while nobody looked: its checksum does not fit.
const CHANGED: Case = Case {
    test: GuestTest {
        name: "why_changed",
        options: "--cpus 1 --memory 256M --disk $D/disk",
        guest: r#"
            mount -t ext4 -o ro /dev/vda /newroot
            ls -l /newroot/lost+found /newroot/etc
            say "looked"
            sleep 100
        "#,
        before: r#"
            truncate -s 64M $D/disk
            mke2fs -q -t ext4 -b 4096 -O metadata_csum $D/disk
            block=$(debugfs -R "blocks /" $D/disk 2>/dev/null | tr -d ' ')
            printf 'XXXX' | dd of=$D/disk bs=1 seek=$((block * 4096 + 28)) conv=notrunc 2>/dev/null
        "#,
        beside: r#"
            holds "looked" await "said: looked"
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["disk-changed-behind-guest"],
};

const EMPTY: Case = Case {
    test: GuestTest {
        name: "why_empty",
        options: "--cpus 1 --memory 256M --disk $D/disk",
        cmdline: "root=/dev/vda rootfstype=ext4",
        before: "truncate -s 16M $D/disk",
        beside: r#"
            holds "does not mount" await "nyx-guest: cannot mount"
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["filesystem-unknown"],
};

/// A file system that was in use when its machine went away, on a disk that refuses writes.
const DIRTY: Case = Case {
    test: GuestTest {
        name: "why_dirty",
        options: "--cpus 1 --memory 256M --disk $D/disk,readonly",
        cmdline: "root=/dev/vda rootfstype=ext4",
        before: r#"
            truncate -s 64M $D/disk
            mke2fs -q -t ext4 $D/disk
            debugfs -w -R "feature needs_recovery" $D/disk >/dev/null 2>&1
        "#,
        beside: r#"
            holds "does not mount" await "nyx-guest: cannot mount"
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["root-read-only-journal"],
};

/// The image shrinks under the machine.
const DISK_ERRORS: Case = Case {
    test: GuestTest {
        name: "why_disk_errors",
        options: "--cpus 1 --memory 256M --disk $D/disk",
        guest: r#"
            say "up"
            while dd if=/dev/vda of=/dev/null bs=64k skip=100 count=1 iflag=direct 2>/dev/null; do sleep 0.2; done
            say "failed"
            sleep 100
        "#,
        before: "truncate -s 16M $D/disk",
        beside: r#"
            holds "up" await "said: up"
            truncate -s 0 $D/disk
            holds "failed" await "said: failed"
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["disk-errors"],
};

/// File systems that a guest cannot mount, and one that it froze.
const FILESYSTEMS: Case = Case {
    test: GuestTest {
        name: "why_filesystems",
        options: "--cpus 1 --memory 256M --disk $D/disk,serial=good --disk $D/later,serial=later",
        guest: r#"
            mount -t ext4 "$(disk later)" /newroot
            mount -t ext4 -o discrad "$(disk good)" /newroot
            mount -t ext4 "$(disk good)" /newroot
            echo 2 >/proc/sys/kernel/hung_task_timeout_secs
            fsfreeze --freeze /newroot
            touch /newroot/x &
            sleep 6
            say "looked"
            sleep 100
        "#,
        before: r#"
            truncate -s 16M $D/disk $D/later
            mke2fs -q -t ext4 $D/disk
            mke2fs -q -t ext4 $D/later
            # A feature that no kernel has: bit 31 of the incompatible ones (superblock, at 0x60).
            debugfs -w -R "set_super_value feature_incompat 0x80000042" $D/later >/dev/null 2>&1
        "#,
        beside: r#"
            holds "looked" await "said: looked"
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["*filesystem-too-new", "*root-mount-options", "*io-hang"],
};

// --- the first process ------------------------------------------------------------------------------------------

const WRONG_ARCHITECTURE: Case = Case {
    test: GuestTest {
        name: "why_architecture",
        initrd: Initrd::Made(|_| with_init("architecture", &elf(183, &[0; 4]))),
        ..PANICS
    },
    verdicts: &["init-wrong-architecture"],
};

/// A script whose interpreter is not there.
const NO_INIT: Case = Case {
    test: GuestTest {
        name: "why_no_init",
        initrd: Initrd::Made(|_| with_init("interpreter", b"#!/bin/absent\n")),
        ..PANICS
    },
    verdicts: &["init-missing"],
};

const REQUESTED_INIT: Case = Case {
    test: GuestTest {
        name: "why_requested_init",
        initrd: Initrd::Made(|_| with_init("interpreter", b"#!/bin/absent\n")),
        cmdline: "init=/opt/absent",
        ..PANICS
    },
    verdicts: &["init-missing"],
};

const INIT_DIES: Case = Case {
    test: GuestTest {
        name: "why_init_dies",
        initrd: Initrd::Made(|kernel| {
            made(
                kernel,
                "dies",
                &[],
                "#!/bin/busybox sh\necho \"my disk is not here\"\nexit 3\n",
            )
        }),
        ..PANICS
    },
    verdicts: &["init-died"],
};

/// A first process whose loader is there, and whose library is not.
const NO_LIBRARY: Case = Case {
    test: GuestTest {
        name: "why_no_library",
        initrd: Initrd::Made(|_| {
            let mut archive = Archive::new(Vec::new());
            for folder in ["dev", "lib64"] {
                archive.folder(folder)?;
            }
            archive.device("dev/console", 5, 1)?;
            archive.file(
                "lib64/ld-linux-x86-64.so.2",
                0o755,
                &fs::read("/lib64/ld-linux-x86-64.so.2")?,
            )?;
            archive.file("init", 0o755, &fs::read("/bin/true")?)?;
            stored("library", &archive.finish()?)
        }),
        ..PANICS
    },
    verdicts: &["init-library-missing"],
};

/// A first process whose first instruction no processor has (UD2).
const ILLEGAL: Case = Case {
    test: GuestTest {
        name: "why_illegal",
        initrd: Initrd::Made(|_| with_init("illegal", &elf(62, &[0x0f, 0x0b, 0, 0]))),
        ..PANICS
    },
    verdicts: &["cpu-feature-missing"],
};

/// Kernels that panic and stay so.
const PANICS: GuestTest = GuestTest {
    cmdline: "",
    beside: r#"
        holds "panics" await "end Kernel panic - not syncing"
        kill -TERM $nyx
    "#,
    ..STOPPED
};

// --- memory, initramfs ------------------------------------------------------------------------------------------

const NO_MEMORY: Case = Case {
    test: GuestTest {
        name: "why_no_memory",
        options: "--cpus 1 --memory 128M",
        initrd: Initrd::Made(|kernel| {
            let init = "#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs dev /dev\n\
                        /bin/busybox mount -t tmpfs -o size=1g t /tmp\n\
                        exec /bin/busybox dd if=/dev/zero of=/tmp/all bs=1M\n";
            made(kernel, "memory", &[], init)
        }),
        ..PANICS
    },
    verdicts: &["out-of-memory"],
};

const BROKEN_INITRAMFS: Case = Case {
    test: GuestTest {
        name: "why_broken_initramfs",
        initrd: Initrd::Made(|_| stored("broken", &[0xaa; 65536])),
        ..PANICS
    },
    verdicts: &["initramfs-damaged"],
};

const BIG_INITRAMFS: Case = Case {
    test: GuestTest {
        name: "why_big_initramfs",
        options: "--cpus 1 --memory 128M",
        initrd: Initrd::Made(|_| {
            let mut archive = Archive::new(Vec::new());
            archive.file("ballast", 0o644, &vec![0x5a; 48 << 20])?;
            stored("big", &archive.finish()?)
        }),
        ..PANICS
    },
    verdicts: &["initramfs-too-big"],
};

// --- silence, endings -------------------------------------------------------------------------------------------

const CONSOLE_ELSEWHERE: Case = Case {
    test: GuestTest {
        name: "why_console_elsewhere",
        initrd: Initrd::Absent,
        cmdline: "console=ttyS1",
        beside: "sleep 6; kill -TERM $nyx",
        ..STOPPED
    },
    verdicts: &["console-elsewhere"],
};

const CONSOLE_LATE: Case = Case {
    test: GuestTest {
        name: "why_console_late",
        initrd: Initrd::Absent,
        options: "--cpus 1 --memory 256M --console stdio,device=virtio",
        cmdline: "console=hvc0",
        beside: "sleep 6; kill -TERM $nyx",
        ..STOPPED
    },
    verdicts: &["console-driver-late"],
};

/// A kernel that says nothing, with a first process that does not either.
const SILENT: Case = Case {
    test: GuestTest {
        name: "why_silent",
        initrd: Initrd::Made(|kernel| {
            made(
                kernel,
                "silent",
                &[],
                "#!/bin/busybox sh\nexec /bin/busybox sleep 100\n",
            )
        }),
        cmdline: "quiet loglevel=0",
        beside: "sleep 6; kill -TERM $nyx",
        ..STOPPED
    },
    verdicts: &["kernel-silent"],
};

/// Huge pages, of which this host has none.
const NO_HOST_MEMORY: Case = Case {
    test: GuestTest {
        name: "why_no_host_memory",
        options: "--memory 256M --huge-pages 2M",
        beside: "",
        after: "",
        exit: 1,
        ..STOPPED
    },
    verdicts: &["vmm-refused", "*host-memory-exhausted"],
};

const REFUSED: Case = Case {
    test: GuestTest {
        name: "why_refused",
        options: "--disk $D/absent",
        beside: "",
        after: "",
        exit: 1,
        ..STOPPED
    },
    verdicts: &["vmm-refused"],
};

const PANICKED: Case = Case {
    test: GuestTest {
        name: "why_panicked",
        guest: r#"
            echo c >/proc/sysrq-trigger
            sleep 60
        "#,
        beside: "",
        exit: 3,
        ..STOPPED
    },
    verdicts: &["kernel-panic"],
};

const GAVE_UP: Case = Case {
    test: GuestTest {
        name: "why_gave_up",
        cmdline: "root= reboot=triple",
        guest: r#"
            say "about to give up"
            reboot -f
        "#,
        beside: "",
        exit: 4,
        ..STOPPED
    },
    verdicts: &["triple-fault"],
};

// --- guests that go on ------------------------------------------------------------------------------------------

/// Much that goes wrong in a guest that goes on: no address by ip=, none by DHCP, no module, a foreign module,
/// a full disk, a program that takes all memory.
const TROUBLES: Case = Case {
    test: GuestTest {
        name: "why_troubles",
        options: "--cpus 1 --memory 192M --net null",
        cmdline: "root= loglevel=6 ip=10.9.0.2::10.9.0.1:255.255.255.0::eth0:off",
        initrd: Initrd::Made(|kernel| {
            let foreign = guests::kernel(Flavour::Full)?
                .modules
                .join("kernel/drivers/block/virtio_blk.ko");
            let foreign =
                fs::read(&foreign).with_context(|| format!("cannot read {}", foreign.display()))?;
            let init = "#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox mkdir /sbin\n/bin/busybox --install -s /bin\n\
                mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n\
                while read -r module; do insmod /modules/$module.ko; done </modules/order\n\
                insmod /foreign.ko\nmodprobe nosuch\n\
                mount -t tmpfs -o size=1m tmpfs /tmp\ndd if=/dev/zero of=/tmp/fill bs=1M count=2\n\
                ip link set eth0 up\nudhcpc -i eth0 -n -q -t 2 -T 1\n\
                tail /dev/zero\necho \"said: done\"\npoweroff -f\n";
            Initramfs {
                init,
                kernel,
                required: &["virtio_pci", "virtio_net"],
                wanted: &[],
                later: &[],
                files: &[("foreign.ko", 0o644, &foreign)],
            }
            .cached("why-troubles")
        }),
        beside: r#"
            holds "went on" await "said: done"
        "#,
        exit: 0,
        ..STOPPED
    },
    verdicts: &[
        "*ip-ignored",
        "*dhcp-failed",
        "*modules-missing",
        "*modules-mismatch",
        "*guest-disk-full",
        "*out-of-memory-killed",
    ],
};

/// A module whose signature was cut off, and a kernel that insists on one.
const UNSIGNED: Case = Case {
    test: GuestTest {
        name: "why_unsigned",
        cmdline: "module.sig_enforce=1",
        initrd: Initrd::Made(|kernel| {
            let path = kernel.modules.join("kernel/drivers/block/virtio_blk.ko");
            let mut module =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            // The mark behind an appended signature (Linux, module_signature.h).
            module.truncate(module.len() - "~Module signature appended~\n".len());
            let init = "#!/bin/busybox sh\n/bin/busybox insmod /unsigned.ko\necho \"said: done\"\nexec /bin/busybox sleep 100\n";
            Initramfs {
                init,
                kernel,
                required: &[],
                wanted: &[],
                later: &[],
                files: &[("unsigned.ko", 0o644, &module)],
            }
            .cached("why-unsigned")
        }),
        beside: r#"
            holds "went on" await "said: done"
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["module-unsigned"],
};

/// The initramfs has no driver for the card.
const NO_NET_DRIVER: Case = Case {
    test: GuestTest {
        name: "why_no_net_driver",
        options: "--cpus 1 --memory 256M --net null",
        initrd: Initrd::Made(|kernel| {
            let init = "#!/bin/busybox sh\n/bin/busybox ip link set eth0 up\necho \"said: up\"\n\
                        exec /bin/busybox sleep 100\n";
            made(kernel, "no-net", &["virtio_pci"], init)
        }),
        beside: r#"
            holds "up" await "said: up"
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["net-driver-missing"],
};

/// What the host sees of an interface and of addresses behind it.
const FACTS: &str = r#"
    # facts INTERFACE
    facts() {
        for file in flags carrier statistics/tx_packets statistics/rx_packets; do
            echo "fact $file $1 $(cat /sys/class/net/$1/$file 2>/dev/null)"
        done
        sed 's/^/fact arp /' /proc/net/arp
    }
    # connect ADDRESS:PORT
    connect() {
        if answer=$(socat -u OPEN:/dev/null TCP:$1,connect-timeout=3 2>&1); then answer=open; fi
        echo "fact tcp $1 $answer" | tr '\n' ' '
        echo
    }
"#;

/// The card works, and the guest never gave it an address.
const NO_ADDRESS: Case = Case {
    test: GuestTest {
        name: "why_no_address",
        options: "--cpus 1 --memory 256M --net tap,tap=nyx4,address=10.94.0.1/24",
        guest: r#"
            say "up"
            sleep 100
        "#,
        before: FACTS,
        beside: r#"
            holds "up" await "said: up"
            /run/nyx-lab/busybox ping -c 2 -W 2 10.94.0.2
            facts nyx4
            $NYX why ${D##*/} -o json >$D/live
            holds "nyx why says so while it runs" grep -q guest-net-silent $D/live
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["guest-net-silent"],
};

/// The guest answers with another hardware address than its card's, and nothing listens there. (The address of
/// another machine looks the same from outside.)
const OTHER_ADDRESS: Case = Case {
    test: GuestTest {
        name: "why_other_address",
        options: "--cpus 1 --memory 256M --net tap,tap=nyx5,address=10.95.0.1/24,mac=52:54:00:00:00:05",
        guest: r#"
            ip link set eth0 address 52:54:00:00:00:77
            ip link set eth0 up
            ip addr add 10.95.0.2/24 dev eth0
            say "up"
            sleep 100
        "#,
        before: FACTS,
        beside: r#"
            holds "up" await "said: up"
            /run/nyx-lab/busybox ping -c 1 -W 5 10.95.0.2
            connect 10.95.0.2:81
            connect 10.95.0.99:80
            facts nyx5
            kill -TERM $nyx
        "#,
        ..STOPPED
    },
    verdicts: &["*address-taken", "*service-not-listening"],
};

/// The VMM is killed; its TAP stays, and nobody holds it.
const VANISHED: Case = Case {
    test: GuestTest {
        name: "why_vanished",
        options: "--cpus 1 --memory 256M --net tap,tap=nyx6",
        guest: r#"
            say "up"
            sleep 100
        "#,
        before: r#"
            ip tuntap add dev nyx6 mode tap vnet_hdr
            ip link set nyx6 up
            facts() { for file in flags carrier; do echo "fact $file $1 $(cat /sys/class/net/$1/$file)"; done; }
        "#,
        beside: r#"
            holds "up" await "said: up"
            kill -9 $nyx
            no_carrier() { [ "$(cat /sys/class/net/nyx6/carrier)" = 0 ]; }
            holds "the carrier is lost" until_true no_carrier
            facts nyx6
        "#,
        exit: 137,
        ..STOPPED
    },
    verdicts: &["vmm-vanished", "*tap-no-carrier"],
};

/// No entropy device, and a processor whose word is not taken.
const LATE_ENTROPY: Case = Case {
    test: GuestTest {
        name: "why_late_entropy",
        options: "--cpus 1 --memory 256M --no-rng",
        cmdline: "root= loglevel=6 random.trust_cpu=off random.trust_bootloader=off",
        guest: r#"
            dd if=/dev/random of=/dev/null bs=16 count=1
            say "done"
        "#,
        beside: "",
        exit: 0,
        ..STOPPED
    },
    verdicts: &["entropy-late"],
};

/// Nothing is wrong, and nothing is said.
const GOOD: Case = Case {
    test: GuestTest {
        name: "why_good",
        options: "--cpus 1 --memory 512M --disk $DEBIAN,readonly,serial=debian --net user",
        cmdline: "root= loglevel=6",
        guest: r#"
            ip link set eth0 up
            mount -t ext4 -o ro,noload "$(disk debian)" /newroot
            say "done"
        "#,
        beside: "",
        exit: 0,
        ..STOPPED
    },
    verdicts: &[],
};

// --- initial RAM disks ------------------------------------------------------------------------------------------

/// An initramfs with busybox, some modules inserted, and an init.
fn made(kernel: &Kernel, name: &str, required: &[&str], init: &str) -> Result<PathBuf> {
    let insert = "/bin/busybox mkdir -p /sbin\nwhile read -r module; do /bin/busybox insmod /modules/$module.ko; done </modules/order\n";
    let init = init.replacen('\n', &format!("\n{insert}"), 1);
    Initramfs {
        init: &init,
        kernel,
        required,
        wanted: &[],
        later: &[],
        files: &[],
    }
    .cached(&format!("why-{name}"))
}

/// An initramfs with a console and an init of these bytes, and nothing else.
fn with_init(name: &str, init: &[u8]) -> Result<PathBuf> {
    let mut archive = Archive::new(Vec::new());
    archive.folder("dev")?;
    archive.device("dev/console", 5, 1)?;
    archive.file("init", 0o755, init)?;
    stored(name, &archive.finish()?)
}

/// A file in the cache.
fn stored(name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let folder = workspace::cache_folder().join("initramfs");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("why-{name}.cpio"));
    if fs::read(&path).ok().as_deref() != Some(bytes) {
        fs::write(&path, bytes)?;
    }
    Ok(path)
}

/// The smallest program: an ELF header for a machine (System V ABI: 62 is x86-64, 183 AArch64), one segment,
/// these instructions.
fn elf(machine: u16, code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2u16.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let size = HEADERS + code.len() as u64;
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

// --- the engine -------------------------------------------------------------------------------------------------

/// Adds what the diagnosis must find to a test's report.
pub(crate) fn judge(test: &GuestTest, report: &mut Report) -> Result<()> {
    let case = CASES
        .iter()
        .find(|case| case.test.name == test.name)
        .context("no such case")?;
    let scene = scene(report);
    let verdicts = why(&scene);
    let found: Vec<&str> = verdicts.iter().map(|verdict| verdict.id.as_str()).collect();
    let is_right = case.is_right(&found);
    let wrong = format!("wanted {:?}, found {found:?}: {verdicts:#?}", case.verdicts);
    report.add("verdicts", (!is_right).then_some(wrong));
    // Nyx itself knows more than the console: its verdicts come from the bundle it kept.
    if worth_keeping(&scene, &verdicts)
        && !matches!(
            scene.outcome,
            Outcome::Refused { .. } | Outcome::Vanished { .. }
        )
    {
        let kept = between(&report.output, "--- why:\n", "--- end of why").unwrap_or("");
        let said: Value = serde_json::from_str(kept).unwrap_or_default();
        let list = said["verdicts"].as_array();
        let found: Vec<&str> = list
            .into_iter()
            .flatten()
            .filter_map(|verdict| verdict["id"].as_str())
            .collect();
        let wrong = format!("wanted {:?}, found {found:?}: {kept}", case.verdicts);
        report.add("nyx why", (!case.is_right(&found)).then_some(wrong));
    }
    if test.name == OTHER_ADDRESS.test.name {
        // Where nobody knows who answers, an address at which nobody does is all there is to say.
        let mut scene = scene.clone();
        scene.host.neighbours.clear();
        let is_said = why(&scene)
            .iter()
            .any(|verdict| verdict.id == "guest-unreachable");
        report.add(
            "an address without a guest",
            (!is_said).then(|| format!("{:?}", scene.host)),
        );
    }
    let is_mended = verdicts
        .iter()
        .all(|v| !v.mend.is_empty() && !v.evidence.is_empty());
    report.add(
        "each has evidence and a mend",
        (!is_mended).then(|| format!("{verdicts:#?}")),
    );
    Ok(())
}

/// The verdicts on a scene: what `nyx why -o json` says.
fn why(scene: &Scene) -> Vec<Verdict> {
    diagnose(scene)
}

/// What stands between two marks.
fn between<'t>(text: &'t str, from: &str, to: &str) -> Option<&'t str> {
    let (_, behind) = text.split_once(from)?;
    behind.split_once(to).map(|(text, _)| text)
}

/// What is known of a machine, from what its test printed.
fn scene(report: &Report) -> Scene {
    let plan: Value = between(&report.output, "--- plan:\n", "--- end of plan")
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let errors: Vec<&str> = report.errors().lines().collect();
    let case = CASES.iter().find(|case| case.test.name == report.name);
    let outcome = match case.map_or(0, |case| case.test.exit) {
        0 => Outcome::PoweredOff,
        1 => Outcome::Refused {
            error: errors.join("\n"),
        },
        3 => Outcome::GuestPanicked,
        4 => Outcome::TripleFault { vcpu: 0 },
        5 => Outcome::Broken {
            why: errors.join("\n"),
        },
        6 => Outcome::Stopped,
        code => Outcome::Vanished {
            signal: Some(code - 128),
            code: None,
        },
    };
    let said = report.console();
    let machine = Machine::from_plan(&plan);
    let device = |device: &Device| {
        device
            .guest
            .clone()
            .filter(|name| name.starts_with("tty") || name.starts_with("hvc"))
    };
    let mut stages = StageWatch::default();
    stages.mark(Stage::Guest, Duration::ZERO);
    stages.hear(
        &mut Default::default(),
        said.as_bytes(),
        Duration::from_secs(1),
    );
    Scene {
        outcome,
        resets: errors
            .iter()
            .filter(|line| line.starts_with("nyx: reset "))
            .count() as u64,
        consoles: vec![Console {
            name: "console".into(),
            device: machine.devices.iter().find_map(device).unwrap_or_default(),
            head: said.to_owned(),
            ..Console::default()
        }],
        machine,
        host: host(&report.output),
        stages: stages.reached(),
        ..Scene::default()
    }
}

/// The facts of the host that a test printed.
fn host(output: &str) -> nyx_diagnose::Host {
    let mut host = nyx_diagnose::Host::default();
    let facts: Vec<Vec<&str>> = output
        .lines()
        .filter_map(|line| line.strip_prefix("fact "))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let mut interface = Interface::default();
    for fact in &facts {
        let number = |text: &&str| text.parse::<u64>().ok();
        match fact.as_slice() {
            ["flags", name, flags] => {
                interface.name = (*name).to_owned();
                interface.exists = true;
                interface.is_up = u32::from_str_radix(&flags[2..], 16)
                    .ok()
                    .map(|flags| flags & 1 == 1);
            }
            ["carrier", _, carrier] => interface.carrier = number(carrier).map(|n| n == 1),
            ["statistics/tx_packets", _, count] => interface.to_guest = number(count),
            ["statistics/rx_packets", _, count] => interface.from_guest = number(count),
            ["tcp", target, answer @ ..] => {
                let answer = answer.join(" ");
                host.probes.push(Probe {
                    target: (*target).to_owned(),
                    answer: match () {
                        () if answer == "open" => Answer::Open,
                        () if answer.contains("refused") => Answer::Refused,
                        () if answer.contains("timed out") => Answer::TimedOut,
                        () => Answer::Unreachable,
                    },
                });
            }
            _ => {}
        }
    }
    if interface.exists {
        host.interfaces.push(interface);
    }
    let table: Vec<&str> = output
        .lines()
        .filter_map(|line| line.strip_prefix("fact arp "))
        .collect();
    for (address, mac) in [
        ("10.94.0.2", None),
        ("10.95.0.2", Some("52:54:00:00:00:05")),
    ] {
        host.neighbours
            .extend(probe::neighbour_in(&table.join("\n"), address, mac));
    }
    host
}
