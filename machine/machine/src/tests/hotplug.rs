//! Devices that come and go.

use super::*;
use crate::{Detach, Detaching, DeviceAttachError};
use nyx_device::{
    BarDemand, BarSpace, Bdf, BlockGeometry, BlockQueue, EjectionSink, FunctionDemand, PciSlots,
};
use nyx_plan::RemoveError;
use nyx_spec::{DeviceSpec, Role};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A medium that knows how often it is open.
struct Medium(Arc<AtomicUsize>);
impl BlockBackend for Medium {
    fn geometry(&self) -> BlockGeometry {
        unreachable!("nobody looks")
    }
    fn open_queue(&self) -> io::Result<Box<dyn BlockQueue>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn describe(&self) -> String {
        "medium".into()
    }
}
impl Drop for Medium {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Media(Arc<AtomicUsize>);
impl BackendOpener for Media {
    fn block(&self, _: &BackendSpec) -> Result<Box<dyn BlockBackend>, BoxError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Medium(self.0.clone())))
    }
    fn net(&self, _: &BackendSpec) -> Result<Box<dyn NetBackend>, BoxError> {
        Err("none".into())
    }
    fn char(&self, _: &str, _: &BackendSpec) -> Result<Box<dyn CharBackend>, BoxError> {
        Err("none".into())
    }
}

