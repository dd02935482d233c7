//! What a machine is doing, which move may follow, and who has a say in it.
//!
//! ```text
//!              ┌────────────▶ faulted ──────┐
//!              │                 │          ▼
//!   stopped ◀──┼──▶ running ◀────┼────▶ paused
//!      ▲       │      ▲  │       ▼          │
//!      └───────┴──────┼──┼─── (stopped) ◀───┘
//!                     ▼  ▼
//!                    halted
//! ```

use crate::ending::Ending;
use nyx_api::{Code, Phase, Problem};
use parking_lot::Mutex;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It is off.
    Stopped,
    /// The guest runs.
    Running,
    /// The guest's time stands still.
    Paused,
    /// Every vCPU waits for an interrupt. KVM keeps that to itself: a machine on KVM is never seen in
    /// this state, but programs may name it.
    Halted,
    /// The guest or the machine could not go on.
    Faulted,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Stopped,
        Self::Running,
        Self::Paused,
        Self::Halted,
        Self::Faulted,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::Faulted => "faulted",
        }
    }

    /// Whether a machine in this state can be brought to `to`.
    pub fn may_become(self, to: Self) -> bool {
        use State::{Faulted, Halted, Paused, Running, Stopped};
        match self {
            Stopped => matches!(to, Running | Paused),
            Running => matches!(to, Halted | Paused | Faulted | Stopped),
            // A host that fails does not ask whether the guest runs.
            Paused => matches!(to, Running | Stopped | Faulted),
            Halted => matches!(to, Running | Paused | Stopped),
            Faulted => matches!(to, Paused | Stopped),
        }
    }

    /// What a machine that was started is doing in `phase`. `ending` is how its run ended.
    pub(crate) fn of(phase: Phase, ending: Option<&Ending>) -> Self {
        match (phase, ending) {
            (_, Some(Ending::GuestPanic | Ending::TripleFault { .. } | Ending::Broken(_))) => {
                Self::Faulted
            }
            (_, Some(_)) | (Phase::Ended, None) => Self::Stopped,
            // Put together and waiting for its first instruction.
            (Phase::Built | Phase::Paused, None) => Self::Paused,
            (Phase::Running | Phase::Resetting, None) => Self::Running,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for State {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|state| state.name() == word);
        known.ok_or_else(|| {
            format!("{word:?} is not a state; use stopped, running, paused, halted or faulted")
        })
    }
}

/// Hears of a move before it is made; `false` forbids it.
type Callback = Arc<dyn Fn(State, State) -> bool + Send + Sync>;

/// Who has a say when a machine moves from one state to another.
#[derive(Clone, Default)]
pub(crate) struct Lifecycle(Arc<Mutex<Vec<Callback>>>);

impl Lifecycle {
    pub(crate) fn on_transition(&self, callback: Callback) {
        self.0.lock().push(callback);
    }

    fn callbacks(&self) -> Vec<Callback> {
        // Called without the lock: a callback may add another one.
        self.0.lock().clone()
    }

    /// Whether somebody who was asked to may move the machine.
    pub(crate) fn ask(&self, from: State, to: State) -> Result<(), Problem> {
        if !from.may_become(to) {
            let why = format!("a machine that is {from} cannot become {to}");
            return Err(Problem::new(Code::Conflict, why));
        }
        if self.callbacks().iter().all(|callback| callback(from, to)) {
            return Ok(());
        }
        let why = format!("a transition callback forbids the move from {from} to {to}");
        Err(Problem::new(Code::Conflict, why).mend("see on_transition"))
    }

    /// The guest or the host has moved the machine: it is told, and cannot be forbidden.
    pub(crate) fn tell(&self, from: State, to: State) {
        if from != to {
            self.callbacks().iter().for_each(|callback| {
                callback(from, to);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn moves_are_those_of_the_table() {
        let moves: Vec<String> = State::ALL
            .into_iter()
            .flat_map(|from| State::ALL.into_iter().map(move |to| (from, to)))
            .filter(|(from, to)| from.may_become(*to))
            .map(|(from, to)| format!("{from}-{to}"))
            .collect();
        let expected = [
            "stopped-running",
            "stopped-paused",
            "running-stopped",
            "running-paused",
            "running-halted",
            "running-faulted",
            "paused-stopped",
            "paused-running",
            "paused-faulted",
            "halted-stopped",
            "halted-running",
            "halted-paused",
            "faulted-stopped",
            "faulted-paused",
        ];
        assert_eq!(moves, expected);
    }

    #[test]
    fn states_are_read_back_and_unknown_ones_refused() {
        for state in State::ALL {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        assert!("exploded".parse::<State>().is_err());
    }

    #[test]
    fn phases_and_endings_become_states() {
        assert_eq!(State::of(Phase::Built, None), State::Paused);
        assert_eq!(State::of(Phase::Resetting, None), State::Running);
        assert_eq!(State::of(Phase::Paused, None), State::Paused);
        for fine in [Ending::PoweredOff, Ending::Stopped, Ending::Killed] {
            assert_eq!(State::of(Phase::Ended, Some(&fine)), State::Stopped);
        }
        for bad in [Ending::GuestPanic, Ending::Broken(String::new())] {
            assert_eq!(State::of(Phase::Ended, Some(&bad)), State::Faulted);
        }
    }

    #[test]
    fn one_no_is_enough_and_a_forbidden_move_asks_nobody() {
        let lifecycle = Lifecycle::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        lifecycle.on_transition(Arc::new(move |_, _| {
            count.fetch_add(1, Ordering::SeqCst);
            true
        }));
        lifecycle.on_transition(Arc::new(|from, to| {
            (from, to) != (State::Running, State::Paused)
        }));
        assert!(lifecycle.ask(State::Stopped, State::Running).is_ok());
        let refused = lifecycle.ask(State::Running, State::Paused).unwrap_err();
        assert!(refused.to_string().contains("forbids"), "{refused}");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        let refused = lifecycle.ask(State::Halted, State::Faulted).unwrap_err();
        assert_eq!(refused.code, Code::Conflict);
        assert_eq!(asked.load(Ordering::SeqCst), 2, "nobody was asked");
        // What has happened is told, whatever the answer.
        lifecycle.tell(State::Running, State::Paused);
        lifecycle.tell(State::Running, State::Running);
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }
}
