//! The bridge as a guest sees it.

use super::*;
use nyx_device::{
    AnyKind, Attach, Bdf, Bus, Device, DeviceKind, Erased, IrqLine, Mapping, NoDoorbells,
    Placement, PowerRequest, RegionId, ResetKind, Slot, Space,
};
use nyx_pci::{AddressSpaces, Attachment, Function, Port, Topology};
use nyx_state::{Blob, minicbor};
use nyx_testkit::{Bench, RecordedPins, conformance, json};
use std::sync::Arc;

const ECAM_BASE: u64 = 0xb000_0000;

fn config() -> serde_json::Value {
    json!({ "ecam": ECAM_BASE, "start_bus": 0, "end_bus": 3 })
}

conformance!(
    host_conformance,
    PciHost,
    config(),
    Attach::Pci,
    |extensions| {
        extensions.offer(Arc::new(Topology::default()));
    }
);
conformance!(bridge_conformance, HostBridge, json!({}));

/// A bridge on its buses, with its own function and one more at 00:02.0.
struct Machine {
    bench: Bench,
    pio: Bus,
    mmio: Bus,
    host: Arc<Slot<dyn Device>>,
    _windows: Vec<Mapping>,
    _attached: Vec<Attachment>,
}

fn machine() -> Machine {
    let mut bench = Bench::new::<PciHost>(config());
    let topology = Topology::default();
    bench.extensions.offer(Arc::new(topology.clone()));
    let host = bench.plug(bench.build::<PciHost>());
    let spaces = AddressSpaces::default();
    let mut windows = Vec::new();
    for window in &bench.placement.demand.windows {
        let bus = if window.space == Space::Pio {
            &spaces.pio
        } else {
            &spaces.mmio
        };
        let (base, region) = (window.fixed.unwrap(), RegionId(window.region));
        windows.push(bus.map(base, window.len, region, host.clone()).unwrap());
    }
    let attached = [
        Bdf::new(0, 0),
        Bdf::new(2, 0),
        Bdf {
            bus: 3,
            device: 31,
            function: 7,
        },
    ]
    .map(|bdf| function(&bench, &topology, &spaces, bdf))
    .into();
    let AddressSpaces { pio, mmio } = spaces;
    Machine {
        bench,
        pio,
        mmio,
        host,
        _windows: windows,
        _attached: attached,
    }
}

fn function(bench: &Bench, topology: &Topology, spaces: &AddressSpaces, bdf: Bdf) -> Attachment {
    let inner = Bench::new::<HostBridge>(json!({}));
    let demand = HostBridge::demand(&HostBridgeConfig {}, Attach::Pci).unwrap();
    let placement = Placement {
        bdf: Some(bdf),
        demand,
        ..inner.placement.clone()
    };
    let port = Port::new(
        placement.demand.pci.as_ref().unwrap(),
        Some(IrqLine::new(Arc::<RecordedPins>::default(), 0)),
        bench.msis.clone(),
    );
    let device = inner.build::<HostBridge>();
    let doorbells = Arc::new(NoDoorbells);
    let function = Function::new(&placement, device, port, spaces.clone(), doorbells).unwrap();
    topology
        .attach(bdf, function.plug(bench.fault_port()))
        .unwrap()
}

impl Machine {
    fn inl(&self, port: u64) -> u32 {
        let mut data = [0; 4];
        self.pio.read(port, &mut data);
        u32::from_le_bytes(data)
    }
    fn outl(&self, port: u64, value: u32) {
        self.pio.write(port, &value.to_le_bytes());
    }
    fn inb(&self, port: u64) -> u8 {
        let mut data = [0];
        self.pio.read(port, &mut data);
        data[0]
    }
    fn outb(&self, port: u64, value: u8) {
        self.pio.write(port, &[value]);
    }
    fn ecam(&self, bdf: Bdf, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.mmio.read(
            ECAM_BASE + (u64::from(bdf.rid().0) << 12) + offset,
            &mut data,
        );
        data
    }
}

