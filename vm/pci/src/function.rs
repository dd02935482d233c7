//! A PCI function: configuration space and BARs around a device.

use crate::bar::{Bar, Presence};
use crate::config::{CapabilityOverflow, ConfigSpace};
use crate::port::{Gate, Port};
use crate::saved::SavedFunction;
use crate::spec::{capability, command, express, header, msix, power, status};
use nyx_device::{
    AccessResult, BarSpace, Bdf, Bus, Device, Doorbell, Doorbells, Drain, FaultPort,
    FunctionDemand, Hit, IrqController, Lifecycle, Placement, RegionId, Registers, ResetKind, Slot,
    Space, Target, UnitName,
};
use nyx_inspect::{About, Counter, Field, Inspect, Leaf, Visitor};
use nyx_state::{Blob, Persist, RestoreError, SaveError};
use std::ops::Range;
use std::sync::{Arc, Weak};

/// The address spaces that BARs decode.
#[derive(Clone, Default)]
pub struct AddressSpaces {
    /// Port I/O.
    pub pio: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
}

impl AddressSpaces {
    fn of(&self, space: Space) -> &Bus {
        match space {
            Space::Pio => &self.pio,
            Space::Mmio => &self.mmio,
        }
    }
}

/// A function cannot be built as planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The placement has no PCI function or no address for it.
    #[error("no PCI function is planned")]
    NotPlanned,
    /// A BAR is impossible.
    #[error("BAR {index}: {reason}")]
    Bar {
        /// Which one.
        index: u8,
        /// Why.
        reason: &'static str,
    },
    /// The MSI-X table is too long, or the port was made for another number of vectors.
    #[error("{0} MSI-X vectors are not possible here")]
    Vectors(u16),
    /// The device's capabilities are too long.
    #[error(transparent)]
    Capabilities(#[from] CapabilityOverflow),
}

/// Where the capabilities lie.
struct Layout {
    power: usize,
    msix: Option<usize>,
    /// Bodies of the device's own.
    vendor: Vec<Range<usize>>,
}

/// A device as a PCI function.
///
/// It is a device itself: accesses to a BAR arrive with the BAR's index as the region and go on to
/// the MSI-X table or the inner device. BARs start out programmed as planned, as firmware would
/// leave them. Function-level reset is not offered.
pub struct Function {
    // Wiring
    device: Box<dyn Device>,
    port: Arc<Port>,
    spaces: AddressSpaces,
    doorbells: Arc<dyn Doorbells>,
    /// Where windows lead: this function's slot, once it is in one.
    gate: Option<Arc<dyn Target>>,
    // Configuration
    bdf: Bdf,
    msix_bar: Option<(RegionId, u64)>,
    layout: Layout,
    bars: Vec<Bar>,
    // State
    config: ConfigSpace,
    // Statistics
    refused_mappings: Counter,
    refused_doorbells: Counter,
}

impl Function {
    /// Puts `device` into the function that `placement` plans. `port` is what the device was given
    /// as its [`nyx_device::PciPort`]; windows go onto `spaces` once the function is plugged in.
    pub fn new(
        placement: &Placement,
        device: Box<dyn Device>,
        port: Arc<Port>,
        spaces: AddressSpaces,
        doorbells: Arc<dyn Doorbells>,
    ) -> Result<Self, BuildError> {
        let demand = placement
            .demand
            .pci
            .as_ref()
            .ok_or(BuildError::NotPlanned)?;
        let bdf = placement.bdf.ok_or(BuildError::NotPlanned)?;
        if usize::from(demand.msix_vectors) != port.vectors() {
            return Err(BuildError::Vectors(demand.msix_vectors));
        }
        let mut device = device;
        let mut config = ConfigSpace::type0(demand);
        let bars = define_bars(demand, placement, &mut config)?;
        if let Some(line) = placement.irqs.get("intx").filter(|_| demand.intx) {
            // A number that does not fit is "unknown" (PCI Local Bus 3.0 §6.2.4); guests with ACPI
            // do not look.
            config.define(
                header::INTERRUPT_LINE,
                &[u8::try_from(*line).unwrap_or(0xff)],
            );
        }
        let msix_bar = bars
            .iter()
            .find(|bar| demand.msix_vectors > 0 && bar.demand.index == demand.msix_bar)
            .map(|bar| (RegionId(demand.msix_bar), bar.demand.len));
        let layout = define_capabilities(demand, msix_bar, &mut *device, &mut config)?;
        let function = Self {
            device,
            port,
            spaces,
            doorbells,
            gate: None,
            bdf,
            msix_bar,
            layout,
            bars,
            config,
            refused_mappings: Counter::default(),
            refused_doorbells: Counter::default(),
        };
        Ok(function.decoding(true))
    }

