//! Verbs that change a machine.

use crate::looking::good;
use crate::rig::{World, operation, wait};
use nyx_api::{Code, OperationKind, OperationState, Problem};
use nyx_client::fake::{Asked, json};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use std::io::BufRead as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};

/// The kind of operation that a `POST` or `DELETE` begins.
fn kind(asked: &Asked) -> Option<OperationKind> {
    let path = asked.path.split('?').next().unwrap_or_default();
    let removes = asked.method == "DELETE";
    Some(match path.strip_prefix("/v1/machine/")? {
        "disks" => OperationKind::AddDisk,
        "nets" => OperationKind::AddNet,
        path if removes && path.starts_with("disks/") => OperationKind::RemoveDisk,
        path if removes && path.starts_with("nets/") => OperationKind::RemoveNet,
        path => *OperationKind::ALL.iter().find(|kind| kind.name() == path)?,
    })
}

/// A machine that does what it is asked, which takes three looks; and what it was asked.
fn obeying() -> (World, Receiver<Asked>) {
    let (tell, told) = channel();
    let looks = AtomicU32::new(0);
    let current = Mutex::new(OperationKind::Pause);
    let world = World::with(move |asked, stream| {
        if asked.path.starts_with("/v1/operations/") {
            let done = looks.fetch_add(1, Ordering::SeqCst) >= 2;
            let state = if done {
                OperationState::Done
            } else {
                OperationState::Running
            };
            return json(stream, 200, &operation(*current.lock(), state));
        }
        match kind(asked).filter(|_| asked.method != "GET") {
            Some(kind) => {
                looks.store(0, Ordering::SeqCst);
                *current.lock() = kind;
                tell.send(asked.clone()).unwrap();
                json(stream, 202, &operation(kind, OperationState::Waiting));
            }
            None => good(asked, stream),
        }
    });
    (world, told)
}

#[test]
fn what_was_asked_is_waited_for_and_confirmed() {
    let (world, told) = obeying();
    for (verb, confirmed) in [
        ("pause", "paused"),
        ("resume", "resumed"),
        ("reset", "reset"),
        ("power-button", "power button pressed"),
        ("nmi", "NMI injected"),
    ] {
        assert_eq!(
            world.says(&format!("{verb} web1")),
            format!("web1: {confirmed}\n")
        );
        let asked = told.recv().unwrap();
        assert_eq!(
            (asked.method, asked.path),
            ("POST".into(), format!("/v1/machine/{verb}"))
        );
    }
    assert_eq!(
        world.says("pause web1 --no-wait"),
        "web1: pause is operation 7\n"
    );
    let done: serde_json::Value = serde_json::from_str(&world.says("pause web1 -o json")).unwrap();
    assert_eq!(done[0]["machine"], "web1");
    assert_eq!(done[0]["operation"]["state"], "done");
    // One machine under two names is asked once.
    assert_eq!(world.says("pause web1 a1b2"), "web1: paused\n");
}

#[test]
fn devices_come_and_go() {
    let (world, told) = obeying();
    assert_eq!(
        world.says("disk add web1 data.img,readonly,name=data"),
        "web1: disk added\n"
    );
    let asked = told.recv().unwrap();
    let disk: serde_json::Value = serde_json::from_str(&asked.body).unwrap();
    assert_eq!(
        (&disk["name"], &disk["readonly"]),
        (&"data".into(), &true.into())
    );
    // The machine's process may stand in another folder.
    let path = std::env::current_dir().unwrap().join("data.img");
    assert_eq!(disk["path"], path.to_str().unwrap());
    assert_eq!(world.says("disk remove web1 disk0"), "web1: disk removed\n");
    assert_eq!(told.recv().unwrap().path, "/v1/machine/disks/disk0");
    world.says("disk remove web1 disk0 --force");
    assert_eq!(
        told.recv().unwrap().path,
        "/v1/machine/disks/disk0?force=true"
    );
    assert_eq!(world.says("net add web1 user"), "web1: network added\n");
    assert!(told.recv().unwrap().body.contains("\"kind\":\"user\""));

    let refused = world.fails("disk add web1 data.img,readonyl", 1);
    assert!(
        refused.contains("readonyl") && refused.contains("did you mean `readonly`"),
        "{refused}"
    );
    assert_eq!(
        world.fails("disk remove web1 dsik0", 3),
        "nyx: machine `web1` has no disk called \"dsik0\"; did you mean `disk0`?"
    );
    assert_eq!(
        world.fails("net remove web1 net0", 3),
        "nyx: machine `web1` has no network device called \"net0\"; it has none"
    );
}

