//! Every kind through the trait, with real terminals, sockets and processes at the other end.

use super::*;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn spec(kind: &str, config: &str) -> BackendSpec {
    BackendSpec {
        kind: kind.to_owned(),
        config: serde_json::from_str(config).unwrap(),
    }
}

fn refusal(kind: &str, config: &str) -> String {
    open(&spec(kind, config), None).err().unwrap().to_string()
}

fn would_block(result: io::Result<usize>) -> bool {
    result.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}

/// Edges, as a device would hear of them.
fn edges(backend: &mut dyn CharBackend) -> Receiver<()> {
    let (sender, receiver) = channel();
    let ready = move || {
        let _ = sender.send(());
    };
    backend.notify(Box::new(ready)).unwrap();
    receiver
}

/// Reads until `wanted` is there, sleeping on edges as a device would.
fn read_until(backend: &mut dyn CharBackend, edges: &Receiver<()>, wanted: &[u8]) -> Vec<u8> {
    let (mut all, mut bytes) = (Vec::new(), [0; 64]);
    while !all.ends_with(wanted) {
        match backend.read(&mut bytes) {
            Ok(0) => panic!("the input ended after {:?}", String::from_utf8_lossy(&all)),
            Ok(n) => all.extend(&bytes[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                edges.recv_timeout(PATIENCE).expect("an edge");
            }
            Err(e) => panic!("{e}"),
        }
    }
    all
}

/// Waits until `condition` holds, woken by edges.
fn wait_for(edges: &Receiver<()>, mut condition: impl FnMut() -> bool) {
    while !condition() {
        edges.recv_timeout(PATIENCE).expect("an edge");
    }
}

fn expect(mut from: impl Read, wanted: &[u8]) {
    let mut all = vec![0; wanted.len()];
    from.read_exact(&mut all).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&all),
        String::from_utf8_lossy(wanted)
    );
}

// file ---------------------------------------------------------------------------------------------

