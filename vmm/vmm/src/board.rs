//! What everybody may know of a machine: its phase, its operations, its events. The actor writes it, the
//! control socket and libraries read it, and nobody waits for the actor.

use crate::admission::{Admission, admit};
use nyx_api::{
    Code, Event, Happening, Operation, OperationKind, OperationState, Phase, Problem, Progress,
};
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::time::SystemTime;
use tokio::sync::watch;

/// Operations that have ended and are still told of.
const KEPT_OPERATIONS: usize = 256;
/// Operations that have not ended, at most: who asks for more is refused.
const MOST_OPERATIONS: usize = 64;
/// Events that can be replayed.
const KEPT_EVENTS: usize = 1024;

/// Now, as the interface says it.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_micros(SystemTime::now()).to_string()
}

struct Content {
    phase: Phase,
    resets: u64,
    next_operation: u64,
    operations: VecDeque<Operation>,
    events: VecDeque<Event>,
}

/// The board.
pub(crate) struct Board {
    content: Mutex<Content>,
    /// The number of the last event; a change wakes those who follow.
    last_event: watch::Sender<u64>,
}

impl Board {
    pub(crate) fn new() -> Self {
        Self {
            content: Mutex::new(Content {
                phase: Phase::Built,
                resets: 0,
                next_operation: 1,
                operations: VecDeque::new(),
                events: VecDeque::new(),
            }),
            last_event: watch::Sender::new(0),
        }
    }

    fn edit(&self) -> Edit<'_> {
        let content = self.content.lock();
        let before = content.last();
        Edit {
            board: self,
            content,
            before,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.content.lock().phase
    }

    pub(crate) fn resets(&self) -> u64 {
        self.content.lock().resets
    }

    /// Every operation that is told of, oldest first.
    pub(crate) fn operations(&self) -> Vec<Operation> {
        self.content.lock().operations.iter().cloned().collect()
    }

    pub(crate) fn operation(&self, id: u64) -> Option<Operation> {
        let content = self.content.lock();
        content.operations.iter().find(|o| o.id == id).cloned()
    }

    /// Events after number `since`, and whether older ones that came after it are gone.
    pub(crate) fn events(&self, since: u64, most: usize) -> Vec<Event> {
        let content = self.content.lock();
        let new = content.events.iter().filter(|e| e.sequence > since);
        new.take(most).cloned().collect()
    }

    /// Wakes whenever there is another event.
    pub(crate) fn follow(&self) -> watch::Receiver<u64> {
        self.last_event.subscribe()
    }

    pub(crate) fn happened(&self, what: Happening) {
        self.edit().event(what);
    }

    pub(crate) fn enter(&self, phase: Phase) {
        let mut edit = self.edit();
        if edit.content.phase != phase {
            edit.content.phase = phase;
            edit.event(Happening::Phase { phase });
        }
    }

    /// Counts a reset.
    pub(crate) fn count_reset(&self, by: &str) -> u64 {
        let mut edit = self.edit();
        edit.content.resets += 1;
        let resets = edit.content.resets;
        edit.event(Happening::Reset {
            resets,
            by: by.into(),
        });
        resets
    }

    /// Enters an operation that was asked for, unless it is refused.
    pub(crate) fn ask(
        &self,
        kind: OperationKind,
        target: Option<String>,
    ) -> Result<Operation, Problem> {
        let mut edit = self.edit();
        let waiting = edit.content.busy(None).len();
        if let Admission::Refuse(code, why, mend) =
            admit(edit.content.phase, &edit.content.busy(None), kind)
        {
            return Err(Problem::new(code, format!("{kind}: {why}")).mend(mend));
        }
        if waiting >= MOST_OPERATIONS && kind != OperationKind::Kill {
            let why = format!("{kind}: {waiting} operations have not ended yet");
            return Err(Problem::new(Code::Busy, why)
                .mend("wait for them, or cancel what can be cancelled"));
        }
        let id = edit.content.next_operation;
        edit.content.next_operation += 1;
        let operation = Operation {
            id,
            kind,
            target,
            state: OperationState::Waiting,
            progress: Progress::default(),
            cancellable: true,
            asked: now(),
            ended: None,
            problem: None,
        };
        let ended = |o: &Operation| o.state.is_final();
        while edit.content.operations.len() >= KEPT_OPERATIONS {
            let Some(oldest) = edit.content.operations.iter().position(ended) else {
                break;
            };
            edit.content.operations.remove(oldest);
        }
        edit.content.operations.push_back(operation.clone());
        edit.event(Happening::Operation {
            operation: operation.clone(),
        });
        Ok(operation)
    }

