//! Guest memory for a debugger, by physical and by linear address.

use crate::paging::{Paging, PhysicalRead};
use nyx_machine::{DebugError, DebugPort};
use nyx_memory::DmaSpace;
use vm_memory::{Bytes, GuestAddress};

/// Most bytes of one request, so that nobody makes this process allocate at will.
pub(crate) const MOST_BYTES: usize = 16 << 20;

/// Guest memory could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No RAM, or not mapped.
    #[error("there is no guest memory at {0:#x}")]
    Absent(u64),
    /// Too much at once.
    #[error("{0} bytes are more than {MOST_BYTES} at once")]
    TooLong(usize),
    /// The vCPU through which to look.
    #[error(transparent)]
    Vcpu(#[from] DebugError),
}

/// Guest RAM for page walks.
pub(crate) struct Physical<'m>(pub(crate) &'m DmaSpace);

impl PhysicalRead for Physical<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.read(address, &mut bytes) == 8).then(|| u64::from_le_bytes(bytes))
    }
}

impl Physical<'_> {
    /// Reads as much as there is and says how much it was.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        let whole = self.0.view().read_slice(bytes, GuestAddress(address));
        if whole.is_ok() {
            return bytes.len();
        }
        by_pages(address, bytes.len(), |at, range| {
            let part = bytes.get_mut(range)?;
            self.0.view().read_slice(part, GuestAddress(at)).ok()
        })
    }

    /// Writes as much as there is and says how much it was.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> usize {
        by_pages(address, bytes.len(), |at, range| {
            let part = bytes.get(range)?;
            self.0.view().write_slice(part, GuestAddress(at)).ok()
        })
    }

    pub(crate) fn read_virtual(&self, paging: &Paging, address: u64, bytes: &mut [u8]) -> usize {
        self.translated(paging, address, bytes.len(), |at, range| {
            let part = bytes.get_mut(range)?;
            let len = part.len();
            (self.read(at, part) == len).then_some(())
        })
    }

    pub(crate) fn write_virtual(&self, paging: &Paging, address: u64, bytes: &[u8]) -> usize {
        self.translated(paging, address, bytes.len(), |at, range| {
            let part = bytes.get(range)?;
            (self.write(at, part) == part.len()).then_some(())
        })
    }

    /// Calls `each` with the physical address of each part of a linear range.
    pub(crate) fn translated(
        &self,
        paging: &Paging,
        address: u64,
        len: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>) -> Option<()>,
    ) -> usize {
        let mut done = 0;
        while done < len {
            let Some(linear) = address.checked_add(done as u64) else {
                break;
            };
            let Some(found) = paging.translate(self, linear) else {
                break;
            };
            let left = usize::try_from(found.left).unwrap_or(usize::MAX);
            let part = left.min(len - done);
            if each(found.physical, done..done + part).is_none() {
                break;
            }
            done += part;
        }
        done
    }
}

/// Goes through `len` bytes from `address` on, page by page, as long as `each` finds them; returns
/// how many that are. The end of the address space is an end.
fn by_pages(
    address: u64,
    len: usize,
    mut each: impl FnMut(u64, std::ops::Range<usize>) -> Option<()>,
) -> usize {
    const PAGE: u64 = nyx_memory::PAGE;
    let mut done = 0;
    while done < len {
        let Some(at) = address.checked_add(done as u64) else {
            break;
        };
        let left_in_page = (PAGE - at % PAGE) as usize;
        let part = left_in_page.min(len - done);
        if each(at, done..done + part).is_none() {
            break;
        }
        done += part;
    }
    done
}

fn whole(bytes: Vec<u8>, read: usize, address: u64) -> Result<Vec<u8>, MemoryError> {
    if read == bytes.len() {
        Ok(bytes)
    } else {
        Err(MemoryError::Absent(address.saturating_add(read as u64)))
    }
}

fn room(len: usize) -> Result<Vec<u8>, MemoryError> {
    if len > MOST_BYTES {
        return Err(MemoryError::TooLong(len));
    }
    Ok(vec![0; len])
}

fn paging(port: &DebugPort, vcpu: usize) -> Result<Paging, DebugError> {
    let registers = port.vcpu(vcpu, |vcpu| vcpu.registers())??;
    Ok(Paging::of(&registers))
}

/// Reads `len` bytes at guest-physical `address`, while the machine runs or rests.
pub fn read_physical(port: &DebugPort, address: u64, len: usize) -> Result<Vec<u8>, MemoryError> {
    let mut bytes = room(len)?;
    let read = Physical(port.memory()).read(address, &mut bytes);
    whole(bytes, read, address)
}

/// Reads `len` bytes at the linear `address` of vCPU `vcpu`, through its page tables of this moment.
pub fn read_virtual(
    port: &DebugPort,
    vcpu: usize,
    address: u64,
    len: usize,
) -> Result<Vec<u8>, MemoryError> {
    let mut bytes = room(len)?;
    let paging = paging(port, vcpu)?;
    let read = Physical(port.memory()).read_virtual(&paging, address, &mut bytes);
    whole(bytes, read, address)
}

fn written(done: usize, bytes: &[u8], address: u64) -> Result<(), MemoryError> {
    if done == bytes.len() {
        Ok(())
    } else {
        Err(MemoryError::Absent(address.saturating_add(done as u64)))
    }
}

/// Writes `bytes` at guest-physical `address`. On an error what comes before the gap is written.
pub fn write_physical(port: &DebugPort, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
    let done = Physical(port.memory()).write(address, bytes);
    written(done, bytes, address)
}

/// Writes `bytes` at the linear `address` of vCPU `vcpu`, whatever the page's protection says.
pub fn write_virtual(
    port: &DebugPort,
    vcpu: usize,
    address: u64,
    bytes: &[u8],
) -> Result<(), MemoryError> {
    let paging = paging(port, vcpu)?;
    let done = Physical(port.memory()).write_virtual(&paging, address, bytes);
    written(done, bytes, address)
}
