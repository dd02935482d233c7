//! Verbs that look at a machine: describe, inspect, health, operations, cancel, metrics, trace.

use crate::complete;
use crate::devices::device_table;
use crate::exit::{Failure, REFUSED, SUCCESS, note};
use crate::output::{
    Align, Style, Table, bytes, json, print, print_json, printable, span, time_of_day,
};
use crate::session::Session;
use crate::watch::state_name;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use nyx_api::{Machine, Operation, OperationState, Tracing, paths};
use serde_json::{Map, Value};
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct NameArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    pub(crate) name: String,
}

#[derive(Args)]
pub(crate) struct InspectArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// A part of its state: names with slashes between them, as the whole tree shows them
    #[arg(value_name = "PATH")]
    path: Option<String>,
    /// Only so many levels
    #[arg(long, value_name = "LEVELS")]
    depth: Option<u32>,
}

#[derive(Args)]
pub(crate) struct MetricsArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// The performance report instead: rates, latencies, bottlenecks and what to do about them
    #[arg(long, conflicts_with = "samples")]
    report: bool,
    /// The last so many samples instead, as JSON
    #[arg(long, value_name = "NUMBER", num_args = 0..=1, default_missing_value = "10")]
    samples: Option<u64>,
}

#[derive(Args)]
pub(crate) struct CancelArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// The operation's number, as `nyx operations` shows it
    #[arg(value_name = "ID", add = ArgValueCompleter::new(complete::operations))]
    id: u64,
}

#[derive(Args)]
pub(crate) struct TraceArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// Where to write it; `-` is standard output
    #[arg(
        short = 'O',
        long,
        value_name = "FILE",
        value_hint = clap::ValueHint::FilePath,
        required_unless_present_any = ["on", "off"],
    )]
    out: Option<PathBuf>,
    /// Keep spans from now on
    #[arg(long, conflicts_with_all = ["off", "out"])]
    on: bool,
    /// Keep no more spans; those that were kept can still be written
    #[arg(long, conflicts_with = "out")]
    off: bool,
}

pub(crate) fn describe(args: &NameArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let machine = session.call(named.client.machine())?;
    if json() {
        return print_json(&machine);
    }
    print(description(&machine))
}

fn description(machine: &Machine) -> String {
    let mut lines = vec![
        ("Name", machine.name.clone()),
        ("Id", machine.id.clone()),
        ("Phase", machine.phase.to_string()),
        ("vCPUs", machine.cpus.to_string()),
        ("Memory", bytes(machine.memory)),
        ("Started", machine.started.at.clone()),
        ("Uptime", span(machine.started.uptime_ms)),
        ("Guest time", span(machine.started.guest_ms)),
        ("Resets", machine.resets.to_string()),
        ("Process", machine.pid.to_string()),
        ("Version", machine.version.clone()),
    ];
    let optional = [
        ("Kernel", &machine.kernel),
        ("Command line", &machine.cmdline),
        ("Debugger", &machine.gdb),
    ];
    for (title, value) in optional {
        if let Some(value) = value {
            lines.push((title, value.clone()));
        }
    }
    let mut text = String::new();
    for (title, value) in lines {
        let title = Style::Bold.paint(&format!("{title:<14}"));
        text.push_str(&format!("{title}{}\n", printable(&value)));
    }
    let mut section = |title: &str, table: Option<Table>| {
        text.push_str(&format!("\n{}\n", Style::Bold.paint(title)));
        match table {
            None => text.push_str("  none\n"),
            Some(table) => {
                for line in table.render().lines() {
                    text.push_str(&format!("  {line}\n"));
                }
            }
        }
    };
    let devices = &machine.devices;
    section(
        "Devices",
        (!devices.is_empty()).then(|| device_table(devices)),
    );
    let mut consoles = Table::new(&[
        ("NAME", Align::Left),
        ("KIND", Align::Left),
        ("ATTACHED", Align::Right),
    ]);
    for console in &machine.consoles {
        let attached = console.attached.to_string();
        consoles.row([console.name.clone(), console.kind.clone(), attached]);
    }
    section(
        "Consoles",
        (!machine.consoles.is_empty()).then_some(consoles),
    );
    if !machine.operations.is_empty() {
        section(
            "Operations under way",
            Some(operation_table(&machine.operations)),
        );
    }
    text
}

