//! A machine on a scripted hypervisor: dispatch, rest, faults, save and restore.

mod hotplug;

use crate::{Machine, Ports, VcpuEvent, VcpuSink};
use nyx_device::{
    AccessResult, AnyKind, Attach, BackendOpener, BackendSpec, BadAccess, BlockBackend, BoxError,
    CharBackend, ConfigError, Demand, Device, DeviceKind, Doorbells, Drain, DrainToken, Erased,
    Fault, FaultKind, FaultSink, Hit, IrqController, IrqDemand, IrqLine, Lifecycle, Msi, MsiSink,
    NetBackend, NoDoorbells, Placement, PowerRequest, PowerSink, Registers, ResetKind, Space,
    Window, Wiring,
};
use nyx_hypervisor::{
    Broken, Direction, EntryState, Exit, HvError, Hypervisor, IoapicRoutes, Kick, Topology, Vcpu,
    Vm,
};
use nyx_inspect::{Inspect, Json, Visitor};
use nyx_memory::{Backing, DirtySource, Extent, RamObserver};
use nyx_plan::{BootPlan, CpuPlan, Layout, MachinePlan, RamPlan, Range};
use nyx_spec::{CpuSpec, HugePageSize};
use nyx_state::{Blob, Persist, RestoreError, SaveError, Saved, minicbor};
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

// The scripted hypervisor --------------------------------------------------------------------

enum Step {
    Out(u16, u8, Vec<u8>),
    In(u16, u8, usize),
    Eoi(u8),
    TripleFault,
    Break(u32),
    Panic,
}

#[derive(Default)]
struct Script {
    steps: Mutex<VecDeque<Step>>,
    kicked: Mutex<bool>,
    changed: Condvar,
    /// What the guest read.
    read: Mutex<Vec<Vec<u8>>>,
    resets: Mutex<u32>,
    restored: Mutex<Vec<Blob>>,
}

#[derive(Clone, Default)]
struct Scripted(Arc<Script>);

struct ScriptedVcpu {
    script: Arc<Script>,
    buffer: Vec<u8>,
    reading: bool,
}

impl Kick for Script {
    fn kick(&self) {
        *self.kicked.lock() = true;
        self.changed.notify_all();
    }
}

impl Vcpu for ScriptedVcpu {
    fn run(&mut self) -> Result<Exit<'_>, HvError> {
        if std::mem::take(&mut self.reading) {
            self.script.read.lock().push(self.buffer.clone());
        }
        let step = {
            let mut kicked = self.script.kicked.lock();
            loop {
                if std::mem::take(&mut *kicked) {
                    return Ok(Exit::Interrupted);
                }
                if let Some(step) = self.script.steps.lock().pop_front() {
                    break step;
                }
                // HLT.
                self.script.changed.wait(&mut kicked);
            }
        };
        Ok(match step {
            Step::Out(port, width, data) => {
                self.buffer = data;
                let (direction, data) = (Direction::Out, &mut self.buffer[..]);
                Exit::Pio {
                    port,
                    width,
                    direction,
                    data,
                }
            }
            Step::In(port, width, len) => {
                self.buffer = vec![0; len];
                self.reading = true;
                let (direction, data) = (Direction::In, &mut self.buffer[..]);
                Exit::Pio {
                    port,
                    width,
                    direction,
                    data,
                }
            }
            Step::Eoi(vector) => Exit::EndOfInterrupt { vector },
            Step::TripleFault => Exit::Shutdown,
            Step::Break(suberror) => Exit::Broken(Broken::Internal {
                suberror,
                evidence: vec![7],
            }),
            Step::Panic => panic!("the VMM has a bug"),
        })
    }
    fn settle(&mut self) -> Result<Option<Exit<'_>>, HvError> {
        if std::mem::take(&mut self.reading) {
            self.script.read.lock().push(self.buffer.clone());
        }
        Ok(None)
    }
    fn kick_handle(&mut self) -> Result<Arc<dyn Kick>, HvError> {
        Ok(self.script.clone())
    }
    fn set_entry(&mut self, _: &EntryState) -> Result<(), HvError> {
        Ok(())
    }
    fn reset(&mut self) -> Result<(), HvError> {
        *self.script.resets.lock() += 1;
        Ok(())
    }
    fn save(&mut self) -> Result<Blob, SaveError> {
        Ok(Blob {
            name: "scripted/1".into(),
            bytes: vec![1],
        })
    }
    fn restore(&mut self, blob: &Blob) -> Result<(), RestoreError> {
        self.script.restored.lock().push(blob.clone());
        Ok(())
    }
    fn inject_nmi(&mut self) -> Result<(), HvError> {
        Ok(())
    }
    fn program_counter(&mut self) -> Result<u64, HvError> {
        Ok(0)
    }
}

