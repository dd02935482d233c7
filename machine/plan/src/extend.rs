//! Devices that come to a planned machine, and go: nothing that is there moves.

use crate::layout::Range;
use crate::resolve::{HOTPLUG, MachinePlan, PAGE, demand_of, intx_gsi, is_own_name, name_taken};
use nyx_device::{
    AnyKind, Attach, BarDemand, BarSpace, Bdf, ConfigError, FunctionDemand, Placement, Space,
};
use nyx_spec::DeviceSpec;
use std::collections::BTreeMap;

/// There is no place for a device in a planned machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// It is described wrongly.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What it needs is all in use: slots, or addresses.
    #[error("{0}; remove a device first")]
    Full(String),
    /// The machine has no hot-plug slots.
    #[error("{NO_HOTPLUG}")]
    NoHotplug,
}

/// A device is not one that leaves a running machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// There is none of that name.
    #[error("there is no device called {0:?}")]
    Unknown(String),
    /// It is not in a hot-plug slot.
    #[error("{0} is part of the platform and stays for as long as the machine")]
    Platform(String),
    /// The machine has no hot-plug slots.
    #[error("{NO_HOTPLUG}")]
    NoHotplug,
}

const NO_HOTPLUG: &str = "devices come and go only where there is PCI, which this machine was \
     started without (transport = \"mmio\", --no-pci): its guest could not be told";

/// Hot-plug slots: device numbers of bus 0 beyond the host bridge's.
const SLOTS: std::ops::Range<u8> = 1..32;

impl MachinePlan {
    /// Finds room for one more device: the first free slot, free addresses and its slot's interrupt.
    /// The plan is not changed; [`MachinePlan::add`] does that.
    pub fn place(
        &self,
        spec: &DeviceSpec,
        catalog: &[&dyn AnyKind],
    ) -> Result<Placement, PlaceError> {
        let field = spec.field.as_str();
        let refuse = |reason: String| ConfigError::new(field, reason);
        if !self.has_hotplug() {
            return Err(PlaceError::NoHotplug);
        }
        if is_own_name(&spec.name) || self.placements.iter().any(|p| p.name == spec.name) {
            return Err(name_taken(field, &spec.name).into());
        }
        let demand = demand_of(&spec.kind, &spec.config, Attach::Pci, field, catalog)?;
        let function = demand
            .pci
            .as_ref()
            .filter(|function| is_movable(function))
            .filter(|_| demand.windows.is_empty() && demand.irqs.is_empty())
            .filter(|_| demand.reserved_ram == 0)
            .ok_or_else(|| {
                refuse(format!(
                    "a device of kind {:?} cannot come to a running machine; describe it before the \
                     start",
                    spec.kind
                ))
            })?;
        let taken = |bdf: &Bdf| self.placements.iter().any(|p| p.bdf.as_ref() == Some(bdf));
        let bdf = SLOTS
            .map(|device| Bdf::new(device, 0))
            .find(|bdf| !taken(bdf))
            .ok_or_else(|| PlaceError::Full("all 31 PCI slots are taken".into()))?;
        let mut room = Room::of(self);
        let mut bars = BTreeMap::new();
        for bar in function.all_bars() {
            bars.insert(bar.index, room.take(&bar).map_err(PlaceError::Full)?);
        }
        let irqs = function
            .intx
            .then(|| ("intx".to_string(), intx_gsi(bdf.device, 0)));
        Ok(Placement {
            name: spec.name.clone(),
            kind: spec.kind.clone(),
            attach: Attach::Pci,
            config: spec.config.clone(),
            windows: BTreeMap::new(),
            irqs: irqs.into_iter().collect(),
            bdf: Some(bdf),
            bars,
            reserved_ram: None,
            demand,
        })
    }

    /// Takes in what [`MachinePlan::place`] found for this very plan.
    pub fn add(&mut self, placement: Placement) {
        self.placements.push(placement);
    }

    /// The device called `name`, if it is one that may leave while the machine runs.
    pub fn removable(&self, name: &str) -> Result<&Placement, RemoveError> {
        let placement = self.placements.iter().find(|p| p.name == name);
        let placement = placement.ok_or_else(|| RemoveError::Unknown(name.into()))?;
        if !self.has_hotplug() {
            return Err(RemoveError::NoHotplug);
        }
        slot_of(placement)
            .map(|_| placement)
            .ok_or_else(|| RemoveError::Platform(name.into()))
    }