#[test]
fn mechanism_one_is_detected_as_linux_does_it() {
    let m = machine();
    m.outb(0xcfb, 1);
    assert_eq!(m.inl(0xcf8), 0);
    m.outl(0xcf8, 0x8000_0000);
    assert_eq!(m.inl(0xcf8), 0x8000_0000);
    assert_eq!(m.inl(0xcfc), 0x0008_1b36);
    m.outl(0xcf8, 0x8000_0008);
    assert_eq!(m.inl(0xcfc), 0x0600_0000);
    m.outl(0xcf8, u32::MAX);
    assert_eq!(m.inl(0xcf8), 0x80ff_fffc);
}

#[test]
fn nothing_answers_while_disabled_or_where_nobody_is() {
    let m = machine();
    m.outl(0xcf8, 0);
    assert_eq!(m.inl(0xcfc), u32::MAX);
    m.outl(0xcf8, 0x8000_0800);
    assert_eq!(m.inl(0xcfc), u32::MAX);
    assert_eq!(m.ecam(Bdf::new(1, 0), 0, 4), [0xff; 4]);
    m.outl(0xcfc, 0);
    // Address bits that are not a double word at CF8.
    m.outl(0xcf8, 0x8000_0004);
    m.outb(0xcf8, 0xff);
    assert_eq!(m.inl(0xcf8), 0x8000_0004);
    assert_eq!(m.inb(0xcf8), 0xff);
}

#[test]
fn ports_and_ecam_show_the_same() {
    let m = machine();
    for bdf in [
        Bdf::new(0, 0),
        Bdf::new(2, 0),
        Bdf {
            bus: 3,
            device: 31,
            function: 7,
        },
    ] {
        for offset in (0..256u64).step_by(4) {
            m.outl(
                0xcf8,
                0x8000_0000 | u32::from(bdf.rid().0) << 8 | offset as u32,
            );
            let whole = m.inl(0xcfc).to_le_bytes();
            assert_eq!(m.ecam(bdf, offset, 4), whole, "{bdf} {offset:#x}");
            for (at, len) in [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 2), (2, 2)] {
                let mut part = vec![0; len];
                m.pio.read(0xcfc + at as u64, &mut part);
                assert_eq!(part, whole[at..at + len]);
                assert_eq!(m.ecam(bdf, offset + at as u64, len), part);
            }
        }
    }
    // Writes too: cache line size and interrupt line take any value.
    m.outl(0xcf8, 0x8000_103c);
    m.outb(0xcfc, 0x2a);
    assert_eq!(m.ecam(Bdf::new(2, 0), 0x3c, 1), [0x2a]);
    m.mmio.write(ECAM_BASE + (0x10 << 12) + 0xc, &[0x10]);
    m.outl(0xcf8, 0x8000_100c);
    assert_eq!(m.inb(0xcfc), 0x10);
}

