//! From the first instruction to the first process.

use crate::look::{Finding, Look};
use crate::scene::Outcome;
use crate::stages::Stage;

/// How long a machine may be silent at its start before that means something, in milliseconds. Stock kernels
/// speak within a second; within two or three on an emulated processor.
const SILENCE: u64 = 5_000;

pub(super) fn refused(look: &Look<'_>) -> Option<Finding> {
    let Outcome::Refused { error } = &look.scene.outcome else {
        return None;
    };
    let finding = error.lines().fold(Finding::certain(), |finding, line| {
        finding.fact("vmm", line)
    });
    Some(finding)
}

/// The devices that console= names, without options: `ttyS0,115200n8` is `ttyS0`.
fn named<'l>(look: &'l Look<'_>) -> Vec<&'l str> {
    look.options("console")
        .into_iter()
        .map(|value| value.split(',').next().unwrap_or(value))
        .collect()
}

/// The devices of the machine that a console can be.
fn present<'l>(look: &'l Look<'_>) -> Vec<&'l str> {
    ["serial", "virtio-console"]
        .iter()
        .flat_map(|kind| look.devices(kind))
        .filter_map(|device| device.guest.as_deref())
        .collect()
}

fn is_quiet_by_now(look: &Look<'_>) -> bool {
    look.has_stuck_for(SILENCE)
        || matches!(
            look.scene.outcome,
            Outcome::GuestPanicked | Outcome::TripleFault { .. } | Outcome::PoweredOff
        )
}

pub(super) fn console_elsewhere(look: &Look<'_>) -> Option<Finding> {
    let named = named(look);
    let present = present(look);
    // Firmware may have spoken; a kernel has not.
    let is_silent =
        look.is_silent() || !look.has_reached(Stage::Kernel) && look.last_line().is_none();
    if named.is_empty() || !is_silent || named.iter().any(|name| present.contains(name)) {
        return None;
    }
    if look.scene.machine.devices.is_empty() || !is_quiet_by_now(look) {
        return None;
    }
    let has = match present.as_slice() {
        [] => "the machine has no console".to_owned(),
        names => format!("the machine's consoles are {}", names.join(", ")),
    };
    let finding = named.iter().fold(Finding::certain(), |finding, name| {
        finding.fact(
            "machine",
            &format!("console={name} on the kernel's command line"),
        )
    });
    Some(finding.fact("machine", &has))
}

pub(super) fn console_driver_late(look: &Look<'_>) -> Option<Finding> {
    let named = named(look);
    let is_only_virtio = !named.is_empty() && named.iter().all(|name| name.starts_with("hvc"));
    if !look.is_silent() || !is_only_virtio || !is_quiet_by_now(look) {
        return None;
    }
    let finding =
        Finding::likely().fact("machine", &format!("console={}", named.join(" console=")));
    match look.is_driven("virtio-console") {
        Some(true) => None,
        Some(false) => Some(finding.fact("device", "no driver took the virtio console")),
        None => Some(finding),
    }
}

pub(super) fn console_lost(look: &Look<'_>) -> Option<Finding> {
    let last = look.last_line()?;
    let is_switch = last.text.contains("bootconsole [") && last.text.contains("disabled");
    (is_switch && is_quiet_by_now(look)).then(|| Finding::likely().line(look, last))
}

pub(super) fn kernel_silent(look: &Look<'_>) -> Option<Finding> {
    if !look.is_silent() || !is_quiet_by_now(look) {
        return None;
    }
    let machine = &look.scene.machine;
    let mut finding = Finding::possible().fact("machine", "no console heard a byte");
    if !machine.kernel.is_empty() {
        finding = finding.fact("machine", &format!("kernel {}", machine.kernel));
    }
    if !machine.cmdline.is_empty() {
        finding = finding.fact("machine", &format!("command line: {}", machine.cmdline));
    }
    for error in look.scene.errors.iter().take(3) {
        finding = finding.fact("vmm", error);
    }
    if look.flag("quiet") {
        finding = finding.say("`quiet` hides most of what a kernel says.");
    }
    let driven: Vec<&str> = machine
        .devices
        .iter()
        .filter(|device| device.activations.is_some_and(|count| count > 0))
        .map(|device| device.name.as_str())
        .collect();
    if !driven.is_empty() {
        finding = finding
            .fact("device", &format!("a driver took {}", driven.join(", ")))
            .say("Drivers run, so the kernel does too: only its messages do not arrive.")
            .mend("Correct console=, and drop `quiet` and a low loglevel= from the command line.");
    }
    Some(finding)
}

