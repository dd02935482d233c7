//! Consoles that others may join: whatever a console is connected to, its last output is kept, and any
//! number of observers see what comes and may type.

use nyx_device::{CharBackend, WindowSize};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

/// Output kept of each console for those who join later: some screens.
const KEPT: usize = 64 << 10;
/// Input that waits for the guest, at most.
const MOST_INPUT: usize = 4 << 10;

/// All consoles of a machine, by name. Cloning gives another handle of the same.
#[derive(Clone, Default)]
pub struct Consoles(Arc<Mutex<BTreeMap<String, Console>>>);

impl Consoles {
    /// Their names and what each is connected to, in order.
    pub fn list(&self) -> Vec<(String, Console)> {
        let consoles = self.0.lock();
        consoles
            .iter()
            .map(|(name, console)| (name.clone(), console.clone()))
            .collect()
    }

    /// The console called `name`.
    pub fn get(&self, name: &str) -> Option<Console> {
        self.0.lock().get(name).cloned()
    }

    /// Puts `backend` behind the console called `name`.
    pub(crate) fn add(
        &self,
        name: &str,
        kind: &str,
        backend: Box<dyn CharBackend>,
    ) -> Box<dyn CharBackend> {
        let console = Console(Arc::new(Shared {
            kind: kind.into(),
            state: Mutex::default(),
        }));
        self.0.lock().insert(name.into(), console.clone());
        Box::new(Attachable { backend, console })
    }
}

/// One console.
#[derive(Clone)]
pub struct Console(Arc<Shared>);

struct Shared {
    kind: String,
    state: Mutex<State>,
}

/// Rung when there is something new.
type Bell = Arc<dyn Fn() + Send + Sync>;

/// Tells a device that there may be input, from the backend's thread and from observers.
type Ready = Arc<Mutex<Box<dyn Fn() + Send>>>;

#[derive(Default)]
struct State {
    kept: VecDeque<u8>,
    /// Bytes of output ever: the position behind the last one kept.
    end: u64,
    input: VecDeque<u8>,
    asked_break: bool,
    /// Tells the device that there is input.
    ready: Option<Ready>,
    observers: BTreeMap<u64, Bell>,
    next_observer: u64,
}

impl State {
    fn ring(&self) -> Vec<Bell> {
        self.observers.values().cloned().collect()
    }
}

impl Console {
    /// What it is connected to besides its observers: `stdio`, `pty`, `file`, `socket`, `null`.
    pub fn kind(&self) -> &str {
        &self.0.kind
    }

    /// How many observe it.
    pub fn attached(&self) -> u32 {
        u32::try_from(self.0.state.lock().observers.len()).unwrap_or(u32::MAX)
    }

    /// The last output, as it came.
    pub fn kept(&self) -> Vec<u8> {
        self.0.state.lock().kept.iter().copied().collect()
    }

    /// Joins. `bell` is rung, from any thread, whenever there may be output to read or room for input; it
    /// must not block.
    pub fn attach(&self, bell: Arc<dyn Fn() + Send + Sync>) -> Attachment {
        let mut state = self.0.state.lock();
        let number = state.next_observer;
        state.next_observer += 1;
        state.observers.insert(number, bell);
        let at = state.end - state.kept.len() as u64;
        Attachment {
            console: self.clone(),
            number,
            at,
        }
    }

    fn output(&self, bytes: &[u8]) {
        let mut state = self.0.state.lock();
        let new = bytes
            .get(bytes.len().saturating_sub(KEPT)..)
            .unwrap_or(bytes);
        let over = (state.kept.len() + new.len())
            .saturating_sub(KEPT)
            .min(state.kept.len());
        state.kept.drain(..over);
        state.kept.extend(new);
        state.end += bytes.len() as u64;
        if state.observers.is_empty() {
            return;
        }
        let bells = state.ring();
        drop(state);
        bells.iter().for_each(|bell| bell());
    }

    /// Takes input that observers typed; `None` when there is none.
    fn take_input(&self, bytes: &mut [u8]) -> Option<usize> {
        let mut state = self.0.state.lock();
        if state.input.is_empty() || bytes.is_empty() {
            return None;
        }
        let count = state.input.len().min(bytes.len());
        for (to, from) in bytes.iter_mut().zip(state.input.drain(..count)) {
            *to = from;
        }
        let bells = state.ring();
        drop(state);
        bells.iter().for_each(|bell| bell());
        Some(count)
    }
}

/// One observer of a console.
pub struct Attachment {
    console: Console,
    number: u64,
    /// The position up to which it has read.
    at: u64,
}

impl Attachment {
    /// Output since the last call, first what was kept from before; at most `most` bytes. Who reads too
    /// slowly misses what is no longer kept.
    pub fn read(&mut self, most: usize) -> Vec<u8> {
        let state = self.console.0.state.lock();
        let first = state.end - state.kept.len() as u64;
        let from = self.at.max(first);
        let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
        let new: Vec<u8> = state.kept.iter().skip(skip).take(most).copied().collect();
        self.at = from + new.len() as u64;
        new
    }

