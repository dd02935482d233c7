//! The machine, as far as one device under test can tell.

use crate::{
    Consoles, Disks, Networks, RecordedFaults, RecordedMsis, RecordedPci, RecordedPins,
    RecordedPower,
};
use nyx_device::{
    AnyKind, Attach, BackendOpener, BackendSpec, Bdf, BlockBackend, BoxError, CharBackend, Demand,
    Device, DeviceKind, Erased, Extensions, FaultPort, IrqDemand, IrqLine, NetBackend, NoDoorbells,
    PciPort, Placement, PowerPort, Slot, Threads, VmClock, Waker, Wiring,
};
use nyx_memory::{DmaSpace, Ram};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use vm_memory::{GuestAddress, GuestMemoryAtomic};

/// Bytes of guest RAM on a bench, from address 0.
pub const RAM_LEN: usize = 8 << 20;

/// Where reserved RAM goes.
const RESERVED: u64 = 0x70_0000;
/// Where windows without an address of their own go, and the distance between them.
const WINDOWS: u64 = 0xd000_0000;
/// The role of a function's interrupt pin, which is driven through its port.
const INTX: &str = "intx";
/// What the wall clock shows: 2026-03-01 12:00:00.25 UTC, so that nothing depends on today.
const WALL: Duration = Duration::new(1_772_366_400, 250_000_000);

/// A place for one device, with a fake at the other end of everything it is wired to.
pub struct Bench {
    /// Where the device is.
    pub placement: Placement,
    /// Its interrupt wires end here.
    pub pins: Arc<RecordedPins>,
    /// Its messages end here.
    pub msis: Arc<RecordedMsis>,
    /// Its PCI function, if it demanded one.
    pub pci: Option<Arc<RecordedPci>>,
    /// Its power requests end here.
    pub power: Arc<RecordedPower>,
    /// Its faults end here.
    pub faults: Arc<RecordedFaults>,
    /// The clock, stopped at zero: move it with [`VmClock::set`]. Its wall clock stands still too.
    pub clock: VmClock,
    /// Guest memory.
    pub dma: DmaSpace,
    /// Wakes the device once it is in a slot.
    pub waker: Waker,
    /// What the platform offers; add to it before building.
    pub extensions: Extensions,
    /// The far ends of character backends.
    pub consoles: Consoles,
    /// The media of block backends.
    pub disks: Disks,
    /// The far ends of network backends.
    pub networks: Networks,
}

impl Bench {
    /// A bench for a device of kind `K`. Panics when the kind refuses `config`.
    pub fn new<K: DeviceKind>(config: serde_json::Value) -> Self {
        Self::of(&Erased::<K>::new(), config, Attach::default())
    }

    /// A bench for a device of `kind`, attached as `attach` says. Panics when the kind refuses
    /// `config`.
    pub fn of(kind: &dyn AnyKind, config: serde_json::Value, attach: Attach) -> Self {
        let demand = kind
            .demand(&config, attach)
            .expect("the kind accepts its configuration");
        let placement = place(kind.kind(), config, attach, demand);
        let ram = Ram::from_ranges(&[(GuestAddress(0), RAM_LEN)]).expect("guest RAM can be mapped");
        let clock = VmClock::new();
        clock.fix_wall(WALL);
        Self {
            pins: Arc::default(),
            msis: Arc::default(),
            pci: placement.demand.pci.as_ref().map(|_| Arc::default()),
            power: Arc::default(),
            faults: Arc::default(),
            clock,
            dma: DmaSpace::identity(GuestMemoryAtomic::new(ram)),
            waker: Waker::new(),
            extensions: Extensions::default(),
            consoles: Consoles::default(),
            disks: Disks::default(),
            networks: Networks::default(),
            placement,
        }
    }

    /// Reports faults in the device's name.
    pub fn fault_port(&self) -> FaultPort {
        FaultPort::new(self.placement.name.as_str().into(), self.faults.clone())
    }

