//! Start, stop, drain, reset, wake.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::Instant;

/// How deep a reset goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// Power-on state.
    Cold,
    /// Platform reset; battery-backed state survives.
    Warm,
    /// Function-level reset of one device.
    Function,
}

/// Outstanding work of a stopping device.
///
/// `stop` is a notification; the caller collects every `Drain` first and waits for all of them
/// against one deadline, so devices quiesce in parallel and a stuck one is identified by name.
#[must_use = "a device is not quiesced until its drain completes"]
#[derive(Debug, Default)]
pub struct Drain(Vec<Receiver<()>>);

/// Proof of completion, held by the worker that still has work in flight; dropping it completes.
#[derive(Debug)]
pub struct DrainToken {
    _held: SyncSender<()>,
}

/// A worker did not finish in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("still busy at the deadline")]
pub struct Stuck;

impl Drain {
    /// Nothing was in flight.
    pub fn idle() -> Self {
        Self::default()
    }

    /// One worker still has to finish; dropping the token finishes it.
    pub fn pending() -> (Self, DrainToken) {
        let (held, done) = sync_channel(0);
        (Self(vec![done]), DrainToken { _held: held })
    }

    /// Both have to finish.
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Whether all workers have finished, without waiting.
    pub fn is_complete(&mut self) -> bool {
        self.0
            .retain(|done| matches!(done.try_recv(), Err(TryRecvError::Empty)));
        self.0.is_empty()
    }

    /// Waits for all workers until `deadline` and says whether they have finished. Unlike
    /// [`Drain::wait`] it can be asked again.
    pub fn finishes_by(&mut self, deadline: Instant) -> bool {
        self.0.retain(|done| {
            let left = deadline.saturating_duration_since(Instant::now());
            matches!(done.recv_timeout(left), Err(RecvTimeoutError::Timeout))
        });
        self.0.is_empty()
    }

    /// Waits for all workers, or reports that one is stuck.
    pub fn wait(self, deadline: Instant) -> Result<(), Stuck> {
        for done in self.0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Err(RecvTimeoutError::Timeout) = done.recv_timeout(left) {
                return Err(Stuck);
            }
        }
        Ok(())
    }
}

/// State transitions every unit takes part in. A unit is built stopped.
pub trait Lifecycle {
    /// Begins asynchronous work. Must not block.
    fn start(&mut self) {}
    /// Stops producing work. Must not block; see [`Drain`].
    fn stop(&mut self) -> Drain {
        Drain::idle()
    }
    /// The machine has ended: a unit that still holds output for the outside hands it over, and
    /// says with the drain when that is done. Called after `stop`, never followed by `start`. Its
    /// owner waits for a moment only. Must not block.
    fn finish(&mut self) -> Drain {
        Drain::idle()
    }
    /// Returns to initial state. Only ever called while quiesced.
    fn reset(&mut self, kind: ResetKind);
    /// Something that holds this unit's [`crate::Waker`] has news: a timer expired, input arrived.
    /// May be called spuriously.
    fn wake(&mut self) {}
}