struct NoMemory;
impl RamObserver for NoMemory {
    fn mapped(&mut self, _: Extent, _: &Backing<'_>) -> io::Result<()> {
        Ok(())
    }
    fn unmapped(&mut self, _: Extent) {}
}
impl DirtySource for NoMemory {
    fn log(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn drain(&mut self, _: &mut dyn FnMut(Extent)) -> io::Result<()> {
        Ok(())
    }
}
impl MsiSink for NoMemory {
    fn signal(&self, _: Msi) {}
}
impl IoapicRoutes for NoMemory {
    fn set(&self, _: &[Option<Msi>]) {}
}

impl Vm for Scripted {
    fn ram_observer(&self) -> Box<dyn RamObserver> {
        Box::new(NoMemory)
    }
    fn power_interrupts(&self, _: u32) -> Result<(), HvError> {
        Ok(())
    }
    fn create_vcpu(&self, _: u32) -> Result<Box<dyn Vcpu>, HvError> {
        let script = self.0.clone();
        Ok(Box::new(ScriptedVcpu {
            script,
            buffer: Vec::new(),
            reading: false,
        }))
    }
    fn msi(&self) -> Arc<dyn MsiSink> {
        Arc::new(NoMemory)
    }
    fn ioapic_routes(&self) -> Arc<dyn IoapicRoutes> {
        Arc::new(NoMemory)
    }
    fn doorbells(&self) -> Arc<dyn Doorbells> {
        Arc::new(NoDoorbells)
    }
    fn dirty_source(&self) -> Box<dyn DirtySource> {
        Box::new(NoMemory)
    }
    fn save(&self) -> Result<Blob, SaveError> {
        Ok(Blob {
            name: "scripted-vm/1".into(),
            bytes: vec![],
        })
    }
    fn restore(&self, _: &Blob) -> Result<(), RestoreError> {
        Ok(())
    }
}

impl Hypervisor for Scripted {
    fn max_vcpus(&self) -> u32 {
        1
    }
    fn physical_address_bits(&self) -> u8 {
        40
    }
    fn create_vm(&self, _: Topology) -> Result<Box<dyn Vm>, HvError> {
        Ok(Box::new(self.clone()))
    }
}

// Two made-up kinds --------------------------------------------------------------------------

/// Remembers the last byte written, raises its wire while that is odd, misbehaves when asked to.
struct Latch {
    line: Option<IrqLine>,
    value: u8,
    stuck: Option<DrainToken>,
    controller: Option<Vec<u8>>,
}

#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct SavedLatch {
    #[n(0)]
    value: u8,
}
impl Saved for SavedLatch {
    const NAME: &'static str = "latch/1";
}

impl Registers for Latch {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        match (at.offset, data) {
            (0, [byte]) => *byte = self.value,
            (1, [byte]) => *byte = self.controller.as_ref().map_or(0, |c| c.len() as u8),
            (0 | 1, _) => return Err(BadAccess::Width),
            _ => return Err(BadAccess::NoRegister),
        }
        Ok(())
    }
    fn write(&mut self, _: Hit, data: &[u8]) -> AccessResult {
        assert_ne!(data, [0xde], "the guest found a bug");
        self.value = data[0];
        if let Some(line) = &self.line {
            line.set(self.value & 1 != 0);
        }
        Ok(())
    }
}
impl Lifecycle for Latch {
    fn stop(&mut self) -> Drain {
        if self.value != 0x55 {
            return Drain::idle();
        }
        let (drain, token) = Drain::pending();
        self.stuck = Some(token);
        drain
    }
    fn reset(&mut self, _: ResetKind) {
        self.value = 0;
    }
}
impl Inspect for Latch {
    fn inspect(&self, v: &mut dyn Visitor) {
        nyx_inspect::Field::visit(&self.value, "value", v);
    }
}
impl Persist for Latch {
    type Saved = SavedLatch;
    fn save(&self) -> Result<SavedLatch, SaveError> {
        Ok(SavedLatch { value: self.value })
    }
    fn restore(&mut self, saved: SavedLatch) -> Result<(), RestoreError> {
        self.value = saved.value;
        Ok(())
    }
}
impl IrqController for Latch {
    fn set_level(&mut self, pin: u32, high: bool) {
        if high {
            self.controller.get_or_insert_default().push(pin as u8);
        }
    }
    fn end_of_interrupt(&mut self, vector: u8) {
        self.controller.get_or_insert_default().push(vector);
    }
}
impl Device for Latch {
    fn as_irq_controller(&mut self) -> Option<&mut dyn IrqController> {
        self.controller.is_some().then_some(self)
    }
}