    /// Whether an operation that waits may start now; if so, it has.
    pub(crate) fn begin(&self, id: u64) -> Admission {
        let mut edit = self.edit();
        let Some(operation) = edit.content.find(id) else {
            return Admission::Refuse(Code::NotFound, "there is no such operation", "ask again");
        };
        let kind = operation.kind;
        let answer = admit(edit.content.phase, &edit.content.busy(Some(id)), kind);
        if answer == Admission::Now {
            edit.change(id, |operation| {
                operation.state = OperationState::Running;
                operation.cancellable = false;
            });
        }
        answer
    }

    /// Says how far an operation is.
    pub(crate) fn progress(&self, id: u64, cancellable: bool, progress: Progress) {
        let mut edit = self.edit();
        let known = |o: &Operation| o.cancellable == cancellable && o.progress == progress;
        // Only news is an event: whoever can wake the owner must not push others out of the replay.
        if !edit.content.find(id).is_some_and(known) {
            edit.change(id, |operation| {
                operation.cancellable = cancellable;
                operation.progress = progress;
            });
        }
    }

    /// Ends an operation.
    pub(crate) fn finish(&self, id: u64, result: Result<(), Problem>) {
        self.edit().change(id, |operation| {
            match result {
                Ok(()) => operation.state = OperationState::Done,
                Err(problem) => {
                    operation.state = OperationState::Failed;
                    operation.problem = Some(problem);
                }
            }
            operation.cancellable = false;
            operation.ended = Some(now());
        });
    }

    /// Cancels an operation that can be cancelled; its state then says so. The actor stops caring for it
    /// when it looks at it next.
    pub(crate) fn cancel(&self, id: u64) -> Result<Operation, Problem> {
        let mut edit = self.edit();
        let Some(operation) = edit.content.find(id) else {
            let why = format!("there is no operation {id}");
            return Err(Problem::new(Code::NotFound, why)
                .field("id")
                .value(id.to_string())
                .mend("list them with GET /v1/operations"));
        };
        if operation.state.is_final() || !operation.cancellable {
            let why = match operation.state {
                OperationState::Running => "cannot be cancelled any more",
                _ => "has ended already",
            };
            let why = format!("operation {id} ({}) {why}", operation.kind);
            return Err(Problem::new(Code::Conflict, why)
                .field("id")
                .value(id.to_string())
                .mend("wait for its end"));
        }
        edit.change(id, |operation| {
            operation.state = OperationState::Cancelled;
            operation.cancellable = false;
            operation.ended = Some(now());
        });
        // Just changed, so it is there.
        edit.content
            .find(id)
            .cloned()
            .ok_or_else(|| Problem::new(Code::NotFound, "it is gone"))
    }

    /// The machine has ended: so has all that was asked of it.
    pub(crate) fn end(&self, ending: String, detail: Option<String>) {
        let mut edit = self.edit();
        let open = |o: &&Operation| !o.state.is_final();
        let open: Vec<u64> = edit
            .content
            .operations
            .iter()
            .filter(open)
            .map(|o| o.id)
            .collect();
        for id in open {
            edit.change(id, |operation| {
                let ends = matches!(operation.kind, OperationKind::Stop | OperationKind::Kill);
                if ends {
                    operation.state = OperationState::Done;
                } else {
                    operation.state = OperationState::Failed;
                    let why = "the machine ended first";
                    operation.problem = Some(Problem::new(Code::Ended, why));
                }
                operation.cancellable = false;
                operation.ended = Some(now());
            });
        }
        edit.event(Happening::Ended { ending, detail });
        edit.content.phase = Phase::Ended;
        edit.event(Happening::Phase {
            phase: Phase::Ended,
        });
    }
}

impl Content {
    fn last(&self) -> u64 {
        self.events.back().map_or(0, |event| event.sequence)
    }
    fn find(&self, id: u64) -> Option<&Operation> {
        self.operations.iter().find(|o| o.id == id)
    }
    /// The kinds of operations that have not ended, but for one. Those that wait come after it, unless it is
    /// not entered yet.
    fn busy(&self, but: Option<u64>) -> Vec<OperationKind> {
        let open = self.operations.iter().filter(|o| !o.state.is_final());
        open.filter(|o| but.is_none_or(|id| o.id < id))
            .map(|o| o.kind)
            .collect()
    }
}

