//! The project's own commands: `cargo xtask help` lists them.

#![forbid(unsafe_code)]

mod bench;
mod demo;
mod lab;
mod layers;
mod nyx;
mod stages;
mod suite;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask COMMAND

  demo [--interactive] [--nyx PATH]
                           boot a stock Debian under Nyx: to a finished self-check, or to its prompt
  test [STAGE…]            every check and test there is; or the named stages only (see test --list)
  lab [OPTION…] [--] [COMMAND…]
                           run a command of this machine in the lab, an emulated host with /dev/kvm;
                           without a command: a shell there (see lab --help)
  bench [OPTION…] [MEASURE…]
                           measure Nyx, and QEMU beside it where it is installed (see bench --help)
  layers                   check what each crate may depend on, and how it is written
  help                     this text
";

/// What a shell reports of a program that SIGPIPE ended.
const BROKEN_PIPE: u8 = 141;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next().unwrap_or_else(|| "help".into());
    match run(&command.to_string_lossy(), arguments.collect()) {
        Ok(code) => code,
        // Our output was cut short, as by `| head`: that is the reader's right, and no error.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(BROKEN_PIPE),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str, arguments: Vec<OsString>) -> Result<ExitCode> {
    match command {
        "demo" => demo::run(&arguments),
        "test" => suite::run(&arguments),
        "lab" => lab::run(arguments),
        "bench" => bench::run(&arguments),
        "layers" => layers::run(&arguments),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("no command {other:?}; `cargo xtask help` lists them"),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
