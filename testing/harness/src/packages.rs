//! Debian packages: sees what is missing, says why it is wanted, and installs it.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::produce::Lock;
use crate::tool::{self, Tool};
use crate::workspace;

/// A Debian package and what the project wants it for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its name in the archive.
    pub package: &'static str,
    /// What for, as the end of the sentence "installing X: …".
    pub why: &'static str,
}

/// What unpacking and indexing a stock kernel needs.
pub const GUEST_KERNELS: &[Need] = &[
    Need {
        package: "kmod",
        why: "depmod orders the modules of a guest kernel",
    },
    Need {
        package: "xz-utils",
        why: "Debian's kernel image is compressed with xz",
    },
    Need {
        package: "lz4",
        why: "Debian's cloud kernel image is compressed with lz4",
    },
    Need {
        package: "zstd",
        why: "newer Debian kernel images are compressed with zstd",
    },
];

/// What tests of the GDB server need.
pub const DEBUGGER: &[Need] = &[Need {
    package: "gdb",
    why: "a real debugger proves the GDB server",
}];

/// What building the userland disk needs.
pub const USERLAND: &[Need] = &[
    Need {
        package: "mmdebstrap",
        why: "makes the small Debian system on the guest's disk",
    },
    Need {
        package: "e2fsprogs",
        why: "mke2fs makes the guest's file system",
    },
    Need {
        package: "fdisk",
        why: "sfdisk writes the guest disk's partition table",
    },
];

/// What building the userland disk needs besides when the user is not root.
const USERLAND_UNPRIVILEGED: &[Need] = &[
    Need {
        package: "fakeroot",
        why: "gives files of the guest's disk their owners",
    },
    Need {
        package: "uidmap",
        why: "lets an ordinary user unpack a Debian system",
    },
];

/// What the lab's emulator needs: see [`install_emulator`].
const EMULATOR: &[Need] = &[
    Need {
        package: "qemu-system-x86",
        why: "the lab emulates a PC with AMD-V",
    },
    Need {
        package: "qemu-utils",
        why: "kept at the same version as qemu-system-x86",
    },
];

/// The oldest emulator whose AMD-V emulation runs a nested guest (7.2 aborts).
pub const EMULATOR_MAJOR: u32 = 10;

/// The sources file this project adds on Debian 12.
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/bookworm-backports-nyx.sources";

/// Makes sure that the packages are there; fast when they are.
pub fn install(needs: &[Need]) -> Result<()> {
    install_from(None, needs)
}

/// Makes sure that what the userland disk is built with is there.
pub fn install_userland_tools() -> Result<()> {
    install(USERLAND)?;
    if is_root() {
        Ok(())
    } else {
        install(USERLAND_UNPRIVILEGED)
    }
}

/// Makes sure that an emulator new enough for the lab is there.
///
/// Debian 13 and later have one. Debian 12 gets it from its backports suite, which this adds (from the
/// mirror the machine already uses) only if no suite that is set up offers it.
pub fn install_emulator() -> Result<()> {
    if emulator_version().is_some_and(|version| version.0 >= EMULATOR_MAJOR) {
        return Ok(());
    }
    may_install(EMULATOR)?;
    let _lock = apt_lock()?;
    if candidate("qemu-system-x86").is_none() {
        update()?;
    }
    let suite = if offers(candidate("qemu-system-x86").as_deref()) {
        None
    } else if codename()?.as_deref() == Some("bookworm") {
        if !offers(candidate_in("bookworm-backports", "qemu-system-x86").as_deref()) {
            add_backports()?;
            update()?;
        }
        if !offers(candidate_in("bookworm-backports", "qemu-system-x86").as_deref()) {
            bail!(
                "bookworm-backports offers no QEMU {EMULATOR_MAJOR}, which the lab needs; \
                 see `apt-cache policy qemu-system-x86`"
            );
        }
        Some("bookworm-backports")
    } else {
        bail!(
            "the lab needs QEMU {EMULATOR_MAJOR} or newer, and this system's package sources offer \
             {}; install one by hand so that `qemu-system-x86_64 --version` says so",
            candidate("qemu-system-x86").unwrap_or_else(|| "none".into())
        );
    };
    announce(EMULATOR);
    apt_install(suite, EMULATOR)?;
    match emulator_version() {
        Some(version) if version.0 >= EMULATOR_MAJOR => Ok(()),
        found => bail!("installed QEMU, yet qemu-system-x86_64 reports {found:?}"),
    }
}

/// The version of `qemu-system-x86_64` in `PATH`, as major and minor.
pub fn emulator_version() -> Option<(u32, u32)> {
    tool::find("qemu-system-x86_64")?;
    let text = Tool::new("qemu-system-x86_64")
        .arg("--version")
        .text()
        .ok()?;
    parse_emulator_version(&text)
}

