//! Machines that answer badly, and command lines that make no sense: one clear sentence each.

use crate::looking::good;
use crate::rig::World;
use nyx_client::fake::{json, open, reply, upgrade};
use std::io::Write as _;
use std::time::{Duration, Instant};

/// One line for each of some verbs, from a machine that writes `bytes` and hangs up.
fn said_of(bytes: &'static [u8]) -> String {
    let world = World::with(move |_, stream| {
        let _ = stream.write_all(bytes);
    });
    let verbs = [
        "describe web1",
        "pause web1",
        "events web1",
        "logs web1",
        "inspect web1",
        "console web1",
        "stack web1",
    ];
    let mut said = verbs.map(|verb| world.fails(verb, 4));
    said.sort();
    assert!(said[0].starts_with("nyx: "), "{said:?}");
    // The list goes on without it.
    let list = world.says("ps");
    assert!(list.contains("web1  a1b2c3d4e5f6  no answer"), "{list}");
    said[0].clone()
}

#[test]
fn what_is_no_answer_is_told() {
    let garbage = "does not speak as a Nyx machine does";
    assert!(said_of(b"SSH-2.0-OpenSSH_9.2\r\n").contains(garbage));
    assert!(
        said_of(b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno").contains("its answer is 500")
    );
    assert!(said_of(b"").contains("the machine hung up before it had answered"));
    assert!(said_of(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{").contains("hung up"));
}

#[test]
fn answers_of_the_wrong_shape_are_told() {
    let world = World::with(|_, stream| reply(stream, 200, "application/json", "{\"id\":[]}"));
    let said = world.fails("describe web1", 4);
    assert!(
        said.contains("its answer to GET /v1/machine cannot be read: "),
        "{said}"
    );
    let world = World::with(|_, stream| reply(stream, 200, "text/plain", "\u{fffd}"));
    assert_eq!(world.run("metrics web1").code, 0);
    let world = World::with(|_, stream| {
        open(stream, "text/event-stream");
        let _ = stream.write_all(b"data: \xff\xfe\n\n");
    });
    assert!(world.fails("events web1", 4).contains("not UTF-8"));
    let world = World::with(|_, stream| {
        open(stream, "text/event-stream");
        let line = [b'x'; 4096];
        while stream.write_all(&line).is_ok() {}
    });
    assert!(world.fails("logs web1 -f", 4).contains("longer than"));
}

#[test]
fn a_machine_that_hangs_delays_the_list_and_nothing_else() {
    let world = World::with(|_, _| std::thread::sleep(Duration::from_secs(60)));
    world.machine("web2", "a2b2c3d4e5f6", good);
    let began = Instant::now();
    let list = world.says("ps");
    assert!(
        list.contains("no answer") && list.contains("web2  a2b2c3d4e5f6  running"),
        "{list}"
    );
    assert!(began.elapsed() < Duration::from_secs(8));
    let said = world.fails("describe web1", 4);
    assert!(
        said.contains("nothing came from its control socket"),
        "{said}"
    );
}

#[test]
fn a_console_that_is_none_is_told() {
    let world = World::with(|asked, stream| {
        if asked.path.ends_with("/consoles") {
            return good(asked, stream);
        }
        json(stream, 200, &"not upgraded");
    });
    assert!(
        world
            .fails("console web1", 4)
            .contains("does not let consoles be joined")
    );
    let world = World::with(|asked, stream| {
        if asked.path.ends_with("/consoles") {
            return good(asked, stream);
        }
        upgrade(stream, "nyx-console");
    });
    assert_eq!(world.says("console web1"), "");
}

#[test]
fn what_a_machine_says_cannot_drive_the_terminal() {
    let world = World::with(|asked, stream| {
        let mut machine = crate::rig::machine();
        machine.cmdline = Some("\u{1b}]0;owned\u{7}".into());
        match asked.path.as_str() {
            "/v1/machine" => json(stream, 200, &machine),
            _ => {
                let problem = nyx_api::Problem::new(nyx_api::Code::Failed, "bad \u{1b}[2J words");
                json(stream, 500, &problem);
            }
        }
    });
    assert!(!world.says("describe web1").contains('\u{1b}'));
    assert_eq!(
        world.fails("operations web1", 1),
        "nyx: bad \\u{1b}[2J words"
    );
}

#[test]
fn command_lines_that_make_no_sense() {
    let world = World::new();
    for line in [
        "pause",
        "stop web1 --timeout -1",
        "frobnicate",
        "cancel web1 x",
        "ps -o yaml",
    ] {
        let outcome = world.run(line);
        assert_eq!(outcome.code, 2, "{line}: {outcome:?}");
        assert!(outcome.stderr.starts_with("error: "), "{line}: {outcome:?}");
    }
    assert!(world.run("pasue web1").stderr.contains("'pause'"));
    let outcome = world.run("pasue web1 -o json");
    let error: serde_json::Value = serde_json::from_str(&outcome.stderr).unwrap();
    assert_eq!(
        (outcome.code, &error["error"]["kind"]),
        (2, &"usage".into())
    );
    let help = world.says("--help");
    assert!(
        help.contains("Exit codes") && help.contains("power-button"),
        "{help}"
    );
    assert!(
        help.lines().all(|line| line.chars().count() <= 100),
        "{help}"
    );
}
