//! The io_uring engine.
//!
//! The ring's own descriptor is what the worker polls: it is readable exactly while completions
//! wait, so no eventfd is signalled for completions that are taken at once.

use crate::medium::Medium;
use crate::sync::FirstTry;
use crate::transfer::{Step, Task};
use io_uring::{IoUring, Probe, opcode, squeue, types};
use nyx_device::{BlockDone, BlockQueue, BlockRequest};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

/// Requests in the kernel at a time; more wait in the queue. Also the size of the submission ring,
/// so that it never runs full: a request has at most one entry in it.
const DEPTH: u16 = 128;

/// The medium, in the ring's table of registered files.
const FILE: types::Fixed = types::Fixed(0);

/// A queue that hands requests to the kernel in batches.
pub(crate) struct RingQueue {
    // Dropped before `slots`: closing the ring ends what is still in flight.
    ring: IoUring,
    medium: Arc<Medium>,
    /// Requests in the kernel. Allocated once and never moved: the kernel reads the buffer lists
    /// in here when the entries are submitted.
    slots: Box<[Option<Task>]>,
    free: Vec<u16>,
    waiting: VecDeque<Task>,
    done: Vec<BlockDone>,
    reaped: Vec<(u16, i32)>,
    first_try: FirstTry,
}

impl RingQueue {
    pub(crate) fn new(medium: Arc<Medium>) -> io::Result<Self> {
        // Completions interrupt nobody: they are noticed at the next system call (Linux 5.19).
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .build(DEPTH.into())
            .or_else(|_| IoUring::new(DEPTH.into()))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if needed.iter().any(|code| !probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        ring.submitter()
            .register_files(&[medium.file.as_raw_fd()])?;
        Ok(Self {
            ring,
            medium,
            slots: (0..DEPTH).map(|_| None).collect(),
            // Taken from the end, so that few slots are touched while few are in flight.
            free: (0..DEPTH).rev().collect(),
            waiting: VecDeque::new(),
            done: Vec::new(),
            reaped: Vec::new(),
            first_try: FirstTry::default(),
        })
    }

    fn in_kernel(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a task into a free slot and its first step into the submission ring.
    fn start(&mut self, task: Task) {
        let Some(slot) = self.free.pop() else {
            self.waiting.push_back(task);
            return;
        };
        self.slots[usize::from(slot)] = Some(task);
        self.push(slot);
    }

    /// Puts the next step of a slot's task into the submission ring.
    fn push(&mut self, slot: u16) {
        let Some(task) = &mut self.slots[usize::from(slot)] else {
            return;
        };
        let entry = entry(&task.step(&self.medium)).user_data(slot.into());
        // SAFETY: the buffers belong to the task, which stays in its slot until the completion
        // has been reaped; `drop` waits for that too.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // Cannot happen while the ring has an entry for every slot.
            self.end(slot, Err(io::ErrorKind::ResourceBusy.into()));
        }
    }

    fn end(&mut self, slot: u16, result: io::Result<()>) {
        if let Some(task) = self.slots[usize::from(slot)].take() {
            self.free.push(slot);
            self.done.push(task.finish(result));
        }
    }

    /// Takes completions and carries on with what is not finished.
    fn reap(&mut self) {
        let completed = self.ring.completion();
        // A result that is not a slot number of ours cannot come from the kernel.
        self.reaped
            .extend(completed.map(|c| (c.user_data() as u16, c.result())));
        let mut reaped = std::mem::take(&mut self.reaped);
        for (slot, result) in reaped.drain(..) {
            let Some(task) = self
                .slots
                .get_mut(usize::from(slot))
                .and_then(Option::as_mut)
            else {
                continue;
            };
            match task.advance(result, &self.medium) {
                Some(result) => self.end(slot, result),
                None => self.push(slot),
            }
        }
        self.reaped = reaped;
        while !self.free.is_empty()
            && let Some(task) = self.waiting.pop_front()
        {
            self.start(task);
        }
    }

    /// Submits what is in the ring, and waits for `wanted` completions.
    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(wanted) {
                Ok(_) => return Ok(()),
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Out of memory for requests, or completions to take first.
                    Some(libc::EAGAIN | libc::EBUSY) if self.in_kernel() != 0 => {
                        self.reap();
                        std::thread::yield_now();
                    }
                    _ => return Err(e),
                },
            }
        }
    }

    fn has_unsubmitted(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }
}

fn entry(step: &Step<'_>) -> squeue::Entry {
    match *step {
        Step::Read {
            iovecs: [only],
            offset,
        } if u32::try_from(only.len).is_ok() => opcode::Read::new(FILE, only.base, only.len as u32)
            .offset(offset)
            .build(),
        Step::Write {
            iovecs: [only],
            offset,
        } if u32::try_from(only.len).is_ok() => {
            opcode::Write::new(FILE, only.base, only.len as u32)
                .offset(offset)
                .build()
        }
        Step::Read { iovecs, offset } => {
            opcode::Readv::new(FILE, iovecs.as_ptr().cast(), iovecs.len() as u32)
                .offset(offset)
                .build()
        }
        Step::Write { iovecs, offset } => {
            opcode::Writev::new(FILE, iovecs.as_ptr().cast(), iovecs.len() as u32)
                .offset(offset)
                .build()
        }
        Step::Sync => opcode::Fsync::new(FILE)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Step::Allocate { mode, offset, len } => opcode::Fallocate::new(FILE, len)
            .offset(offset)
            .mode(mode)
            .build(),
    }
}

impl BlockQueue for RingQueue {
    fn submit(&mut self, request: BlockRequest) {
        match Task::new(request, &self.medium) {
            Ok(mut task) => match self.first_try.attempt(&mut task, &self.medium) {
                Some(result) => self.done.push(task.finish(result)),
                None => self.start(task),
            },
            Err(done) => self.done.push(done),
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        if self.has_unsubmitted() {
            self.enter(0)
        } else {
            Ok(())
        }
    }

    fn completions(&mut self, done: &mut Vec<BlockDone>) {
        if self.in_kernel() != 0 {
            self.reap();
            // Continued short transfers and requests that waited for a slot. An error comes back
            // with the next kick.
            let _ = self.kick();
        }
        done.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.in_kernel() + self.waiting.len() + self.done.len()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring owns the descriptor and outlives the borrow.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }
}

impl Drop for RingQueue {
    fn drop(&mut self) {
        self.waiting.clear();
        while self.in_kernel() != 0 {
            if self.enter(1).is_err() {
                // The kernel may still write to the buffers: they must outlive it.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            let completed: Vec<_> = self
                .ring
                .completion()
                .map(|c| (c.user_data() as u16, c.result()))
                .collect();
            for (slot, _) in completed {
                self.end(slot, Err(io::ErrorKind::Interrupted.into()));
            }
        }
        // The kernel takes a closed ring apart later, on a thread of its own; the file must not
        // stay open until then.
        let _ = self.ring.submitter().unregister_files();
    }
}
