//! Runs `nyx` and reads what the payload guest said.

use nyx_payload::{Command as Guest, Report};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest a run may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(120);

/// The command, with standard input empty.
pub(crate) fn nyx<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nyx"));
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `nyx run` of the payload with `guest`'s command line.
pub(crate) fn run(guest: &Guest) -> Command {
    let mut command = nyx(["run", "--kernel"]);
    command
        .arg(nyx_payload::elf_path())
        .args(["--cmdline", &guest.to_string()]);
    command
}

/// What a finished run left.
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// What the guest reported on the console that is on standard output.
    pub(crate) fn report(&self) -> Report {
        Report::parse(&self.stdout)
    }

    /// Fails the test with everything that was said.
    pub(crate) fn fail(&self, what: &str) -> ! {
        panic!(
            "{what}\nexit {}\n--- stdout\n{}\n--- stderr\n{}",
            self.code, self.stdout, self.stderr
        )
    }

    /// The guest ran its tests to the end, all passed, and it switched itself off.
    pub(crate) fn assert_passed(&self) -> Report {
        let report = self.report();
        if self.code != 0 || !report.passed() {
            self.fail("the guest's tests did not pass");
        }
        report
    }

    /// The run was refused with exactly one sentence, which holds every one of `words`.
    pub(crate) fn assert_refused(&self, words: &[&str]) {
        let one_line = self.stderr.lines().count() == 1 && self.stderr.starts_with("nyx: ");
        if self.code != 1 || !one_line || !words.iter().all(|w| self.stderr.contains(w)) {
            self.fail(&format!("expected one refusal with {words:?}"));
        }
    }
}

/// Runs to the end.
pub(crate) fn finish(command: &mut Command) -> Outcome {
    wait(command.spawn().unwrap())
}

/// Waits for the end of `child`, killing it when it takes too long.
pub(crate) fn wait(mut child: Child) -> Outcome {
    fn drain(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = |thread: Option<std::thread::JoinHandle<String>>| {
        thread.map(|t| t.join().unwrap()).unwrap_or_default()
    };
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Outcome {
        code,
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

/// Waits until `done` says so.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A file of `len` zero bytes in `folder`.
pub(crate) fn image(folder: &Path, name: &str, len: u64) -> String {
    let path = folder.join(name);
    std::fs::File::create(&path).unwrap().set_len(len).unwrap();
    path.to_str().unwrap().into()
}
