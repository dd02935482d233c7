//! Kicking a vCPU out of the guest from any thread, without losing a kick.
//!
//! A kick sets `kvm_run::immediate_exit` and then signals the vCPU's thread. If the thread is in the
//! guest, the signal brings it out; if it is about to enter, the flag keeps it out. The vCPU clears
//! the flag when `KVM_RUN` has returned EINTR, before its caller looks at the commands, so a
//! command published before the kick is seen after the clear, and a kick after the clear sets the
//! flag again.

use crate::run_page::ImmediateExit;
use nyx_hypervisor::Kick;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// The thread that runs a vCPU, while it exists.
#[derive(Default)]
struct Target(Mutex<Option<libc::pthread_t>>);

thread_local! {
    static TARGETS: RefCell<Registered> = const { RefCell::new(Registered(Vec::new())) };
}

/// The targets that name this thread. Dropped when the thread ends, before its id can be reused.
struct Registered(Vec<Arc<Target>>);

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: always succeeds, on any thread.
        let this = unsafe { libc::pthread_self() };
        for target in &self.0 {
            let mut thread = target.0.lock();
            // A vCPU that moved on to another thread is not ours to clear.
            if *thread == Some(this) {
                *thread = None;
            }
        }
    }
}

/// The shared half of a vCPU's kick.
pub(crate) struct Kicker {
    immediate_exit: ImmediateExit,
    pending: AtomicBool,
    target: Arc<Target>,
}

impl Kicker {
    pub(crate) fn new(immediate_exit: ImmediateExit) -> Self {
        Self {
            immediate_exit,
            pending: AtomicBool::new(false),
            target: Arc::default(),
        }
    }

    /// Makes the calling thread the one to signal.
    pub(crate) fn attach(&self) -> io::Result<()> {
        install_signal()?;
        // SAFETY: always succeeds.
        let this = unsafe { libc::pthread_self() };
        let unused = TARGETS.try_with(|targets| {
            let mut targets = targets.borrow_mut();
            targets.0.retain(|t| Arc::strong_count(t) > 1);
            targets.0.push(self.target.clone());
        });
        if unused.is_err() {
            return Err(io::Error::other("this thread is ending"));
        }
        *self.target.0.lock() = Some(this);
        Ok(())
    }

    /// No thread runs this vCPU any more.
    pub(crate) fn detach(&self) {
        *self.target.0.lock() = None;
    }

    /// The vCPU's thread has left `KVM_RUN` with EINTR.
    pub(crate) fn seen(&self) {
        self.pending.swap(false, Ordering::SeqCst);
        self.immediate_exit.set(false);
    }

    /// Runs `enter` with `immediate_exit` set, and leaves it as kicks want it.
    pub(crate) fn held_back<R>(&self, enter: impl FnOnce() -> R) -> R {
        self.immediate_exit.set(true);
        let result = enter();
        self.immediate_exit.set(false);
        // A kick in between must not be lost with the flag that was just cleared.
        if self.pending.load(Ordering::SeqCst) {
            self.immediate_exit.set(true);
        }
        result
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        self.pending.store(true, Ordering::SeqCst);
        self.immediate_exit.set(true);
        // The lock is held while signalling: the thread cannot end in between.
        let thread = self.target.0.lock();
        if let Some(thread) = *thread {
            // SAFETY: the thread exists: it clears the target under this lock before it ends.
            unsafe {
                libc::pthread_kill(thread, signal());
            }
        }
    }
}

/// The real-time signal that kicks use.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int) {}

/// Installs the empty signal handler once per process and unblocks the signal in this thread.
fn install_signal() -> io::Result<()> {
    static INSTALLED: Once = Once::new();
    let mut installed = Ok(());
    INSTALLED.call_once(|| {
        // SAFETY: a zeroed sigaction is a valid one; the handler does nothing, which is
        // async-signal-safe. SA_RESTART: only KVM_RUN, which never restarts, shall notice.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal(), &raw const action, std::ptr::null_mut())
        };
        if result != 0 {
            installed = Err(io::Error::last_os_error());
        }
    });
    installed?;
    // SAFETY: the set is initialized by sigemptyset before use, and only this thread's mask changes.
    let result = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}
