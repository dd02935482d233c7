//! `cargo xtask test`: every check and test, stage by stage.
//!
//! | Stage | Runs |
//! |---|---|
//! | format, lint, layers | the source |
//! | packages | installs what the later stages need |
//! | unit | all tests that are not ignored, and the examples in documentation |
//! | native | ignored tests named `native_…`: they need `/dev/kvm` and run the payload guest |
//! | lab | ignored tests named `lab_…`: they boot stock kernels in the lab |
//! | demo | `cargo xtask demo` |
//!
//! A test that needs more than a plain machine is `#[ignore = "needs …"]` and says by its name where it runs.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use nyx_harness::guests::{self, Flavour};
use nyx_harness::lab::Lab;
use nyx_harness::packages::{self, Need};
use nyx_harness::tool::{self, Tool};
use nyx_harness::{userland, workspace};

use crate::layers;
use crate::stages::{Count, Stages};

/// Packages that tests use and that nothing of the harness installs by itself.
const NEEDS: &[Need] = &[
    Need {
        package: "e2fsprogs",
        why: "tests check guests' file systems with e2fsck",
    },
    Need {
        package: "iproute2",
        why: "tests make TAP interfaces and network namespaces",
    },
    Need {
        package: "slirp4netns",
        why: "tests of user-mode networking",
    },
    Need {
        package: "socat",
        why: "tests talk to consoles and vsock through Unix sockets",
    },
];

type Stage = (&'static str, &'static str, fn() -> Result<Count>);

const STAGES: &[Stage] = &[
    ("format", "cargo fmt --check", format),
    ("lint", "cargo clippy, warnings denied", lint),
    ("layers", "what each crate may depend on", check_layers),
    (
        "packages",
        "Debian packages, guest kernels and images, the lab",
        prepare,
    ),
    ("unit", "tests that need nothing but this machine", unit),
    ("doc", "examples in documentation", doc),
    ("native", "native_… tests: this machine's /dev/kvm", native),
    ("lab", "lab_… tests: stock kernels in the lab", lab),
    ("demo", "cargo xtask demo", demo),
];

