//! The user's terminal: raw mode, and giving it back whatever ends or stops the process.
//!
//! Raw mode ends with [`RawMode`]'s drop, at `exit(3)`, on the signals that would kill the process
//! while nobody handles them, and for the time the process is stopped. A program that installs its
//! own handlers for those signals keeps them. SIGKILL leaves the terminal raw: nothing can help that.

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};

/// Signals that end the process by default and that a user or a supervisor sends.
const FATAL: [libc::c_int; 5] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGABRT,
];

/// What the handlers need: they may take no lock and allocate nothing.
struct Settings {
    fd: libc::c_int,
    cooked: libc::termios,
    raw: libc::termios,
}

static SETTINGS: AtomicPtr<Settings> = AtomicPtr::new(ptr::null_mut());
static WAKE: AtomicI32 = AtomicI32::new(-1);
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The right to the process's standard input and output; one console has it at a time.
pub(crate) struct Claim(());

impl Claim {
    pub(crate) fn take() -> Option<Self> {
        (!TAKEN.swap(true, Ordering::AcqRel)).then_some(Self(()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

/// Tells `wake` about SIGWINCH and about the process being continued, until dropped.
pub(crate) struct SizeSignal {
    _wake: OwnedFd,
}

impl SizeSignal {
    /// `wake` is an eventfd.
    pub(crate) fn install(wake: OwnedFd) -> Self {
        WAKE.store(wake.as_raw_fd(), Ordering::Release);
        install(libc::SIGWINCH, on_resize);
        install(libc::SIGCONT, on_continue);
        Self { _wake: wake }
    }
}

impl Drop for SizeSignal {
    fn drop(&mut self) {
        uninstall(libc::SIGWINCH, on_resize);
        uninstall(libc::SIGCONT, on_continue);
        WAKE.store(-1, Ordering::Release);
    }
}

/// A terminal in raw mode, until dropped.
pub(crate) struct RawMode {
    _fd: OwnedFd,
}

impl RawMode {
    /// Sets `terminal` raw (termios(3), `cfmakeraw`). A process in the background does so when it
    /// comes to the foreground.
    pub(crate) fn enter(terminal: impl AsFd) -> io::Result<Self> {
        let fd = terminal.as_fd().try_clone_to_owned()?;
        let mut cooked = MaybeUninit::uninit();
        // SAFETY: `fd` is open and `cooked` has room for a termios.
        if unsafe { libc::tcgetattr(fd.as_raw_fd(), cooked.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above succeeded, so it has filled `cooked`.
        let cooked = unsafe { cooked.assume_init() };
        let mut raw = cooked;
        // SAFETY: `raw` is a valid termios.
        unsafe { libc::cfmakeraw(&mut raw) };
        let settings = Box::new(Settings {
            fd: fd.as_raw_fd(),
            cooked,
            raw,
        });
        // Leaked on purpose, once per console opened: a handler may be reading it at any time.
        SETTINGS.store(Box::leak(settings), Ordering::Release);
        static AT_EXIT: Once = Once::new();
        // SAFETY: `restore` is an `extern "C" fn()` that lives as long as the program.
        AT_EXIT.call_once(|| unsafe {
            libc::atexit(restore);
        });
        for signal in FATAL {
            install(signal, on_fatal);
        }
        install(libc::SIGTSTP, on_stop);
        set_raw();
        Ok(Self { _fd: fd })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
        SETTINGS.store(ptr::null_mut(), Ordering::Release);
        for signal in FATAL {
            uninstall(signal, on_fatal);
        }
        uninstall(libc::SIGTSTP, on_stop);
    }
}

/// Whether reading `terminal` would stop the process (SIGTTIN) because another job has it.
pub(crate) fn is_in_background(terminal: impl AsFd) -> bool {
    in_background(terminal.as_fd().as_raw_fd())
}

// Below: only async-signal-safe calls (signal-safety(7)). --------------------------------------------

fn in_background(fd: libc::c_int) -> bool {
    // SAFETY: neither call touches memory of ours.
    let (owner, own) = unsafe { (libc::tcgetpgrp(fd), libc::getpgrp()) };
    // Without a controlling terminal (-1) there is no job control and nothing to respect.
    owner > 0 && owner != own
}

fn apply(raw: bool) {
    // SAFETY: the pointer is null or leaked by `RawMode::enter`, so it is valid for ever.
    let Some(settings) = (unsafe { SETTINGS.load(Ordering::Acquire).as_ref() }) else {
        return;
    };
    // Changing the settings from the background would stop the process (SIGTTOU), and the shell
    // has put its own there anyway.
    if in_background(settings.fd) {
        return;
    }
    let wanted = if raw { &settings.raw } else { &settings.cooked };
    // SAFETY: `wanted` is a valid termios; a closed `fd` is an error, nothing worse.
    unsafe {
        libc::tcsetattr(settings.fd, libc::TCSANOW, wanted);
    }
}

fn set_raw() {
    apply(true);
}

extern "C" fn restore() {
    apply(false);
}

fn wake() {
    let fd = WAKE.load(Ordering::Acquire);
    if fd >= 0 {
        let one = 1u64;
        // SAFETY: eight readable bytes; a full or closed eventfd is an error, nothing worse.
        unsafe {
            libc::write(fd, ptr::from_ref(&one).cast(), 8);
        }
    }
}

/// Runs `body` with `errno` as the interrupted code left it.
fn keeping_errno(body: impl FnOnce()) {
    // SAFETY: glibc's errno location is valid for the calling thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    body();
    // SAFETY: as above.
    unsafe { *errno = before };
}

extern "C" fn on_resize(_: libc::c_int) {
    keeping_errno(wake);
}

extern "C" fn on_continue(_: libc::c_int) {
    keeping_errno(|| {
        set_raw();
        wake();
    });
}

extern "C" fn on_fatal(signal: libc::c_int) {
    restore();
    // SAFETY: plain system calls. The signal is blocked while this runs, so it takes its default
    // effect, death, when the handler returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn on_stop(signal: libc::c_int) {
    keeping_errno(|| {
        restore();
        // SAFETY: plain system calls on a signal set that is ours. Raising the signal with its
        // default effect and unblocking it stops the process here, until it is continued.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
            let mut set = MaybeUninit::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut());
        }
        install(signal, on_stop);
        set_raw();
    });
}

type Handler = extern "C" fn(libc::c_int);

fn disposition(signal: libc::c_int) -> libc::sighandler_t {
    let mut old = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: only asks; `old` has room for the answer.
    if unsafe { libc::sigaction(signal, ptr::null(), old.as_mut_ptr()) } != 0 {
        return libc::SIG_IGN;
    }
    // SAFETY: the call above succeeded, so it has filled `old`.
    unsafe { old.assume_init() }.sa_sigaction
}

/// Installs `handler` where the signal still has its default effect.
fn install(signal: libc::c_int, handler: Handler) {
    if disposition(signal) != libc::SIG_DFL {
        return;
    }
    // SAFETY: an all-zero sigaction is valid; the handlers above are async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}

/// Gives the signal its default effect back, unless somebody else has taken it meanwhile.
fn uninstall(signal: libc::c_int, handler: Handler) {
    if disposition(signal) == handler as libc::sighandler_t {
        // SAFETY: the default effect needs no code of ours.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}
