//! The runtime folder of a machine: how others find it while it runs.
//!
//! ```text
//!   <root>/<name>/lock          held for as long as the machine's process lives
//!                /vm.json       who it is (MachineRecord)
//!                /api.sock      its control socket
//!                /journal.ring  the last entries of its journal
//! ```
//!
//! The root is [`nyx_api::place::runtime_root`]. A process that is killed leaves its folder behind; the next machine of that name takes it over.

use nyx_api::MachineRecord;
use nyx_api::place::{LOCK, OLD_RING, RECORD, RING, SOCKET};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A machine's name cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It is in use.
    #[error(
        "name: a machine called {name:?} runs already{}; choose another name, or stop that one with `nyx stop {name}`",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Taken {
        /// The name.
        name: String,
        /// Its process.
        pid: Option<u32>,
    },
    /// The folder belongs to somebody else.
    #[error(
        "{} belongs to another user; set NYX_RUNTIME_DIR to a folder of your own", .0.display()
    )]
    Foreign(PathBuf),
    /// The socket's path is longer than a socket's path can be.
    #[error("{} is too long for a socket's path; choose a shorter name, or set NYX_RUNTIME_DIR to a shorter folder", .0.display())]
    TooLong(PathBuf),
    /// The system refused.
    #[error("cannot {action} {}: {source}; set NYX_RUNTIME_DIR to a folder that can be written", .path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// `sun_path` of `sockaddr_un` (unix(7)), without the final zero.
const LONGEST_SOCKET_PATH: usize = 107;

/// A name that is this machine's for as long as this lives. Dropping it removes the folder.
#[derive(Debug)]
pub struct RuntimeFolder {
    path: PathBuf,
    /// Keeps others away.
    _lock: File,
}

impl RuntimeFolder {
    /// Claims `name` below `root`.
    ///
    /// # Errors
    ///
    /// It is taken, or the folder cannot be made. Nothing is left behind.
    pub fn claim(root: &Path, name: &str) -> Result<Self, ClaimError> {
        let path = root.join(name);
        let socket = path.join(SOCKET);
        if socket.as_os_str().len() > LONGEST_SOCKET_PATH {
            return Err(ClaimError::TooLong(socket));
        }
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ClaimError::System {
                action,
                path,
                source,
            }
        };
        for folder in [root, &path] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(failed("create", folder))?;
            let owner = fs::metadata(folder).map_err(failed("look at", folder))?;
            if owner.uid() != rustix::process::geteuid().as_raw() {
                return Err(ClaimError::Foreign(folder.to_owned()));
            }
        }
        let lock = path.join(LOCK);
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&lock)
                .map_err(failed("create", &lock))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(ClaimError::Taken {
                        name: name.into(),
                        pid: read_record(&path).map(|record| record.pid),
                    });
                }
                Err(e) => return Err(failed("lock", &lock)(e.into())),
            }
            // One that just ended may have removed the file between the two calls.
            let same = fs::metadata(&lock)
                .ok()
                .zip(file.metadata().ok())
                .is_some_and(|(there, ours)| there.ino() == ours.ino());
            if same {
                let folder = Self { path, _lock: file };
                folder.clear_away();
                return Ok(folder);
            }
            if let Err(e) = DirBuilder::new().recursive(true).mode(0o700).create(&path) {
                return Err(failed("create", &path)(e));
            }
        }
    }

    /// Removes what a process that was killed left behind; its journal is kept beside the new one.
    fn clear_away(&self) {
        for name in [SOCKET, RECORD] {
            // What is not there need not be removed.
            let _ = fs::remove_file(self.path.join(name));
        }
        let _ = fs::rename(self.ring(), self.path.join(OLD_RING));
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the control socket belongs.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Where the journal's ring belongs.
    pub fn ring(&self) -> PathBuf {
        self.path.join(RING)
    }

    /// Says who is here.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn publish(&self, record: &MachineRecord) -> Result<(), ClaimError> {
        let path = self.path.join(RECORD);
        let new = self.path.join("vm.json.new");
        let text = serde_json::to_vec(record).unwrap_or_default();
        let written = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&new, &path));
        written.map_err(|source| ClaimError::System {
            action: "write",
            path,
            source,
        })
    }
}

impl Drop for RuntimeFolder {
    fn drop(&mut self) {
        // The lock goes last: who waits for it finds the folder free.
        for name in [SOCKET, RECORD, RING, OLD_RING, LOCK] {
            let _ = fs::remove_file(self.path.join(name));
        }
        // Something of somebody else's in it keeps it.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Who is in the folder `path`.
fn read_record(path: &Path) -> Option<MachineRecord> {
    const MOST: u64 = 64 << 10;
    let mut text = Vec::new();
    let file = File::open(path.join(RECORD)).ok()?;
    file.take(MOST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> MachineRecord {
        MachineRecord {
            id: "0123456789ab".into(),
            name: "web1".into(),
            pid: 4711,
            started: "2026-11-21T07:00:00Z".into(),
            socket: String::new(),
            version: "0".into(),
        }
    }

    #[test]
    fn a_name_is_one_machines_at_a_time_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("nyx");
        let first = RuntimeFolder::claim(&root, "web1").unwrap();
        first.publish(&record()).unwrap();
        let said = RuntimeFolder::claim(&root, "web1").unwrap_err().to_string();
        assert!(
            said.contains("process 4711") && said.contains("nyx stop web1"),
            "{said}"
        );
        let other = RuntimeFolder::claim(&root, "web2").unwrap();
        drop(first);
        assert!(!root.join("web1").exists());
        assert!(root.join("web2").exists());
        drop(other);
        drop(RuntimeFolder::claim(&root, "web1").unwrap());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_process_left_is_taken_over() {
        let root = tempfile::tempdir().unwrap();
        let stale = root.path().join("web1");
        fs::create_dir(&stale).unwrap();
        for name in [LOCK, SOCKET, RECORD, RING] {
            fs::write(stale.join(name), "stale").unwrap();
        }
        let folder = RuntimeFolder::claim(root.path(), "web1").unwrap();
        assert!(!folder.socket().exists() && !folder.ring().exists());
        assert_eq!(fs::read(stale.join(OLD_RING)).unwrap(), b"stale");
        drop(folder);
        assert!(!stale.exists());
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_said() {
        let root = tempfile::tempdir().unwrap();
        let name = "n".repeat(100);
        let error = RuntimeFolder::claim(root.path(), &name).unwrap_err();
        assert!(matches!(error, ClaimError::TooLong(_)), "{error}");
        assert!(!root.path().join(name).exists());
    }
}