fn parse_emulator_version(text: &str) -> Option<(u32, u32)> {
    let rest = text.split("version ").nth(1)?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The packages of `needs` that are not installed.
pub fn missing(needs: &[Need]) -> Result<Vec<Need>> {
    // dpkg-query fails for unknown names and still lists the known ones, so its status says nothing.
    let output = Tool::new("dpkg-query")
        .args(["-W", "-f", "${binary:Package} ${db:Status-Status}\n"])
        .args(needs.iter().map(|need| need.package))
        .command()
        .stderr(std::process::Stdio::null())
        .output()
        .context(
            "cannot run dpkg-query: the project's tests and demo need Debian or a derivative",
        )?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(needs
        .iter()
        .copied()
        .filter(|need| !is_installed(&text, need.package))
        .collect())
}

fn is_installed(listing: &str, package: &str) -> bool {
    listing.lines().any(|line| {
        line.split_once(' ').is_some_and(|(name, status)| {
            // A name may carry its architecture: `libc6:amd64`.
            name.split(':').next() == Some(package) && status == "installed"
        })
    })
}

fn install_from(suite: Option<&str>, needs: &[Need]) -> Result<()> {
    if missing(needs)?.is_empty() {
        return Ok(());
    }
    let _lock = apt_lock()?;
    let wanted = missing(needs)?;
    if wanted.is_empty() {
        return Ok(());
    }
    may_install(&wanted)?;
    announce(&wanted);
    if wanted.iter().any(|need| candidate(need.package).is_none()) {
        update()?;
    }
    apt_install(suite, &wanted)
}

/// Refuses, before anything is touched, when there is no way to install.
fn may_install(needs: &[Need]) -> Result<()> {
    if is_root() || tool::find("sudo").is_some() {
        return Ok(());
    }
    let packages: Vec<&str> = needs.iter().map(|need| need.package).collect();
    let reasons: Vec<String> = needs
        .iter()
        .map(|need| format!("\n  {}: {}", need.package, need.why))
        .collect();
    bail!(
        "packages are missing, and there is no sudo; run as root: apt-get install {}{}",
        packages.join(" "),
        reasons.concat()
    )
}

fn announce(needs: &[Need]) {
    for need in needs {
        eprintln!("nyx: installing {}: {}", need.package, need.why);
    }
}

fn apt_install(suite: Option<&str>, needs: &[Need]) -> Result<()> {
    let attempt = || {
        let mut arguments = vec!["install", "-y", "-q", "--no-install-recommends"];
        // Another apt (unattended-upgrades, say) may be at work: wait for it instead of failing.
        arguments.extend(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]);
        if let Some(suite) = suite {
            arguments.extend(["-t", suite]);
        }
        arguments.extend(needs.iter().map(|need| need.package));
        as_root("apt-get", &arguments)?.output()
    };
    if attempt().is_ok() {
        return Ok(());
    }
    // Old lists name files that the mirror no longer has.
    update()?;
    attempt().map(drop)
}

/// Fetches the package lists.
pub fn update() -> Result<()> {
    eprintln!("nyx: fetching the lists of Debian packages");
    as_root("apt-get", &["update", "-q"])?.output().map(drop)
}

/// A command that runs as root: directly, or through sudo.
fn as_root(program: &str, arguments: &[&str]) -> Result<Tool> {
    let tool = if is_root() {
        Tool::new(program)
    } else if tool::find("sudo").is_some() {
        Tool::new("sudo").args([
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "LC_ALL=C.UTF-8",
            program,
        ])
    } else {
        bail!(
            "this needs root, and there is no sudo; run as root: {program} {}",
            arguments.join(" ")
        )
    };
    Ok(tool
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Are we root?
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn apt_lock() -> Result<Lock> {
    Lock::take(&workspace::cache_folder().join("apt.lock"))
}

/// The version that `apt-get install PACKAGE` would bring.
fn candidate(package: &str) -> Option<String> {
    let text = Tool::new("apt-cache")
        .args(["policy", package])
        .text()
        .ok()?;
    parse_candidate(&text)
}

fn parse_candidate(policy: &str) -> Option<String> {
    let line = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (line != "(none)").then(|| line.to_owned())
}

/// The version a named suite has.
fn candidate_in(suite: &str, package: &str) -> Option<String> {
    let text = Tool::new("apt-cache")
        .args(["-t", suite, "policy", package])
        .text()
        .ok()?;
    parse_candidate(&text)
}

/// Is this package version an emulator new enough?
fn offers(version: Option<&str>) -> bool {
    version
        .and_then(major)
        .is_some_and(|major| major >= EMULATOR_MAJOR)
}

/// The upstream major number in a Debian version: `1:10.0.2+ds-2` is 10.
fn major(version: &str) -> Option<u32> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// The running Debian's code name.
pub fn codename() -> Result<Option<String>> {
    let text = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    Ok(parse_codename(&text))
}

fn parse_codename(text: &str) -> Option<String> {
    let is_debian = text.lines().any(|line| line == "ID=debian");
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    is_debian.then(|| name.trim_matches('"').to_owned())
}

/// One suite that apt is set up with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// The mirror's address.
    pub(crate) uri: String,
    /// The suite's code name.
    pub(crate) codename: String,
}

/// The suites of Debian's own archive that apt is set up with.
pub(crate) fn debian_sources() -> Result<Vec<Source>> {
    let text = Tool::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI)|$(CODENAME)|$(COMPONENT)|$(ORIGIN)",
        ])
        .arg("Created-By: Packages")
        .text()?;
    Ok(parse_sources(&text))
}

