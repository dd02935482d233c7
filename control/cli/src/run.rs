//! `nyx run`.

use crate::args::RunArgs;
use crate::exit::{BROKEN, GUEST_PANIC, STOPPED, SUCCESS, TRIPLE_FAULT, refuse, tell};
use nyx_catalog::{Backends, ConsoleTail, Escape};
use nyx_kvm::Kvm;
use nyx_vmm::{Command, Control, Ending, HostSource, Notice, Prepared, Vmm};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

pub(crate) fn run(args: &RunArgs) -> ExitCode {
    match start(args) {
        Ok(code) => ExitCode::from(code),
        Err(e) => refuse(e),
    }
}

/// Prints how long each stage took, when asked.
struct Stages {
    last: Instant,
    on: bool,
}

impl Stages {
    fn done(&mut self, stage: &str) {
        if self.on {
            tell!(
                "nyx: {stage:<10} {:>9.3} ms",
                self.last.elapsed().as_secs_f64() * 1e3
            );
        }
        self.last = Instant::now();
    }
}

fn start(args: &RunArgs) -> Result<u8, String> {
    let mut stages = Stages {
        last: Instant::now(),
        on: args.timing,
    };
    let config = args.machine.config()?;
    let kvm = Kvm::open().map_err(|e| e.to_string())?;
    let prepared =
        Prepared::new(&config, &HostSource::Hypervisor(&kvm)).map_err(|e| e.to_string())?;
    stages.done("planned");
    let switch: Arc<Switch> = Arc::default();
    stop_on_signals(switch.clone()).map_err(|e| format!("cannot watch for signals: {e}"))?;
    let escapes = switch.clone();
    let tail = ConsoleTail::default();
    let backends = Backends {
        tail: tail.clone(),
        on_escape: Some(Arc::new(move |escape| match escape {
            Escape::Quit => {
                escapes.stop();
            }
            // The terminal shows help and sends breaks itself; a prompt has no meaning for a machine
            // run in the foreground.
            Escape::Help | Escape::Break | Escape::Prompt => {}
        })),
    };
    let mut vmm = Vmm::new(prepared, &kvm, &backends, Box::new(say)).map_err(|e| e.to_string())?;
    switch.connect(&vmm.control());
    stages.done("assembled");
    let ending = vmm.run();
    stages.done("ran");
    // Terminals are themselves again before anything is said.
    drop(vmm);
    Ok(report(&ending, &tail))
}

/// Stops the machine, be it up yet or not.
#[derive(Default)]
struct Switch {
    asked: AtomicBool,
    control: OnceLock<Control>,
}

impl Switch {
    /// Asks the machine to stop; `false` if it is not up yet and will be asked then.
    fn stop(&self) -> bool {
        // In this order, and the other one in `connect`: one of the two sees the other.
        self.asked.store(true, Ordering::SeqCst);
        self.control
            .get()
            .inspect(|control| control.send(Command::Stop))
            .is_some()
    }

    /// The machine is up.
    fn connect(&self, control: &Control) {
        // Set once, here.
        let _ = self.control.set(control.clone());
        if self.asked.load(Ordering::SeqCst) {
            control.send(Command::Stop);
        }
    }
}

/// Says how the machine ended, if not well, and gives the exit code for it.
fn report(ending: &Ending, tail: &ConsoleTail) -> u8 {
    let (code, what) = match ending {
        Ending::PoweredOff => return SUCCESS,
        Ending::Stopped => {
            tell!("nyx: stopped");
            return STOPPED;
        }
        Ending::GuestPanic => (GUEST_PANIC, "the guest panicked".to_string()),
        Ending::TripleFault { vcpu } => (
            TRIPLE_FAULT,
            format!("the guest's CPU {vcpu} gave up (triple fault)"),
        ),
        Ending::Broken(why) => (BROKEN, format!("the machine cannot go on: {why}")),
    };
    let lines = last_words(tail.lines(KEPT_LINES));
    if lines.is_empty() {
        tell!("nyx: {what}; its consoles were silent");
    } else {
        tell!("nyx: {what}; the last lines of its consoles:");
        for line in lines {
            tell!("nyx:   {line}");
        }
    }
    code
}

/// Console lines shown when a guest dies.
const LAST_LINES: usize = 10;
/// Console lines among which its reason is looked for.
const KEPT_LINES: usize = 200;

/// What to show of the last lines of the consoles: the end, or the kernel's reason for a panic and what follows
/// it, which a long trace may have pushed out of the end.
fn last_words(mut lines: Vec<String>) -> Vec<String> {
    let end = lines.len().saturating_sub(LAST_LINES);
    let reason = lines
        .iter()
        .rposition(|line| line.contains("Kernel panic - "));
    lines.drain(..reason.unwrap_or(end).min(end));
    lines.truncate(LAST_LINES);
    lines
}

/// SIGTERM, SIGINT and SIGHUP stop the machine in order, so that sockets and helpers go with it. A
/// second one while it is still being assembled, which takes long where much memory is committed,
/// kills.
fn stop_on_signals(switch: Arc<Switch>) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut early = 0;
            for signal in signals.forever() {
                if !switch.stop() {
                    early += 1;
                }
                if early > 1 {
                    // It ends the process, or there is nothing more that could be done.
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
            }
        })?;
    Ok(())
}

fn say(notice: Notice) {
    match notice {
        Notice::Started { resets: 0 } => {}
        Notice::Started { resets } => tell!("nyx: reset {resets}\r"),
        Notice::Fault(fault) => tell!("nyx: {}: {}\r", fault.unit, fault.what),
        Notice::FaultsMuted => tell!("nyx: further faults of devices are not shown\r"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_for_a_panic_is_among_the_last_words() {
        let lines = |range: std::ops::Range<u32>| range.map(|n| n.to_string());
        assert_eq!(last_words(lines(0..3).collect()), ["0", "1", "2"]);
        assert_eq!(last_words(lines(0..50).collect())[0], "40");
        let mut said: Vec<String> = lines(0..30).collect();
        said[5] = "[ 1.0] Kernel panic - not syncing: why".into();
        let shown = last_words(said.clone());
        assert_eq!((shown.len(), shown[0].as_str()), (10, said[5].as_str()));
        // Where it stands in the end anyway, the lines before it are told too.
        said[28] = "Kernel panic - again".into();
        let shown = last_words(said);
        assert_eq!((shown[0].as_str(), shown[9].as_str()), ("20", "29"));
    }
}
