//! Builds initramfs images: busybox, modules in the order to insert them, and an `init` script.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::guests::Kernel;
use crate::modules::{self, ModuleTree};
use crate::produce::produce;
use crate::{guests, workspace};

/// The generic guest's `init`.
const GUEST_INIT: &str = include_str!("guest/init.sh");

/// Modules a guest's initramfs must have, one way or the other.
const GUEST_REQUIRED: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "crc32c_generic",
    "ext4",
];

/// Modules a guest's initramfs has where its kernel does.
const GUEST_WANTED: &[&str] = &[
    "crc32c_intel",
    "virtio_rng",
    "virtio_console",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "pvpanic_mmio",
    "pvpanic_pci",
    "button",
];

/// What goes into an initramfs.
#[derive(Debug)]
pub struct Initramfs<'a> {
    /// The script run as the first process, by busybox's shell.
    pub init: &'a str,
    /// The kernel whose modules go in.
    pub kernel: &'a Kernel,
    /// Modules that must be in it or in the kernel.
    pub required: &'a [&'a str],
    /// Modules that go in if the kernel has them.
    pub wanted: &'a [&'a str],
    /// Modules that must be there too, but listed in `modules/later` instead of `modules/order`, for an `init`
    /// that inserts them while it does something else.
    pub later: &'a [&'a str],
    /// Further files: path, permission bits, content.
    pub files: &'a [(&'a str, u32, &'a [u8])],
}

impl Initramfs<'_> {
    /// Writes the image (an uncompressed archive: unpacking costs emulated processors dearly) to `path`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let busybox = fs::read(guests::busybox()?).context("cannot read busybox")?;
        let mut archive = Archive::new(Vec::new());
        for folder in ["dev", "proc", "sys", "run", "tmp", "etc", "newroot"] {
            archive.folder(folder)?;
        }
        archive.device("dev/console", 5, 1)?;
        archive.device("dev/null", 1, 3)?;
        archive.file("bin/busybox", 0o755, &busybox)?;
        archive.link("bin/sh", "busybox")?;
        archive.file("init", 0o755, self.init.as_bytes())?;
        let tree = ModuleTree::open(&self.kernel.modules)?;
        let first = tree.load_order(self.wanted, self.required)?;
        let mut later = tree.load_order(&[], self.later)?;
        later.retain(|file| !first.contains(file));
        for (list, files) in [("order", first), ("later", later)] {
            let mut names = String::new();
            for file in files {
                let name = modules::name_of(&file.to_string_lossy());
                archive.file(
                    &format!("modules/{name}.ko"),
                    0o644,
                    &modules::content(&file)?,
                )?;
                names.push_str(&name);
                names.push('\n');
            }
            archive.file(&format!("modules/{list}"), 0o644, names.as_bytes())?;
        }
        for (path, mode, content) in self.files {
            archive.file(path, *mode, content)?;
        }
        let image = archive.finish()?;
        fs::write(path, image).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Describes the image so that a change of any part makes another text.
    fn recipe(&self) -> String {
        format!(
            "layout 2\n{}\n{:?}\n{:?}\n{:?}\n{:?}\n{}",
            self.kernel.release, self.required, self.wanted, self.later, self.files, self.init
        )
    }

    /// Gives the image from the cache, where it is called `name`; builds it if it is not there.
    pub fn cached(&self, name: &str) -> Result<PathBuf> {
        let folder = workspace::cache_folder().join("initramfs").join(name);
        produce(&folder, &self.recipe(), |fresh| {
            self.write(&fresh.join("initramfs.cpio"))
        })?;
        Ok(folder.join("initramfs.cpio"))
    }
}

/// Gives the generic guest initramfs of a kernel.
///
/// Its `init` inserts the virtio and ext4 modules, then mounts `root=` (`/dev/…`, `PARTUUID=`, `UUID=`,
/// `LABEL=`; `rootfstype=`, `rootflags=`, `ro`, `rw`, `rootwait` as the kernel documents them) and hands over to
/// `init=` (`/sbin/init`). Without `root=` it runs `check`, a shell script whose exit status it reports as
/// `nyx-check: exit N` before powering off, or gives a shell on the console.
pub fn guest(kernel: &Kernel, check: Option<&str>) -> Result<PathBuf> {
    let files: Vec<(&str, u32, &[u8])> = check
        .iter()
        .map(|script| ("check", 0o755, script.as_bytes()))
        .collect();
    let image = Initramfs {
        init: GUEST_INIT,
        kernel,
        required: GUEST_REQUIRED,
        wanted: GUEST_WANTED,
        later: &[],
        files: &files,
    };
    let name = match check {
        None => format!("guest-{}", kernel.release),
        // A name of its own for each script, so that tests side by side do not rebuild each other's.
        Some(script) => format!("guest-{}-{:016x}", kernel.release, fingerprint(script)),
    };
    image.cached(&name)
}

/// A 64-bit FNV-1a hash: names a file, guards nothing (the recipe is compared in full).
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_differ() {
        // Reference value of the published FNV-1a algorithm.
        assert_eq!(fingerprint(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fingerprint("a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(fingerprint("exit 0"), fingerprint("exit 1"));
    }

    #[test]
    fn the_init_script_is_a_valid_shell_script() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), GUEST_INIT).unwrap();
        crate::tool::Tool::new("sh")
            .arg("-n")
            .arg(file.path())
            .output()
            .unwrap();
    }
}