pub(crate) fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let path = args.path.as_deref().unwrap_or("");
    let tree = session.call(named.client.inspect(path, args.depth))?;
    if json() {
        return print_json(&tree);
    }
    let depth = args.depth.and_then(|depth| usize::try_from(depth).ok());
    let mut text = String::new();
    branch(&tree, 0, depth, &mut text);
    print(text)
}

/// A JSON tree, two blanks per level.
pub(crate) fn outline(tree: &Value) -> String {
    let mut text = String::new();
    branch(tree, 0, None, &mut text);
    text
}

/// Deeper trees are cut: no machine has one.
const DEEPEST: usize = 64;

/// What is empty at level `cut` was left out on demand.
fn branch(tree: &Value, level: usize, cut: Option<usize>, text: &mut String) {
    let indent = "  ".repeat(level);
    let mut line = |name: &str, value: &Value| {
        let name = printable(name);
        match value {
            Value::Object(inner) if !inner.is_empty() => {}
            Value::Array(inner) if inner.iter().any(|v| v.is_object() || v.is_array()) => {}
            leaf => {
                let left_out =
                    cut == Some(level + 1) && leaf.as_object().is_some_and(Map::is_empty);
                let word = if left_out { "…".into() } else { word(leaf) };
                text.push_str(&format!("{indent}{}: {word}\n", Style::Cyan.paint(&name)));
                return;
            }
        }
        text.push_str(&format!("{indent}{}:\n", Style::Cyan.paint(&name)));
        if level < DEEPEST {
            branch(value, level + 1, cut, text);
        }
    };
    match tree {
        Value::Object(entries) => {
            for (name, value) in in_order(entries) {
                line(name, value);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                line(&index.to_string(), value);
            }
        }
        leaf => text.push_str(&format!("{indent}{}\n", word(leaf))),
    }
}

/// By name; names that are all numbers, by number.
fn in_order(entries: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = entries.iter().collect();
    entries.sort_by_key(|(name, _)| (name.parse::<u64>().unwrap_or(u64::MAX), (*name).clone()));
    entries
}

/// A value as one word or several.
pub(crate) fn word(leaf: &Value) -> String {
    match leaf {
        Value::Null => "–".into(),
        Value::String(text) => printable(text),
        Value::Array(items) if items.is_empty() => "none".into(),
        Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(", "),
        Value::Object(_) => "none".into(),
        other => other.to_string(),
    }
}

pub(crate) fn health(args: &NameArgs) -> Result<u8, Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let health: Value = session.call(named.client.get(paths::HEALTH))?;
    let status = health["status"].as_str().unwrap_or("unknown").to_string();
    if json() {
        print_json(&health)?;
    } else {
        print(health_text(&status, &health))?;
    }
    // So that a probe need not read.
    Ok(match status.as_str() {
        "critical" | "unhealthy" => REFUSED,
        _ => SUCCESS,
    })
}

fn status_style(status: &str) -> Option<Style> {
    match status {
        "healthy" => Some(Style::Green),
        "degraded" => Some(Style::Yellow),
        "critical" | "unhealthy" => Some(Style::Red),
        _ => None,
    }
}

