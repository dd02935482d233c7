//! The suite itself: a sound device passes, and each way of being broken is found by the check that
//! is there for it.

use crate::conformance::{self as suite, Verdict};
use crate::example::Latch;
use crate::{Bench, Medium, Random, Subject, Wire, conformance, json};
use nyx_device::{
    AccessResult, Attach, BackendOpener, BackendSpec, BarDemand, BarSpace, BlockOp, BlockRequest,
    BoxError, ConfigError, Demand, Device, DeviceKind, Drain, DrainToken, FaultKind, Fragment,
    FunctionDemand, Hit, IrqDemand, IrqLine, Lifecycle, PciPort, Placement, Registers, ResetKind,
    Space, Threads, Timer, VmClock, Window, Wiring,
};
use nyx_inspect::{Inspect, Leaf, Visitor};
use nyx_state::{Blob, Persist, RestoreError, SaveError, Saved, minicbor};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vm_memory::{GuestAddress, Permissions};

conformance!(the_example_conforms, Latch, json!({}));

/// How a device is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Flaw {
    #[default]
    None,
    ChangingDemand,
    EmptyWindow,
    ChangingAml,
    LooseConfiguration,
    ResetKeepsRegister,
    ResetCounts,
    ResetKeepsWire,
    SaveForgets,
    RestoreForgetsWire,
    RestoreKeepsOld,
    RestoreIndexes,
    RestoreOverflowsLater,
    ReadsPastEnd,
    PanicsOnOddWidth,
    WorkerPanics,
    NeverDrains,
    WorksWhileStopped,
    WireOutlivesIt,
    TimerWhileIdle,
    BadName,
    TakesAnything,
}

/// A register of eight bytes, a wire and a timer, broken on demand.
struct Flawed {
    flaw: Flaw,
    irq: Option<IrqLine>,
    timer: Timer,
    threads: Threads,
    running: bool,
    stuck: Vec<DrainToken>,
    value: [u8; 8],
    count: u8,
}

impl Flawed {
    fn drive(&self) {
        if let Some(irq) = &self.irq {
            irq.set(self.value[0] & 1 != 0);
        }
    }
}

impl Registers for Flawed {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        let start = usize::try_from(at.offset).unwrap_or(usize::MAX);
        let part = if self.flaw == Flaw::ReadsPastEnd {
            &self.value[start..start + 2]
        } else {
            let end = start.saturating_add(data.len());
            self.value
                .get(start..end)
                .ok_or(nyx_device::BadAccess::NoRegister)?
        };
        data.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        Ok(())
    }
    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        assert!(self.flaw != Flaw::PanicsOnOddWidth || data.len() != 3);
        let start = usize::try_from(at.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(data.len());
        let part = self
            .value
            .get_mut(start..end)
            .ok_or(nyx_device::BadAccess::NoRegister)?;
        part.copy_from_slice(data);
        if self.flaw == Flaw::RestoreOverflowsLater {
            assert!(self.count < 200, "a count that no guest can reach");
        }
        if self.flaw == Flaw::WorkerPanics {
            let worker = self.threads.spawn("w", || panic!("deliberately")).unwrap();
            let _ = worker.join();
        }
        self.drive();
        Ok(())
    }
}

impl Lifecycle for Flawed {
    fn start(&mut self) {
        self.running = true;
        if self.flaw == Flaw::TimerWhileIdle {
            self.timer.arm(Duration::from_secs(3600));
        }
    }
    fn stop(&mut self) -> Drain {
        self.running = false;
        if self.flaw == Flaw::NeverDrains {
            let (drain, token) = Drain::pending();
            self.stuck.push(token);
            return drain;
        }
        Drain::idle()
    }
    fn reset(&mut self, _: ResetKind) {
        match self.flaw {
            Flaw::ResetKeepsRegister => self.value[..7].fill(0),
            Flaw::ResetCounts => (self.value, self.count) = ([0; 8], self.count.wrapping_add(1)),
            _ => (self.value, self.count) = ([0; 8], 0),
        }
        self.timer.disarm();
        if self.flaw != Flaw::ResetKeepsWire {
            self.drive();
        }
    }
    fn wake(&mut self) {
        if self.running || self.flaw == Flaw::WorksWhileStopped {
            self.value[7] = self.value[7].wrapping_add(1);
        }
    }
}

