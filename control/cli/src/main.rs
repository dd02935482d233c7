//! The `nyx` command: plans, runs and examines virtual machines.
#![forbid(unsafe_code)]

mod args;
mod doctor;
mod exit;
mod plan;
mod run;

use args::{Cli, Verb};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Run(args) => run::run(&args),
        Verb::Plan(args) => plan::plan(&args),
        Verb::Doctor(args) => doctor::doctor(&args),
    }
}
