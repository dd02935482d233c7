//! `monitor …`: what a debugger of machines needs and gdb has no word for.

use crate::breakpoints::BreakpointKind;
use crate::memory::Physical;
use crate::target::GuestTarget;
use nyx_hypervisor::Activity;
use std::fmt::Write as _;

const HELP: &str = "\
monitor commands:
  info                     the machine, its vCPUs and the breakpoints
  vcpu [N]                 the vCPU that these commands mean: the one that stopped last, or this
  msr read N [COUNT]       read its model-specific registers
  msr write N VALUE        write one
  translate ADDRESS        the guest-physical address behind a linear one
  physical on|off          gdb's memory commands take guest-physical addresses
  step-interrupts on|off   whether interrupts arrive during single steps (off)
  reset                    reset the machine; then say `maintenance flush register-cache`
  nmi                      inject a non-maskable interrupt into vCPU 0
  quit                     end the machine
numbers are decimal, or hexadecimal with 0x
";

/// Most registers of one `msr read`.
const MOST_MSRS: u32 = 256;

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn switch(text: &str) -> Option<bool> {
    match text {
        "on" | "1" => Some(true),
        "off" | "0" => Some(false),
        _ => None,
    }
}

/// Does what `line` says and returns what to print.
pub(crate) fn run(target: &mut GuestTarget, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    execute(target, &words).unwrap_or_else(|| format!("what is {line:?}?\n{HELP}"))
}

fn execute(target: &mut GuestTarget, words: &[&str]) -> Option<String> {
    Some(match words {
        [] | ["help"] => HELP.to_owned(),
        ["info", ..] => describe(target),
        ["vcpu"] => format!("vCPU {}\n", target.current),
        ["vcpu", n] => match usize::try_from(number(n)?) {
            Ok(n) if n < target.vcpus() => {
                target.current = n;
                String::new()
            }
            _ => format!("there are {} vCPUs\n", target.vcpus()),
        },
        ["msr", "read", index] => read_msrs(target, number(index)?.try_into().ok()?, 1),
        ["msr", "read", index, count] => {
            let count = number(count)?.try_into().ok()?;
            read_msrs(target, number(index)?.try_into().ok()?, count)
        }
        ["msr", "write", index, value] => {
            let (index, value) = (number(index)?.try_into().ok()?, number(value)?);
            match target.ask(target.current, move |vcpu| Ok(vcpu.set_msr(index, value))) {
                Ok(true) => format!("msr {index:#x} = {value:#x}\n"),
                Ok(false) => format!("the hypervisor refuses {value:#x} for msr {index:#x}\n"),
                Err(e) => format!("{e}\n"),
            }
        }
        ["translate", address] => {
            let address = number(address)?;
            match target.paging(target.current) {
                Ok(paging) => {
                    let memory = Physical(target.debugger.port().memory());
                    match paging.translate(&memory, address) {
                        Some(found) => format!("{address:#x} -> {:#x}\n", found.physical),
                        None => format!("{address:#x} is not mapped\n"),
                    }
                }
                Err(e) => format!("{e}\n"),
            }
        }
        ["physical", on] => {
            target.physical = switch(on)?;
            String::new()
        }
        ["step-interrupts", on] => {
            target.quiet_steps = !switch(on)?;
            String::new()
        }
        ["reset"] => {
            target.commands.reset();
            "the machine is being reset; say `maintenance flush register-cache`\n".to_owned()
        }
        ["nmi"] => {
            target.commands.nmi();
            "it arrives when the vCPU runs\n".to_owned()
        }
        ["quit"] => {
            target.commands.stop();
            "the machine ends\n".to_owned()
        }
        _ => return None,
    })
}

fn read_msrs(target: &GuestTarget, first: u32, count: u32) -> String {
    let indices: Vec<u32> = (0..count.min(MOST_MSRS))
        .filter_map(|n| first.checked_add(n))
        .collect();
    let asked = indices.clone();
    match target.ask(target.current, move |vcpu| Ok(vcpu.msrs(&asked))) {
        Err(e) => format!("{e}\n"),
        Ok(values) => {
            let mut text = String::new();
            for (index, value) in indices.into_iter().zip(values) {
                // Writing to a string cannot fail.
                let _ = match value {
                    Some(value) => writeln!(text, "msr {index:#x} = {value:#x}"),
                    None => writeln!(text, "msr {index:#x} cannot be read"),
                };
            }
            text
        }
    }
}

fn describe(target: &GuestTarget) -> String {
    let mut text = target.commands.describe();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if !target.int3 {
        text.push_str(
            "this host's KVM hands INT3 to the guest: the processor's four breakpoints stand in\n",
        );
    }
    for index in 0..target.vcpus() {
        let state = target.ask(index, |vcpu| Ok((vcpu.registers()?, vcpu.activity()?)));
        let _ = match state {
            Ok((_, Activity::Waiting)) => writeln!(text, "vCPU {index}: not started"),
            Ok((r, activity)) => writeln!(
                text,
                "vCPU {index}: rip {:#x} rsp {:#x} cr3 {:#x} ring {}{}",
                r.rip,
                r.rsp,
                r.cr3,
                r.ss.dpl,
                if activity == Activity::Halted {
                    " halted"
                } else {
                    ""
                }
            ),
            Err(e) => writeln!(text, "{e}"),
        };
    }
    for row in target.watch.lock().breakpoints.list() {
        let (kind, bytes) = match row.kind {
            BreakpointKind::Software => ("breakpoint", 0),
            BreakpointKind::Hardware => ("hardware breakpoint", 0),
            BreakpointKind::Write(n) => ("write watchpoint", n),
            BreakpointKind::Read(n) => ("read watchpoint", n),
            BreakpointKind::Access(n) => ("access watchpoint", n),
        };
        let _ = write!(text, "{kind} at {:#x}", row.address);
        if bytes != 0 {
            let _ = write!(text, ", {bytes} bytes");
        }
        let _ = writeln!(text, ": {} hits", row.hits);
    }
    text
}
