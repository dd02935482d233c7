//! Every call against a server that answers well, and servers that answer badly.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails by panicking, in its helpers too"
)]

use nyx_api::{
    Code, Happening, Operation, OperationKind, OperationState, Phase, Problem, Progress,
};
use nyx_client::blocking::Blocking;
use nyx_client::fake::{Asked, Fake, json, open, reply, upgrade};
use nyx_client::{CallError, Client, LogQuery, MemoryQuery, Patience};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

fn serving(
    answer: impl Fn(&Asked, &mut UnixStream) + Send + Sync + 'static,
) -> (tempfile::TempDir, Client, Blocking) {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::at(folder.path().join("api.sock"), answer).unwrap();
    let client = Client::new(fake.socket()).within(Duration::from_secs(5));
    (folder, client, Blocking::new().unwrap())
}

fn operation(kind: OperationKind, state: OperationState) -> Operation {
    Operation {
        id: 7,
        kind,
        target: None,
        state,
        progress: Progress::default(),
        cancellable: true,
        asked: "2026-11-21T06:00:00Z".into(),
        ended: None,
        problem: None,
    }
}

/// A server that answers `body` to everything and tells what it was asked.
fn recording(body: &'static str) -> (tempfile::TempDir, Client, Blocking, Receiver<Asked>) {
    let (tell, told) = channel();
    let (folder, client, blocking) = serving(move |asked, stream| {
        tell.send(asked.clone()).unwrap();
        reply(stream, 200, "application/json", body);
    });
    (folder, client, blocking, told)
}

#[test]
fn each_call_asks_with_the_method_path_and_body_of_the_contract() {
    let (_folder, client, blocking, told) = recording("null");
    let asked = |done: Result<(), CallError>| {
        let asked = told.recv().unwrap();
        // `null` is no operation, machine or list; what was asked is what matters here.
        assert!(
            matches!(done, Ok(()) | Err(CallError::Garbage(_))),
            "{done:?}"
        );
        format!("{} {} {}", asked.method, asked.path, asked.body)
    };
    macro_rules! asks {
        ($($call:expr => $asked:expr,)*) => {$(
            assert_eq!(asked(blocking.on($call).map(|_| ())), $asked);
        )*};
    }
    let disk = nyx_spec::parse_options("a.img,readonly", "path", &[]).unwrap();
    let net = nyx_spec::parse_options("user", "kind", &[]).unwrap();
    let filter = nyx_api::LogFilter {
        filter: "*=info".into(),
    };
    let some = LogQuery {
        last: Some(5),
        level: Some("warn".into()),
        component: Some("a b".into()),
    };
    let memory = MemoryQuery {
        address: 4096,
        length: 16,
        vcpu: Some(1),
    };
    asks! {
        client.machine() => "GET /v1/machine ",
        client.config() => "GET /v1/machine/config ",
        client.plan() => "GET /v1/machine/plan ",
        client.ask(OperationKind::Pause) => "POST /v1/machine/pause ",
        client.ask(OperationKind::Resume) => "POST /v1/machine/resume ",
        client.ask(OperationKind::PowerButton) => "POST /v1/machine/power-button ",
        client.ask(OperationKind::Reset) => "POST /v1/machine/reset ",
        client.ask(OperationKind::Kill) => "POST /v1/machine/kill ",
        client.ask(OperationKind::Nmi) => "POST /v1/machine/nmi ",
        client.stop(&nyx_api::StopRequest { timeout: 5 }) => "POST /v1/machine/stop {\"timeout\":5}",
        client.disks() => "GET /v1/machine/disks ",
        client.remove_disk("a/b", false) => "DELETE /v1/machine/disks/a%2Fb ",
        client.remove_disk("d", true) => "DELETE /v1/machine/disks/d?force=true ",
        client.nets() => "GET /v1/machine/nets ",
        client.remove_net("n", true) => "DELETE /v1/machine/nets/n?force=true ",
        client.consoles() => "GET /v1/machine/consoles ",
        client.console_text("com1") => "GET /v1/machine/consoles/com1 ",
        client.inspect("", None) => "GET /v1/machine/inspect ",
        client.inspect("/pci/00:03.0/", Some(2)) => "GET /v1/machine/inspect/pci/00%3A03.0?depth=2 ",
        client.logs(&LogQuery::default()) => "GET /v1/machine/logs ",
        client.logs(&some) => "GET /v1/machine/logs?last=5&level=warn&component=a%20b ",
        client.log_filter() => "GET /v1/machine/logs/filter ",
        client.set_log_filter(&filter) => "PUT /v1/machine/logs/filter {\"filter\":\"*=info\"}",
        client.trace() => "GET /v1/machine/trace ",
        client.metrics() => "GET /metrics ",
        client.report() => "GET /v1/machine/metrics/report ",
        client.samples(Some(3)) => "GET /v1/machine/metrics/samples?last=3 ",
        client.health() => "GET /v1/machine/health ",
        client.operations() => "GET /v1/operations ",
        client.operation(7) => "GET /v1/operations/7 ",
        client.cancel(7) => "DELETE /v1/operations/7 ",
        client.registers(3) => "GET /v1/machine/vcpus/3/registers ",
        client.vcpus(64) => "GET /v1/machine/vcpus?stack=64 ",
        client.memory(memory) => "GET /v1/machine/memory?address=0x1000&length=16&vcpu=1 ",
    }
    let added = asked(blocking.on(client.add_disk(&disk)).map(|_| ()));
    assert!(added.starts_with("POST /v1/machine/disks {"), "{added}");
    assert!(
        added.contains("\"path\":\"a.img\"") && added.contains("\"readonly\":true"),
        "{added}"
    );
    let added = asked(blocking.on(client.add_net(&net)).map(|_| ()));
    assert!(
        added.contains("POST /v1/machine/nets {") && added.contains("\"kind\":\"user\""),
        "{added}"
    );
}

