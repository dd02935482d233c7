//! A program at a guest's console: reading, waiting for text, typing.

use nyx_catalog::{Attachment, Console};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rung when a console has something new, and for good when its machine has ended.
#[derive(Default)]
pub(crate) struct Bell {
    state: Mutex<Rung>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct Rung {
    times: u64,
    is_over: bool,
}

impl Bell {
    fn ring(&self) {
        self.state.lock().times += 1;
        self.changed.notify_all();
    }

    /// Nothing will come any more.
    pub(crate) fn silence(&self) {
        self.state.lock().is_over = true;
        self.changed.notify_all();
    }

    fn now(&self) -> Rung {
        *self.state.lock()
    }

    /// Waits until it has been rung since `seen`, until the end, or until `deadline`.
    fn wait(&self, seen: Rung, deadline: Option<Instant>) {
        let mut state = self.state.lock();
        while state.times == seen.times && !state.is_over {
            match deadline {
                None => self.changed.wait(&mut state),
                Some(at) => {
                    if self.changed.wait_until(&mut state, at).timed_out() {
                        return;
                    }
                }
            }
        }
    }
}

/// A program at a guest's console. Several can be at the same one, besides whatever the console is
/// connected to; each sees everything, first the last 64 KiB from before it came.
///
/// Who reads too slowly misses what is older than 64 KiB.
pub struct ConsoleSession {
    attachment: Attachment,
    bell: Arc<Bell>,
    /// Read and not yet given out by [`ConsoleSession::wait_for`].
    ahead: Vec<u8>,
}

/// Bytes that [`ConsoleSession::wait_for`] looks back over.
const MOST_AHEAD: usize = 256 << 10;
/// Bytes taken at once.
const CHUNK: usize = 16 << 10;

/// The text did not come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitForError {
    /// In time.
    #[error("{text:?} did not come within {within:?}; the console's last words: {last:?}")]
    Timeout {
        /// What was waited for.
        text: String,
        /// How long.
        within: Duration,
        /// What came instead, its end.
        last: String,
    },
    /// Because the machine ended.
    #[error("the machine ended before {text:?} came; the console's last words: {last:?}")]
    Ended {
        /// What was waited for.
        text: String,
        /// What came instead, its end.
        last: String,
    },
}

impl ConsoleSession {
    pub(crate) fn new(console: &Console, bell: Arc<Bell>) -> Self {
        let ring = bell.clone();
        Self {
            attachment: console.attach(Arc::new(move || ring.ring())),
            bell,
            ahead: Vec::new(),
        }
    }

    /// What has come since the last call, without waiting.
    pub fn read_now(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.ahead);
        loop {
            let new = self.attachment.read(CHUNK);
            if new.is_empty() || bytes.len() > MOST_AHEAD {
                return bytes;
            }
            bytes.extend(new);
        }
    }

    /// What has come since the last call, waiting for at least a byte. Nothing means that the machine
    /// has ended.
    pub(crate) fn read_blocking(&mut self) -> Vec<u8> {
        loop {
            let seen = self.bell.now();
            let bytes = self.read_now();
            if !bytes.is_empty() || seen.is_over {
                return bytes;
            }
            self.bell.wait(seen, None);
        }
    }

    /// Waits until `text` has come and gives everything up to its end. What follows stays to be read.
    ///
    /// # Errors
    ///
    /// It did not come in time, or the machine ended first; what was read stays to be read.
    pub fn wait_for(&mut self, text: &str, within: Duration) -> Result<String, WaitForError> {
        let deadline = Instant::now() + within;
        loop {
            let seen = self.bell.now();
            self.ahead = self.read_now();
            if let Some(at) = find(&self.ahead, text.as_bytes()) {
                let rest = self.ahead.split_off(at + text.len());
                let found = std::mem::replace(&mut self.ahead, rest);
                return Ok(String::from_utf8_lossy(&found).into_owned());
            }
            let over = self.ahead.len().saturating_sub(MOST_AHEAD);
            self.ahead.drain(..over);
            let text = text.to_string();
            if seen.is_over {
                let last = self.last_words();
                return Err(WaitForError::Ended { text, last });
            }
            if Instant::now() >= deadline {
                let last = self.last_words();
                return Err(WaitForError::Timeout { text, within, last });
            }
            self.bell.wait(seen, Some(deadline));
        }
    }

    fn last_words(&self) -> String {
        let from = self.ahead.len().saturating_sub(200);
        let end = self.ahead.get(from..).unwrap_or_default();
        String::from_utf8_lossy(end).into_owned()
    }

    /// Types; waits while the guest does not read. Ends with an error when the machine does.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when the machine has ended.
    pub fn type_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        loop {
            let seen = self.bell.now();
            if seen.is_over {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let written = self.attachment.write(left);
            left = left.get(written..).unwrap_or_default();
            if left.is_empty() {
                return Ok(());
            }
            if written == 0 {
                self.bell.wait(seen, None);
            }
        }
    }

    /// Sends a break condition: the magic SysRq key of a serial console.
    pub fn send_break(&self) {
        self.attachment.send_break();
    }
}

/// Blocks until there is output; the end of the machine is the end of the file.
impl io::Read for ConsoleSession {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut new = self.read_blocking();
        let count = new.len().min(bytes.len());
        for (to, from) in bytes.iter_mut().zip(new.drain(..count)) {
            *to = from;
        }
        self.ahead = new;
        Ok(count)
    }
}

impl io::Write for ConsoleSession {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.type_bytes(bytes).map(|()| bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    if text.is_empty() {
        return Some(0);
    }
    bytes.windows(text.len()).position(|part| part == text)
}