fn parse_sources(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        if let [uri, codename, "main", "Debian" | "Debian Backports"] =
            line.split('|').collect::<Vec<_>>()[..]
        {
            sources.push(Source {
                uri: uri.to_owned(),
                codename: codename.to_owned(),
            });
        }
    }
    sources
}

/// The mirror that the machine takes the running Debian from.
pub(crate) fn mirror(codename: &str) -> Result<String> {
    debian_sources()?
        .into_iter()
        .find(|source| source.codename == codename)
        .map(|source| source.uri)
        .with_context(|| format!("apt is set up with no source for Debian {codename}"))
}

fn add_backports() -> Result<()> {
    let mirror = mirror("bookworm")?;
    eprintln!(
        "nyx: adding Debian's backports suite in {BACKPORTS_FILE}: Debian 12's own QEMU cannot run \
         the lab (its packages are used only when asked for by name)"
    );
    let mut text = format!(
        "# Added by `cargo xtask`: the lab needs QEMU {EMULATOR_MAJOR}.\n\
         Types: deb\nURIs: {mirror}\nSuites: bookworm-backports\nComponents: main\n"
    );
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    if Path::new(keyring).exists() {
        text.push_str(&format!("Signed-By: {keyring}\n"));
    }
    let draft = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    std::fs::write(draft.path(), text).context("cannot write a temporary file")?;
    let draft = draft.path().to_string_lossy().into_owned();
    as_root("install", &["-m", "644", &draft, BACKPORTS_FILE])?
        .output()
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_understood() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(parse_emulator_version(text), Some((10, 0)));
        assert_eq!(parse_emulator_version("something else"), None);
        assert_eq!(major("1:7.2+dfsg-7+deb12u18"), Some(7));
        assert_eq!(major("10.0.2+ds-2"), Some(10));
        assert_eq!(major("next"), None);
        assert!(!offers(Some("1:7.2+dfsg-7")));
        assert!(offers(Some("1:10.0.2+ds-2+deb13u1~bpo12+1")));
        assert!(!offers(None));
    }

    #[test]
    fn only_a_fully_installed_package_counts() {
        let listing = "busybox-static:amd64 installed\nkmod config-files\nzstd installed\n";
        assert!(is_installed(listing, "busybox-static"));
        assert!(is_installed(listing, "zstd"));
        assert!(
            !is_installed(listing, "kmod"),
            "removed, its configuration left"
        );
        assert!(!is_installed(listing, "zst"));
    }

    #[test]
    fn a_package_without_candidate_is_unknown() {
        assert_eq!(
            parse_candidate("kmod:\n  Installed: (none)\n  Candidate: (none)\n"),
            None
        );
        assert_eq!(
            parse_candidate("kmod:\n  Candidate: 30+2\n").as_deref(),
            Some("30+2")
        );
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn the_code_name_is_debians_only() {
        let debian = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(parse_codename(debian).as_deref(), Some("bookworm"));
        assert_eq!(parse_codename("ID=ubuntu\nVERSION_CODENAME=jammy\n"), None);
        assert_eq!(parse_codename("ID=debian\n"), None);
    }

    #[test]
    fn sources_of_others_are_left_out() {
        let text = "http://mirror.test/debian/|bookworm|main|Debian\n\
                    http://mirror.test/debian/|bookworm|contrib|Debian\n\
                    http://other.test/node|nodistro|main|Node\n\
                    http://mirror.test/debian/|bookworm-backports|main|Debian Backports\n";
        let names: Vec<String> = parse_sources(text)
            .into_iter()
            .map(|s| s.codename)
            .collect();
        assert_eq!(names, ["bookworm", "bookworm-backports"]);
    }

    #[test]
    fn what_every_debian_has_is_not_missing() {
        let there = Need {
            package: "dpkg",
            why: "it is Debian",
        };
        let absent = Need {
            package: "no-such-package-anywhere",
            why: "to be missing",
        };
        assert_eq!(missing(&[there, absent]).unwrap(), [absent]);
    }
}