#[test]
fn a_file_is_emptied_or_appended_to_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let config = |more: &str| format!(r#"{{"path": "{}"{more}}}"#, path.display());
    let write = |more: &str, chunks: &[&[u8]]| {
        let mut file = open(&spec("file", &config(more)), None).unwrap();
        for chunk in chunks {
            assert_eq!(file.write(chunk).unwrap(), chunk.len());
        }
        assert!(would_block(file.read(&mut [0; 8])));
        std::fs::read_to_string(&path).unwrap()
    };
    assert_eq!(write("", &[b"one\n"]), "one\n");
    assert_eq!(write("", &[b"two\n"]), "two\n");
    assert_eq!(write(r#", "append": true"#, &[b"three\n"]), "two\nthree\n");
    assert_eq!(
        write(r#", "max_size": 6"#, &[b"abcd", b"efgh", b"ijkl", b"mnop"]),
        "abcdef\n[nyx: max_size reached, the rest is dropped]\n"
    );
    assert_eq!(write(r#", "max_size": 4"#, &[b"abcd", b""]), "abcd");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o7,
        0
    );
}

#[test]
fn a_full_disk_does_not_stop_the_guest() {
    let mut full = open(
        &spec("file", r#"{"path": "/dev/full", "append": true}"#),
        None,
    )
    .unwrap();
    assert_eq!(full.write(b"lost").unwrap(), 4);
    assert_eq!(full.describe(), "file /dev/full");
}

// pty ----------------------------------------------------------------------------------------------

fn slave(pty: &dyn CharBackend) -> File {
    let path = pty.describe().split(' ').nth(1).unwrap().to_owned();
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_pty_carries_bytes_unchanged_and_knows_who_is_there() {
    let mut pty = open(&spec("pty", "null"), None).unwrap();
    let edges = edges(pty.as_mut());
    assert!(!pty.is_connected());
    assert_eq!(pty.write(b"nobody hears").unwrap(), 12);
    assert!(would_block(pty.read(&mut [0; 8])));
    let mut person = slave(pty.as_ref());
    wait_for(&edges, || pty.is_connected());
    assert_eq!(pty.write(b"login:\n").unwrap(), 7);
    expect(&person, b"login:\n");
    person.write_all(b"root\r\x03").unwrap();
    assert_eq!(read_until(pty.as_mut(), &edges, b"\x03"), b"root\r\x03");
    tcsetwinsize(
        &person,
        Winsize {
            ws_col: 100,
            ws_row: 40,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
    .unwrap();
    let size = pty.window_size().unwrap();
    assert_eq!((size.columns, size.rows), (100, 40));
    drop(person);
    wait_for(&edges, || !pty.is_connected());
    assert!(would_block(pty.read(&mut [0; 8])));
    let mut again = slave(pty.as_ref());
    again.write_all(b"x").unwrap();
    assert_eq!(read_until(pty.as_mut(), &edges, b"x"), b"x");
}

#[test]
fn a_slow_reader_of_a_pty_gets_everything_and_costs_no_spinning() {
    let mut pty = open(&spec("pty", "{}"), None).unwrap();
    let edges = edges(pty.as_mut());
    let person = slave(pty.as_ref());
    wait_for(&edges, || pty.is_connected());
    let all: Vec<u8> = (0..300_000).map(|i| (i % 251) as u8).collect();
    let expected = all.clone();
    let reader = std::thread::spawn(move || expect(&person, &expected));
    let mut sent = 0;
    while sent < all.len() {
        match pty.write(&all[sent..]) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                edges
                    .recv_timeout(PATIENCE)
                    .expect("an edge when there is room again");
            }
            Err(e) => panic!("{e}"),
        }
    }
    reader.join().unwrap();
}

#[test]
fn a_pty_link_is_made_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("console");
    let config = format!(r#"{{"link": "{}"}}"#, link.display());
    std::os::unix::fs::symlink("/dev/pts/none", &link).unwrap();
    let pty = open(&spec("pty", &config), None).unwrap();
    let target = std::fs::read_link(&link).unwrap();
    assert_eq!(
        pty.describe(),
        format!("pty {} ({})", target.display(), link.display())
    );
    let error = refusal("pty", &config);
    assert!(
        error.ends_with("already exists: remove it or choose another name"),
        "{error}"
    );
    assert_eq!(
        std::fs::read_link(&link).unwrap(),
        target,
        "a refusal leaves the first alone"
    );
    drop(pty);
    assert!(link.symlink_metadata().is_err());
    std::fs::write(&link, "precious").unwrap();
    refusal("pty", &config);
    assert_eq!(std::fs::read(&link).unwrap(), b"precious");
    let error = refusal("pty", r#"{"link": "/nonexistent/x"}"#);
    assert!(
        error.starts_with("cannot create pty link `/nonexistent/x`: "),
        "{error}"
    );
}

// socket -------------------------------------------------------------------------------------------

fn socket(path: &Path) -> Result<Box<dyn CharBackend>, OpenError> {
    open(
        &spec("socket", &format!(r#"{{"path": "{}"}}"#, path.display())),
        None,
    )
}

#[test]
fn a_socket_replays_serves_and_lets_the_newest_client_take_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    let mut console = socket(&path).unwrap();
    let kind = std::fs::metadata(&path).unwrap();
    assert!(kind.file_type().is_socket());
    assert_eq!(kind.permissions().mode() & 0o777, 0o600);
    let edges = edges(console.as_mut());
    assert_eq!(console.write(b"booting\n").unwrap(), 8);
    let mut first = UnixStream::connect(&path).unwrap();
    expect(&first, b"booting\n");
    wait_for(&edges, || console.is_connected());
    first.write_all(b"hello\n").unwrap();
    assert_eq!(read_until(console.as_mut(), &edges, b"\n"), b"hello\n");
    let mut second = UnixStream::connect(&path).unwrap();
    expect(&second, b"booting\n");
    let mut rest = String::new();
    first.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "\r\n[nyx: another client took this console over]\r\n");
    assert_eq!(console.write(b"live\n").unwrap(), 5);
    expect(&second, b"live\n");
    // Finishing input is not leaving.
    second.write_all(b"last").unwrap();
    second.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_until(console.as_mut(), &edges, b"last"), b"last");
    assert_eq!(console.write(b"seen\n").unwrap(), 5);
    expect(&second, b"seen\n");
    drop(second);
    wait_for(&edges, || !console.is_connected());
    assert!(would_block(console.read(&mut [0; 8])));
    drop(console);
    assert!(!path.exists());
}

#[test]
fn a_client_that_comes_late_gets_the_last_64_kib() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    let mut console = socket(&path).unwrap();
    let edges = edges(console.as_mut());
    let all: Vec<u8> = (0..200_000u32)
        .flat_map(|i| (i % 65_521).to_le_bytes())
        .collect();
    for chunk in all.chunks(1000) {
        assert_eq!(console.write(chunk).unwrap(), chunk.len());
    }
    let client = UnixStream::connect(&path).unwrap();
    wait_for(&edges, || console.is_connected());
    // Before the client has read all of it, more comes: it must arrive after.
    let more = vec![0xee; 300_000];
    let expected = [&all[all.len() - (64 << 10)..], &more].concat();
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        expect(&client, &expected);
    });
    let mut sent = 0;
    while sent < more.len() {
        match console.write(&more[sent..]) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                edges
                    .recv_timeout(PATIENCE)
                    .expect("an edge when there is room again");
            }
            Err(e) => panic!("{e}"),
        }
    }
    reader.join().unwrap();
}

#[test]
fn stale_sockets_are_replaced_and_live_ones_respected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "stale");
    let first = socket(&path).unwrap();
    let error = socket(&path).err().unwrap().to_string();
    let expected = format!(
        "socket path `{}` is in use by a running process: end it or choose another name",
        path.display()
    );
    assert_eq!(error, expected);
    assert!(path.exists());
    // Somebody else's file in our place is not ours to remove.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    drop(first);
    let error = socket(&path).err().unwrap().to_string();
    assert!(
        error.ends_with("exists and is not a socket: remove it or choose another name"),
        "{error}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let error = socket(&dir.path().join("x".repeat(120)))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.ends_with("is longer than the 107 bytes of a socket address: choose a shorter one"),
        "{error}"
    );
    let error = socket(Path::new("/nonexistent/console"))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.starts_with("cannot listen on socket path `/nonexistent/console`: "),
        "{error}"
    );
}

