//! From a plan to a machine.

use crate::fabric::{Connections, Fabric};
use crate::graph::UnitGraph;
use crate::hotplug::Moves;
use crate::machine::Machine;
use crate::vcpu::{Surroundings, VcpuSet, VcpuSink};
use nyx_device::{
    AnyKind, AnyUnit, BackendOpener, BoxError, Conflict, Device, EjectionSink, Extensions,
    FaultPort, FaultSink, GeneralEvents, GenerationChange, IoapicRoutePort, PciSlots, Placement,
    PowerButton, PowerPort, PowerSink, RegionId, Slot, Space, Threads, VmClock, Waker, Wiring,
};
use nyx_hypervisor::{HvError, Hypervisor, Topology, Vm};
use nyx_memory::{AllocateError, Extent, HugePages, Memory, RamConfig, RamSharing};
use nyx_pci::{AddressSpaces, Function, Port};
use nyx_plan::{MachinePlan, slot_of};
use nyx_spec::HugePageSize;
use std::collections::BTreeMap;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// Where a machine's reports go, and where its backends come from.
pub struct Ports<'p> {
    /// Takes faults.
    pub faults: Arc<dyn FaultSink>,
    /// Takes the guest's power requests.
    pub power: Arc<dyn PowerSink>,
    /// Takes vCPU events.
    pub vcpus: Arc<dyn VcpuSink>,
    /// Hears that the guest ejected devices.
    pub hotplug: Arc<dyn EjectionSink>,
    /// Opens backends.
    pub backends: &'p dyn BackendOpener,
}

/// A machine could not be assembled. Whatever had been built is undone.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] AllocateError),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
    /// One device.
    #[error("{unit}: {source}")]
    Device {
        /// Unit name.
        unit: String,
        /// Why.
        source: BoxError,
    },
    /// A thread.
    #[error("cannot start a vCPU thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Stop order: devices, then the interrupt controller they drive.
const RANK_DEVICE: u32 = 0;
const RANK_CONTROLLER: u32 = 1;
const IOAPIC_PINS: u32 = 24;

impl Machine {
    /// Builds the machine that `plan` describes, at rest.
    pub fn assemble(
        plan: MachinePlan,
        catalog: &[&dyn AnyKind],
        hypervisor: &dyn Hypervisor,
        ports: &Ports<'_>,
    ) -> Result<Self, AssembleError> {
        let mut memory = Memory::allocate(&ram_config(&plan))?;
        let topology = Topology {
            cpus: plan.topology.count,
            sockets: plan.topology.sockets,
            cores: plan.topology.cores,
            threads: plan.topology.threads,
        };
        let vm = hypervisor.create_vm(topology)?;
        // Memory slots come before the interrupt controllers: afterwards each costs milliseconds.
        memory.subscribe(vm.ram_observer())?;
        vm.power_interrupts(IOAPIC_PINS)?;
        let (mut fabric, mut units) = (Fabric::default(), UnitGraph::default());
        let clock = VmClock::new();
        let routes = vm.ioapic_routes();
        let events = Arc::new(GeneralEvents::default());
        let slots = Arc::new(PciSlots::new(events.clone(), ports.hotplug.clone()));
        let mut extensions = Extensions::default();
        extensions.offer(fabric.topology.clone());
        extensions.offer(Arc::new(IoapicRoutePort(Box::new(move |table| {
            routes.set(table)
        }))));
        extensions.offer(Arc::new(PowerButton::default()));
        extensions.offer(Arc::new(GenerationChange::default()));
        extensions.offer(events);
        extensions.offer(slots.clone());
        let mut site = Site {
            fabric: &mut fabric,
            units: &mut units,
            extensions: &extensions,
            clock: &clock,
            memory: &memory,
            vm: &*vm,
            catalog,
            ports,
        };
        for placement in &plan.placements {
            site.build(placement, Arrival::AtStart)
                .map_err(|source| AssembleError::Device {
                    unit: placement.name.clone(),
                    source,
                })?;
            if let Some(slot) = slot_of(placement) {
                slots.occupied_at_start(slot);
            }
        }
        let mut vcpus = VcpuSet::default();
        for cpu in &plan.cpus {
            let around = Surroundings {
                pio: fabric.pio.view(),
                mmio: fabric.mmio.view(),
                controller: fabric.controller.clone(),
                sink: ports.vcpus.clone(),
            };
            vcpus.add(cpu.index, vm.create_vcpu(cpu.index)?, around)??;
        }
        Ok(Self {
            vcpus,
            units,
            fabric,
            extensions,
            clock,
            memory,
            vm,
            plan,
            moves: Moves::new(slots),
            running: false,
        })
    }
}

fn ram_config(plan: &MachinePlan) -> RamConfig {
    let extent = |r: &nyx_plan::Range| Extent {
        base: GuestAddress(r.base),
        // A range beyond usize cannot be mapped, and the allocation says so.
        len: usize::try_from(r.len).unwrap_or(usize::MAX),
    };
    RamConfig {
        extents: plan.layout.ram.iter().map(extent).collect(),
        huge_pages: match plan.ram.huge_pages {
            HugePageSize::Off => HugePages::Off,
            HugePageSize::Transparent => HugePages::Transparent,
            HugePageSize::Size2M => HugePages::Size2M,
            HugePageSize::Size1G => HugePages::Size1G,
        },
        sharing: if plan.ram.shared {
            RamSharing::Shared
        } else {
            RamSharing::Private
        },
        prefault: plan.ram.prefault,
    }
}