/// A PCI device with a medium.
struct Card {
    _medium: Box<dyn BlockBackend>,
    running: bool,
    value: u8,
    stuck: Option<DrainToken>,
}
impl Registers for Card {
    fn read(&mut self, _: Hit, data: &mut [u8]) -> AccessResult {
        data.fill(self.value);
        Ok(())
    }
    fn write(&mut self, _: Hit, data: &[u8]) -> AccessResult {
        self.value = data[0];
        Ok(())
    }
}
impl Lifecycle for Card {
    fn start(&mut self) {
        self.running = true;
    }
    fn stop(&mut self) -> Drain {
        self.running = false;
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
impl Inspect for Card {
    fn inspect(&self, v: &mut dyn Visitor) {
        nyx_inspect::Field::visit(&self.running, "running", v);
        nyx_inspect::Field::visit(&self.value, "value", v);
    }
}
impl Persist for Card {
    type Saved = SavedLatch;
    fn save(&self) -> Result<SavedLatch, SaveError> {
        Ok(SavedLatch { value: self.value })
    }
    fn restore(&mut self, saved: SavedLatch) -> Result<(), RestoreError> {
        self.value = saved.value;
        Ok(())
    }
}
impl Device for Card {}

struct CardKind;
impl DeviceKind for CardKind {
    const KIND: &'static str = "card";
    type Config = Value;
    fn demand(_: &Value, _: Attach) -> Result<Demand, ConfigError> {
        Ok(Demand {
            pci: Some(FunctionDemand {
                vendor: 0x1af4,
                device: 0x1042,
                bars: vec![BarDemand {
                    index: 0,
                    len: 0x1000,
                    space: BarSpace::Memory32,
                    prefetchable: false,
                }],
                intx: true,
                ..FunctionDemand::default()
            }),
            ..Demand::default()
        })
    }
    fn build(config: Value, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let spec = BackendSpec {
            kind: "medium".into(),
            config: Value::Null,
        };
        let medium = wiring.backends.block(&spec)?;
        if config == json!("refuse") {
            return Err("the medium is bad".into());
        }
        Ok(Box::new(Card {
            _medium: medium,
            running: false,
            value: 0,
            stuck: None,
        }))
    }
}

/// The guest ejects the slot whose number it writes.
struct Slots(Arc<PciSlots>);
impl Registers for Slots {
    fn read(&mut self, _: Hit, data: &mut [u8]) -> AccessResult {
        data.fill(self.0.take_news().arrived.trailing_zeros() as u8);
        Ok(())
    }
    fn write(&mut self, _: Hit, data: &[u8]) -> AccessResult {
        self.0.eject(1 << data[0]);
        Ok(())
    }
}
impl Lifecycle for Slots {
    fn reset(&mut self, _: ResetKind) {}
}
impl Inspect for Slots {
    fn inspect(&self, _: &mut dyn Visitor) {}
}
impl Persist for Slots {
    type Saved = SavedLatch;
    fn save(&self) -> Result<SavedLatch, SaveError> {
        Ok(SavedLatch { value: 0 })
    }
    fn restore(&mut self, _: SavedLatch) -> Result<(), RestoreError> {
        Ok(())
    }
}
impl Device for Slots {}

struct SlotsKind;
impl DeviceKind for SlotsKind {
    const KIND: &'static str = "pci-hotplug";
    type Config = Value;
    fn demand(_: &Value, _: Attach) -> Result<Demand, ConfigError> {
        Ok(Demand::default())
    }
    fn build(_: Value, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let slots = wiring.extensions.get().ok_or("no slots")?;
        Ok(Box::new(Slots(slots)))
    }
}

const KINDS: &[&dyn AnyKind] = &[
    &Erased::<LatchKind>::new(),
    &Erased::<CardKind>::new(),
    &Erased::<SlotsKind>::new(),
];

impl EjectionSink for Heard {
    fn ejected(&self) {
        self.2.fetch_add(1, Ordering::SeqCst);
    }
}

struct Site {
    bench: Bench,
    media: Media,
}

fn card(name: &str, config: Value) -> DeviceSpec {
    DeviceSpec {
        name: name.into(),
        kind: "card".into(),
        config,
        role: Role::Other,
        field: "disk".into(),
    }
}

/// The plan of a machine with one card, `boot`, in slot 1.
fn planned() -> MachinePlan {
    let mut slots = latch("pci-hotplug", 0xae00, json!("x"));
    slots.kind = "pci-hotplug".into();
    let mut planned = plan(vec![latch("pic", 0x20, json!("controller")), slots]);
    planned.layout.mmio32 = Range {
        base: 0xc000_0000,
        len: 1 << 20,
    };
    let boot = planned.place(&card("boot", Value::Null), KINDS).unwrap();
    planned.add(boot);
    planned
}

impl Site {
    fn new() -> Self {
        Self::of(planned())
    }

    fn of(plan: MachinePlan) -> Self {
        let (script, heard) = (Scripted::default(), Arc::new(Heard::default()));
        let (tell, events) = channel();
        *heard.1.lock() = Some(tell);
        let media = Media::default();
        let ports = ports(&heard, &media);
        let machine = Machine::assemble(plan, KINDS, &script, &ports).unwrap();
        let bench = Bench {
            machine,
            script,
            heard,
            events,
        };
        Self { bench, media }
    }

    fn attach(&mut self, spec: &DeviceSpec) -> Result<(), DeviceAttachError> {
        let ports = ports(&self.bench.heard, &self.media);
        let attached = self.bench.machine.attach(spec, KINDS, &ports);
        attached.map(|name| assert_eq!(&*name, spec.name))
    }

    fn detach(&mut self, name: &str, how: Detach) -> Result<Detaching, RemoveError> {
        let deadline = Instant::now() + Duration::from_millis(200);
        self.bench.machine.detach(name, how, deadline)
    }

    /// Has the guest eject `slot`, without bringing the machine to rest.
    fn eject(&mut self, slot: u8) {
        let before = self.ejections();
        let step = Step::Out(0xae00, 1, vec![slot]);
        self.bench.script.0.steps.lock().push_back(step);
        while self.ejections() == before {
            self.bench.script.0.changed.notify_all();
            std::thread::yield_now();
        }
    }

    fn ejections(&self) -> usize {
        self.bench.heard.2.load(Ordering::SeqCst)
    }

    fn complete(&mut self) -> Vec<String> {
        let gone = self.bench.machine.complete_ejections(soon());
        gone.iter().map(ToString::to_string).collect()
    }

    fn open_media(&self) -> usize {
        self.media.0.load(Ordering::SeqCst)
    }

    fn answers(&self, device: u8) -> bool {
        let mut vendor = [0; 2];
        let topology = &self.bench.machine.fabric.topology;
        topology.read(Bdf::new(device, 0), 0, &mut vendor);
        vendor == [0xf4, 0x1a]
    }

    fn slots(&self) -> Arc<PciSlots> {
        self.bench.machine.extensions().get().unwrap()
    }

    fn names(&self) -> Vec<String> {
        let placements = &self.bench.machine.plan().placements;
        let names: Vec<_> = placements.iter().map(|p| p.name.clone()).collect();
        let units = self.bench.machine.view();
        assert!(names.iter().all(|n| units.units().contains_key(&**n)));
        assert_eq!(names.len(), units.units().len());
        names[2..].to_vec()
    }

    fn card(&self, name: &str) -> Value {
        Json::of(&self.bench.machine)["units"][name]["device"].clone()
    }
}

fn ports<'p>(heard: &Arc<Heard>, media: &'p Media) -> Ports<'p> {
    Ports {
        faults: heard.clone(),
        power: heard.clone(),
        vcpus: heard.clone(),
        hotplug: heard.clone(),
        backends: media,
    }
}