#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct SavedFlawed {
    #[n(0)]
    value: [u8; 8],
    #[n(1)]
    count: u8,
}

impl Saved for SavedFlawed {
    const NAME: &'static str = "flawed/1";
}

impl Persist for Flawed {
    type Saved = SavedFlawed;
    fn save(&self) -> Result<SavedFlawed, SaveError> {
        Ok(SavedFlawed {
            value: self.value,
            count: self.count,
        })
    }
    fn restore(&mut self, saved: SavedFlawed) -> Result<(), RestoreError> {
        match self.flaw {
            Flaw::SaveForgets => self.value[..6].copy_from_slice(&saved.value[..6]),
            Flaw::RestoreKeepsOld => {
                let pairs = self.value.iter_mut().zip(saved.value);
                pairs.for_each(|(old, new)| *old = if new == 0 { *old } else { new });
            }
            Flaw::RestoreIndexes => self.value[usize::from(saved.count)] = 1,
            _ => self.value = saved.value,
        }
        self.count = saved.count;
        if self.flaw != Flaw::RestoreForgetsWire {
            self.drive();
        }
        Ok(())
    }
}

/// A PCI function of one BAR whose first bit drives the interrupt pin.
struct Function {
    port: Arc<dyn PciPort>,
    value: u8,
}

impl Function {
    fn drive(&self) {
        self.port.set_intx(self.value & 1 != 0);
    }
}

impl Registers for Function {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        nyx_device::read_register(self.value.into(), 1, at.offset as usize, data)
    }
    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        match (at, data) {
            (
                Hit {
                    region: nyx_device::RegionId(2),
                    offset: 0,
                },
                [byte],
            ) => self.value = *byte,
            _ => return Err(nyx_device::BadAccess::NoRegister),
        }
        self.drive();
        Ok(())
    }
}
impl Lifecycle for Function {
    fn reset(&mut self, _: ResetKind) {
        self.value = 0;
        self.drive();
    }
}
impl Inspect for Function {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.leaf("value", Leaf::Hex(self.value.into()));
    }
}
impl Persist for Function {
    type Saved = SavedFunction;
    fn save(&self) -> Result<SavedFunction, SaveError> {
        Ok(SavedFunction { value: self.value })
    }
    fn restore(&mut self, saved: SavedFunction) -> Result<(), RestoreError> {
        self.value = saved.value;
        self.drive();
        Ok(())
    }
}
impl Device for Function {}

#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct SavedFunction {
    #[n(0)]
    value: u8,
}
impl Saved for SavedFunction {
    const NAME: &'static str = "function/1";
}

impl DeviceKind for Function {
    const KIND: &'static str = "function";
    type Config = crate::example::LatchConfig;
    fn demand(_: &Self::Config, attach: Attach) -> Result<Demand, ConfigError> {
        assert_eq!(attach, Attach::Pci);
        let space = BarSpace::Memory64;
        let bars = vec![BarDemand {
            index: 2,
            len: 4096,
            space,
            prefetchable: true,
        }];
        let pci = FunctionDemand {
            bars,
            intx: true,
            msix_vectors: 2,
            msix_bar: 1,
            ..FunctionDemand::default()
        };
        Ok(Demand {
            pci: Some(pci),
            ..Demand::default()
        })
    }
    fn build(_: Self::Config, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        assert!(wiring.lines.is_empty() && wiring.placement.irqs.contains_key("intx"));
        assert!(wiring.placement.bars.contains_key(&1) && wiring.placement.bdf.is_some());
        Ok(Box::new(Self {
            port: wiring.pci()?,
            value: 0,
        }))
    }
}

conformance!(a_pci_function_conforms, Function, json!({}), Attach::Pci);

/// A device whose [`Persist`] does not look at the blob's name.
struct Careless(Flawed);

impl Inspect for Flawed {
    fn inspect(&self, v: &mut dyn Visitor) {
        let name = if self.flaw == Flaw::BadName {
            "Bad Name"
        } else {
            "count"
        };
        v.leaf(name, Leaf::Number(self.count.into()));
    }
}

impl Device for Flawed {}

impl Drop for Flawed {
    fn drop(&mut self) {
        if self.flaw == Flaw::WireOutlivesIt {
            std::mem::forget(self.irq.take());
        }
    }
}

