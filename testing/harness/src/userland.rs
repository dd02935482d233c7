//! A small Debian system on a disk, for demo and tests: made by mmdebstrap, with a light `init` of our own
//! (systemd would take most of a minute on an emulated processor).

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::produce::produce;
use crate::tool::Tool;
use crate::{packages, workspace};

/// Raised when the way the images are made changes in a manner the rest of the recipe does not show.
const LAYOUT: u32 = 1;

/// The guest's first process.
const INIT: &str = include_str!("guest/userland-init.sh");
/// What the guest tells about itself.
const SELF_CHECK: &str = include_str!("guest/self-check.sh");

/// Packages beyond the minimal set.
const PACKAGES: &[&str] = &[
    "busybox",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "login",
    "socat",
    "util-linux",
];

/// What a guest of this size never reads.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/share/man/*",
    "/usr/share/bash-completion/*",
];

/// The file system's size: enough for the system and some hundreds of megabytes of test data.
const FILE_SYSTEM_BYTES: u64 = 768 << 20;

/// Where the partition begins, as every partitioning program has it.
const PARTITION_START: u64 = 1 << 20;

/// Room for the partition table's copy at the end of the disk.
const PARTITION_END_GAP: u64 = 1 << 20;

/// Holes smaller than this are copied: another step of the script would take longer.
const SMALL_HOLE: u64 = 4 << 20;

/// The identity of the GPT disk's partition: `root=PARTUUID=` of the demo. Fixed, so the same recipe makes the
/// same disk.
pub const PARTUUID: &str = "6e797800-6465-4d6f-8001-000000000001";

/// The file system's UUID.
pub const FILE_SYSTEM_UUID: &str = "6e797800-6465-4d6f-8002-000000000001";

/// The file system's label.
pub const LABEL: &str = "nyx-root";

/// The line that ends a self-check that found nothing wrong.
pub const PASSED: &str = "nyx-demo: self-check passed";

/// The beginning of the line that ends a self-check that found something wrong.
pub const FAILED: &str = "nyx-demo: self-check failed";

/// Disk images of the same system. They are masters: boot copies, or read-only.
#[derive(Clone, Debug)]
pub struct Userland {
    /// A disk that is one ext4 file system: `root=/dev/vda`.
    pub whole_disk: PathBuf,
    /// A disk with a GUID partition table and one partition: `root=PARTUUID=`[`PARTUUID`].
    pub gpt_disk: PathBuf,
}

/// Gives the disk images, building them the first time and when their recipe changes.
pub fn userland() -> Result<Userland> {
    let folder = workspace::cache_folder().join("userland");
    let codename = packages::codename()?.unwrap_or_else(|| "stable".into());
    let recipe = format!(
        "layout {LAYOUT}\n{codename}\n{PACKAGES:?}\n{LEFT_OUT:?}\n{FILE_SYSTEM_BYTES}\n{INIT}\n{SELF_CHECK}"
    );
    produce(&folder, &recipe, |fresh| {
        packages::install_userland_tools()?;
        eprintln!("nyx: making the guest's Debian system");
        let whole_disk = fresh.join("debian.ext4");
        make_file_system(&codename, &whole_disk)?;
        partition(&whole_disk, &fresh.join("debian-gpt.img"))
    })?;
    Ok(Userland {
        whole_disk: folder.join("debian.ext4"),
        gpt_disk: folder.join("debian-gpt.img"),
    })
}

/// Copies an image without writing its zeros.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let target = File::create(to).with_context(|| format!("cannot make {}", to.display()))?;
    let length = source.metadata()?.len();
    target.set_len(length)?;
    copy_into(source, &target, 0).with_context(|| format!("cannot copy {}", from.display()))
}

/// Gives a shell script that copies an image without reading its holes: a lab sees this machine's files over
/// a protocol that does not tell where they are, and would carry every zero.
pub fn copy_script(from: &Path, to: &Path) -> Result<String> {
    let file = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let length = file.metadata()?.len();
    let (from, to) = (shell_word(from)?, shell_word(to)?);
    let mut script = format!("set -e\ntruncate -s {length} {to}\n");
    for (start, end) in data_extents(&file, length)? {
        script.push_str(&format!(
            "dd if={from} of={to} bs=1M iflag=skip_bytes,count_bytes oflag=seek_bytes conv=notrunc,sparse \
             status=none skip={start} seek={start} count={}\n",
            end - start
        ));
    }
    Ok(script)
}