// stdio --------------------------------------------------------------------------------------------
// The process's own descriptors and signals are at stake, so each case runs in a child: this test
// binary again, with the case's name in the environment.

const CASE: &str = "NYX_CHAR_TEST_CASE";

fn child(case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "tests::stdio_child", "--nocapture"])
        .env(CASE, case);
    command
}

/// An echo console: what is typed comes back in upper case; escapes and sizes are reported.
#[test]
fn stdio_child() {
    let Ok(case) = std::env::var(CASE) else {
        return;
    };
    if case == "refuse" {
        let first = open(&spec("stdio", "{}"), None).unwrap();
        let error = refusal("stdio", "{}");
        assert!(
            error.starts_with("`stdio` is already used by another console: "),
            "{error}"
        );
        drop(first);
        open(&spec("stdio", "{}"), None).unwrap();
        eprintln!("refused");
        return;
    }
    let (escapes, typed) = channel();
    let on_escape: OnEscape = Arc::new(move |escape| escapes.send(escape).unwrap());
    let mut stdio = open(
        &spec("stdio", "{}"),
        (case != "default").then_some(on_escape),
    )
    .unwrap();
    let edges = edges(stdio.as_mut());
    let size = |stdio: &dyn CharBackend| stdio.window_size().map(|s| (s.columns, s.rows));
    let mut last_size = size(stdio.as_ref());
    let say = |stdio: &mut dyn CharBackend, text: &[u8]| {
        let mut sent = 0;
        while sent < text.len() {
            match stdio.write(&text[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    edges
                        .recv_timeout(PATIENCE)
                        .expect("an edge when there is room again");
                }
                Err(e) => panic!("{e}"),
            }
        }
    };
    if case == "flood" {
        for i in 0..20_000 {
            say(stdio.as_mut(), format!("line {i}\n").as_bytes());
        }
        eprintln!("connected {}", stdio.is_connected());
        return;
    }
    say(stdio.as_mut(), b"<ready>");
    let mut bytes = [0; 64];
    loop {
        match stdio.read(&mut bytes) {
            Ok(0) => {
                say(stdio.as_mut(), b"<end>");
                return;
            }
            Ok(n) => {
                say(stdio.as_mut(), &bytes[..n].to_ascii_uppercase());
                match &bytes[..n] {
                    b"P" => panic!("on purpose"),
                    b"E" => std::process::exit(3),
                    _ => {}
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                while let Ok(escape) = typed.try_recv() {
                    say(stdio.as_mut(), format!("<{escape:?}>").as_bytes());
                }
                edges.recv().unwrap();
            }
            Err(e) => panic!("{e}"),
        }
        if size(stdio.as_ref()) != last_size {
            last_size = size(stdio.as_ref());
            say(stdio.as_mut(), format!("<{last_size:?}>").as_bytes());
        }
    }
}

struct Terminal {
    master: File,
    slave: OwnedFd,
    child: Child,
}

impl Terminal {
    /// Starts a case as the foreground job of a terminal of its own.
    fn start(case: &str) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let mut command = child(case);
        let end = || Stdio::from(slave.as_fd().try_clone_to_owned().unwrap());
        command.stdin(end()).stdout(end()).stderr(Stdio::null());
        // SAFETY: only system calls: a session of its own, with descriptor 0 as its terminal.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().unwrap();
        let mut terminal = Self {
            master: master.into(),
            slave,
            child,
        };
        terminal.wait_text("<ready>");
        terminal
    }

    fn wait_text(&mut self, wanted: &str) {
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains(wanted) {
            let timeout = rustix::event::Timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            let mut fds = [rustix::event::PollFd::new(
                &self.master,
                rustix::event::PollFlags::IN,
            )];
            let polled = rustix::event::poll(&mut fds, Some(&timeout)).unwrap();
            assert_eq!(
                polled,
                1,
                "{wanted} does not come after {}",
                String::from_utf8_lossy(&all)
            );
            let mut byte = [0];
            self.master.read_exact(&mut byte).unwrap();
            all.push(byte[0]);
        }
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: a plain system call on our own child.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    (0..2000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        condition()
    })
}

