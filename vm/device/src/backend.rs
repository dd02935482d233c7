//! What devices ask of the host: blocks, frames, characters.
//!
//! A backend is opened once, when its device is built; its queues are then owned by worker threads.
//! Buffers are [`PinnedBuffers`]: owned by the request until it completes.

use nyx_memory::PinnedBuffers;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::BorrowedFd;

/// Which backend a device wants: a kind and that kind's own configuration, opaque to the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendSpec {
    /// The backend kind's tag, such as `raw` or `tap`.
    pub kind: String,
    /// The kind's configuration.
    #[serde(default)]
    pub config: serde_json::Value,
}

/// One kind of backend, as the catalogue lists it and help texts print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendKind {
    /// [`BackendSpec::kind`].
    pub name: &'static str,
    /// What it is, in a few words.
    pub summary: &'static str,
    /// A complete configuration, as JSON.
    pub example: &'static str,
}

/// Opens backends by kind. Implemented by the catalogue.
pub trait BackendOpener {
    /// Opens a block backend.
    fn block(&self, spec: &BackendSpec) -> Result<Box<dyn BlockBackend>, crate::BoxError>;
    /// Opens a network backend.
    fn net(&self, spec: &BackendSpec) -> Result<Box<dyn NetBackend>, crate::BoxError>;
    /// Opens a character backend for the console called `name`.
    fn char(&self, name: &str, spec: &BackendSpec)
    -> Result<Box<dyn CharBackend>, crate::BoxError>;
}

// Blocks ------------------------------------------------------------------------------------------

/// What a block backend is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockGeometry {
    /// Capacity in bytes; a multiple of 512.
    pub size: u64,
    /// Smallest unit that can be written without read-modify-write, in bytes; a power of two, at
    /// least 512.
    pub logical_block: u32,
    /// Preferred unit, in bytes; a power of two, at least `logical_block`.
    pub physical_block: u32,
    /// Required alignment of offsets, lengths and host addresses, in bytes (1 without O_DIRECT).
    pub alignment: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Discard is supported.
    pub discard: bool,
    /// Write-zeroes is supported.
    pub write_zeroes: bool,
    /// Whether there is a volatile cache that a flush empties.
    pub write_cache: bool,
}

/// What to do.
pub enum BlockOp {
    /// Fill the buffers from `offset`.
    Read(PinnedBuffers),
    /// Write the buffers to `offset`.
    Write(PinnedBuffers),
    /// Make everything completed before durable.
    Flush,
    /// Forget `len` bytes; their content becomes undefined.
    Discard {
        /// Bytes to forget.
        len: u64,
    },
    /// Make `len` bytes read as zeroes.
    WriteZeroes {
        /// Bytes to zero.
        len: u64,
        /// Whether the range may be deallocated.
        may_unmap: bool,
    },
}

/// One request. `offset` and lengths are in bytes and already checked against the geometry.
pub struct BlockRequest {
    /// The caller's name for it, returned on completion.
    pub id: u64,
    /// Byte offset on the medium.
    pub offset: u64,
    /// What to do.
    pub op: BlockOp,
}

/// One completion.
pub struct BlockDone {
    /// [`BlockRequest::id`].
    pub id: u64,
    /// Bytes transferred in full, or why not. A short transfer is retried by the backend and never
    /// reported as success.
    pub result: io::Result<()>,
    /// The request's buffers, given back.
    pub buffers: Option<PinnedBuffers>,
}