/// A path as one word of a shell script.
fn shell_word(path: &Path) -> Result<String> {
    let text = path.to_str().context("the path is no text")?;
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

/// Where a file has data, as starts and ends; holes too small to be worth a step are taken along.
fn data_extents(file: &File, length: u64) -> Result<Vec<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    let mut extents: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < length {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data behind here.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error).context("cannot find the data of the image"),
        };
        let end = seek(file, SeekFrom::Hole(start)).context("cannot find a hole of the image")?;
        match extents.last_mut() {
            Some(last) if start - last.1 < SMALL_HOLE => last.1 = end,
            _ => extents.push((start, end)),
        }
        at = end;
    }
    Ok(extents)
}

fn make_file_system(codename: &str, image: &Path) -> Result<()> {
    let place = tempfile::tempdir().context("cannot make a temporary folder")?;
    let archive = place.path().join("system.tar");
    let files = place.path().join("files");
    lay_files(&files)?;
    let mut bootstrap = Tool::new("mmdebstrap")
        .args([
            "--quiet",
            "--variant=minbase",
            "--components=main",
            "--format=tar",
        ])
        .arg(format!("--include={}", PACKAGES.join(",")));
    for path in LEFT_OUT {
        bootstrap = bootstrap.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    bootstrap
        // Written by root of the guest, whoever builds it.
        .arg(format!("--customize-hook=sync-in {} /", files.display()))
        .arg("--customize-hook=chroot \"$1\" passwd -d root")
        .arg("--customize-hook=chroot \"$1\" apt-get clean")
        .arg("--customize-hook=rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/debconf/* \"$1\"/var/log/*.log")
        .arg(codename)
        .arg(&archive)
        .arg(packages::mirror(codename)?)
        .output()?;
    let root = place.path().join("root");
    fs::create_dir(&root)?;
    File::create(image)?.set_len(FILE_SYSTEM_BYTES)?;
    // One shell, so that fakeroot (for a user who is not root) remembers the owners that tar sets.
    let script = "set -e\n\
        tar -xpf \"$1\" -C \"$2\" --numeric-owner --exclude=./dev/*\n\
        mke2fs -q -F -t ext4 -L \"$4\" -U \"$5\" -E \"hash_seed=$5,root_owner=0:0\" -m 0 -d \"$2\" \"$3\"\n";
    let tool = if packages::is_root() {
        Tool::new("sh")
    } else {
        Tool::new("fakeroot").arg("sh")
    };
    tool.args(["-c", script, "sh"])
        .arg(&archive)
        .arg(&root)
        .arg(image)
        .args([LABEL, FILE_SYSTEM_UUID])
        .output()?;
    Ok(())
}

/// Lays out our own files as they will stand in the guest.
fn lay_files(folder: &Path) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let write = |path: &str, mode: u32, text: &str| -> Result<()> {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().context("a path without folder")?)?;
        fs::write(&path, text)?;
        Ok(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(mode),
        )?)
    };
    fs::create_dir_all(folder)?;
    // A temporary folder is private; the guest's root folder must not be.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    write("usr/lib/nyx/init", 0o755, INIT)?;
    write("usr/lib/nyx/self-check", 0o755, SELF_CHECK)?;
    for (name, flag) in [
        ("poweroff", "poweroff"),
        ("reboot", "reboot"),
        ("halt", "poweroff"),
    ] {
        let text = format!(
            "#!/bin/sh\n# There is no service to stop: write everything and switch.\n\
             sync\nmount -o remount,ro / 2>/dev/null\nexec busybox {flag} -f\n"
        );
        write(&format!("usr/local/sbin/{name}"), 0o755, &text)?;
    }
    write("etc/hostname", 0o644, "nyx-guest\n")?;
    write(
        "etc/hosts",
        0o644,
        "127.0.0.1 localhost nyx-guest\n::1 localhost\n",
    )?;
    write(
        "etc/fstab",
        0o644,
        "# The init script mounts what there is.\n",
    )?;
    write(
        "etc/issue",
        0o644,
        "A Debian guest of Nyx. Log in as root, without a password; poweroff ends it.\n\n",
    )?;
    fs::create_dir_all(folder.join("usr/sbin"))?;
    symlink("../lib/nyx/init", folder.join("usr/sbin/init"))?;
    Ok(())
}

