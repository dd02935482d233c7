//! Block backends in memory.

use nyx_device::{BlockBackend, BlockDone, BlockGeometry, BlockOp, BlockQueue, BlockRequest};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

const DEFAULT_LEN: usize = 1 << 20;

struct Shared {
    bytes: Vec<u8>,
    geometry: BlockGeometry,
    flushes: usize,
    failing: bool,
    full: bool,
    requests: usize,
}

/// A medium in memory, shared between the device's queues and the test.
#[derive(Clone)]
pub struct Medium(Arc<Mutex<Shared>>);

impl Default for Medium {
    fn default() -> Self {
        Self::of(vec![0; DEFAULT_LEN])
    }
}

impl Medium {
    /// A medium that holds `bytes`, a multiple of 512.
    pub fn of(bytes: Vec<u8>) -> Self {
        let geometry = BlockGeometry {
            size: bytes.len() as u64,
            logical_block: 512,
            physical_block: 4096,
            alignment: 1,
            read_only: false,
            discard: true,
            write_zeroes: true,
            write_cache: true,
        };
        let shared = Shared {
            bytes,
            geometry,
            flushes: 0,
            failing: false,
            full: false,
            requests: 0,
        };
        Self(Arc::new(Mutex::new(shared)))
    }
    /// Changes what the medium says of itself.
    pub fn set_geometry(&self, change: impl FnOnce(&mut BlockGeometry)) {
        change(&mut self.0.lock().geometry);
    }
    /// The present content.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().bytes.clone()
    }
    /// Replaces content at `offset`.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        self.0.lock().bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    /// How many flushes completed.
    pub fn flushes(&self) -> usize {
        self.0.lock().flushes
    }
    /// How many requests were submitted.
    pub fn requests(&self) -> usize {
        self.0.lock().requests
    }
    /// Whether every request fails from now on.
    pub fn set_failing(&self, failing: bool) {
        self.0.lock().failing = failing;
    }
    /// Whether there is no room for writes from now on.
    pub fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }
    /// A backend on this medium.
    pub fn backend(&self) -> Box<dyn BlockBackend> {
        Box::new(RamDisk(self.clone()))
    }
}

struct RamDisk(Medium);

impl BlockBackend for RamDisk {
    fn geometry(&self) -> BlockGeometry {
        self.0.0.lock().geometry
    }
    fn open_queue(&self) -> io::Result<Box<dyn BlockQueue>> {
        Ok(Box::new(Queue {
            medium: self.0.clone(),
            done: Vec::new(),
        }))
    }
    fn describe(&self) -> String {
        "a disk in memory".into()
    }
    fn serial(&self) -> Option<String> {
        Some("ramdisk".into())
    }
}

struct Queue {
    medium: Medium,
    done: Vec<BlockDone>,
}

impl Shared {
    fn run(&mut self, offset: u64, op: &BlockOp) -> io::Result<()> {
        self.requests += 1;
        if self.failing {
            return Err(io::Error::other("the test made it fail"));
        }
        if self.full && matches!(op, BlockOp::Write(_) | BlockOp::WriteZeroes { .. }) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let len = match op {
            BlockOp::Read(buffers) | BlockOp::Write(buffers) => buffers.len() as u64,
            BlockOp::Flush => 0,
            BlockOp::Discard { len } | BlockOp::WriteZeroes { len, .. } => *len,
        };
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "outside the medium");
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let end = usize::try_from(len)
            .ok()
            .and_then(|len| start.checked_add(len));
        let part = end
            .and_then(|end| self.bytes.get_mut(start..end))
            .ok_or_else(outside)?;
        match op {
            BlockOp::Read(buffers) => {
                buffers.write(part);
                buffers.mark_written(part.len());
            }
            BlockOp::Write(buffers) => {
                buffers.read(part);
            }
            BlockOp::Flush => self.flushes += 1,
            BlockOp::Discard { .. } | BlockOp::WriteZeroes { .. } => part.fill(0),
        }
        Ok(())
    }
}

impl BlockQueue for Queue {
    fn submit(&mut self, request: BlockRequest) {
        let result = self.medium.0.lock().run(request.offset, &request.op);
        let buffers = match request.op {
            BlockOp::Read(buffers) | BlockOp::Write(buffers) => Some(buffers),
            BlockOp::Flush | BlockOp::Discard { .. } | BlockOp::WriteZeroes { .. } => None,
        };
        self.done.push(BlockDone {
            id: request.id,
            result,
            buffers,
        });
    }
    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completions(&mut self, done: &mut Vec<BlockDone>) {
        done.append(&mut self.done);
    }
    fn in_flight(&self) -> usize {
        self.done.len()
    }
    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Media by the `kind` of their backend spec, made on first mention.
#[derive(Clone, Default)]
pub struct Disks(Arc<Mutex<BTreeMap<String, Medium>>>);

impl Disks {
    /// The medium that `{"kind": kind}` opens.
    pub fn at(&self, kind: &str) -> Medium {
        self.0.lock().entry(kind.into()).or_default().clone()
    }
}
