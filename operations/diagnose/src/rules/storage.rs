//! Disks, file systems, the search for root.

use crate::look::{Finding, Look};
use crate::stages::Stage;
use crate::text::Line;

/// The kernel's complaint that it has no root device: `Cannot open root device "vda" or unknown-block(0,0)`.
fn cannot_open<'l>(look: &'l Look<'_>) -> Option<&'l Line> {
    // With a major number the device was found: what it holds is the problem.
    look.all(&["Cannot open root device"])
        .find(|line| {
            line.text.contains("unknown-block(0,0)") || !line.text.contains("unknown-block(")
        })
        .or_else(|| look.first(&["Unable to mount root fs on unknown-block(0,0)"]))
}

/// An initramfs that did not find its root device, by its own words.
fn initramfs_gave_up<'l>(look: &'l Look<'_>) -> Option<&'l Line> {
    const SAYINGS: &[&[&str]] = &[
        // initramfs-tools, scripts/local
        &["ALERT!", "does not exist"],
        &["Gave up waiting for root"],
        // dracut
        &["Warning: /dev/", " does not exist"],
        &["dracut-initqueue", "timeout"],
        &["Could not boot"],
        // mkinitcpio
        &["ERROR: device '", "not found. Skipping fsck"],
        &["ERROR: Failed to mount '", "on real root"],
        // busybox mdev and the project's own
        &["nyx-guest: found no root file system"],
        &["Failed to mount root", "No such"],
        &[
            "mount: mounting /dev/",
            " failed: No such file or directory",
        ],
    ];
    SAYINGS.iter().find_map(|parts| look.first(parts))
}

/// The disks the guest sees, in words.
fn seen(devices: &[String]) -> String {
    match devices {
        [] => "the kernel names no disk".into(),
        names => format!("the kernel sees {}", names.join(", ")),
    }
}

/// Adds what devices and command line have to say about the root.
fn with_root(look: &Look<'_>, mut finding: Finding) -> Finding {
    if let Some(root) = look.option("root") {
        finding = finding.fact("machine", &format!("root={root}"));
    }
    finding
}

pub(super) fn disk_driver_missing(look: &Look<'_>) -> Option<Finding> {
    let complaint = cannot_open(look).or_else(|| initramfs_gave_up(look));
    let complaint = complaint.or_else(|| look.first(&["Waiting for root device"]))?;
    if !look.block_devices().is_empty() || look.is_driven("virtio-blk") == Some(true) {
        return None;
    }
    let is_kernel = cannot_open(look).is_some();
    // A quiet kernel names no disks even where it has them: then an initramfs that waits says little.
    let is_known = look.is_driven("virtio-blk").is_some() || look.stages.contains(&Stage::Kernel);
    if !is_kernel && !is_known {
        return None;
    }
    let disks = look.devices("virtio-blk").count();
    if disks == 0 && !look.scene.machine.devices.is_empty() {
        let finding = Finding::certain()
            .line(look, complaint)
            .fact("machine", "the machine has no disk")
            .mend("Attach the disk that holds the root file system (`--disk PATH`), or drop root= if the initramfs is all there is.");
        return Some(with_root(look, finding).say("This machine has no disk at all."));
    }
    let mut finding = if look.is_driven("virtio-blk") == Some(false) {
        Finding::certain()
            .line(look, complaint)
            .fact("device", "no driver took a disk (DRIVER_OK was never set)")
    } else if is_kernel {
        Finding::likely().line(look, complaint)
    } else {
        Finding::possible().line(look, complaint)
    };
    if look.scene.machine.initrd.is_none() && !look.scene.machine.kernel.is_empty() {
        finding = finding.fact("machine", "no initramfs was given");
    }
    if look.flag("pci=off") && look.scene.machine.has_pci {
        finding = finding
            .fact("machine", "pci=off on the command line, and the disks are on PCI")
            .mend("Drop pci=off from the command line, or attach the devices without PCI (`--no-pci`).");
    }
    Some(with_root(look, finding))
}

/// The root= that was asked for names a device by its node.
fn node_of_root<'l>(look: &'l Look<'_>) -> Option<&'l str> {
    look.option("root")?.strip_prefix("/dev/")
}

pub(super) fn wrong_root_device(look: &Look<'_>) -> Option<Finding> {
    let complaint = cannot_open(look).or_else(|| initramfs_gave_up(look))?;
    let devices = look.block_devices();
    let is_driven = look.is_driven("virtio-blk") == Some(true);
    if devices.is_empty() && !is_driven {
        return None;
    }
    let wanted = node_of_root(look);
    if wanted.is_some_and(|wanted| devices.iter().any(|seen| seen == wanted)) {
        return None;
    }
    let mut finding = Finding::certain().line(look, complaint);
    if !devices.is_empty() {
        finding = finding.fact("guest", &seen(&devices));
    }
    finding = with_root(look, finding);
    if wanted.is_some_and(|wanted| wanted.starts_with("sd") || wanted.starts_with("hd")) {
        finding = finding
            .say("Virtio disks are called vda, vdb, …; sda is the name of a SCSI or SATA disk.");
    }
    if let Some(first) = devices.first() {
        finding = finding.say(format!("It sees {}.", devices.join(", ")));
        if wanted.is_some() {
            finding = finding.mend(format!(
                "Leave root= out (Nyx finds the root file system by looking at the disks), or name a device that is there, such as root=/dev/{first}."
            ));
        }
    }
    Some(finding)
}

