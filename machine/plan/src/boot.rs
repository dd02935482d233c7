//! What is booted, with which command line, and why.

use nyx_boot::cmdline::{CommandLineRequest, RootRequest, compose};
use nyx_boot::disk_probe::RootDisk;
use nyx_spec::{DeviceSpec, Role};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is booted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPlan {
    /// Kernel.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The whole command line.
    pub cmdline: String,
    /// Why it is what it is, a sentence each.
    pub notes: Vec<String>,
}

/// A disk as far as booting is concerned; gathered by whoever can read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootDisk {
    /// Position among the disks.
    pub index: u32,
    /// Where its root file system is, or why there is none, worded to follow the disk's name.
    pub root: Result<RootDisk, String>,
}

/// The name of disk `index` in the guest: `/dev/vda` to `/dev/vdzz`.
fn disk_name(index: u32) -> String {
    let letter = |n: u32| char::from(b'a' + u8::try_from(n % 26).unwrap_or(0));
    match index {
        0..26 => format!("/dev/vd{}", letter(index)),
        _ => format!("/dev/vd{}{}", letter(index / 26 - 1), letter(index)),
    }
}

/// Composes the command line: the user's, with `console=` and `root=` added where absent.
pub(crate) fn command_line(
    user: &str,
    devices: &[DeviceSpec],
    disks: &[BootDisk],
) -> Result<(String, Vec<String>), String> {
    let serial = devices.iter().find_map(|d| match d.role {
        Role::Serial { number, .. } => Some(format!("ttyS{number}")),
        _ => None,
    });
    let virtio = devices.iter().any(|d| d.role == Role::VirtioConsole);
    let console = serial.or_else(|| virtio.then(|| "hvc0".into()));
    let found = disks
        .iter()
        .find_map(|d| Some((d.index, d.root.as_ref().ok()?)));
    let name = found.map(|(index, _)| disk_name(index)).unwrap_or_default();
    let request = CommandLineRequest {
        user,
        console: console.as_deref(),
        root: found.map(|(index, disk)| RootRequest {
            device: &name,
            disk,
            read_only: devices
                .iter()
                .any(|d| matches!(&d.role, Role::Disk(r) if r.index == index && r.readonly)),
        }),
        machine: &[],
    };
    let line = compose(&request).map_err(|e| e.to_string())?;
    let mut notes = line.explanation;
    if found.is_none() && !notes.iter().any(|n| n.starts_with("root=")) {
        notes.extend(disks.iter().filter_map(|d| {
            let why = d.root.as_ref().err()?;
            Some(format!(
                "no root= added: disk {} ({}) {why}",
                d.index,
                disk_name(d.index)
            ))
        }));
    }
    Ok((line.text, notes))
}