#[test]
fn a_refusal_says_what_the_machine_said() {
    let (_folder, client, blocking) = serving(|_, stream| {
        let problem = Problem::new(Code::Conflict, "the machine is paused already")
            .field("phase")
            .mend("resume it first");
        json(stream, problem.status, &problem);
    });
    let refused = blocking.on(client.machine()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the machine is paused already; resume it first"
    );
    assert_eq!(refused.problem().unwrap().code, Code::Conflict);
}

/// What the client says of a server that writes `bytes` and hangs up.
fn said_of(bytes: &'static [u8]) -> CallError {
    let (_folder, client, blocking) = serving(move |_, stream| {
        let _ = stream.write_all(bytes);
    });
    blocking.on(client.machine()).unwrap_err()
}

#[test]
fn servers_that_answer_badly_are_told_apart() {
    assert!(matches!(said_of(b""), CallError::Closed(_)));
    assert!(matches!(
        said_of(b"HTTP/1.1 200 OK\r\nContent-Le"),
        CallError::Closed(_)
    ));
    let short = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"id\":";
    assert!(matches!(said_of(short), CallError::Closed(_)));
    for garbage in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"\x00\x01\x02\x03\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy",
        b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    ] {
        let said = said_of(garbage);
        assert!(
            matches!(said, CallError::Garbage(_)),
            "{garbage:?}: {said:?}"
        );
        assert_eq!(said.to_string().lines().count(), 1, "{said}");
    }
}

