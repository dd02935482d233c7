//! The control socket: how soon it answers, and how fast while the guest keeps its vCPU busy with exits.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nyx_payload::{Command, Ending};

use super::measure::Place;
use super::process::Process;
use super::table::{Table, median};
use super::vmm::{Output, Vmm};

/// Starts per round.
const STARTS: u32 = 20;
/// Requests on one connection.
const REQUESTS: usize = 20_000;
/// More exits than a vCPU makes while the requests go on.
const STORM: u64 = 1 << 40;
/// The longest that a socket may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that is kept.
struct Client(UnixStream);

impl Client {
    /// Connects as soon as there is something to connect to.
    fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Ok(stream) = UnixStream::connect(path) {
                stream.set_read_timeout(Some(TIMEOUT))?;
                return Ok(Self(stream));
            }
            if Instant::now() > deadline {
                bail!("{} does not come", path.display());
            }
            std::thread::yield_now();
        }
    }

    /// One request; its answer must be a success.
    fn ask(&mut self, method: &str, path: &str) -> Result<()> {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: nyx\r\ncontent-length: 0\r\n\r\n");
        self.0.write_all(request.as_bytes())?;
        let mut answer = Vec::with_capacity(4096);
        let mut part = [0; 16 << 10];
        loop {
            let read = self.0.read(&mut part)?;
            if read == 0 {
                bail!("the socket was closed");
            }
            answer.extend_from_slice(part.get(..read).unwrap_or_default());
            if is_whole(&answer) {
                break;
            }
        }
        if !answer.starts_with(b"HTTP/1.1 2") {
            bail!("{method} {path}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }
}

/// Whether head and body are there.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_none_or(|length| body.len() >= length)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Measures Nyx; others have no such socket.
pub(super) fn run(vmm: &Vmm, place: &Place, table: &mut Table) -> Result<()> {
    if vmm.name() != "Nyx" {
        return Ok(());
    }
    let root = place.runtime();
    let socket = root.join("bench/api.sock");
    let tool = |cmdline: &Command, flags: &[&str]| {
        vmm.command(cmdline, Output::Serial, None)
            .args(["--name", "bench"])
            .args(flags)
            .env("NYX_RUNTIME_DIR", &root)
    };
    let (mut ready, mut accepted) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let cmdline = Command::new().then(Ending::Idle);
        let process = Process::start(&tool(&cmdline, &["--paused"]))?;
        let mut client = Client::connect(&socket)?;
        client.ask("GET", "/v1/machine")?;
        ready.push(milliseconds(process.started.elapsed()));
        // What a caller waits for who wants a machine to run: the call returns.
        let asked = Instant::now();
        client.ask("POST", "/v1/machine/resume")?;
        accepted.push(milliseconds(asked.elapsed()));
        process.stop(rustix::process::Signal::TERM)?;
    }
    let p50 = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        median(times).unwrap_or(f64::NAN)
    };
    table.add("exec to API ready, p50", "ms", vmm, p50(&mut ready));
    table.add("start accepted, p50", "ms", vmm, p50(&mut accepted));

    let cmdline = Command::new().bench("exit-pio", STORM);
    let mut process = Process::start(&tool(&cmdline, &[]))?;
    process
        .lines()?
        .until(|line| line.starts_with("note tsc-rate"))?;
    let mut client = Client::connect(&socket)?;
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let asked = Instant::now();
        client.ask("GET", "/v1/operations")?;
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    let middle = p50(&mut times);
    let rare = times.get(times.len() - times.len() / 1000 - 1);
    let rare = rare.copied().context("nothing was measured")?;
    table.add("keep-alive GET under an exit storm, p50", "us", vmm, middle);
    table.add("keep-alive GET under an exit storm, p99.9", "us", vmm, rare);
    process.stop(rustix::process::Signal::KILL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_body() {
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"));
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n["));
        assert!(is_whole(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"));
        assert!(is_whole(b"HTTP/1.1 204 No Content\r\n\r\n"));
    }
}
