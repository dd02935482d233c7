//! The last lines of the consoles, kept for when a guest dies.

use nyx_device::{CharBackend, WindowSize};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;

/// Bytes kept: enough for what a kernel prints from the word panic to the end of its trace.
const KEPT: usize = 16 << 10;

/// Hears each piece of a console's output that the console's backend took, on the thread that wrote it.
pub type Listener = Box<dyn FnMut(&[u8]) + Send>;

/// Gives the listener of the console of that name.
type Ears = dyn Fn(&str) -> Listener + Send + Sync;

/// The last output of all consoles of a machine. Cloning gives another handle of the same.
#[derive(Clone, Default)]
pub struct ConsoleTail {
    kept: Arc<Mutex<VecDeque<u8>>>,
    ears: Option<Arc<Ears>>,
}

impl fmt::Debug for ConsoleTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleTail").finish_non_exhaustive()
    }
}

impl ConsoleTail {
    /// Lets what `ears` gives for a console's name hear that console too. It counts for consoles opened with
    /// this handle, or clones of it, from here on.
    #[must_use]
    pub fn hear_with(mut self, ears: impl Fn(&str) -> Listener + Send + Sync + 'static) -> Self {
        self.ears = Some(Arc::new(ears));
        self
    }

    /// The listener of the console of that name.
    pub(crate) fn listener(&self, name: &str) -> Option<Listener> {
        self.ears.as_ref().map(|ears| ears(name))
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.kept.lock();
        let new = bytes
            .get(bytes.len().saturating_sub(KEPT)..)
            .unwrap_or(bytes);
        let over = (kept.len() + new.len())
            .saturating_sub(KEPT)
            .min(kept.len());
        kept.drain(..over);
        kept.extend(new);
    }

    /// The last `count` lines that are not blank, without control characters.
    pub fn lines(&self, count: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.kept.lock().iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let clean = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
        let lines: Vec<_> = text
            .lines()
            .map(clean)
            .filter(|l| !l.trim().is_empty())
            .collect();
        lines
            .get(lines.len().saturating_sub(count)..)
            .unwrap_or_default()
            .to_vec()
    }
}

/// A backend whose output is remembered.
pub(crate) struct Remembered {
    pub(crate) backend: Box<dyn CharBackend>,
    pub(crate) tail: ConsoleTail,
    pub(crate) listener: Option<Listener>,
}

impl CharBackend for Remembered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.backend.write(bytes)?;
        let taken = bytes.get(..written).unwrap_or(bytes);
        self.tail.push(taken);
        if let Some(listener) = &mut self.listener {
            listener(taken);
        }
        Ok(written)
    }
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.backend.read(bytes)
    }
    fn notify(&mut self, ready: Box<dyn Fn() + Send>) -> io::Result<()> {
        self.backend.notify(ready)
    }
    fn take_break(&mut self) -> bool {
        self.backend.take_break()
    }
    fn window_size(&self) -> Option<WindowSize> {
        self.backend.window_size()
    }
    fn is_connected(&self) -> bool {
        self.backend.is_connected()
    }
    fn describe(&self) -> String {
        self.backend.describe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_stay_and_the_memory_is_bounded() {
        let tail = ConsoleTail::default();
        for n in 0..1000 {
            tail.push(format!("line {n}\r\n\r\n").as_bytes());
        }
        assert_eq!(tail.lines(2), ["line 998", "line 999"]);
        assert!(tail.kept.lock().len() <= KEPT);
        tail.push(&vec![b'x'; 3 * KEPT]);
        assert_eq!(tail.kept.lock().len(), KEPT);
    }

    #[test]
    fn escape_sequences_do_not_reach_the_user() {
        let tail = ConsoleTail::default();
        tail.push(b"\x1b[31mKernel panic\x07\n");
        assert_eq!(tail.lines(9), ["[31mKernel panic"]);
    }

    #[test]
    fn each_console_has_its_own_listener() {
        let (said, heard) = std::sync::mpsc::channel();
        let tail = ConsoleTail::default().hear_with(move |name| {
            let (name, said) = (name.to_owned(), said.clone());
            Box::new(move |bytes: &[u8]| {
                let _ = said.send((name.clone(), bytes.to_vec()));
            })
        });
        for name in ["com1", "com2"] {
            let mut console = Remembered {
                backend: Box::new(Half),
                tail: tail.clone(),
                listener: tail.listener(name),
            };
            assert_eq!(console.write(b"abcd").unwrap(), 2);
        }
        let heard: Vec<_> = heard.try_iter().collect();
        let expected = ["com1", "com2"].map(|name| (name.to_owned(), b"ab".to_vec()));
        assert_eq!(heard, expected);
        assert_eq!(tail.lines(1), ["abab"]);
    }

    /// Takes half of what it is given.
    struct Half;
    impl CharBackend for Half {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len() / 2)
        }
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn notify(&mut self, _: Box<dyn Fn() + Send>) -> io::Result<()> {
            Ok(())
        }
        fn describe(&self) -> String {
            "half".into()
        }
    }
}
