//! Memory, the kernel's own troubles, and boots that stop on the way.

use crate::look::{Finding, Look};
use crate::scene::Outcome;
use crate::stages::Stage;

fn memory(look: &Look<'_>) -> Option<String> {
    let bytes = look.scene.machine.memory;
    (bytes > 0).then(|| format!("the machine has {} MiB", bytes >> 20))
}

fn with_memory(look: &Look<'_>, finding: Finding) -> Finding {
    match memory(look) {
        Some(fact) => finding.fact("machine", &fact),
        None => finding,
    }
}

pub(super) fn initramfs_too_big(look: &Look<'_>) -> Option<Finding> {
    let line = look
        .first(&["Initramfs unpacking failed: write error"])
        .or_else(|| look.first(&["Initramfs unpacking failed", "memory"]))
        .or_else(|| look.first(&["initrd extends beyond end of memory"]))
        .or_else(|| look.first(&["Failed to allocate memory for initrd"]))
        // The kernel ran out of memory while it unpacked: its trace says so.
        .or_else(|| {
            let dead = look.first(&["System is deadlocked on memory"])?;
            look.first_of(&["unpack_to_rootfs", "populate_rootfs"])?;
            Some(dead)
        })?;
    Some(with_memory(look, Finding::certain().line(look, line)))
}

pub(super) fn out_of_memory(look: &Look<'_>) -> Option<Finding> {
    let fatal = [
        &["System is deadlocked on memory"][..],
        &["Out of memory and no killable processes"],
        &["Kernel panic", "out of memory"],
        &["Kernel panic", "Out of memory"],
        &["Kernel panic", "failed to allocate"],
        &["Kernel panic", "Failed to allocate"],
        &["Kernel panic", "Cannot allocate"],
        &["Kernel panic", "panic_on_oom"],
    ];
    let line = fatal.iter().find_map(|parts| look.first(parts))?;
    Some(with_memory(look, Finding::certain().line(look, line)))
}

pub(super) fn kernel_bug(look: &Look<'_>) -> Option<Finding> {
    const SAYINGS: &[&[&str]] = &[
        &["kernel BUG at "],
        &["BUG: unable to handle"],
        &["BUG: kernel NULL pointer dereference"],
        &["BUG: stack guard page was hit"],
        &["BUG: TASK stack guard page was hit"],
        &["BUG: sleeping function called"],
        &["Oops: "],
        &["general protection fault", "#"],
        &["Internal error: Oops"],
        &["Kernel panic - not syncing: Fatal exception"],
        &["KASAN: "],
        &["unable to handle kernel"],
    ];
    let lines: Vec<_> = SAYINGS
        .iter()
        .filter_map(|parts| look.first(parts))
        .collect();
    // "general protection fault" is also how the kernel reports that a program died.
    let lines: Vec<_> = lines
        .into_iter()
        .filter(|line| !line.text.contains(" ip:") || line.text.contains("BUG"))
        .collect();
    if lines.is_empty() {
        return None;
    }
    let mut finding = Finding::certain().lines(look, lines);
    if let Some(at) = look.first(&["RIP: 0010:"]) {
        finding = finding.line(look, at);
    }
    Some(finding)
}

/// The latest time at which the generator should be ready, in microseconds of the kernel's clock, unless even the
/// first process starts later.
const ENTROPY_DUE: u64 = 2_000_000;

pub(super) fn entropy_late(look: &Look<'_>) -> Option<Finding> {
    // On a slow host everything is late: what counts is who had to wait.
    let first_process = look
        .lines
        .iter()
        .find(|line| Stage::of_line(&line.text).is_some_and(|stage| stage >= Stage::Initramfs))
        .and_then(|line| line.at);
    let due = first_process.unwrap_or_default().max(ENTROPY_DUE);
    let done = look
        .first(&["random: crng init done"])
        .filter(|line| line.at.is_some_and(|at| at > due));
    let waiting = look.first(&["random: ", "uninitialized urandom read"]);
    let finding = match (done, waiting) {
        (Some(done), Some(waiting)) => Finding::certain().line(look, done).line(look, waiting),
        (Some(done), None) => Finding::likely().line(look, done),
        // Reads before it was ready mean little where it was ready soon.
        (None, _) => return None,
    };
    Some(match look.is_driven("virtio-rng") {
        Some(false) => finding.fact("device", "no driver took the entropy device"),
        None if look.devices("virtio-rng").next().is_none()
            && !look.scene.machine.devices.is_empty() =>
        {
            finding.fact("machine", "the machine has no entropy device")
        }
        _ => finding,
    })
}

/// Boots shorter than this, in nanoseconds, are none that anybody asked for again and again.
const SHORT_BOOT: u64 = 60_000_000_000;

pub(super) fn reset_loop(look: &Look<'_>) -> Option<Finding> {
    let resets = look.scene.resets;
    let entered = look
        .scene
        .stages
        .iter()
        .find(|reached| reached.stage == Stage::Guest);
    let is_quick = entered.is_none_or(|entered| entered.after_ns / resets.max(1) < SHORT_BOOT);
    if resets < 3 || !is_quick || look.has_reached(Stage::Network) {
        return None;
    }
    let mut finding = Finding::certain().fact("vmm", &format!("{resets} resets"));
    if let Some(value) = look.option("panic") {
        finding = finding.fact("machine", &format!("panic={value}"));
    }
    Some(finding)
}

pub(super) fn kernel_panic(look: &Look<'_>) -> Option<Finding> {
    match look.panic() {
        Some(line) => Some(Finding::certain().line(look, line)),
        None if look.scene.outcome == Outcome::GuestPanicked => {
            let finding = Finding::certain().fact("device", "pvpanic was told of a panic");
            Some(match look.last_line() {
                Some(line) => finding.line(look, line),
                None => finding,
            })
        }
        None => None,
    }
}

/// How long a boot may be silent on its way, in milliseconds.
const SILENCE: u64 = 30_000;

pub(super) fn stalled(look: &Look<'_>) -> Option<Finding> {
    let is_stuck = look.has_stuck_for(SILENCE) && look.silent_ms().is_some();
    if !is_stuck || look.has_reached(Stage::Init) || look.is_silent() {
        return None;
    }
    let last = look.last_line()?;
    let mut finding = Finding::possible().line(look, last);
    if let Some(stage) = look.furthest() {
        finding = finding.say(format!("It got as far as: {}.", stage.title()));
    }
    if let Some(ms) = look.silent_ms() {
        finding = finding.say(format!("It said nothing for {} s.", ms / 1000));
    }
    Some(finding)
}
