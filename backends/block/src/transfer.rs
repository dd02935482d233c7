//! One request as a sequence of system calls, whoever performs them.

use crate::medium::Medium;
use nyx_device::{BlockDone, BlockOp, BlockRequest};
use nyx_memory::{Iovec, PinnedBuffers};
use smallvec::SmallVec;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// Most buffers of one `preadv2(2)` (UIO_MAXIOV).
const MAX_IOVECS: usize = 1024;
/// Most bytes bounced or zeroed by one system call: a guest may ask for gigabytes at once.
const CHUNK: usize = 1 << 20;
/// How often one system call may say "again" before the request fails.
const MAX_RETRIES: u32 = 64;

#[repr(align(4096))]
struct Zeroes([u8; 64 << 10]);
static ZEROES: Zeroes = Zeroes([0; 64 << 10]);

/// A system call to make.
pub(crate) enum Step<'t> {
    Read { iovecs: &'t [Iovec], offset: u64 },
    Write { iovecs: &'t [Iovec], offset: u64 },
    Sync,
    Allocate { mode: i32, offset: u64, len: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    Zero {
        may_unmap: bool,
    },
    /// Zeroes as data, where the file system can do no better.
    WriteZeroes,
}

/// Memory that O_DIRECT takes, between the medium and buffers that it does not take.
struct Bounce {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Bounce {}

impl Bounce {
    fn new(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len.max(4096), 4096).ok()?;
        // SAFETY: the layout has a non-zero size.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { base, layout })
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// A request being carried out. It must not move while the kernel has a [`Step`] of it.
pub(crate) struct Task {
    id: u64,
    kind: Kind,
    offset: u64,
    len: u64,
    done: u64,
    retries: u32,
    buffers: Option<PinnedBuffers>,
    /// Buffers of the present step, when it is not simply all of them.
    parts: SmallVec<[Iovec; 2]>,
    bounce: Option<Bounce>,
    /// The present step goes through `bounce`.
    bouncing: bool,
}

impl Task {
    /// Takes a request apart, or completes it at once if there is nothing to do or it must not be
    /// done.
    #[expect(
        clippy::result_large_err,
        reason = "one of the two is moved on at once, never boxed"
    )]
    pub(crate) fn new(request: BlockRequest, medium: &Medium) -> Result<Self, BlockDone> {
        let BlockRequest { id, offset, op } = request;
        let (kind, len, buffers) = match op {
            BlockOp::Read(b) => (Kind::Read, b.len() as u64, Some(b)),
            BlockOp::Write(b) => (Kind::Write, b.len() as u64, Some(b)),
            BlockOp::Flush => (Kind::Flush, 0, None),
            BlockOp::Discard { len } => (Kind::Discard, len, None),
            BlockOp::WriteZeroes { len, may_unmap } => (Kind::Zero { may_unmap }, len, None),
        };
        let refused = match kind {
            Kind::Flush if !medium.read_only => None,
            // Nothing was written.
            Kind::Flush => Some(Ok(())),
            // The caller has checked. Checked again, because writing past the end would make the
            // guest's disk, and the host's file, grow.
            _ if offset
                .checked_add(len)
                .is_none_or(|end| end > medium.size.load(Ordering::Relaxed)) =>
            {
                Some(Err(io::ErrorKind::InvalidInput.into()))
            }
            Kind::Read if len != 0 => None,
            Kind::Read => Some(Ok(())),
            _ if medium.read_only => Some(Err(io::Error::from_raw_os_error(libc::EROFS))),
            Kind::Discard if medium.cannot_punch.load(Ordering::Relaxed) => Some(Ok(())),
            _ if len == 0 => Some(Ok(())),
            _ => None,
        };
        if let Some(result) = refused {
            return Err(BlockDone {
                id,
                result,
                buffers,
            });
        }
        let kind = match kind {
            Kind::Zero { may_unmap: true } if medium.cannot_punch.load(Ordering::Relaxed) => {
                Kind::WriteZeroes
            }
            Kind::Zero { may_unmap: false } if medium.cannot_zero.load(Ordering::Relaxed) => {
                Kind::WriteZeroes
            }
            other => other,
        };
        let (parts, bounce) = (SmallVec::new(), None);
        Ok(Self {
            id,
            kind,
            offset,
            len,
            done: 0,
            retries: 0,
            buffers,
            parts,
            bounce,
            bouncing: false,
        })
    }

    /// Whether this reads, and whether it writes, without touching anything but data.
    pub(crate) fn is_read(&self) -> bool {
        self.kind == Kind::Read
    }

    /// See [`Task::is_read`].
    pub(crate) fn is_write(&self) -> bool {
        self.kind == Kind::Write
    }

    /// The next system call.
    pub(crate) fn step(&mut self, medium: &Medium) -> Step<'_> {
        let offset = self.offset + self.done;
        match self.kind {
            Kind::Flush => Step::Sync,
            Kind::Discard | Kind::Zero { may_unmap: true } => Step::Allocate {
                mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                len: self.len - self.done,
            },
            Kind::Zero { may_unmap: false } => Step::Allocate {
                mode: libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                len: self.len - self.done,
            },
            Kind::WriteZeroes => {
                self.prepare_zeroes();
                Step::Write {
                    iovecs: &self.parts,
                    offset,
                }
            }
            Kind::Read | Kind::Write => {
                let whole = self.prepare_transfer(medium);
                let iovecs = match (&self.buffers, whole) {
                    (Some(buffers), true) => buffers.iovecs(),
                    _ => &self.parts,
                };
                match self.kind {
                    Kind::Read => Step::Read { iovecs, offset },
                    _ => Step::Write { iovecs, offset },
                }
            }
        }
    }

    fn prepare_zeroes(&mut self) {
        let mut left = (self.len - self.done).min(CHUNK as u64) as usize;
        self.parts.clear();
        while left != 0 {
            let len = left.min(ZEROES.0.len());
            // The kernel only reads it.
            self.parts.push(Iovec {
                base: ZEROES.0.as_ptr().cast_mut(),
                len,
            });
            left -= len;
        }
    }

    /// Chooses the buffers of the next step and says whether they are simply all of them.
    fn prepare_transfer(&mut self, medium: &Medium) -> bool {
        self.bouncing = false;
        let Some(buffers) = &self.buffers else {
            return false;
        };
        let iovecs = buffers.iovecs();
        let mask = medium.memory_alignment - 1;
        let fits = |v: &Iovec| v.base as usize & mask == 0 && v.len & mask == 0;
        if self.done == 0 && iovecs.len() <= MAX_IOVECS && (mask == 0 || iovecs.iter().all(fits)) {
            return true;
        }
        self.parts.clear();
        let mut total = 0;
        for part in tail(iovecs, self.done).take(MAX_IOVECS) {
            total += part.len as u64;
            self.parts.push(part);
        }
        let aligned = self.parts.iter().all(fits) && total.is_multiple_of(medium.offset_alignment);
        if medium.offset_alignment == 1 || aligned {
            return false;
        }
        let chunk = (self.len - self.done).min(CHUNK as u64) as usize;
        if self.bounce.is_none() {
            self.bounce = Bounce::new(chunk);
        }
        // Without memory for a bounce buffer, the kernel refuses the step below: an I/O error.
        if let Some(bounce) = &self.bounce {
            let chunk = chunk.min(bounce.layout.size());
            if self.kind == Kind::Write {
                let mut filled = 0;
                for part in tail(iovecs, self.done) {
                    let step = part.len.min(chunk - filled);
                    // SAFETY: `part` lies in guest memory that `buffers` pins; `filled + step` is at
                    // most the size of `bounce`, which is nowhere in guest memory.
                    unsafe {
                        let to = bounce.base.as_ptr().add(filled);
                        std::ptr::copy_nonoverlapping(part.base, to, step);
                    }
                    filled += step;
                }
            }
            self.parts.clear();
            self.parts.push(Iovec {
                base: bounce.base.as_ptr(),
                len: chunk,
            });
            self.bouncing = true;
        }
        false
    }

    /// Takes the result of the last step, a count or a negative `errno`. `None`: take another step.
    pub(crate) fn advance(&mut self, result: i32, medium: &Medium) -> Option<io::Result<()>> {
        if let Ok(count) = u64::try_from(result) {
            self.retries = 0;
            return match self.kind {
                Kind::Flush | Kind::Discard | Kind::Zero { .. } => Some(Ok(())),
                Kind::Read | Kind::Write | Kind::WriteZeroes => self.transferred(count, medium),
            };
        }
        let errno = -result;
        match (errno, self.kind) {
            // Cancelled: nobody does that on purpose, but the kernel does when the thread that
            // submitted to a ring ends.
            (libc::EAGAIN | libc::EINTR | libc::ECANCELED, _) if self.retries < MAX_RETRIES => {
                self.retries += 1;
                None
            }
            // A discard is advice: what cannot be forgotten is kept.
            (libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::ENOTTY, Kind::Discard) => {
                medium.cannot_punch.store(true, Ordering::Relaxed);
                Some(Ok(()))
            }
            (libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV, Kind::Zero { may_unmap }) => {
                let flag = if may_unmap {
                    &medium.cannot_punch
                } else {
                    &medium.cannot_zero
                };
                flag.store(true, Ordering::Relaxed);
                self.kind = Kind::WriteZeroes;
                None
            }
            // A block device that cannot offload zeroing says EINVAL for ranges it does not like.
            (libc::EINVAL, Kind::Zero { .. }) => {
                self.kind = Kind::WriteZeroes;
                None
            }
            (libc::EINVAL, Kind::Discard) => Some(Ok(())),
            _ => Some(Err(io::Error::from_raw_os_error(errno))),
        }
    }

    fn transferred(&mut self, count: u64, medium: &Medium) -> Option<io::Result<()>> {
        let left = self.len - self.done;
        let mut count = count.min(left);
        if self.bouncing && self.kind == Kind::Read {
            self.copy_back(count as usize);
        }
        if count < left {
            // O_DIRECT continues at block boundaries only.
            count -= count % medium.offset_alignment;
        }
        if count == 0 {
            // The end of a file that somebody has truncated, or a medium that takes nothing.
            let kind = match self.kind {
                Kind::Read => io::ErrorKind::UnexpectedEof,
                _ => io::ErrorKind::WriteZero,
            };
            return Some(Err(kind.into()));
        }
        self.done += count;
        (self.done == self.len).then_some(Ok(()))
    }

    fn copy_back(&self, count: usize) {
        let (Some(buffers), Some(bounce)) = (&self.buffers, &self.bounce) else {
            return;
        };
        let count = count.min(bounce.layout.size());
        let mut copied = 0;
        for part in tail(buffers.iovecs(), self.done) {
            let step = part.len.min(count - copied);
            // SAFETY: as in `prepare_transfer`, in the other direction.
            unsafe {
                let from = bounce.base.as_ptr().add(copied);
                std::ptr::copy_nonoverlapping(from, part.base, step);
            }
            copied += step;
        }
    }

    /// Gives the request back.
    pub(crate) fn finish(self, result: io::Result<()>) -> BlockDone {
        if let (Kind::Read, Some(buffers)) = (self.kind, &self.buffers) {
            buffers.mark_written(self.done as usize);
        }
        BlockDone {
            id: self.id,
            result,
            buffers: self.buffers,
        }
    }
}

/// What is left of `iovecs` after the first `skip` bytes.
fn tail(iovecs: &[Iovec], skip: u64) -> impl Iterator<Item = Iovec> + '_ {
    let mut skip = skip as usize;
    iovecs.iter().filter_map(move |v| {
        let step = skip.min(v.len);
        skip -= step;
        (step < v.len).then(|| Iovec {
            base: v.base.wrapping_add(step),
            len: v.len - step,
        })
    })
}
