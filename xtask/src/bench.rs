//! `cargo xtask bench`: measures Nyx, and QEMU beside it where it is installed.
//!
//! Runs of both are interleaved, every figure is a median, and nothing is asserted: a figure means
//! something only beside another from the same run on the same machine. `docs/performance.md` says what
//! the measures are for.

mod api;
mod measure;
mod process;
mod table;
mod vmm;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nyx_harness::workspace;

use crate::nyx;
use measure::{Measure, Place};
use table::Table;
use vmm::Vmm;

const HELP: &str = "\
cargo xtask bench [OPTION…] [MEASURE…]

  --rounds N      rounds; every figure is the median of as many (default 5)
  --nyx PATH      this nyx, instead of building one
  --qemu PATH     this QEMU, instead of the installed one
  --no-qemu       Nyx alone
  --json PATH     where the figures go (default target/bench.json)

Measures; without any, all:";

struct Options {
    rounds: u32,
    nyx: Option<PathBuf>,
    qemu: Option<PathBuf>,
    json: PathBuf,
    measures: Vec<&'static Measure>,
}

/// Runs `cargo xtask bench`.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let Some(options) = parse(arguments)? else {
        println!("{HELP}");
        for measure in measure::ALL {
            println!("  {:<14}  {}", measure.name, measure.what);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let program = match &options.nyx {
        Some(program) => std::path::absolute(program)?,
        None => nyx::build()?,
    };
    let mut vmms = vec![Vmm::nyx(program)];
    match &options.qemu {
        Some(program) => vmms.push(Vmm::qemu(program.clone())),
        None => eprintln!("QEMU is not measured"),
    }
    let place = Place::new()?;
    let mut table = Table::new(&vmms);
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for measure in &options.measures {
            for vmm in &vmms {
                if let Err(error) = (measure.run)(vmm, &place, &mut table) {
                    let vmm = vmm.name();
                    eprintln!("{}, {vmm}: {error:#}", measure.name);
                    table.failed(measure.name, vmm, format!("{error:#}"));
                }
            }
        }
    }
    if let Some(folder) = options.json.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&options.json, format!("{:#}\n", table.json()))
        .with_context(|| format!("cannot write {}", options.json.display()))?;
    println!("{}", table.markdown());
    eprintln!("the figures are in {}", options.json.display());
    Ok(ExitCode::SUCCESS)
}

fn parse(arguments: &[OsString]) -> Result<Option<Options>> {
    let mut options = Options {
        rounds: 5,
        nyx: None,
        qemu: nyx_harness::tool::find("qemu-system-x86_64"),
        json: workspace::target_folder().join("bench.json"),
        measures: Vec::new(),
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().context("an option lacks its value");
        match argument.to_string_lossy().as_ref() {
            "--help" | "-h" => return Ok(None),
            "--rounds" => {
                options.rounds = value()?
                    .to_string_lossy()
                    .parse()
                    .context("--rounds needs a number")?;
            }
            "--nyx" => options.nyx = Some(value()?.into()),
            "--qemu" => options.qemu = Some(value()?.into()),
            "--no-qemu" => options.qemu = None,
            "--json" => options.json = value()?.into(),
            name => match measure::ALL.iter().find(|m| m.name == name) {
                Some(measure) => options.measures.push(measure),
                None => bail!("bench has no measure or option {name:?}; bench --help lists them"),
            },
        }
    }
    if options.measures.is_empty() {
        options.measures = measure::ALL.iter().collect();
    }
    Ok(Some(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_measures_are_read() {
        let parse = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(Into::into).collect();
            parse(&words)
        };
        let options = parse(&["--rounds", "3", "start", "--no-qemu"])
            .unwrap()
            .unwrap();
        assert_eq!(options.rounds, 3);
        assert!(options.qemu.is_none());
        assert_eq!(options.measures.len(), 1);
        assert_eq!(options.measures[0].name, "start");
        let all = parse(&[]).unwrap().unwrap();
        assert_eq!(all.measures.len(), measure::ALL.len());
        assert!(parse(&["--help"]).unwrap().is_none());
        assert!(parse(&["nonsense"]).is_err());
        assert!(parse(&["--rounds"]).is_err());
    }
}
