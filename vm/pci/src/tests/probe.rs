//! A device that remembers what it is told, in a function on a small bench.

use crate::{AddressSpaces, Function, Port, Topology};
use nyx_device::{
    AccessResult, BadAccess, BarDemand, BarSpace, Bdf, Demand, Device, Doorbell, DoorbellBinding,
    Doorbells, FaultPort, FunctionDemand, Hit, IrqLine, Lifecycle, PciHooks, PciPort, Placement,
    RegionId, Registers, ResetKind, Slot, Space,
};
use nyx_inspect::{Inspect, Leaf, Visitor};
use nyx_reactor::EventFd;
use nyx_state::{Persist, RestoreError, SaveError, Saved, minicbor};
use nyx_testkit::{RecordedFaults, RecordedMsis, RecordedPins};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Where the planner put the probe: 32-bit memory, MSI-X, 64-bit memory, ports.
pub(super) const MEMORY: u64 = 0xe000_0000;
pub(super) const TABLE: u64 = 0xe001_0000;
pub(super) const HIGH: u64 = 0x40_0000_0000;
pub(super) const PORTS: u64 = 0xc040;
pub(super) const PIN: u32 = 16;
pub(super) const VECTORS: u16 = 70;

/// What a device heard.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) writes: Vec<(u8, u64, Vec<u8>)>,
    pub(super) capability: Vec<(usize, usize, Vec<u8>)>,
    pub(super) bus_master: Vec<bool>,
    pub(super) resets: usize,
}

pub(super) struct Probe {
    port: Arc<Port>,
    heard: Arc<Mutex<Heard>>,
    kick: Arc<EventFd>,
    pub(super) capabilities: Vec<Vec<u8>>,
    value: u32,
}

#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub(super) struct SavedProbe {
    #[n(0)]
    value: u32,
}
impl Saved for SavedProbe {
    const NAME: &'static str = "probe/1";
}

impl Registers for Probe {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        match at {
            Hit {
                region: RegionId(0),
                offset: 0,
            } if data.len() == 4 => {
                data.copy_from_slice(&self.value.to_le_bytes());
            }
            Hit {
                region: RegionId(0),
                offset: 0x66,
            } => panic!("the probe broke"),
            Hit { region, .. } => data.fill(0xa0 | region.0),
        }
        Ok(())
    }
    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        self.heard
            .lock()
            .writes
            .push((at.region.0, at.offset, data.to_vec()));
        if at == Hit::new(0, 0) {
            self.value = u32::from_le_bytes(data.try_into().map_err(|_| BadAccess::Width)?);
        }
        Ok(())
    }
}
impl Lifecycle for Probe {
    fn reset(&mut self, _: ResetKind) {
        self.value = 0;
        self.heard.lock().resets += 1;
        self.port.set_intx(false);
    }
}
impl Inspect for Probe {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.leaf("value", Leaf::Number(self.value.into()));
    }
}
impl Persist for Probe {
    type Saved = SavedProbe;
    fn save(&self) -> Result<SavedProbe, SaveError> {
        Ok(SavedProbe { value: self.value })
    }
    fn restore(&mut self, saved: SavedProbe) -> Result<(), RestoreError> {
        self.value = saved.value;
        Ok(())
    }
}
impl Device for Probe {
    fn as_pci_function(&mut self) -> Option<&mut dyn PciHooks> {
        Some(self)
    }
    fn doorbells(&self) -> Vec<Doorbell> {
        let bell = |region, offset| Doorbell {
            region: RegionId(region),
            offset,
            len: 4,
            value: None,
            event: self.kick.clone(),
        };
        // The last one does not fit into its BAR.
        vec![bell(0, 0x3000), bell(2, 0x10), bell(4, 0x1e)]
    }
}
impl PciHooks for Probe {
    fn vendor_capabilities(&self) -> Vec<Vec<u8>> {
        self.capabilities.clone()
    }
    fn read_capability(&mut self, index: usize, offset: usize, data: &mut [u8]) -> bool {
        data.fill(0x5a);
        index == 1 && offset >= 16
    }
    fn write_capability(&mut self, index: usize, offset: usize, data: &[u8]) -> bool {
        self.heard
            .lock()
            .capability
            .push((index, offset, data.to_vec()));
        index == 1
    }
    fn bus_master(&mut self, on: bool) {
        self.heard.lock().bus_master.push(on);
    }
}

/// Doorbells that remember: bound addresses, and how often binding was tried.
#[derive(Default)]
pub(super) struct Bells {
    pub(super) bound: Arc<Mutex<Vec<(Space, u64)>>>,
    pub(super) tries: Mutex<usize>,
    pub(super) refuse: Mutex<bool>,
}
struct Bound(Arc<Mutex<Vec<(Space, u64)>>>, (Space, u64));
impl DoorbellBinding for Bound {}
impl Drop for Bound {
    fn drop(&mut self) {
        self.0.lock().retain(|bound| *bound != self.1);
    }
}
impl Doorbells for Bells {
    fn bind(&self, space: Space, at: u64, _: &Doorbell) -> io::Result<Box<dyn DoorbellBinding>> {
        *self.tries.lock() += 1;
        if *self.refuse.lock() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut bound = self.bound.lock();
        assert!(!bound.contains(&(space, at)), "{at:#x} is bound twice");
        bound.push((space, at));
        Ok(Box::new(Bound(self.bound.clone(), (space, at))))
    }
}