#[test]
fn a_server_that_hangs_is_left_in_time() {
    for half in [
        &b""[..],
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
    ] {
        let (_folder, client, blocking) = serving(move |_, stream| {
            stream.write_all(half).unwrap();
            std::thread::sleep(Duration::from_secs(20));
        });
        let began = Instant::now();
        let client = client.within(Duration::from_millis(200));
        let said = blocking.on(client.machine()).unwrap_err();
        assert!(matches!(said, CallError::TimedOut { .. }), "{said:?}");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn nobody_there_is_unreachable() {
    let blocking = Blocking::new().unwrap();
    let said = blocking
        .on(Client::new("/nowhere/api.sock").machine())
        .unwrap_err();
    assert!(said.is_gone());
    assert_eq!(
        said.to_string(),
        "the control socket /nowhere/api.sock takes no connection: No such file or directory (os error 2)"
    );
}

#[test]
fn events_are_read_until_the_server_has_no_more() {
    let (_folder, client, blocking) = serving(|asked, stream| {
        assert_eq!(asked.path, "/v1/machine/events?since=3&follow=true");
        open(stream, "text/event-stream");
        let _ = stream.write_all(
            b": ping\n\nid: 4\ndata: {\"sequence\":4,\"time\":\"t\",\"event\":\"phase\",\"phase\":\"paused\"}\n\n",
        );
    });
    let mut events = blocking.on(client.events(Some(3), true)).unwrap();
    let event = blocking.on(events.next()).unwrap().unwrap();
    assert_eq!(
        (event.sequence, event.what),
        (
            4,
            Happening::Phase {
                phase: Phase::Paused
            }
        )
    );
    assert_eq!(blocking.on(events.next()), Ok(None));
}

#[test]
fn a_silent_stream_can_be_looked_at_again() {
    let (_folder, client, blocking) = serving(|_, stream| {
        open(stream, "text/event-stream");
        std::thread::sleep(Duration::from_millis(150));
        let _ = stream
            .write_all(b"data: {\"sequence\":1,\"time\":\"t\",\"event\":\"faults-muted\"}\n\n");
        let _ = stream.write_all(b"data: nonsense\n\n");
    });
    let mut events = blocking.on(client.events(None, true)).unwrap();
    let mut looks = 0;
    let event = loop {
        looks += 1;
        if let Some(event) = blocking
            .next(&mut events, Duration::from_millis(20))
            .unwrap()
        {
            break event;
        }
    };
    assert!(looks > 1);
    assert_eq!(event.unwrap().what, Happening::FaultsMuted);
    assert!(matches!(
        blocking.on(events.next()),
        Err(CallError::Garbage(_))
    ));
}

#[test]
fn a_console_is_joined_with_what_was_said_before() {
    let (_folder, client, blocking) = serving(|asked, stream| {
        assert!(
            asked.headers.contains(&"upgrade: nyx-console".into()),
            "{:?}",
            asked.headers
        );
        upgrade(stream, "nyx-console");
        stream.write_all(b"login: ").unwrap();
        let mut typed = [0; 4];
        stream.read_exact(&mut typed).unwrap();
        stream.write_all(&typed.to_ascii_uppercase()).unwrap();
    });
    let mut console = blocking.on(client.attach("com1")).unwrap();
    console.stream.write_all(b"root").unwrap();
    let mut said = console.said;
    console.stream.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"login: ROOT");
}

#[test]
fn waiting_ends_with_the_operation_and_can_cancel_it() {
    let (_folder, client, blocking) = serving(|asked, stream| {
        let state = match asked.method.as_str() {
            "DELETE" => OperationState::Cancelled,
            _ => OperationState::Running,
        };
        json(stream, 200, &operation(OperationKind::Reset, state));
    });
    let begun = operation(OperationKind::Reset, OperationState::Waiting);
    let mut looks = 0;
    let ended = blocking.on(client.wait(begun.clone(), |_| {
        looks += 1;
        if looks < 3 {
            Patience::Wait
        } else {
            Patience::Cancel
        }
    }));
    assert_eq!(ended.unwrap().state, OperationState::Cancelled);
    let left = blocking.on(client.wait(begun, |_| Patience::Leave));
    assert_eq!(left.unwrap().state, OperationState::Waiting);
}

#[test]
fn a_machine_that_goes_away_when_stopped_has_stopped() {
    let (_folder, client, blocking) = serving(|_, _| {});
    let wait = |kind| {
        let begun = operation(kind, OperationState::Running);
        blocking.on(client.wait(begun, |_| Patience::Wait))
    };
    assert_eq!(
        wait(OperationKind::Stop).unwrap().state,
        OperationState::Done
    );
    assert!(matches!(
        wait(OperationKind::Pause),
        Err(CallError::Closed(_))
    ));
}
