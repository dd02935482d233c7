//! System calls on the submitting thread: the engine for files in memory, and the first try of the
//! others for what is in the page cache.

use crate::medium::Medium;
use crate::transfer::{Step, Task};
use nyx_device::{BlockDone, BlockQueue, BlockRequest};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Performs one step and returns its count or negative `errno`.
pub(crate) fn perform(step: &Step<'_>, medium: &Medium, flags: libc::c_int) -> i32 {
    let fd = medium.file.as_raw_fd();
    // SAFETY: the buffers of a step are pinned by its task, which outlives this call; `Iovec` has
    // the layout of `struct iovec`.
    let result = unsafe {
        match *step {
            Step::Read {
                iovecs: [only],
                offset,
            } if flags == 0 => libc::pread(fd, only.base.cast(), only.len, offset as i64),
            Step::Write {
                iovecs: [only],
                offset,
            } if flags == 0 => libc::pwrite(fd, only.base.cast(), only.len, offset as i64),
            Step::Read { iovecs, offset } => libc::preadv2(
                fd,
                iovecs.as_ptr().cast(),
                iovecs.len() as i32,
                offset as i64,
                flags,
            ),
            Step::Write { iovecs, offset } => libc::pwritev2(
                fd,
                iovecs.as_ptr().cast(),
                iovecs.len() as i32,
                offset as i64,
                flags,
            ),
            Step::Sync => libc::fdatasync(fd) as isize,
            Step::Allocate { mode, offset, len } => {
                libc::fallocate(fd, mode, offset as i64, len as i64) as isize
            }
        }
    };
    match i32::try_from(result) {
        Ok(-1) => -io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
        Ok(count) => count,
        // The kernel transfers less than 2 GiB at a time (read(2)).
        Err(_) => i32::MAX,
    }
}

/// Carries a whole task out.
pub(crate) fn run(mut task: Task, medium: &Medium) -> BlockDone {
    loop {
        let result = perform(&task.step(medium), medium, 0);
        if let Some(result) = task.advance(result, medium) {
            return task.finish(result);
        }
    }
}

/// Decides when trying without waiting is worth a system call.
#[derive(Default)]
pub(crate) struct FirstTry {
    misses: u32,
    skip: u32,
}

/// This many misses in a row are taken as "not in the page cache"; then only one of [`SKIP`]
/// requests is tried.
const MISSES: u32 = 8;
const SKIP: u32 = 31;

impl FirstTry {
    /// Tries `task` without waiting (RWF_NOWAIT). The caller continues it otherwise.
    pub(crate) fn attempt(&mut self, task: &mut Task, medium: &Medium) -> Option<io::Result<()>> {
        let allowed = match (task.is_read(), task.is_write()) {
            (true, _) => &medium.nowait_reads,
            (_, true) => &medium.nowait_writes,
            _ => return None,
        };
        if !allowed.load(Ordering::Relaxed) {
            return None;
        }
        if self.skip != 0 {
            self.skip -= 1;
            return None;
        }
        let result = perform(&task.step(medium), medium, libc::RWF_NOWAIT);
        if result >= 0 {
            self.misses = 0;
            // The end of the file is judged by the engine's own attempt.
            return if result == 0 {
                None
            } else {
                task.advance(result, medium)
            };
        }
        match -result {
            libc::EAGAIN => {
                self.misses += 1;
                if self.misses >= MISSES {
                    self.skip = SKIP;
                }
            }
            // Real errors are judged by the engine's own attempt; these mean "never".
            libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS => {
                allowed.store(false, Ordering::Relaxed)
            }
            _ => {}
        }
        None
    }
}

/// A queue that completes everything within `submit`.
pub(crate) struct SyncQueue {
    medium: Arc<Medium>,
    done: Vec<BlockDone>,
}

impl SyncQueue {
    pub(crate) fn new(medium: Arc<Medium>) -> Self {
        Self {
            medium,
            done: Vec::new(),
        }
    }
}

impl BlockQueue for SyncQueue {
    fn submit(&mut self, request: BlockRequest) {
        self.done.push(match Task::new(request, &self.medium) {
            Ok(task) => run(task, &self.medium),
            Err(done) => done,
        });
    }

    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn completions(&mut self, done: &mut Vec<BlockDone>) {
        done.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
