//! `nyx top`: what all machines do, live.

mod gather;
pub(crate) mod page;
mod screen;

use crate::complete;
use crate::exit::{Failure, NOT_FOUND, REFUSED};
use crate::output::{Align, Table, bytes, count, json, print, print_json};
use crate::session::Session;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use gather::{Gathered, Rates, Watched};
use serde_json::{Value, json};
use std::io::IsTerminal as _;
use std::time::Duration;

#[derive(Args)]
pub(crate) struct TopArgs {
    /// Only these machines; all by default
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    names: Vec<String>,
    /// Print one table and leave, for scripts
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("write a number of seconds from 0.1 to 3600".into()),
    }
}

pub(crate) fn top(args: &TopArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let names: Vec<String> = args
        .names
        .iter()
        .map(|name| Ok(session.find(name)?.found.record.name))
        .collect::<Result<_, Failure>>()?;
    let interval = Duration::from_secs_f64(args.interval);
    // On request the same as for scripts, and where there is no screen to draw on.
    if !args.once && !json() {
        if !(std::io::stdout().is_terminal() && std::io::stdin().is_terminal()) {
            return Err(Failure::new(
                REFUSED,
                "top draws on a terminal, and this is none; `nyx top --once` prints a table",
            ));
        }
        return screen::run(&session, &names, interval)
            .map_err(|e| Failure::new(REFUSED, format!("the terminal cannot be drawn on: {e}")));
    }
    let mut gathered = Gathered::default();
    gathered.look(&session, &names);
    if !gathered.machines.is_empty() {
        // A rate needs two looks.
        std::thread::sleep(interval);
        gathered.look(&session, &names);
    }
    if let Some(trouble) = gathered.trouble {
        return Err(Failure::new(REFUSED, trouble));
    }
    if !names.is_empty() && gathered.machines.is_empty() {
        return Err(Failure::new(NOT_FOUND, "the machine has ended meanwhile"));
    }
    if json() {
        return print_json(&gathered.machines.iter().map(as_json).collect::<Vec<_>>());
    }
    if gathered.machines.is_empty() {
        return print("No machines are running; start one with `nyx run`.\n");
    }
    print(table(&gathered.machines).render())
}

/// Column titles, of the table and of the screen.
const HEAD: [(&str, Align); 12] = [
    ("NAME", Align::Left),
    ("PHASE", Align::Left),
    ("CPU%", Align::Right),
    ("RAM", Align::Right),
    ("EXITS/s", Align::Right),
    ("PIO/s", Align::Right),
    ("MMIO/s", Align::Right),
    ("OTHER/s", Align::Right),
    ("DISK/s", Align::Right),
    ("DISK B/s", Align::Right),
    ("NET/s", Align::Right),
    ("NET B/s", Align::Right),
];

/// A machine's cells, in the order of [`HEAD`].
fn cells(watched: &Watched) -> [String; 12] {
    let phase = match &watched.machine {
        Ok(machine) => machine.phase.to_string(),
        Err(_) => "no answer".into(),
    };
    let rate = |get: &dyn Fn(&Rates) -> f64, show: &dyn Fn(f64) -> String| {
        watched
            .rates
            .as_ref()
            .map_or("–".into(), |rates| show(get(rates)))
    };
    let kind = |rates: &Rates, kind: &str| rates.exits_by_kind.get(kind).copied().unwrap_or(0.0);
    let size = |value: f64| bytes(value as u64);
    [
        watched.name.clone(),
        phase,
        rate(&|r| r.cpu_percent, &|v| format!("{v:.1}")),
        watched.resident.map_or("–".into(), bytes),
        rate(&|r| r.exits, &count),
        rate(&|r| kind(r, "pio"), &count),
        rate(&|r| kind(r, "mmio"), &count),
        rate(&|r| r.exits - kind(r, "pio") - kind(r, "mmio"), &count),
        rate(&|r| r.disk_ops, &count),
        rate(&|r| r.disk_bytes, &size),
        rate(&|r| r.net_packets, &count),
        rate(&|r| r.net_bytes, &size),
    ]
}

fn table(machines: &[Watched]) -> Table {
    let mut table = Table::new(&HEAD);
    for watched in machines {
        table.row(cells(watched));
    }
    table
}

fn as_json(watched: &Watched) -> Value {
    let mut value = json!({
        "name": watched.name, "id": watched.id, "pid": watched.pid, "resident_bytes": watched.resident,
    });
    match &watched.machine {
        Ok(machine) => value["phase"] = json!(machine.phase),
        Err(why) => value["why"] = json!(why),
    }
    if let Some(rates) = &watched.rates {
        value["cpu_percent"] = json!(rates.cpu_percent);
        value["exits_per_second"] = json!(rates.exits_by_kind);
        value["disk_operations_per_second"] = json!(rates.disk_ops);
        value["disk_bytes_per_second"] = json!(rates.disk_bytes);
        value["net_packets_per_second"] = json!(rates.net_packets);
        value["net_bytes_per_second"] = json!(rates.net_bytes);
    }
    value
}
