//! A real full disk, and standard streams that nobody reads. Each case runs in a process of its own,
//! the full disk in a mount namespace with a file system of a few pages.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use nyx_journal::audit::verify_file;
use nyx_journal::*;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env("JOURNAL_CHILD", test);
    command
}

/// The folder to work in, if this process is the child for `test`.
fn is_child(test: &str) -> bool {
    std::env::var("JOURNAL_CHILD").is_ok_and(|child| child == test)
}

/// Runs `test` in a child whose folder `tiny` is a file system of 64 KiB.
fn on_a_tiny_disk(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let tiny = folder.path().join("tiny");
    std::fs::create_dir(&tiny).unwrap();
    let script = "mount -t tmpfs -o size=64k tiny \"$1\" && shift && exec \"$@\"";
    let child = child(test);
    let run = |unshare: &str| {
        Command::new("unshare")
            .args([unshare, "sh", "-c", script, "sh"])
            .arg(&tiny)
            .arg(child.get_program())
            .args(child.get_args())
            .env("JOURNAL_CHILD", test)
            .env("JOURNAL_FOLDER", &tiny)
            .output()
            .unwrap()
    };
    let mut out = run("-m");
    if !out.status.success() && !String::from_utf8_lossy(&out.stdout).contains("running 1 test") {
        out = run("-rm");
    }
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
}

fn tiny() -> PathBuf {
    PathBuf::from(std::env::var_os("JOURNAL_FOLDER").unwrap())
}

fn said(journal: &Journal) -> Vec<String> {
    let component = Some("journal".parse().unwrap());
    let entries = journal.entries(&Query {
        component,
        ..Query::default()
    });
    entries
        .iter()
        .map(|entry| entry.without_time().to_string())
        .collect()
}

fn fill(folder: &Path) -> PathBuf {
    let ballast = folder.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write(&[0; 4096]).is_ok_and(|count| count > 0) {}
    ballast
}

fn write(journal: &Journal, component: &'static str, count: u64) {
    for n in 0..count {
        journal.write(
            component,
            Level::Info,
            &"x".repeat(100),
            [("n".into(), n.into())].into(),
        );
    }
}

fn wait_for(journal: &Journal, text: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !said(journal).iter().any(|line| line.contains(text)) {
        assert!(Instant::now() < deadline, "{:?}", said(journal));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_full_disk_under_a_file_is_said_once_and_passes() {
    let test = "a_full_disk_under_a_file_is_said_once_and_passes";
    if !is_child(test) {
        return on_a_tiny_disk(test);
    }
    let path = tiny().join("vm.log");
    let mut config = JournalConfig::default();
    config
        .add_output(&format!("file,path={}", path.display()))
        .unwrap();
    let journal = Journal::new(&config, &Origin::default()).unwrap();
    let ballast = fill(&tiny());
    write(&journal, "vm", 1000);
    wait_for(&journal, "does not work");
    // The rest of the machine goes on.
    assert_eq!(journal.entries(&Query::default()).len(), 1001);
    std::fs::remove_file(ballast).unwrap();
    wait_for(&journal, "works again");
    // By now the file itself has filled the disk, and holds whole lines only.
    journal.flush(Duration::from_millis(500));
    let said = said(&journal);
    let ours = format!(
        "[WARN] journal: output file0 does not work: {}: No space left on device (os error 28); entries wait, and the oldest are dropped when too many do",
        path.display()
    );
    assert_eq!(said[0], ours);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.lines().count() > 100);
    for (n, line) in text.lines().enumerate() {
        assert!(line.ends_with(&format!("x n={n}")), "{line}");
    }
    assert!(text.ends_with('\n'));
}

#[test]
fn a_full_disk_under_the_ring_is_said_once_and_passes() {
    let test = "a_full_disk_under_the_ring_is_said_once_and_passes";
    if !is_child(test) {
        return on_a_tiny_disk(test);
    }
    let path = tiny().join("journal.ring");
    let origin = Origin {
        vm: None,
        ring: Some(path.clone()),
    };
    let journal = Journal::new(&JournalConfig::default(), &origin).unwrap();
    write(&journal, "vm", 10);
    let ballast = fill(&tiny());
    write(&journal, "vm", 90);
    assert_eq!(journal.entries(&Query::default()).len(), 101);
    let expected = "[WARN] journal: the file of the ring cannot be written: No space left on device (os error 28); entries are held in memory";
    assert_eq!(said(&journal), [expected]);
    assert!(journal.stats().ring_file_failures.get() > 50);
    std::fs::remove_file(ballast).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    write(&journal, "vm", 10);
    assert_eq!(journal.entries(&Query::default()).len(), 111);
    let kept = read_ring(&path).unwrap().entries;
    assert_eq!(kept.last().unwrap().sequence, 111);
    assert!(kept.len() < 111);
}

#[test]
fn a_full_disk_under_the_audit_trail_costs_no_record() {
    let test = "a_full_disk_under_the_audit_trail_costs_no_record";
    if !is_child(test) {
        return on_a_tiny_disk(test);
    }
    let audit = AuditConfig::new(tiny().join("audit.jsonl"));
    let config = JournalConfig {
        audit: Some(audit.clone()),
        ..JournalConfig::default()
    };
    let journal = Journal::new(&config, &Origin::default()).unwrap();
    let ballast = fill(&tiny());
    write(&journal, "audit", 30);
    wait_for(&journal, "output audit0 does not work");
    std::fs::remove_file(ballast).unwrap();
    wait_for(&journal, "output audit0 works again");
    assert!(journal.close(PATIENCE));
    let report = verify_file(&audit.path, &audit.key_path()).unwrap();
    assert!(report.is_intact() && report.sealed, "{report:?}");
    assert_eq!((report.records, report.lost), (32, 0));
}

#[test]
fn a_console_that_nobody_reads_holds_up_nobody() {
    let test = "a_console_that_nobody_reads_holds_up_nobody";
    if is_child(test) {
        let mut config = JournalConfig::default();
        config.add_output("console").unwrap();
        let journal = Journal::new(&config, &Origin::default()).unwrap();
        write(&journal, "vm", 20_000);
        // The lock of the standard stream is free too.
        drop(std::io::stderr().lock());
        println!("went on");
        journal.close(Duration::from_millis(100));
        std::process::exit(7);
    }
    let mut child = child(test)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(7));
}

