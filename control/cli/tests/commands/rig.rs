//! A runtime folder with machines that a test plays, and the command run against them.

use nyx_api::{
    ConsoleDescription, DeviceDescription, Machine, MachineRecord, Operation, OperationKind,
    OperationState, Phase, Progress, Started,
};
use nyx_client::fake::{Asked, Fake};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest a command may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(60);

/// A runtime folder.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
}

/// What a command left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// With one machine, `web1`, that `answer` plays.
    pub(crate) fn with(answer: impl Fn(&Asked, &mut UnixStream) + Send + Sync + 'static) -> Self {
        let world = Self::new();
        world.machine("web1", "a1b2c3d4e5f6", answer);
        world
    }

    /// Adds a machine.
    pub(crate) fn machine(
        &self,
        name: &str,
        id: &str,
        answer: impl Fn(&Asked, &mut UnixStream) + Send + Sync + 'static,
    ) {
        let socket = self.record(name, id, std::process::id());
        Fake::at(socket, answer).unwrap();
    }

    /// Adds the word that a machine leaves of itself, and gives the path of its socket.
    pub(crate) fn record(&self, name: &str, id: &str, pid: u32) -> std::path::PathBuf {
        let place = self.folder.path().join(name);
        std::fs::create_dir(&place).unwrap();
        let socket = place.join("api.sock");
        let record = MachineRecord {
            id: id.into(),
            name: name.into(),
            pid,
            started: "2026-11-21T06:00:00Z".into(),
            socket: socket.to_str().unwrap().into(),
            version: "0.1.0".into(),
        };
        let text = serde_json::to_string(&record).unwrap();
        std::fs::write(place.join("vm.json"), text).unwrap();
        socket
    }

    /// The command in this world.
    pub(crate) fn nyx(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nyx"));
        command
            .args(line.split_whitespace())
            .env("NYX_RUNTIME_DIR", self.folder.path())
            .env("NYX_STATE_DIR", self.folder.path().join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, line: &str) -> Outcome {
        wait(self.nyx(line).spawn().unwrap())
    }

    /// Runs it, expects success and no words on standard error, and gives its output.
    pub(crate) fn says(&self, line: &str) -> String {
        let outcome = self.run(line);
        assert_eq!(
            (outcome.code, &*outcome.stderr),
            (0, ""),
            "{line}: {outcome:?}"
        );
        outcome.stdout
    }

    /// Runs it, expects exit code `code` and one line on standard error, and gives that.
    pub(crate) fn fails(&self, line: &str, code: i32) -> String {
        let outcome = self.run(line);
        assert_eq!(outcome.code, code, "{line}: {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{line}: {outcome:?}");
        outcome.stderr.trim_end().to_string()
    }
}

/// Waits for the end of `child`, killing it when it takes too long.
pub(crate) fn wait(mut child: Child) -> Outcome {
    fn drain(from: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut from) = from {
                from.read_to_end(&mut bytes).unwrap();
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
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
    Outcome {
        code: status.code().unwrap_or(-1),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

/// Reads from `source` until `words` have come, and returns everything that came.
pub(crate) fn read_until(source: &mut impl std::io::Read, words: &str) -> String {
    let mut seen = String::new();
    let deadline = Instant::now() + LIMIT;
    while !seen.contains(words) {
        assert!(Instant::now() < deadline, "{words} did not come: {seen}");
        let mut bytes = [0; 256];
        let n = source.read(&mut bytes).unwrap_or(0);
        assert!(n > 0, "{words} did not come: {seen}");
        seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    seen
}

/// A machine, in full.
pub(crate) fn machine() -> Machine {
    Machine {
        id: "a1b2c3d4e5f6".into(),
        name: "web1".into(),
        pid: std::process::id(),
        version: "0.1.0".into(),
        phase: Phase::Running,
        started: Started {
            at: "2026-11-21T06:00:00Z".into(),
            uptime_ms: 11_525_000,
            guest_ms: 11_524_000,
        },
        cpus: 2,
        memory: 512 << 20,
        kernel: Some("vmlinuz".into()),
        cmdline: Some("console=ttyS0".into()),
        resets: 0,
        devices: vec![disk()],
        consoles: vec![console("com1"), console("hvc0")],
        gdb: None,
        operations: Vec::new(),
    }
}

pub(crate) fn disk() -> DeviceDescription {
    DeviceDescription {
        name: "disk0".into(),
        kind: "disk".into(),
        location: "00:01.0".into(),
        backend: Some("/srv/root.img".into()),
        removable: true,
    }
}

pub(crate) fn console(name: &str) -> ConsoleDescription {
    ConsoleDescription {
        name: name.into(),
        kind: "pty".into(),
        attached: 0,
    }
}

pub(crate) fn operation(kind: OperationKind, state: OperationState) -> Operation {
    Operation {
        id: 7,
        kind,
        target: None,
        state,
        progress: Progress::default(),
        cancellable: true,
        asked: "2026-11-21T06:00:00.5Z".into(),
        ended: None,
        problem: None,
    }
}
