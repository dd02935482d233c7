//! The `nyx` command: plans, runs, steers and examines virtual machines.
#![forbid(unsafe_code)]

mod analysis;
mod args;
mod complete;
mod console;
mod daemon;
mod devices;
mod doctor;
mod exit;
mod output;
mod plan;
mod ps;
mod run;
mod session;
mod show;
mod steer;
mod top;
mod watch;

use args::{Cli, Verb};
use clap::FromArgMatches as _;
use clap::error::ErrorKind;
use exit::{Failure, SUCCESS, USAGE};
use nyx_api::OperationKind;
use output::Format;
use std::process::ExitCode;

fn main() -> ExitCode {
    complete::answer_shell();
    let parsed = args::command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    output::choose(cli.output);
    let done = match &cli.verb {
        // These have exit codes of their own.
        Verb::Run(args) => return run::run(args),
        Verb::Plan(args) => return plan::plan(args),
        Verb::Doctor(args) => return doctor::doctor(args),
        verb => carry_out(verb),
    };
    ExitCode::from(match done {
        Ok(code) => code,
        Err(failure) => failure.tell(),
    })
}

fn carry_out(verb: &Verb) -> Result<u8, Failure> {
    match verb {
        Verb::Run(_) | Verb::Plan(_) | Verb::Doctor(_) => Ok(()),
        Verb::Ps(args) => ps::ps(args),
        Verb::Describe(args) => show::describe(args),
        Verb::Console(args) => console::console(args),
        Verb::Pause(args) => steer::steer(OperationKind::Pause, args),
        Verb::Resume(args) => steer::steer(OperationKind::Resume, args),
        Verb::Reset(args) => steer::steer(OperationKind::Reset, args),
        Verb::Stop(args) => steer::stop(args),
        Verb::Kill(args) => steer::steer(OperationKind::Kill, args),
        Verb::PowerButton(args) => steer::steer(OperationKind::PowerButton, args),
        Verb::Nmi(args) => steer::steer(OperationKind::Nmi, args),
        Verb::Disk(verb) => devices::disk(verb),
        Verb::Net(verb) => devices::net(verb),
        Verb::Top(args) => top::top(args),
        Verb::Inspect(args) => show::inspect(args),
        Verb::Events(args) => watch::events(args),
        Verb::Logs(args) => watch::logs(args),
        Verb::LogFilter(args) => watch::log_filter(args),
        Verb::Metrics(args) => show::metrics(args),
        Verb::Health(args) => return show::health(args),
        Verb::Operations(args) => show::operations(args),
        Verb::Cancel(args) => show::cancel(args),
        Verb::Trace(args) => show::trace(args),
        Verb::Why(args) => analysis::why(args),
        Verb::Debug(args) => return analysis::debug(args),
        Verb::Stack(args) => analysis::stack(args),
        Verb::Audit(verb) => analysis::audit(verb),
        Verb::Completion(args) => complete::completion(args),
    }?;
    Ok(SUCCESS)
}

/// Says what is wrong with the command line, or what was asked for with `--help` and `--version`.
fn usage(error: &clap::Error) -> ExitCode {
    let asked = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if !asked && wants_json(std::env::args()) {
        output::choose(Format::Json);
        let text = error.render().to_string();
        let text = text.trim_end().trim_start_matches("error: ");
        return ExitCode::from(Failure::new(USAGE, text).tell());
    }
    // Help that nobody reads is no failure.
    let _ = error.print();
    ExitCode::from(if asked { SUCCESS } else { USAGE })
}

/// Whether JSON was asked for on a command line that does not parse.
fn wants_json(arguments: impl Iterator<Item = String>) -> bool {
    let mut named = false;
    for argument in arguments {
        if (named && argument == "json")
            || ["-ojson", "-o=json", "--output=json"].contains(&argument.as_str())
        {
            return true;
        }
        named = argument == "-o" || argument == "--output";
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_groups_every_verb() {
        let help = args::command().render_help().to_string();
        for verb in Cli::command().get_subcommands() {
            let line = format!("\n  {:<13} {}", verb.get_name(), "");
            assert!(help.contains(line.trim_end_matches(' ')), "{line}: {help}");
        }
    }

    #[test]
    fn json_is_seen_on_lines_that_do_not_parse() {
        let wants = |line: &str| wants_json(line.split(' ').map(String::from));
        assert!(wants("nyx pasue web -o json"));
        assert!(wants("nyx --output=json"));
        assert!(!wants("nyx -o text json"));
    }

    #[test]
    fn every_verb_is_described_with_an_example() {
        let text = include_str!("../../../docs/commands.md");
        let mut missing = Vec::new();
        let mut see = |words: String| {
            if !text.contains(&format!("`nyx {words}")) || !text.contains(&format!("$ nyx {words}"))
            {
                missing.push(words);
            }
        };
        for verb in Cli::command().get_subcommands() {
            let inner: Vec<_> = verb.get_subcommands().collect();
            if inner.is_empty() {
                see(verb.get_name().into());
            }
            for inner in inner {
                see(format!("{} {}", verb.get_name(), inner.get_name()));
            }
        }
        assert!(missing.is_empty(), "docs/commands.md lacks {missing:?}");
    }
}