pub(super) fn root_wait_endless(look: &Look<'_>) -> Option<Finding> {
    let waiting = look.first(&["Waiting for root device"])?;
    // Nothing but stray messages of drivers comes behind it.
    let at = look
        .lines
        .iter()
        .position(|line| std::ptr::eq(line, waiting))?;
    let is_past = look.lines.iter().skip(at + 1).any(|line| {
        line.text.contains("VFS: Mounted root")
            || line.text.contains("Run /")
            || line.text.contains("Cannot open root device")
    });
    if is_past || !look.has_stuck_for(5_000) {
        return None;
    }
    let finding = Finding::certain().line(look, waiting);
    let finding = finding.fact("guest", &seen(&look.block_devices()));
    Some(with_root(look, finding))
}

pub(super) fn root_device_absent(look: &Look<'_>) -> Option<Finding> {
    let complaint = initramfs_gave_up(look)?;
    let finding = Finding::certain().line(look, complaint);
    Some(with_root(look, finding))
}

/// Complaints of file systems that found themselves, and found themselves damaged.
const DAMAGE: &[&[&str]] = &[
    &["EXT4-fs error"],
    &["EXT4-fs", "group descriptors corrupted"],
    &["EXT4-fs", "Checksum for group"],
    &["EXT4-fs", "bad geometry"],
    &["EXT4-fs", "no journal found"],
    &["EXT4-fs", "error loading journal"],
    &["EXT4-fs", "unable to read superblock"],
    &["EXT4-fs", "get root inode failed"],
    &["EXT4-fs", "corrupt root inode"],
    &["EXT4-fs", "failed to parse options in superblock"],
    &["EXT4-fs", "ext4_check_descriptors"],
    &["EXT4-fs", "bad extended attribute"],
    &["EXT4-fs", "Invalid checksum"],
    &["EXT4-fs", "inodes count not valid"],
    &["EXT4-fs", "invalid journal"],
    &["JBD2:", "corrupt"],
    &["JBD2: no valid journal superblock found"],
    &["journal is corrupt"],
    &["XFS (", "Corruption"],
    &["XFS (", "corruption"],
    &["XFS (", "log mount/recovery failed"],
    &["BTRFS", "failed to read chunk tree"],
    &["BTRFS", "bad tree block"],
    &["BTRFS", "parent transid verify failed"],
    &["UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY"],
    &["Structure needs cleaning"],
    &["SQUASHFS error"],
];

pub(super) fn filesystem_damaged(look: &Look<'_>) -> Option<Finding> {
    let lines: Vec<&Line> = DAMAGE
        .iter()
        .filter_map(|parts| look.first(parts))
        .collect();
    if lines.is_empty() {
        return None;
    }
    // Requests that fail are no damage of what is written.
    let finding = if look.first(&["I/O error, dev "]).is_some() {
        Finding::possible()
    } else {
        Finding::certain()
    };
    Some(finding.lines(look, lines))
}

pub(super) fn filesystem_unknown(look: &Look<'_>) -> Option<Finding> {
    const SAYINGS: &[&[&str]] = &[
        &["VFS: Can't find ext4 filesystem"],
        &["VFS: Can't find ext3 filesystem"],
        &["No filesystem could mount root, tried"],
        &["unknown filesystem type"],
        &["wrong fs type, bad option, bad superblock"],
        &["Can't find a valid ", "filesystem"],
        &["nyx-guest: cannot mount"],
        &["mount: mounting /dev/", " failed: Invalid argument"],
        &["mount: mounting /dev/", " failed: No such device"],
    ];
    let mut lines: Vec<&Line> = SAYINGS
        .iter()
        .filter_map(|parts| look.first(parts))
        .collect();
    let kernel = look
        .first(&["Unable to mount root fs on "])
        .filter(|line| !line.text.contains("unknown-block(0,0)"));
    lines.extend(kernel);
    if lines.is_empty() {
        return None;
    }
    let finding = Finding::likely().lines(look, lines);
    let finding = match look.option("rootfstype") {
        Some(kind) => finding.fact("machine", &format!("rootfstype={kind}")),
        None => finding,
    };
    Some(with_root(look, finding))
}

pub(super) fn disk_errors(look: &Look<'_>) -> Option<Finding> {
    let lines: Vec<&Line> = look
        .any_of(&["I/O error, dev ", "Buffer I/O error on dev"])
        // A medium that is not there is none that fails: floppies, empty drives.
        .filter(|line| {
            !["dev fd", "dev sr", "device fd"]
                .iter()
                .any(|other| line.text.contains(other))
        })
        .take(3)
        .collect();
    let failed = look
        .devices("virtio-blk")
        .filter_map(|disk| Some((disk, disk.failed.filter(|count| *count > 0)?)));
    let facts: Vec<String> = failed
        .map(|(disk, count)| {
            format!(
                "{} ({}): {count} requests failed",
                disk.name,
                disk.host.as_deref().unwrap_or("no image")
            )
        })
        .collect();
    if lines.is_empty() {
        return None;
    }
    let mut finding = Finding::certain().lines(look, lines);
    for fact in &facts {
        finding = finding.fact("device", fact);
    }
    for error in look
        .scene
        .errors
        .iter()
        .filter(|error| error.contains("disk"))
        .take(2)
    {
        finding = finding.fact("vmm", error);
    }
    Some(finding)
}

pub(super) fn duplicate_discovery(look: &Look<'_>) -> Option<Finding> {
    let lines: Vec<&Line> = look
        .all(&["can't request region"])
        .chain(look.all(&["virtio-mmio", "failed with error -16"]))
        .collect();
    if lines.is_empty() {
        return None;
    }
    // It is harmless only where the first attempt succeeded.
    let works = !look.block_devices().is_empty()
        || look.is_driven("virtio-blk") == Some(true)
        || look.has_reached(Stage::Root);
    works.then(|| Finding::likely().lines(look, lines))
}
