//! Stock Debian kernels for guests and for the lab.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::produce::produce;
use crate::tool::Tool;
use crate::{bzimage, packages, workspace};

/// Raised when the way a kernel folder is laid out changes.
const LAYOUT: &str = "kernel folder, layout 1";

/// Which of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `linux-image-amd64`: all drivers, KVM and VFIO included.
    Full,
    /// `linux-image-cloud-amd64`: what virtual machines need.
    Cloud,
}

impl Flavour {
    /// The package that always depends on the newest kernel of this flavour.
    pub fn package(self) -> &'static str {
        match self {
            Self::Full => "linux-image-amd64",
            Self::Cloud => "linux-image-cloud-amd64",
        }
    }

    /// The short name, as in the cache folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Cloud => "cloud",
        }
    }
}

/// One unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The release, as `uname -r` will say it.
    pub release: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// The ELF kernel taken out of it (with a PVH entry note).
    pub vmlinux: PathBuf,
    /// Its modules: a `lib/modules/RELEASE`, indexed.
    pub modules: PathBuf,
}

/// Gives the kernel of `flavour`, fetching and unpacking it the first time.
///
/// A kernel once fetched is kept, so that test results stay comparable; remove its cache folder to
/// fetch the newest.
pub fn kernel(flavour: Flavour) -> Result<Kernel> {
    let folder = workspace::cache_folder()
        .join("kernels")
        .join(flavour.name());
    produce(
        &folder,
        &format!("{LAYOUT}\n{}\n", flavour.package()),
        |fresh| {
            packages::install(packages::GUEST_KERNELS)?;
            let package = newest(flavour)?;
            eprintln!("nyx: fetching the stock kernel {package}");
            fetch(&package, fresh)?;
            // Debian 13 ships modules below /usr/lib; one layout serves both and depmod.
            let lib = fresh.join("lib");
            if !lib.join("modules").is_dir() {
                fs::create_dir_all(&lib)?;
                fs::rename(fresh.join("usr/lib/modules"), lib.join("modules"))
                    .context("the kernel package has no modules")?;
            }
            let kernel = open(fresh)?;
            Tool::new("depmod")
                .arg("-b")
                .arg(fresh)
                .arg(&kernel.release)
                .output()?;
            let image = fs::read(&kernel.vmlinuz)?;
            fs::write(&kernel.vmlinux, bzimage::vmlinux(&image)?)?;
            Ok(())
        },
    )?;
    open(&folder)
}

/// Gives a static busybox, fetching it the first time (without installing the package: it would replace
/// the system's own busybox).
pub fn busybox() -> Result<PathBuf> {
    let folder = workspace::cache_folder().join("busybox");
    produce(&folder, "busybox-static, layout 1\n", |fresh| {
        let unpacked = fresh.join("package");
        fetch("busybox-static", &unpacked)?;
        let found = ["bin/busybox", "usr/bin/busybox"]
            .iter()
            .map(|path| unpacked.join(path))
            .find(|path| path.is_file())
            .context("the package busybox-static has no busybox")?;
        fs::rename(found, fresh.join("busybox"))?;
        fs::remove_dir_all(unpacked)?;
        Ok(())
    })?;
    Ok(folder.join("busybox"))
}

/// Fetches a Debian package with apt (so its signature is checked) and unpacks it into `folder`.
pub fn fetch(package: &str, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Not below the cache folder: apt names files after versions, and only one may be there.
    let place = tempfile::tempdir().context("cannot make a temporary folder")?;
    let download = || {
        let mut tool = Tool::new("apt-get")
            .args(["download", "-q", package])
            .folder(place.path());
        if packages::is_root() {
            // The user _apt cannot write here, and apt would warn of it.
            tool = tool.args(["-o", "APT::Sandbox::User=root"]);
        }
        tool.output()
    };
    if download().is_err() {
        packages::update()?;
        download()?;
    }
    let file = fs::read_dir(place.path())?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left no file"))?;
    Tool::new("dpkg-deb")
        .arg("-x")
        .arg(file)
        .arg(folder)
        .output()?;
    Ok(())
}

/// The versioned package that the flavour's package depends on now.
fn newest(flavour: Flavour) -> Result<String> {
    let ask = || {
        let text = Tool::new("apt-cache")
            .args(["depends", flavour.package()])
            .text()
            .ok()?;
        parse_newest(&text)
    };
    if let Some(package) = ask() {
        return Ok(package);
    }
    packages::update()?;
    ask().with_context(|| format!("apt knows no package {}", flavour.package()))
}

fn parse_newest(depends: &str) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| {
            line.trim_start_matches([' ', '|'])
                .strip_prefix("Depends: ")
        })
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
}

fn open(folder: &Path) -> Result<Kernel> {
    let names = fs::read_dir(folder.join("boot"))
        .with_context(|| format!("no kernel in {}", folder.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for name in names {
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            return Ok(Kernel {
                release: release.to_owned(),
                vmlinuz: folder.join("boot").join(&name),
                vmlinux: folder.join("boot").join(format!("vmlinux-{release}")),
                modules: folder.join("lib/modules").join(release),
            });
        }
    }
    bail!("no vmlinuz in {}", folder.join("boot").display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versioned_kernel_is_found() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Recommends: x\n";
        assert_eq!(
            parse_newest(text).as_deref(),
            Some("linux-image-6.1.0-56-amd64")
        );
        let choice =
            "linux-image-amd64\n |Depends: linux-image-6.12-amd64\n  Depends: linux-other\n";
        assert_eq!(
            parse_newest(choice).as_deref(),
            Some("linux-image-6.12-amd64")
        );
        assert_eq!(parse_newest("linux-image-amd64\n"), None);
    }

    #[test]
    fn a_kernel_folder_is_recognised() {
        let folder = tempfile::tempdir().unwrap();
        assert!(open(folder.path()).is_err());
        fs::create_dir(folder.path().join("boot")).unwrap();
        assert!(
            open(folder.path())
                .unwrap_err()
                .to_string()
                .contains("no vmlinuz")
        );
        fs::write(folder.path().join("boot/System.map-6.1.0-56-amd64"), "").unwrap();
        fs::write(folder.path().join("boot/vmlinuz-6.1.0-56-amd64"), "").unwrap();
        let kernel = open(folder.path()).unwrap();
        assert_eq!(kernel.release, "6.1.0-56-amd64");
        assert!(kernel.modules.ends_with("lib/modules/6.1.0-56-amd64"));
    }
}