/// Runs `cargo xtask test`.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let wanted: Vec<String> = arguments
        .iter()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    if wanted.iter().any(|word| word == "--list") {
        for (name, what, _) in STAGES {
            println!("{name:10} {what}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = wanted
        .iter()
        .find(|word| STAGES.iter().all(|(name, ..)| name != word))
    {
        bail!("there is no stage {unknown:?}; `cargo xtask test --list` names them");
    }
    let mut stages = Stages::new();
    let mut total = Count::default();
    for (name, _, work) in STAGES {
        if !wanted.is_empty() && !wanted.iter().any(|word| word == name) {
            continue;
        }
        let count = stages.run(name, || {
            // A stage that breaks is one failure, and the others still tell what they find.
            work().unwrap_or_else(|error| {
                eprintln!("error: {error:#}");
                Count::FAIL
            })
        });
        stages.remark(match count.failed {
            0 => format!("{} passed", count.passed),
            failed => format!("{} passed, {failed} FAILED", count.passed),
        });
        total.passed += count.passed;
        total.failed += count.failed;
    }
    println!("\n{}", stages.table());
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Tool {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Tool::new(cargo).args(arguments).folder(workspace::root())
}

fn one(is_good: bool) -> Count {
    if is_good { Count::PASS } else { Count::FAIL }
}

fn format() -> Result<Count> {
    Ok(one(cargo(["fmt", "--all", "--check"])
        .command()
        .status()?
        .success()))
}

fn lint() -> Result<Count> {
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    Ok(one(cargo(arguments).command().status()?.success()))
}

fn check_layers() -> Result<Count> {
    let found = layers::violations()?;
    for violation in &found {
        eprintln!("error: {violation}");
    }
    Ok(one(found.is_empty()))
}

fn prepare() -> Result<Count> {
    packages::install(NEEDS)?;
    Lab::prepare()?;
    guests::kernel(Flavour::Cloud)?;
    userland::userland()?;
    Ok(Count::PASS)
}

fn unit() -> Result<Count> {
    tests(None)
}

fn doc() -> Result<Count> {
    count(&cargo(["test", "--workspace", "--doc"]))
}

fn native() -> Result<Count> {
    tests(Some("native_"))
}

fn lab() -> Result<Count> {
    tests(Some("lab_"))
}

fn demo() -> Result<Count> {
    crate::demo::run(&[]).map(|_| Count::PASS)
}

/// Runs the tests of the workspace: those that are not ignored, or the ignored ones of one ground.
fn tests(ground: Option<&str>) -> Result<Count> {
    let tool = if tool::find("cargo-nextest").is_some() {
        let tool = cargo([
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
            "--no-tests=pass",
        ]);
        match ground {
            None => tool,
            // One at a time: each may boot machines that want all processors.
            Some(prefix) => tool
                .args(["--run-ignored", "only", "-j1", "-E"])
                .arg(filter(prefix)),
        }
    } else {
        let tool = cargo([
            "test",
            "--workspace",
            "--no-fail-fast",
            "--lib",
            "--bins",
            "--tests",
        ]);
        match ground {
            None => tool,
            Some(prefix) => tool.args(["--", "--ignored", "--test-threads=1", prefix]),
        }
    };
    // Guests run under the program as users have it, built once and not by each test.
    count(&match ground {
        None => tool,
        Some(_) => tool.env("NYX_BIN", crate::nyx::build()?),
    })
}

/// Nextest's filter for tests whose own name, behind its modules, begins with `prefix`.
fn filter(prefix: &str) -> String {
    format!("test(/(^|::){prefix}/)")
}

/// Runs a test runner, passing its output on and reading its counts.
fn count(tool: &Tool) -> Result<Count> {
    let mut child = tool
        .command()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let stdout = child.stdout.take().context("no pipe from cargo")?;
    let stderr = child.stderr.take().context("no pipe from cargo")?;
    let (out, err) = std::thread::scope(|scope| {
        let err = scope.spawn(|| follow(stderr, std::io::stderr()));
        let out = follow(stdout, std::io::stdout());
        (out, err.join().unwrap_or_default())
    });
    let status = child.wait()?;
    let mut total = Count {
        passed: out.passed + err.passed,
        failed: out.failed + err.failed,
    };
    if !status.success() && total.failed == 0 {
        // It did not come to testing, or broke while at it.
        total.failed = 1;
    }
    Ok(total)
}

fn follow(source: impl Read, mut sink: impl Write) -> Count {
    let mut total = Count::default();
    for line in BufReader::new(source)
        .split(b'\n')
        .map_while(|line| line.ok())
    {
        let line = String::from_utf8_lossy(&line);
        // What a failed test itself said is shown indented, and not counted again.
        if let Some(count) = counted(&line) {
            total.passed += count.passed;
            total.failed += count.failed;
        }
        // If our own output is closed there is nobody to tell.
        let _ = writeln!(sink, "{line}");
    }
    total
}

/// The counts in a closing line of nextest (`Summary [ 1.2s] 3 tests run: 2 passed, 1 failed, 0 skipped`)
/// or of cargo test (`test result: ok. 3 passed; 0 failed; …`).
fn counted(line: &str) -> Option<Count> {
    let counts = if let Some(rest) = line.strip_prefix("test result: ") {
        rest
    } else if line.trim_start().starts_with("Summary [") {
        line.split_once("run: ")?.1
    } else {
        return None;
    };
    let mut count = Count::default();
    let words: Vec<&str> = counts
        .split([' ', ',', ';'])
        .filter(|word| !word.is_empty())
        .collect();
    for pair in words.windows(2) {
        let Ok(number) = pair[0].parse::<u64>() else {
            continue;
        };
        match pair[1] {
            "passed" => count.passed += number,
            // "timed out" and "exec failed" are nextest's other ways to fail.
            "failed" | "timed" | "exec" => count.failed += number,
            _ => {}
        }
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let of = |line: &str| counted(line).map(|count| (count.passed, count.failed));
        assert_eq!(
            of("     Summary [   1.234s] 12 tests run: 12 passed, 3 skipped"),
            Some((12, 0))
        );
        let mixed = "     Summary [  61.0s] 9 tests run: 5 passed (1 slow), 3 failed, 1 timed out, 0 skipped";
        assert_eq!(of(mixed), Some((5, 4)));
        assert_eq!(
            of("test result: ok. 7 passed; 0 failed; 2 ignored; 0 measured"),
            Some((7, 0))
        );
        assert_eq!(
            of("test result: FAILED. 7 passed; 1 failed; 2 ignored"),
            Some((7, 1))
        );
        assert_eq!(of("7 passed, 1 failed"), None);
        // Quoted by nextest from a failed test of cargo's own runner.
        assert_eq!(of("    test result: FAILED. 0 passed; 1 failed"), None);
    }

    #[test]
    fn output_is_passed_on_while_it_is_counted() {
        let text =
            b"one\ntest result: ok. 2 passed; 0 failed;\ntest result: ok. 1 passed; 0 failed;\n";
        let mut sink = Vec::new();
        let count = follow(&text[..], &mut sink);
        assert_eq!((count.passed, count.failed), (3, 0));
        assert_eq!(sink, text);
    }

    #[test]
    fn a_run_that_breaks_before_testing_is_a_failure() {
        let count = count(&Tool::new("sh").args(["-c", "echo no compiler >&2; exit 101"])).unwrap();
        assert_eq!(count, Count::FAIL);
    }
}