/// When a device comes to its machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Before the guest.
    AtStart,
    /// While there is a guest, perhaps a running one.
    Later { running: bool },
}

/// Where devices are built: the parts of a machine that they are connected to.
pub(crate) struct Site<'a> {
    pub(crate) fabric: &'a mut Fabric,
    pub(crate) units: &'a mut UnitGraph,
    pub(crate) extensions: &'a Extensions,
    pub(crate) clock: &'a VmClock,
    pub(crate) memory: &'a Memory,
    pub(crate) vm: &'a dyn Vm,
    pub(crate) catalog: &'a [&'a dyn AnyKind],
    pub(crate) ports: &'a Ports<'a>,
}

impl Site<'_> {
    /// Builds the device that `placement` plans, connects it and adds it to the units. Whatever fails,
    /// nothing of it stays.
    pub(crate) fn build(
        &mut self,
        placement: &Placement,
        arrival: Arrival,
    ) -> Result<(), BoxError> {
        let kind = self
            .catalog
            .iter()
            .find(|k| k.kind() == placement.kind)
            .ok_or_else(|| format!("there is no device of kind {:?}", placement.kind))?;
        let faults = FaultPort::new(placement.name.as_str().into(), self.ports.faults.clone());
        let mut lines = BTreeMap::new();
        for (role, gsi) in &placement.irqs {
            let line = self
                .fabric
                .wire(*gsi)
                .ok_or("its interrupt has no controller; the plan must place one first")?;
            lines.insert(role.clone(), line);
        }
        let port = placement
            .demand
            .pci
            .as_ref()
            .map(|function| Port::new(function, lines.remove("intx"), self.vm.msi()));
        let waker = Waker::new();
        let mut wiring = Wiring {
            placement,
            lines,
            pci: port.clone().map(|p| p as _),
            dma: self.memory.space(),
            msi: self.vm.msi(),
            clock: self.clock.clone(),
            waker: waker.clone(),
            threads: Threads::new(faults.clone()),
            power: PowerPort::new(self.ports.power.clone()),
            faults: faults.clone(),
            backends: self.ports.backends,
            doorbells: self.vm.doorbells(),
            extensions: self.extensions,
        };
        let device = kind.build(&mut wiring)?;
        match port {
            Some(port) => {
                let doorbells = self.vm.doorbells();
                let spaces = AddressSpaces {
                    pio: self.fabric.pio.clone(),
                    mmio: self.fabric.mmio.clone(),
                };
                let function = Function::new(placement, device, port, spaces, doorbells)?;
                self.plug_function(function, faults, &waker, arrival)
            }
            None => self.plug(placement, device, faults, &waker),
        }
    }

    fn plug_function(
        &mut self,
        function: Function,
        faults: FaultPort,
        waker: &Waker,
        arrival: Arrival,
    ) -> Result<(), BoxError> {
        let bdf = function.bdf();
        let slot = match arrival {
            Arrival::AtStart => function.plug(faults),
            Arrival::Later { .. } => function.hot_plugged().plug(faults),
        };
        waker.bind(&slot);
        // A device of a running machine runs before anybody can reach it.
        if arrival == (Arrival::Later { running: true }) {
            AnyUnit::start(&*slot);
        }
        let attachment = self.fabric.topology.attach(bdf, slot.clone())?;
        let connections = Connections {
            attachment: Some(attachment),
            ..Connections::default()
        };
        self.fabric.connect(slot.name().clone(), connections);
        self.units.add(slot.name().clone(), RANK_DEVICE, slot);
        Ok(())
    }

    fn plug(
        &mut self,
        placement: &Placement,
        mut device: Box<dyn Device>,
        faults: FaultPort,
        waker: &Waker,
    ) -> Result<(), BoxError> {
        let is_controller = device.as_irq_controller().is_some();
        let bells = device.doorbells();
        let slot: Arc<Slot<dyn Device>> = Slot::new(faults, device);
        waker.bind(&slot);
        let mut connections = Connections::default();
        for window in &placement.demand.windows {
            let base = placement
                .windows
                .get(&window.region)
                .copied()
                .ok_or_else(|| format!("window {} has no address", window.region))?;
            let bus = match window.space {
                Space::Pio => &self.fabric.pio,
                Space::Mmio => &self.fabric.mmio,
            };
            let mapping = bus.map(base, window.len, RegionId(window.region), slot.clone());
            connections
                .mappings
                .push(mapping.map_err(|e: Conflict| e.to_string())?);
            for bell in bells.iter().filter(|b| b.region.0 == window.region) {
                // Without the shortcut a ring is an ordinary access; nothing is lost.
                if let Ok(binding) =
                    self.vm
                        .doorbells()
                        .bind(window.space, base + bell.offset, bell)
                {
                    connections.bindings.push(binding);
                }
            }
        }
        self.fabric.connect(slot.name().clone(), connections);
        let rank = if is_controller {
            RANK_CONTROLLER
        } else {
            RANK_DEVICE
        };
        self.units.add(slot.name().clone(), rank, slot.clone());
        if is_controller {
            // The first controller takes the wires; a plan has one.
            let _ = self.fabric.controller.set(slot);
        }
        Ok(())
    }
}