impl Registers for Careless {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        self.0.read(at, data)
    }
    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        self.0.write(at, data)
    }
}
impl Lifecycle for Careless {
    fn reset(&mut self, kind: ResetKind) {
        self.0.reset(kind);
    }
}
impl Inspect for Careless {
    fn inspect(&self, v: &mut dyn Visitor) {
        self.0.inspect(v);
    }
}
impl nyx_state::PersistBlob for Careless {
    fn save_blob(&self) -> Result<Blob, SaveError> {
        nyx_state::PersistBlob::save_blob(&self.0)
    }
    fn restore_blob(&mut self, _: &Blob) -> Result<(), RestoreError> {
        Ok(())
    }
}
impl Device for Careless {}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    flaw: Flaw,
}

#[derive(Serialize, Deserialize)]
struct LooseConfig {
    flaw: Flaw,
}

static CALLS: AtomicU64 = AtomicU64::new(1);

fn demand(flaw: Flaw) -> Demand {
    let len = match flaw {
        Flaw::ChangingDemand => 8 + CALLS.fetch_add(1, Ordering::Relaxed),
        Flaw::EmptyWindow => 0,
        _ => 8,
    };
    Demand {
        windows: vec![Window {
            region: 0,
            space: Space::Mmio,
            len,
            fixed: None,
        }],
        irqs: [("intr".into(), IrqDemand::Any)].into(),
        ..Demand::default()
    }
}

fn build(flaw: Flaw, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
    let device = Flawed {
        flaw,
        irq: Some(wiring.irq("intr")?),
        timer: wiring.timer(),
        threads: wiring.threads.clone(),
        running: false,
        stuck: Vec::new(),
        value: [0; 8],
        count: 0,
    };
    Ok(if flaw == Flaw::TakesAnything {
        Box::new(Careless(device))
    } else {
        Box::new(device)
    })
}

/// The kind of [`Flawed`] devices.
struct FlawedKind;
impl DeviceKind for FlawedKind {
    const KIND: &'static str = "flawed";
    type Config = Config;
    fn demand(config: &Config, _: Attach) -> Result<Demand, ConfigError> {
        Ok(demand(config.flaw))
    }
    fn build(config: Config, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        build(config.flaw, wiring)
    }
    fn acpi(config: &Config, _: &Placement) -> Vec<Fragment> {
        let calls = CALLS.fetch_add(1, Ordering::Relaxed) as u8;
        let changes = config.flaw == Flaw::ChangingAml;
        vec![Fragment::SystemBus(vec![if changes { calls } else { 0 }])]
    }
}

/// The same, without refusing unknown keys.
struct LooseKind;
impl DeviceKind for LooseKind {
    const KIND: &'static str = "loose";
    type Config = LooseConfig;
    fn demand(config: &LooseConfig, _: Attach) -> Result<Demand, ConfigError> {
        Ok(demand(config.flaw))
    }
    fn build(config: LooseConfig, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        build(config.flaw, wiring)
    }
}

type Check = fn(&Subject) -> Verdict;

const CHECKS: [(&str, Check); 12] = [
    ("demand", suite::demand_is_deterministic),
    ("configuration", suite::unknown_configuration_is_refused),
    ("acpi", suite::acpi_is_deterministic),
    ("reset", suite::reset_is_idempotent),
    ("restore", suite::restore_is_the_inverse_of_save),
    ("garbage", suite::restore_survives_garbage),
    ("access", suite::every_access_is_answered_or_refused),
    ("drain", suite::stop_drains_in_time),
    ("drop", suite::no_wire_stays_high_after_drop),
    ("inspect", suite::inspect_is_valid),
    ("foreign", suite::a_foreign_blob_is_refused),
    ("idle", suite::an_idle_device_sleeps),
];

fn check(flaw: Flaw, name: &str) -> Verdict {
    let config = json!({ "flaw": flaw });
    let subject = match flaw {
        Flaw::LooseConfiguration => Subject::new::<LooseKind>(config, Attach::Pci),
        _ => Subject::new::<FlawedKind>(config, Attach::Pci),
    };
    let (_, check) = CHECKS.iter().find(|(check, _)| *check == name).unwrap();
    check(&subject)
}

#[test]
fn a_sound_device_passes_every_check() {
    for (name, _) in CHECKS {
        assert_eq!(check(Flaw::None, name), Ok(()), "{name}");
    }
}

