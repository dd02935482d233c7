//! `nyx console`: a machine's console on this terminal, or between pipes.

use crate::complete;
use crate::exit::{Failure, NOT_FOUND, REFUSED, tell};
use crate::session::Session;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use nyx_api::ConsoleDescription;
use nyx_char::{Escape, EscapeFilter};
use nyx_client::{Attached, nearest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[derive(Args)]
pub(crate) struct ConsoleArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// The console; the first one by default
    #[arg(value_name = "CONSOLE", add = ArgValueCompleter::new(complete::consoles))]
    console: Option<String>,
    /// Leave so long after the end of standard input, when that is a file or a pipe; the default is to
    /// stay until the machine ends
    #[arg(long, value_name = "SECONDS")]
    leave_after: Option<u32>,
    /// Print what was said last and leave
    #[arg(long, conflicts_with = "leave_after")]
    last: bool,
}

const HELP: &str = "\r\n\
    Ctrl-A h       this help\r\n\
    Ctrl-A x       leave the console; the machine goes on\r\n\
    Ctrl-A b       a break, which this console cannot carry\r\n\
    Ctrl-A Ctrl-A  send Ctrl-A\r\n";

/// Undoes what a guest's programs ask of a terminal: colours, hidden cursor, mouse, bracketed paste
/// (ECMA-48; xterm's control sequences).
const TIDY: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\r\n";

pub(crate) fn console(args: &ConsoleArgs) -> Result<(), Failure> {
    let session = Session::new()?;
    let named = session.find(&args.name)?;
    let consoles = session.call(named.client.consoles())?;
    let console = chosen(&consoles, args.console.as_deref(), named.name())?;
    if args.last {
        let said = session.call(named.client.console_text(&console))?;
        return crate::output::print(said);
    }
    let attached = session.call(named.client.attach(&console))?;
    let terminal = io::stdin().is_terminal();
    if terminal {
        tell!(
            "nyx: console {console} of {}; Ctrl-A x leaves, Ctrl-A h helps",
            named.name()
        );
    }
    let fail = |e: io::Error| Failure::new(REFUSED, format!("the console broke off: {e}"));
    let left = Line::new(attached, terminal, args.leave_after)
        .and_then(Line::carry)
        .map_err(fail)?;
    if terminal {
        match left {
            Left::User => tell!("nyx: left; the machine goes on"),
            Left::Ended => tell!("nyx: the machine has closed the console"),
            Left::Signal(_) | Left::Input | Left::Output => {}
        }
    }
    if let Left::Signal(signal) = left {
        // The terminal is itself again: now the signal may have its way.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
    Ok(())
}

fn chosen(
    consoles: &[ConsoleDescription],
    wanted: Option<&str>,
    machine: &str,
) -> Result<String, Failure> {
    let names = consoles.iter().map(|console| console.name.as_str());
    let Some(wanted) = wanted else {
        let first = names.clone().next();
        return first.map(Into::into).ok_or_else(|| {
            Failure::new(
                NOT_FOUND,
                format!("machine `{machine}` has no console; run it with `--console …`"),
            )
        });
    };
    if names.clone().any(|name| name == wanted) {
        return Ok(wanted.into());
    }
    let mend = match nearest(wanted, names.clone()) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None if consoles.is_empty() => "it has none".into(),
        None => format!("it has {}", names.collect::<Vec<_>>().join(", ")),
    };
    Err(Failure::new(
        NOT_FOUND,
        format!("machine `{machine}` has no console called {wanted:?}; {mend}"),
    ))
}

/// The user's terminal in raw mode, until dropped.
struct Raw {
    cooked: Termios,
    raw: Termios,
}

impl Raw {
    fn enter() -> io::Result<Self> {
        let cooked = tcgetattr(io::stdin())?;
        let mut raw = cooked.clone();
        raw.make_raw();
        let terminal = Self { cooked, raw };
        terminal.set(true);
        Ok(terminal)
    }

    fn set(&self, raw: bool) {
        let wanted = if raw { &self.raw } else { &self.cooked };
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, wanted);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let mut out = io::stdout();
        let _ = out.write_all(TIDY).and_then(|()| out.flush());
        self.set(false);
    }
}

/// Why the console was left.
enum Left {
    User,
    Ended,
    Input,
    Output,
    Signal(i32),
}

/// Signals that end or stop the process, each of which must find the terminal restored.
const SIGNALS: [i32; 6] = [SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGTSTP, SIGCONT];

/// Most typed bytes that wait for a guest that does not read.
const MOST_WAITING: usize = 64 << 10;

/// Two directions of bytes between this process's standard streams and a console.
struct Line {
    said: Vec<u8>,
    stream: UnixStream,
    terminal: Option<Raw>,
    escapes: EscapeFilter,
    waiting: Vec<u8>,
    input: bool,
    leave_after: Option<Duration>,
    leave_at: Option<Instant>,
    signal: Arc<AtomicUsize>,
    wake: UnixStream,
}

impl Line {
    fn new(attached: Attached, terminal: bool, leave_after: Option<u32>) -> io::Result<Self> {
        let (wake, bell) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let signal = Arc::new(AtomicUsize::new(0));
        for number in SIGNALS {
            let value = usize::try_from(number).unwrap_or(0);
            signal_hook::flag::register_usize(number, signal.clone(), value)?;
            signal_hook::low_level::pipe::register(number, bell.try_clone()?)?;
        }
        attached.stream.set_nonblocking(true)?;
        Ok(Self {
            said: attached.said,
            stream: attached.stream,
            terminal: if terminal { Some(Raw::enter()?) } else { None },
            escapes: EscapeFilter::new(),
            waiting: Vec::new(),
            input: true,
            leave_after: leave_after.map(|seconds| Duration::from_secs(seconds.into())),
            leave_at: None,
            signal,
            wake,
        })
    }

