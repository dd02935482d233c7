//! The terminal, pipes or files the process was started with.
//!
//! Descriptors 0 and 1 are shared with other processes (the shell, `tee`), so they are never made
//! non-blocking. A terminal or pipe is opened anew instead, which gives an open file of its own; a
//! socket is used with `MSG_DONTWAIT`; what cannot be opened anew is polled before each transfer.

use crate::escape::{Escape, EscapeFilter, HELP};
use crate::terminal::{Claim, RawMode, SizeSignal, is_in_background};
use crate::watch::{Arm, Edge, Watch};
use crate::{OnEscape, OpenError};
use nyx_device::{CharBackend, WindowSize};
use nyx_reactor::EventFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::termios::{isatty, tcgetwinsize};
use serde::Deserialize;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Configuration of kind `stdio`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdioConfig {
    /// Put a terminal into raw mode, so that every key reaches the guest.
    #[serde(default = "yes")]
    pub raw: bool,
    /// Take Ctrl-A escapes out of the input. Unless set, they are when the input is a terminal.
    pub escape: Option<bool>,
}

fn yes() -> bool {
    true
}

/// How one direction is done without ever blocking.
enum Way {
    /// An open file of our own, non-blocking.
    Own,
    /// A regular file or a device that never blocks.
    Ready,
    /// A socket.
    Socket,
    /// Somebody else's terminal or pipe: poll, then transfer what is sure to fit.
    Shared,
}

struct End {
    // Shared with the thread: epoll knows an open file by its number, so a duplicate will not do.
    fd: Arc<OwnedFd>,
    way: Way,
}

/// A terminal has at least this much room when it polls writable, and a pipe has 4096.
const SHARED_CHUNK: usize = 128;

impl End {
    fn open(std: BorrowedFd<'_>, access: OFlags) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(fstat(std)?.st_mode);
        let way = match kind {
            FileType::Socket => Way::Socket,
            FileType::Fifo => Way::Own,
            FileType::CharacterDevice if isatty(std) => Way::Own,
            _ => Way::Ready,
        };
        if matches!(way, Way::Own) {
            let path = format!("/proc/self/fd/{}", std.as_raw_fd());
            let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            // Refused for a terminal of another user (after `su`), or without /proc.
            if let Ok(fd) = open(path, flags, Mode::empty()) {
                return Ok(Self {
                    fd: Arc::new(fd),
                    way,
                });
            }
        }
        let way = if matches!(way, Way::Own) {
            Way::Shared
        } else {
            way
        };
        Ok(Self {
            fd: Arc::new(std.try_clone_to_owned()?),
            way,
        })
    }

    fn polls(&self, flags: PollFlags) -> bool {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&*self.fd, flags)];
        matches!(poll(&mut fds, Some(&zero)), Ok(n) if n > 0)
    }

    fn read(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| match self.way {
            Way::Own | Way::Ready => rustix::io::read(&self.fd, &mut *bytes),
            Way::Socket => {
                rustix::net::recv(&self.fd, &mut *bytes, RecvFlags::DONTWAIT).map(|(n, _)| n)
            }
            Way::Shared if self.polls(PollFlags::IN) => rustix::io::read(&self.fd, &mut *bytes),
            Way::Shared => Err(Errno::AGAIN),
        })
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| match self.way {
            Way::Own | Way::Ready => rustix::io::write(&self.fd, bytes),
            Way::Socket => {
                rustix::net::send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            }
            Way::Shared if self.polls(PollFlags::OUT) => {
                rustix::io::write(&self.fd, &bytes[..bytes.len().min(SHARED_CHUNK)])
            }
            Way::Shared => Err(Errno::AGAIN),
        })
    }
}

const INPUT: u64 = 0;
const OUTPUT: u64 = 1;
const WAKE: u64 = 2;

pub(crate) struct Stdio {
    // Dropped in this order: the terminal is cooked again before anybody else may claim it.
    raw: Option<RawMode>,
    size: Option<SizeSignal>,
    watch: Option<(Watch, Arm)>,
    input: End,
    output: End,
    output_gone: bool,
    wake: EventFd,
    filter: Option<EscapeFilter>,
    on_escape: Option<OnEscape>,
    /// A break was asked for and not yet taken.
    break_typed: bool,
    _claim: Claim,
}