    /// Takes the device called `name` out. What it had is free again.
    pub fn remove(&mut self, name: &str) -> Result<Placement, RemoveError> {
        let name = self.removable(name)?.name.clone();
        let at = self.placements.iter().position(|p| p.name == name);
        at.map(|at| self.placements.remove(at))
            .ok_or(RemoveError::Unknown(name))
    }

    /// The device in hot-plug slot `slot`.
    pub fn in_slot(&self, slot: u8) -> Option<&Placement> {
        self.placements.iter().find(|p| slot_of(p) == Some(slot))
    }

    fn has_hotplug(&self) -> bool {
        self.placements.iter().any(|p| p.kind == HOTPLUG)
    }
}

fn is_movable(function: &FunctionDemand) -> bool {
    function.fixed.is_none()
}

/// The hot-plug slot that a device is in: its device number on bus 0.
pub fn slot_of(placement: &Placement) -> Option<u8> {
    let function = placement.demand.pci.as_ref()?;
    let bdf = placement.bdf.filter(|_| is_movable(function))?;
    (bdf.bus == 0 && bdf.function == 0 && SLOTS.contains(&bdf.device)).then_some(bdf.device)
}

/// What is in use in each address space.
struct Room {
    mmio32: Range,
    mmio64: Option<Range>,
    io: Range,
    mmio: Vec<Range>,
    ports: Vec<Range>,
}

impl Room {
    fn of(plan: &MachinePlan) -> Self {
        let mut room = Self {
            mmio32: plan.layout.mmio32,
            mmio64: plan.layout.mmio64,
            io: plan.layout.io_ports,
            mmio: Vec::new(),
            ports: Vec::new(),
        };
        for placement in &plan.placements {
            for window in &placement.demand.windows {
                if let Some(&base) = placement.windows.get(&window.region) {
                    let len = window.len;
                    room.used(window.space).push(Range { base, len });
                }
            }
            for bar in placement.demand.pci.iter().flat_map(|f| f.all_bars()) {
                if let Some(&base) = placement.bars.get(&bar.index) {
                    let len = bar.len;
                    room.used(bus(&bar)).push(Range { base, len });
                }
            }
        }
        room
    }

    fn used(&mut self, space: Space) -> &mut Vec<Range> {
        match space {
            Space::Pio => &mut self.ports,
            Space::Mmio => &mut self.mmio,
        }
    }

    /// Takes the first free addresses for `bar`.
    fn take(&mut self, bar: &BarDemand) -> Result<u64, String> {
        let (within, least, what) = match (bar.space, self.mmio64) {
            (BarSpace::Io, _) => (self.io, 1, "I/O port"),
            (BarSpace::Memory64, Some(high)) => (high, PAGE, "64-bit device"),
            (BarSpace::Memory64 | BarSpace::Memory32, _) => (self.mmio32, PAGE, "32-bit device"),
        };
        let used = self.used(bus(bar));
        let base = first_gap(used, within, bar.len.max(least))
            .ok_or_else(|| format!("the {what} window is full"))?;
        used.push(Range { base, len: bar.len });
        Ok(base)
    }
}

fn bus(bar: &BarDemand) -> Space {
    if bar.space == BarSpace::Io {
        Space::Pio
    } else {
        Space::Mmio
    }
}

/// The lowest naturally aligned run of `len` bytes in `within` that meets none of `used`.
fn first_gap(used: &[Range], within: Range, len: u64) -> Option<u64> {
    let step = len.checked_next_power_of_two()?;
    let mut base = within.base.checked_next_multiple_of(step)?;
    loop {
        let end = base.checked_add(len).filter(|end| *end <= within.end())?;
        let ends = used.iter().filter(|r| r.base < end);
        let ends = ends.map(|r| r.base.saturating_add(r.len));
        match ends.filter(|behind| base < *behind).max() {
            // Every round passes at least one range, so there are as many rounds as ranges at most.
            Some(behind) => base = behind.checked_next_multiple_of(step)?,
            None => return Some(base),
        }
    }
}