#[test]
fn every_flaw_is_found_by_its_check() {
    for (flaw, name, finding) in [
        (Flaw::ChangingDemand, "demand", "two different demands"),
        (Flaw::EmptyWindow, "demand", "a window is empty"),
        (Flaw::ChangingAml, "acpi", "two builds of the AML differ"),
        (
            Flaw::LooseConfiguration,
            "configuration",
            "an unknown configuration key was accepted",
        ),
        (
            Flaw::ResetKeepsRegister,
            "reset",
            "does not lead back to the fresh state",
        ),
        (
            Flaw::ResetCounts,
            "reset",
            "a second Warm reset changed the state",
        ),
        (
            Flaw::ResetKeepsWire,
            "reset",
            "a cold reset leaves a wire as it was",
        ),
        (
            Flaw::SaveForgets,
            "restore",
            "save, restore, save is not the identity",
        ),
        (Flaw::RestoreKeepsOld, "restore", "leaves traces of another"),
        (
            Flaw::RestoreForgetsWire,
            "restore",
            "are high after restore",
        ),
        (
            Flaw::RestoreIndexes,
            "garbage",
            "panicked: index out of bounds",
        ),
        (
            Flaw::RestoreOverflowsLater,
            "garbage",
            "a count that no guest can reach",
        ),
        (Flaw::ReadsPastEnd, "access", "panicked: range end index"),
        (
            Flaw::PanicsOnOddWidth,
            "access",
            "writing 3 bytes at region 0 offset 0x0 panicked",
        ),
        (
            Flaw::WorkerPanics,
            "access",
            "a worker failed: deliberately",
        ),
        (
            Flaw::WorksWhileStopped,
            "drain",
            "a stopped device changed when woken",
        ),
        (Flaw::WireOutlivesIt, "drop", "stay high"),
        (
            Flaw::TimerWhileIdle,
            "idle",
            "1 timers are armed in an idle device",
        ),
        (
            Flaw::BadName,
            "inspect",
            "\"Bad Name\" is no name for the inspect tree",
        ),
        (
            Flaw::TakesAnything,
            "foreign",
            "a blob of another kind was not refused as such",
        ),
    ] {
        let found = check(flaw, name).expect_err(&format!("{flaw:?} passed {name:?}"));
        assert!(found.contains(finding), "{flaw:?}: {found}");
    }
}

#[test]
fn a_device_that_never_drains_is_found() {
    // On its own, since the check waits for its deadline.
    let found = check(Flaw::NeverDrains, "drain").unwrap_err();
    assert!(found.contains("did not drain within"), "{found}");
}

#[test]
fn the_same_seed_gives_the_same_numbers() {
    let numbers = |seed| {
        let mut random = Random::new(seed);
        (0..4).map(|_| random.word()).collect::<Vec<_>>()
    };
    assert_eq!(numbers(7), numbers(7));
    assert_ne!(numbers(7), numbers(8));
    let mut random = Random::new(0);
    assert!((0..1000).all(|_| random.below(10) < 10));
}

fn spec(kind: &str) -> BackendSpec {
    BackendSpec {
        kind: kind.into(),
        config: json!({}),
    }
}

