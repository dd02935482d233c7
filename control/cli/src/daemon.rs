//! `nyx run --daemon`: the machine stays behind in a process of its own.
//!
//! The command starts itself again. The new process leaves the terminal's session, says on its standard output
//! that the machine is up, and from then on writes to a file. Until then what goes wrong is said here.

use crate::exit::{BROKEN, tell};
use nyx_api::{MachineRecord, place};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{geteuid, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdout};
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Starts this command again in the background and waits until the machine is up; gives its exit code if it does
/// not get there.
pub(crate) fn start() -> Result<MachineRecord, u8> {
    let broken = |why: String| {
        tell!("nyx: {why}");
        BROKEN
    };
    let nyx =
        std::env::current_exe().map_err(|e| broken(format!("cannot find nyx itself: {e}")))?;
    let arguments = std::env::args_os().skip(1).map(|argument| {
        if argument == "--daemon" {
            "--in-background".into()
        } else {
            argument
        }
    });
    let mut child = Command::new(nyx)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| broken(format!("cannot start a process: {e}")))?;
    let (Some(said), Some(mut errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(BROKEN);
    };
    let mut line = String::new();
    let read = BufReader::new(said).read_line(&mut line);
    if let Some(record) = read.ok().and_then(|_| serde_json::from_str(&line).ok()) {
        return Ok(record);
    }
    // It has said why on its standard error, which is ours to pass on.
    let _ = io::copy(&mut errors, &mut io::stderr());
    match child.wait() {
        Ok(status) => Err(status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(BROKEN)),
        Err(_) => Err(BROKEN),
    }
}

/// Leaves the session of the terminal.
pub(crate) fn leave_terminal() {
    // It fails for the leader of a process group, which a process started by `start` is not.
    let _ = setsid();
}

/// Where a machine in the background writes what it would say on a terminal.
pub(crate) fn log_path(name: &str) -> Option<PathBuf> {
    let root = place::state_root(geteuid().as_raw())?;
    Some(root.join(name).join("nyx.log"))
}

/// Says that the machine is up, and turns away from who started it.
pub(crate) fn is_up(record: &MachineRecord) -> Result<(), String> {
    let log = match log_path(&record.name) {
        Some(path) => {
            open_log(&path).map_err(|e| format!("cannot write {}: {e}", path.display()))?
        }
        None => null().map_err(|e| format!("cannot open /dev/null: {e}"))?,
    };
    let text = serde_json::to_string(record).unwrap_or_default();
    let told = writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
    told.map_err(|e| format!("who started the machine is gone: {e}"))?;
    let turned = null().and_then(|null| Ok((dup2_stdout(null)?, dup2_stderr(log)?)));
    turned
        .map(|_| ())
        .map_err(|e| format!("cannot leave the terminal: {e}"))
}

fn null() -> io::Result<fs::File> {
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    Ok(null.into())
}

fn open_log(path: &Path) -> io::Result<fs::File> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
}
