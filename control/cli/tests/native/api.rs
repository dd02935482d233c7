//! The control socket of a real machine, against its own description and against clients that behave badly.

use crate::rig::{nyx, until};
use nyx_payload::{Command as Guest, Ending};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// A machine in the background whose guest waits for ever. Dropping it kills it.
struct Background {
    runtime: tempfile::TempDir,
}

impl Background {
    fn start() -> Self {
        let runtime = tempfile::tempdir().unwrap();
        let guest = Guest::new().test("serial").then(Ending::Hang);
        let background = Self { runtime };
        let status = background
            .nyx(["run", "--daemon", "--name", "it", "--kernel"])
            .arg(nyx_payload::elf_path())
            .args(["--cmdline", &guest.to_string()])
            .status()
            .unwrap();
        assert!(status.success());
        background
    }

    fn nyx<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = nyx(arguments);
        command.env("NYX_RUNTIME_DIR", self.runtime.path());
        command.env("NYX_STATE_DIR", self.runtime.path().join("state"));
        command
    }

    fn socket(&self) -> PathBuf {
        self.runtime.path().join("it/api.sock")
    }

    /// One request on a connection of its own; status and body.
    fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let kind = "content-type: application/json\r\nconnection: close";
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: nyx\r\n{kind}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        (status, body)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.nyx(["kill", "it"]).output();
        // Its folder is gone when it is.
        until("the end of the machine", || !self.socket().exists());
    }
}