    /// Chooses whether the assigned BARs decode from power-on, as firmware leaves them and direct
    /// boot needs it (the default), or only once the guest says so.
    #[must_use]
    pub fn decoding(mut self, on: bool) -> Self {
        let mut enabled = 0;
        for bar in self
            .bars
            .iter()
            .filter(|bar| on && bar.address(&self.config).is_some())
        {
            enabled |= match bar.space() {
                Space::Pio => command::IO,
                Space::Mmio => command::MEMORY,
            };
        }
        self.config.define(header::COMMAND, &enabled.to_le_bytes());
        self
    }

    /// Makes it come up as a function does that is plugged in while the guest runs: no BAR is
    /// assigned, nothing decodes (PCI Local Bus 3.0 §6.1). The guest places it among what it knows of;
    /// the plan's addresses, where the guest may have put another one by now, count from the next
    /// reset on.
    #[must_use]
    pub fn hot_plugged(mut self) -> Self {
        self.config.set(header::COMMAND, &[0; 2]);
        for bar in &self.bars {
            let flags = self.config.u32(bar.register()) & bar.flag_bits();
            self.config.set(bar.register(), &flags.to_le_bytes());
            if bar.demand.space == BarSpace::Memory64 {
                self.config.set(bar.register() + 4, &[0; 4]);
            }
        }
        self
    }

    /// Puts the function into a slot of its own and maps what it decodes.
    pub fn plug(self, faults: FaultPort) -> Arc<Slot<Self>> {
        let slot = Slot::new(faults, Box::new(self));
        let gate = Arc::new(Window {
            slot: Arc::downgrade(&slot),
            name: slot.name().clone(),
        });
        slot.with(|function| {
            function.gate = Some(gate);
            function.sync_windows();
        });
        slot
    }

    /// Its address.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// Windows that could not be mapped because something else was there.
    pub fn refused_mappings(&self) -> u64 {
        self.refused_mappings.get()
    }

