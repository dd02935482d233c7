//! `nyx console`: between pipes and on a terminal, which is itself again afterwards.

use crate::rig::{World, console, read_until, wait};
use nyx_client::fake::{Asked, json, upgrade};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A console that gives everything back in capitals until it is told `quit`.
fn echoing(asked: &Asked, stream: &mut UnixStream) {
    if asked.path.ends_with("/consoles") {
        return json(stream, 200, &[console("com1"), console("hvc0")]);
    }
    let name = asked.path.rsplit('/').next().unwrap_or_default();
    upgrade(stream, "nyx-console");
    let _ = write!(stream, "said before on {name}\r\n");
    let mut typed = Vec::new();
    let mut bytes = [0; 64];
    while let Ok(n @ 1..) = stream.read(&mut bytes) {
        typed.extend_from_slice(&bytes[..n]);
        let _ = stream.write_all(&bytes[..n].to_ascii_uppercase());
        if typed.ends_with(b"quit") {
            return;
        }
    }
}

#[test]
fn pipes_carry_both_ways() {
    let world = World::with(echoing);
    let mut child = world
        .nyx("console web1")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // Ctrl-A is a byte like others here.
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"a\x01xb quit")
        .unwrap();
    let outcome = wait(child);
    assert_eq!(
        (outcome.code, &*outcome.stdout, &*outcome.stderr),
        (0, "said before on com1\r\nA\x01XB QUIT", "")
    );
}

#[test]
fn the_end_of_input_may_be_the_end() {
    let world = World::with(echoing);
    assert_eq!(
        world.says("console web1 hvc0 --leave-after 0"),
        "said before on hvc0\r\n"
    );
    assert_eq!(
        world.fails("console web1 com", 3),
        "nyx: machine `web1` has no console called \"com\"; did you mean `com1`?"
    );
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let world = World::with(echoing);
    let mut child = world
        .nyx("console web1")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    read_until(&mut output, "com1\r\n");
    drop(output);
    // What comes now cannot be printed.
    let _ = input.write_all(b"more");
    let outcome = wait(child);
    assert_eq!((outcome.code, &*outcome.stderr), (0, ""));
}

/// A terminal with the command on it.
struct Terminal {
    user: File,
    side: File,
    child: Child,
}

fn on_terminal(world: &World, line: &str) -> (Terminal, Termios) {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap();
    let side = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let size = Winsize {
        ws_row: 30,
        ws_col: 110,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&side, size).unwrap();
    let before = tcgetattr(&side).unwrap();
    let of = || Stdio::from(side.try_clone().unwrap());
    let child = world
        .nyx(line)
        .stdin(of())
        .stdout(of())
        .stderr(of())
        .spawn()
        .unwrap();
    let user = File::from(user);
    (Terminal { user, side, child }, before)
}

impl Terminal {
    fn reads(&mut self, words: &str) -> String {
        read_until(&mut self.user, words)
    }

    fn types(&mut self, bytes: &[u8]) {
        self.user.write_all(bytes).unwrap();
    }

    fn ends(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn assert_itself_again(&self, before: &Termios) {
        let now = tcgetattr(&self.side).unwrap();
        assert_eq!(now.local_modes, before.local_modes);
        assert_eq!(now.input_modes, before.input_modes);
        assert_eq!(now.output_modes, before.output_modes);
    }
}

#[test]
fn a_terminal_is_raw_while_joined_and_itself_again_after_ctrl_a_x() {
    let world = World::with(echoing);
    let (mut terminal, before) = on_terminal(&world, "console web1");
    let seen = terminal.reads("said before on com1");
    assert!(
        seen.contains("nyx: console com1 of web1; Ctrl-A x leaves, Ctrl-A h helps"),
        "{seen}"
    );
    assert!(
        !tcgetattr(&terminal.side)
            .unwrap()
            .local_modes
            .contains(LocalModes::ICANON)
    );
    // Ctrl-C is for the guest.
    terminal.types(b"ls\x03\x01\x01.");
    terminal.reads("LS\x03\x01.");
    terminal.types(b"\x01h");
    terminal.reads("leave the console; the machine goes on");
    terminal.types(b"\x01x");
    terminal.reads("nyx: left; the machine goes on");
    assert!(terminal.ends().success());
    terminal.assert_itself_again(&before);
}

#[test]
fn a_terminal_is_itself_again_when_the_machine_or_the_command_ends() {
    let world = World::with(echoing);
    let (mut terminal, before) = on_terminal(&world, "console web1");
    terminal.reads("said before");
    terminal.types(b"quit");
    terminal.reads("nyx: the machine has closed the console");
    assert!(terminal.ends().success());
    terminal.assert_itself_again(&before);
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let (mut terminal, before) = on_terminal(&world, "console web1");
        terminal.reads("said before");
        kill_process(Pid::from_child(&terminal.child), signal).unwrap();
        let status = terminal.ends();
        assert!(!status.success(), "{signal:?}: {status}");
        terminal.assert_itself_again(&before);
    }
}

#[test]
fn top_draws_and_gives_the_terminal_back() {
    let world = World::with(crate::looking::good);
    let (mut terminal, before) = on_terminal(&world, "top");
    terminal.reads("web1");
    terminal.types(b"s");
    terminal.reads("CPU");
    terminal.types(b"q");
    // Somebody must read what it still draws.
    let mut user = terminal.user.try_clone().unwrap();
    std::thread::spawn(move || while matches!(user.read(&mut [0; 4096]), Ok(1..)) {});
    assert!(terminal.ends().success());
    terminal.assert_itself_again(&before);
}
