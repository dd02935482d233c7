//! Consoles of every kind, in both directions.

use crate::rig::{finish, run, until, wait};
use nyx_payload::Command as Guest;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// Reads from `source` until `words` have come, and returns everything that came.
fn read_until(source: &mut impl Read, words: &str) -> String {
    let mut seen = String::new();
    until(words, || {
        let mut bytes = [0; 256];
        let n = source.read(&mut bytes).unwrap_or(0);
        seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
        seen.contains(words)
    });
    seen
}

/// The payload's serial echo: everything comes back in capitals until `quit`.
fn echo() -> Guest {
    Guest::new().option("run", "echo")
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_stdio_carries_input_to_the_guest() {
    let mut child = run(&echo()).stdin(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    read_until(&mut output, "echo ready");
    input.write_all(b"hello nyx\n").unwrap();
    read_until(&mut output, "HELLO NYX");
    input.write_all(b"quit\n").unwrap();
    let outcome = wait(child);
    if outcome.code != 0 {
        outcome.fail("the end");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_socket_console_serves_a_client_and_goes_with_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let mut command = run(&echo());
    let child = command
        .args(["--console", &format!("socket,path={}", path.display())])
        .spawn()
        .unwrap();
    until("the socket", || path.exists());
    let mut client = UnixStream::connect(&path).unwrap();
    read_until(&mut client, "echo ready");
    client.write_all(b"over a socket\n").unwrap();
    read_until(&mut client, "OVER A SOCKET");
    client.write_all(b"quit\n").unwrap();
    let outcome = wait(child);
    if outcome.code != 0 || path.exists() {
        outcome.fail("the end");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_pseudo_terminal_is_linked_and_works() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("tty");
    let mut command = run(&echo());
    let child = command
        .args(["--console", &format!("pty,path={}", link.display())])
        .spawn()
        .unwrap();
    until("the link", || link.exists());
    let mut tty = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&link)
        .unwrap();
    read_until(&mut tty, "echo ready");
    tty.write_all(b"over a tty\n").unwrap();
    read_until(&mut tty, "OVER A TTY");
    tty.write_all(b"quit\n").unwrap();
    let outcome = wait(child);
    if outcome.code != 0 || link.exists() {
        outcome.fail("the end");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_file_console_holds_everything_that_was_printed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let guest = Guest::new().test("serial").test("rtc");
    let outcome = finish(run(&guest).args(["--console", &format!("file,path={}", path.display())]));
    let text = fs::read_to_string(&path).unwrap();
    if outcome.code != 0 || !text.contains("ok serial") || !text.trim_end().ends_with("done") {
        outcome.fail(&text);
    }
    assert_eq!(outcome.stdout, "");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_the_debug_console_is_a_console_of_its_own() {
    let guest = Guest::new().test("serial").option("out", "e9");
    let outcome = finish(run(&guest).args(["--debug-console", "stdio"]));
    outcome.assert_passed();
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_virtio_console_echoes() {
    let guest = Guest::new()
        .test("virtio-console")
        .option("console", "echo");
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("com1");
    let mut command = run(&guest);
    command.args(["--console", "stdio,device=virtio"]);
    command.args(["--console", &format!("file,path={}", log.display())]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    read_until(&mut output, "payload: port 0");
    input.write_all(b"paravirtual\n").unwrap();
    read_until(&mut output, "paravirtual");
    input.write_all(b"quit").unwrap();
    let outcome = wait(child);
    let said = fs::read_to_string(&log).unwrap_or_default();
    if outcome.code != 0 || !said.contains("ok virtio-console") {
        outcome.fail(&said);
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_slow_reader_gets_every_last_byte() {
    // More text than the pipe holds, read by somebody who begins late.
    let mut command = run(&Guest::new()
        .option("run", "tick")
        .option("tick_ms", 0)
        .option("ticks", 1500));
    let mut child = command.spawn().unwrap();
    rustix::pipe::fcntl_setpipe_size(child.stdout.as_ref().unwrap(), 4096).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    let outcome = wait(child);
    let ticks = text
        .lines()
        .filter(|line| line.starts_with("tick "))
        .count();
    if outcome.code != 0 || ticks != 1500 || !text.trim_end().ends_with("done") {
        outcome.fail(&format!("{ticks} ticks"));
    }
}
