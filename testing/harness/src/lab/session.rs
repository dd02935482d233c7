//! A booted lab: the harness's end of its ports.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::keeper::Keeper;
use super::stream::Splitter;
use super::terminal::RawTerminal;
use super::{Ending, Lab, LabCommand, LabOutput};
use crate::guests::Kernel;
use crate::tool::Tool;

/// How many pieces of output may wait for a slow reader before the lab has to.
const PENDING: usize = 64;

/// How long an idle lab may take to end by itself.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// How many lines of the kernel's messages an error quotes.
const LAST_LINES: usize = 12;

/// Words of the kernel and of the lab's scripts that tell what went wrong.
const TELLING: [&str; 5] = ["Kernel panic", "BUG:", "Oops", "Out of memory", "nyx-lab:"];

/// QEMU says this of every processor model that it emulates in software; it never is the reason.
const NOISE: &str = "warning: TCG doesn't support";

/// The lab's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Requests and answers, one line each.
    Control,
    /// The command's standard output.
    Out,
    /// The command's standard error.
    Err,
    /// The command's standard input.
    In,
    /// A terminal, for interactive commands.
    Terminal,
}

pub(crate) const PORTS: [Port; 5] = [
    Port::Control,
    Port::Out,
    Port::Err,
    Port::In,
    Port::Terminal,
];

impl Port {
    /// Its name on QEMU's command line and in the folder of sockets.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Out => "out",
            Self::Err => "err",
            Self::In => "in",
            Self::Terminal => "terminal",
        }
    }

    /// The argument of `-device`.
    pub(crate) fn device(self) -> String {
        match self {
            Self::Terminal => format!("virtconsole,chardev={}", self.id()),
            _ => format!("virtserialport,chardev={0},name=nyx.{0}", self.id()),
        }
    }
}

/// Bytes that came from a port.
type Piece = (Port, Vec<u8>);

/// How QEMU ended, and what it said on standard error; empty while it runs.
type Obituary = Arc<OnceLock<(Option<ExitStatus>, String)>>;

/// Where a command's standard input comes from.
pub enum Input {
    /// There is none: `/dev/null`.
    Nothing,
    /// This source, to its end. Once in a session.
    From(Box<dyn Read + Send>),
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::From(_) => "From(..)",
        })
    }
}

/// A lab that is up and takes commands, one after the other. Dropping it ends it.
#[derive(Debug)]
pub struct Session {
    keeper: Keeper,
    /// Closed when QEMU has ended and all that it passed on was taken.
    pieces: Receiver<Piece>,
    obituary: Obituary,
    control: UnixStream,
    /// Open as long as the session: see [`feed`].
    input: Option<UnixStream>,
    is_input_taken: bool,
    terminal: Option<UnixStream>,
    /// Bytes of the control port that are not yet a line.
    unfinished: Vec<u8>,
    log: PathBuf,
    boot_time: Duration,
    runs: u64,
    is_over: bool,
}

impl Session {
    pub(crate) fn boot(lab: &Lab, kernel: &Kernel, initramfs: &Path, log: &Path) -> Result<Self> {
        let start = Instant::now();
        // The sockets are there only until QEMU has connected: nothing is left behind however we end later.
        let sockets = tempfile::Builder::new()
            .prefix("nyx-lab-")
            .tempdir()
            .context("cannot make a folder for the lab's sockets")?;
        let mut listeners = Vec::new();
        for port in PORTS {
            let listener = UnixListener::bind(sockets.path().join(port.id()))
                .context("cannot make the lab's sockets")?;
            listener.set_nonblocking(true)?;
            listeners.push((port, listener));
        }
        let arguments = lab.arguments(kernel, initramfs, log, sockets.path())?;
        let command = Tool::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(arguments)
            .command();
        let (sender, pieces) = sync_channel(PENDING);
        let obituary = Obituary::default();
        let writer = Arc::clone(&obituary);
        let keeper = Keeper::start(command, move |status, said| {
            // It ends once only.
            let _ = writer.set((status, said));
        })?;
        let mut streams = Vec::new();
        for (port, listener) in listeners {
            streams.push((
                port,
                accept(&listener, &obituary, start + lab.boot_timeout)?,
            ));
        }
        drop(sockets);
        let mut session = Self {
            keeper,
            pieces,
            obituary,
            control: streams[0].1.try_clone()?,
            input: None,
            is_input_taken: false,
            terminal: None,
            unfinished: Vec::new(),
            log: log.to_owned(),
            boot_time: Duration::ZERO,
            runs: 0,
            is_over: false,
        };
        for (port, stream) in streams {
            match port {
                Port::In => session.input = Some(stream),
                Port::Terminal => {
                    session.terminal = Some(stream.try_clone()?);
                    listen(port, stream, sender.clone())?;
                }
                _ => listen(port, stream, sender.clone())?,
            }
        }
        drop(sender);
        let line = session
            .line(start + lab.boot_timeout)
            .context("the lab did not come up")?;
        if !line.starts_with("up ") {
            bail!("the lab said {line:?} instead of being up");
        }
        for (number, share) in lab.shares.iter().enumerate() {
            session.mount(
                number,
                &share.there,
                share.is_writable,
                start + lab.boot_timeout,
            )?;
        }
        session.boot_time = start.elapsed();
        Ok(session)
    }