    /// The device's side of everything.
    pub fn wiring(&self) -> Wiring<'_> {
        let irqs = self.placement.irqs.iter().filter(|(role, _)| *role != INTX);
        let line =
            |(role, &gsi): (&String, &u32)| (role.clone(), IrqLine::new(self.pins.clone(), gsi));
        Wiring {
            placement: &self.placement,
            lines: irqs.map(line).collect(),
            pci: self.pci.clone().map(|pci| pci as Arc<dyn PciPort>),
            dma: self.dma.clone(),
            msi: self.msis.clone(),
            clock: self.clock.clone(),
            waker: self.waker.clone(),
            faults: self.fault_port(),
            power: PowerPort::new(self.power.clone()),
            threads: Threads::new(self.fault_port()),
            backends: self,
            doorbells: Arc::new(NoDoorbells),
            extensions: &self.extensions,
        }
    }

    /// Builds the device. Panics when it cannot be built.
    pub fn build<K: DeviceKind>(&self) -> Box<dyn Device> {
        self.build_kind(&Erased::<K>::new())
    }

    /// Builds the device of `kind`. Panics when it cannot be built.
    pub fn build_kind(&self, kind: &dyn AnyKind) -> Box<dyn Device> {
        kind.build(&mut self.wiring())
            .expect("the kind builds on a bench")
    }

    /// Puts the device into a slot, so that its waker, timers and consoles reach it.
    pub fn plug(&self, device: Box<dyn Device>) -> Arc<Slot<dyn Device>> {
        let slot = Slot::new(self.fault_port(), device);
        self.waker.bind(&slot);
        slot
    }

    /// Moves VM time forward by `step`, and the wall clock with it.
    pub fn pass(&self, step: Duration) {
        self.clock.set(self.clock.now() + step);
        self.clock.fix_wall(self.clock.wall() + step);
    }
}

impl BackendOpener for Bench {
    fn block(&self, spec: &BackendSpec) -> Result<Box<dyn BlockBackend>, BoxError> {
        Ok(self.disks.at(&spec.kind).backend())
    }
    fn net(&self, spec: &BackendSpec) -> Result<Box<dyn NetBackend>, BoxError> {
        Ok(self.networks.at(&spec.kind).backend())
    }
    fn char(&self, _: &str, spec: &BackendSpec) -> Result<Box<dyn CharBackend>, BoxError> {
        Ok(self.consoles.at(&spec.kind).backend())
    }
}

/// Plans a machine of one device: fixed resources as asked, the others from ranges of their own.
fn place(
    kind: &'static str,
    config: serde_json::Value,
    attach: Attach,
    demand: Demand,
) -> Placement {
    let mut next = WINDOWS;
    let mut address = |len: u64, fixed: Option<u64>| {
        fixed.unwrap_or_else(|| {
            let size = len.next_power_of_two().max(0x1000);
            let base = next.next_multiple_of(size);
            next = base + size;
            base
        })
    };
    let windows = demand
        .windows
        .iter()
        .map(|w| (w.region, address(w.len, w.fixed)))
        .collect();
    let bars = demand
        .pci
        .iter()
        .flat_map(|p| p.all_bars().collect::<Vec<_>>());
    let bars: BTreeMap<u8, u64> = bars.map(|b| (b.index, address(b.len, None))).collect();
    let mut any = 16..;
    let irqs = demand.irqs.iter().map(|(role, irq)| {
        let gsi = match irq {
            IrqDemand::Fixed(gsi) => *gsi,
            IrqDemand::Any => any.next().unwrap_or(u32::MAX),
        };
        (role.clone(), gsi)
    });
    let mut irqs: BTreeMap<String, u32> = irqs.collect();
    if demand.pci.as_ref().is_some_and(|p| p.intx) {
        irqs.insert(INTX.into(), any.next().unwrap_or(u32::MAX));
    }
    let bdf = demand
        .pci
        .as_ref()
        .map(|p| p.fixed.unwrap_or(Bdf::new(3, 0)));
    Placement {
        name: format!("test/{kind}"),
        kind: kind.into(),
        attach,
        config,
        windows,
        irqs,
        bdf,
        bars,
        reserved_ram: (demand.reserved_ram != 0).then_some(RESERVED),
        demand,
    }
}
