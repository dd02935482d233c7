//! The lab does what it says: commands, streams, shared folders, ends, guests with stock kernels.
//!
//! Run by `cargo xtask test lab`; each test boots a lab of its own.

#![expect(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::fs;
use std::time::{Duration, Instant};

use nyx_harness::guests::{self, Flavour};
use nyx_harness::lab::{Ending, Input, Lab, LabCommand, Session, Share};

fn run(session: &mut Session, script: &str) -> (Ending, String, String) {
    let output = session.run(&LabCommand::script(script)).unwrap();
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    (output.ending, output.text(), stderr)
}

/// Is there a QEMU that this process started?
fn children() -> Vec<String> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        // A process may be gone by the time it is looked at.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // proc(5): the name in parentheses, the state, then the parent.
        let Some((name, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        if rest.split_whitespace().nth(1) == Some(own.as_str()) {
            found.push(name.to_owned());
        }
    }
    found
}

#[test]
#[ignore = "boots the lab"]
fn lab_runs_commands_as_they_are() {
    let shared = tempfile::tempdir().unwrap();
    fs::write(shared.path().join("question"), "6 times 7\n").unwrap();
    let here = shared.path().to_owned();
    let lab = Lab {
        shares: vec![Share {
            here,
            there: "/lab-out".into(),
            is_writable: true,
        }],
        ..Lab::default()
    };
    let mut session = lab.boot().unwrap();

    // Exit codes, signals and both streams.
    let (ending, out, err) = run(&mut session, "echo out; echo err >&2; exit 3");
    assert_eq!(
        (ending, out.as_str(), err.as_str()),
        (Ending::Exited(3), "out\n", "err\n")
    );
    assert_eq!(run(&mut session, "kill -9 $$").0, Ending::Exited(137));
    let missing = session.run(&LabCommand::new(["no-such-program"])).unwrap();
    assert_eq!(missing.ending, Ending::Exited(127));

    // Arguments, environment, folder.
    let words = ["a b", "it's", "$HOME", "", "*", "line\nbreak"];
    let mut command = LabCommand::new(["printf", "<%s>"].iter().chain(&words));
    let printed = session.run(&command).unwrap().success().unwrap().text();
    assert_eq!(printed, words.map(|word| format!("<{word}>")).concat());
    command = LabCommand::new(["sh", "-c", "echo $WORD; pwd"]);
    command.env = vec![("WORD".into(), "two words".into())];
    command.cwd = "/usr/share".into();
    assert_eq!(
        session.run(&command).unwrap().text(),
        "two words\n/usr/share\n"
    );

    // The devices that tests of a VMM need; a kernel of the lab's own.
    for device in ["kvm", "net/tun", "vhost-net", "vhost-vsock"] {
        let (ending, _, err) = run(
            &mut session,
            &format!("test -c /dev/{device} && exec 3<>/dev/{device}"),
        );
        assert_eq!(ending, Ending::Exited(0), "/dev/{device}: {err}");
    }
    let release = guests::kernel(Flavour::Full).unwrap().release;
    assert_eq!(run(&mut session, "uname -r").1, format!("{release}\n"));

    // Writes elsewhere stay in the lab; those in a shared folder come back.
    let script = "set -e; echo x >/usr/nyx-lab-was-here; cat /usr/nyx-lab-was-here\n\
                  read -r question </lab-out/question; echo \"$question is 42\" >/lab-out/answer";
    assert_eq!(run(&mut session, script).1, "x\n");
    assert!(!fs::exists("/usr/nyx-lab-was-here").unwrap());

    // What a command leaves running does not hold it up, and is gone at the next.
    let start = Instant::now();
    assert_eq!(run(&mut session, "sleep 300 & echo started").1, "started\n");
    assert!(start.elapsed() < Duration::from_secs(30));
    assert_eq!(run(&mut session, "pidof sleep").0, Ending::Exited(1));

    // Much output, intact, with a stream that is slower than the other.
    let script = "dd if=/dev/urandom of=/tmp/big bs=1M count=100 status=none\n\
                  sha256sum </tmp/big >&2; cat /tmp/big";
    let big = session
        .run(&LabCommand::script(script))
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(big.stdout.len(), 100 << 20);
    let sum = nyx_harness::tool::Tool::new("sha256sum");
    fs::write(shared.path().join("big"), &big.stdout).unwrap();
    let here = sum.arg(shared.path().join("big")).text().unwrap();
    let there = String::from_utf8(big.stderr).unwrap();
    assert_eq!(here.split(' ').next(), there.split(' ').next());

    // Standard input, to its end.
    let source: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let input = Input::From(Box::new(std::io::Cursor::new(source.clone())));
    let (ending, _) = session
        .stream(&LabCommand::new(["cat"]), input, &mut out, &mut err)
        .unwrap();
    assert_eq!(ending, Ending::Exited(0));
    assert!(
        out == source,
        "{} bytes of {} came back",
        out.len(),
        source.len()
    );

    assert_eq!(children().len(), 1, "{:?}", children());
    session.end().unwrap();
    assert_eq!(children(), Vec::<String>::new());
    assert_eq!(
        fs::read_to_string(shared.path().join("answer")).unwrap(),
        "6 times 7 is 42\n"
    );
}

#[test]
#[ignore = "boots the lab"]
fn lab_ends_a_command_that_hangs() {
    let mut session = Lab::default().boot().unwrap();
    let command = LabCommand::script("echo begun; exec sleep 1000").within(Duration::from_secs(3));
    let output = session.run(&command).unwrap();
    assert_eq!(output.ending, Ending::TimedOut);
    assert_eq!(output.text(), "begun\n");
    assert_eq!(children(), Vec::<String>::new(), "the emulator is gone");
    assert!(
        session
            .run(&command)
            .unwrap_err()
            .to_string()
            .contains("has ended")
    );
}

#[test]
#[ignore = "boots the lab"]
fn lab_that_breaks_says_why() {
    let wrong = Lab {
        qemu_arguments: vec!["-device".into(), "no-such-device".into()],
        ..Lab::default()
    };
    let error = format!("{:#}", wrong.boot().unwrap_err());
    assert!(error.contains("no-such-device"), "{error}");

    let mut session = Lab::default().boot().unwrap();
    let error = session
        .run(&LabCommand::script("echo c >/proc/sysrq-trigger"))
        .unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("ended by itself") && error.contains("Kernel panic"),
        "{error}"
    );
    assert_eq!(children(), Vec::<String>::new());
}
