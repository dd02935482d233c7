//! Reading boot payloads and disks at an offset, and copying them straight into guest memory.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile, VolatileMemoryError};

/// Bytes of known length that can be read at any offset without a cursor.
pub trait ReadAt {
    /// Length in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset`; fewer bytes than asked for is [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// A payload that can be copied into guest memory.
pub trait Payload: ReadAt {
    /// Copies `len` bytes from `offset` to guest physical address `at`.
    ///
    /// The default goes through a 64 KiB buffer; a file reads directly into guest memory.
    fn copy_to_guest<M: GuestMemoryBackend>(
        &self,
        offset: u64,
        len: u64,
        memory: &M,
        at: GuestAddress,
    ) -> io::Result<()> {
        const CHUNK: usize = 64 << 10;
        let mut buffer = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
        let mut done = 0;
        while done < len {
            let step = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
            let piece = buffer.get_mut(..step).ok_or(io::ErrorKind::InvalidInput)?;
            let from = offset
                .checked_add(done)
                .ok_or(io::ErrorKind::InvalidInput)?;
            let to = at.0.checked_add(done).ok_or(io::ErrorKind::InvalidInput)?;
            self.read_exact_at(from, piece)?;
            memory
                .write_slice(piece, GuestAddress(to))
                .map_err(io::Error::other)?;
            done += step as u64;
        }
        Ok(())
    }
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        let mut file = self;
        let kept = file.stream_position()?;
        let size = file.seek(SeekFrom::End(0))?; // metadata says 0 for a block device
        file.seek(SeekFrom::Start(kept))?;
        Ok(size)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }
}

impl Payload for File {
    fn copy_to_guest<M: GuestMemoryBackend>(
        &self,
        offset: u64,
        len: u64,
        memory: &M,
        at: GuestAddress,
    ) -> io::Result<()> {
        let mut file = self;
        file.seek(SeekFrom::Start(offset))?;
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        for slice in memory.get_slices(at, len) {
            let mut slice = slice.map_err(io::Error::other)?;
            // Repeats short reads and reports the end of a file that shrank since it was measured.
            file.read_exact_volatile(&mut slice)
                .map_err(|error| match error {
                    VolatileMemoryError::IOError(error) => error,
                    other => io::Error::other(other),
                })?;
        }
        Ok(())
    }
}

impl ReadAt for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start
            .checked_add(buf.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl Payload for [u8] {}

impl ReadAt for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        self.as_slice().size()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_exact_at(offset, buf)
    }
}

impl Payload for Vec<u8> {}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_exact_at(offset, buf)
    }
}

impl<T: Payload + ?Sized> Payload for &T {
    fn copy_to_guest<M: GuestMemoryBackend>(
        &self,
        offset: u64,
        len: u64,
        memory: &M,
        at: GuestAddress,
    ) -> io::Result<()> {
        (**self).copy_to_guest(offset, len, memory, at)
    }
}

/// Little-endian number of `N` bytes at `offset` of `bytes`, or `None` past the end.
pub(crate) fn le<const N: usize>(bytes: &[u8], offset: usize) -> Option<u64> {
    let field: &[u8; N] = bytes.get(offset..)?.first_chunk()?;
    let mut wide = [0; 8];
    wide.get_mut(..N)?.copy_from_slice(field);
    Some(u64::from_le_bytes(wide))
}