    /// Types; gives how many bytes there was room for. The bell rings when there is room again.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut state = self.console.0.state.lock();
        let room = MOST_INPUT.saturating_sub(state.input.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        state.input.extend(taken);
        let ready = state.ready.clone();
        drop(state);
        if let Some(ready) = ready {
            (ready.lock())();
        }
        taken.len()
    }

    /// Sends a break condition.
    pub fn send_break(&self) {
        let mut state = self.console.0.state.lock();
        state.asked_break = true;
        let ready = state.ready.clone();
        drop(state);
        if let Some(ready) = ready {
            (ready.lock())();
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.console.0.state.lock().observers.remove(&self.number);
    }
}

/// The backend of a console that can be joined.
struct Attachable {
    backend: Box<dyn CharBackend>,
    console: Console,
}

impl CharBackend for Attachable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.backend.write(bytes)?;
        self.console.output(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if let Some(count) = self.console.take_input(bytes) {
            return Ok(count);
        }
        match self.backend.read(bytes) {
            // The end of one source of input is not the end of all.
            Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            read => read,
        }
    }
    fn notify(&mut self, ready: Box<dyn Fn() + Send>) -> io::Result<()> {
        let ready = Arc::new(Mutex::new(ready));
        self.console.0.state.lock().ready = Some(ready.clone());
        self.backend.notify(Box::new(move || (ready.lock())()))
    }
    fn take_break(&mut self) -> bool {
        let asked = std::mem::take(&mut self.console.0.state.lock().asked_break);
        self.backend.take_break() || asked
    }
    fn window_size(&self) -> Option<WindowSize> {
        self.backend.window_size()
    }
    fn is_connected(&self) -> bool {
        self.backend.is_connected() || self.console.attached() > 0
    }
    fn describe(&self) -> String {
        self.backend.describe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Takes everything, says nothing.
    struct Sink;
    impl CharBackend for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
        fn notify(&mut self, _: Box<dyn Fn() + Send>) -> io::Result<()> {
            Ok(())
        }
        fn describe(&self) -> String {
            "sink".into()
        }
    }

    fn bell() -> (Arc<AtomicUsize>, Arc<dyn Fn() + Send + Sync>) {
        let rung = Arc::new(AtomicUsize::new(0));
        let count = rung.clone();
        let bell = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        (rung, Arc::new(bell))
    }

    #[test]
    fn who_joins_late_sees_the_last_output_and_then_what_comes() {
        let consoles = Consoles::default();
        let mut backend = consoles.add("console0", "null", Box::new(Sink));
        backend.write(b"before").unwrap();
        let console = consoles.get("console0").unwrap();
        let (rung, bell) = bell();
        let mut first = console.attach(bell);
        assert_eq!(first.read(3), b"bef");
        assert_eq!(first.read(99), b"ore");
        assert_eq!(first.read(99), b"");
        backend.write(b"after").unwrap();
        assert_eq!(rung.load(Ordering::SeqCst), 1);
        assert_eq!(first.read(99), b"after");
        assert_eq!(console.attached(), 1);
        drop(first);
        assert_eq!(console.attached(), 0);
    }

    #[test]
    fn a_slow_observer_costs_bounded_memory_and_misses_the_middle() {
        let consoles = Consoles::default();
        let mut backend = consoles.add("c", "null", Box::new(Sink));
        let mut slow = consoles.get("c").unwrap().attach(bell().1);
        for n in 0..3 * KEPT / 8 {
            backend.write(format!("{n:08}").as_bytes()).unwrap();
        }
        let read = slow.read(usize::MAX);
        assert_eq!(read.len(), KEPT);
        assert!(read.ends_with(format!("{:08}", 3 * KEPT / 8 - 1).as_bytes()));
        assert_eq!(slow.read(9), b"");
    }

    #[test]
    fn input_reaches_the_device_and_is_bounded() {
        let consoles = Consoles::default();
        let mut backend = consoles.add("c", "null", Box::new(Sink));
        let (rung, ready) = bell();
        backend.notify(Box::new(move || ready())).unwrap();
        let (room, bell) = bell();
        let observer = consoles.get("c").unwrap().attach(bell);
        let mut bytes = [0; 8];
        assert_eq!(
            backend.read(&mut bytes).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(observer.write(b"hello"), 5);
        assert_eq!(rung.load(Ordering::SeqCst), 1);
        assert_eq!(backend.read(&mut bytes).unwrap(), 5);
        assert_eq!(&bytes[..5], b"hello");
        assert_eq!(room.load(Ordering::SeqCst), 1, "there is room again");
        assert_eq!(observer.write(&[b'x'; 2 * MOST_INPUT]), MOST_INPUT);
        assert_eq!(observer.write(b"y"), 0);
        assert!(!backend.take_break());
        observer.send_break();
        assert!(backend.take_break() && !backend.take_break());
    }
}
