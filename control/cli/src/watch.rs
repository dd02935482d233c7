//! `nyx events`, `nyx logs` and `nyx log-filter`.

use crate::complete;
use crate::exit::{Failure, INTERRUPTED, note};
use crate::output::{Style, json, print, print_json, print_json_line, printable, time_of_day};
use crate::session::{Named, Session};
use crate::steer::interrupts;
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use nyx_api::{Event, Happening, LogEntry, LogFilter, OperationState};
use nyx_client::{CallError, LogQuery, Messages, exists};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[derive(Args)]
pub(crate) struct EventsArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// Only those after this number
    #[arg(long, value_name = "NUMBER")]
    since: Option<u64>,
    /// Stay, and print events as they happen
    #[arg(short, long)]
    follow: bool,
}

#[derive(Args)]
pub(crate) struct LogsArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// Stay, and print entries as they come
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many
    #[arg(short = 'n', long = "lines", value_name = "NUMBER")]
    last: Option<u64>,
    /// Only entries of this level and graver ones
    #[arg(long, value_name = "LEVEL")]
    level: Option<Level>,
    /// Only entries of this component: vm, vcpu, device, api, boot, …
    #[arg(long, value_name = "COMPONENT")]
    component: Option<String>,
}

#[derive(Args)]
pub(crate) struct LogFilterArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// What to record from now on, as COMPONENT=LEVEL,…, like `*=info,device=debug`; without it the
    /// present filter is printed
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
}

impl Level {
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_string())
            .unwrap_or_default()
    }
}

/// How often a stream is left alone to hear Ctrl-C.
const LOOK_UP: Duration = Duration::from_millis(200);

/// Prints a stream to its end. A machine that ends while it is watched has not failed.
fn pour<T: DeserializeOwned + Serialize>(
    session: &Session,
    named: &Named,
    mut messages: Messages<T>,
    follow: bool,
    line: impl Fn(&T) -> String,
) -> Result<(), Failure> {
    let presses = interrupts()?;
    loop {
        if presses.load(Ordering::Acquire) > 0 {
            return Err(Failure::silent(INTERRUPTED));
        }
        match session.blocking.next(&mut messages, LOOK_UP) {
            Ok(None) => {}
            Ok(Some(Some(item))) if json() => print_json_line(&item)?,
            Ok(Some(Some(item))) => print(line(&item) + "\n")?,
            Ok(Some(None)) => break,
            Err(e @ CallError::Closed(_)) => {
                // It closes its streams before its process ends, or is killed.
                std::thread::sleep(LOOK_UP);
                if exists(named.found.record.pid) {
                    return Err(e.into());
                }
                break;
            }
            Err(e) => return Err(e.into()),
        }
    }
    if follow {
        note(&format!("machine `{}` has ended", named.name()));
    }
    Ok(())
}

pub(crate) fn events(args: &EventsArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let events = session.call(named.client.events(args.since, args.follow))?;
    pour(&session, &named, events, args.follow, event_line)
}

fn event_line(event: &Event) -> String {
    let (what, style, more) = told(&event.what);
    format!(
        "{}  {:>4}  {}  {}",
        Style::Dim.paint(time_of_day(&event.time)),
        event.sequence,
        style.map_or_else(
            || format!("{what:<14}"),
            |style| style.paint(&format!("{what:<14}"))
        ),
        printable(&more)
    )
    .trim_end()
    .to_string()
}

fn told(what: &Happening) -> (&'static str, Option<Style>, String) {
    match what {
        Happening::Phase { phase } => (
            "phase",
            Some(crate::ps::phase_style(*phase)),
            phase.to_string(),
        ),
        Happening::Reset { resets, by } => ("reset", None, format!("number {resets}, by the {by}")),
        Happening::Operation { operation } => {
            let target = operation.target.as_ref();
            let target = target
                .map(|target| format!(" {target}"))
                .unwrap_or_default();
            let state = state_name(operation.state);
            let mut more = format!("{} {}{target}: {state}", operation.id, operation.kind);
            if let Some(problem) = &operation.problem {
                more.push_str(&format!(": {problem}"));
            } else if !operation.state.is_final() && !operation.progress.what.is_empty() {
                more.push_str(&format!(", {}", operation.progress.what));
            }
            ("operation", None, more)
        }
        Happening::Fault { unit, what } => ("fault", Some(Style::Red), format!("{unit}: {what}")),
        Happening::FaultsMuted => (
            "faults-muted",
            Some(Style::Red),
            "further faults are only counted".into(),
        ),
        Happening::DeviceAdded { name, kind } => ("device-added", None, format!("{name} ({kind})")),
        Happening::DeviceRemoved { name } => ("device-removed", None, name.clone()),
        Happening::Stage { stage, after_ms } => {
            ("stage", None, format!("{stage} after {after_ms} ms"))
        }
        Happening::Ended { ending, detail } => {
            let detail = detail.as_ref();
            let detail = detail
                .map(|detail| format!(": {detail}"))
                .unwrap_or_default();
            ("ended", Some(Style::Yellow), format!("{ending}{detail}"))
        }
    }
}

/// The state of an operation in a word.
pub(crate) fn state_name(state: OperationState) -> &'static str {
    match state {
        OperationState::Waiting => "waiting",
        OperationState::Running => "running",
        OperationState::Done => "done",
        OperationState::Failed => "failed",
        OperationState::Cancelled => "cancelled",
    }
}

pub(crate) fn logs(args: &LogsArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let which = LogQuery {
        last: args.last,
        level: args.level.map(Level::name),
        component: args.component.clone(),
    };
    if args.follow {
        let entries = session.call(named.client.follow_logs(&which))?;
        return pour(&session, &named, entries, true, log_line);
    }
    let entries = session.call(named.client.logs(&which))?;
    if json() {
        return print_json(&entries);
    }
    if entries.is_empty() {
        return print(format!(
            "{} has recorded nothing of that kind; `nyx log-filter {0}` shows what is recorded.\n",
            named.name()
        ));
    }
    let lines = entries.iter().map(|entry| log_line(entry) + "\n");
    print(lines.collect::<String>())
}

fn log_line(entry: &LogEntry) -> String {
    let level = format!("{:<5}", entry.level.to_uppercase());
    let level = match entry.level.as_str() {
        "error" | "fatal" => Style::Red.paint(&level),
        "warn" => Style::Yellow.paint(&level),
        "info" => Style::Green.paint(&level),
        _ => Style::Dim.paint(&level),
    };
    let mut line = format!(
        "{}  {level}  {:<10}  {}",
        Style::Dim.paint(time_of_day(&entry.time)),
        printable(&entry.component),
        printable(&entry.message)
    );
    for (name, value) in &entry.fields {
        let value = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let field = format!(" {}={}", printable(name), printable(&value));
        line.push_str(&Style::Cyan.paint(&field));
    }
    line
}

pub(crate) fn log_filter(args: &LogFilterArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let now = match &args.filter {
        None => session.call(named.client.log_filter())?,
        Some(filter) => {
            let wanted = LogFilter {
                filter: filter.clone(),
            };
            session.call(named.client.set_log_filter(&wanted))?
        }
    };
    if json() {
        return print_json(&now);
    }
    print(format!("{}\n", now.filter))
}
