//! How a device becomes part of a machine.
//!
//! Configuration → [`DeviceKind::demand`] (pure) → the planner assigns addresses, a [`Placement`] →
//! [`DeviceKind::build`] with a [`Wiring`].

use crate::{
    BackendOpener, Device, Doorbells, FaultPort, IrqLine, MsiSink, PowerPort, Threads, Timer,
    VmClock, Waker,
};
use nyx_memory::DmaSpace;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// Any error of a constructor.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which address space a window lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// Port I/O.
    Pio,
    /// Memory-mapped I/O.
    Mmio,
}

/// A window a device asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The device's own id for it.
    pub region: u8,
    /// Address space.
    pub space: Space,
    /// Length in bytes.
    pub len: u64,
    /// A fixed address, for ISA-style devices.
    pub fixed: Option<u64>,
}

/// An interrupt wire a device asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IrqDemand {
    /// This global system interrupt.
    Fixed(u32),
    /// Any free one, not shared.
    Any,
}

/// A PCI function's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bdf {
    /// Bus number.
    pub bus: u8,
    /// Device number, below 32.
    pub device: u8,
    /// Function number, below 8.
    pub function: u8,
}

impl Bdf {
    /// The function at `device`.`function` of bus 0.
    pub const fn new(device: u8, function: u8) -> Self {
        Self {
            bus: 0,
            device,
            function,
        }
    }
    /// The requester id (PCI Express Base 5.0 §2.2.4.2).
    pub fn rid(self) -> nyx_memory::Rid {
        nyx_memory::Rid(
            u16::from(self.bus) << 8
                | u16::from(self.device & 31) << 3
                | u16::from(self.function & 7),
        )
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{:x}",
            self.bus, self.device, self.function
        )
    }
}

impl From<Bdf> for String {
    fn from(bdf: Bdf) -> Self {
        bdf.to_string()
    }
}

impl TryFrom<String> for Bdf {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let parse = || {
            let (bus, rest) = text.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let bus = u8::from_str_radix(bus, 16).ok()?;
            let device = u8::from_str_radix(device, 16).ok().filter(|&d| d < 32)?;
            let function = u8::from_str_radix(function, 16).ok().filter(|&f| f < 8)?;
            Some(Self {
                bus,
                device,
                function,
            })
        };
        parse().ok_or_else(|| format!("{text:?} is not a PCI address like 00:03.0"))
    }
}

/// What a BAR decodes (PCI Local Bus 3.0 §6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BarSpace {
    /// I/O ports.
    Io,
    /// 32-bit memory.
    Memory32,
    /// 64-bit memory; takes two BAR registers.
    Memory64,
}

/// A BAR a function asks for. A hit in it carries its index as the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarDemand {
    /// Index of its (first) register, 0 to 5.
    pub index: u8,
    /// Length in bytes; a power of two.
    pub len: u64,
    /// What it decodes.
    pub space: BarSpace,
    /// Prefetchable memory.
    pub prefetchable: bool,
}

/// A PCI function a device asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionDemand {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Class code: base class, subclass, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// BARs. The MSI-X table gets one of its own, at `msix_bar`.
    pub bars: Vec<BarDemand>,
    /// MSI-X vectors; zero for none.
    pub msix_vectors: u16,
    /// Which BAR holds the MSI-X table and pending bits.
    pub msix_bar: u8,
    /// Whether it has an interrupt pin.
    pub intx: bool,
    /// A fixed address, such as that of the host bridge.
    pub fixed: Option<Bdf>,
}

impl FunctionDemand {
    /// The BAR that holds the MSI-X table (at offset 0) and the pending bits (at half its length),
    /// if there are vectors (PCI Local Bus 3.0 §6.8.2).
    pub fn msix_bar(&self) -> Option<BarDemand> {
        let table = (u64::from(self.msix_vectors) * 16)
            .next_power_of_two()
            .max(2048);
        (self.msix_vectors != 0).then_some(BarDemand {
            index: self.msix_bar,
            len: table * 2,
            space: BarSpace::Memory32,
            prefetchable: false,
        })
    }

