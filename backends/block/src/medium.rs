//! The raw medium: opening it, what it is like, and which engine serves it.

use crate::lock::{self, LockError};
use crate::ring::RingQueue;
use crate::sync::SyncQueue;
use crate::threads::PoolQueue;
use crate::{Holder, OpenError};
use nyx_device::{BlockBackend, BlockGeometry, BlockQueue};
use rustix::fs::{SeekFrom, fstatfs, ioctl_blkpbszget, ioctl_blksszget, seek};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Who carries requests out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// `sync` for a file in memory (tmpfs), else `io_uring`, else, where the host refuses that,
    /// `threads`.
    #[default]
    Auto,
    /// The kernel's asynchronous interface.
    IoUring,
    /// A few threads per queue.
    Threads,
    /// The submitting thread itself. Right for files in memory only: a slow disk stops the queue.
    Sync,
}

/// Whether to lock the image against a second opener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Locking {
    /// Exclusively for writing, shared for reading.
    #[default]
    Auto,
    /// Not at all: for file systems without locks, and for guests that share a disk knowingly.
    Off,
}

/// Configuration of kind `raw`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// An image file or a block device.
    pub path: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Bypass the host's page cache (O_DIRECT).
    #[serde(default)]
    pub direct: bool,
    /// Who carries requests out.
    #[serde(default)]
    pub engine: Engine,
    /// Logical block size the guest sees, 512 or 4096 bytes; by default the medium's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Whether to lock the image against a second opener.
    #[serde(default)]
    pub lock: Locking,
}

impl RawConfig {
    /// The defaults for `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            direct: false,
            engine: Engine::Auto,
            block_size: None,
            lock: Locking::Auto,
        }
    }
}

/// What the queues share.
pub(crate) struct Medium {
    // Configuration
    pub(crate) file: File,
    pub(crate) read_only: bool,
    /// What O_DIRECT demands of host addresses and of offsets, in bytes; 1 without.
    pub(crate) memory_alignment: usize,
    pub(crate) offset_alignment: u64,
    /// Reads may be tried with RWF_NOWAIT.
    pub(crate) nowait_reads: AtomicBool,
    /// Writes may be tried with RWF_NOWAIT.
    pub(crate) nowait_writes: AtomicBool,
    // State
    pub(crate) size: AtomicU64,
    /// Punching and zeroing were refused once, as unsupported; not asked for again.
    pub(crate) cannot_punch: AtomicBool,
    pub(crate) cannot_zero: AtomicBool,
}

impl Medium {
    fn measure(&self, is_block: bool) -> io::Result<u64> {
        Ok(match is_block {
            // The offset is not used otherwise: all I/O is positional.
            true => seek(&self.file, SeekFrom::End(0))?,
            false => self.file.metadata()?.len(),
        })
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        // The kernel may hold the file for a moment longer than we do (a closing ring).
        lock::unlock(&self.file);
    }
}

/// A raw image file or block device.
pub struct Raw {
    pub(crate) medium: Arc<Medium>,
    path: PathBuf,
    is_block: bool,
    engine: Engine,
    logical: u32,
    physical: u32,
    discard: bool,
}

/// RLIMIT_FSIZE is reported by a signal that kills, unless ignored; then the write fails (setrlimit(2)).
fn ignore_file_size_signal() {
    static ONCE: Once = Once::new();
    // SAFETY: SIG_IGN needs no code of ours. A program's own handler is put back.
    ONCE.call_once(|| unsafe {
        let before = libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        if before != libc::SIG_DFL && before != libc::SIG_ERR {
            libc::signal(libc::SIGXFSZ, before);
        }
    });
}

