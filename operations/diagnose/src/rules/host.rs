//! What the host or the VMM itself met.

use crate::look::{Finding, Look};
use crate::scene::Outcome;

/// What the VMM said last, as far as it may explain an end.
fn errors<'l>(look: &'l Look<'_>) -> Vec<&'l str> {
    let mut all: Vec<&str> = look.scene.errors.iter().map(String::as_str).collect();
    match &look.scene.outcome {
        Outcome::Broken { why } => all.push(why),
        Outcome::Refused { error } => all.push(error),
        _ => {}
    }
    all
}

fn matching(look: &Look<'_>, parts: &[&str]) -> Option<Finding> {
    let errors = errors(look);
    let mut found = errors
        .iter()
        .filter(|error| parts.iter().any(|part| error.contains(part)))
        .peekable();
    found.peek()?;
    Some(found.fold(Finding::certain(), |finding, error| {
        finding.fact("vmm", error)
    }))
}

pub(super) fn disk_full(look: &Look<'_>) -> Option<Finding> {
    matching(
        look,
        &[
            "No space left on device",
            "os error 28",
            "ENOSPC",
            "Disk quota exceeded",
        ],
    )
}

pub(super) fn memory_exhausted(look: &Look<'_>) -> Option<Finding> {
    if let Some(finding) = matching(look, &["Cannot allocate memory", "os error 12", "ENOMEM"]) {
        return Some(finding);
    }
    // SIGKILL: an administrator or the OOM killer; SIGBUS: huge pages or a tmpfs that ran out.
    match look.scene.outcome {
        Outcome::Vanished {
            signal: Some(7), ..
        } => Some(Finding::likely().fact("vmm", "SIGBUS ended it").say(
            "SIGBUS means that a page of guest memory could not be had: huge pages or the file system behind them ran out.",
        )),
        _ => None,
    }
}

pub(super) fn vanished(look: &Look<'_>) -> Option<Finding> {
    let Outcome::Vanished { signal, code } = look.scene.outcome else {
        return None;
    };
    let words = look.scene.outcome.words();
    let finding = Finding::certain().fact("vmm", &words);
    Some(match (signal, code) {
        (Some(9), _) => {
            finding.say("SIGKILL comes from an administrator, a service manager or the OOM killer.")
        }
        (Some(4 | 6 | 8 | 11), _) => {
            finding.say("This signal means that the program itself failed.")
        }
        _ => finding,
    })
}

pub(super) fn hypervisor_failed(look: &Look<'_>) -> Option<Finding> {
    let Outcome::Broken { why } = &look.scene.outcome else {
        return None;
    };
    let mut finding = Finding::certain().fact("vmm", why);
    for error in look.scene.errors.iter().rev().take(3) {
        finding = finding.fact("vmm", error);
    }
    Some(finding)
}

pub(super) fn slow_kvm(look: &Look<'_>) -> Option<Finding> {
    let is_slow = look.scene.host.has_slow_kvm == Some(true);
    let is_about_to_boot = !look.has_reached(crate::stages::Stage::Init)
        && matches!(
            look.scene.outcome,
            Outcome::Running { .. } | Outcome::Stopped
        );
    (is_slow && is_about_to_boot).then(|| {
        Finding::likely().fact(
            "host",
            "KVM emulates the guest's kernel instruction by instruction",
        )
    })
}
