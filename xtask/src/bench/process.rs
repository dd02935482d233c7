//! A VMM as a process: its output line by line, and what /proc says of it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nyx_harness::tool::Tool;
use rustix::process::{Pid, Signal, kill_process};

/// The longest that any one run may take.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A running VMM. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    /// When it was started.
    pub(crate) started: Instant,
    output: Option<ChildStdout>,
}

impl Process {
    pub(crate) fn start(tool: &Tool) -> Result<Self> {
        let mut command = tool.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let started = Instant::now();
        let mut child = command.spawn().context("cannot start the VMM")?;
        let output = child.stdout.take();
        Ok(Self {
            child,
            started,
            output,
        })
    }

    /// Waits for the first byte of output.
    pub(crate) fn first_byte(&mut self) -> Result<(u8, Instant)> {
        let output = self.output.as_mut().context("the output was taken")?;
        let mut byte = [0];
        output
            .read_exact(&mut byte)
            .context("the VMM ended without a byte")?;
        Ok((byte[0], Instant::now()))
    }

    /// The lines of its output, from here on.
    pub(crate) fn lines(&mut self) -> Result<Lines> {
        let output = self.output.take().context("the output was taken")?;
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Lines {
            lines,
            deadline: Instant::now() + TIMEOUT,
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Signals it and waits until it is reaped; the time between.
    pub(crate) fn stop(mut self, signal: Signal) -> Result<Duration> {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("no process id")?;
        let before = Instant::now();
        kill_process(pid, signal).context("cannot signal the VMM")?;
        self.child.wait().context("cannot reap the VMM")?;
        Ok(before.elapsed())
    }

    fn file(&self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.id());
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    }

    /// Its mappings' resident sizes, without guest memory of `guest` bytes.
    pub(crate) fn own_memory(&self, guest: u64) -> Result<OwnMemory> {
        Ok(own_memory(&self.file("smaps")?, guest))
    }

    /// Processor time of all its threads, also of those that have ended.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let ticks = cpu_ticks(&self.file("stat")?).context("no times in /proc/PID/stat")?;
        let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Ok(Duration::from_secs_f64(seconds))
    }

    /// Its threads, now.
    pub(crate) fn threads(&self) -> Result<Vec<Thread>> {
        let mut threads = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let folder = entry?.path();
            // A thread that has just ended is none.
            let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
            threads.push(Thread {
                name: read("comm").trim_end().to_owned(),
                cpu: Duration::from_nanos(first_number(&read("schedstat"))),
                switches: switches(&read("status")),
            });
        }
        Ok(threads)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines of output as they come.
pub(crate) struct Lines {
    lines: Receiver<String>,
    deadline: Instant,
}

impl Lines {
    /// The next line; `None` at the end.
    pub(crate) fn next(&self) -> Result<Option<String>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("nothing came for {} s", TIMEOUT.as_secs()),
        }
    }

    /// Reads up to the line that `is_wanted`, and gives it.
    pub(crate) fn until(&self, is_wanted: impl Fn(&str) -> bool) -> Result<String> {
        let mut last = String::new();
        while let Some(line) = self.next()? {
            let line = line.trim_end().trim_start_matches('!');
            if is_wanted(line) {
                return Ok(line.to_owned());
            }
            if line.starts_with("fail ") {
                bail!("the payload says: {line}");
            }
            last = line.to_owned();
        }
        bail!("the VMM ended; its last line was {last:?}")
    }
}

/// One thread of a process.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    pub(crate) name: String,
    /// Time on a processor, in user and kernel mode and in the guest.
    pub(crate) cpu: Duration,
    /// How often it was switched to, by its own will or not.
    pub(crate) switches: u64,
}

/// What a process occupies beside its guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnMemory {
    /// Resident bytes.
    pub(crate) resident: u64,
    /// Of these, bytes that no other process shares.
    pub(crate) private: u64,
}

fn own_memory(smaps: &str, guest: u64) -> OwnMemory {
    let mut own = OwnMemory::default();
    let mut is_guest = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(word) = words.next() else { continue };
        let bytes = || {
            let mut words = words.clone();
            words
                .next()
                .and_then(|w| w.parse::<u64>().ok())
                .unwrap_or(0)
                * 1024
        };
        match word {
            "Size:" => is_guest = bytes() >= guest,
            "Rss:" if !is_guest => own.resident += bytes(),
            "Private_Clean:" | "Private_Dirty:" if !is_guest => own.private += bytes(),
            _ => {}
        }
    }
    own
}

fn first_number(text: &str) -> u64 {
    let word = text.split_ascii_whitespace().next();
    word.and_then(|w| w.parse().ok()).unwrap_or(0)
}

/// User and system time (proc_pid_stat(5), fields 14 and 15).
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
}

fn switches(status: &str) -> u64 {
    let lines = status.lines().filter_map(|line| {
        line.strip_prefix("voluntary_ctxt_switches:")
            .or_else(|| line.strip_prefix("nonvoluntary_ctxt_switches:"))
    });
    lines.map(first_number).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_not_the_vmms_own() {
        let smaps = "\
7f00-7f01 rw-p 0 00:00 0
Size:             131072 kB
Rss:                4096 kB
Private_Dirty:      4096 kB
5500-5501 r-xp 0 00:00 0    /usr/bin/nyx
Size:               2000 kB
Rss:                1000 kB
Pss:                 500 kB
Private_Clean:       300 kB
Private_Dirty:         8 kB
";
        let own = own_memory(smaps, 128 << 20);
        assert_eq!(own.resident, 1000 * 1024);
        assert_eq!(own.private, 308 * 1024);
    }

    #[test]
    fn both_kinds_of_switches_count() {
        let status = "Threads:\t3\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(switches(status), 15);
        assert_eq!(first_number("123456 7 8\n"), 123_456);
        assert_eq!(first_number(""), 0);
    }

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 17 0 0 20 0 3 0 5 0";
        assert_eq!(cpu_ticks(stat), Some(267));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
    }
}