/// A change of the board; followers hear of its events once it is done.
struct Edit<'b> {
    board: &'b Board,
    content: MutexGuard<'b, Content>,
    before: u64,
}

impl Edit<'_> {
    fn event(&mut self, what: Happening) {
        let event = Event {
            sequence: self.content.last() + 1,
            time: now(),
            what,
        };
        if self.content.events.len() >= KEPT_EVENTS {
            self.content.events.pop_front();
        }
        self.content.events.push_back(event);
    }

    fn change(&mut self, id: u64, how: impl FnOnce(&mut Operation)) {
        let operation = self.content.operations.iter_mut().find(|o| o.id == id);
        let Some(operation) = operation.filter(|o| !o.state.is_final()) else {
            return;
        };
        how(operation);
        let operation = operation.clone();
        self.event(Happening::Operation { operation });
    }
}

impl Drop for Edit<'_> {
    fn drop(&mut self) {
        let last = self.content.last();
        if last != self.before {
            self.board.last_event.send_replace(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_an_event_only_when_it_is_news() {
        let board = Board::new();
        board.enter(Phase::Running);
        let id = board.ask(OperationKind::Stop, None).unwrap().id;
        assert_eq!(board.begin(id), Admission::Now);
        let progress = |done| Progress {
            done,
            total: 30,
            what: "waiting".into(),
        };
        board.progress(id, true, progress(1));
        let last = board.events(0, usize::MAX).len();
        board.progress(id, true, progress(1));
        assert_eq!(board.events(0, usize::MAX).len(), last);
        board.progress(id, true, progress(2));
        assert_eq!(board.events(0, usize::MAX).len(), last + 1);
    }

    #[test]
    fn what_is_asked_waits_its_turn_and_is_bounded() {
        let board = Board::new();
        board.enter(Phase::Running);
        let pause = board.ask(OperationKind::Pause, None).unwrap().id;
        let reset = board.ask(OperationKind::Reset, None).unwrap().id;
        assert_eq!(board.begin(reset), Admission::After(OperationKind::Pause));
        assert_eq!(board.begin(pause), Admission::Now);
        board.finish(pause, Ok(()));
        assert_eq!(board.begin(reset), Admission::Now);
        board.finish(reset, Err(Problem::new(Code::Failed, "no")));
        let states: Vec<_> = board.operations().iter().map(|o| o.state).collect();
        assert_eq!(states, [OperationState::Done, OperationState::Failed]);
        for _ in 0..MOST_OPERATIONS {
            board.ask(OperationKind::Nmi, None).unwrap();
        }
        let refused = board.ask(OperationKind::Nmi, None).unwrap_err();
        assert_eq!(refused.code, Code::Busy);
        board.ask(OperationKind::Kill, None).unwrap();
    }

    #[test]
    fn the_end_ends_what_was_asked() {
        let board = Board::new();
        board.enter(Phase::Running);
        let stop = board.ask(OperationKind::Stop, None).unwrap().id;
        let nmi = board.ask(OperationKind::Nmi, None);
        let follower = board.follow();
        board.end("stopped".into(), None);
        assert!(follower.has_changed().unwrap());
        assert_eq!(board.operation(stop).unwrap().state, OperationState::Done);
        if let Ok(nmi) = nmi {
            assert_eq!(
                board.operation(nmi.id).unwrap().state,
                OperationState::Failed
            );
        }
        assert_eq!(board.phase(), Phase::Ended);
        let refused = board.ask(OperationKind::Reset, None).unwrap_err();
        assert_eq!(refused.code, Code::Ended);
    }

    #[test]
    fn events_and_ended_operations_are_kept_up_to_a_bound() {
        let board = Board::new();
        board.enter(Phase::Running);
        for _ in 0..2 * KEPT_OPERATIONS {
            let id = board.ask(OperationKind::Nmi, None).unwrap().id;
            assert_eq!(board.begin(id), Admission::Now);
            board.finish(id, Ok(()));
        }
        assert_eq!(board.operations().len(), KEPT_OPERATIONS);
        let events = board.events(0, usize::MAX);
        assert_eq!(events.len(), KEPT_EVENTS);
        let numbers: Vec<_> = events.iter().map(|e| e.sequence).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }
}