    fn carry(mut self) -> io::Result<Left> {
        let said = std::mem::take(&mut self.said);
        if !say(&said)? {
            return Ok(Left::Output);
        }
        loop {
            if self.leave_at.is_some_and(|at| Instant::now() >= at) {
                return Ok(Left::Input);
            }
            let Some([typed, came, writable, woken]) = self.wait()? else {
                return Ok(Left::Output);
            };
            if woken && let Some(left) = self.signalled() {
                return Ok(left);
            }
            if came && let Some(left) = self.hear()? {
                return Ok(left);
            }
            if typed && let Some(left) = self.typed()? {
                return Ok(left);
            }
            if writable {
                self.pass_on();
            }
        }
    }

    /// Sleeps until something happens: input, output, room for input, a signal. `None`: nobody reads what the
    /// guest says any more.
    fn wait(&self) -> io::Result<Option<[bool; 4]>> {
        let stdin = io::stdin();
        let stdout = io::stdout();
        // From a pipe only what can be passed on is read; at a terminal Ctrl-A x must always be heard.
        let listen = self.input && (self.terminal.is_some() || self.waiting.len() < MOST_WAITING);
        let of_stream = if self.waiting.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        };
        let of_input = if listen {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let mut fds = [
            PollFd::new(&self.stream, of_stream),
            PollFd::new(&self.wake, PollFlags::IN),
            // Only its error counts: nobody reads our output any more.
            PollFd::new(&stdout, PollFlags::empty()),
            PollFd::new(&stdin, of_input),
        ];
        // A closed input would be reported again and again.
        let count = if listen { 4 } else { 3 };
        let left = self
            .leave_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds.get_mut(..count).unwrap_or_default(), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let gone = PollFlags::HUP | PollFlags::ERR;
        let [stream, wake, out, input] = fds.map(|fd| fd.revents());
        if out.intersects(PollFlags::ERR) && self.terminal.is_none() {
            return Ok(None);
        }
        Ok(Some([
            listen && input.intersects(PollFlags::IN | gone),
            stream.intersects(PollFlags::IN | gone),
            stream.contains(PollFlags::OUT),
            wake.intersects(PollFlags::IN),
        ]))
    }

    fn signalled(&mut self) -> Option<Left> {
        let mut bytes = [0; 64];
        while matches!(self.wake.read(&mut bytes), Ok(1..)) {}
        let signal = i32::try_from(self.signal.swap(0, Ordering::AcqRel)).unwrap_or(0);
        match signal {
            0 => None,
            SIGTSTP => {
                if let Some(raw) = &self.terminal {
                    raw.set(false);
                }
                let _ = kill_process(getpid(), Signal::STOP);
                self.raw_again()
            }
            SIGCONT => self.raw_again(),
            signal => Some(Left::Signal(signal)),
        }
    }

    fn raw_again(&self) -> Option<Left> {
        if let Some(raw) = &self.terminal {
            raw.set(true);
        }
        None
    }

    fn hear(&mut self) -> io::Result<Option<Left>> {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => Ok(Some(Left::Ended)),
            Ok(n) => {
                let said = bytes.get(..n).unwrap_or_default();
                Ok((!say(said)?).then_some(Left::Output))
            }
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                // The machine's process is gone.
                io::ErrorKind::ConnectionReset => Ok(Some(Left::Ended)),
                _ => Err(e),
            },
        }
    }

    fn typed(&mut self) -> io::Result<Option<Left>> {
        let mut bytes = [0; 4096];
        // Not through the buffer of `std`, which poll does not see.
        let n = match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(n) => n,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(None),
            // The terminal has gone.
            Err(Errno::IO) => 0,
            Err(e) => return Err(e.into()),
        };
        if n == 0 {
            self.input = false;
            self.leave_at = match self.terminal {
                Some(_) => return Ok(Some(Left::Input)),
                None => self.leave_after.map(|after| Instant::now() + after),
            };
            return Ok(None);
        }
        let typed = bytes.get_mut(..n).unwrap_or_default();
        let mut kept = n;
        let mut quit = false;
        if self.terminal.is_some() {
            let mut help = false;
            kept = self.escapes.filter(typed, |escape| match escape {
                Escape::Quit => quit = true,
                Escape::Help => help = true,
                Escape::Break | Escape::Prompt => help = true,
            });
            if help {
                say(HELP.as_bytes())?;
            }
        }
        if self.waiting.len() < MOST_WAITING {
            self.waiting
                .extend_from_slice(typed.get(..kept).unwrap_or_default());
        }
        self.pass_on();
        Ok(quit.then_some(Left::User))
    }

    fn pass_on(&mut self) {
        while !self.waiting.is_empty() {
            match self.stream.write(&self.waiting) {
                Ok(n @ 1..) => drop(self.waiting.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // The reading side says what that means.
                Ok(0) | Err(_) => self.waiting.clear(),
            }
        }
    }
}

/// Prints what the guest said; `false` when nobody reads that any more.
fn say(bytes: &[u8]) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e),
    }
}
