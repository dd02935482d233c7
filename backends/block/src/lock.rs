//! Keeps a second opener away from an image: open-file-description locks (fcntl(2), F_OFD_SETLK).
//!
//! The byte ranges are those on which QEMU announces what it does with an image: 100 + n for a
//! permission it uses, 200 + n for one it lets nobody else use (n: 0 consistent read, 1 write,
//! 3 resize). A writer takes all of them exclusively; a reader takes shared locks that say "I read,
//! and nobody may write or resize". So two Nyx, and Nyx and QEMU or qemu-img, respect each other.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

const CONSISTENT_READ: i64 = 100;
const WRITE: i64 = 101;
const NO_READERS: i64 = 200;
const NO_WRITERS: i64 = 201;
const NO_RESIZERS: i64 = 203;
/// Both ranges, as far as anybody may ever use them.
const ALL: (i64, i64) = (100, 200);

/// The process that has an image locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// The program's name (`/proc/PID/comm`).
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == std::process::id() {
            return f.write_str("this virtual machine");
        }
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// The end of "is in use…".
pub(crate) fn by(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| " by another process".to_owned(), |h| format!(" by {h}"))
}

/// Why the lock was not taken.
pub(crate) enum LockError {
    Held,
    System(io::Error),
}

/// Locks the image until the last duplicate of `file` is closed.
pub(crate) fn lock(file: &File, read_only: bool) -> Result<(), LockError> {
    if !read_only {
        return set(file, libc::F_WRLCK, ALL.0, ALL.1);
    }
    for byte in [CONSISTENT_READ, NO_WRITERS, NO_RESIZERS] {
        set(file, libc::F_RDLCK, byte, 1)?;
    }
    // Taken first, asked afterwards: of two that start together, at least one sees the other.
    for byte in [WRITE, NO_READERS] {
        if would_conflict(file, byte)? {
            return Err(LockError::Held);
        }
    }
    Ok(())
}

/// Gives up every lock of this open file.
pub(crate) fn unlock(file: &File) {
    let _ = set(file, libc::F_UNLCK, ALL.0, ALL.1);
}

fn request(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        // Must be zero for open-file-description locks.
        l_pid: 0,
    }
}

fn set(file: &File, kind: libc::c_int, start: i64, len: i64) -> Result<(), LockError> {
    let lock = request(kind, start, len);
    // SAFETY: `lock` is a valid `struct flock`, only read.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => LockError::Held,
        _ => LockError::System(error),
    })
}

fn would_conflict(file: &File, byte: i64) -> Result<bool, LockError> {
    let mut lock = request(libc::F_WRLCK, byte, 1);
    // SAFETY: `lock` is a valid `struct flock`, which the call overwrites with another valid one.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } != 0 {
        return Err(LockError::System(io::Error::last_os_error()));
    }
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Finds the process that has `file` open and locked. These locks belong to open files, so the
/// kernel names no process; what `/proc` shows of other users' processes limits the search.
pub(crate) fn holder(file: &File) -> Option<Holder> {
    let own = file.metadata().ok()?;
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(fds) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for fd in fds.flatten() {
            let same = std::fs::metadata(fd.path())
                .is_ok_and(|m| (m.dev(), m.ino()) == (own.dev(), own.ino()));
            let locked = || {
                std::fs::read_to_string(process.path().join("fdinfo").join(fd.file_name()))
                    .is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:")))
            };
            if same && locked() {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(Holder {
                    pid,
                    name: name.trim_end().to_owned(),
                });
            }
        }
    }
    None
}