    /// Reads configuration space: any width and alignment; ones beyond its end.
    pub fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        let offset = usize::from(offset);
        self.config.read(offset, data);
        if self.port.is_pin_asserted()
            && let Some(low) = header::STATUS
                .checked_sub(offset)
                .and_then(|at| data.get_mut(at))
        {
            *low |= status::INTERRUPT.to_le_bytes()[0];
        }
        let Some(hooks) = self.device.as_pci_function() else {
            return;
        };
        for (index, body) in self.layout.vendor.iter().enumerate() {
            if let Some((at, part)) = overlap(body, offset, data.len())
                && let Some(part) = data.get_mut(part)
            {
                // Into a copy, so that a hook that declines leaves no trace.
                let mut answer = part.to_vec();
                if hooks.read_capability(index, at, &mut answer) {
                    part.copy_from_slice(&answer);
                }
            }
        }
    }

    /// Writes configuration space: any width and alignment; nothing beyond its end.
    pub fn config_write(&mut self, offset: u16, data: &[u8]) {
        let offset = usize::from(offset);
        let before = Effects::of(self);
        let state = self.power_state();
        self.config.write(offset, data);
        if !matches!(self.power_state(), power::D0 | power::D3_HOT) {
            // PCI Power Management 1.2 §3.2.4: an unsupported state changes nothing.
            self.set_power_state(state);
        }
        if let Some(hooks) = self.device.as_pci_function() {
            for (index, body) in self.layout.vendor.iter().enumerate() {
                if let Some((at, part)) = overlap(body, offset, data.len())
                    && let Some(part) = data.get(part)
                    && hooks.write_capability(index, at, part)
                {
                    self.config.set(body.start + at, part);
                }
            }
        }
        self.apply(&before, overlap(&BARS, offset, data.len()).is_some());
    }

    /// Makes the rest of the function follow its configuration space.
    fn apply(&mut self, before: &Effects, bars_written: bool) {
        let now = Effects::of(self);
        if now.gate != before.gate {
            self.port.set_gate(now.gate);
        }
        if bars_written || now.decode != before.decode {
            self.sync_windows();
        }
        self.tell_bus_master(before.gate.bus_master, now.gate.bus_master);
    }

    fn tell_bus_master(&mut self, before: bool, now: bool) {
        if before != now
            && let Some(hooks) = self.device.as_pci_function()
        {
            hooks.bus_master(now);
        }
    }

    fn power_control(&self) -> usize {
        self.layout.power + power::CONTROL
    }
    fn power_state(&self) -> u8 {
        self.config.u8(self.power_control()) & power::STATE
    }
    fn set_power_state(&mut self, state: u8) {
        let control = self.config.u8(self.power_control()) & !power::STATE;
        self.config.set(self.power_control(), &[control | state]);
    }

    /// Where BAR `bar` decodes now.
    fn decoded(&self, bar: &Bar) -> Option<u64> {
        let enabled = Effects::of(self).decode;
        let wanted = match bar.space() {
            Space::Pio => command::IO,
            Space::Mmio => command::MEMORY,
        };
        bar.address(&self.config).filter(|_| enabled & wanted != 0)
    }

    /// Maps every BAR where it decodes and nowhere else. What is refused because something else is
    /// there is tried again on the next change and on the next start.
    fn sync_windows(&mut self) {
        let Some(gate) = self.gate.clone() else {
            return;
        };
        let wanted: Vec<_> = self.bars.iter().map(|bar| self.decoded(bar)).collect();
        // All releases come first: BARs of one function may trade places.
        for (bar, wanted) in self.bars.iter_mut().zip(&wanted) {
            let here = bar.presence.place();
            if wanted.is_some() && here != *wanted {
                bar.presence = Presence::Absent;
            } else if wanted.is_none() {
                bar.unmap(self.spaces.of(bar.space()));
            }
        }
        for (bar, wanted) in self.bars.iter_mut().zip(&wanted) {
            let Some(at) = wanted.filter(|_| bar.presence.mapped().is_none()) else {
                continue;
            };
            let region = RegionId(bar.demand.index);
            let kept = match std::mem::replace(&mut bar.presence, Presence::Absent) {
                Presence::Waiting(_, kept) => kept.take(),
                Presence::Absent | Presence::Mapped(..) => None,
            };
            let bus = self.spaces.of(bar.space());
            let Ok(mapping) = bus.map(at, bar.demand.len, region, gate.clone()) else {
                self.refused_mappings.inc();
                continue;
            };
            let bound = kept.unwrap_or_else(|| {
                let own = self.msix_bar.is_none_or(|(msix, _)| msix != region);
                let bells = if own {
                    self.device.doorbells()
                } else {
                    Vec::new()
                };
                let inside = |bell: &&Doorbell| {
                    let end = bell.offset.checked_add(bell.len.max(1).into());
                    bell.region == region && end.is_some_and(|end| end <= bar.demand.len)
                };
                let bind = |bell: &Doorbell| {
                    let binding = self.doorbells.bind(bar.space(), at + bell.offset, bell);
                    // Without one, the write arrives as an ordinary access.
                    binding.inspect_err(|_| self.refused_doorbells.inc()).ok()
                };
                bells.iter().filter(inside).filter_map(bind).collect()
            });
            bar.presence = Presence::Mapped(at, mapping, bound);
        }
    }

    /// Releases what lies where the registers, decoding or not, no longer point.
    fn release_moved(&mut self) {
        for bar in &mut self.bars {
            if bar.address(&self.config) != bar.presence.place() {
                bar.presence = Presence::Absent;
            }
        }
    }
}

