//! Configuration space: 4096 bytes of which the guest may change some bits and clear others.

use crate::spec::{command, header, status};
use nyx_device::FunctionDemand;

/// One byte, and what a guest's write does to it.
#[derive(Clone, Copy, Default)]
struct Byte {
    value: u8,
    /// Power-on value.
    initial: u8,
    /// Bits that take what is written.
    writable: u8,
    /// Bits that a written one clears (PCI Local Bus 3.0 §6.2.3).
    clearable: u8,
    /// Bits that the device changes on its own and that a saved state may therefore hold.
    owned: u8,
}

/// The capability list is full: it must end at offset 0x100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the capabilities do not fit into configuration space")]
pub struct CapabilityOverflow;

/// A saved configuration space belongs to another function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read-only configuration byte {offset:#x} differs")]
pub struct ForeignConfig {
    /// The first byte that differs.
    pub offset: usize,
}

/// The configuration space of one function (PCI Express Base 5.0 §7.2): values, power-on values,
/// write masks and write-1-to-clear masks. It knows nothing of what its registers mean.
///
/// Accesses may be of any length and alignment; what lies outside reads as ones and ignores writes.
pub struct ConfigSpace {
    bytes: Box<[Byte]>,
    /// Where the offset of the next capability goes.
    link: usize,
    /// First byte no capability takes yet.
    free: usize,
}

impl ConfigSpace {
    /// Length in bytes (PCI Express Base 5.0 §7.2).
    pub const LEN: usize = 4096;

