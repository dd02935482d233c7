//! Verbs that explain: why a boot failed, what a debugger sees, whether an audit trail is whole.

use crate::complete;
use crate::exit::{BROKEN, Failure, NOT_FOUND, REFUSED, SUCCESS, note, tell};
use crate::output::{json, print, print_json, printable};
use crate::session::{Named, Session};
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use nyx_api::{GdbAddress, GdbRequest, VcpuState, paths, place};
use nyx_client::{FindError, MemoryQuery};
use nyx_diagnose::{Bundle, Store, render};
use nyx_symbols::{Cpu, GuestMemory, Symbols};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args)]
pub(crate) struct WhyArgs {
    /// The machine: one that runs, or the name of one that has ended
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
}

#[derive(Args)]
pub(crate) struct DebugArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// Where to listen for the debugger: PORT, HOST:PORT on this host, or unix:PATH; a socket in the
    /// machine's runtime folder by default
    #[arg(long, value_name = "ADDRESS")]
    gdb: Option<String>,
    /// Start gdb, with the guest kernel's symbols if a vmlinux is given
    #[arg(long, value_name = "VMLINUX", num_args = 0..=1, default_missing_value = "")]
    run: Option<PathBuf>,
    /// Close the door for debuggers again
    #[arg(long, conflicts_with_all = ["gdb", "run"])]
    close: bool,
}

#[derive(Args)]
pub(crate) struct StackArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// The guest kernel's vmlinux or System.map; by default the guest's own table of symbols is read
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    symbols: Option<PathBuf>,
    /// Only this vCPU
    #[arg(long, value_name = "NUMBER")]
    vcpu: Option<u32>,
}

#[derive(Subcommand)]
pub(crate) enum AuditVerb {
    /// Find out whether an audit trail was changed, cut or reordered; exit code 1 if so
    Verify(VerifyArgs),
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// The audit trail
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// The key it is signed with, public or private; FILE.key.pub by default
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    key: Option<PathBuf>,
}

pub(crate) fn why(args: &WhyArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let missing = match session.folder.find(&args.name) {
        Ok(found) => {
            let client = nyx_client::Client::new(&found.record.socket);
            let bundle: Bundle = session.call(client.get(paths::WHY))?;
            return explain(&bundle, None);
        }
        Err(e @ FindError::Ambiguous { .. }) => return Err(e.into()),
        Err(e) => e,
    };
    let uid = rustix::process::geteuid().as_raw();
    let Some(root) = place::state_root(uid) else {
        return Err(missing.into());
    };
    let name = match &missing {
        FindError::Dead { name, .. } => name,
        _ => &args.name,
    };
    match Store::new(root).latest(name) {
        Ok(Some((folder, bundle))) => explain(&bundle, Some(&folder)),
        Ok(None) => Err(match missing {
            FindError::Dead { name, pid } => Failure::new(
                NOT_FOUND,
                format!(
                    "machine `{name}` left no report: its process {pid} was killed from outside, or the host was \
                     restarted"
                ),
            ),
            _ => Failure::new(
                NOT_FOUND,
                format!(
                    "no report is kept of a machine called {name:?}, and none runs; `nyx ps` lists those that do"
                ),
            ),
        }),
        Err(e) => Err(Failure::new(REFUSED, e.to_string())),
    }
}

fn explain(bundle: &Bundle, folder: Option<&Path>) -> Result<(), Failure> {
    if json() {
        return print_json(&bundle.summary(folder));
    }
    print(render(bundle, folder))
}