#[test]
fn a_device_comes_to_a_running_machine_and_leaves_when_the_guest_lets_go() {
    let mut site = Site::new();
    site.bench.machine.start();
    for round in 1..4 {
        site.attach(&card("disk", Value::Null)).unwrap();
        assert!(site.bench.machine.is_running());
        assert_eq!(site.names(), ["boot", "disk"]);
        assert!(site.answers(2));
        assert_eq!(site.card("disk")["running"], json!(true));
        assert_eq!(site.open_media(), 2);
        assert_eq!(site.slots().occupied(), 0b110);

        assert_eq!(site.detach("disk", Detach::AskGuest), Ok(Detaching::Asked));
        assert_eq!(site.slots().take_news().asked, 0b100);
        assert!(site.complete().is_empty(), "the guest has not let go yet");
        let leaving: Vec<_> = site
            .bench
            .machine
            .leaving()
            .map(|n| n.to_string())
            .collect();
        assert_eq!(leaving, ["disk"]);

        site.eject(2);
        assert_eq!(site.ejections(), round);
        assert_eq!(site.complete(), ["disk"]);
        assert!(site.complete().is_empty());
        assert_eq!(site.names(), ["boot"]);
        assert!(!site.answers(2));
        assert_eq!((site.open_media(), site.slots().occupied()), (1, 0b10));
        assert_eq!(site.bench.machine.leaving().count(), 0);
        let gone = site.detach("disk", Detach::AskGuest);
        assert_eq!(gone, Err(RemoveError::Unknown("disk".into())));
    }
}

#[test]
fn what_was_there_at_the_start_may_leave_and_the_platform_may_not() {
    let mut site = Site::new();
    site.bench.machine.start();
    site.eject(1);
    assert_eq!(site.complete(), ["boot"], "the guest may do it by itself");
    assert_eq!(site.open_media(), 0);
    for how in [Detach::AskGuest, Detach::Force] {
        let refused = site.detach("pic", how).unwrap_err();
        assert_eq!(refused, RemoveError::Platform("pic".into()));
    }
    // Its slot is the first one that is free.
    site.attach(&card("other", Value::Null)).unwrap();
    assert!(site.answers(1));
}

#[test]
fn a_device_that_cannot_be_built_leaves_nothing() {
    let mut site = Site::new();
    site.bench.machine.start();
    let before = site.bench.machine.plan().clone();
    let refused = site.attach(&card("disk", json!("refuse"))).unwrap_err();
    assert_eq!(refused.to_string(), "disk: the medium is bad");
    let refused = site.attach(&card("boot", Value::Null)).unwrap_err();
    let reason = "disk.name: \"boot\" is the name of another unit; choose another";
    assert_eq!(refused.to_string(), reason);
    assert_eq!(site.bench.machine.plan(), &before);
    assert_eq!((site.names().len(), site.open_media()), (1, 1));
    assert_eq!(site.slots().take_news().arrived, 0);
    assert!(!site.answers(2));
}

