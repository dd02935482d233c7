//! `nyx run`.

use crate::args::RunArgs;
use crate::exit::{BROKEN, GUEST_PANIC, STOPPED, SUCCESS, TRIPLE_FAULT, refuse};
use nyx_catalog::{Backends, Escape};
use nyx_kvm::Kvm;
use nyx_vmm::{Command, Control, Ending, HostSource, Notice, Prepared, Vmm};
use std::process::ExitCode;
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
            eprintln!("nyx: {stage:<10} {:>9.3} ms", self.last.elapsed().as_secs_f64() * 1e3);
        }
        self.last = Instant::now();
    }
}

fn start(args: &RunArgs) -> Result<u8, String> {
    let mut stages = Stages { last: Instant::now(), on: args.timing };
    let config = args.machine.config()?;
    let kvm = Kvm::open().map_err(|e| e.to_string())?;
    let prepared =
        Prepared::new(&config, &HostSource::Hypervisor(&kvm)).map_err(|e| e.to_string())?;
    stages.done("planned");
    let control: Arc<OnceLock<Control>> = Arc::default();
    let escapes = control.clone();
    let backends = Backends {
        on_escape: Some(Arc::new(move |escape| {
            let Some(control) = escapes.get() else { return };
            match escape {
                Escape::Quit => control.send(Command::Stop),
                _ => {}
            }
        })),
    };
    let vmm = Vmm::new(prepared, &kvm, &backends, Box::new(say)).map_err(|e| e.to_string())?;
    // Set once, just now.
    let _ = control.set(vmm.control());
    stages.done("assembled");
    let ending = vmm.run();
    stages.done("ran");
    Ok(match ending {
        Ending::PoweredOff => SUCCESS,
        Ending::Stopped => STOPPED,
        Ending::GuestPanic => {
            eprintln!("nyx: the guest panicked; its last console lines say why");
            GUEST_PANIC
        }
        Ending::TripleFault { vcpu } => {
            eprintln!("nyx: the guest's CPU {vcpu} gave up (triple fault)");
            TRIPLE_FAULT
        }
        Ending::Broken(why) => {
            eprintln!("nyx: the machine cannot go on: {why}");
            BROKEN
        }
    })
}

fn say(notice: Notice) {
    match notice {
        Notice::Started { resets: 0 } => {}
        Notice::Started { resets } => eprintln!("nyx: reset {resets}\r"),
        Notice::Fault(fault) => eprintln!("nyx: {}: {}\r", fault.unit, fault.what),
    }
}