impl Stdio {
    pub(crate) fn open(
        config: &StdioConfig,
        on_escape: Option<OnEscape>,
    ) -> Result<Self, OpenError> {
        let claim = Claim::take().ok_or(OpenError::StdioTaken)?;
        let fail = |action| move |source| OpenError::Resource { action, source };
        let stdin = io::stdin();
        let input = End::open(stdin.as_fd(), OFlags::RDONLY).map_err(fail("use standard input"))?;
        let stdout = io::stdout();
        let output =
            End::open(stdout.as_fd(), OFlags::WRONLY).map_err(fail("use standard output"))?;
        let wake = EventFd::new().map_err(fail("create an eventfd"))?;
        let terminal = isatty(&input.fd);
        let raw = match terminal && config.raw {
            true => Some(RawMode::enter(&input.fd).map_err(fail("set the terminal raw"))?),
            false => None,
        };
        Ok(Self {
            raw,
            size: None,
            watch: None,
            input,
            output,
            output_gone: false,
            wake,
            filter: config.escape.unwrap_or(terminal).then(EscapeFilter::new),
            on_escape,
            break_typed: false,
            _claim: claim,
        })
    }
}

/// What an escape does when nobody listens: Ctrl-A x must always work on a raw terminal.
fn default_escape(escape: Escape) {
    if escape == Escape::Quit {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    }
}

impl CharBackend for Stdio {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.output_gone {
            return Ok(bytes.len());
        }
        match self.output.write(bytes) {
            Ok(n) => Ok(n),
            Err(Errno::AGAIN) => {
                if let Some((_, arm)) = &self.watch {
                    arm.rearm(&self.output.fd, OUTPUT, Edge::Output);
                }
                Err(io::ErrorKind::WouldBlock.into())
            }
            // The reader of the pipe has gone, the terminal has hung up, the disk is full: none of
            // them is a reason to stop the guest.
            Err(e) => {
                self.output_gone = matches!(e, Errno::PIPE | Errno::IO | Errno::CONNRESET);
                Ok(bytes.len())
            }
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.raw.is_some() && is_in_background(&self.input.fd) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let got = match self.input.read(bytes) {
                Ok(0) => return Ok(0),
                Ok(n) => n,
                // A terminal that hung up is the end of input.
                Err(Errno::IO) => return Ok(0),
                Err(e) => return Err(e.into()),
            };
            let Some(filter) = &mut self.filter else {
                return Ok(got);
            };
            let (output, on_escape) = (&self.output, &self.on_escape);
            let break_typed = &mut self.break_typed;
            let kept = filter.filter(&mut bytes[..got], |escape| {
                *break_typed |= escape == Escape::Break;
                if escape == Escape::Help {
                    let _ = output.write(HELP.as_bytes());
                }
                match on_escape {
                    Some(on_escape) => on_escape(escape),
                    None => default_escape(escape),
                }
            });
            // Nothing but escapes: `Ok(0)` would mean the end of input.
            if kept != 0 {
                return Ok(kept);
            }
        }
    }

    fn notify(&mut self, ready: Box<dyn Fn() + Send>) -> io::Result<()> {
        let watch = Watch::new()?;
        let always = !watch.add(&self.input.fd, INPUT, Edge::Input)?;
        watch.add(&self.output.fd, OUTPUT, Edge::Closed)?;
        watch.add(&self.wake, WAKE, Edge::Input)?;
        if isatty(&self.input.fd) || isatty(&self.output.fd) {
            let wake = self.wake.as_fd().try_clone_to_owned()?;
            self.size = Some(SizeSignal::install(wake));
        }
        let arm = watch.arm();
        let (rearm, output) = (watch.arm(), Arc::clone(&self.output.fd));
        watch.start("char-stdio", move |token| {
            if token == OUTPUT {
                rearm.rearm(&output, OUTPUT, Edge::Closed);
            }
            ready();
        })?;
        if always {
            self.wake.signal();
        }
        self.watch = Some((watch, arm));
        Ok(())
    }

    fn take_break(&mut self) -> bool {
        std::mem::take(&mut self.break_typed)
    }

    fn window_size(&self) -> Option<WindowSize> {
        let size = tcgetwinsize(&self.output.fd).ok()?;
        (size.ws_col != 0 && size.ws_row != 0).then_some(WindowSize {
            columns: size.ws_col,
            rows: size.ws_row,
        })
    }

    fn is_connected(&self) -> bool {
        !self.output_gone
    }

    fn describe(&self) -> String {
        "stdio".to_owned()
    }
}
