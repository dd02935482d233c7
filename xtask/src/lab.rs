//! `cargo xtask lab`: any command of this machine, in the lab.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nyx_harness::lab::{Ending, Input, Lab, LabCommand, Share};

const HELP: &str = "\
cargo xtask lab [OPTION…] [--] [COMMAND…]

Runs COMMAND in an emulated host with AMD-V: it sees this machine's files (its writes stay in the
lab's memory), /dev/kvm, /dev/net/tun, /dev/vhost-*. Its output and exit code come back as they are.

  -i, --interactive      on this terminal; so is a shell when no COMMAND is given
  --out FOLDER           share FOLDER read-write as /lab-out
  --share HERE=THERE     share a folder read-write under another name (may be repeated)
  --timeout SECONDS      end the lab after this time (default 3600); the exit code is then 124
  --cpus N               processors (default 2)
  --memory MIB           memory (default 6144)
  --iommu                with a VT-d IOMMU
  --qemu ARGUMENT        a further argument for QEMU (may be repeated)
  --verbose              say how long the lab took to boot, and where its kernel log is
";

/// The exit code of a command that ran out of time, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// Variables of ours that a command is likely to count on. The rest may name things that are not there.
const PASSED_ON: &[&str] = &[
    "HOME",
    "PATH",
    "LANG",
    "TERM",
    "USER",
    "CI",
    "CARGO_HOME",
    "CARGO_TARGET_DIR",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "NYX_CACHE",
    "NYX_LOG",
];

/// What the command line asks for.
#[derive(Debug)]
struct Request {
    lab: Lab,
    argv: Vec<OsString>,
    timeout: Duration,
    is_interactive: bool,
    is_verbose: bool,
}

/// Runs `cargo xtask lab`.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<ExitCode> {
    if arguments
        .first()
        .is_some_and(|first| first == "--help" || first == "-h")
    {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    let request = parse(arguments)?;
    let mut session = request.lab.boot()?;
    if request.is_verbose {
        eprintln!(
            "nyx: the lab was up after {:.2} s",
            session.boot_time().as_secs_f64()
        );
        eprintln!(
            "nyx: its kernel's messages are in {}",
            session.log().display()
        );
    }
    let mut command = LabCommand::new(request.argv).within(request.timeout);
    command.env = environment();
    let ending = if request.is_interactive {
        session.interact(&command)?
    } else {
        let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
        // A terminal is left alone: reading it would take keys that are meant for the next program.
        let input = if std::io::stdin().is_terminal() {
            Input::Nothing
        } else {
            Input::From(Box::new(std::io::stdin()))
        };
        session.stream(&command, input, &mut stdout, &mut stderr)?.0
    };
    match ending {
        Ending::Exited(code) => {
            session.end()?;
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
        }
        Ending::TimedOut => {
            eprintln!(
                "error: the command did not end within {} s",
                request.timeout.as_secs()
            );
            Ok(ExitCode::from(TIMED_OUT))
        }
    }
}

/// The environment for a command in the lab.
pub(crate) fn environment() -> Vec<(OsString, OsString)> {
    PASSED_ON
        .iter()
        .filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)))
        .collect()
}

fn parse(arguments: Vec<OsString>) -> Result<Request> {
    let mut request = Request {
        lab: Lab::default(),
        argv: Vec::new(),
        timeout: Duration::from_secs(3600),
        is_interactive: false,
        is_verbose: false,
    };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let name = argument.to_string_lossy().into_owned();
        let mut value = || {
            arguments
                .next()
                .with_context(|| format!("{name} needs a value"))
        };
        match name.as_str() {
            "--" => {
                request.argv.extend(arguments);
                break;
            }
            "-i" | "--interactive" => request.is_interactive = true,
            "--verbose" => request.is_verbose = true,
            "--iommu" => request.lab.has_iommu = true,
            "--out" => request
                .lab
                .shares
                .push(share(value()?.into(), "/lab-out".into())),
            "--share" => {
                let pair = value()?;
                let text = pair.to_string_lossy();
                let Some((here, there)) = text.split_once('=') else {
                    bail!("--share takes HERE=THERE, not {text:?}");
                };
                request.lab.shares.push(share(here.into(), there.into()));
            }
            "--timeout" => request.timeout = Duration::from_secs(number(&name, &value()?)?),
            "--cpus" => request.lab.cpus = number(&name, &value()?)?,
            "--memory" => request.lab.memory_mib = number(&name, &value()?)?,
            "--qemu" => request.lab.qemu_arguments.push(value()?),
            other if other.starts_with('-') => {
                bail!("no option {other}; see `cargo xtask lab --help`")
            }
            _ => {
                request.argv.push(argument);
                request.argv.extend(arguments);
                break;
            }
        }
    }
    if request.argv.is_empty() {
        request.argv.push("/bin/bash".into());
        request.is_interactive = true;
    }
    Ok(request)
}

fn share(here: PathBuf, there: PathBuf) -> Share {
    Share {
        here,
        there,
        is_writable: true,
    }
}

fn number<N: std::str::FromStr + PartialOrd + Default>(name: &str, value: &OsStr) -> Result<N> {
    match value.to_string_lossy().parse() {
        Ok(number) if number > N::default() => Ok(number),
        _ => bail!("{name} takes a number above 0, not {value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Request> {
        parse(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn the_command_begins_at_the_first_word_that_is_no_option() {
        let request = parsed(&["--cpus", "4", "ls", "--out", "-i"]).unwrap();
        assert_eq!(request.argv, ["ls", "--out", "-i"]);
        assert_eq!(request.lab.cpus, 4);
        assert!(!request.is_interactive && request.lab.shares.is_empty());
        assert_eq!(parsed(&["--", "-x", "--"]).unwrap().argv, ["-x", "--"]);
    }

    #[test]
    fn no_command_is_a_shell() {
        let request = parsed(&["--iommu"]).unwrap();
        assert!(request.is_interactive && request.lab.has_iommu);
        assert_eq!(request.argv, ["/bin/bash"]);
    }

    #[test]
    fn shares_and_limits() {
        let words = [
            "--out",
            "a",
            "--share",
            "b=/c",
            "--timeout",
            "7",
            "--memory",
            "512",
            "true",
        ];
        let request = parsed(&words).unwrap();
        let pairs: Vec<_> = request
            .lab
            .shares
            .iter()
            .map(|s| (s.here.clone(), s.there.clone()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("a".into(), "/lab-out".into()),
                (PathBuf::from("b"), "/c".into())
            ]
        );
        assert_eq!(request.timeout, Duration::from_secs(7));
        assert_eq!(request.lab.memory_mib, 512);
    }

    #[test]
    fn mistakes_are_named() {
        for (words, part) in [
            (&["--cpus", "none"][..], "--cpus"),
            (&["--cpus", "0"], "above 0"),
            (&["--cpus"], "needs a value"),
            (&["--share", "here"], "HERE=THERE"),
            (&["--what"], "--what"),
        ] {
            let error = parsed(words).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