/// The registers 10h to 27h.
const BARS: Range<usize> = header::BAR0..header::BAR0 + 24;

/// What configuration space says to the rest of the function.
struct Effects {
    gate: Gate,
    /// The command register's two decode bits, as far as they count.
    decode: u16,
}

impl Effects {
    fn of(function: &Function) -> Self {
        let command = function.config.u16(header::COMMAND);
        let control = function
            .layout
            .msix
            .map_or(0, |at| function.config.u16(at + msix::CONTROL));
        // PCI Power Management 1.2 §5.4.1: in D3hot a function answers configuration accesses and
        // initiates nothing.
        let awake = function.power_state() == power::D0;
        Self {
            gate: Gate {
                msix_enabled: control & msix::ENABLE != 0,
                function_mask: control & msix::FUNCTION_MASK != 0,
                bus_master: awake && command & command::MASTER != 0,
                pin_disabled: !awake || command & command::INTX_DISABLE != 0,
            },
            decode: if awake {
                command & (command::IO | command::MEMORY)
            } else {
                0
            },
        }
    }
}

/// Where an access of `len` bytes at `offset` meets `body`: the offset into the body, and the part
/// of the access.
fn overlap(body: &Range<usize>, offset: usize, len: usize) -> Option<(usize, Range<usize>)> {
    let start = body.start.max(offset);
    let end = body.end.min(offset.saturating_add(len));
    (start < end).then(|| (start - body.start, start - offset..end - offset))
}

fn define_bars(
    demand: &FunctionDemand,
    placement: &Placement,
    config: &mut ConfigSpace,
) -> Result<Vec<Bar>, BuildError> {
    let mut taken = 0;
    let mut bars = Vec::new();
    for bar in demand.all_bars() {
        let index = bar.index;
        let refuse = |reason| BuildError::Bar { index, reason };
        let address = placement.bars.get(&index).copied().unwrap_or(0);
        bars.push(Bar::define(bar, address, config).map_err(refuse)?);
        if taken & Bar::registers(&bar) != 0 {
            return Err(refuse("another BAR has the same register"));
        }
        taken |= Bar::registers(&bar);
        if index == demand.msix_bar && demand.msix_vectors > 0 {
            if bar.space == BarSpace::Io {
                return Err(refuse("the MSI-X table must be in memory"));
            }
            if bar.len / 2 < msix::ENTRY * u64::from(demand.msix_vectors) {
                return Err(refuse("too short for the MSI-X table"));
            }
        }
    }
    Ok(bars)
}

