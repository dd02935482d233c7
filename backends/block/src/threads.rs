//! The engine of worker threads: for hosts that refuse io_uring.

use crate::medium::Medium;
use crate::sync::{FirstTry, run};
use crate::transfer::Task;
use nyx_device::{BlockDone, BlockQueue, BlockRequest};
use nyx_reactor::EventFd;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Threads per queue. They are started one by one, when a request finds none idle.
const THREADS: usize = 4;

#[derive(Default)]
struct Work {
    tasks: VecDeque<Task>,
    idle: usize,
    closing: bool,
}

struct Pool {
    medium: Arc<Medium>,
    work: Mutex<Work>,
    arrived: Condvar,
    done: Mutex<Vec<BlockDone>>,
    ready: EventFd,
}

impl Pool {
    fn serve(&self) {
        let mut work = self.work.lock();
        loop {
            if let Some(task) = work.tasks.pop_front() {
                drop(work);
                let done = run(task, &self.medium);
                self.done.lock().push(done);
                self.ready.signal();
                work = self.work.lock();
            } else if work.closing {
                return;
            } else {
                work.idle += 1;
                self.arrived.wait(&mut work);
                work.idle -= 1;
            }
        }
    }
}

/// A queue served by a few threads of its own.
pub(crate) struct PoolQueue {
    pool: Arc<Pool>,
    threads: Vec<JoinHandle<()>>,
    first_try: FirstTry,
    batch: Vec<Task>,
    done: Vec<BlockDone>,
    in_pool: usize,
}

impl PoolQueue {
    pub(crate) fn new(medium: Arc<Medium>) -> io::Result<Self> {
        let pool = Pool {
            medium,
            work: Mutex::default(),
            arrived: Condvar::new(),
            done: Mutex::default(),
            ready: EventFd::new()?,
        };
        Ok(Self {
            pool: Arc::new(pool),
            threads: Vec::new(),
            first_try: FirstTry::default(),
            batch: Vec::new(),
            done: Vec::new(),
            in_pool: 0,
        })
    }
}

impl BlockQueue for PoolQueue {
    fn submit(&mut self, request: BlockRequest) {
        match Task::new(request, &self.pool.medium) {
            Ok(mut task) => match self.first_try.attempt(&mut task, &self.pool.medium) {
                Some(result) => self.done.push(task.finish(result)),
                None => self.batch.push(task),
            },
            Err(done) => self.done.push(done),
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        // With work but no thread, the last attempt to start one failed: try again.
        if self.batch.is_empty() && (self.in_pool == 0 || !self.threads.is_empty()) {
            return Ok(());
        }
        let count = self.batch.len();
        let mut work = self.pool.work.lock();
        work.tasks.extend(self.batch.drain(..));
        let (waiting, idle) = (work.tasks.len(), work.idle);
        drop(work);
        self.in_pool += count;
        for _ in 0..count.min(idle) {
            self.pool.arrived.notify_one();
        }
        let wanted = waiting
            .saturating_sub(idle)
            .min(THREADS - self.threads.len());
        for _ in 0..wanted {
            let pool = Arc::clone(&self.pool);
            match std::thread::Builder::new()
                .name("block".to_owned())
                .stack_size(128 << 10)
                .spawn(move || pool.serve())
            {
                Ok(thread) => self.threads.push(thread),
                // With one thread the queue still works; with none it cannot.
                Err(e) if self.threads.is_empty() => return Err(e),
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn completions(&mut self, done: &mut Vec<BlockDone>) {
        done.append(&mut self.done);
        if self.in_pool == 0 {
            return;
        }
        // Cleared before looking: what arrives in between is announced again.
        self.pool.ready.clear();
        let mut finished = self.pool.done.lock();
        self.in_pool -= finished.len();
        done.append(&mut finished);
    }

    fn in_flight(&self) -> usize {
        self.batch.len() + self.in_pool + self.done.len()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.pool.ready.as_fd())
    }
}

impl Drop for PoolQueue {
    fn drop(&mut self) {
        {
            let mut work = self.pool.work.lock();
            // Not started yet, so nothing to wait for.
            work.tasks.clear();
            work.closing = true;
        }
        self.pool.arrived.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
