//! `nyx ps`.

use crate::exit::{Failure, note};
use crate::output::{Align, Style, Table, bytes, json, print, print_json, span};
use crate::session::Session;
use clap::Args;
use nyx_api::{Machine, Phase};
use nyx_client::{Client, Found, State};
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Args)]
pub(crate) struct PsArgs {
    /// Machines whose process has ended without tidying up, too
    #[arg(short, long)]
    all: bool,
}

/// How long one machine may keep the list waiting.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn ps(args: &PsArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let mut machines = session.folder.machines()?;
    let dead = machines.len();
    machines.retain(|found| args.all || found.state != State::Dead);
    let dead = dead - machines.len();
    let rows = ask_all(&session, machines);
    if json() {
        return print_json(&rows.iter().map(Row::json).collect::<Vec<_>>());
    }
    if rows.is_empty() {
        print("No machines are running; start one with `nyx run`.\n")?;
    } else {
        print(table(&rows).render())?;
    }
    if dead > 0 {
        note(&format!(
            "{dead} more whose process has ended; `nyx ps -a` shows them"
        ));
    }
    Ok(())
}

/// A machine and what it says of itself.
pub(crate) struct Row {
    found: Found,
    machine: Result<Machine, String>,
}

/// Asks all machines at once, so that one that hangs delays the list only once.
fn ask_all(session: &Session, machines: Vec<Found>) -> Vec<Row> {
    session.blocking.on(async {
        let calls: Vec<_> = machines
            .into_iter()
            .map(|found| {
                let client = Client::new(&found.record.socket).within(PATIENCE);
                let alive = found.state == State::Alive;
                let call = tokio::spawn(async move {
                    match alive {
                        true => client.machine().await.map_err(|e| e.to_string()),
                        false => Err(String::new()),
                    }
                });
                (found, call)
            })
            .collect();
        let mut rows = Vec::new();
        for (found, call) in calls {
            let machine = call.await.unwrap_or_else(|e| Err(e.to_string()));
            rows.push(Row { found, machine });
        }
        rows
    })
}

impl Row {
    /// What it does, in a word.
    fn phase(&self) -> (String, Option<Style>) {
        match (&self.found.state, &self.machine) {
            (State::Dead, _) => ("dead".into(), Some(Style::Red)),
            (State::Deaf(_), _) | (State::Alive, Err(_)) => ("no answer".into(), Some(Style::Red)),
            (State::Alive, Ok(machine)) => {
                (machine.phase.to_string(), Some(phase_style(machine.phase)))
            }
        }
    }

    fn json(&self) -> Value {
        let record = &self.found.record;
        let mut row = json!({
            "name": record.name, "id": record.id, "phase": self.phase().0, "pid": record.pid,
            "started": record.started, "socket": record.socket, "version": record.version,
        });
        match &self.machine {
            Ok(machine) => {
                row["cpus"] = json!(machine.cpus);
                row["memory"] = json!(machine.memory);
                row["uptime_ms"] = json!(machine.started.uptime_ms);
                row["resets"] = json!(machine.resets);
            }
            Err(why) if !why.is_empty() => row["why"] = json!(why),
            Err(_) => {}
        }
        row
    }
}

/// The colour of a phase.
pub(crate) fn phase_style(phase: Phase) -> Style {
    match phase {
        Phase::Running => Style::Green,
        Phase::Built | Phase::Paused | Phase::Resetting => Style::Yellow,
        Phase::Ended => Style::Red,
    }
}

fn table(rows: &[Row]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("NAME", Left),
        ("ID", Left),
        ("PHASE", Left),
        ("CPUS", Right),
        ("MEMORY", Right),
        ("UPTIME", Right),
        ("PID", Right),
    ]);
    for row in rows {
        let record = &row.found.record;
        let of = |tell: &dyn Fn(&Machine) -> String| {
            (row.machine.as_ref().map_or("–".into(), tell), None)
        };
        table.styled([
            (record.name.clone(), None),
            (record.id.clone(), None),
            row.phase(),
            of(&|machine| machine.cpus.to_string()),
            of(&|machine| bytes(machine.memory)),
            of(&|machine| span(machine.started.uptime_ms)),
            (record.pid.to_string(), None),
        ]);
    }
    table
}