fn triple(look: &Look<'_>) -> Option<Finding> {
    let Outcome::TripleFault { vcpu } = look.scene.outcome else {
        return None;
    };
    let fact = format!("vCPU {vcpu} shut down");
    Some(match look.last_line() {
        Some(line) => Finding::certain().line(look, line).fact("vmm", &fact),
        None => Finding::certain().fact("vmm", &fact),
    })
}

pub(super) fn early_triple_fault(look: &Look<'_>) -> Option<Finding> {
    look.is_silent().then(|| triple(look)).flatten()
}

pub(super) fn triple_fault(look: &Look<'_>) -> Option<Finding> {
    (!look.is_silent()).then(|| triple(look)).flatten()
}

pub(super) fn cpu_feature_missing(look: &Look<'_>) -> Option<Finding> {
    let said = look.first_of(&[
        "This kernel requires the following features not present on the CPU",
        "This kernel requires an x86-64 CPU",
        "CPU does not support x86-64-v",
        "CPU ISA level is lower than required",
        "Your CPU does not support long mode",
    ]);
    if let Some(line) = said {
        let from = look
            .lines
            .iter()
            .position(|other| std::ptr::eq(other, line))?;
        // The kernel names the features on the next line.
        return Some(Finding::certain().lines(look, look.lines.iter().skip(from).take(2)));
    }
    // wait(2): a status of 4 means signal 4, SIGILL.
    let killed = look.first(&["Attempted to kill init! exitcode=0x00000004"])?;
    let mut finding = Finding::likely().line(look, killed);
    if let Some(trap) = look.first(&["trap invalid opcode"]) {
        finding = finding.line(look, trap);
    }
    Some(finding.say("The first process died of an illegal instruction (SIGILL)."))
}

pub(super) fn init_library_missing(look: &Look<'_>) -> Option<Finding> {
    let line = look.first(&["error while loading shared libraries"])?;
    let died = look.first(&["Attempted to kill init"])?;
    Some(Finding::certain().line(look, line).line(look, died))
}

pub(super) fn init_died(look: &Look<'_>) -> Option<Finding> {
    let panic = look.first(&["Attempted to kill init"])?;
    let mut finding = Finding::certain().line(look, panic);
    // What stands before, where the reason is.
    let at = look
        .lines
        .iter()
        .position(|line| std::ptr::eq(line, panic))?;
    let before = look
        .lines
        .iter()
        .take(at)
        .rev()
        .filter(|line| line.console == panic.console && line.at.is_none())
        .take(3);
    for line in before {
        finding = finding.line(look, line);
    }
    let status = panic
        .text
        .split_once("exitcode=0x")
        .and_then(|(_, digits)| u32::from_str_radix(digits.get(..8)?, 16).ok());
    Some(match status {
        // wait(2): the signal in the low seven bits, the exit code above.
        Some(status) if status & 0x7f != 0 => finding.say(format!(
            "Signal {} ({}) ended it.",
            status & 0x7f,
            signal_name(status & 0x7f)
        )),
        Some(status) => finding.say(format!(
            "It ended by itself, with exit code {}.",
            (status >> 8) & 0xff
        )),
        None => finding,
    })
}

/// The signals a first process dies of (signal(7), x86).
fn signal_name(signal: u32) -> &'static str {
    match signal {
        4 => "SIGILL, an instruction the processor does not have",
        6 => "SIGABRT, it gave up itself",
        7 => "SIGBUS, a page that could not be read, often a damaged disk",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV, a program or library that is damaged",
        31 => "SIGSYS",
        _ => "see signal(7)",
    }
}