struct LatchKind;
impl DeviceKind for LatchKind {
    const KIND: &'static str = "latch";
    type Config = Value;
    fn demand(_: &Value, _: Attach) -> Result<Demand, ConfigError> {
        Ok(Demand::default())
    }
    fn build(config: Value, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        if config == json!("refuse") {
            return Err("it would not".into());
        }
        let controller = (config == json!("controller")).then(Vec::new);
        let line = wiring.irq("intr").ok();
        Ok(Box::new(Latch {
            line,
            value: 0,
            stuck: None,
            controller,
        }))
    }
}

struct Backends;
impl BackendOpener for Backends {
    fn block(&self, _: &BackendSpec) -> Result<Box<dyn BlockBackend>, BoxError> {
        Err("none".into())
    }
    fn net(&self, _: &BackendSpec) -> Result<Box<dyn NetBackend>, BoxError> {
        Err("none".into())
    }
    fn char(&self, _: &str, _: &BackendSpec) -> Result<Box<dyn CharBackend>, BoxError> {
        Err("none".into())
    }
}

#[derive(Default)]
struct Heard(
    Mutex<Vec<Fault>>,
    Mutex<Option<std::sync::mpsc::Sender<VcpuEvent>>>,
    std::sync::atomic::AtomicUsize,
);
impl FaultSink for Heard {
    fn fault(&self, fault: Fault) {
        self.0.lock().push(fault);
    }
}
impl PowerSink for Heard {
    fn request(&self, _: PowerRequest) {}
}
impl VcpuSink for Heard {
    fn event(&self, _: u32, event: VcpuEvent) {
        self.1.lock().as_ref().unwrap().send(event).unwrap();
    }
}

// The bench ----------------------------------------------------------------------------------

struct Bench {
    machine: Machine,
    script: Scripted,
    heard: Arc<Heard>,
    events: Receiver<VcpuEvent>,
}

const CATALOG: &[&dyn AnyKind] = &[&Erased::<LatchKind>::new()];

fn latch(name: &str, base: u64, config: Value) -> Placement {
    let window = Window {
        region: 0,
        space: Space::Pio,
        len: 2,
        fixed: Some(base),
    };
    let mut placement = Placement {
        name: name.into(),
        kind: "latch".into(),
        windows: BTreeMap::from([(0, base)]),
        ..Placement::default()
    };
    placement.demand.windows.push(window);
    if config.is_null() {
        placement.irqs.insert("intr".into(), 4);
        placement
            .demand
            .irqs
            .insert("intr".into(), IrqDemand::Fixed(4));
    }
    placement.config = config;
    placement
}

fn plan(placements: Vec<Placement>) -> MachinePlan {
    MachinePlan {
        version: 1,
        name: "test".into(),
        topology: CpuSpec {
            count: 1,
            sockets: 1,
            cores: 1,
            threads: 1,
        },
        cpus: vec![CpuPlan {
            index: 0,
            apic_id: 0,
        }],
        ram: RamPlan {
            huge_pages: HugePageSize::Off,
            shared: false,
            prefault: false,
        },
        layout: Layout {
            ram: vec![Range {
                base: 0,
                len: 1 << 20,
            }],
            ..Layout::default()
        },
        intx: Vec::new(),
        placements,
        boot: BootPlan::default(),
    }
}

fn assemble(placements: Vec<Placement>) -> Result<Bench, crate::AssembleError> {
    let (script, heard) = (Scripted::default(), Arc::new(Heard::default()));
    let (tell, events) = channel();
    *heard.1.lock() = Some(tell);
    let ports = Ports {
        faults: heard.clone(),
        power: heard.clone(),
        vcpus: heard.clone(),
        hotplug: heard.clone(),
        backends: &Backends,
    };
    let machine = Machine::assemble(plan(placements), CATALOG, &script, &ports)?;
    Ok(Bench {
        machine,
        script,
        heard,
        events,
    })
}