/// Lets TCP clients reach the Unix socket: schemathesis speaks no other.
fn relay(to: &Path) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = to.to_owned();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, Ok(server)) = (client.unwrap(), UnixStream::connect(&to)) else {
                return;
            };
            let (mut from_client, mut to_client) = (client.try_clone().unwrap(), client);
            let (mut from_server, mut to_server) = (server.try_clone().unwrap(), server);
            thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut to_server);
                let _ = to_server.shutdown(std::net::Shutdown::Write);
            });
            thread::spawn(move || {
                let _ = std::io::copy(&mut from_server, &mut to_client);
                let _ = to_client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    port
}

/// Every body of a wrong type, range, phase or name is refused as described, every answer has the described shape,
/// and the machine is there afterwards.
#[test]
#[ignore = "needs KVM"]
fn native_the_interface_is_what_its_description_says() {
    let machine = Background::start();
    let port = relay(&machine.socket());
    let folder = tempfile::tempdir().unwrap();
    // What ends the machine or crashes a guest without handlers is left out, and so is what never ends.
    std::fs::write(
        folder.path().join("schemathesis.toml"),
        "[checks.positive_data_acceptance]\n\
         # A disk that is not there, a name that is taken, a number with a fraction of zero: well-formed, and refused.\n\
         expected-statuses = [\"2xx\", 401, 403, 404, 409, 410, 422, 429, 501]\n\
         [checks.not_a_server_error]\n\
         # A host's KVM that has no such feature.\n\
         expected-statuses = [\"2xx\", \"3xx\", \"4xx\", 501]\n",
    )
    .unwrap();
    let mut command = nyx_harness::schemathesis::schemathesis().unwrap().command();
    let left_out = ["kill", "stop", "nmi", "events", "logs"];
    command
        .current_dir(folder.path())
        .args(["run", &format!("http://127.0.0.1:{port}/v1/openapi.json")])
        .args(left_out.map(|path| format!("--exclude-path=/v1/machine/{path}")))
        // Cancelling an operation does not make it unheard of.
        .args([
            "--phases=examples,coverage,fuzzing",
            "--exclude-checks=use_after_free",
        ])
        .args(["--max-examples=15", "--seed=1", "--request-timeout=40"])
        .args(["--no-color", "--warnings=off"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    // It did call: the number of cases is in its summary.
    assert!(
        said.contains("generated") && said.contains("Tested"),
        "{said}"
    );
    let (status, body) = machine.call("GET", "/v1/machine", "");
    assert_eq!(status, 200, "{body}");
}

#[test]
#[ignore = "needs KVM"]
fn native_bad_requests_name_field_value_and_mend() {
    let machine = Background::start();
    let long = format!("{{\"timeout\": {}}}", "1".repeat(70_000));
    let cases = [
        (
            "POST",
            "/v1/machine/stop",
            "{\"timeout\": -1}",
            422,
            "timeout",
        ),
        (
            "POST",
            "/v1/machine/stop",
            "{\"timeout\": 86401}",
            422,
            "give 0 to 86400",
        ),
        ("POST", "/v1/machine/stop", "{\"timout\": 1}", 422, "timout"),
        (
            "POST",
            "/v1/machine/stop",
            "{\"timeout\": 1",
            400,
            "not JSON",
        ),
        (
            "POST",
            "/v1/machine/stop",
            long.as_str(),
            413,
            "longer than",
        ),
        ("POST", "/v1/machine/resume", "", 409, "not paused"),
        ("POST", "/v1/machine/pause?wait=soon", "", 400, "query"),
        ("POST", "/v1/machine/pause?wait=601", "", 400, "up to 600"),
        ("DELETE", "/v1/machine", "", 405, "does not take DELETE"),
        ("GET", "/v1/machines", "", 404, "openapi.json"),
        ("GET", "/v1/operations/77", "", 404, "77"),
        ("DELETE", "/v1/machine/disks/data", "", 404, "data"),
        ("POST", "/v1/machine/disks", "{\"path\": 7}", 422, "path"),
        (
            "POST",
            "/v1/machine/nets",
            "{\"kind\": \"tun\"}",
            422,
            "kind",
        ),
        (
            "POST",
            "/v1/machine/nets",
            "{\"kind\": \"null\", \"mac\": \"x\"}",
            422,
            "mac",
        ),
        ("GET", "/v1/machine/inspect/units/com9", "", 404, "com1"),
        ("GET", "/v1/machine/consoles/com9", "", 404, "com1"),
        (
            "GET",
            "/v1/machine/memory?address=oops&length=8",
            "",
            400,
            "0x100000",
        ),
    ];
    for (method, path, body, status, word) in cases {
        let (given, said) = machine.call(method, path, body);
        let shown: String = body.chars().take(60).collect();
        assert_eq!(given, status, "{method} {path} {shown}: {said}");
        assert!(said.contains(word), "{method} {path} {shown}: {said}");
        let problem: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(problem["status"], status, "{said}");
        assert!(
            problem["mend"].is_string() || problem["field"].is_string(),
            "{said}"
        );
    }
    // Phases: what is paused cannot be paused, and goes on.
    assert_eq!(machine.call("POST", "/v1/machine/pause?wait=10", "").0, 200);
    let (status, said) = machine.call("POST", "/v1/machine/pause", "");
    assert!(status == 409 && said.contains("paused already"), "{said}");
    assert_eq!(
        machine.call("POST", "/v1/machine/resume?wait=10", "").0,
        200
    );
}

#[test]
#[ignore = "needs KVM"]
fn native_clients_that_hang_flood_or_vanish_cost_nothing() {
    let machine = Background::start();
    let mut hanging = Vec::new();
    // More than the socket serves at a time: half a request each, and silence.
    for n in 0..200 {
        let mut stream = UnixStream::connect(machine.socket()).unwrap();
        if n % 2 == 0 {
            // The server may have sent away those that came first.
            let _ = stream.write_all(b"GET /v1/machine HTTP/1.1\r\nhost: ny");
        }
        hanging.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(machine.call("GET", "/v1/machine", "").0, 200);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "the others are in the way"
    );
    // Half a body, and gone; a stream of events, and gone; no HTTP at all.
    for request in [
        "POST /v1/machine/stop HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{\"time",
        "GET /v1/machine/events HTTP/1.1\r\nhost: x\r\n\r\n",
        "\x00\x01\x02 rubbish\r\n\r\n",
    ] {
        let mut stream = UnixStream::connect(machine.socket()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
    }
    drop(hanging);
    let (status, body) = machine.call("GET", "/v1/machine", "");
    assert!(
        status == 200 && body.contains("\"phase\":\"running\""),
        "{body}"
    );
}

/// The page of a real machine is what `promtool` and Prometheus take, and `docs/metrics.md` lists all of it, the
/// figures that KVM itself keeps included.
#[test]
#[ignore = "needs KVM"]
fn native_a_machines_metrics_are_well_formed_and_documented() {
    let machine = Background::start();
    let (status, page) = machine.call("GET", "/metrics", "");
    assert_eq!(status, 200);
    let tools = nyx_harness::prometheus::prometheus().unwrap();
    let mut check = Command::new(&tools.promtool)
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(page.as_bytes())
        .unwrap();
    let said = check.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        said.status.success() && complaints.is_empty(),
        "{complaints}"
    );
    let document = nyx_harness::workspace::root().join("docs/metrics.md");
    let document = std::fs::read_to_string(document).unwrap();
    let names = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names: Vec<_> = names.filter_map(|line| line.split(' ').next()).collect();
    assert!(names.len() > 30, "{page}");
    for name in &names {
        assert!(document.contains(&format!("| `{name}` |")), "{name}");
    }
    // The guest has run, so KVM has counted, if it counts.
    let made = page
        .lines()
        .find(|line| line.starts_with("nyx_vcpu_exits_total"));
    assert!(made.is_some(), "{page}");
}
