//! Where machines are found: the folders of a user, and the files in a machine's.

use std::path::PathBuf;

/// The file in a machine's runtime folder that is locked for as long as its process lives.
pub const LOCK: &str = "lock";
/// The file in it that says who it is ([`MachineRecord`](crate::MachineRecord)).
pub const RECORD: &str = "vm.json";
/// The control socket in it.
pub const SOCKET: &str = "api.sock";
/// The journal's ring in it.
pub const RING: &str = "journal.ring";
/// The journal's ring of the process before, which was killed.
pub const OLD_RING: &str = "journal.ring.old";

/// An environment variable that is set to something.
fn set(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// Where the runtime folders of this user's machines are, one for each name: `$NYX_RUNTIME_DIR`, or `/run/nyx` for
/// root, or `$XDG_RUNTIME_DIR/nyx`, or `/tmp/nyx-UID`. `uid` is the effective user.
pub fn runtime_root(uid: u32) -> PathBuf {
    if let Some(root) = set("NYX_RUNTIME_DIR") {
        return root;
    }
    if uid == 0 {
        return "/run/nyx".into();
    }
    match set("XDG_RUNTIME_DIR") {
        Some(folder) => folder.join("nyx"),
        None => format!("/tmp/nyx-{uid}").into(),
    }
}

/// Where what outlives a machine is kept, one folder for each name: `$NYX_STATE_DIR`, or `/var/lib/nyx` for root, or
/// `$XDG_STATE_HOME/nyx`, or `~/.local/state/nyx`; `None` for a user without a home.
pub fn state_root(uid: u32) -> Option<PathBuf> {
    if let Some(root) = set("NYX_STATE_DIR") {
        return Some(root);
    }
    if uid == 0 {
        return Some("/var/lib/nyx".into());
    }
    let home = || set("HOME").map(|home| home.join(".local/state"));
    let folder = set("XDG_STATE_HOME").or_else(home)?;
    Some(folder.join("nyx"))
}
