//! What is booted, with which command line, and why.

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

/// What was found on a disk that may hold the root file system; gathered by whoever can read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootChoice {
    /// A partition of a GPT or MBR disk.
    Partition {
        /// What the kernel calls it after `PARTUUID=`.
        partuuid: String,
        /// Its number, from 1.
        number: u32,
    },
    /// A file system that fills the disk.
    WholeDisk {
        /// Its type, for the explanation: `ext4`.
        filesystem: String,
    },
    /// Nothing to mount, and why.
    None {
        /// In a few words.
        why: String,
    },
}

/// A disk as far as booting is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootDisk {
    /// Position among the disks.
    pub index: u32,
    /// What is on it.
    pub root: RootChoice,
}

/// A word of a command line with this key: `root=…`.
fn words<'a>(cmdline: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    cmdline.split_ascii_whitespace().filter(move |word| {
        word.strip_prefix(key).is_some_and(|rest| rest.starts_with('='))
    })
}

/// The name of disk `index` in the guest: `vda` to `vdzz`.
fn disk_name(index: u32) -> String {
    let letter = |n: u32| char::from(b'a' + u8::try_from(n % 26).unwrap_or(0));
    match index {
        0..26 => format!("/dev/vd{}", letter(index)),
        _ => format!("/dev/vd{}{}", letter(index / 26 - 1), letter(index)),
    }
}

/// Composes the command line: the user's, with `console=` and `root=` added where absent.
pub(crate) fn compose(
    user: &str,
    devices: &[DeviceSpec],
    disks: &[BootDisk],
    initrd: bool,
) -> Result<(String, Vec<String>), String> {
    if let Some(bad) = user.chars().find(|c| c.is_control()) {
        return Err(format!("it holds {bad:?}; write it on one line without control characters"));
    }
    let roots: Vec<_> = words(user, "root").collect();
    if let [first, second, ..] = roots.as_slice() {
        return Err(format!("it says {first:?} and {second:?}; keep one of them"));
    }
    let mut line = user.trim().to_string();
    let mut notes = Vec::new();
    let mut add = |word: &str| {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    };
    if words(user, "console").next().is_none() {
        let serial = devices.iter().find_map(|d| match d.role {
            Role::Serial { number, .. } => Some(number),
            _ => None,
        });
        let virtio = devices.iter().any(|d| d.role == Role::VirtioConsole);
        if let Some(number) = serial {
            add(&format!("console=ttyS{number}"));
            notes.push(format!(
                "console=ttyS{number}: the command line names no console, and COM{} is there",
                number + 1
            ));
        } else if virtio {
            add("console=hvc0");
            notes.push(
                "console=hvc0: the command line names no console, and the only one is virtio's"
                    .into(),
            );
        }
    }
    if let Some(root) = roots.first() {
        notes.push(format!("{root}: given on the command line"));
    } else {
        let readonly = |index: u32| {
            devices.iter().any(|d| matches!(&d.role, Role::Disk(r) if r.index == index && r.readonly))
        };
        let mode = |index| if readonly(index) { "ro" } else { "rw" };
        let found = disks.iter().find(|d| !matches!(d.root, RootChoice::None { .. }));
        match found.map(|d| (d.index, &d.root)) {
            Some((index, RootChoice::Partition { partuuid, number })) => {
                add(&format!("root=PARTUUID={partuuid} {} rootwait", mode(index)));
                notes.push(format!(
                    "root=PARTUUID={partuuid}: partition {number} of disk {index} ({})",
                    disk_name(index)
                ));
            }
            Some((index, RootChoice::WholeDisk { filesystem })) => {
                let name = disk_name(index);
                add(&format!("root={name} {} rootwait", mode(index)));
                notes.push(format!(
                    "root={name}: disk {index} holds an {filesystem} file system without partitions"
                ));
            }
            _ => {
                for disk in disks {
                    if let RootChoice::None { why } = &disk.root {
                        notes.push(format!("no root= from disk {}: {why}", disk.index));
                    }
                }
                let what = if initrd { "the initrd decides" } else { "the kernel has none" };
                notes.push(format!("no root=: no disk offers one, so {what}"));
            }
        }
    }
    Ok((line, notes))
}