#[test]
fn every_key_reaches_the_guest_and_escapes_do_not() {
    let mut terminal = Terminal::start("echo");
    assert!(terminal.is_raw());
    terminal.master.write_all(b"ab\x03\x1a").unwrap();
    terminal.wait_text("AB\x03\x1a");
    terminal.master.write_all(b"\x01b").unwrap();
    terminal.wait_text("<Break>");
    terminal.master.write_all(b"\x01").unwrap();
    terminal.master.write_all(b"h").unwrap();
    terminal.wait_text("quit: power the virtual machine off at once");
    terminal.wait_text("<Help>");
    terminal.master.write_all(b"\x01x").unwrap();
    terminal.wait_text("<Quit>");
    let size = Winsize {
        ws_col: 132,
        ws_row: 50,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal.master, size).unwrap();
    terminal.wait_text("<Some((132, 50))>");
}

#[test]
fn the_terminal_is_given_back_however_the_process_ends() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGABRT] {
        let mut terminal = Terminal::start("echo");
        assert!(terminal.is_raw());
        terminal.signal(signal);
        let status = terminal.child.wait().unwrap();
        let ended = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(ended, Some(signal), "the signal still does what it does");
        assert!(!terminal.is_raw(), "signal {signal}");
    }
    // A panic, and exit without unwinding.
    for (key, code) in [(b"P", 101), (b"E", 3)] {
        let mut terminal = Terminal::start("echo");
        terminal.master.write_all(key).unwrap();
        assert_eq!(terminal.child.wait().unwrap().code(), Some(code));
        assert!(!terminal.is_raw());
    }
    // Ctrl-A x, when nobody listens to escapes.
    let mut terminal = Terminal::start("default");
    terminal.master.write_all(b"\x01x").unwrap();
    terminal.child.wait().unwrap();
    assert!(!terminal.is_raw());
}

#[test]
fn the_terminal_is_given_back_while_the_process_is_stopped() {
    let mut terminal = Terminal::start("echo");
    for _ in 0..2 {
        terminal.signal(libc::SIGTSTP);
        // In a session without a shell the group is orphaned and SIGTSTP is discarded; the handler
        // restores and enters raw mode again either way.
        assert!(eventually(|| terminal.state() == 'T' || terminal.is_raw()));
        terminal.signal(libc::SIGCONT);
        assert!(eventually(|| terminal.is_raw()));
        terminal.master.write_all(b"x").unwrap();
        terminal.wait_text("X");
    }
    terminal.signal(libc::SIGSTOP);
    assert!(eventually(|| terminal.state() == 'T'));
    let mut cooked = tcgetattr(&terminal.slave).unwrap();
    cooked.local_modes |= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
    rustix::termios::tcsetattr(
        &terminal.slave,
        rustix::termios::OptionalActions::Now,
        &cooked,
    )
    .unwrap();
    assert!(!terminal.is_raw());
    terminal.signal(libc::SIGCONT);
    assert!(eventually(|| terminal.is_raw()), "`fg` puts raw mode back");
}

