//! One request of the driver: a checked list of buffers.

use nyx_memory::{DmaView, PinError, PinnedBuffers};
use smallvec::SmallVec;
use vm_memory::{Bytes, GuestAddress, Permissions};

/// One buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Address, as the device sees memory.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// A chain of buffers: first those the device reads, then those it writes (Virtio 1.2 §2.7.4.2).
///
/// Its readable and its writable part are byte streams, whatever the driver's framing (§2.7.4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    readable: SmallVec<[Descriptor; 4]>,
    writable: SmallVec<[Descriptor; 4]>,
    readable_len: u64,
    writable_len: u64,
}

impl Chain {
    pub(crate) fn new(head: u16) -> Self {
        Self {
            head,
            readable: SmallVec::new(),
            writable: SmallVec::new(),
            readable_len: 0,
            writable_len: 0,
        }
    }

    pub(crate) fn push(&mut self, descriptor: Descriptor) -> Result<(), &'static str> {
        // At most 32768 buffers of less than 4 GiB each: the sums cannot overflow a u64.
        if descriptor.writable {
            self.writable.push(descriptor);
            self.writable_len += u64::from(descriptor.len);
        } else if self.writable.is_empty() {
            self.readable.push(descriptor);
            self.readable_len += u64::from(descriptor.len);
        } else {
            return Err("a buffer to read after one to write");
        }
        Ok(())
    }

    /// Index of the first descriptor: what [`crate::VirtQueue::push`] takes.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes the device reads.
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes the device writes.
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// Copies `N` bytes from offset `at` of the readable part.
    pub fn read<const N: usize>(&self, view: &DmaView<'_>, at: u64) -> Result<[u8; N], ChainError> {
        let mut bytes = [0; N];
        self.read_into(view, at, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes` from offset `at` of the readable part.
    pub fn read_into(
        &self,
        view: &DmaView<'_>,
        at: u64,
        bytes: &mut [u8],
    ) -> Result<(), ChainError> {
        let mut done = 0;
        for run in runs(&self.readable, at, bytes.len() as u64) {
            let len = run.len as usize;
            let part = bytes.get_mut(done..done + len).ok_or(ChainError::Short)?;
            view.read_slice(part, GuestAddress(run.addr))
                .map_err(|_| run.unmapped())?;
            done += len;
        }
        if done == bytes.len() {
            Ok(())
        } else {
            Err(ChainError::Short)
        }
    }

    /// Writes `bytes` at offset `at` of the writable part.
    pub fn write(&self, view: &DmaView<'_>, at: u64, bytes: &[u8]) -> Result<(), ChainError> {
        let mut done = 0;
        for run in runs(&self.writable, at, bytes.len() as u64) {
            let len = run.len as usize;
            let part = bytes.get(done..done + len).ok_or(ChainError::Short)?;
            view.write_slice(part, GuestAddress(run.addr))
                .map_err(|_| run.unmapped())?;
            done += len;
        }
        if done == bytes.len() {
            Ok(())
        } else {
            Err(ChainError::Short)
        }
    }

    /// Pins `len` bytes at offset `at` of the readable part, for the kernel to read from.
    pub fn pin_readable(
        &self,
        view: &DmaView<'_>,
        at: u64,
        len: u64,
    ) -> Result<PinnedBuffers, ChainError> {
        pin(&self.readable, view, at, len, Permissions::Read)
    }

    /// Pins `len` bytes at offset `at` of the writable part, for the kernel to write to.
    pub fn pin_writable(
        &self,
        view: &DmaView<'_>,
        at: u64,
        len: u64,
    ) -> Result<PinnedBuffers, ChainError> {
        pin(&self.writable, view, at, len, Permissions::Write)
    }

    /// Appends the whole writable part to `buffers`, so that several chains take one transfer. On
    /// an error, part of it may have been appended.
    pub fn append_writable(
        &self,
        view: &DmaView<'_>,
        buffers: &mut PinnedBuffers,
    ) -> Result<(), ChainError> {
        for run in runs(&self.writable, 0, self.writable_len) {
            view.pin(
                buffers,
                GuestAddress(run.addr),
                run.len as usize,
                Permissions::Write,
            )?;
        }
        Ok(())
    }
}

/// A chain does not hold what the device needs, or its buffers are not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Too few bytes.
    #[error("the chain is too short")]
    Short,
    /// A buffer is not memory.
    #[error(transparent)]
    Unmapped(#[from] PinError),
}

#[derive(Clone, Copy)]
struct Run {
    addr: u64,
    len: u64,
}

impl Run {
    fn unmapped(self) -> ChainError {
        ChainError::Unmapped(PinError {
            addr: self.addr,
            len: self.len as usize,
        })
    }
}

/// The memory runs behind bytes `at..at + len` of a stream of descriptors.
fn runs(descriptors: &[Descriptor], at: u64, len: u64) -> impl Iterator<Item = Run> + '_ {
    let (mut skip, mut left) = (at, len);
    descriptors.iter().filter_map(move |d| {
        let here = u64::from(d.len);
        let skipped = skip.min(here);
        skip -= skipped;
        let take = left.min(here - skipped);
        left -= take;
        // The sum does not wrap: it was checked when the chain was taken.
        (take != 0).then_some(Run {
            addr: d.addr + skipped,
            len: take,
        })
    })
}

fn pin(
    descriptors: &[Descriptor],
    view: &DmaView<'_>,
    at: u64,
    len: u64,
    access: Permissions,
) -> Result<PinnedBuffers, ChainError> {
    let mut buffers = view.buffers();
    for run in runs(descriptors, at, len) {
        view.pin(
            &mut buffers,
            GuestAddress(run.addr),
            run.len as usize,
            access,
        )?;
    }
    if buffers.len() as u64 == len {
        Ok(buffers)
    } else {
        Err(ChainError::Short)
    }
}
