//! What the shell completes: words of the command line, and the names of what is running now.

use crate::exit::{Failure, REFUSED};
use crate::output::print;
use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use nyx_client::blocking::Blocking;
use nyx_client::{Client, Folder, Found, State};
use std::ffi::OsStr;
use std::time::Duration;

#[derive(Args)]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The variable by which the shell asks for candidates.
const VARIABLE: &str = "NYX_COMPLETE";

/// Answers the shell and ends, if it was the shell who called.
pub(crate) fn answer_shell() {
    CompleteEnv::with_factory(crate::args::Cli::command)
        .var(VARIABLE)
        .complete();
}

pub(crate) fn completion(args: &CompletionArgs) -> Result<(), Failure> {
    let name = match args.shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let shells = Shells::builtins();
    let mut script = Vec::new();
    let written = shells
        .completer(name)
        .map(|shell| shell.write_registration(VARIABLE, "nyx", "nyx", "nyx", &mut script));
    match written {
        Some(Ok(())) => print(script),
        _ => Err(Failure::new(
            REFUSED,
            format!("there is no completion for {name}"),
        )),
    }
}

/// Longest that a machine may keep the shell waiting.
const PATIENCE: Duration = Duration::from_millis(500);

fn alive() -> Vec<Found> {
    let machines = Folder::of_user().machines().unwrap_or_default();
    machines
        .into_iter()
        .filter(|found| found.state == State::Alive)
        .collect()
}

/// Names of machines; ids where an id is begun.
pub(crate) fn machines(begun: &OsStr) -> Vec<CompletionCandidate> {
    let begun = begun.to_string_lossy();
    let mut candidates = Vec::new();
    for found in alive() {
        let record = found.record;
        if !begun.is_empty() && record.id.starts_with(&*begun) {
            candidates
                .push(CompletionCandidate::new(&record.id).help(Some(record.name.clone().into())));
        }
        if record.name.starts_with(&*begun) {
            candidates.push(CompletionCandidate::new(record.name).help(Some(record.id.into())));
        }
    }
    candidates
}

/// The machine that is named on the command line being completed.
fn named() -> Option<Client> {
    // After `--` stands the line as typed so far.
    let words: Vec<String> = std::env::args().skip_while(|word| word != "--").collect();
    let machines = alive();
    let found = words.iter().skip(2).find_map(|word| {
        machines
            .iter()
            .find(|found| found.record.name == *word || found.record.id == *word)
    })?;
    Some(Client::new(&found.record.socket).within(PATIENCE))
}

fn names(
    begun: &OsStr,
    ask: impl FnOnce(&Blocking, &Client) -> Vec<(String, String)>,
) -> Vec<CompletionCandidate> {
    let (Some(client), Ok(blocking)) = (named(), Blocking::new()) else {
        return Vec::new();
    };
    let begun = begun.to_string_lossy();
    ask(&blocking, &client)
        .into_iter()
        .filter(|(name, _)| name.starts_with(&*begun))
        .map(|(name, help)| CompletionCandidate::new(name).help(Some(help.into())))
        .collect()
}

/// Consoles of the machine on the line.
pub(crate) fn consoles(begun: &OsStr) -> Vec<CompletionCandidate> {
    names(begun, |blocking, client| {
        let consoles = blocking.on(client.consoles()).unwrap_or_default();
        consoles.into_iter().map(|c| (c.name, c.kind)).collect()
    })
}

/// Removable devices of the machine on the line.
pub(crate) fn devices(begun: &OsStr) -> Vec<CompletionCandidate> {
    names(begun, |blocking, client| {
        let mut devices = blocking.on(client.disks()).unwrap_or_default();
        devices.extend(blocking.on(client.nets()).unwrap_or_default());
        let removable = devices.into_iter().filter(|device| device.removable);
        removable
            .map(|d| (d.name, d.backend.unwrap_or(d.kind)))
            .collect()
    })
}

/// Operations of the machine on the line that are under way.
pub(crate) fn operations(begun: &OsStr) -> Vec<CompletionCandidate> {
    names(begun, |blocking, client| {
        let operations = blocking.on(client.operations()).unwrap_or_default();
        let under_way = operations.into_iter().filter(|o| !o.state.is_final());
        under_way
            .map(|o| (o.id.to_string(), o.kind.to_string()))
            .collect()
    })
}
