//! Keeps the emulator's process: started by a thread that outlives it, ended for certain.

use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A child process that dies with us, whichever way we end.
///
/// `setpriv --pdeathsig` has the kernel kill it when the *thread* that started it ends, so a thread of its
/// own starts it and then waits for it.
#[derive(Debug)]
pub(crate) struct Keeper {
    process: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts `command` (already wrapped in `setpriv --pdeathsig KILL`); `ended` is called with its status
    /// and what it wrote to standard error.
    pub(crate) fn start(
        mut command: Command,
        ended: impl FnOnce(Option<ExitStatus>, String) + Send + 'static,
    ) -> Result<Self> {
        let (started, start) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("lab-keeper".into())
            .spawn(move || {
                let child = command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn();
                let child = match child {
                    Ok(child) => child,
                    Err(error) => {
                        // The receiver waits for exactly this.
                        let _ = started.send(Err(anyhow!(error).context("cannot start QEMU")));
                        return;
                    }
                };
                let process = i32::try_from(child.id())
                    .ok()
                    .and_then(Pid::from_raw)
                    .context("a process without number")
                    .and_then(|pid| {
                        pidfd_open(pid, PidfdFlags::empty())
                            .context("cannot open the process of QEMU")
                    });
                let _ = started.send(process);
                match child.wait_with_output() {
                    Ok(output) => {
                        let said = String::from_utf8_lossy(&output.stderr).into_owned();
                        ended(Some(output.status), said);
                    }
                    Err(error) => ended(None, error.to_string()),
                }
            })?;
        let process = start
            .recv()
            .context("the thread that starts QEMU is gone")??;
        Ok(Self {
            process,
            thread: Some(thread),
        })
    }

    /// Kills the process and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        self.wait();
    }

    /// Waits until the process is gone.
    pub(crate) fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic there has nothing to say to us: the process is gone either way.
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill();
    }
}