#[test]
fn a_console_has_room_for_what_the_test_says() {
    let bench = Bench::new::<Latch>(json!({}));
    let console = bench.consoles.at("a");
    let mut near = bench.char("a", &spec("a")).unwrap();
    console.set_room(Some(3));
    assert_eq!(near.write(b"hello").unwrap(), 3);
    assert_eq!(near.write(b"lo").unwrap_err().kind(), ErrorKind::WouldBlock);
    console.type_in(b"xyz");
    let mut two = [0; 2];
    assert_eq!((near.read(&mut two).unwrap(), two), (2, *b"xy"));
    assert_eq!(near.read(&mut two).unwrap(), 1);
    assert_eq!(
        near.read(&mut two).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    console.hang_up();
    assert_eq!(near.read(&mut two).unwrap(), 0);
    assert_eq!(console.take_output(), b"hel");
}

#[test]
fn a_console_wakes_a_plugged_device() {
    let bench = Bench::new::<FlawedKind>(json!({"flaw": Flaw::None}));
    let console = bench.consoles.at("a");
    let waker = bench.waker.clone();
    bench
        .char("a", &spec("a"))
        .unwrap()
        .notify(Box::new(move || waker.wake()))
        .unwrap();
    let slot = bench.plug(bench.build::<FlawedKind>());
    slot.with(|device| device.start());
    console.ring();
    console.ring();
    let mut data = [0; 8];
    slot.with(|device| device.read(Hit::new(0, 0), &mut data))
        .unwrap()
        .unwrap();
    assert_eq!(data[7], 2);
}

#[test]
fn a_disk_remembers_and_fails_on_demand() {
    let medium = Medium::of((0..2048).map(|i| i as u8).collect());
    let mut queue = medium.backend().open_queue().unwrap();
    let bench = Bench::new::<Latch>(json!({}));
    let view = bench.dma.view();
    let mut run = |offset, len: usize, op: fn(nyx_memory::PinnedBuffers) -> BlockOp| {
        let mut buffers = view.buffers();
        view.pin(&mut buffers, GuestAddress(0x1000), len, Permissions::Write)
            .unwrap();
        queue.submit(BlockRequest {
            id: 9,
            offset,
            op: op(buffers),
        });
        queue.kick().unwrap();
        let mut done = Vec::new();
        queue.completions(&mut done);
        assert_eq!((done.len(), done[0].id), (1, 9));
        done.remove(0)
    };
    let done = run(1024, 512, BlockOp::Read);
    let mut back = [0; 512];
    done.buffers.unwrap().read(&mut back);
    assert_eq!(back[..], medium.bytes()[1024..1536]);
    assert!(run(512, 512, BlockOp::Write).result.is_ok());
    assert_eq!(medium.bytes()[512..1024], back);
    assert!(
        run(1536, 1024, BlockOp::Read).result.is_err(),
        "beyond the end"
    );
    assert!(run(u64::MAX, 512, BlockOp::Read).result.is_err());
    assert!(run(0, 0, |_| BlockOp::Flush).result.is_ok());
    assert_eq!((medium.flushes(), medium.requests()), (1, 5));
    assert!(run(0, 0, |_| BlockOp::Discard { len: 512 }).result.is_ok());
    assert_eq!(medium.bytes()[..512], [0; 512]);
    medium.set_failing(true);
    assert!(run(0, 512, BlockOp::Read).result.is_err());
}

#[test]
fn a_wire_carries_frames_both_ways() {
    let wire = Wire::default();
    let mut queues = wire.backend().take_queues().unwrap();
    let queue = &mut queues[0];
    let mut bytes = [0; 64];
    assert_eq!(
        queue.receive_bytes(&mut bytes).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert!(wire.send(b"ping"));
    assert_eq!(queue.receive_bytes(&mut bytes).unwrap(), 4);
    assert!(wire.send(&[7; 100]));
    assert_eq!(
        queue.receive_bytes(&mut bytes).unwrap_err().kind(),
        ErrorKind::InvalidData
    );
    let bench = Bench::new::<Latch>(json!({}));
    let view = bench.dma.view();
    let mut buffers = view.buffers();
    view.pin(&mut buffers, GuestAddress(0x1000), 60, Permissions::Write)
        .unwrap();
    buffers.write(b"pong");
    queue.send(&buffers).unwrap();
    assert_eq!(wire.receive().unwrap()[..4], *b"pong");
    assert_eq!(wire.receive(), None);
}

#[test]
fn a_bench_places_and_records() {
    let bench = Bench::new::<FlawedKind>(json!({"flaw": Flaw::None}));
    assert_eq!(bench.placement.windows[&0] % 0x1000, 0);
    let pin = bench.placement.irqs["intr"];
    let mut device = bench.build::<FlawedKind>();
    device.write(Hit::new(0, 0), &[1]).unwrap();
    assert!(bench.pins.is_high(pin));
    drop(device);
    assert_eq!(bench.pins.take_changes(), [(pin, true), (pin, false)]);
    bench.fault_port().report(FaultKind::Backend, "gone");
    assert_eq!(bench.faults.take()[0].what, "gone");
    bench.pass(Duration::from_millis(1500));
    assert_eq!(bench.clock.now(), Duration::from_millis(1500));
    let clock: &VmClock = &bench.clock;
    assert_eq!(clock.wall(), Duration::new(1_772_366_401, 750_000_000));
}
