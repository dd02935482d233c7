//! Consoles of every kind, in both directions.

use crate::rig::{finish, run, until, wait};
use nyx_payload::Command as Guest;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// The payload's serial echo: everything comes back in capitals until `quit`.
fn echo() -> Guest {
    Guest::new().option("run", "echo")
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_stdio_carries_input_to_the_guest() {
    let mut child = run(&echo()).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello nyx\nquit\n").unwrap();
    let outcome = wait(child);
    if outcome.code != 0 || !outcome.stdout.contains("HELLO NYX") {
        outcome.fail("the echo");
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
    client.write_all(b"over a socket\nquit\n").unwrap();
    let mut seen = Vec::new();
    // The machine closes the connection when it ends.
    let _ = client.read_to_end(&mut seen);
    let outcome = wait(child);
    let seen = String::from_utf8_lossy(&seen);
    if outcome.code != 0 || !seen.contains("OVER A SOCKET") || path.exists() {
        outcome.fail(&format!("the client saw {seen:?}"));
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_pseudo_terminal_is_linked_and_works() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("tty");
    let mut command = run(&echo());
    let child =
        command.args(["--console", &format!("pty,path={}", link.display())]).spawn().unwrap();
    until("the link", || link.exists());
    let mut tty = fs::OpenOptions::new().read(true).write(true).open(&link).unwrap();
    tty.write_all(b"over a tty\nquit\n").unwrap();
    let mut seen = String::new();
    until("the echo", || {
        let mut bytes = [0; 64];
        let n = tty.read(&mut bytes).unwrap_or(0);
        seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
        seen.contains("OVER A TTY")
    });
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
    let outcome =
        finish(run(&guest).args(["--console", &format!("file,path={}", path.display())]));
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
    let guest = Guest::new().test("virtio-console").option("console", "echo");
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("com1");
    let mut command = run(&guest);
    command.args(["--console", "stdio,device=virtio"]);
    command.args(["--console", &format!("file,path={}", log.display())]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"paravirtual\nquit\n").unwrap();
    let outcome = wait(child);
    if outcome.code != 0 || !outcome.stdout.contains("paravirtual") {
        outcome.fail(&fs::read_to_string(&log).unwrap_or_default());
    }
}