pub(crate) fn debug(args: &DebugArgs) -> Result<u8, Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let name = named.name();
    if args.close {
        session.call(named.client.delete(paths::GDB))?;
        print(format!("{name}: no debugger can connect any more\n"))?;
        return Ok(SUCCESS);
    }
    let request = GdbRequest {
        listen: args.gdb.clone(),
    };
    let put = named.client.put(paths::GDB, &request);
    let GdbAddress { address } = session.call(put)?;
    let Some(symbols) = &args.run else {
        if json() {
            print_json(&json!({ "machine": name, "address": address }))?;
        } else {
            print(format!(
                "{name}: gdb may connect; in gdb: target remote {address}\n"
            ))?;
        }
        return Ok(SUCCESS);
    };
    let mut gdb = Command::new("gdb");
    gdb.arg("-ex").arg(format!("target remote {address}"));
    if !symbols.as_os_str().is_empty() {
        gdb.arg(symbols);
    }
    let status = gdb.status().map_err(|e| {
        Failure::new(
            REFUSED,
            format!(
                "gdb cannot be started: {e}; install it, or connect another debugger to {address}"
            ),
        )
    })?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(BROKEN))
}

/// How much of each stack is asked for: more than a kernel stack has.
const STACK: u64 = 16 << 10;

pub(crate) fn stack(args: &StackArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let states = session.call(named.client.vcpus(STACK))?;
    let cpus: Vec<Cpu> = states.iter().map(cpu).collect();
    if let Some(wanted) = args.vcpu
        && cpus.iter().all(|cpu| cpu.index != wanted)
    {
        let last = cpus.len().saturating_sub(1);
        return Err(Failure::new(
            NOT_FOUND,
            format!(
                "machine `{}` has no vCPU {wanted}; it has 0 to {last}",
                named.name()
            ),
        ));
    }
    let mut memory = Remote::new(&session, &named);
    let symbols = match &args.symbols {
        Some(path) => {
            let symbols = Symbols::open(path).map_err(|e| Failure::new(REFUSED, e.to_string()))?;
            Some(aligned(
                symbols,
                &mut memory,
                &cpus,
                "these symbols do not fit the guest's kernel",
            ))
        }
        None => match Symbols::from_guest(&mut memory, &cpus) {
            Ok(symbols) => Some(aligned(
                symbols,
                &mut memory,
                &cpus,
                "the kernel's place is a guess",
            )),
            Err(e) => {
                note(&format!(
                    "no symbols: {e}; --symbols names a vmlinux or System.map"
                ));
                None
            }
        },
    };
    let symbols = symbols.unwrap_or_default();
    let mut told = Vec::new();
    for (cpu, state) in cpus.iter().zip(&states) {
        if args.vcpu.is_some_and(|wanted| wanted != cpu.index) {
            continue;
        }
        let frames = symbols.stack(&mut memory, cpu);
        let activity = state.registers["activity"].as_str().unwrap_or("running");
        if json() {
            let frames = frames
                .iter()
                .map(|frame| json!({ "address": frame.address, "text": frame.to_string() }));
            told.push(json!({
                "vcpu": cpu.index, "activity": activity, "cpl": cpu.cpl,
                "frames": frames.collect::<Vec<_>>(),
            }));
            continue;
        }
        let place = match (activity, cpu.cpl) {
            ("waiting", _) => "not started by the guest",
            (_, 0) => "in the kernel",
            _ => "in a program",
        };
        let mut text = format!("vCPU {}: {}, {place}\n", cpu.index, printable(activity));
        for (number, frame) in frames.iter().enumerate() {
            text.push_str(&format!(
                "  #{number:<2} {}\n",
                printable(&frame.to_string())
            ));
        }
        print(text)?;
    }
    if json() {
        return print_json(&told);
    }
    Ok(())
}

fn aligned(
    mut symbols: Symbols,
    memory: &mut Remote<'_>,
    cpus: &[Cpu],
    otherwise: &str,
) -> Symbols {
    if symbols.align(memory, cpus).is_none() {
        note(otherwise);
    }
    symbols
}

/// What stack walks need of a vCPU.
fn cpu(state: &VcpuState) -> Cpu {
    let register = |name: &str| state.registers[name].as_u64().unwrap_or(0);
    let digits = state.stack.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    Cpu {
        index: state.index,
        cpl: u8::try_from(register("cpl")).unwrap_or(3),
        rip: register("rip"),
        rsp: register("rsp"),
        rbp: register("rbp"),
        r10: register("r10"),
        r13: register("r13"),
        lstar: register("lstar"),
        idt_base: register("idt_base"),
        stack: digits.map_while(byte).collect(),
    }
}