fn define_capabilities(
    demand: &FunctionDemand,
    msix_bar: Option<(RegionId, u64)>,
    device: &mut dyn Device,
    config: &mut ConfigSpace,
) -> Result<Layout, BuildError> {
    let mut body = [0; 6];
    body[..2].copy_from_slice(&power::CAPABILITIES.to_le_bytes());
    body[2..4].copy_from_slice(&power::NO_SOFT_RESET.to_le_bytes());
    let power_at = config.add_capability(capability::POWER, &body)?;
    config.allow_writes(power_at + power::CONTROL, &[power::STATE]);

    let express_at = config.add_capability(capability::EXPRESS, &[0; express::LEN - 2])?;
    config.define(express_at + 2, &express::CAPABILITIES.to_le_bytes());
    config.define(express_at + 4, &express::DEVICE.to_le_bytes());
    let control = express_at + express::DEVICE_CONTROL;
    config.define(control, &express::DEVICE_CONTROL_RESET.to_le_bytes());
    config.allow_writes(control, &express::DEVICE_CONTROL_WRITABLE.to_le_bytes());
    let clearable = express::DEVICE_STATUS_CLEARABLE.to_le_bytes();
    config.allow_clearing(express_at + express::DEVICE_STATUS, &clearable);

    let mut msix_at = None;
    if let Some((RegionId(bar), len)) = msix_bar {
        let last = demand.msix_vectors.saturating_sub(1);
        if demand.msix_vectors > msix::MAX_VECTORS {
            return Err(BuildError::Vectors(demand.msix_vectors));
        }
        // A BAR's length is a power of two of at least 16, so its half leaves the BAR indicator's
        // three bits free; half of 2^31 is the most that fits, and far more than a table takes.
        let pending = u32::try_from(len / 2).map_err(|_| BuildError::Bar {
            index: bar,
            reason: "too long for an MSI-X table",
        })?;
        let mut body = [0; 10];
        body[..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&u32::from(bar).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        let at = config.add_capability(capability::MSIX, &body)?;
        let writable = msix::ENABLE | msix::FUNCTION_MASK;
        config.allow_writes(at + msix::CONTROL, &writable.to_le_bytes());
        msix_at = Some(at);
    }

    let mut vendor = Vec::new();
    let capabilities = device
        .as_pci_function()
        .map(|hooks| hooks.vendor_capabilities());
    for body in capabilities.unwrap_or_default() {
        let at = config.add_capability(capability::VENDOR, &body)? + 2;
        // Which bytes stick is the device's to say, so any may have changed.
        config.allow_change(at, &vec![0xff; body.len()]);
        vendor.push(at..at + body.len());
    }
    Ok(Layout {
        power: power_at,
        msix: msix_at,
        vendor,
    })
}

/// What the bus sees of a function. It holds the slot weakly: the function owns its windows, and
/// windows that owned the function would keep it alive for ever.
struct Window {
    slot: Weak<Slot<Function>>,
    name: UnitName,
}

impl Target for Window {
    fn read(&self, at: Hit, data: &mut [u8]) {
        match self.slot.upgrade() {
            Some(slot) => Target::read(&*slot, at, data),
            None => data.fill(0xff),
        }
    }
    fn write(&self, at: Hit, data: &[u8]) {
        if let Some(slot) = self.slot.upgrade() {
            Target::write(&*slot, at, data);
        }
    }
    fn name(&self) -> &str {
        &self.name
    }
}

impl Registers for Function {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        match self.msix_bar {
            Some((region, len)) if region == at.region => {
                self.port.read_table(len, at.offset, data);
                Ok(())
            }
            _ => self.device.read(at, data),
        }
    }
    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        match self.msix_bar {
            Some((region, len)) if region == at.region => {
                self.port.write_table(len, at.offset, data)
            }
            _ => self.device.write(at, data),
        }
    }
}

impl Lifecycle for Function {
    /// Also maps and sends what had to wait for other units to be restored or reset.
    fn start(&mut self) {
        self.sync_windows();
        self.port.flush();
        self.device.start();
    }
    fn stop(&mut self) -> Drain {
        self.device.stop()
    }
    fn finish(&mut self) -> Drain {
        self.device.finish()
    }
    /// Every kind of reset returns configuration space to the planned power-on state. A window that
    /// another function still occupies is mapped on the next start.
    fn reset(&mut self, kind: ResetKind) {
        let before = Effects::of(self);
        self.device.reset(kind);
        self.config.reset();
        self.port.reset();
        let now = Effects::of(self);
        self.port.set_gate(now.gate);
        self.sync_windows();
        self.tell_bus_master(before.gate.bus_master, now.gate.bus_master);
    }
    fn wake(&mut self) {
        self.device.wake();
    }
}

impl Device for Function {
    fn as_irq_controller(&mut self) -> Option<&mut dyn IrqController> {
        self.device.as_irq_controller()
    }
    fn migration_blocker(&self) -> Option<&'static str> {
        self.device.migration_blocker()
    }
}