fn health_text(status: &str, health: &Value) -> String {
    let painted = status_style(status).map_or(status.into(), |style| style.paint(status));
    let mut text = format!("{painted}\n");
    let mut table = Table::new(&[
        ("CHECK", Align::Left),
        ("STATUS", Align::Left),
        ("REASON", Align::Left),
    ]);
    let word = |value: &Value| value.as_str().map_or(word(value), Into::into);
    for check in health["checks"].as_array().into_iter().flatten() {
        let status = word(&check["status"]);
        let style = status_style(&status);
        table.styled([
            (word(&check["name"]), None),
            (status, style),
            (word(&check["reason"]), None),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render());
    for bottleneck in health["bottlenecks"].as_array().into_iter().flatten() {
        text.push_str(&format!("\nBottleneck:\n{}", outline(bottleneck)));
    }
    for error in health["errors"].as_array().into_iter().flatten() {
        text.push_str(&format!("\nError: {}\n", word(error)));
    }
    text
}

pub(crate) fn operations(args: &NameArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let operations = session.call(named.client.operations())?;
    if json() {
        return print_json(&operations);
    }
    if operations.is_empty() {
        return print(format!("Nothing has been asked of {} yet.\n", named.name()));
    }
    print(operation_table(&operations).render())
}

fn operation_table(operations: &[Operation]) -> Table {
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("KIND", Align::Left),
        ("TARGET", Align::Left),
        ("STATE", Align::Left),
        ("ASKED", Align::Left),
        ("PROGRESS", Align::Left),
    ]);
    for operation in operations {
        let style = match operation.state {
            OperationState::Done => Style::Green,
            OperationState::Failed => Style::Red,
            _ => Style::Yellow,
        };
        let progress = match (&operation.problem, operation.state.is_final()) {
            (Some(problem), _) => problem.to_string(),
            (None, true) => String::new(),
            (None, false) => operation.progress.what.clone(),
        };
        table.styled([
            (operation.id.to_string(), None),
            (operation.kind.to_string(), None),
            (operation.target.clone().unwrap_or_default(), None),
            (state_name(operation.state).into(), Some(style)),
            (time_of_day(&operation.asked).into(), None),
            (progress, None),
        ]);
    }
    table
}

pub(crate) fn cancel(args: &CancelArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let operation = session.call(named.client.cancel(args.id))?;
    if json() {
        return print_json(&operation);
    }
    let (kind, state) = (operation.kind, state_name(operation.state));
    let what = match operation.state {
        OperationState::Waiting | OperationState::Running => "is being cancelled".into(),
        OperationState::Cancelled => "was cancelled".to_string(),
        OperationState::Done | OperationState::Failed => format!("had ended already: {state}"),
    };
    print(format!(
        "{}: {kind} (operation {}) {what}\n",
        named.name(),
        operation.id
    ))
}

pub(crate) fn metrics(args: &MetricsArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    if args.report {
        let report = session.call(named.client.report())?;
        return if json() {
            print_json(&report)
        } else {
            print(outline(&report))
        };
    }
    if args.samples.is_some() {
        return print_json(&session.call(named.client.samples(args.samples))?);
    }
    let page = session.call(named.client.metrics())?;
    if json() {
        return print_json(&crate::top::page::samples(&page));
    }
    print(page)
}

pub(crate) fn trace(args: &TraceArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let Some(out) = &args.out else {
        let wanted = Tracing { enabled: args.on };
        let now: Tracing = session.call(named.client.put(paths::TRACE, &wanted))?;
        if json() {
            return print_json(&now);
        }
        note(match now.enabled {
            true => "spans are kept from now on",
            false => "no more spans are kept",
        });
        return Ok(());
    };
    let trace = session.call(named.client.trace())?;
    if out.as_os_str() == "-" {
        return print(trace);
    }
    std::fs::write(out, &trace)
        .map_err(|e| Failure::new(REFUSED, format!("{} cannot be written: {e}", out.display())))?;
    note(&format!(
        "{} written; open it at ui.perfetto.dev",
        out.display()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_outlined_with_numbers_in_order() {
        let tree = serde_json::json!({
            "vcpus": { "10": { "exits": 3 }, "9": { "exits": 1, "note": "a\u{1b}b" } },
            "list": [1, 2], "no": [], "deep": [{ "x": null }], "empty": {}, "on": true,
        });
        assert_eq!(
            outline(&tree),
            "deep:\n  0:\n    x: –\nempty: none\nlist: 1, 2\nno: none\non: true\nvcpus:\n  9:\n    exits: 1\n    note: a\\u{1b}b\n  10:\n    exits: 3\n"
        );
        assert_eq!(outline(&serde_json::json!(7)), "7\n");
    }
}