    /// Every BAR, that of MSI-X included.
    pub fn all_bars(&self) -> impl Iterator<Item = BarDemand> + '_ {
        self.bars.iter().copied().chain(self.msix_bar())
    }
}

/// Everything a device needs from the platform, as data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// Register windows.
    pub windows: Vec<Window>,
    /// Interrupt wires, by role.
    pub irqs: BTreeMap<String, IrqDemand>,
    /// A PCI function.
    pub pci: Option<FunctionDemand>,
    /// Bytes of guest RAM set aside for it, which the guest must not use as memory.
    pub reserved_ram: u64,
}

/// How a device that can be attached in several ways is to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// As a PCI function.
    #[default]
    Pci,
    /// By a memory-mapped window and a wire.
    Mmio,
}

/// A planned device: demands with addresses filled in. Saved with snapshots.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// Unit name.
    pub name: String,
    /// [`DeviceKind::KIND`].
    pub kind: String,
    /// How it is attached.
    #[serde(default)]
    pub attach: Attach,
    /// The kind's configuration.
    #[serde(default)]
    pub config: serde_json::Value,
    /// What it asked for.
    pub demand: Demand,
    /// Base address of each window, by region.
    pub windows: BTreeMap<u8, u64>,
    /// Global system interrupt of each wire, by role. A function's pin is `intx`.
    pub irqs: BTreeMap<String, u32>,
    /// PCI address.
    pub bdf: Option<Bdf>,
    /// Address of each BAR, by index, as firmware would have programmed it.
    pub bars: BTreeMap<u8, u64>,
    /// Guest-physical address of the reserved RAM.
    pub reserved_ram: Option<u64>,
}

impl Placement {
    /// The window `region`, with its address.
    pub fn window(&self, region: u8) -> Option<(Window, u64)> {
        let window = self.demand.windows.iter().find(|w| w.region == region)?;
        Some((*window, *self.windows.get(&region)?))
    }
}

/// A configuration is unacceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct ConfigError {
    /// Where in the configuration.
    pub path: String,
    /// Why, and how to mend it.
    pub reason: String,
}

impl ConfigError {
    /// `path` is unacceptable because of `reason`.
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

/// AML that a device adds to the DSDT, already encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Objects under `\_SB`.
    SystemBus(Vec<u8>),
    /// Objects under `\_SB.PCI0`.
    PciRoot(Vec<u8>),
    /// Methods of general purpose events, under `\_GPE`.
    Events(Vec<u8>),
}

/// A device's side of its PCI function: interrupts leave through it.
pub trait PciPort: Send + Sync {
    /// Whether the guest enabled MSI-X; if not, the pin is what counts.
    fn msix_enabled(&self) -> bool;
    /// Sends MSI-X vector `vector`, or marks it pending while masked. Lock-free for other vectors.
    fn fire(&self, vector: u16);
    /// Drives the interrupt pin.
    fn set_intx(&self, high: bool);
}

/// Handed to [`DeviceKind::build`]; the only way a device reaches the platform.
pub struct Wiring<'m> {
    /// Where the planner put this device.
    pub placement: &'m Placement,
    /// Interrupt wires by role, taken by [`Wiring::irq`].
    pub lines: BTreeMap<String, IrqLine>,
    /// The PCI function, if the device demanded one.
    pub pci: Option<Arc<dyn PciPort>>,
    /// Guest memory, already behind this device's vIOMMU domain.
    pub dma: DmaSpace,
    /// Message interrupts, already bound to this device's requester id and interrupt remapping.
    pub msi: Arc<dyn MsiSink>,
    /// The machine's clock.
    pub clock: VmClock,
    /// Wakes the device being built.
    pub waker: Waker,
    /// Where to report faults.
    pub faults: FaultPort,
    /// Where to ask for power-off and reset.
    pub power: PowerPort,
    /// Where to host threads.
    pub threads: Threads,
    /// Opens backends.
    pub backends: &'m dyn BackendOpener,
    /// Binds doorbells.
    pub doorbells: Arc<dyn Doorbells>,
    /// PCI configuration cycles, for host bridges; opaque to everything else.
    pub extensions: &'m Extensions,
}