/// Guest memory over the control socket, in pieces that are kept.
struct Remote<'s> {
    session: &'s Session,
    named: &'s Named,
    pieces: BTreeMap<(u32, u64), Option<Vec<u8>>>,
}

/// Pieces are asked for in this size first, then page by page: a hole refuses the whole piece.
const PIECE: u64 = 64 << 10;
const PAGE: u64 = 4 << 10;
/// Most pieces kept; symbol tables have a few hundred.
const MOST_PIECES: usize = 4096;

impl<'s> Remote<'s> {
    fn new(session: &'s Session, named: &'s Named) -> Self {
        Self {
            session,
            named,
            pieces: BTreeMap::new(),
        }
    }

    /// The piece of `size` bytes at `start`.
    fn piece(&mut self, vcpu: u32, start: u64, size: u64) -> Option<&[u8]> {
        // Two sizes at one address are told apart by the lowest bit, which is free.
        let key = (vcpu, start | u64::from(size == PAGE));
        if !self.pieces.contains_key(&key) {
            if self.pieces.len() >= MOST_PIECES {
                self.pieces.clear();
            }
            let which = MemoryQuery {
                address: start,
                length: size,
                vcpu: Some(vcpu),
            };
            let read = self.session.blocking.on(self.named.client.memory(which));
            let whole = read.ok().filter(|bytes| bytes.len() as u64 == size);
            self.pieces.insert(key, whole);
        }
        self.pieces.get(&key)?.as_deref()
    }
}

impl GuestMemory for Remote<'_> {
    fn read(&mut self, vcpu: u32, address: u64, bytes: &mut [u8]) -> bool {
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let copied = [PIECE, PAGE].into_iter().find_map(|size| {
                let start = at & !(size - 1);
                let offset = usize::try_from(at - start).ok()?;
                let from = self.piece(vcpu, start, size)?.get(offset..)?;
                let n = from.len().min(rest.len());
                rest.get_mut(..n)?.copy_from_slice(from.get(..n)?);
                Some(n)
            });
            let Some(n @ 1..) = copied else {
                return false;
            };
            let Some(next) = at.checked_add(n as u64) else {
                return n == rest.len();
            };
            at = next;
            rest = rest.split_at_mut(n).1;
        }
        true
    }
}

pub(crate) fn audit(verb: &AuditVerb) -> Result<(), Failure> {
    let AuditVerb::Verify(args) = verb;
    let key = args.key.clone().unwrap_or_else(|| {
        let mut key = args.file.clone().into_os_string();
        key.push(".key.pub");
        key.into()
    });
    let report = nyx_journal::audit::verify_file(&args.file, &key).map_err(|e| {
        let mend = if args.key.is_none() {
            "; --key names another key"
        } else {
            ""
        };
        Failure::new(
            REFUSED,
            format!(
                "{} cannot be verified with {}: {e}{mend}",
                args.file.display(),
                key.display()
            ),
        )
    })?;
    let intact = report.is_intact();
    if json() {
        print_json(&json!({
            "intact": intact, "records": report.records, "sealed": report.sealed, "lost": report.lost,
            "findings": report.findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }))?;
    } else if intact {
        print(format!(
            "{}: intact, {} records{}\n",
            args.file.display(),
            report.records,
            if report.sealed {
                ", sealed"
            } else {
                ", still being written or not closed in order"
            }
        ))?;
    } else {
        for finding in &report.findings {
            tell!("nyx: {}: {finding}", args.file.display());
        }
    }
    if intact {
        return Ok(());
    }
    Err(Failure::new(
        REFUSED,
        format!("{}: the audit trail is not whole", args.file.display()),
    ))
}
