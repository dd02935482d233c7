//! Real machines, watched and steered over their control sockets.

use crate::rig::{Outcome, finish, image, nyx, until, wait};
use nyx_payload::{Command as Guest, Ending};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

/// Folders of its own, and the machines in them, which end with it.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn nyx(&self, arguments: &[&str]) -> Command {
        let mut command = nyx(arguments.iter().copied());
        command
            .env("NYX_RUNTIME_DIR", self.path().join("run"))
            .env("NYX_STATE_DIR", self.path().join("state"));
        command
    }

    /// Starts a machine that stays behind.
    fn start(&self, name: &str, guest: &Guest, more: &[&str]) {
        let (kernel, cmdline) = (nyx_payload::elf_path().to_str().unwrap(), guest.to_string());
        let mut arguments = vec!["run", "--daemon", "--name", name, "--kernel", kernel];
        arguments.extend(["--cmdline", &cmdline]);
        arguments.extend(more);
        let outcome = finish(&mut self.nyx(&arguments));
        if outcome.code != 0 || !outcome.stdout.starts_with(name) {
            outcome.fail("the start");
        }
    }

    fn run(&self, line: &str) -> Outcome {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        finish(&mut self.nyx(&arguments))
    }

    /// Runs a command that must succeed and say nothing else.
    fn says(&self, line: &str) -> String {
        let outcome = self.run(line);
        if outcome.code != 0 || !outcome.stderr.is_empty() {
            outcome.fail(line);
        }
        outcome.stdout
    }

    /// Runs a command that must fail with exit code `code` and one line that holds every one of `words`.
    fn fails(&self, line: &str, code: i32, words: &[&str]) {
        let outcome = self.run(line);
        let one = outcome.stderr.lines().count() == 1;
        if outcome.code != code || !one || !words.iter().all(|w| outcome.stderr.contains(w)) {
            outcome.fail(line);
        }
    }

    fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.says(&format!("{line} -o json"))).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let list = finish(&mut self.nyx(&["ps", "-o", "json"])).stdout;
        let rows: serde_json::Value = serde_json::from_str(&list).unwrap_or_default();
        for row in rows.as_array().into_iter().flatten() {
            let pid = row["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

fn echo() -> Guest {
    Guest::new().option("run", "echo")
}

fn idle() -> Guest {
    Guest::new().test("serial").then(Ending::Idle)
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_machine_in_the_background_is_listed_joined_and_stopped() {
    let world = World::new();
    assert!(world.says("ps").starts_with("No machines are running"));
    world.start("web1", &echo(), &["--cpus", "2", "--memory", "64M"]);
    let rows = world.json("ps");
    assert_eq!(
        (&rows[0]["name"], &rows[0]["phase"]),
        (&"web1".into(), &"running".into())
    );
    assert_eq!(
        (&rows[0]["cpus"], &rows[0]["memory"]),
        (&2.into(), &(64 << 20).into())
    );
    until("the guest's greeting", || {
        world.says("console web1 --last").contains("echo ready")
    });
    // Twice: who joins later sees what was said before.
    for (typed, echoed) in [("first\n", "FIRST"), ("second\n", "SECOND")] {
        let mut child = world
            .nyx(&["console", "web1", "--leave-after", "60"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(typed.as_bytes())
            .unwrap();
        let mut seen = String::new();
        until(echoed, || {
            let mut bytes = [0; 256];
            let n = output.read(&mut bytes).unwrap_or(0);
            seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
            seen.contains(echoed)
        });
        assert!(seen.contains("echo ready"), "{seen}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // A console that is joined says so when the machine ends.
    let joined = world
        .nyx(&["console", "web1"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    until("the joining", || {
        world.json("describe web1")["consoles"][0]["attached"] == 1
    });
    assert_eq!(world.says("stop web1 --timeout 0"), "web1: stopped\n");
    assert_eq!(wait(joined).code, 0);
    assert!(world.says("ps -a").starts_with("No machines are running"));
    // Its name is free again at once.
    world.start("web1", &idle(), &[]);
    assert_eq!(world.says("kill web1"), "web1: killed\n");
    assert_eq!(world.says("ps -o json"), "[]\n");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_machine_is_steered_through_its_phases() {
    let world = World::new();
    world.start("db", &idle(), &["--cpus", "2"]);
    until("the guest's test", || {
        world.says("console db --last").contains("ok serial")
    });
    assert_eq!(world.says("pause db"), "db: paused\n");
    assert_eq!(world.json("ps")[0]["phase"], "paused");
    world.fails("pause db", 1, &["paused"]);
    assert_eq!(world.says("resume db"), "db: resumed\n");
    world.fails("resume db", 1, &["not paused"]);
    assert_eq!(world.says("reset db"), "db: reset\n");
    assert_eq!(world.json("describe db")["resets"], 1);
    assert_eq!(world.says("nmi db"), "db: NMI injected\n");
    assert_eq!(world.says("power-button db"), "db: power button pressed\n");
    let operations = world.says("operations db");
    for words in ["pause", "resume", "reset", "nmi", "power-button"] {
        assert!(operations.contains(words), "{operations}");
    }
    let events = world.says("events db");
    assert!(
        events.contains("reset           number 1, by the operator"),
        "{events}"
    );
    world.fails("cancel db 1", 1, &[]);
    world.fails("cancel db 999", 3, &["999"]);
    // A guest that does not hear the power button loses its plug.
    assert_eq!(world.says("stop db --timeout 1"), "db: stopped\n");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_ctrl_c_cancels_a_stop_and_the_machine_goes_on() {
    let world = World::new();
    world.start("db", &idle(), &[]);
    until("the guest's test", || {
        world.says("console db --last").contains("ok serial")
    });
    let stopping = world.nyx(&["stop", "db"]).spawn().unwrap();
    until("the stop", || world.says("operations db").contains("stop"));
    kill_process(Pid::from_child(&stopping), Signal::INT).unwrap();
    let outcome = wait(stopping);
    if outcome.code != 5 || !outcome.stderr.ends_with("nyx: stop was cancelled\n") {
        outcome.fail("the stop");
    }
    assert_eq!(world.json("ps")[0]["phase"], "running");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_machine_is_watched() {
    let world = World::new();
    let disk = image(world.path(), "disk", 1 << 20);
    world.start("web1", &echo(), &["--disk", &disk, "--net", "null"]);
    until("the greeting", || {
        world.says("console web1 --last").contains("echo ready")
    });
    assert_eq!(
        world.json("describe web1")["kernel"],
        nyx_payload::elf_path().to_str().unwrap()
    );
    assert!(world.says("inspect web1").contains("\n  disk0:\n"));
    assert_eq!(world.json("inspect web1 machine")["phase"], "running");
    world.fails("inspect web1 no/such/part", 3, &["no"]);
    assert!(world.says("events web1").contains("running"));
    assert!(world.says("logs web1").contains("the guest runs"));
    assert!(
        world
            .says("logs web1 --level fatal")
            .contains("has recorded nothing")
    );
    let filter = world.says("log-filter web1 *=debug");
    assert!(filter.ends_with("*=debug\n"), "{filter}");
    world.fails("log-filter web1 *=loud", 1, &["loud"]);
    let metrics = world.says("metrics web1");
    assert!(
        metrics.contains("nyx_vcpu_exits_total{vm=\"web1\""),
        "{metrics}"
    );
    assert!(world.json("metrics web1").as_array().unwrap().len() > 20);
    assert!(world.says("metrics web1 --report").contains("bottlenecks"));
    let health = world.says("health web1");
    assert!(health.contains("phase"), "{health}");
    let rows = world.json("top --interval 0.2");
    assert!(
        rows[0]["exits_per_second"]["pio"].as_f64().unwrap() > 0.0,
        "{rows}"
    );
    assert!(world.says("why web1").contains("web1"));
    assert!(world.says("trace web1 -O -").contains("traceEvents"));
    assert!(world.says("disk ls web1").contains(&disk));
    assert!(world.says("net ls web1").contains("net0"));
    let stack = world.run("stack web1");
    if stack.code != 0 || !stack.stdout.starts_with("vCPU 0: ") {
        stack.fail("a stack");
    }
    world.fails("stack web1 --vcpu 7", 3, &["no vCPU 7"]);
    world.fails("console web1 com9", 3, &["com9"]);
    world.says("stop web1 --timeout 0");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_disks_are_added_and_removed() {
    let world = World::new();
    let disk = image(world.path(), "late", 1 << 20);
    world.start("web1", &idle(), &[]);
    let added = world.says(&format!("disk add web1 {disk},name=late"));
    assert_eq!(added, "web1: disk late added\n");
    assert!(world.says("disk ls web1").contains("late"));
    let again = format!("disk add web1 {disk},name=late");
    world.fails(&again, 1, &["late"]);
    world.fails("disk add web1 /nowhere/disk.img", 1, &["/nowhere/disk.img"]);
    // The payload knows nothing of hot-plug.
    assert_eq!(
        world.says("disk remove web1 late --force"),
        "web1: disk late removed\n"
    );
    assert!(!world.says("disk ls web1").contains("late"));
    assert_eq!(
        world.says("net add web1 null,name=wire"),
        "web1: network wire added\n"
    );
    assert_eq!(
        world.says("net remove web1 wire --force"),
        "web1: network wire removed\n"
    );
    world.says("stop web1 --timeout 0");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_an_audit_trail_is_whole_until_somebody_changes_it() {
    let world = World::new();
    let trail = world.path().join("audit.jsonl");
    let guest = Guest::new().test("serial").to_string();
    let mut command = world.nyx(&["run", "--kernel"]);
    command
        .arg(nyx_payload::elf_path())
        .args(["--cmdline", &guest, "--audit"]);
    finish(command.arg(&trail)).assert_passed();
    let verify = format!("audit verify {}", trail.display());
    let said = world.says(&verify);
    assert!(
        said.contains(": intact, ") && said.ends_with(", sealed\n"),
        "{said}"
    );
    assert_eq!(world.json(&verify)["intact"], true);
    let text = std::fs::read_to_string(&trail).unwrap();
    std::fs::write(&trail, text.replacen("vm-", "vn-", 1)).unwrap();
    let outcome = world.run(&verify);
    if outcome.code != 1 || !outcome.stderr.ends_with(": the audit trail is not whole\n") {
        outcome.fail("the change");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_why_tells_of_a_machine_that_has_ended() {
    let world = World::new();
    let guest = Guest::new()
        .test("serial")
        .then(Ending::TripleFault)
        .to_string();
    let mut command = world.nyx(&["run", "--name", "web1", "--kernel"]);
    let ended = finish(
        command
            .arg(nyx_payload::elf_path())
            .args(["--cmdline", &guest]),
    );
    assert_eq!(ended.code, 4, "{}", ended.stderr);
    let why = world.says("why web1");
    assert!(
        why.contains("triple fault") && why.contains("vCPU 0 shut down"),
        "{why}"
    );
    assert_eq!(world.json("why web1")["name"], "web1");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_killed_process_is_told_from_a_running_one() {
    let world = World::new();
    world.start("web1", &idle(), &[]);
    let pid = world.json("ps")[0]["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let watching = world.nyx(&["events", "web1", "--follow"]).spawn().unwrap();
    until("the watcher", || {
        world.says("events web1").contains("running")
    });
    kill_process(pid, Signal::KILL).unwrap();
    let outcome = wait(watching);
    if outcome.code != 0 || outcome.stderr != "nyx: note: machine `web1` has ended\n" {
        outcome.fail("the watcher");
    }
    let list = world.run("ps");
    assert!(
        list.stderr.contains("1 more whose process has ended"),
        "{}",
        list.stderr
    );
    assert!(world.says("ps -a").contains("dead"));
    world.fails("pause web1", 4, &["has ended"]);
    // A new machine may take its name.
    world.start("web1", &idle(), &[]);
    assert_eq!(world.json("ps")[0]["phase"], "running");
}