#[test]
fn a_pipe_gets_plain_text_and_colour_only_when_told() {
    let test = "a_pipe_gets_plain_text_and_colour_only_when_told";
    if is_child(test) {
        let mut config = JournalConfig::default();
        config.add_output("console,timestamps=no").unwrap();
        config
            .add_output("console,stream=stdout,colour=always,level=error,timestamps=false")
            .unwrap();
        let journal = Journal::new(&config, &Origin::default()).unwrap();
        journal.write("vm", Level::Info, "fine", Fields::new());
        journal.write("vm", Level::Error, "bad", Fields::new());
        assert!(journal.close(PATIENCE));
        return;
    }
    let out = child(test).output().unwrap();
    assert_eq!(
        String::from_utf8(out.stderr).unwrap(),
        "[INFO] vm: fine\n[ERROR] vm: bad\n"
    );
    let stdout = String::from_utf8(out.stdout).unwrap();
    assert!(
        stdout.contains("\x1b[31m[ERROR]\x1b[0m vm: bad\n"),
        "{stdout:?}"
    );
    assert!(!stdout.contains("fine"));
}

#[test]
fn a_terminal_gets_colour_and_carriage_returns_when_it_is_raw() {
    let test = "a_terminal_gets_colour_and_carriage_returns_when_it_is_raw";
    if is_child(test) {
        let mut config = JournalConfig::default();
        config.add_output("console,timestamps=no").unwrap();
        let journal = Journal::new(&config, &Origin::default()).unwrap();
        journal.write("vm", Level::Info, "raw", Fields::new());
        assert!(journal.close(PATIENCE));
        return;
    }
    let master =
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
            .unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let slave = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let mut modes = rustix::termios::tcgetattr(&slave).unwrap();
    modes.make_raw();
    rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &modes).unwrap();
    let status = child(test)
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .stdout(Stdio::null())
        .stderr(slave)
        .status()
        .unwrap();
    assert!(status.success());
    let mut bytes = [0; 256];
    let length = std::fs::File::from(master).read(&mut bytes).unwrap();
    assert_eq!(
        std::str::from_utf8(&bytes[..length]).unwrap(),
        "\x1b[32m[INFO]\x1b[0m vm: raw\r\n"
    );
}