#[test]
fn names_that_fit_none_or_several_are_refused_with_the_mend() {
    let (world, _told) = obeying();
    world.machine("web2", "a9b2c3d4e5f6", good);
    world.record("gone", "c1b2c3d4e5f6", 0);
    assert_eq!(
        world.fails("pause wbe1", 3),
        "nyx: no machine is called \"wbe1\"; did you mean `web1`?"
    );
    let refused = world.fails("pause web", 3);
    assert_eq!(
        refused,
        "nyx: \"web\" fits several machines, web1 (a1b2c3d4e5f6), web2 (a9b2c3d4e5f6): write more of the name or id"
    );
    assert!(
        world
            .fails("pause gone", 4)
            .contains("its process 0 has ended")
    );
    // The others are paused all the same.
    let outcome = world.run("pause wbe1 web1");
    assert_eq!((outcome.code, &*outcome.stdout), (3, "web1: paused\n"));
    let refused = world.fails("pause nobody -o json", 3);
    let error: serde_json::Value = serde_json::from_str(&refused).unwrap();
    assert_eq!(error["error"]["kind"], "not-found");
    assert_eq!(error["error"]["exit"], 3);
}

fn answering(answer: impl Fn(&mut UnixStream) + Send + Sync + 'static) -> World {
    World::with(move |_, stream| answer(stream))
}

#[test]
fn refusals_failures_and_cancellations_have_codes_of_their_own() {
    let world = answering(|stream| {
        let problem = Problem::new(Code::Conflict, "the machine is paused already")
            .field("phase")
            .mend("resume it first");
        json(stream, problem.status, &problem);
    });
    assert_eq!(
        world.fails("pause web1", 1),
        "nyx: the machine is paused already; resume it first"
    );
    let error: serde_json::Value =
        serde_json::from_str(&world.run("pause web1 -o json").stderr).unwrap();
    assert_eq!(error["error"]["problem"]["field"], "phase");

    let world = answering(|stream| {
        let mut failed = operation(OperationKind::Reset, OperationState::Failed);
        failed.problem = Some(Problem::new(Code::Failed, "disk0 does not come to rest"));
        json(stream, 200, &failed);
    });
    assert_eq!(
        world.fails("reset web1", 1),
        "nyx: disk0 does not come to rest"
    );
    assert_eq!(
        world.fails("reset web1 web1 ", 1),
        "nyx: web1: disk0 does not come to rest"
    );

    let world = answering(|stream| {
        json(
            stream,
            200,
            &operation(OperationKind::Stop, OperationState::Cancelled),
        );
    });
    assert_eq!(world.fails("stop web1", 5), "nyx: stop was cancelled");
}

#[test]
fn stop_waits_for_the_process_and_kill_needs_no_answer() {
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    let world = World::new();
    let socket = world.record("web1", "a1b2c3d4e5f6", child.id());
    let pid = Pid::from_child(&child);
    let (tell, told) = channel();
    nyx_client::fake::Fake::at(socket, move |asked, stream| {
        tell.send(asked.clone()).unwrap();
        if asked.path.ends_with("/kill") {
            kill_process(pid, Signal::KILL).unwrap();
            return;
        }
        json(
            stream,
            200,
            &operation(OperationKind::Stop, OperationState::Done),
        );
        // The process ends a while after its answer.
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            kill_process(pid, Signal::TERM).unwrap();
        });
    })
    .unwrap();
    assert_eq!(world.says("stop web1 --timeout 5"), "web1: stopped\n");
    assert_eq!(told.recv().unwrap().body, "{\"timeout\":5}");
    assert!(child.try_wait().unwrap().is_some(), "the process still ran");
    assert_eq!(world.run("stop web1 --timeout 100000").code, 2);
    assert_eq!(world.says("kill web1"), "web1: killed\n");
}

#[test]
fn ctrl_c_cancels_and_a_second_one_leaves() {
    let cancelled = Arc::new(AtomicU32::new(0));
    let seen = cancelled.clone();
    let world = World::with(move |asked, stream| {
        let state = if asked.method == "DELETE" {
            // The first time it goes on nevertheless.
            match seen.fetch_add(1, Ordering::SeqCst) {
                0 => OperationState::Running,
                _ => OperationState::Cancelled,
            }
        } else {
            OperationState::Running
        };
        json(stream, 200, &operation(OperationKind::Stop, state));
    });
    let interrupted = |presses: u32| {
        let mut child = world.nyx("stop web1").spawn().unwrap();
        let pid = Pid::from_child(&child);
        std::thread::sleep(std::time::Duration::from_millis(700));
        kill_process(pid, Signal::INT).unwrap();
        let mut errors = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        errors.read_line(&mut said).unwrap();
        if presses > 1 {
            kill_process(pid, Signal::INT).unwrap();
        }
        errors.read_line(&mut said).unwrap();
        (wait(child).code, said)
    };
    let (code, said) = interrupted(2);
    assert_eq!(
        said,
        "nyx: web1: cancelling stop (operation 7); Ctrl-C again stops waiting\n\
         nyx: stop goes on as operation 7; `nyx operations web1` shows it\n"
    );
    assert_eq!(code, 130);
    assert_eq!(cancelled.load(Ordering::SeqCst), 1);
    let (code, said) = interrupted(1);
    assert!(said.ends_with("nyx: stop was cancelled\n"), "{said}");
    assert_eq!(code, 5);
}
