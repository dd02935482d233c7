//! Time as the machine knows it: it stands still while the machine does.

use crate::Waker;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The machine's clock: monotonic, zero at power-on, stopped while the machine is paused, so that
/// timers pause, save and restore with it.
#[derive(Clone)]
pub struct VmClock(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// VM time at which the clock last started or stopped.
    base: Duration,
    /// When it started; `None` while stopped.
    since: Option<Instant>,
    /// Armed timers by deadline and id.
    armed: BTreeMap<(Duration, u64), Waker>,
    next_id: u64,
    /// Whether the timer thread runs. It is made when the first timer is armed.
    threaded: bool,
    /// What the wall clock shows, if it does not follow the host's.
    wall: Option<Duration>,
}

impl State {
    fn now(&self) -> Duration {
        self.base + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Default for VmClock {
    fn default() -> Self {
        Self::new()
    }
}

impl VmClock {
    /// A stopped clock at zero.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                base: Duration::ZERO,
                since: None,
                armed: BTreeMap::new(),
                next_id: 0,
                threaded: false,
                wall: None,
            }),
            changed: Condvar::new(),
        }))
    }

    /// VM time since power-on.
    pub fn now(&self) -> Duration {
        self.0.state.lock().now()
    }

    /// The host's wall clock, since the Unix epoch. Only battery-backed clocks ask.
    pub fn wall(&self) -> Duration {
        if let Some(fixed) = self.0.state.lock().wall {
            return fixed;
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Duration::new(
            u64::try_from(now.tv_sec).unwrap_or(0),
            u32::try_from(now.tv_nsec).unwrap_or(0),
        )
    }

    /// Makes the wall clock stand at `wall` instead of following the host, for reproducible runs.
    pub fn fix_wall(&self, wall: Duration) {
        self.0.state.lock().wall = Some(wall);
    }

    /// How many timers are armed. An idle machine should have none.
    pub fn armed_timers(&self) -> usize {
        self.0.state.lock().armed.len()
    }

    /// Lets time pass.
    pub fn start(&self) {
        let mut state = self.0.state.lock();
        if state.since.is_none() {
            state.since = Some(Instant::now());
            self.0.changed.notify_one();
        }
    }

    /// Stops time.
    pub fn stop(&self) {
        let mut state = self.0.state.lock();
        state.base = state.now();
        state.since = None;
    }

    /// Sets VM time, after a restore. Only while stopped.
    pub fn set(&self, now: Duration) {
        let mut state = self.0.state.lock();
        state.base = now;
        state.since = state.since.map(|_| Instant::now());
    }

    /// A timer that wakes `waker`'s unit.
    pub fn timer(&self, waker: Waker) -> Timer {
        let mut state = self.0.state.lock();
        let id = state.next_id;
        state.next_id += 1;
        drop(state);
        Timer {
            clock: self.clone(),
            id,
            waker,
            deadline: None,
        }
    }

    fn expire(shared: &Weak<Shared>) {
        while let Some(shared) = shared.upgrade() {
            let mut state = shared.state.lock();
            let now = state.now();
            let due = state.armed.first_key_value().map(|(&key, _)| key);
            match (state.since.is_some(), due) {
                (true, Some(key)) if key.0 <= now => {
                    let waker = state.armed.remove(&key);
                    // Waking takes slot locks, and units arm timers under theirs.
                    drop(state);
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                (true, Some((deadline, _))) => {
                    shared.changed.wait_for(&mut state, deadline - now);
                }
                // Nothing armed, or stopped: sleep until told. Dropping the clock tells too.
                _ => shared.changed.wait(&mut state),
            }
            // A clock that only this thread still holds has nobody left to wake.
            if Arc::strong_count(&shared) == 1 {
                return;
            }
        }
    }
}

impl Drop for VmClock {
    fn drop(&mut self) {
        self.0.changed.notify_one();
    }
}

impl std::fmt::Debug for VmClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("VmClock").field(&self.now()).finish()
    }
}

/// One timer of one unit. Dropping it disarms it.
#[derive(Debug)]
pub struct Timer {
    clock: VmClock,
    id: u64,
    waker: Waker,
    deadline: Option<Duration>,
}

impl Timer {
    /// Wakes the unit once VM time reaches `deadline`, replacing an earlier deadline.
    pub fn arm(&mut self, deadline: Duration) {
        if self.deadline == Some(deadline) {
            let armed = self
                .clock
                .0
                .state
                .lock()
                .armed
                .contains_key(&(deadline, self.id));
            if armed {
                return;
            }
        }
        self.disarm();
        self.deadline = Some(deadline);
        let shared = &self.clock.0;
        let mut state = shared.state.lock();
        state.armed.insert((deadline, self.id), self.waker.clone());
        if !state.threaded {
            let weak = Arc::downgrade(shared);
            // Without the thread no timer fires; the next arm tries again.
            state.threaded = std::thread::Builder::new()
                .name("timers".into())
                .spawn(move || VmClock::expire(&weak))
                .is_ok();
        }
        shared.changed.notify_one();
    }

    /// Forgets the deadline.
    pub fn disarm(&mut self) {
        if let Some(deadline) = self.deadline.take() {
            self.clock.0.state.lock().armed.remove(&(deadline, self.id));
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_only_between_start_and_stop() {
        let clock = VmClock::new();
        assert_eq!(clock.now(), Duration::ZERO);
        clock.start();
        std::thread::sleep(Duration::from_millis(2));
        clock.stop();
        let stopped = clock.now();
        assert!(stopped >= Duration::from_millis(2));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.now(), stopped);
        clock.set(Duration::from_secs(9));
        assert_eq!(clock.now(), Duration::from_secs(9));
    }
}