    /// How long it took from starting QEMU until commands were taken.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// The file with the messages of the lab's kernel.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Runs a command to its end and gives its output.
    pub fn run(&mut self, command: &LabCommand) -> Result<LabOutput> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (ending, took) = self.stream(command, Input::Nothing, &mut stdout, &mut stderr)?;
        Ok(LabOutput {
            ending,
            stdout,
            stderr,
            took,
        })
    }

    /// Runs a command, passing its output on as it comes.
    pub fn stream(
        &mut self,
        command: &LabCommand,
        input: Input,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<(Ending, Duration)> {
        let kind = match input {
            Input::Nothing => "none",
            Input::From(source) => {
                let sink = match &self.input {
                    Some(sink) if !self.is_input_taken => sink.try_clone()?,
                    _ => bail!("a session takes standard input once"),
                };
                self.is_input_taken = true;
                // It may wait for a key for ever; it ends with the process or with the lab.
                std::thread::Builder::new()
                    .name("lab-input".into())
                    .spawn(|| feed(source, sink))?;
                "stream"
            }
        };
        let start = Instant::now();
        let mark = self.request("run", command, kind)?;
        let ending = self.follow(
            start + command.timeout,
            &mark,
            &mut [(Port::Out, stdout), (Port::Err, stderr)],
        )?;
        Ok((ending, start.elapsed()))
    }

    /// Runs a command on the user's own terminal.
    pub fn interact(&mut self, command: &LabCommand) -> Result<Ending> {
        let keys = self
            .terminal
            .take()
            .context("a session lends the terminal once")?;
        let terminal = RawTerminal::take()?;
        let (rows, columns) = terminal.size();
        let mark = self.request("terminal", command, &format!("{rows} {columns}"))?;
        std::thread::Builder::new()
            .name("lab-keys".into())
            .spawn(|| type_keys(keys))?;
        let deadline = Instant::now() + command.timeout;
        self.follow(
            deadline,
            &mark,
            &mut [(Port::Terminal, &mut std::io::stdout())],
        )
    }

    /// Ends the lab in good order: what it wrote to shared folders is there.
    pub fn end(mut self) -> Result<()> {
        if self.is_over {
            return Ok(());
        }
        self.tell("end\n".as_bytes())?;
        let line = self
            .line(Instant::now() + END_TIMEOUT)
            .context("the lab did not end")?;
        if line != "ended" {
            bail!("the lab said {line:?} instead of ending");
        }
        // All is written; waiting for the emulated machine to switch itself off gains nothing.
        self.keeper.kill();
        self.is_over = true;
        Ok(())
    }

    /// Sends a command's script; gives the mark that will end its output.
    fn request(&mut self, verb: &str, command: &LabCommand, rest: &str) -> Result<Vec<u8>> {
        if self.is_over {
            bail!("the lab has ended");
        }
        self.runs += 1;
        let mark = mark(self.runs)?;
        let script = command.as_script()?;
        let mut message = format!("{verb} {} {mark} {rest}\n", script.len()).into_bytes();
        message.extend_from_slice(&script);
        self.tell(&message)?;
        Ok(mark.into_bytes())
    }

    /// Passes output on until the command has ended and all of it has come.
    fn follow(
        &mut self,
        deadline: Instant,
        mark: &[u8],
        sinks: &mut [(Port, &mut dyn Write)],
    ) -> Result<Ending> {
        let mut splitters: Vec<Splitter> = sinks.iter().map(|_| Splitter::new(mark)).collect();
        let mut code = None;
        loop {
            if let Some(line) = self.finished_line() {
                code = Some(exit_code(&line)?);
            }
            if let Some(code) = code
                && splitters.iter().all(Splitter::has_ended)
            {
                return Ok(Ending::Exited(code));
            }
            match self.next(deadline)? {
                None => {
                    self.keeper.kill();
                    self.is_over = true;
                    return Ok(Ending::TimedOut);
                }
                Some((Port::Control, bytes)) => self.unfinished.extend_from_slice(&bytes),
                Some((port, bytes)) => {
                    for ((of, sink), splitter) in sinks.iter_mut().zip(&mut splitters) {
                        if *of == port {
                            let passed = splitter.feed(&bytes);
                            sink.write_all(&passed)
                                .and_then(|()| sink.flush())
                                .context("cannot pass on the command's output")?;
                        }
                    }
                }
            }
        }
    }

    fn mount(
        &mut self,
        number: usize,
        there: &Path,
        is_writable: bool,
        deadline: Instant,
    ) -> Result<()> {
        use std::os::unix::ffi::OsStrExt as _;
        let path = [there.as_os_str().as_bytes(), b"\n"].concat();
        let mode = if is_writable { "rw" } else { "ro" };
        let mut message = format!("share share{number} {} {mode}\n", path.len()).into_bytes();
        message.extend_from_slice(&path);
        self.tell(&message)?;
        match self.line(deadline)?.as_str() {
            "done" => Ok(()),
            answer => bail!("the lab answered {answer:?}"),
        }
    }

    fn tell(&mut self, message: &[u8]) -> Result<()> {
        self.control.write_all(message).map_err(|error| {
            anyhow!(error).context(format!("the lab does not listen{}", self.last_words()))
        })
    }

    /// The next line of the control port.
    fn line(&mut self, deadline: Instant) -> Result<String> {
        loop {
            if let Some(line) = self.finished_line() {
                return Ok(line);
            }
            match self.next(deadline)? {
                Some((Port::Control, bytes)) => self.unfinished.extend_from_slice(&bytes),
                // Output that nobody waits for: of a command that was given up.
                Some(_) => {}
                None => bail!("no answer in time{}", self.last_words()),
            }
        }
    }

    fn finished_line(&mut self) -> Option<String> {
        let end = self.unfinished.iter().position(|&byte| byte == b'\n')?;
        let line: Vec<u8> = self.unfinished.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// The next bytes of any port; `None` at the deadline.
    fn next(&mut self, deadline: Instant) -> Result<Option<(Port, Vec<u8>)>> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.pieces.recv_timeout(left) {
            Ok(piece) => Ok(Some(piece)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                self.is_over = true;
                // Its ports are closed, so it has ended or is about to.
                self.keeper.wait();
                bail!("the lab ended by itself{}", self.last_words())
            }
        }
    }

    /// What QEMU and the lab's kernel said last, for an error message.
    fn last_words(&self) -> String {
        let mut words = String::new();
        if let Some(obituary) = self.obituary.get() {
            words.push_str(&epitaph(obituary));
        }
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.len().saturating_sub(LAST_LINES);
        // What went wrong often stands far above the end, before a trace of the processor's state.
        let telling = lines[..tail]
            .iter()
            .filter(|line| TELLING.iter().any(|word| line.contains(word)));
        let quoted: Vec<&str> = telling
            .take(LAST_LINES)
            .chain(&lines[tail..])
            .copied()
            .collect();
        if !quoted.is_empty() {
            words.push_str("\nits kernel said:\n  ");
            words.push_str(&quoted.join("\n  "));
        }
        words.push_str(&format!("\n(all of it is in {})", self.log.display()));
        words
    }
}