#[test]
fn a_surprise_takes_what_is_busy_and_what_is_broken_alike() {
    let mut site = Site::new();
    site.attach(&card("broken", Value::Null)).unwrap();
    site.bench.machine.start();
    site.bench.machine.unit("broken").unwrap().clear();
    let going = site.detach("broken", Detach::Force);
    assert!(matches!(going, Ok(Detaching::Going(_))), "{going:?}");
    assert!(!site.answers(2));
    assert!(site.complete().is_empty(), "it has its moment");
    // Insisting takes the moment away.
    assert_eq!(site.detach("broken", Detach::Force), Ok(Detaching::Gone));
    // Busy: its BAR is where the plan has it, and it will not drain.
    let at = site.bench.machine.plan().in_slot(1).unwrap().bars[&0];
    site.bench.machine.fabric.mmio.write(at, &[0x55]);
    assert_eq!(site.card("boot")["value"], json!(0x55));
    let going = site.detach("boot", Detach::Force);
    assert!(matches!(going, Ok(Detaching::Going(_))), "{going:?}");
    let mut byte = [0];
    site.bench.machine.fabric.mmio.read(at, &mut byte);
    assert_eq!((byte, site.answers(1)), ([0x55], false), "it still works");
    let begun = Instant::now();
    assert_eq!(site.detach("boot", Detach::Force), Ok(Detaching::Gone));
    assert!(begun.elapsed() < Duration::from_secs(5));
    site.bench.machine.fabric.mmio.read(at, &mut byte);
    assert_eq!(byte, [0xff], "nothing is mapped there any more");
    assert_eq!(site.slots().take_news().vanished, 0b110);
    assert_eq!((site.names().len(), site.open_media()), (0, 0));
    assert!(site.bench.machine.quiesce(soon()).is_ok());
}

#[test]
fn a_machine_at_rest_takes_devices_and_starts_them_with_the_others() {
    let mut site = Site::new();
    site.attach(&card("disk", Value::Null)).unwrap();
    assert_eq!(site.card("disk")["running"], json!(false));
    site.bench.machine.start();
    assert_eq!(site.card("disk")["running"], json!(true));
    site.bench.machine.quiesce(soon()).unwrap().keep();
    assert_eq!(site.detach("disk", Detach::Force), Ok(Detaching::Gone));
    assert_eq!(site.detach("boot", Detach::AskGuest), Ok(Detaching::Asked));
    assert!(!site.bench.machine.is_running());
    assert_eq!(site.names(), ["boot"]);
}

#[test]
fn a_reset_completes_removals_and_forgets_those_that_were_withdrawn() {
    let mut site = Site::new();
    for name in ["a", "b", "c"] {
        site.attach(&card(name, Value::Null)).unwrap();
    }
    site.bench.machine.start();
    site.detach("a", Detach::AskGuest).unwrap();
    site.detach("b", Detach::AskGuest).unwrap();
    assert!(site.bench.machine.retract("b"));
    assert!(!site.bench.machine.retract("b"));
    assert_eq!(site.slots().take_news().asked, 0b100);
    // The guest ejects one that nobody has heard of when the reset comes.
    site.eject(4);
    let mut quiesced = site.bench.machine.quiesce(soon()).unwrap();
    quiesced.reset(ResetKind::Warm).unwrap();
    drop(quiesced);
    assert!(site.bench.machine.is_running());
    let gone: Vec<_> = site.bench.machine.take_departed();
    let gone: Vec<_> = gone.iter().map(|n| &**n).collect();
    assert_eq!(gone, ["c", "a"]);
    assert!(site.bench.machine.take_departed().is_empty());
    assert_eq!(site.names(), ["boot", "b"]);
    assert_eq!(site.slots().occupied(), 0b1010);
    assert!(site.complete().is_empty());
}

#[test]
fn a_changed_machine_is_restored_from_its_plan() {
    let mut first = Site::new();
    first.bench.machine.start();
    first.attach(&card("disk", Value::Null)).unwrap();
    first.detach("boot", Detach::Force).unwrap();
    first.detach("boot", Detach::Force).unwrap();
    first
        .bench
        .machine
        .unit("disk")
        .unwrap()
        .reset(ResetKind::Cold);
    let at = first.bench.machine.plan().in_slot(2).unwrap().bars[&0];
    first.bench.machine.fabric.mmio.write(at, &[7]);
    let blobs = first.bench.machine.quiesce(soon()).unwrap().save().unwrap();
    let mut second = Site::of(first.bench.machine.plan().clone());
    assert_eq!(second.names(), ["disk"]);
    let mut quiesced = second.bench.machine.quiesce(soon()).unwrap();
    quiesced.restore(blobs).unwrap();
    drop(quiesced);
    assert_eq!(second.card("disk")["value"], json!(7));
    assert_eq!(second.slots().occupied(), 0b100);
}