impl Raw {
    /// Opens the medium and takes its lock.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]; nothing stays locked.
    pub fn open(config: RawConfig) -> Result<Self, OpenError> {
        let RawConfig {
            path,
            read_only,
            direct,
            engine,
            block_size,
            lock,
        } = config;
        if let Some(other) = block_size.filter(|size| ![512, 4096].contains(size)) {
            return Err(OpenError::Field {
                path,
                field: "block_size",
                value: other.to_string(),
                why: "use 512 or 4096".to_owned(),
            });
        }
        let (file, is_block) = open_file(&path, read_only, direct)?;
        if lock == Locking::Auto {
            take_lock(&file, &path, read_only)?;
        }
        if !read_only {
            ignore_file_size_signal();
        }
        let (memory_alignment, offset_alignment) = if direct {
            direct_alignment(&file, is_block)
        } else {
            (1, 1)
        };
        let (own_logical, own_physical) = if is_block {
            (
                ioctl_blksszget(&file).unwrap_or(512),
                ioctl_blkpbszget(&file).unwrap_or(512),
            )
        } else {
            (512, 4096)
        };
        let needed = own_logical.max(u32::try_from(offset_alignment).unwrap_or(4096));
        let logical = block_size.unwrap_or(needed);
        if direct && logical < needed {
            return Err(OpenError::Field {
                path,
                field: "block_size",
                value: logical.to_string(),
                why: format!("direct I/O needs {needed} here: use that, or set direct to false"),
            });
        }
        let in_memory = fstatfs(&file).is_ok_and(|fs| fs.f_type == libc::TMPFS_MAGIC);
        let medium = Medium {
            read_only,
            memory_alignment,
            offset_alignment,
            nowait_reads: AtomicBool::new(!direct),
            nowait_writes: AtomicBool::new(!direct),
            size: AtomicU64::new(0),
            cannot_punch: AtomicBool::new(false),
            cannot_zero: AtomicBool::new(false),
            file,
        };
        let size = match medium.measure(is_block) {
            Ok(size) => size,
            Err(source) => {
                return Err(OpenError::System {
                    action: "measure",
                    path,
                    source,
                });
            }
        };
        if size == 0 {
            let why = match is_block {
                true => "has no size: put a medium into the drive".to_owned(),
                false => format!(
                    "is empty: `truncate -s 10G {}` makes it 10 GiB",
                    path.display()
                ),
            };
            return Err(OpenError::Path { path, why });
        }
        if !size.is_multiple_of(logical.into()) {
            let rounded =
                size.saturating_add(logical.into()) / u64::from(logical) * u64::from(logical);
            return Err(OpenError::Size {
                path,
                size,
                block: logical,
                rounded,
            });
        }
        medium.size.store(size, Ordering::Relaxed);
        let discard = !read_only && (!is_block || device_discards(&medium.file));
        let engine = match engine {
            Engine::Auto if in_memory => Engine::Sync,
            other => other,
        };
        let physical = own_physical.max(logical);
        let raw = Self {
            medium: Arc::new(medium),
            path,
            is_block,
            engine,
            logical,
            physical,
            discard,
        };
        // Asked for by name, so refused by name: now, not when the guest is already running.
        if engine == Engine::IoUring
            && let Err(source) = RingQueue::new(Arc::clone(&raw.medium))
        {
            return Err(OpenError::Field {
                path: raw.path,
                field: "engine",
                value: "io_uring".to_owned(),
                why: format!("this host refuses it ({source}): use auto or threads"),
            });
        }
        Ok(raw)
    }

    /// The engine that queues opened from now on use, as far as it is decided:
    /// [`Engine::Auto`] stands for `io_uring` with `threads` in reserve.
    pub fn engine(&self) -> Engine {
        self.engine
    }
}

/// How many hundredths of a second to wait for a device that is busy.
const CLOSING: u32 = 10;

fn is_busy(opened: &io::Result<File>) -> bool {
    opened
        .as_ref()
        .is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
}

fn open_file(path: &Path, read_only: bool, direct: bool) -> Result<(File, bool), OpenError> {
    let refuse = |why: String| {
        Err(OpenError::Path {
            path: path.to_owned(),
            why,
        })
    };
    let explain = |error: io::Error, writing: bool| {
        let shown = path.display();
        let why = match error.raw_os_error() {
            Some(libc::ENOENT) => {
                format!("does not exist: `truncate -s 10G {shown}` makes an empty one of 10 GiB")
            }
            Some(libc::ENOTDIR) => "lies below something that is not a directory".to_owned(),
            Some(libc::EACCES | libc::EPERM) if writing => format!(
                "may not be read and written by this user: change its owner or mode \
                (`ls -l {shown}`), or set read_only"
            ),
            Some(libc::EACCES | libc::EPERM) => {
                format!("may not be read by this user: change its owner or mode (`ls -l {shown}`)")
            }
            Some(libc::EROFS) => "is on a read-only medium: set read_only".to_owned(),
            Some(libc::EBUSY) => {
                "is mounted or used by the host itself: unmount it, or set read_only".to_owned()
            }
            Some(libc::ETXTBSY) => "is a running program or an active swap file".to_owned(),
            Some(libc::EINVAL) if direct => {
                "is on a file system without direct I/O: set direct to false".to_owned()
            }
            _ => {
                return OpenError::System {
                    action: "open",
                    path: path.to_owned(),
                    source: error,
                };
            }
        };
        OpenError::Path {
            path: path.to_owned(),
            why,
        }
    };
    let found = std::fs::metadata(path).map_err(|e| explain(e, false))?;
    let kind = found.file_type();
    if kind.is_dir() {
        return refuse("is a directory: name an image file".to_owned());
    }
    if !kind.is_file() && !kind.is_block_device() {
        return refuse("is neither a regular file nor a block device".to_owned());
    }
    let mut flags = if direct { libc::O_DIRECT } else { 0 };
    if kind.is_block_device() && !read_only {
        // open(2): without O_CREAT, O_EXCL on a block device means "not while it is mounted".
        flags |= libc::O_EXCL;
    }
    let mut options = File::options();
    options.read(true).write(!read_only).custom_flags(flags);
    let mut opened = options.open(path);
    // A ring that was just closed keeps the device open until the kernel has taken it apart.
    for _ in 0..CLOSING {
        if !is_busy(&opened) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        opened = options.open(path);
    }
    if is_busy(&opened)
        && let Ok(file) = File::open(path)
    {
        // Another virtual machine, rather than a mount.
        if let Some(holder) = lock::holder(&file) {
            return Err(OpenError::InUse {
                path: path.to_owned(),
                holder: Some(holder),
            });
        }
    }
    let file = opened.map_err(|e| explain(e, !read_only))?;
    Ok((file, kind.is_block_device()))
}