/// Everything around the functions of one test.
#[derive(Default)]
pub(super) struct Bench {
    pub(super) spaces: AddressSpaces,
    pub(super) topology: Topology,
    pub(super) pins: Arc<RecordedPins>,
    pub(super) msis: Arc<RecordedMsis>,
    pub(super) faults: Arc<RecordedFaults>,
    pub(super) bells: Arc<Bells>,
}

/// One plugged function.
pub(super) struct Plugged {
    pub(super) slot: Arc<Slot<Function>>,
    pub(super) port: Arc<Port>,
    pub(super) heard: Arc<Mutex<Heard>>,
}

pub(super) fn demand() -> FunctionDemand {
    let bar = |index, len, space, prefetchable| BarDemand {
        index,
        len,
        space,
        prefetchable,
    };
    FunctionDemand {
        vendor: 0x1234,
        device: 0x5678,
        revision: 3,
        class: [0xff, 0, 0],
        subsystem_vendor: 0x9abc,
        subsystem: 0xdef0,
        bars: vec![
            bar(0, 0x4000, BarSpace::Memory32, false),
            bar(2, 0x10000, BarSpace::Memory64, true),
            bar(4, 0x20, BarSpace::Io, false),
        ],
        msix_vectors: VECTORS,
        msix_bar: 1,
        intx: true,
        fixed: None,
    }
}

pub(super) fn placement() -> Placement {
    Placement {
        name: "pci/00:03.0".into(),
        kind: "probe".into(),
        demand: Demand {
            pci: Some(demand()),
            ..Demand::default()
        },
        irqs: BTreeMap::from([("intx".into(), PIN)]),
        bdf: Some(Bdf::new(3, 0)),
        bars: BTreeMap::from([(0, MEMORY), (1, TABLE), (2, HIGH), (4, PORTS)]),
        ..Placement::default()
    }
}

impl Bench {
    pub(super) fn port(&self, demand: &FunctionDemand) -> Arc<Port> {
        Port::new(
            demand,
            Some(IrqLine::new(self.pins.clone(), PIN)),
            self.msis.clone(),
        )
    }

    pub(super) fn probe(&self, port: Arc<Port>) -> (Box<Probe>, Arc<Mutex<Heard>>) {
        let heard = Arc::<Mutex<Heard>>::default();
        let kick = Arc::new(EventFd::new().unwrap());
        let capabilities = vec![vec![0x11; 5], vec![0x22; 18]];
        (
            Box::new(Probe {
                port,
                heard: heard.clone(),
                kick,
                capabilities,
                value: 0,
            }),
            heard,
        )
    }

    pub(super) fn function(
        &self,
        placement: &Placement,
    ) -> (Function, Arc<Port>, Arc<Mutex<Heard>>) {
        let port = self.port(placement.demand.pci.as_ref().unwrap());
        let (probe, heard) = self.probe(port.clone());
        let (spaces, bells) = (self.spaces.clone(), self.bells.clone());
        let function = Function::new(placement, probe, port.clone(), spaces, bells).unwrap();
        (function, port, heard)
    }

    pub(super) fn plug(&self, placement: &Placement) -> Plugged {
        let (function, port, heard) = self.function(placement);
        let faults = FaultPort::new(placement.name.as_str().into(), self.faults.clone());
        Plugged {
            slot: function.plug(faults),
            port,
            heard,
        }
    }

    pub(super) fn read32(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.spaces.mmio.read(at, &mut data);
        u32::from_le_bytes(data)
    }
    pub(super) fn write32(&self, at: u64, value: u32) {
        self.spaces.mmio.write(at, &value.to_le_bytes());
    }
    pub(super) fn mapped(&self) -> Vec<u64> {
        self.spaces.mmio.windows().iter().map(|w| w.0).collect()
    }
    pub(super) fn bound(&self) -> Vec<u64> {
        self.bells.bound.lock().iter().map(|b| b.1).collect()
    }
}

impl Plugged {
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut Function) -> R) -> R {
        self.slot.with(f).expect("the function is there")
    }
    pub(super) fn read(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.with(|function| function.config_read(offset, &mut data));
        u32::from_le_bytes(data)
    }
    pub(super) fn read16(&self, offset: u16) -> u16 {
        self.read(offset) as u16
    }
    pub(super) fn write(&self, offset: u16, value: u32) {
        self.with(|function| function.config_write(offset, &value.to_le_bytes()));
    }
    pub(super) fn write16(&self, offset: u16, value: u16) {
        self.with(|function| function.config_write(offset, &value.to_le_bytes()));
    }
    pub(super) fn command(&self, value: u16) {
        self.write16(4, value);
    }
    /// Offset of the first capability with this id.
    pub(super) fn capability(&self, id: u8) -> u16 {
        let mut at = self.read(0x34) as u8;
        for _ in 0..16 {
            let header = self.read16(at.into()).to_le_bytes();
            if header[0] == id {
                return at.into();
            }
            at = header[1];
        }
        panic!("no capability {id:#x}");
    }
    pub(super) fn msix_control(&self, value: u16) {
        self.write16(self.capability(0x11) + 2, value);
    }
}
