//! One base address register and the window it decodes (PCI Local Bus 3.0 §6.2.5.1).

use crate::config::ConfigSpace;
use crate::spec::{bar, header};
use nyx_device::{BarDemand, BarSpace, Bus, DoorbellBinding, Kept, Mapping, Space};

/// The doorbells bound in one window.
pub(crate) type Bound = Vec<Box<dyn DoorbellBinding>>;

/// A BAR and what it has on the bus.
pub(crate) struct Bar {
    pub(crate) demand: BarDemand,
    pub(crate) presence: Presence,
}

/// What a BAR has on the bus.
///
/// The doorbells outlive the window while the guest has decoding off: unbinding one costs the
/// kernel milliseconds, and guests switch decoding off and on whenever they size BARs. They go when
/// the BAR appears somewhere else, or something else where it was.
pub(crate) enum Presence {
    /// Nothing.
    Absent,
    /// A window and doorbells at an address.
    Mapped(u64, Mapping, Bound),
    /// Doorbells at an address, waiting for the window to come back.
    Waiting(u64, Kept<Bound>),
}

impl Presence {
    /// Where the window is.
    pub(crate) fn mapped(&self) -> Option<u64> {
        match self {
            Self::Mapped(at, ..) => Some(*at),
            Self::Absent | Self::Waiting(..) => None,
        }
    }
    /// Where window or doorbells are.
    pub(crate) fn place(&self) -> Option<u64> {
        match self {
            Self::Mapped(at, ..) | Self::Waiting(at, _) => Some(*at),
            Self::Absent => None,
        }
    }
    /// How many doorbells a mapped window has.
    pub(crate) fn doorbells(&self) -> usize {
        match self {
            Self::Mapped(.., bound) => bound.len(),
            Self::Absent | Self::Waiting(..) => 0,
        }
    }
}

impl Bar {
    /// Checks `demand` and describes it, at `address`, in `config`. An address of zero leaves the
    /// BAR for firmware to assign.
    pub(crate) fn define(
        demand: BarDemand,
        address: u64,
        config: &mut ConfigSpace,
    ) -> Result<Self, &'static str> {
        let BarDemand {
            index,
            len,
            space,
            prefetchable,
        } = demand;
        let (smallest, largest, last_index) = match space {
            // §6.2.5.1: 256 bytes are the most an I/O BAR may take.
            BarSpace::Io => (4, 256, 5),
            BarSpace::Memory32 => (16, 1 << 31, 5),
            BarSpace::Memory64 => (16, 1 << 62, 4),
        };
        if index > last_index {
            return Err("no such register");
        }
        if !len.is_power_of_two() || !(smallest..=largest).contains(&len) {
            return Err("impossible length");
        }
        if address & (len - 1) != 0 {
            return Err("the address is not a multiple of the length");
        }
        let bar = Self {
            demand,
            presence: Presence::Absent,
        };
        if address != 0 && bar.decoded(address).is_none() {
            return Err("the address is out of reach");
        }
        let flags = match space {
            BarSpace::Io => bar::IO,
            BarSpace::Memory32 => 0,
            BarSpace::Memory64 => bar::MEMORY64,
        };
        let memory = space != BarSpace::Io;
        let flags = if prefetchable && memory {
            flags | bar::PREFETCHABLE
        } else {
            flags
        };
        let at = bar.register();
        let value = (address | u64::from(flags)).to_le_bytes();
        // An I/O BAR's upper half is zero: there are 65536 ports (§6.2.5.1).
        let mask = if memory {
            !(len - 1)
        } else {
            !(len - 1) & 0xffff
        }
        .to_le_bytes();
        let registers = if space == BarSpace::Memory64 { 8 } else { 4 };
        config.define(at, value.get(..registers).unwrap_or_default());
        config.allow_writes(at, mask.get(..registers).unwrap_or_default());
        Ok(bar)
    }

    /// Offset of its register.
    pub(crate) fn register(&self) -> usize {
        header::BAR0 + 4 * usize::from(self.demand.index)
    }

    /// The bits of its register that are no address.
    pub(crate) fn flag_bits(&self) -> u32 {
        match self.demand.space {
            BarSpace::Io => 0b11,
            BarSpace::Memory32 | BarSpace::Memory64 => 0xf,
        }
    }

    /// Which registers it takes, one bit each.
    pub(crate) fn registers(demand: &BarDemand) -> u32 {
        let width = if demand.space == BarSpace::Memory64 {
            3
        } else {
            1
        };
        width << u32::from(demand.index)
    }

    /// Which bus it is on.
    pub(crate) fn space(&self) -> Space {
        if self.demand.space == BarSpace::Io {
            Space::Pio
        } else {
            Space::Mmio
        }
    }

    /// Removes the window and leaves the doorbells waiting on `bus`.
    pub(crate) fn unmap(&mut self, bus: &Bus) {
        self.presence = match std::mem::replace(&mut self.presence, Presence::Absent) {
            Presence::Mapped(at, mapping, bound) => {
                // In this order, or somebody could map the addresses without evicting these.
                let kept = bus.keep(at, self.demand.len, bound);
                drop(mapping);
                Presence::Waiting(at, kept)
            }
            other => other,
        };
    }

    /// The address in its register, if it is one.
    pub(crate) fn address(&self, config: &ConfigSpace) -> Option<u64> {
        let low = u64::from(config.u32(self.register()));
        let raw = match self.demand.space {
            BarSpace::Memory64 => low | u64::from(config.u32(self.register() + 4)) << 32,
            BarSpace::Memory32 | BarSpace::Io => low,
        };
        self.decoded(raw & !(self.demand.len - 1))
    }

    /// `address`, unless it is none: zero is "unassigned", and a window that ends where addresses
    /// of 16, 32 or 64 bits do is what a guest leaves there while it sizes the BAR.
    fn decoded(&self, address: u64) -> Option<u64> {
        let last = address.checked_add(self.demand.len - 1)?;
        let (sizing, limit) = match self.demand.space {
            BarSpace::Io => (0xffff, 0xffff),
            BarSpace::Memory32 => (0xffff_ffff, 0xffff_ffff),
            BarSpace::Memory64 => (0xffff_ffff, u64::MAX),
        };
        (address != 0 && last < limit && last != sizing).then_some(address)
    }
}