/// Makes a disk with a GUID partition table around a file system.
fn partition(file_system: &Path, disk: &Path) -> Result<()> {
    let length = fs::metadata(file_system)?.len();
    let target = File::create(disk)?;
    target.set_len(PARTITION_START + length + PARTITION_END_GAP)?;
    let table = format!(
        "label: gpt\nlabel-id: 6e797800-6465-4d6f-8000-000000000001\nunit: sectors\nfirst-lba: 2048\n\
         start={}, size={}, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709, uuid={PARTUUID}, name=\"{LABEL}\"\n",
        PARTITION_START / 512,
        length / 512
    );
    let mut child = Tool::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(disk)
        .command()
        .stdin(std::process::Stdio::piped())
        .spawn()
        .context("cannot start sfdisk")?;
    child
        .stdin
        .take()
        .context("no pipe to sfdisk")?
        .write_all(table.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "sfdisk: {status}");
    copy_into(File::open(file_system)?, &target, PARTITION_START)
        .context("cannot copy the file system into its partition")?;
    if fs::metadata(disk)?.len() < PARTITION_START + length {
        bail!("the disk came out too short");
    }
    Ok(())
}

/// Copies what is not zero to `offset` of a file that reads as zeros there.
fn copy_into(mut source: File, target: &File, offset: u64) -> Result<()> {
    source.seek(SeekFrom::Start(0))?;
    let mut block = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let count = source.read(&mut block)?;
        if count == 0 {
            return Ok(());
        }
        let bytes = &block[..count];
        if bytes.iter().any(|&byte| byte != 0) {
            target.write_all_at(bytes, offset + at)?;
        }
        at += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_is_equal_and_sparse() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"something", 5_000_000).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn the_script_copies_the_data_and_not_the_holes() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("it's from"), place.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"first", 3 << 20).unwrap();
        file.write_all_at(b"second", 4 << 20).unwrap();
        file.write_all_at(b"third", (40 << 20) + 5).unwrap();
        let script = copy_script(&from, &to).unwrap();
        assert_eq!(script.matches("dd if=").count(), 2, "{script}");
        Tool::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 8 << 20);
    }

    #[test]
    fn a_partition_holds_the_file_system() {
        if crate::tool::find("sfdisk").is_none() {
            packages::install(packages::USERLAND).unwrap();
        }
        let place = tempfile::tempdir().unwrap();
        let (inner, disk) = (place.path().join("inner"), place.path().join("disk"));
        let content: Vec<u8> = (0..2u32 << 20).map(|n| (n >> 8) as u8).collect();
        fs::write(&inner, &content).unwrap();
        partition(&inner, &disk).unwrap();
        let made = fs::read(&disk).unwrap();
        // UEFI 2.10, section 5.3: the header's mark is in the second sector, the unique GUID in the first entry.
        assert_eq!(&made[512..520], b"EFI PART");
        let entries = u64::from_le_bytes(made[584..592].try_into().unwrap()) as usize * 512;
        let start = u64::from_le_bytes(made[entries + 32..entries + 40].try_into().unwrap());
        assert_eq!(start * 512, PARTITION_START);
        assert_eq!(
            &made[entries + 16..entries + 20],
            &0x6e79_7800_u32.to_le_bytes()
        );
        assert_eq!(&made[1 << 20..3 << 20], &content[..]);
    }

    #[test]
    fn the_scripts_are_valid() {
        for script in [INIT, SELF_CHECK] {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), script).unwrap();
            Tool::new("sh").arg("-n").arg(file.path()).output().unwrap();
        }
    }
}
