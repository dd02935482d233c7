//! Verbs that change a machine: each is an operation, which is begun, waited for and can be cancelled.

use crate::complete;
use crate::exit::{CANCELLED, Failure, INTERRUPTED, REFUSED, tell};
use crate::output::{json, print, print_json};
use crate::session::{Named, Session};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use nyx_api::{Operation, OperationKind, OperationState, Progress, StopRequest};
use nyx_client::{CallError, Client, Patience, exists};
use nyx_spec::{DiskConfig, NetConfig};
use serde_json::{Value, json};
use signal_hook::consts::SIGINT;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[derive(Args)]
pub(crate) struct SteerArgs {
    /// Machines, by name, id or the beginning of either
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(complete::machines))]
    names: Vec<String>,
    /// Do not wait until it is done: print the operation's number
    #[arg(long)]
    no_wait: bool,
}

#[derive(Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    machines: SteerArgs,
    /// How long the guest has to switch itself off before the plug is pulled; 0 pulls it at once
    #[arg(long, value_name = "SECONDS", default_value_t = StopRequest::default().timeout,
          value_parser = clap::value_parser!(u32).range(0..=86400))]
    timeout: u32,
}

/// What is asked of a machine.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// What needs no more words.
    Plain(OperationKind),
    Stop(StopRequest),
    AddDisk(Box<DiskConfig>),
    AddNet(Box<NetConfig>),
    RemoveDisk {
        name: String,
        force: bool,
    },
    RemoveNet {
        name: String,
        force: bool,
    },
}

pub(crate) fn steer(kind: OperationKind, args: &SteerArgs) -> Result<(), Failure> {
    each(&Request::Plain(kind), args)
}

pub(crate) fn stop(args: &StopArgs) -> Result<(), Failure> {
    let request = StopRequest {
        timeout: args.timeout,
    };
    each(&Request::Stop(request), &args.machines)
}

fn each(request: &Request, args: &SteerArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let mut failures = Vec::new();
    let mut machines: Vec<Named> = Vec::new();
    for name in &args.names {
        match session.find(name) {
            // Two prefixes of one name, or a name given twice.
            Ok(named)
                if machines
                    .iter()
                    .any(|m| m.found.record == named.found.record) => {}
            Ok(named) => machines.push(named),
            Err(failure) => failures.push(failure),
        }
    }
    let several = args.names.len() > 1;
    let mut done = Vec::new();
    for (name, result) in carry_out(&session, machines, request, args.no_wait)? {
        match result {
            Ok(operation) if json() => {
                done.push(json!({ "machine": name, "operation": operation }))
            }
            Ok(operation) => print(format!("{name}: {}\n", outcome(&operation)))?,
            Err(failure) if several => failures.push(failure.of(&name)),
            Err(failure) => failures.push(failure),
        }
    }
    if json() {
        print_json(&Value::Array(done))?;
    }
    // All are told; the last one's code counts, and is told by who called.
    let last = failures.pop();
    for failure in failures {
        failure.tell();
    }
    last.map_or(Ok(()), Err)
}

/// One request to one machine.
pub(crate) fn one(session: &Session, named: Named, request: &Request) -> Result<(), Failure> {
    for (name, result) in carry_out(session, vec![named], request, false)? {
        let operation = result?;
        if json() {
            print_json(&json!({ "machine": name, "operation": operation }))?;
        } else {
            print(format!("{name}: {}\n", outcome(&operation)))?;
        }
    }
    Ok(())
}

/// What became of `operation`, in words.
fn outcome(operation: &Operation) -> String {
    let target = operation.target.as_deref().unwrap_or("");
    if !operation.state.is_final() {
        return format!("{} is operation {}", operation.kind, operation.id);
    }
    let what = match operation.kind {
        OperationKind::Pause => "paused",
        OperationKind::Resume => "resumed",
        OperationKind::PowerButton => "power button pressed",
        OperationKind::Reset => "reset",
        OperationKind::Stop => "stopped",
        OperationKind::Kill => "killed",
        OperationKind::Nmi => "NMI injected",
        OperationKind::AddDisk => return format!("disk {target} added").replace("  ", " "),
        OperationKind::RemoveDisk => return format!("disk {target} removed").replace("  ", " "),
        OperationKind::AddNet => return format!("network {target} added").replace("  ", " "),
        OperationKind::RemoveNet => return format!("network {target} removed").replace("  ", " "),
    };
    what.into()
}

type Results = Vec<(String, Result<Operation, Failure>)>;

fn carry_out(
    session: &Session,
    machines: Vec<Named>,
    request: &Request,
    no_wait: bool,
) -> Result<Results, Failure> {
    let interrupts = if no_wait {
        Arc::default()
    } else {
        interrupts()?
    };
    // Hides itself where standard error is no terminal.
    let bars = MultiProgress::new();
    session.blocking.on(async {
        let tasks: Vec<_> = machines
            .into_iter()
            .map(|named| {
                let bar = Bar::new(&bars, named.name(), &interrupts);
                let name = named.name().to_string();
                let request = request.clone();
                let task = tokio::spawn(async move {
                    let begun = request.begin(&named.client).await?;
                    if no_wait {
                        return Ok(begun);
                    }
                    finish(&named, begun, bar).await
                });
                (name, task)
            })
            .collect();
        let mut results = Results::new();
        for (name, task) in tasks {
            let result = task.await;
            let broken = |e: tokio::task::JoinError| Err(Failure::new(REFUSED, e.to_string()));
            results.push((name, result.unwrap_or_else(broken)));
        }
        Ok(results)
    })
}

