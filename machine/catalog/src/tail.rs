//! The last lines of the consoles, kept for when a guest dies.

use nyx_device::{CharBackend, WindowSize};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// Bytes kept: enough for what a kernel prints from the word panic to the end of its trace.
const KEPT: usize = 16 << 10;

/// The last output of all consoles of a machine. Cloning gives another handle of the same.
#[derive(Clone, Debug, Default)]
pub struct ConsoleTail(Arc<Mutex<VecDeque<u8>>>);

impl ConsoleTail {
    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock();
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
        let bytes: Vec<u8> = self.0.lock().iter().copied().collect();
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
}

impl CharBackend for Remembered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.backend.write(bytes)?;
        self.tail.push(bytes.get(..written).unwrap_or(bytes));
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
        assert!(tail.0.lock().len() <= KEPT);
        tail.push(&vec![b'x'; 3 * KEPT]);
        assert_eq!(tail.0.lock().len(), KEPT);
    }

    #[test]
    fn escape_sequences_do_not_reach_the_user() {
        let tail = ConsoleTail::default();
        tail.push(b"\x1b[31mKernel panic\x07\n");
        assert_eq!(tail.lines(9), ["[31mKernel panic"]);
    }
}
