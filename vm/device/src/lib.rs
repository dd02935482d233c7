//! The device author's world: registers, lifecycle, units, slots, wires, clock, workers and ports.
//!
//! A device knows nothing of the VMM, the hypervisor, configuration files or other devices. It
//! answers register accesses ([`Registers`]), takes part in start, stop and reset ([`Lifecycle`]),
//! saves itself ([`nyx_state::Persist`]), describes itself ([`nyx_inspect::Inspect`]), and reaches
//! the platform only through the handles of its [`Wiring`].
#![forbid(unsafe_code)]

mod access;
mod backend;
mod bus;
mod clock;
mod doorbell;
mod hotplug;
mod irq;
mod kind;
mod lifecycle;
mod ports;
mod slot;
mod unit;

pub use access::{AccessResult, BadAccess, Hit, RegionId, Registers, read_register};
pub use backend::{
    BackendKind, BackendOpener, BackendSpec, BlockBackend, BlockDone, BlockGeometry, BlockOp,
    BlockQueue, BlockRequest, CharBackend, NetBackend, NetLink, NetOffloads, NetQueue, WindowSize,
};
pub use bus::{Bus, BusView, Conflict, Kept, Mapping};
pub use clock::{Timer, VmClock};
pub use doorbell::{Doorbell, DoorbellBinding, Doorbells, NoDoorbells};
pub use hotplug::{EjectionSink, GeneralEvents, HOTPLUG_EVENT, PciSlots, SlotNews};
pub use irq::{IoapicRouteFn, IoapicRoutePort, IrqController, IrqLine, IrqSink, Msi, MsiSink};
pub use kind::{
    AnyKind, Attach, BarDemand, BarSpace, Bdf, BoxError, ConfigError, Demand, DeviceKind, Erased,
    Extensions, Fragment, FunctionDemand, IrqDemand, PciPort, Placement, Space, Window, Wiring,
};
pub use lifecycle::{Drain, DrainToken, Lifecycle, ResetKind, Stuck};
pub use ports::{
    Fault, FaultKind, FaultPort, FaultSink, GenerationChange, PowerButton, PowerPort, PowerRequest,
    PowerSink, Threads,
};
pub use slot::{AnyUnit, Slot, Target, Waker};
pub use unit::{Device, PciHooks, Unit, UnitName};