#[test]
fn pipes_work_and_stay_blocking_for_others() {
    let (reader, writer) = io::pipe().unwrap();
    let (reader_there, mut typed) = io::pipe().unwrap();
    let kept = (
        writer.try_clone().unwrap(),
        reader_there.try_clone().unwrap(),
    );
    let mut process = child("echo")
        .stdin(reader_there)
        .stdout(writer)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(reader);
    let mut text = String::new();
    let mut until = |wanted: &str| {
        while !text.contains(wanted) {
            let mut bytes = lines.fill_buf().unwrap().to_vec();
            assert!(!bytes.is_empty(), "{text}");
            lines.consume(bytes.len());
            text.push_str(&String::from_utf8(std::mem::take(&mut bytes)).unwrap());
        }
    };
    until("<ready>");
    // No terminal, so Ctrl-A is an ordinary key.
    typed.write_all(b"pipe\x01x").unwrap();
    until("PIPE\x01X");
    for fd in [kept.0.as_fd(), kept.1.as_fd()] {
        let flags = rustix::fs::fcntl_getfl(fd).unwrap();
        assert!(
            !flags.contains(rustix::fs::OFlags::NONBLOCK),
            "shared with other processes"
        );
    }
    drop((typed, kept));
    until("<end>");
    assert!(process.wait().unwrap().success());
}

#[test]
fn a_closed_pipe_does_not_stop_the_guest() {
    let (reader, writer) = io::pipe().unwrap();
    let mut process = child("flood")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    expect(&reader, b"\nrunning 1 test\nline 0\nline 1\n");
    drop(reader);
    let mut said = String::new();
    process
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.contains("connected false"), "{said}");
    // How it ends is no matter here: the test runner in the child has lost its output too.
    process.wait().unwrap();
}

#[test]
fn files_and_sockets_as_standard_streams() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::write(&input, "from a file").unwrap();
    let streams = (File::open(&input).unwrap(), File::create(&output).unwrap());
    let status = child("echo")
        .stdin(streams.0)
        .stdout(streams.1)
        .status()
        .unwrap();
    assert!(status.success());
    let text = std::fs::read_to_string(&output).unwrap();
    assert!(text.contains("<ready>FROM A FILE<end>"), "{text}");

    let (ours, theirs) = UnixStream::pair().unwrap();
    let end = || Stdio::from(OwnedFd::from(theirs.try_clone().unwrap()));
    let mut process = child("echo").stdin(end()).stdout(end()).spawn().unwrap();
    drop(theirs);
    expect(&ours, b"\nrunning 1 test\n<ready>");
    (&ours).write_all(b"socket").unwrap();
    expect(&ours, b"SOCKET");
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    expect(&ours, b"<end>");
    assert!(process.wait().unwrap().success());
}

#[test]
fn one_console_at_a_time_has_stdio() {
    let done = child("refuse").stdin(Stdio::null()).output().unwrap();
    assert!(
        String::from_utf8_lossy(&done.stderr).contains("refused"),
        "{done:?}"
    );
}

#[test]
fn an_idle_console_sleeps() {
    let dir = tempfile::tempdir().unwrap();
    let mut console = socket(&dir.path().join("console")).unwrap();
    let mut pty = open(&spec("pty", "{}"), None).unwrap();
    let receivers = [edges(console.as_mut()), edges(pty.as_mut())];
    let person = slave(pty.as_ref());
    wait_for(&receivers[1], || pty.is_connected());
    std::thread::sleep(Duration::from_millis(200));
    receivers.iter().for_each(|r| while r.try_recv().is_ok() {});
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        receivers.iter().all(|r| r.try_recv().is_err()),
        "woken without a reason"
    );
    drop(person);
}

// Kinds --------------------------------------------------------------------------------------------

#[test]
fn unknown_kinds_and_keys_are_named() {
    assert_eq!(
        refusal("vnc", "{}"),
        "`vnc` is not a character backend: use stdio, pty, file, socket or null"
    );
    let text = refusal("file", r#"{"path": "x", "maxsize": 1}"#);
    assert!(
        text.contains("unknown field `maxsize`, expected one of `path`, `append`, `max_size`"),
        "{text}"
    );
    assert!(refusal("socket", "{}").contains("missing field `path`"));
    assert!(refusal("null", r#"{"x": 1}"#).contains("unknown field `x`"));
    assert!(refusal("file", r#"{"path": "/tmp"}"#).ends_with("is a directory: name a file in it"));
    for kind in kinds() {
        serde_json::from_str::<serde_json::Value>(kind.example).unwrap();
    }
    let mut null = open(&spec("null", "{}"), None).unwrap();
    assert_eq!(null.write(b"gone").unwrap(), 4);
    assert!(would_block(null.read(&mut [0; 8])) && !null.is_connected());
}
