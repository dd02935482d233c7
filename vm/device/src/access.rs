//! What a guest access looks like to a device.

/// Identifies one register window of a device. The device chooses the values; a PCI BAR is the
/// region of its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub u8);

/// Where an access landed: which window, and how far into it.
///
/// Devices never see absolute addresses, so a BAR can move without them knowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The window.
    pub region: RegionId,
    /// Byte offset into the window.
    pub offset: u64,
}

impl Hit {
    /// A hit at `offset` of region `region`.
    pub const fn new(region: u8, offset: u64) -> Self {
        Self {
            region: RegionId(region),
            offset,
        }
    }
}

/// Why a device refused an access. The *bus* decides what the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAccess {
    /// No register lives at this offset.
    #[error("no such register")]
    NoRegister,
    /// The register exists but not at this width.
    #[error("unsupported access width")]
    Width,
    /// The access is not naturally aligned.
    #[error("unaligned access")]
    Alignment,
}

/// Result of a register access.
pub type AccessResult = Result<(), BadAccess>;

/// A device with guest-visible registers, on any bus.
///
/// Accesses are 1 to 8 bytes and lie within one window, but may be of any width and alignment.
pub trait Registers: Send {
    /// Handles a guest read. On error the bus fills `data` with ones.
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult;
    /// Handles a guest write. On error the bus drops the write.
    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult;
}

/// Answers a read of any width and alignment inside a little-endian register of `len` bytes (at
/// most 8) that holds `value`: `shift` is the distance of the access from the register's first byte.
pub fn read_register(value: u64, len: usize, shift: usize, data: &mut [u8]) -> AccessResult {
    let bytes = value.to_le_bytes();
    let end = shift.checked_add(data.len()).ok_or(BadAccess::Width)?;
    let part = bytes
        .get(shift..end)
        .filter(|_| end <= len)
        .ok_or(BadAccess::Width)?;
    data.copy_from_slice(part);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_answers_every_part_of_itself_and_nothing_beyond() {
        let mut two = [0; 2];
        read_register(0x1122_3344, 4, 1, &mut two).unwrap();
        assert_eq!(two, [0x33, 0x22]);
        assert_eq!(read_register(0, 4, 3, &mut two), Err(BadAccess::Width));
        assert_eq!(
            read_register(0, 8, usize::MAX, &mut two),
            Err(BadAccess::Width)
        );
    }
}