fn bench() -> Bench {
    let controller = latch("pic", 0x20, json!("controller"));
    assemble(vec![
        controller,
        latch("a", 0x100, Value::Null),
        latch("b", 0x200, Value::Null),
    ])
    .unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

impl Bench {
    /// Lets the guest take `steps`, and waits until it has.
    fn run(&mut self, steps: Vec<Step>) {
        self.script.0.steps.lock().extend(steps);
        if self.machine.is_running() {
            self.script.0.changed.notify_all();
        } else {
            self.machine.start();
        }
        while !self.script.0.steps.lock().is_empty() {
            // The vCPU may have been about to wait when it was notified.
            self.script.0.changed.notify_all();
            std::thread::yield_now();
        }
        self.machine.quiesce(soon()).unwrap().keep();
    }

    fn value(&self, unit: &str) -> Value {
        Json::of(&self.machine)["units"][unit]["value"].clone()
    }
}

#[test]
fn string_output_reaches_the_port_element_by_element_and_input_is_filled() {
    let mut bench = bench();
    bench.run(vec![
        Step::Out(0x100, 1, vec![1, 2, 8]),
        Step::In(0x100, 1, 2),
        Step::In(0x300, 4, 4),
    ]);
    assert_eq!(bench.value("a"), json!(8));
    assert_eq!(*bench.script.0.read.lock(), [vec![8, 8], vec![0xff; 4]]);
}

#[test]
fn a_wire_is_shared_and_ends_of_interrupts_reach_the_controller() {
    let mut bench = bench();
    bench.run(vec![
        Step::Out(0x100, 1, vec![1]),
        Step::Out(0x200, 1, vec![1]),
        Step::Eoi(0x31),
        Step::In(0x21, 1, 1),
    ]);
    // One rise of the shared wire, one end of interrupt.
    assert_eq!(*bench.script.0.read.lock(), [vec![2]]);
}

#[test]
fn exits_are_counted_by_kind_and_one_in_sixty_one_is_timed() {
    let mut bench = bench();
    let steps = (0..130).map(|_| Step::Out(0x100, 1, vec![8]));
    bench.run(steps.chain([Step::Eoi(0x31)]).collect());
    let tree = Json::of(&bench.machine);
    let vcpu = &tree["vcpus"]["0"];
    assert_eq!(
        (&vcpu["exits_pio"], &vcpu["exits_eoi"]),
        (&json!(130), &json!(1))
    );
    assert_eq!(vcpu["pio_time"]["count"], 2);
    assert!(vcpu["pio_time"]["max_ns"].as_u64().unwrap() > 0);
    assert_eq!(vcpu["mmio_time"], json!({"count": 0}));
    assert_eq!(tree["units"]["a"]["window_writes"], 130);
    // The same numbers are on the metrics page, told apart by labels.
    let page = nyx_inspect::Prometheus::of(&bench.machine, &[("vm", "m")]);
    for line in [
        "nyx_vcpu_exits_total{vm=\"m\",vcpu=\"0\",kind=\"pio\"} 130\n",
        "nyx_vcpu_exit_seconds_count{vm=\"m\",vcpu=\"0\",kind=\"pio\"} 2\n",
        "nyx_device_accesses_total{vm=\"m\",unit=\"a\",direction=\"write\"} 130\n",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
}

#[test]
fn a_device_that_panics_is_isolated_and_reported_and_the_machine_goes_on() {
    let mut bench = bench();
    bench.run(vec![
        Step::Out(0x100, 1, vec![0xde]),
        Step::In(0x100, 1, 1),
        Step::Out(0x200, 1, vec![3]),
    ]);
    assert_eq!(*bench.script.0.read.lock(), [vec![0xff]]);
    assert_eq!(bench.value("b"), json!(3));
    let faults = bench.heard.0.lock().clone();
    assert_eq!(
        (&*faults[0].unit, faults[0].kind),
        ("a", FaultKind::Panicked)
    );
    assert!(
        faults[0].what.contains("the guest found a bug"),
        "{faults:?}"
    );
}

#[test]
fn a_stuck_unit_is_named_the_machine_runs_on_and_quarantine_helps() {
    let mut bench = bench();
    bench.run(vec![Step::Out(0x200, 1, vec![1])]);
    bench.machine.start();
    bench
        .script
        .0
        .steps
        .lock()
        .push_back(Step::Out(0x100, 1, vec![0x55]));
    while bench.value("a") != json!(0x55) {
        bench.script.0.changed.notify_all();
        std::thread::yield_now();
    }
    let stuck = bench
        .machine
        .quiesce(Instant::now() + Duration::from_millis(20))
        .err()
        .unwrap();
    assert_eq!(stuck.to_string(), "not quiesced: a");
    assert!(bench.machine.is_running());
    bench.machine.unit("a").unwrap().clear();
    assert!(bench.machine.quiesce(soon()).is_ok());
}

#[test]
fn saved_state_comes_back_on_another_machine_and_gaps_are_named() {
    let mut first = bench();
    first.run(vec![Step::Out(0x100, 1, vec![42])]);
    let blobs = first.machine.quiesce(soon()).unwrap().save().unwrap();
    let mut second = bench();
    second
        .machine
        .quiesce(soon())
        .unwrap()
        .restore(blobs.clone())
        .unwrap();
    assert_eq!(second.value("a"), json!(42));
    assert_eq!(second.script.0.restored.lock()[0].name, "scripted/1");

    let mut missing = blobs.clone();
    missing.remove("b");
    let (unit, error) = second
        .machine
        .quiesce(soon())
        .unwrap()
        .restore(missing)
        .unwrap_err();
    assert_eq!(
        (&*unit, &*error.to_string()),
        ("b", "invalid saved state: missing from the snapshot")
    );
    let mut extra = blobs;
    extra.insert(
        "c".into(),
        Blob {
            name: "latch/1".into(),
            bytes: vec![0xa0],
        },
    );
    let (unit, _) = second
        .machine
        .quiesce(soon())
        .unwrap()
        .restore(extra)
        .unwrap_err();
    assert_eq!(&*unit, "c");
}

#[test]
fn a_machine_restored_in_part_does_not_run_on() {
    let mut bench = bench();
    let blobs = bench.machine.quiesce(soon()).unwrap().save().unwrap();
    bench.machine.start();
    let mut quiesced = bench.machine.quiesce(soon()).unwrap();
    let mut missing = blobs.clone();
    missing.remove("b");
    assert!(quiesced.restore(missing).is_err());
    drop(quiesced);
    assert!(!bench.machine.is_running());
    // A whole one heals it.
    let mut quiesced = bench.machine.quiesce(soon()).unwrap();
    quiesced.restore(blobs).unwrap();
    quiesced.run();
    assert!(bench.machine.is_running());
}

#[test]
fn a_vcpu_whose_thread_panics_is_reported_and_nobody_waits_for_it() {
    let mut bench = bench();
    bench.script.0.steps.lock().push_back(Step::Panic);
    bench.machine.start();
    assert_eq!(
        bench.events.recv_timeout(Duration::from_secs(10)),
        Ok(VcpuEvent::Failed("its thread panicked".into()))
    );
    let quiesced = bench.machine.quiesce(soon()).unwrap();
    let (unit, _) = quiesced.save().unwrap_err();
    assert_eq!(&*unit, "vcpu0");
    let entry = quiesced.machine().set_entry(EntryState::default());
    assert_eq!(entry, Err("there is no vCPU".into()));
}

#[test]
fn reset_reaches_units_and_vcpus_and_dropping_the_guard_resumes() {
    let mut bench = bench();
    bench.run(vec![Step::Out(0x100, 1, vec![42])]);
    bench.machine.start();
    let mut quiesced = bench.machine.quiesce(soon()).unwrap();
    quiesced.reset(ResetKind::Warm).unwrap();
    drop(quiesced);
    assert!(bench.machine.is_running());
    assert_eq!(bench.value("a"), json!(0));
    assert_eq!(*bench.script.0.resets.lock(), 1);
}

#[test]
fn a_vcpu_that_cannot_go_on_says_why_and_rests() {
    for (step, event) in [
        (Step::TripleFault, VcpuEvent::TripleFault),
        (
            Step::Break(1),
            VcpuEvent::Broken(Broken::Internal {
                suberror: 1,
                evidence: vec![7],
            }),
        ),
    ] {
        let mut bench = bench();
        bench.script.0.steps.lock().push_back(step);
        bench.machine.start();
        assert_eq!(
            bench.events.recv_timeout(Duration::from_secs(10)),
            Ok(event)
        );
        assert!(bench.machine.quiesce(soon()).is_ok());
    }
}

#[test]
fn a_device_that_cannot_be_built_is_named_and_nothing_stays() {
    let error = assemble(vec![latch("x", 0x100, json!("refuse"))])
        .err()
        .unwrap();
    assert_eq!(error.to_string(), "x: it would not");
    let overlap = vec![latch("x", 0x100, json!("x")), latch("y", 0x101, json!("y"))];
    let error = assemble(overlap).err().unwrap();
    assert_eq!(error.to_string(), "y: y at 0x101 overlaps x");
    let wired = assemble(vec![latch("x", 0x100, Value::Null)])
        .err()
        .unwrap();
    assert!(wired.to_string().contains("has no controller"), "{wired}");
}