fn take_lock(file: &File, path: &Path, read_only: bool) -> Result<(), OpenError> {
    match lock::lock(file, read_only) {
        Ok(()) => Ok(()),
        Err(LockError::Held) => {
            // A reader has some of its locks by now, and must not find itself.
            lock::unlock(file);
            let holder: Option<Holder> = lock::holder(file);
            Err(OpenError::InUse {
                path: path.to_owned(),
                holder,
            })
        }
        Err(LockError::System(source)) => Err(OpenError::Field {
            path: path.to_owned(),
            field: "lock",
            value: "auto".to_owned(),
            why: format!("the file system refuses locks ({source}): set it to off"),
        }),
    }
}

/// What O_DIRECT demands here: of memory and of offsets, in bytes.
fn direct_alignment(file: &File, is_block: bool) -> (usize, u64) {
    // SAFETY: an all-zero statx buffer is valid.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a NUL-terminated string and the buffer has room for the answer.
    let asked = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &mut answer,
        )
    };
    let (memory, offset) = (answer.stx_dio_mem_align, answer.stx_dio_offset_align);
    let usable = |n: u32| n.is_power_of_two() && n <= 4096;
    if asked == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0 && usable(memory) && usable(offset)
    {
        return (memory as usize, offset.max(512).into());
    }
    // Before Linux 6.1: a block device says its sector; a file's may be as large as a page.
    let sector = if is_block {
        ioctl_blksszget(file).unwrap_or(4096)
    } else {
        4096
    };
    (sector as usize, sector.into())
}

fn device_discards(file: &File) -> bool {
    let Ok(found) = file.metadata() else {
        return false;
    };
    let (major, minor) = (
        rustix::fs::major(found.rdev()),
        rustix::fs::minor(found.rdev()),
    );
    // A partition has no queue of its own: its disk, one level up, has.
    ["queue", "../queue"].iter().any(|queue| {
        std::fs::read_to_string(format!(
            "/sys/dev/block/{major}:{minor}/{queue}/discard_max_bytes"
        ))
        .is_ok_and(|text| text.trim() != "0")
    })
}

impl BlockBackend for Raw {
    fn geometry(&self) -> BlockGeometry {
        if let Ok(size) = self.medium.measure(self.is_block) {
            let logical = u64::from(self.logical);
            self.medium
                .size
                .store(size / logical * logical, Ordering::Relaxed);
        }
        BlockGeometry {
            size: self.medium.size.load(Ordering::Relaxed),
            logical_block: self.logical,
            physical_block: self.physical,
            // Host addresses and lengths that O_DIRECT cannot take are bounced here.
            alignment: 1,
            read_only: self.medium.read_only,
            discard: self.discard,
            write_zeroes: !self.medium.read_only,
            write_cache: true,
        }
    }

    fn open_queue(&self) -> io::Result<Box<dyn BlockQueue>> {
        let medium = || Arc::clone(&self.medium);
        Ok(match self.engine {
            Engine::Sync => Box::new(SyncQueue::new(medium())),
            Engine::Threads => Box::new(PoolQueue::new(medium())?),
            Engine::IoUring => Box::new(RingQueue::new(medium())?),
            // EPERM and ENOSYS where a sandbox or sysctl refuses it, ENOMEM where the locked-memory
            // limit is low, EINVAL on a kernel that is too old.
            Engine::Auto => match RingQueue::new(medium()) {
                Ok(queue) => Box::new(queue),
                Err(_) => Box::new(PoolQueue::new(medium())?),
            },
        })
    }

    fn describe(&self) -> String {
        let kind = if self.is_block {
            "block device"
        } else {
            "raw file"
        };
        let mode = if self.medium.read_only {
            ", read-only"
        } else {
            ""
        };
        format!("{kind} {}{mode}", self.path.display())
    }
}