/// Waits until QEMU has connected to a socket.
fn accept(listener: &UnixListener, obituary: &Obituary, deadline: Instant) -> Result<UnixStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("cannot connect to QEMU"),
        }
        if let Some(obituary) = obituary.get() {
            bail!("cannot start the lab{}", epitaph(obituary));
        }
        if Instant::now() > deadline {
            bail!("QEMU does not connect");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn epitaph((status, said): &(Option<ExitStatus>, String)) -> String {
    let status = status.map_or("ended".into(), |status| format!("ended with {status}"));
    let said: Vec<&str> = said.lines().filter(|line| !line.contains(NOISE)).collect();
    match said.join("\n").as_str() {
        "" => format!("\nQEMU {status}"),
        said => format!("\nQEMU {status} and said: {said}"),
    }
}

/// Reports what comes from a port.
fn listen(port: Port, mut stream: UnixStream, sender: SyncSender<Piece>) -> Result<()> {
    let read = move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if sender.send((port, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name(format!("lab-{}", port.id()))
        .spawn(read)?;
    Ok(())
}

/// Carries a source to the standard input of the lab and says that there is no more.
fn feed(mut source: Box<dyn Read + Send>, mut sink: UnixStream) {
    // A command that ends without reading all of its input is no failure.
    let _ = std::io::copy(&mut source, &mut sink);
    // Only our writing ends: at the closing of the whole socket QEMU drops what it has not read yet.
    let _ = sink.shutdown(Shutdown::Write);
}

/// Carries keys to the lab's terminal. Their end is not passed on: QEMU would close the screen with it.
fn type_keys(mut sink: UnixStream) {
    // It ends with the process or with the lab.
    let _ = std::io::copy(&mut std::io::stdin(), &mut sink);
}

fn exit_code(line: &str) -> Result<i32> {
    line.strip_prefix("exit ")
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("the lab said {line:?} instead of an exit code"))
}

/// A text that no output contains by chance.
fn mark(run: u64) -> Result<String> {
    let mut random = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .context("cannot read /dev/urandom")?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("nyx-lab-{run}-{digits}"))
}
