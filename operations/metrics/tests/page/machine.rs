//! A machine with one device of every kind, each on a bench of its own, and two vCPUs.

use nyx_catalog::KINDS;
use nyx_device::{AnyUnit, Attach, NoDoorbells, PciSlots};
use nyx_inspect::{About, Inspect, Visitor};
use nyx_machine::ExitCounters;
use nyx_metrics::{Metrics, Setup};
use nyx_pci::{AddressSpaces, Function, Port, Topology};
use nyx_testkit::Bench;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct Machine {
    vcpus: [ExitCounters; 2],
    units: BTreeMap<String, Arc<dyn AnyUnit>>,
    /// Devices hold the other ends of these.
    _benches: Vec<Bench>,
    _folder: tempfile::TempDir,
}

fn config(kind: &str, folder: &str) -> Value {
    match kind {
        "rtc" => json!({"low_memory": 0xc000_0000_u64, "high_memory": 0x1_0000_0000_u64}),
        "i8042" => json!({"present_in_acpi": true}),
        "debug-console" | "serial" => json!({"backend": {"kind": "c"}}),
        "pci-host" => json!({"ecam": 0xe000_0000_u64, "start_bus": 0, "end_bus": 3}),
        "virtio-blk" => json!({"backend": {"kind": "d"}, "queues": 2}),
        "virtio-net" => json!({"backend": {"kind": "n"}}),
        "virtio-console" => json!({"ports": [{"backend": {"kind": "c"}}]}),
        "virtio-vsock" => json!({"cid": 3, "socket": format!("{folder}/vsock")}),
        _ => json!({}),
    }
}

impl Machine {
    pub(crate) fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut units: BTreeMap<String, Arc<dyn AnyUnit>> = BTreeMap::new();
        let mut benches = Vec::new();
        for kind in KINDS {
            let config = config(kind.kind(), folder.path().to_str().unwrap());
            let mut bench = Bench::of(*kind, config, Attach::Pci);
            bench.extensions.offer(Arc::new(Topology::default()));
            let slots = PciSlots::new(Arc::default(), Arc::new(()));
            bench.extensions.offer(Arc::new(slots));
            let device = bench.build_kind(*kind);
            let faults = bench.fault_port();
            let unit: Arc<dyn AnyUnit> = match &bench.placement.demand.pci {
                Some(demand) => {
                    let port = Port::new(demand, None, bench.msis.clone());
                    let spaces = AddressSpaces {
                        pio: Default::default(),
                        mmio: Default::default(),
                    };
                    Function::new(
                        &bench.placement,
                        device,
                        port,
                        spaces,
                        Arc::new(NoDoorbells),
                    )
                    .unwrap()
                    .plug(faults)
                }
                None => bench.plug(device),
            };
            units.insert(format!("{}0", kind.kind()), unit);
            benches.push(bench);
        }
        let vcpus: [ExitCounters; 2] = Default::default();
        Arc::new(Self {
            vcpus,
            units,
            _benches: benches,
            _folder: folder,
        })
    }

    /// Does what a busy guest does in a moment.
    pub(crate) fn works(&self) {
        for vcpu in &self.vcpus {
            vcpu.exits_pio.add(61);
            vcpu.pio_time.record(2_345);
            vcpu.exits_mmio.inc();
        }
    }

    /// Its metrics, with two samples taken and a dirty log read, so that everything there can be is
    /// there.
    pub(crate) fn metrics(self: &Arc<Self>, vm: &str) -> Metrics {
        let metrics = Metrics::new(Setup::new(vm, 2, 256 << 20), self.clone());
        metrics.note_dirty_pages(1);
        metrics.now();
        std::thread::sleep(Duration::from_millis(30));
        metrics.now();
        metrics
    }
}

impl Inspect for Machine {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.child("vcpus", &Vcpus(&self.vcpus));
        v.child("units", &Units(&self.units));
    }
}

struct Vcpus<'a>(&'a [ExitCounters]);
impl Inspect for Vcpus<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        for (index, counters) in self.0.iter().enumerate() {
            v.about(&About::key("vcpu"));
            v.child(&index.to_string(), counters);
        }
    }
}

struct Units<'a>(&'a BTreeMap<String, Arc<dyn AnyUnit>>);
impl Inspect for Units<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        struct Unit<'a>(&'a dyn AnyUnit);
        impl Inspect for Unit<'_> {
            fn inspect(&self, v: &mut dyn Visitor) {
                self.0.describe(v);
            }
        }
        for (name, unit) in self.0 {
            v.about(&About::key("unit"));
            v.child(name, &Unit(&**unit));
        }
    }
}