impl Request {
    async fn begin(&self, client: &Client) -> Result<Operation, CallError> {
        match self {
            Self::Plain(OperationKind::Kill) => match client.ask(OperationKind::Kill).await {
                // It may be dead before it has answered.
                Err(CallError::Closed(_)) => Ok(killed()),
                answer => answer,
            },
            Self::Plain(kind) => client.ask(*kind).await,
            Self::Stop(request) => client.stop(request).await,
            Self::AddDisk(disk) => client.add_disk(disk).await,
            Self::AddNet(net) => client.add_net(net).await,
            Self::RemoveDisk { name, force } => client.remove_disk(name, *force).await,
            Self::RemoveNet { name, force } => client.remove_net(name, *force).await,
        }
    }
}

fn killed() -> Operation {
    Operation {
        id: 0,
        kind: OperationKind::Kill,
        target: None,
        state: OperationState::Done,
        progress: Progress::default(),
        cancellable: false,
        asked: String::new(),
        ended: None,
        problem: None,
    }
}

/// How long a machine's process may take to end once it was stopped.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// Waits for the end of an operation, and of the machine if that was asked.
async fn finish(named: &Named, begun: Operation, mut bar: Bar) -> Result<Operation, Failure> {
    let kind = begun.kind;
    let ended = named
        .client
        .wait(begun, |operation| bar.look(operation))
        .await;
    bar.clear();
    let operation = ended?;
    match operation.state {
        OperationState::Done => {}
        OperationState::Failed => {
            return Err(match operation.problem {
                Some(problem) => Failure::from(problem),
                None => Failure::new(
                    REFUSED,
                    format!("{kind} failed, and the machine does not say why"),
                ),
            });
        }
        OperationState::Cancelled => {
            return Err(Failure::new(CANCELLED, format!("{kind} was cancelled")));
        }
        OperationState::Waiting | OperationState::Running => {
            let name = named.name();
            return Err(Failure::new(
                INTERRUPTED,
                format!(
                    "{kind} goes on as operation {}; `nyx operations {name}` shows it",
                    operation.id
                ),
            ));
        }
    }
    if matches!(kind, OperationKind::Stop | OperationKind::Kill) {
        // Its name, disks and ports are free when the process has ended.
        let began = Instant::now();
        while exists(named.found.record.pid) && began.elapsed() < LAST_WRITES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(operation)
}

/// Counts presses of Ctrl-C from now on, instead of ending.
pub(crate) fn interrupts() -> Result<Arc<AtomicUsize>, Failure> {
    let fail = |e| Failure::new(REFUSED, format!("cannot watch for signals: {e}"));
    let count = Arc::new(AtomicUsize::new(0));
    let mut signals = signal_hook::iterator::Signals::new([SIGINT]).map_err(fail)?;
    let counter = count.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                counter.fetch_add(1, Ordering::AcqRel);
            }
        })
        .map_err(fail)?;
    Ok(count)
}

/// An operation that takes no longer than this shows no bar.
const BRIEF: Duration = Duration::from_millis(250);

/// Shows how far an operation is, and hears Ctrl-C.
struct Bar {
    bars: MultiProgress,
    machine: String,
    began: Instant,
    bar: Option<ProgressBar>,
    interrupts: Arc<AtomicUsize>,
    heard: usize,
}

impl Bar {
    fn new(bars: &MultiProgress, machine: &str, interrupts: &Arc<AtomicUsize>) -> Self {
        Self {
            bars: bars.clone(),
            machine: machine.into(),
            began: Instant::now(),
            bar: None,
            interrupts: interrupts.clone(),
            heard: 0,
        }
    }

    fn look(&mut self, operation: &Operation) -> Patience {
        let presses = self.interrupts.load(Ordering::Acquire);
        if presses > self.heard {
            let first = self.heard == 0;
            self.heard = presses;
            if !first || presses > 1 {
                return Patience::Leave;
            }
            let (id, kind) = (operation.id, operation.kind);
            if operation.cancellable {
                self.say(&format!(
                    "cancelling {kind} (operation {id}); Ctrl-C again stops waiting"
                ));
                return Patience::Cancel;
            }
            self.say(&format!(
                "{kind} cannot be cancelled now; Ctrl-C again stops waiting"
            ));
        }
        if self.began.elapsed() >= BRIEF {
            self.show(operation);
        }
        Patience::Wait
    }

    fn say(&self, what: &str) {
        self.bars.suspend(|| tell!("nyx: {}: {what}", self.machine));
    }

    fn show(&mut self, operation: &Operation) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = self.bars.add(ProgressBar::new(0));
            bar.set_prefix(format!("{}: {}", self.machine, operation.kind));
            bar
        });
        let Progress { done, total, what } = &operation.progress;
        let style = if *total == 0 {
            "{prefix} {spinner} {elapsed} {wide_msg}"
        } else {
            "{prefix} [{bar:30}] {pos}/{len} {elapsed} {wide_msg}"
        };
        // The templates above are right, a test says so.
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_length(*total);
        bar.set_position(*done);
        bar.set_message(crate::output::printable(what));
        bar.tick();
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
