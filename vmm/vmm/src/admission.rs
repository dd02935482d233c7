//! Which operation may start in which phase, beside which others: a table, and nothing else.

use nyx_api::{Code, OperationKind as Op, Phase};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may start.
    Now,
    /// It may start once the operation of this kind has ended.
    After(Op),
    /// Not at all: what kind of refusal, why, and what to do instead.
    Refuse(Code, &'static str, &'static str),
}

/// Decides about `asked` in `phase` while `busy` are under way.
pub fn admit(phase: Phase, busy: &[Op], asked: Op) -> Admission {
    if let Some((code, why, mend)) = refused_in(phase, asked) {
        return Admission::Refuse(code, why, mend);
    }
    if let Some((why, mend)) = busy.iter().find_map(|&other| refused_beside(other, asked)) {
        return Admission::Refuse(Code::Conflict, why, mend);
    }
    match busy.iter().find(|&&other| waits_for(other, asked)) {
        Some(&other) => Admission::After(other),
        None => Admission::Now,
    }
}

/// What cannot be asked in a phase at all.
fn refused_in(phase: Phase, asked: Op) -> Option<(Code, &'static str, &'static str)> {
    use Phase::{Built, Ended, Paused, Resetting, Running};
    match (phase, asked) {
        (Ended, _) => Some((
            Code::Ended,
            "the machine has ended",
            "start it again with `nyx run`",
        )),
        (_, Op::Kill | Op::Stop | Op::AddDisk | Op::AddNet | Op::RemoveDisk | Op::RemoveNet) => {
            None
        }
        (Built, Op::Resume) => None,
        (Built, _) => Some((
            Code::Conflict,
            "the machine has not started",
            "resume it first",
        )),
        (Paused, Op::Pause) => Some((
            Code::Conflict,
            "the machine is paused already",
            "resume it, or leave it",
        )),
        (Running | Resetting, Op::Resume) => Some((
            Code::Conflict,
            "the machine is not paused",
            "nothing needs to be done",
        )),
        (Running | Paused | Resetting, _) => None,
    }
}

/// What makes no sense while another operation is under way.
fn refused_beside(other: Op, asked: Op) -> Option<(&'static str, &'static str)> {
    match (other, asked) {
        // The hardest way to end wins over milder ones; nothing new starts in a machine that goes.
        (_, Op::Kill) => None,
        (Op::Kill, _) => Some(("the machine is being killed", "wait for its end")),
        (Op::Stop, Op::Stop | Op::PowerButton | Op::Resume | Op::Nmi) => None,
        (Op::Stop, _) => Some((
            "the machine is being stopped",
            "cancel that operation first, or wait for the machine's end",
        )),
        _ => None,
    }
}

/// What must wait for another operation, because both change the same thing.
fn waits_for(other: Op, asked: Op) -> bool {
    let rests = |op| matches!(op, Op::Pause | Op::Resume | Op::Reset);
    let changes = |op| matches!(op, Op::AddDisk | Op::AddNet);
    match (other, asked) {
        (_, Op::Kill | Op::Stop) => false,
        // A machine that comes to rest does one thing at a time.
        (a, b) if rests(a) => rests(b) || changes(b),
        (a, b) if changes(a) => rests(b) || changes(b),
        // A removal waits for the guest, and nobody waits for it.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    fn op() -> impl Strategy<Value = Op> {
        select(Op::ALL.to_vec())
    }
    fn phase() -> impl Strategy<Value = Phase> {
        select(Phase::ALL.to_vec())
    }
    fn busy() -> impl Strategy<Value = Vec<Op>> {
        subsequence(Op::ALL.to_vec(), 0..=Op::ALL.len())
    }
    /// How much stands against it.
    fn severity(admission: Admission) -> u8 {
        match admission {
            Admission::Now => 0,
            Admission::After(_) => 1,
            Admission::Refuse(..) => 2,
        }
    }

    proptest! {
        #[test]
        fn a_machine_that_lives_can_always_be_killed(phase in phase(), busy in busy()) {
            let answer = admit(phase, &busy, Op::Kill);
            if phase == Phase::Ended {
                prop_assert!(matches!(answer, Admission::Refuse(Code::Ended, ..)));
            } else {
                prop_assert_eq!(answer, Admission::Now);
            }
        }

        #[test]
        fn nothing_is_admitted_after_the_end(busy in busy(), asked in op()) {
            let refused = matches!(admit(Phase::Ended, &busy, asked), Admission::Refuse(Code::Ended, ..));
            prop_assert!(refused);
        }

        #[test]
        fn more_going_on_never_admits_more(phase in phase(), busy in busy(), other in op(), asked in op()) {
            let before = severity(admit(phase, &busy, asked));
            let mut more = busy;
            more.push(other);
            prop_assert!(severity(admit(phase, &more, asked)) >= before);
        }

        #[test]
        fn the_order_of_what_goes_on_decides_nothing(phase in phase(), busy in busy(), asked in op()) {
            let mut turned = busy.clone();
            turned.reverse();
            prop_assert_eq!(severity(admit(phase, &busy, asked)), severity(admit(phase, &turned, asked)));
        }

        #[test]
        fn waiting_is_for_something_that_goes_on(phase in phase(), busy in busy(), asked in op()) {
            if let Admission::After(other) = admit(phase, &busy, asked) {
                prop_assert!(busy.contains(&other));
                let rest: Vec<_> = busy.iter().copied().filter(|&op| op != other).collect();
                prop_assert_ne!(admit(phase, &rest, asked), Admission::After(other));
            }
        }

        #[test]
        fn nobody_waits_for_the_guest(phase in phase(), asked in op()) {
            for slow in [Op::Stop, Op::RemoveDisk, Op::RemoveNet] {
                prop_assert!(!matches!(admit(phase, &[slow], asked), Admission::After(_)));
            }
        }

        #[test]
        fn pause_and_resume_are_each_others_undo(busy in busy()) {
            let can = |phase, op| !matches!(admit(phase, &busy, op), Admission::Refuse(..));
            prop_assert!(!can(Phase::Running, Op::Resume));
            prop_assert!(!can(Phase::Paused, Op::Pause));
            prop_assert!(can(Phase::Paused, Op::Resume) || busy.contains(&Op::Kill));
        }
    }

    #[test]
    fn a_machine_that_has_not_started_can_be_started_changed_and_dropped() {
        for op in Op::ALL {
            let refused = matches!(admit(Phase::Built, &[], op), Admission::Refuse(..));
            let expected = matches!(op, Op::Pause | Op::PowerButton | Op::Reset | Op::Nmi);
            assert_eq!(refused, expected, "{op}");
        }
    }
}