    /// A type 0 header (PCI Local Bus 3.0 §6.1) with the identity of `demand`, without BARs and
    /// capabilities.
    pub fn type0(demand: &FunctionDemand) -> Self {
        let mut space = Self {
            bytes: vec![Byte::default(); Self::LEN].into(),
            link: header::CAPABILITIES,
            free: header::END,
        };
        let [class, subclass, interface] = demand.class;
        space.define(header::VENDOR, &demand.vendor.to_le_bytes());
        space.define(header::DEVICE, &demand.device.to_le_bytes());
        space.define(header::REVISION, &[demand.revision]);
        space.define(header::INTERFACE, &[interface]);
        space.define(header::SUBCLASS, &[subclass]);
        space.define(header::CLASS, &[class]);
        space.define(
            header::SUBSYSTEM_VENDOR,
            &demand.subsystem_vendor.to_le_bytes(),
        );
        space.define(header::SUBSYSTEM, &demand.subsystem.to_le_bytes());
        space.define(header::INTERRUPT_PIN, &[u8::from(demand.intx)]);
        space.allow_writes(header::COMMAND, &command::WRITABLE.to_le_bytes());
        space.allow_clearing(header::STATUS, &status::CLEARABLE.to_le_bytes());
        // PCI Express Base 5.0 §7.5.1.1.7: kept for software of the conventional bus, no effect.
        space.allow_writes(header::CACHE_LINE, &[0xff]);
        space.allow_writes(header::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Appends a capability (PCI Local Bus 3.0 §6.7) whose bytes after id and link are `body`, and
    /// returns its offset. It is read-only until bits are allowed.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> Result<usize, CapabilityOverflow> {
        let at = self.free;
        let end = body.len().checked_add(at + 2).ok_or(CapabilityOverflow)?;
        if end > header::CONVENTIONAL_END {
            return Err(CapabilityOverflow);
        }
        let offset = u8::try_from(at).map_err(|_| CapabilityOverflow)?;
        self.define(self.link, &[offset]);
        self.define(at, &[id, 0]);
        self.define(at + 2, body);
        let flags = self.u16(header::STATUS) | status::CAPABILITIES;
        self.define(header::STATUS, &flags.to_le_bytes());
        self.link = at + 1;
        self.free = end.next_multiple_of(4);
        Ok(at)
    }

    /// Sets bytes and their power-on value.
    pub fn define(&mut self, offset: usize, value: &[u8]) {
        self.each(offset, value, |byte, value| {
            (byte.value, byte.initial) = (value, value)
        });
    }
    /// Lets the guest change the bits set in `mask`.
    pub fn allow_writes(&mut self, offset: usize, mask: &[u8]) {
        self.each(offset, mask, |byte, mask| byte.writable |= mask);
    }
    /// Lets the guest clear the bits set in `mask` by writing ones.
    pub fn allow_clearing(&mut self, offset: usize, mask: &[u8]) {
        self.each(offset, mask, |byte, mask| byte.clearable |= mask);
    }
    /// Declares the bits set in `mask` to change by [`ConfigSpace::set`]: a saved state may differ
    /// in them.
    pub fn allow_change(&mut self, offset: usize, mask: &[u8]) {
        self.each(offset, mask, |byte, mask| byte.owned |= mask);
    }
    /// Sets bytes, whatever the masks say.
    pub fn set(&mut self, offset: usize, value: &[u8]) {
        self.each(offset, value, |byte, value| byte.value = value);
    }

    /// A guest's read.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let stored = self.bytes.get(offset..).unwrap_or_default();
        for (index, out) in data.iter_mut().enumerate() {
            *out = stored.get(index).map_or(0xff, |byte| byte.value);
        }
    }
    /// A guest's write.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        self.each(offset, data, |byte, data| {
            let kept = byte.value & !byte.writable & !(data & byte.clearable);
            byte.value = kept | data & byte.writable;
        });
    }

    /// The byte at `offset`; ones beyond the end.
    pub fn u8(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.array(offset))
    }
    /// The little-endian word at `offset`.
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }
    /// The little-endian double word at `offset`.
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    /// Returns every byte to its power-on value.
    pub fn reset(&mut self) {
        for byte in &mut self.bytes {
            byte.value = byte.initial;
        }
    }

    /// The first 256 bytes, for a saved state. No extended capability exists, so nothing behind
    /// them ever changes.
    pub fn save(&self) -> Vec<u8> {
        let stored = self
            .bytes
            .get(..header::CONVENTIONAL_END)
            .unwrap_or_default();
        stored.iter().map(|byte| byte.value).collect()
    }
    /// Whether [`ConfigSpace::save`] of this function can have produced `saved`.
    pub fn check(&self, saved: &[u8]) -> Result<(), ForeignConfig> {
        let stored = self
            .bytes
            .get(..header::CONVENTIONAL_END)
            .unwrap_or_default();
        if saved.len() != stored.len() {
            return Err(ForeignConfig {
                offset: saved.len().min(stored.len()),
            });
        }
        let differs = |(byte, saved): (&Byte, &u8)| {
            (byte.initial ^ saved) & !(byte.writable | byte.clearable | byte.owned) != 0
        };
        match stored.iter().zip(saved).position(differs) {
            Some(offset) => Err(ForeignConfig { offset }),
            None => Ok(()),
        }
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes);
        bytes
    }

    fn each(&mut self, offset: usize, data: &[u8], mut change: impl FnMut(&mut Byte, u8)) {
        let stored = self.bytes.get_mut(offset..).unwrap_or_default();
        for (byte, data) in stored.iter_mut().zip(data) {
            change(byte, *data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::type0(&FunctionDemand {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: [2, 0, 9],
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            intx: true,
            ..FunctionDemand::default()
        })
    }

    #[test]
    fn the_header_holds_the_identity_and_refuses_to_lose_it() {
        let mut space = space();
        space.write(0, &[0; 64]);
        assert_eq!(space.u32(0), 0x1041_1af4);
        assert_eq!(space.u32(8), 0x0200_0901);
        assert_eq!(space.u32(0x2c), 0x1100_1af4);
        assert_eq!(space.u8(0x3d), 1);
        space.write(4, &[0xff; 2]);
        assert_eq!(space.u16(4), 0x0547);
        space.reset();
        assert_eq!(space.u16(4), 0);
    }

    #[test]
    fn a_written_one_clears_what_is_clearable() {
        let mut space = space();
        space.set(6, &0xf910u16.to_le_bytes());
        space.write(6, &0x8000u16.to_le_bytes());
        assert_eq!(space.u16(6), 0x7910);
        space.write(6, &[0xff, 0xff]);
        assert_eq!(space.u16(6), 0x0010);
    }

    #[test]
    fn capabilities_are_linked_and_end_at_the_conventional_end() {
        let mut space = space();
        assert_eq!(space.u16(6) & 0x10, 0);
        assert_eq!(space.add_capability(9, &[1, 2, 3]), Ok(0x40));
        assert_eq!(space.add_capability(0x11, &[0; 10]), Ok(0x48));
        assert_eq!(space.u16(6) & 0x10, 0x10);
        assert_eq!(
            (space.u8(0x34), space.u16(0x40), space.u16(0x48)),
            (0x40, 0x4809, 0x0011)
        );
        assert_eq!(space.add_capability(9, &[0; 0xab]), Err(CapabilityOverflow));
        assert_eq!(space.u8(0x49), 0, "a refused capability is not linked");
        assert_eq!(space.add_capability(9, &[0; 0xaa]), Ok(0x54));
        assert_eq!(space.add_capability(9, &[]), Err(CapabilityOverflow));
    }

    #[test]
    fn outside_reads_ones_and_ignores_writes() {
        let mut space = space();
        let mut data = [0; 4];
        space.read(4094, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff]);
        space.read(usize::MAX, &mut data);
        assert_eq!(data, [0xff; 4]);
        space.write(4094, &[1; 4]);
        space.write(usize::MAX, &[1; 4]);
    }

    #[test]
    fn a_saved_space_must_agree_in_what_is_read_only() {
        let mut space = space();
        space.write(4, &[6, 4]);
        let saved = space.save();
        assert_eq!(saved.len(), 256);
        assert_eq!(space.check(&saved), Ok(()));
        let mut foreign = saved.clone();
        foreign[2] ^= 1;
        assert_eq!(space.check(&foreign), Err(ForeignConfig { offset: 2 }));
        assert_eq!(space.check(&saved[1..]), Err(ForeignConfig { offset: 255 }));
        space.allow_change(2, &[1]);
        assert_eq!(space.check(&foreign), Ok(()));
    }
}