#[test]
fn ecam_takes_any_width_and_splits_between_functions() {
    let m = machine();
    let eight = m.ecam(Bdf::new(2, 0), 0, 8);
    assert_eq!(eight, [0x36, 0x1b, 8, 0, 0, 0, 0x10, 0]);
    assert_eq!(m.ecam(Bdf::new(2, 0), 3, 5), eight[3..]);
    // The last bytes before 00:02.0 belong to an absent function.
    assert_eq!(m.ecam(Bdf::new(1, 7), 0xffe, 4), [0xff, 0xff, 0x36, 0x1b]);
    m.mmio
        .write(ECAM_BASE + (0x10 << 12) - 4, &[0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(m.ecam(Bdf::new(2, 0), 0, 4), [0x36, 0x1b, 8, 0]);
    // Extended configuration space is there and empty.
    assert_eq!(m.ecam(Bdf::new(2, 0), 0x100, 4), [0; 4]);
    // The window ends with the last bus.
    assert_eq!(
        m.ecam(
            Bdf {
                bus: 3,
                device: 31,
                function: 7
            },
            0xffe,
            4
        ),
        [0, 0, 0xff, 0xff]
    );
}

#[test]
fn the_rising_edge_of_reset_cpu_resets_the_platform() {
    let m = machine();
    m.outb(0xcf9, 0x02);
    assert_eq!(m.inb(0xcf9), 0x02);
    assert_eq!(m.bench.power.take(), []);
    m.outb(0xcf9, 0x06);
    assert_eq!(m.bench.power.take(), [PowerRequest::Reset]);
    m.outb(0xcf9, 0xff);
    assert_eq!(m.bench.power.take(), [], "no edge");
    assert_eq!(m.inb(0xcf9), 0x0e);
    m.host.with(|host| host.reset(ResetKind::Warm));
    assert_eq!(m.inb(0xcf9), 0);
    assert_eq!(m.inl(0xcf8), 0);
    m.outb(0xcf9, 0x0e);
    assert_eq!(m.bench.power.take(), [PowerRequest::Reset]);
    // The address register is not the reset register's word.
    m.outl(0xcf8, 0x8000_0400);
    assert_eq!(m.inb(0xcf9), 0x0e);
}

#[test]
fn accesses_that_straddle_registers_are_refused() {
    let m = machine();
    m.outl(0xcf8, 0x8000_0000);
    m.pio.write(0xcf9, &[4, 0, 0, 0]);
    m.pio.write(0xcfa, &[0; 4]);
    m.pio.write(0xcf8, &[0; 8]);
    assert_eq!(m.bench.power.take(), []);
    assert_eq!(m.inl(0xcf8), 0x8000_0000);
    assert_eq!(m.inl(0xcfa), u32::MAX);
    assert_eq!(m.host.refused.get(), 4);
}

#[test]
fn saved_registers_come_back_and_impossible_ones_do_not() {
    let m = machine();
    m.outl(0xcf8, 0x8000_1004);
    m.outb(0xcf9, 0x0a);
    let blob = m.host.with(|host| host.save_blob()).unwrap().unwrap();
    let other = machine();
    other
        .host
        .with(|host| host.restore_blob(&blob))
        .unwrap()
        .unwrap();
    assert_eq!((other.inl(0xcf8), other.inb(0xcf9)), (0x8000_1004, 0x0a));
    for saved in [
        SavedPciHost {
            address: 1,
            reset_control: 0,
        },
        SavedPciHost {
            address: 0x0100_0000,
            reset_control: 0,
        },
        SavedPciHost {
            address: 0,
            reset_control: 1,
        },
    ] {
        let bytes = minicbor::to_vec(saved).unwrap();
        let blob = Blob {
            name: "pci-host/1".into(),
            bytes,
        };
        assert!(
            other
                .host
                .with(|host| host.restore_blob(&blob))
                .unwrap()
                .is_err()
        );
        assert_eq!(other.inl(0xcf8), 0x8000_1004);
    }
}

#[test]
fn demands_are_checked() {
    let demand = |config| AnyKind::demand(&Erased::<PciHost>::new(), &config, Attach::Pci);
    let windows = demand(json!({ "ecam": 0xb000_0000u64 })).unwrap().windows;
    assert_eq!((windows[0].fixed, windows[0].len), (Some(0xcf8), 8));
    assert_eq!(
        (windows[1].fixed, windows[1].len),
        (Some(0xb000_0000), 256 << 20)
    );
    let some = demand(json!({ "ecam": 0xb000_0000u64, "start_bus": 16, "end_bus": 31 })).unwrap();
    assert_eq!(
        (some.windows[1].fixed, some.windows[1].len),
        (Some(0xb100_0000), 16 << 20)
    );
    for bad in [
        json!({ "ecam": 0 }),
        json!({ "ecam": 0xb010_0000u64 }),
        json!({ "ecam": 0xb000_0000u64, "start_bus": 2, "end_bus": 1 }),
        json!({}),
    ] {
        assert!(demand(bad.clone()).is_err(), "{bad}");
    }
    let far = demand(json!({ "ecam": u64::MAX - 0xfff_ffff }));
    assert!(far.is_ok(), "the last 256 MiB end exactly at the top");
}

#[test]
fn without_a_topology_there_is_no_bridge() {
    let bench = Bench::new::<PciHost>(config());
    let built = AnyKind::build(&Erased::<PciHost>::new(), &mut bench.wiring());
    assert_eq!(
        built.err().unwrap().to_string(),
        "this machine has no PCI topology"
    );
}
