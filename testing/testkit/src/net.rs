//! Network backends whose other end is the test.

use nyx_device::{NetBackend, NetOffloads, NetQueue};
use nyx_memory::PinnedBuffers;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

const LONGEST_FRAME: usize = 65_536 + 64;

struct Shared {
    far: UnixDatagram,
    near: Option<UnixDatagram>,
    offloads: NetOffloads,
    accepted: NetOffloads,
}

/// The far end of one network backend with a single queue pair. Frames carry the header that the
/// offered offloads say.
#[derive(Clone)]
pub struct Wire(Arc<Mutex<Shared>>);

impl Default for Wire {
    fn default() -> Self {
        let pair = UnixDatagram::pair().and_then(|(near, far)| {
            near.set_nonblocking(true)?;
            far.set_nonblocking(true)?;
            Ok((near, far))
        });
        let (near, far) = pair.expect("a socket pair needs two file descriptors");
        let offloads = NetOffloads {
            vnet_header: true,
            checksum: true,
            ..Default::default()
        };
        let accepted = NetOffloads::default();
        Self(Arc::new(Mutex::new(Shared {
            far,
            near: Some(near),
            offloads,
            accepted,
        })))
    }
}

impl Wire {
    /// Changes what the backend offers. Before the device is built.
    pub fn set_offloads(&self, offloads: NetOffloads) {
        self.0.lock().offloads = offloads;
    }
    /// What the device accepted.
    pub fn accepted(&self) -> NetOffloads {
        self.0.lock().accepted
    }
    /// Sends a frame to the device; `false` when the wire is full.
    pub fn send(&self, frame: &[u8]) -> bool {
        self.0.lock().far.send(frame).is_ok()
    }
    /// Takes a frame that the device sent.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; LONGEST_FRAME];
        let len = self.0.lock().far.recv(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }
    /// A backend on this wire. One at a time.
    pub fn backend(&self) -> Box<dyn NetBackend> {
        Box::new(Near(self.clone()))
    }
}

struct Near(Wire);

impl NetBackend for Near {
    fn offloads(&self) -> NetOffloads {
        self.0.0.lock().offloads
    }
    fn queue_pairs(&self) -> u16 {
        1
    }
    fn take_queues(&mut self) -> io::Result<Vec<Box<dyn NetQueue>>> {
        let mut shared = self.0.0.lock();
        let socket = match shared.near.take() {
            Some(near) => near,
            // The device before took the near end: this one gets a new pair.
            None => {
                let (near, far) = UnixDatagram::pair()?;
                near.set_nonblocking(true)?;
                far.set_nonblocking(true)?;
                shared.far = far;
                near
            }
        };
        Ok(vec![Box::new(Queue {
            socket,
            wire: self.0.clone(),
        })])
    }
    fn describe(&self) -> String {
        "a scripted wire".into()
    }
}

struct Queue {
    socket: UnixDatagram,
    wire: Wire,
}

impl NetQueue for Queue {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
    fn receive(&mut self, buffers: &PinnedBuffers) -> io::Result<usize> {
        let mut frame = vec![0; LONGEST_FRAME];
        let len = self.socket.recv(&mut frame)?;
        if len > buffers.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        buffers.write(&frame[..len]);
        buffers.mark_written(len);
        Ok(len)
    }
    fn receive_bytes(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut frame = vec![0; LONGEST_FRAME];
        let len = self.socket.recv(&mut frame)?;
        let room = bytes.get_mut(..len).ok_or(io::ErrorKind::InvalidData)?;
        room.copy_from_slice(&frame[..len]);
        Ok(len)
    }
    fn send(&mut self, buffers: &PinnedBuffers) -> io::Result<()> {
        let mut frame = vec![0; buffers.len()];
        let len = buffers.read(&mut frame);
        self.socket.send(&frame[..len])?;
        Ok(())
    }
    fn set_offloads(&mut self, accepted: NetOffloads) -> io::Result<()> {
        self.wire.0.lock().accepted = accepted;
        Ok(())
    }
}

/// Wires by the `kind` of their backend spec, made on first mention.
#[derive(Clone, Default)]
pub struct Networks(Arc<Mutex<BTreeMap<String, Wire>>>);

impl Networks {
    /// The wire that `{"kind": kind}` opens.
    pub fn at(&self, kind: &str) -> Wire {
        self.0.lock().entry(kind.into()).or_default().clone()
    }
}