/// One submission and completion queue of a block backend, owned by one worker thread.
pub trait BlockQueue: Send {
    /// Takes a request. It may complete at once (see [`BlockQueue::completions`]) or later.
    fn submit(&mut self, request: BlockRequest);
    /// Hands batched submissions to the kernel. Call after a batch of [`BlockQueue::submit`].
    fn kick(&mut self) -> io::Result<()>;
    /// Takes what has completed, in any order. What completed within [`BlockQueue::submit`] or
    /// [`BlockQueue::kick`] is not announced by [`BlockQueue::ready_fd`]: call this after a kick too.
    /// The backend has already recorded what it wrote to the buffers ([`PinnedBuffers::mark_written`]).
    fn completions(&mut self, done: &mut Vec<BlockDone>);
    /// Requests submitted and not yet handed back.
    fn in_flight(&self) -> usize;
    /// Readable when completions are waiting; `None` for a queue that completes within `kick`.
    fn ready_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// A medium.
pub trait BlockBackend: Send {
    /// Its properties. The size may change between calls for a backend that can be resized.
    fn geometry(&self) -> BlockGeometry;
    /// Opens one more queue; queues work in parallel.
    fn open_queue(&self) -> io::Result<Box<dyn BlockQueue>>;
    /// What it is, for people: `raw file /srv/a.img`.
    fn describe(&self) -> String;
    /// A short stable identifier for the guest's eyes, if the medium suggests one.
    fn serial(&self) -> Option<String> {
        None
    }
}

// Frames ------------------------------------------------------------------------------------------

/// Offloads a network backend takes part in. Frames carry a 12-byte `virtio_net_hdr_v1`
/// (Virtio 1.2 §5.1.6) exactly when `vnet_header` is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetOffloads {
    /// Frames carry the header, both ways.
    pub vnet_header: bool,
    /// Partial checksums are understood.
    pub checksum: bool,
    /// TCP segmentation over IPv4.
    pub tso4: bool,
    /// TCP segmentation over IPv6.
    pub tso6: bool,
    /// UDP segmentation.
    pub uso: bool,
}

/// State of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetLink {
    /// Frames flow.
    Up,
    /// The peer is gone.
    Down,
}

/// One queue pair of a network backend, owned by one worker thread. Never blocks.
pub trait NetQueue: Send {
    /// Readable when a frame is waiting.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Receives one frame into `buffers` (header first, if any) and returns its length.
    /// `WouldBlock` when none is waiting. A frame longer than the buffers is dropped and reported
    /// as `InvalidData`. `ConnectionReset`, said once, means that the peer is gone for good: the
    /// link is down and [`NetQueue::fd`] never becomes readable again.
    fn receive(&mut self, buffers: &PinnedBuffers) -> io::Result<usize>;
    /// Receives one frame into `bytes`, likewise.
    fn receive_bytes(&mut self, bytes: &mut [u8]) -> io::Result<usize>;
    /// Sends one frame. `WouldBlock` when the peer is not taking frames; the caller may drop it.
    fn send(&mut self, buffers: &PinnedBuffers) -> io::Result<()>;
    /// Tells the kernel which receive offloads the guest accepts.
    fn set_offloads(&mut self, accepted: NetOffloads) -> io::Result<()>;
    /// Takes this queue pair into or out of service, as the guest uses fewer or more of them. A
    /// queue out of service gets no frames; all are in service at first.
    fn set_in_service(&mut self, on: bool) -> io::Result<()> {
        let _ = on;
        Ok(())
    }
}

/// A network attachment.
pub trait NetBackend: Send {
    /// What it can do.
    fn offloads(&self) -> NetOffloads;
    /// How many queue pairs it has.
    fn queue_pairs(&self) -> u16;
    /// Hands out the queues. Called once.
    fn take_queues(&mut self) -> io::Result<Vec<Box<dyn NetQueue>>>;
    /// The largest payload of a frame, if the attachment has an opinion.
    fn mtu(&self) -> Option<u16> {
        None
    }
    /// Link state.
    fn link(&self) -> NetLink {
        NetLink::Up
    }
    /// What it is, for people: `tap nyx0`.
    fn describe(&self) -> String;
}

// Characters --------------------------------------------------------------------------------------

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// A byte stream to a terminal, a file or a socket. Never blocks.
pub trait CharBackend: Send {
    /// Writes what fits and returns how much. `Ok(0)` and `WouldBlock` both mean "not now". Output
    /// with nobody at the other end is discarded and counts as written.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Reads what is there. `WouldBlock` when nothing is; `Ok(0)` at the end of input.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize>;
    /// Calls `ready` from the backend's own thread whenever input, room for output or a window
    /// size change may be waiting. It is called once per edge until [`CharBackend::read`] has said
    /// `WouldBlock`. Called once, when the device is built.
    fn notify(&mut self, ready: Box<dyn Fn() + Send>) -> io::Result<()>;
    /// Whether a break condition was sent since the last call: a terminal's user asked for one. To
    /// be looked at after [`CharBackend::read`].
    fn take_break(&mut self) -> bool {
        false
    }
    /// Size of the terminal, if it is one.
    fn window_size(&self) -> Option<WindowSize> {
        None
    }
    /// Whether somebody is at the other end.
    fn is_connected(&self) -> bool {
        true
    }
    /// What it is, for people.
    fn describe(&self) -> String;
}
