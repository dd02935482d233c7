//! Verbs that look.

use crate::rig::{World, console, disk, machine, operation, wait};
use nyx_api::{Code, OperationKind, OperationState, Problem};
use nyx_client::fake::{Asked, json, open, reply};
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

/// A machine that answers every question.
pub(crate) fn good(asked: &Asked, stream: &mut UnixStream) {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    match (asked.method.as_str(), path) {
        ("GET", "/v1/machine") => json(stream, 200, &machine()),
        ("GET", "/v1/machine/disks") => json(stream, 200, &[disk()]),
        ("GET", "/v1/machine/nets") => reply(stream, 200, "application/json", "[]"),
        ("GET", "/v1/machine/consoles") => json(stream, 200, &[console("com1"), console("hvc0")]),
        ("GET", "/v1/machine/consoles/com1") => reply(stream, 200, "text/plain", "login: "),
        ("GET", "/v1/machine/inspect") => reply(
            stream,
            200,
            "application/json",
            if query == "depth=1" {
                r#"{"units":{},"vcpus":{}}"#
            } else {
                r#"{"vcpus":{"10":{"exits":5},"9":{"exits":4}},"units":{"disk0":{"path":"a\u001bb"}}}"#
            },
        ),
        ("GET", "/v1/machine/inspect/vcpus/9") => {
            reply(stream, 200, "application/json", r#"{"exits":4}"#);
        }
        ("GET", "/v1/machine/events") => {
            open(stream, "text/event-stream");
            let _ = stream.write_all(
                b"id: 1\ndata: {\"sequence\":1,\"time\":\"2026-11-21T06:00:00.1Z\",\"event\":\"phase\",\"phase\":\"running\"}\n\n\
                  id: 2\ndata: {\"sequence\":2,\"time\":\"2026-11-21T06:00:01.2Z\",\"event\":\"fault\",\"unit\":\"disk0\",\"what\":\"I/O \\u001berror\"}\n\n\
                  id: 3\ndata: {\"sequence\":3,\"time\":\"2026-11-21T06:00:02.3Z\",\"event\":\"ended\",\"ending\":\"powered-off\"}\n\n",
            );
        }
        ("GET", "/v1/machine/logs") if query.contains("follow=true") => {
            open(stream, "text/event-stream");
            let _ = writeln!(stream, "data: {}\n", LOG);
        }
        ("GET", "/v1/machine/logs") if query.contains("fatal") => {
            reply(stream, 200, "application/json", "[]");
        }
        ("GET", "/v1/machine/logs") => reply(stream, 200, "application/json", &format!("[{LOG}]")),
        ("GET", "/v1/machine/logs/filter") => {
            reply(stream, 200, "application/json", r#"{"filter":"*=info"}"#);
        }
        ("PUT", "/v1/machine/logs/filter") => reply(stream, 200, "application/json", &asked.body),
        ("GET", "/metrics") => reply(stream, 200, "text/plain", PAGE),
        ("GET", "/v1/machine/metrics/report") => {
            reply(stream, 200, "application/json", r#"{"exits":{"rate":1.5}}"#);
        }
        ("GET", "/v1/machine/metrics/samples") => {
            reply(
                stream,
                200,
                "application/json",
                &format!("[{{\"query\":\"{query}\"}}]"),
            );
        }
        ("GET", "/v1/machine/health") => reply(stream, 200, "application/json", HEALTH),
        ("GET", "/v1/machine/trace") => {
            reply(stream, 200, "application/json", "{\"traceEvents\":[]}")
        }
        ("GET", "/v1/operations") => {
            let mut failed = operation(OperationKind::AddDisk, OperationState::Failed);
            failed.problem = Some(Problem::new(Code::Failed, "no such file"));
            json(
                stream,
                200,
                &[
                    failed,
                    operation(OperationKind::Pause, OperationState::Done),
                ],
            );
        }
        ("DELETE", "/v1/operations/7") => {
            json(
                stream,
                200,
                &operation(OperationKind::Stop, OperationState::Cancelled),
            );
        }
        ("PUT", "/v1/machine/gdb") => {
            reply(
                stream,
                200,
                "application/json",
                r#"{"address":"/run/nyx/web1/gdb.sock"}"#,
            );
        }
        ("DELETE", "/v1/machine/gdb") => reply(stream, 204, "text/plain", ""),
        (method, path) => {
            let problem = Problem::new(
                Code::NotFound,
                format!("{method} {path}: there is no such thing"),
            );
            json(stream, 404, &problem);
        }
    }
}

const LOG: &str = r#"{"sequence":1,"time":"2026-11-21T06:00:00.25Z","level":"warn","component":"device","message":"slow","fields":{"ms":12,"unit":"disk0"}}"#;
const PAGE: &str = "# TYPE nyx_vcpu_exits_total counter\nnyx_vcpu_exits_total{vm=\"web1\",vcpu=\"0\",kind=\"mmio\"} 10\n";
const HEALTH: &str = r#"{"status":"critical","issues":[],"checks":[{"name":"disk","status":"critical","reason":"errors"},
    {"name":"exits","status":"healthy","reason":"5 per second"}],"bottlenecks":[],"metrics":{},"errors":["disk0: I/O error"]}"#;

#[test]
fn ps_without_machines_says_how_to_start_one() {
    let world = World::new();
    assert_eq!(
        world.says("ps"),
        "No machines are running; start one with `nyx run`.\n"
    );
    assert_eq!(world.says("ps -o json"), "[]\n");
    assert_eq!(
        world.says("top --once"),
        "No machines are running; start one with `nyx run`.\n"
    );
    assert_eq!(world.says("top -o json"), "[]\n");
}

#[test]
fn ps_lists_machines_the_deaf_and_the_dead() {
    let world = World::with(good);
    drop(UnixListener::bind(world.record("hung", "b1b2c3d4e5f6", 1)).unwrap());
    world.record("gone", "c1b2c3d4e5f6", 0);
    let outcome = world.run("ps");
    let pid = std::process::id();
    let width = pid.to_string().len().max(3);
    let golden = format!(
        "NAME  ID            PHASE      CPUS  MEMORY  UPTIME  {:>width$}\n\
         hung  b1b2c3d4e5f6  no answer     –       –       –  {:>width$}\n\
         web1  a1b2c3d4e5f6  running       2    512M  3h 12m  {pid:>width$}\n",
        "PID", 1
    );
    assert_eq!(outcome.stdout, golden);
    assert_eq!(
        outcome.stderr,
        "nyx: note: 1 more whose process has ended; `nyx ps -a` shows them\n"
    );
    let all = world.says("ps --all");
    assert!(all.contains("gone  c1b2c3d4e5f6  dead"), "{all}");
    let rows: serde_json::Value = serde_json::from_str(&world.says("ps -a -o json")).unwrap();
    assert_eq!(rows[2]["name"], "web1");
    assert_eq!(rows[2]["memory"], 512 << 20);
    assert_eq!(rows[0]["phase"], "dead");
}

#[test]
fn describe_and_lists() {
    let world = World::with(good);
    let pid = std::process::id();
    let golden = format!(
        "Name          web1\nId            a1b2c3d4e5f6\nPhase         running\nvCPUs         2\n\
         Memory        512M\nStarted       2026-11-21T06:00:00Z\nUptime        3h 12m\nGuest time    3h 12m\n\
         Resets        0\nProcess       {pid}\nVersion       0.1.0\nKernel        vmlinuz\n\
         Command line  console=ttyS0\n\n\
         Devices\n  NAME   KIND  LOCATION  REMOVABLE  BACKEND\n  disk0  disk  00:01.0   yes        /srv/root.img\n\n\
         Consoles\n  NAME  KIND  ATTACHED\n  com1  pty          0\n  hvc0  pty          0\n"
    );
    // By name, by the beginning of its name, of its id.
    for name in ["web1", "we", "a1b2"] {
        assert_eq!(world.says(&format!("describe {name}")), golden);
    }
    assert_eq!(
        world.says("disk ls web1"),
        "NAME   KIND  LOCATION  REMOVABLE  BACKEND\ndisk0  disk  00:01.0   yes        /srv/root.img\n"
    );
    assert_eq!(
        world.says("net ls web1"),
        "web1 has no network devices; add one with `nyx net add web1 …`.\n"
    );
    assert_eq!(world.says("net ls web1 -o json"), "[]\n");
    assert_eq!(
        world.says("operations web1"),
        "ID  KIND      TARGET  STATE   ASKED       PROGRESS\n \
         7  add-disk          failed  06:00:00.5  no such file\n \
         7  pause             done    06:00:00.5\n"
    );
    assert_eq!(
        world.says("cancel web1 7"),
        "web1: stop (operation 7) was cancelled\n"
    );
    assert_eq!(world.says("console web1 --last"), "login: ");
}

#[test]
fn inspect_shows_a_tree() {
    let world = World::with(good);
    let tree =
        "units:\n  disk0:\n    path: a\\u{1b}b\nvcpus:\n  9:\n    exits: 4\n  10:\n    exits: 5\n";
    assert_eq!(world.says("inspect web1"), tree);
    assert_eq!(world.says("inspect web1 --depth 1"), "units: …\nvcpus: …\n");
    assert_eq!(world.says("inspect web1 vcpus/9"), "exits: 4\n");
    assert_eq!(
        world.says("inspect web1 /vcpus/9/ -o json"),
        "{\n  \"exits\": 4\n}\n"
    );
    let refused = world.fails("inspect web1 nowhere", 3);
    assert_eq!(
        refused,
        "nyx: GET /v1/machine/inspect/nowhere: there is no such thing"
    );
}

#[test]
fn events_are_lines_in_either_format() {
    let world = World::with(good);
    assert_eq!(
        world.says("events web1"),
        "06:00:00.1     1  phase           running\n\
         06:00:01.2     2  fault           disk0: I/O \\u{1b}error\n\
         06:00:02.3     3  ended           powered-off\n"
    );
    let lines = world.says("events web1 -o json");
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(
        (lines.lines().count(), &last["ending"]),
        (3, &"powered-off".into())
    );
    let followed = world.run("events web1 --follow");
    assert_eq!(
        (followed.code, &*followed.stderr),
        (0, "nyx: note: machine `web1` has ended\n")
    );
}

#[test]
fn the_journal_is_printed_and_its_filter_changed() {
    let world = World::with(good);
    let line = "06:00:00.25  WARN   device      slow ms=12 unit=disk0\n";
    assert_eq!(world.says("logs web1 -n 5 --component device"), line);
    let followed = world.run("logs web1 -f");
    assert_eq!((followed.code, &*followed.stdout), (0, line));
    assert_eq!(
        world.says("logs web1 --level fatal"),
        "web1 has recorded nothing of that kind; `nyx log-filter web1` shows what is recorded.\n"
    );
    assert_eq!(world.run("logs web1 --level loud").code, 2);
    assert_eq!(world.says("log-filter web1"), "*=info\n");
    assert_eq!(world.says("log-filter web1 device=debug"), "device=debug\n");
    assert_eq!(
        world.says("log-filter web1 -o json"),
        "{\n  \"filter\": \"*=info\"\n}\n"
    );
}

#[test]
fn metrics_health_and_traces() {
    let world = World::with(good);
    assert_eq!(world.says("metrics web1"), PAGE);
    let samples: serde_json::Value =
        serde_json::from_str(&world.says("metrics web1 -o json")).unwrap();
    assert_eq!(samples[0]["labels"]["kind"], "mmio");
    assert_eq!(world.says("metrics web1 --report"), "exits:\n  rate: 1.5\n");
    assert!(world.says("metrics web1 --samples 3").contains("last=3"));
    let health = world.run("health web1");
    assert_eq!(health.code, 1);
    assert_eq!(
        health.stdout,
        "critical\n\nCHECK  STATUS    REASON\ndisk   critical  errors\nexits  healthy   5 per second\n\nError: disk0: I/O error\n"
    );
    let out = world.folder.path().join("t.json");
    let told = world.run(&format!("trace web1 -O {}", out.display()));
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(
        std::fs::read_to_string(&out).unwrap(),
        "{\"traceEvents\":[]}"
    );
    assert_eq!(world.says("trace web1 -O -"), "{\"traceEvents\":[]}");
    let refused = world.fails("trace web1 -O /nowhere/t.json", 1);
    assert!(
        refused.starts_with("nyx: /nowhere/t.json cannot be written: "),
        "{refused}"
    );
}

#[test]
fn a_debuggers_door_is_opened_and_closed() {
    let world = World::with(good);
    assert_eq!(
        world.says("debug web1"),
        "web1: gdb may connect; in gdb: target remote /run/nyx/web1/gdb.sock\n"
    );
    assert_eq!(
        world.says("debug web1 --close"),
        "web1: no debugger can connect any more\n"
    );
}

#[test]
fn top_prints_one_table_for_scripts() {
    let world = World::with(good);
    let table = world.says("top --once --interval 0.1");
    let mut lines = table.lines();
    let head = "NAME  PHASE    CPU%";
    assert!(lines.next().unwrap().starts_with(head), "{table}");
    assert!(
        lines.next().unwrap().starts_with("web1  running"),
        "{table}"
    );
    let rows: serde_json::Value =
        serde_json::from_str(&world.says("top web1 -o json --interval 0.1")).unwrap();
    assert_eq!(rows[0]["exits_per_second"]["mmio"], 0.0);
    assert_eq!(
        world.fails("top", 1),
        "nyx: top draws on a terminal, and this is none; `nyx top --once` prints a table"
    );
    assert_eq!(world.run("top --once --interval 0").code, 2);
}

#[test]
fn why_needs_a_machine_or_a_report() {
    let world = World::new();
    let refused = world.fails("why web1", 3);
    assert_eq!(
        refused,
        "nyx: no report is kept of a machine called \"web1\", and none runs; `nyx ps` lists those that do"
    );
    world.record("gone", "c1b2c3d4e5f6", 0);
    assert!(
        world
            .fails("why gone", 3)
            .contains("its process 0 was killed")
    );
}

#[test]
fn an_audit_trail_is_verified() {
    let world = World::new();
    let refused = world.fails("audit verify /nowhere/audit.jsonl", 1);
    assert!(
        refused.starts_with(
            "nyx: /nowhere/audit.jsonl cannot be verified with /nowhere/audit.jsonl.key.pub: "
        ),
        "{refused}"
    );
}

#[test]
fn names_complete_in_the_shell() {
    let world = World::with(good);
    world.machine("db", "d1b2c3d4e5f6", good);
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            world
                .says(&format!("completion {shell}"))
                .contains("NYX_COMPLETE"),
            "{shell}"
        );
    }
    let complete = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let mut command = world.nyx("");
        command
            .args(["--"])
            .args(&words)
            .env("NYX_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
            .env("_CLAP_IFS", " ")
            .env("_CLAP_COMPLETE_COMP_TYPE", "9");
        wait(command.spawn().unwrap()).stdout
    };
    assert_eq!(complete("nyx pause w"), "web1");
    assert_eq!(complete("nyx pause web1 d1"), "d1b2c3d4e5f6");
    assert_eq!(complete("nyx console web1 h"), "hvc0");
    assert_eq!(complete("nyx disk remove web1 d"), "disk0");
    assert_eq!(complete("nyx power-b"), "power-button");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let world = World::with(|asked, stream| {
        if asked.path.starts_with("/v1/machine/events") {
            open(stream, "text/event-stream");
            let event = b"data: {\"sequence\":1,\"time\":\"t\",\"event\":\"faults-muted\"}\n\n";
            while stream.write_all(event).is_ok() {}
        }
    });
    let mut child = world.nyx("events web1 --follow").spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut bytes = [0; 64];
    out.read_exact(&mut bytes).unwrap();
    drop(out);
    let outcome = wait(child);
    assert_eq!((outcome.code, &*outcome.stderr), (0, ""));
}
