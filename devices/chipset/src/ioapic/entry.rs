//! One entry of the redirection table (82093AA data sheet §3.2.4).

use nyx_device::Msi;

const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// The bits that exist: the low 17, and the upper 16 with the destination. Of these, bits 55:49
/// carry bits 14:8 of an extended destination id (the KVM feature `MSI_EXT_DEST_ID`), and bit 48
/// tells the remappable format (Intel VT-d 4.0 §5.1.5.1).
const EXISTING: u64 = 0xffff_0000_0001_ffff;
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;

/// A redirection entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(u64);

impl Entry {
    /// As reset leaves it: masked.
    pub(super) const RESET: Self = Self(MASKED);

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// An entry from a snapshot; `None` if no hardware could hold it.
    pub(super) fn checked(bits: u64) -> Option<Self> {
        let entry = Self(bits);
        let possible = bits & !EXISTING == 0
            && bits & DELIVERY_STATUS == 0
            && (entry.is_level() || !entry.is_in_service());
        possible.then_some(entry)
    }

    pub(super) fn vector(self) -> u8 {
        self.0 as u8
    }
    pub(super) fn is_level(self) -> bool {
        self.0 & LEVEL != 0
    }
    pub(super) fn is_masked(self) -> bool {
        self.0 & MASKED != 0
    }
    /// Remote IRR: a local APIC has the interrupt and has not ended it.
    pub(super) fn is_in_service(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }
    pub(super) fn set_in_service(&mut self, on: bool) {
        self.0 = self.0 & !REMOTE_IRR | if on { REMOTE_IRR } else { 0 };
    }

    /// The guest writes one half; read-only bits keep their value.
    pub(super) fn write_half(&mut self, high: bool, value: u32) {
        let (shift, half) = if high {
            (32, u64::from(u32::MAX) << 32)
        } else {
            (0, 0xffff_ffff)
        };
        let written = u64::from(value) << shift & half & EXISTING & !READ_ONLY;
        self.0 = self.0 & !half | self.0 & half & READ_ONLY | written;
        if !self.is_level() {
            self.set_in_service(false);
        }
    }

    /// The message this entry sends (Intel SDM vol. 3 §11.11): destination in address bits 19:12
    /// and, extended, 11:5; bit 4 passes the remappable format on; logical destinations in bit 2.
    pub(super) fn message(self) -> Msi {
        let destination = self.0 >> 48;
        let logical = self.0 >> 11 & 1;
        let level = if self.is_level() {
            1 << 15 | 1 << 14
        } else {
            0
        };
        Msi {
            address: 0xfee0_0000 | destination << 4 | logical << 2,
            data: (self.0 & 0x7ff) as u32 | level,
        }
    }
}
