//! `nyx run`.

use crate::args::RunArgs;
use crate::daemon;
use crate::exit::{BROKEN, GUEST_PANIC, KILLED, STOPPED, SUCCESS, TRIPLE_FAULT, refuse, tell};
use crate::output::{Format, format};
use nyx_api::{MachineRecord, place};
use nyx_catalog::{Backends, ConsoleTail, Consoles, Escape};
use nyx_diagnose::{Outcome, Recorder, Store};
use nyx_journal::{Journal, Origin};
use nyx_kvm::Kvm;
use nyx_spec::{ConsoleConfig, ConsoleKind, VmConfig, parse_options};
use nyx_vmm::{
    Control, Desk, Ending, HostSource, Identity, Notice, Prepared, Request, RuntimeFolder, Server,
    Socket, Start, Vmm,
};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn run(args: &RunArgs) -> ExitCode {
    if args.daemon {
        return match daemon::start() {
            Ok(record) => {
                if format() == Format::Json {
                    println!("{}", serde_json::json!(record));
                    return ExitCode::SUCCESS;
                }
                println!(
                    "{} ({}) runs as process {}",
                    record.name, record.id, record.pid
                );
                ExitCode::SUCCESS
            }
            Err(code) => ExitCode::from(code),
        };
    }
    match start(args) {
        Ok(code) => ExitCode::from(code),
        Err(e) => refuse(e),
    }
}

/// Prints how long each stage took, when asked.
struct Stages {
    begun: Instant,
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
    let begun = Instant::now();
    let stages = Stages {
        begun,
        last: begun,
        on: args.timing,
    };
    if args.in_background {
        daemon::leave_terminal();
    }
    let mut config = args.machine.config()?;
    if args.in_background {
        without_terminal(&mut config)?;
    }
    configure_journal(args, &mut config)?;
    let consoles = Consoles::default();
    let desk = Desk::new(identity(&config), consoles.clone());
    let control = desk.control();
    stop_on_signals(control.clone()).map_err(|e| format!("cannot watch for signals: {e}"))?;
    let door = match args.no_api {
        true => None,
        false => Some(Door::open(&control)?),
    };
    let journal = open_journal(&config, &control, door.as_ref())?;
    let ran = machine(args, &config, desk, consoles, door, stages);
    if let Err(why) = &ran {
        tracing::error!(target: "vm", "{why}");
    }
    // Seals the audit trail and drains outputs.
    journal.close(JOURNAL_GRACE);
    ran
}

/// How long outputs of the journal may take at the end.
const JOURNAL_GRACE: Duration = Duration::from_secs(2);

/// Puts the flags about the journal into the description.
fn configure_journal(args: &RunArgs, config: &mut VmConfig) -> Result<(), String> {
    let journal = config.journal.get_or_insert_default();
    let text = |e: nyx_journal::JournalError| e.to_string();
    if let Some(level) = &args.log_level {
        journal.set_level(level).map_err(text)?;
    }
    for filter in &args.log {
        journal.add_filters(filter).map_err(text)?;
    }
    for output in &args.log_to {
        journal.add_output(output).map_err(text)?;
    }
    if let Some(audit) = &args.audit {
        journal.set_audit(audit).map_err(text)?;
    }
    journal.trace.enabled |= args.trace;
    Ok(())
}

/// Opens the journal of this process.
fn open_journal(
    config: &VmConfig,
    control: &Control,
    door: Option<&Door>,
) -> Result<Journal, String> {
    let described = config.journal.clone().unwrap_or_default();
    let origin = Origin {
        vm: Some(control.identity().name.clone()),
        ring: door.map(|door| door.folder.ring()),
    };
    let journal = Journal::install(&described, &origin).map_err(|e| e.to_string())?;
    control.write_to(journal.clone());
    Ok(journal)
}

/// Assembles the machine and runs it to its end.
fn machine(
    args: &RunArgs,
    config: &VmConfig,
    desk: Desk,
    consoles: Consoles,
    door: Option<Door>,
    mut stages: Stages,
) -> Result<u8, String> {
    let control = desk.control();
    let kvm = Kvm::open().map_err(|e| e.to_string())?;
    let prepared =
        Prepared::new(config, &HostSource::Hypervisor(&kvm)).map_err(|e| e.to_string())?;
    stages.done("planned");
    let plan = serde_json::to_value(&prepared.plan).unwrap_or_default();
    let recorder = Recorder::new(stages.begun, &plan);
    control.record_with(recorder.clone());
    let tail = ConsoleTail::default().hear_with(move |name| recorder.listener(name));
    let escapes = control.clone();
    let backends = Backends {
        tail: tail.clone(),
        on_escape: Some(Arc::new(move |escape| match escape {
            Escape::Quit => stop(&escapes),
            // The terminal shows help and sends breaks itself; a prompt has no meaning for a machine
            // run in the foreground.
            Escape::Help | Escape::Break | Escape::Prompt => {}
        })),
        consoles,
    };
    let mut vmm =
        Vmm::new(prepared, &kvm, &backends, desk, Box::new(say)).map_err(|e| e.to_string())?;
    stages.done("assembled");
    if let Some(address) = &args.gdb {
        let address = control
            .listen_for_gdb(address, true)
            .map_err(|e| format!("--gdb: {e}"))?;
        tell!("nyx: waiting for gdb: target remote {address}");
    }
    if let (true, Some(door)) = (args.in_background, &door) {
        daemon::is_up(&door.record)?;
    }
    let ending = vmm.run(Start {
        paused: args.paused,
    });
    stages.done("ran");
    if ending == Ending::Killed {
        // Dropping the machine takes time that who kills it does not give.
        drop(door);
        tell!("nyx: killed");
        return Ok(KILLED);
    }
    keep_bundle(&control, &ending);
    // Clients hear of the end, and terminals are themselves again, before anything is said.
    drop(door);
    drop(vmm);
    Ok(report(&ending, &tail))
}