/// Platform objects that only the kinds which name their type can take, such as the PCI topology
/// for a host bridge. Keyed by type: no downcast can go to the wrong one.
#[derive(Clone, Default)]
pub struct Extensions(BTreeMap<&'static str, Arc<dyn std::any::Any + Send + Sync>>);

impl Extensions {
    /// Offers `object` to kinds that know its type.
    pub fn offer<T: Send + Sync + 'static>(&mut self, object: Arc<T>) {
        self.0.insert(std::any::type_name::<T>(), object);
    }
    /// Takes a handle of the object of type `T`.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0
            .get(std::any::type_name::<T>())?
            .clone()
            .downcast()
            .ok()
    }
}

impl Wiring<'_> {
    /// The wire planned for `role`.
    pub fn irq(&mut self, role: &str) -> Result<IrqLine, BoxError> {
        self.lines
            .remove(role)
            .ok_or_else(|| format!("{}: no wire {role:?} planned", self.placement.name).into())
    }
    /// The device's PCI function.
    pub fn pci(&self) -> Result<Arc<dyn PciPort>, BoxError> {
        self.pci
            .clone()
            .ok_or_else(|| format!("{}: no PCI function planned", self.placement.name).into())
    }
    /// A timer that wakes the device.
    pub fn timer(&self) -> Timer {
        self.clock.timer(self.waker.clone())
    }
}

/// A kind of device: a configuration type, a pure demand, and a constructor.
pub trait DeviceKind: 'static {
    /// The tag in plans, configuration files and the API.
    const KIND: &'static str;
    /// Its configuration.
    type Config: Serialize + DeserializeOwned;
    /// What it needs. Pure: no file is opened, nothing is allocated.
    fn demand(config: &Self::Config, attach: Attach) -> Result<Demand, ConfigError>;
    /// Makes it.
    fn build(config: Self::Config, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError>;
    /// What it adds to the DSDT. Pure.
    fn acpi(config: &Self::Config, placement: &Placement) -> Vec<Fragment> {
        let _ = (config, placement);
        Vec::new()
    }
}

/// Object-safe [`DeviceKind`]; implemented for free by [`Erased`].
pub trait AnyKind: Send + Sync {
    /// See [`DeviceKind::KIND`].
    fn kind(&self) -> &'static str;
    /// See [`DeviceKind::demand`].
    fn demand(&self, config: &serde_json::Value, attach: Attach) -> Result<Demand, ConfigError>;
    /// See [`DeviceKind::build`].
    fn build(&self, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError>;
    /// See [`DeviceKind::acpi`].
    fn acpi(&self, placement: &Placement) -> Result<Vec<Fragment>, ConfigError>;
}

/// Erases a kind.
pub struct Erased<K>(PhantomData<fn(K)>);

impl<K> Erased<K> {
    /// The erased kind.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<K> Default for Erased<K> {
    fn default() -> Self {
        Self::new()
    }
}

fn parse<K: DeviceKind>(config: &serde_json::Value) -> Result<K::Config, ConfigError> {
    K::Config::deserialize(config).map_err(|e| ConfigError::new(K::KIND, e.to_string()))
}

impl<K: DeviceKind> AnyKind for Erased<K> {
    fn kind(&self) -> &'static str {
        K::KIND
    }
    fn demand(&self, config: &serde_json::Value, attach: Attach) -> Result<Demand, ConfigError> {
        K::demand(&parse::<K>(config)?, attach)
    }
    fn build(&self, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        K::build(parse::<K>(&wiring.placement.config)?, wiring)
    }
    fn acpi(&self, placement: &Placement) -> Result<Vec<Fragment>, ConfigError> {
        Ok(K::acpi(&parse::<K>(&placement.config)?, placement))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_address_reads_back_what_it_prints() {
        let bdf = Bdf {
            bus: 0x80,
            device: 31,
            function: 7,
        };
        assert_eq!(Bdf::try_from(bdf.to_string()), Ok(bdf));
        assert_eq!(bdf.rid().0, 0x80ff);
        for bad in ["", "0:0", "00:20.0", "00:00.8", "0g:00.0"] {
            assert!(Bdf::try_from(bad.to_string()).is_err(), "{bad}");
        }
    }
}
