//! How the project's commands call `nyx`: its command line is spelled here and nowhere else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nyx_harness::tool::Tool;
use nyx_harness::workspace;

/// The exit code of `nyx run` when its user stopped the machine.
pub(crate) const STOPPED: i32 = 6;

/// The guest to boot.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// bzImage or ELF.
    pub(crate) kernel: PathBuf,
    /// The initramfs.
    pub(crate) initrd: PathBuf,
    /// A raw image; Nyx finds out where its root file system is.
    pub(crate) disk: PathBuf,
    /// What to add to the kernel's command line.
    pub(crate) cmdline: String,
    /// Processors.
    pub(crate) cpus: u32,
    /// Memory in MiB.
    pub(crate) memory_mib: u32,
}

impl Guest {
    /// The command that boots this guest with its console on standard output.
    pub(crate) fn run(&self, nyx: &Path) -> Vec<OsString> {
        let mut argv: Vec<OsString> = vec![nyx.into(), "run".into()];
        let mut option = |name: &str, value: OsString| argv.extend([name.into(), value]);
        option("--kernel", self.kernel.clone().into());
        option("--initrd", self.initrd.clone().into());
        option("--disk", self.disk.clone().into());
        option("--cmdline", self.cmdline.clone().into());
        option("--net", "user".into());
        option("--cpus", self.cpus.to_string().into());
        option("--memory", format!("{}M", self.memory_mib).into());
        argv
    }
}

/// Builds `nyx` as users have it and gives its path.
pub(crate) fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Tool::new(cargo)
        .args(["build", "--release", "--package", "nyx-cli", "--bin", "nyx"])
        .folder(workspace::root())
        .show()?;
    let path = workspace::target_folder().join("release/nyx");
    if !path.is_file() {
        bail!("cargo built nyx, and yet there is no {}", path.display());
    }
    Ok(path)
}

/// What this host's KVM does with guest kernels, as `nyx doctor` measured it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestKernels {
    /// Runs them on the processor.
    Native,
    /// Emulates every instruction: far too slow.
    Emulated,
    /// There is no usable KVM.
    Unavailable,
}

/// Asks `nyx doctor`.
pub(crate) fn guest_kernels(nyx: &Path) -> Result<GuestKernels> {
    // The doctor's exit code tells of findings, which are no obstacle here.
    let output = Tool::new(nyx)
        .args(["doctor", "--json"])
        .command()
        .output()
        .with_context(|| format!("cannot run {} doctor", nyx.display()))?;
    parse_doctor(&output.stdout).with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned();
        format!(
            "nyx doctor --json ({}) gave no verdict {said}",
            output.status
        )
    })
}

fn parse_doctor(json: &[u8]) -> Result<GuestKernels> {
    let report: serde_json::Value =
        serde_json::from_slice(json).context("its report is no JSON")?;
    match report
        .get("guest_kernels")
        .and_then(serde_json::Value::as_str)
    {
        Some("native") => Ok(GuestKernels::Native),
        Some("emulated") => Ok(GuestKernels::Emulated),
        Some("unavailable") => Ok(GuestKernels::Unavailable),
        other => bail!("its field guest_kernels is {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_doctors_verdict_is_read() {
        let verdict = |json: &str| parse_doctor(json.as_bytes());
        assert_eq!(
            verdict(r#"{"guest_kernels":"native","x":1}"#).unwrap(),
            GuestKernels::Native
        );
        assert_eq!(
            verdict(r#"{"guest_kernels":"emulated"}"#).unwrap(),
            GuestKernels::Emulated
        );
        assert_eq!(
            verdict(r#"{"guest_kernels":"unavailable"}"#).unwrap(),
            GuestKernels::Unavailable
        );
        assert!(verdict(r#"{"guest_kernels":"maybe"}"#).is_err());
        assert!(verdict("{}").is_err());
        assert!(verdict("").unwrap_err().to_string().contains("no JSON"));
    }
}