impl Persist for Function {
    type Saved = SavedFunction;

    fn save(&self) -> Result<SavedFunction, SaveError> {
        let Self {
            device,
            port,
            config,
            spaces: _,
            doorbells: _,
            gate: _,
            bdf: _,
            msix_bar: _,
            layout: _,
            bars: _,
            refused_mappings: _,
            refused_doorbells: _,
        } = self;
        Ok(SavedFunction {
            config: config.save(),
            vectors: port.save_vectors(),
            intx: port.is_pin_asserted(),
            device: device.save_blob()?.into(),
        })
    }

    /// Windows are mapped, and pending messages sent, on the next start: other functions may still
    /// be where this one is going, and interrupt controllers may not be restored.
    fn restore(&mut self, saved: SavedFunction) -> Result<(), RestoreError> {
        let SavedFunction {
            config,
            vectors,
            intx,
            device,
        } = saved;
        if self.config.check(&config).is_err() {
            return Err(RestoreError::Invalid(
                "the configuration space is another function's",
            ));
        }
        let state = config
            .get(self.power_control())
            .map(|control| control & power::STATE);
        if !matches!(state, Some(power::D0 | power::D3_HOT)) {
            return Err(RestoreError::Invalid("impossible power state"));
        }
        if vectors.len() != self.port.vectors() {
            return Err(RestoreError::Invalid("another number of MSI-X vectors"));
        }
        let before = Effects::of(self);
        self.config.set(0, &config);
        self.release_moved();
        let now = Effects::of(self);
        for bar in self.bars.iter_mut().filter(|_| now.decode != before.decode) {
            bar.unmap(self.spaces.of(bar.space()));
        }
        self.port.restore(now.gate, intx, &vectors);
        self.device.restore_blob(&Blob::from(device))?;
        self.tell_bus_master(before.gate.bus_master, now.gate.bus_master);
        Ok(())
    }
}

impl Inspect for Function {
    fn inspect(&self, v: &mut dyn Visitor) {
        let config = &self.config;
        v.leaf("bdf", Leaf::Text(self.bdf.to_string()));
        v.leaf("vendor", Leaf::Hex(config.u16(header::VENDOR).into()));
        v.leaf("device_id", Leaf::Hex(config.u16(header::DEVICE).into()));
        v.leaf(
            "class",
            Leaf::Hex((config.u32(header::REVISION) >> 8).into()),
        );
        v.leaf("command", Leaf::Hex(config.u16(header::COMMAND).into()));
        v.leaf("power_state", Leaf::Number(self.power_state().into()));
        v.child("bars", &Bars(self));
        v.child("interrupts", &*self.port);
        v.about(&About::metric(
            "pci_refused_mappings",
            "Windows of a PCI function that the guest put where another is.",
        ));
        self.refused_mappings.visit("refused_mappings", v);
        v.about(&About::metric(
            "pci_refused_doorbells",
            "Doorbells that the hypervisor did not take; each costs exits.",
        ));
        self.refused_doorbells.visit("refused_doorbells", v);
        v.child("device", &*self.device);
    }
}

struct Bars<'a>(&'a Function);
impl Inspect for Bars<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        for bar in &self.0.bars {
            v.child(
                &bar.demand.index.to_string(),
                &BarState(bar, bar.address(&self.0.config)),
            );
        }
    }
}

struct BarState<'a>(&'a Bar, Option<u64>);
impl Inspect for BarState<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        let Self(bar, address) = self;
        if let Some(address) = address {
            v.leaf("address", Leaf::Hex(*address));
        }
        v.leaf("len", Leaf::Hex(bar.demand.len));
        v.leaf("mapped", Leaf::Flag(bar.presence.mapped().is_some()));
        v.leaf("doorbells", Leaf::Number(bar.presence.doorbells() as u64));
    }
}

impl Drop for Function {
    /// Takes the windows and the wire away before the device goes.
    fn drop(&mut self) {
        self.bars.clear();
        self.port.close();
    }
}
