//! Character backends whose other end is the test.

use nyx_device::{CharBackend, WindowSize};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

#[derive(Default)]
struct Shared {
    output: Vec<u8>,
    room: Option<usize>,
    input: VecDeque<u8>,
    ended: bool,
    writes: usize,
    is_break: bool,
    window: Option<WindowSize>,
    ready: Option<Box<dyn Fn() + Send>>,
}

/// The far end of one character backend.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Shared>>);

impl Console {
    /// Takes what the device wrote since the last call.
    pub fn take_output(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().output)
    }
    /// How many times the device called [`CharBackend::write`].
    pub fn writes(&self) -> usize {
        self.0.lock().writes
    }
    /// From now on takes `room` more bytes and then says `WouldBlock`; `None` takes everything.
    pub fn set_room(&self, room: Option<usize>) {
        self.0.lock().room = room;
    }
    /// Queues input for the device. It is not woken: call [`Console::ring`].
    pub fn type_in(&self, bytes: &[u8]) {
        self.0.lock().input.extend(bytes);
    }
    /// How many bytes of input the device has not read yet.
    pub fn unread(&self) -> usize {
        self.0.lock().input.len()
    }
    /// Ends the input once what is queued has been read.
    pub fn hang_up(&self) {
        self.0.lock().ended = true;
    }
    /// Sends a break condition. The device is not woken: call [`Console::ring`].
    pub fn send_break(&self) {
        self.0.lock().is_break = true;
    }
    /// Sets the terminal's size.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.0.lock().window = Some(WindowSize { columns, rows });
    }
    /// Tells the device that something changed, as a backend's own thread would. Does nothing to a
    /// device that is not in a slot: call its `wake` instead.
    pub fn ring(&self) {
        let ready = self.0.lock().ready.take();
        if let Some(ready) = ready {
            ready();
            self.0.lock().ready.get_or_insert(ready);
        }
    }
    /// Whether the device asked to be notified.
    pub fn is_watched(&self) -> bool {
        self.0.lock().ready.is_some()
    }
    /// A backend at this console.
    pub fn backend(&self) -> Box<dyn CharBackend> {
        Box::new(Near(self.clone()))
    }
}

struct Near(Console);

impl CharBackend for Near {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut shared = self.0.0.lock();
        shared.writes += 1;
        let count = bytes.len().min(shared.room.unwrap_or(usize::MAX));
        if count == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        shared.room = shared.room.map(|room| room - count);
        shared.output.extend(&bytes[..count]);
        Ok(count)
    }
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut shared = self.0.0.lock();
        let count = bytes.len().min(shared.input.len());
        if count == 0 && !shared.ended && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for (slot, byte) in bytes.iter_mut().zip(shared.input.drain(..count)) {
            *slot = byte;
        }
        Ok(count)
    }
    fn notify(&mut self, ready: Box<dyn Fn() + Send>) -> io::Result<()> {
        self.0.0.lock().ready = Some(ready);
        Ok(())
    }
    fn take_break(&mut self) -> bool {
        std::mem::take(&mut self.0.0.lock().is_break)
    }
    fn window_size(&self) -> Option<WindowSize> {
        self.0.0.lock().window
    }
    fn describe(&self) -> String {
        "a scripted console".into()
    }
}

/// Consoles by the `kind` of their backend spec, made on first mention.
#[derive(Clone, Default)]
pub struct Consoles(Arc<Mutex<BTreeMap<String, Console>>>);

impl Consoles {
    /// The console that `{"kind": kind}` opens.
    pub fn at(&self, kind: &str) -> Console {
        self.0.lock().entry(kind.into()).or_default().clone()
    }
    /// Every console that was opened or mentioned.
    pub fn far_ends(&self) -> Vec<Console> {
        self.0.lock().values().cloned().collect()
    }
}