/// Keeps what is known of an end that was not wished for, for `nyx why`.
fn keep_bundle(control: &Control, ending: &Ending) {
    let outcome = match ending {
        Ending::PoweredOff => Outcome::PoweredOff,
        Ending::Stopped | Ending::Killed => Outcome::Stopped,
        Ending::GuestPanic => Outcome::GuestPanicked,
        Ending::TripleFault { vcpu } => Outcome::TripleFault { vcpu: *vcpu },
        Ending::Broken(why) => Outcome::Broken { why: why.clone() },
    };
    let Some(bundle) = control.why(Some(outcome)) else {
        return;
    };
    if !nyx_diagnose::worth_keeping(&bundle.scene, &bundle.verdicts) {
        return;
    }
    let Some(root) = place::state_root(rustix::process::geteuid().as_raw()) else {
        return;
    };
    match Store::new(root).keep(&bundle) {
        Ok(_) => {
            let name = &control.identity().name;
            match bundle.verdicts.first() {
                Some(verdict) => tell!("nyx: {}; `nyx why {name}` says more", verdict.title),
                None => tell!("nyx: `nyx why {name}` shows what is known"),
            }
        }
        Err(e) => tell!("nyx: {e}"),
    }
}

/// Who this machine is: a machine without a name is called after this run of it.
fn identity(config: &VmConfig) -> Identity {
    let mut identity = Identity::new(config.name.clone().unwrap_or_default());
    if identity.name.is_empty() {
        identity.name = format!("vm-{}", identity.id.get(..6).unwrap_or(&identity.id));
    }
    identity
}

/// The machine's runtime folder and its control socket. Dropping it closes the socket, then removes the folder.
struct Door {
    _server: Server,
    folder: RuntimeFolder,
    record: MachineRecord,
}

impl Door {
    fn open(control: &Control) -> Result<Self, String> {
        let Identity { id, name, started } = control.identity().clone();
        let root = place::runtime_root(rustix::process::geteuid().as_raw());
        let folder = RuntimeFolder::claim(&root, &name).map_err(|e| e.to_string())?;
        let path = folder.socket();
        let refused = |e| format!("cannot open the control socket {}: {e}", path.display());
        let socket = Socket::bind(&path).map_err(refused)?;
        let left_behind = folder.path().to_owned();
        let kill = move || {
            // The machine's owner does not get to it.
            let _ = std::fs::remove_dir_all(&left_behind);
            std::process::exit(KILLED.into());
        };
        let server = socket
            .serve(control.clone(), Arc::new(kill))
            .map_err(refused)?;
        let record = MachineRecord {
            id,
            name,
            pid: std::process::id(),
            started,
            socket: path.display().to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        folder.publish(&record).map_err(|e| e.to_string())?;
        Ok(Self {
            _server: server,
            folder,
            record,
        })
    }
}

/// Gives a machine in the background consoles that need no terminal: `nyx console` joins them.
fn without_terminal(config: &mut VmConfig) -> Result<(), String> {
    let mend = "leave it out and join the machine with `nyx console`, or use pty, file or socket";
    match &config.consoles {
        Some(consoles) => {
            let stdio = |console: &ConsoleConfig| console.kind == ConsoleKind::Stdio;
            if let Some(index) = consoles.iter().position(stdio) {
                return Err(format!(
                    "consoles[{index}]: there is no stdio in the background; {mend}"
                ));
            }
        }
        None => {
            let console = parse_options("null", "kind", &[]).map_err(|e| e.to_string())?;
            config.consoles = Some(vec![console]);
        }
    }
    match &config.debug_console {
        Some(debug) if debug.kind == ConsoleKind::Stdio => Err(format!(
            "debug_console: there is no stdio in the background; {mend}"
        )),
        _ => Ok(()),
    }
}

/// Switches the machine off at once, in order, be it up yet or not.
fn stop(control: &Control) {
    // It is refused only when the machine ends anyway.
    let _ = control.submit(Request::Stop {
        timeout: Duration::ZERO,
    });
}

/// Says how the machine ended, if not well, and gives the exit code for it.
fn report(ending: &Ending, tail: &ConsoleTail) -> u8 {
    let (code, what) = match ending {
        Ending::PoweredOff => return SUCCESS,
        Ending::Stopped => {
            tell!("nyx: stopped");
            return STOPPED;
        }
        Ending::Killed => return KILLED,
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
fn stop_on_signals(control: Control) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut early = 0;
            for signal in signals.forever() {
                stop(&control);
                if control.plan().is_none() {
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
        Notice::PausedWithoutSpace { unit } => tell!(
            "nyx: {unit} has no room on the host; the machine is paused: make room, then `nyx resume` it\r"
        ),
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
