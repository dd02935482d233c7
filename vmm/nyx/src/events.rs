//! What happens to a machine, one event at a time.

use nyx_api::{Event, Happening, Phase};
use nyx_vmm::Control;
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Events taken from the machine at once.
const CHUNK: usize = 64;

/// What happens to a machine, in order and from its first event on, as far as they are kept. `next` waits
/// for another one; the machine's end is the end.
pub struct Events {
    control: Control,
    news: watch::Receiver<u64>,
    since: u64,
    taken: VecDeque<Event>,
    is_over: bool,
}

impl Events {
    pub(crate) fn new(control: &Control, since: u64) -> Self {
        Self {
            news: control.follow(),
            control: control.clone(),
            since,
            taken: VecDeque::new(),
            is_over: false,
        }
    }

    /// The next event, if there is one within `timeout`.
    pub fn next_within(&mut self, timeout: Duration) -> Option<Event> {
        self.next_until(Some(Instant::now() + timeout))
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Option<Event> {
        loop {
            if self.is_over {
                return None;
            }
            if self.taken.is_empty() {
                self.news.mark_unchanged();
                self.taken.extend(self.control.events(self.since, CHUNK));
            }
            if let Some(event) = self.taken.pop_front() {
                self.since = event.sequence;
                // The last one of a machine.
                let ended = Phase::Ended;
                self.is_over = event.what == Happening::Phase { phase: ended };
                return Some(event);
            }
            if !wait(&mut self.news, deadline) {
                return None;
            }
        }
    }
}

impl Iterator for Events {
    type Item = Event;
    fn next(&mut self) -> Option<Event> {
        self.next_until(None)
    }
}

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for news on this thread; `false` when there are none by `deadline`.
fn wait(news: &mut watch::Receiver<u64>, deadline: Option<Instant>) -> bool {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut changed = pin!(news.changed());
    loop {
        // An error means that nobody can send any more, which the control handle excludes.
        if let Poll::Ready(result) = changed.as_mut().poll(&mut Context::from_waker(&waker)) {
            return result.is_ok();
        }
        match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            None => std::thread::park(),
            Some(Duration::ZERO) => return false,
            Some(left) => std::thread::park_timeout(left),
        }
    }
}
