//! What every device must do, whatever it is.
//!
//! Each check returns what is wrong with the device, in one sentence; [`conformance!`] makes a test
//! of each. Checks know nothing of the device but its [`Demand`](nyx_device::Demand).

use crate::{Bench, RAM_LEN, Random, cbor};
use nyx_device::{
    AnyKind, Attach, Device, DeviceKind, Drain, Erased, Extensions, FaultKind, Hit, ResetKind,
};
use nyx_inspect::{Json, Prometheus};
use nyx_state::{Blob, RestoreError};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What a check found.
pub type Verdict = Result<(), String>;

/// How long a stopping device may take.
const DRAIN: Duration = Duration::from_secs(5);
/// Accesses in one storm.
const STORM: usize = 600;
/// Storms of a check.
const SEEDS: u64 = 12;
/// Hostile states that are restored.
const GARBAGE: u64 = 2500;
/// A device with threads may take long for each: most of them will do, too.
const PATIENCE: Duration = Duration::from_secs(4);
/// Offsets of a window up to this length are all tried.
const WHOLE: u64 = 2048;
/// Widths a vCPU can produce, and those that split accesses leave behind.
const WIDTHS: [usize; 8] = [1, 2, 4, 8, 3, 5, 6, 7];

/// The kind under test, how it is configured and how it is attached.
pub struct Subject {
    kind: Box<dyn AnyKind>,
    config: serde_json::Value,
    attach: Attach,
    extensions: Box<dyn Fn(&mut Extensions)>,
}

impl Subject {
    /// `K`, configured by `config`.
    pub fn new<K: DeviceKind>(config: serde_json::Value, attach: Attach) -> Self {
        let kind = Box::new(Erased::<K>::new());
        Self {
            kind,
            config,
            attach,
            extensions: Box::new(|_| ()),
        }
    }

    /// The same, on a platform that offers what `offer` puts there.
    pub fn with_extensions(mut self, offer: impl Fn(&mut Extensions) + 'static) -> Self {
        self.extensions = Box::new(offer);
        self
    }

    fn bench(&self) -> Bench {
        let mut bench = Bench::of(&*self.kind, self.config.clone(), self.attach);
        (self.extensions)(&mut bench.extensions);
        bench
    }

    fn built(&self) -> (Bench, Box<dyn Device>) {
        let bench = self.bench();
        let device = bench.build_kind(&*self.kind);
        (bench, device)
    }

    /// A device that a guest has maltreated, quiesced.
    fn stormed(&self, seed: u64) -> Result<(Bench, Box<dyn Device>), String> {
        let (bench, mut device) = self.built();
        device.start();
        storm(&bench, &mut *device, &mut Random::new(seed), STORM);
        settle(&mut *device, seed)?;
        sound(&bench, seed)?;
        Ok((bench, device))
    }
}

/// Fails the running test with what a check found.
pub fn pass(verdict: Verdict) {
    if let Err(what) = verdict {
        #[expect(clippy::panic, reason = "this is how a test fails")]
        {
            panic!("{what}");
        }
    }
}

/// Where the guest can reach the device: region and length.
fn windows(bench: &Bench) -> Vec<(u8, u64)> {
    let demand = &bench.placement.demand;
    let fixed = demand.windows.iter().map(|w| (w.region, w.len));
    // The MSI-X BAR belongs to the function, unless the device has registers in it as well.
    let bars = demand
        .pci
        .iter()
        .flat_map(|p| p.bars.iter().map(|b| (b.index, b.len)));
    fixed.chain(bars).filter(|(_, len)| *len != 0).collect()
}

/// A random access that lies within the window.
fn aim(random: &mut Random, windows: &[(u8, u64)]) -> (Hit, usize) {
    let (region, len) = random.pick(windows);
    let width = if random.below(4) == 0 {
        random.pick(&WIDTHS)
    } else {
        random.pick(&[1, 2, 4])
    };
    let width = width.min(usize::try_from(len).unwrap_or(usize::MAX));
    // The first registers of a window are where most devices keep theirs.
    let span = if random.below(2) == 0 {
        len.min(0x80)
    } else {
        len
    };
    let mut offset = random.below(span.max(1));
    if random.below(4) != 0 {
        offset -= offset % width.next_power_of_two() as u64;
    }
    (Hit::new(region, offset.min(len - width as u64)), width)
}

/// What a hostile guest and an unlucky world do to a device.
fn storm(bench: &Bench, device: &mut dyn Device, random: &mut Random, count: usize) {
    let windows = windows(bench);
    let mut data = [0; 8];
    for _ in 0..count {
        match random.below(24) {
            0 => device.wake(),
            1 => bench.pass(Duration::from_micros(random.below(900_000))),
            2 => interrupt(device, random),
            3 => capability(device, random),
            4 => {
                let mut bytes = [0; 20];
                random.fill(&mut bytes);
                bench.consoles.far_ends().iter().for_each(|console| {
                    console.type_in(&bytes);
                    console.set_room((random.below(2) == 0).then_some(3));
                });
                device.wake();
            }
            _ if windows.is_empty() => device.wake(),
            5..=12 => {
                let (hit, width) = aim(random, &windows);
                let _ = device.read(hit, &mut data[..width]);
            }
            _ => {
                let (hit, width) = aim(random, &windows);
                random.fill(&mut data);
                let _ = device.write(hit, &data[..width]);
            }
        }
    }
}

fn interrupt(device: &mut dyn Device, random: &mut Random) {
    if let Some(controller) = device.as_irq_controller() {
        match random.below(3) {
            0 => controller.end_of_interrupt(random.word() as u8),
            _ => controller.set_level(random.below(40) as u32, random.below(2) == 0),
        }
    }
}

fn capability(device: &mut dyn Device, random: &mut Random) {
    if let Some(function) = device.as_pci_function() {
        let bodies = function.vendor_capabilities();
        let index = random.below(bodies.len() as u64 + 1) as usize;
        let offset = random.below(24) as usize;
        let mut data = [0; 4];
        let width = random.pick(&[1, 2, 4]);
        random.fill(&mut data);
        match random.below(3) {
            0 => function.bus_master(random.below(2) == 0),
            1 => {
                function.read_capability(index, offset, &mut data[..width]);
            }
            _ => {
                function.write_capability(index, offset, &data[..width]);
            }
        }
    }
}

fn lower_pins(device: &mut dyn Device) {
    if let Some(controller) = device.as_irq_controller() {
        (0..40).for_each(|pin| controller.set_level(pin, false));
    }
}

fn settle(device: &mut dyn Device, seed: u64) -> Verdict {
    let drain: Drain = device.stop();
    drain
        .wait(Instant::now() + DRAIN)
        .map_err(|_| format!("seed {seed}: the device did not drain within {DRAIN:?}"))
}

/// No worker of the device panicked behind our back.
fn sound(bench: &Bench, seed: u64) -> Verdict {
    let mut faults = bench.faults.take().into_iter();
    match faults.find(|f| matches!(f.kind, FaultKind::Panicked | FaultKind::Stuck)) {
        Some(fault) => Err(format!("seed {seed}: a worker failed: {}", fault.what)),
        None => Ok(()),
    }
}

fn save(device: &dyn Device) -> Result<Blob, String> {
    device
        .save_blob()
        .map_err(|e| format!("a quiesced device {e}"))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).into(),
        (_, Some(text)) => text.clone(),
        _ => "no message".into(),
    }
}

/// Runs `body` and turns a panic into a finding.
fn calmly<R>(what: &str, body: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(body))
        .map_err(|panic| format!("{what} panicked: {}", panic_text(&*panic)))
}

/// The demand depends on the configuration alone, and survives being written down.
pub fn demand_is_deterministic(subject: &Subject) -> Verdict {
    let ask = || {
        subject
            .kind
            .demand(&subject.config, subject.attach)
            .map_err(|e| e.to_string())
    };
    let first = ask()?;
    if first != ask()? {
        return Err("the same configuration gave two different demands".into());
    }
    let text = serde_json::to_string(&first).map_err(|e| e.to_string())?;
    if serde_json::from_str::<nyx_device::Demand>(&text).ok() != Some(first.clone()) {
        return Err("the demand does not survive serialisation".into());
    }
    let mut regions: Vec<_> = first.windows.iter().map(|w| w.region).collect();
    regions.sort_unstable();
    regions.dedup();
    if regions.len() != first.windows.len() {
        return Err("two windows share a region".into());
    }
    if first.windows.iter().any(|w| w.len == 0) {
        return Err("a window is empty".into());
    }
    if first.reserved_ram as usize > RAM_LEN / 8 {
        return Err("the device reserves more RAM than a bench has".into());
    }
    Ok(())
}

/// A misspelt key of the configuration is an error, not a silent default.
pub fn unknown_configuration_is_refused(subject: &Subject) -> Verdict {
    let mut config = subject.config.clone();
    match config.as_object_mut() {
        Some(keys) => {
            keys.insert("no_such_key".into(), 1.into());
        }
        None => return Err("the configuration is not an object".into()),
    }
    match subject.kind.demand(&config, subject.attach) {
        Ok(_) => Err("an unknown configuration key was accepted".into()),
        Err(_) => Ok(()),
    }
}

/// What goes into the DSDT depends on configuration and placement alone.
pub fn acpi_is_deterministic(subject: &Subject) -> Verdict {
    let placement = subject.bench().placement;
    let ask = || subject.kind.acpi(&placement).map_err(|e| e.to_string());
    if ask()? == ask()? {
        Ok(())
    } else {
        Err("two builds of the AML differ".into())
    }
}

/// A cold reset leads back to the state after building, whatever happened; resets are idempotent.
pub fn reset_is_idempotent(subject: &Subject) -> Verdict {
    for seed in 0..SEEDS {
        let (bench, mut device) = subject.built();
        let fresh = save(&*device)?;
        let high = bench.pins.high();
        device.start();
        storm(&bench, &mut *device, &mut Random::new(seed), STORM);
        settle(&mut *device, seed)?;
        sound(&bench, seed)?;
        lower_pins(&mut *device);
        for kind in [ResetKind::Warm, ResetKind::Function, ResetKind::Cold] {
            device.reset(kind);
            let once = save(&*device)?;
            device.reset(kind);
            if once != save(&*device)? {
                return Err(format!(
                    "seed {seed}: a second {kind:?} reset changed the state"
                ));
            }
        }
        if save(&*device)? != fresh {
            return Err(format!(
                "seed {seed}: a cold reset does not lead back to the fresh state"
            ));
        }
        if bench.pins.high() != high || bench.pci.as_ref().is_some_and(|p| p.is_intx_high()) {
            return Err(format!("seed {seed}: a cold reset leaves a wire as it was"));
        }
        if bench.clock.armed_timers() != 0 {
            return Err(format!("seed {seed}: a cold reset leaves a timer armed"));
        }
    }
    Ok(())
}

/// A device restored from a saved state saves the same state, drives the same wires and answers
/// reads the same way.
pub fn restore_is_the_inverse_of_save(subject: &Subject) -> Verdict {
    let fresh = save(&*subject.built().1)?;
    let (_, mut other) = subject.built();
    other
        .restore_blob(&fresh)
        .map_err(|e| format!("the fresh state is refused: {e}"))?;
    if save(&*other)? != fresh {
        return Err("restoring the fresh state gave another one".into());
    }
    for seed in 0..SEEDS {
        let (bench, mut device) = subject.stormed(seed)?;
        let blob = save(&*device)?;
        let (again, mut twin) = subject.built();
        again.clock.set(bench.clock.now());
        again.clock.fix_wall(bench.clock.wall());
        if seed % 2 == 1 {
            // Rolling back in place: what was there before must not shine through.
            twin.start();
            storm(&again, &mut *twin, &mut Random::new(!seed), STORM / 4);
            settle(&mut *twin, seed)?;
            again.clock.set(bench.clock.now());
            again.clock.fix_wall(bench.clock.wall());
        }
        twin.restore_blob(&blob)
            .map_err(|e| format!("seed {seed}: own state refused: {e}"))?;
        if save(&*twin)? != blob {
            return Err(format!(
                "seed {seed}: save, restore, save is not the identity"
            ));
        }
        if bench.pins.high() != again.pins.high() {
            return Err(format!(
                "seed {seed}: wires {:?} are high after restore, {:?} were before",
                again.pins.high(),
                bench.pins.high()
            ));
        }
        let pin = |bench: &Bench| bench.pci.as_ref().is_some_and(|pci| pci.is_intx_high());
        if pin(&bench) != pin(&again) {
            return Err(format!(
                "seed {seed}: restore does not drive the interrupt pin"
            ));
        }
        compare_reads(&bench, &mut *device, &mut *twin, seed)?;
        // Back to the beginning: whatever the storm set must not shine through.
        device
            .restore_blob(&fresh)
            .map_err(|e| format!("the fresh state is refused: {e}"))?;
        if save(&*device)? != fresh {
            return Err(format!(
                "seed {seed}: restoring the fresh state leaves traces of another"
            ));
        }
    }
    Ok(())
}

fn compare_reads(bench: &Bench, one: &mut dyn Device, two: &mut dyn Device, seed: u64) -> Verdict {
    let windows = windows(bench);
    let mut random = Random::new(seed);
    for _ in 0..if windows.is_empty() { 0 } else { STORM } {
        let (hit, width) = aim(&mut random, &windows);
        let (mut a, mut b) = ([0; 8], [0; 8]);
        let answers = (
            one.read(hit, &mut a[..width]),
            two.read(hit, &mut b[..width]),
        );
        if answers.0 != answers.1 || answers.0.is_ok() && a != b {
            return Err(format!(
                "seed {seed}: after restore a read of {width} bytes at region {} offset {:#x} \
                 answers {b:x?}, not {a:x?}",
                hit.region.0, hit.offset
            ));
        }
    }
    Ok(())
}

/// Snapshots are untrusted: no bytes make the device panic, then or later.
pub fn restore_survives_garbage(subject: &Subject) -> Verdict {
    let (_, device) = subject.built();
    let name = save(&*device)?.name;
    let mut random = Random::new(0x6a7b);
    let mut feedstock = vec![save(&*device)?.bytes];
    for seed in 0..3 {
        feedstock.push(save(&*subject.stormed(seed)?.1)?.bytes);
    }
    let (mut bench, mut device) = subject.built();
    let begun = Instant::now();
    for round in 0..GARBAGE {
        if round >= GARBAGE / 5 && begun.elapsed() > PATIENCE {
            break;
        }
        let from = &feedstock[random.below(feedstock.len() as u64) as usize];
        let bytes = match round % 10 {
            0 => {
                let mut bytes = vec![0; random.below(200) as usize];
                random.fill(&mut bytes);
                bytes
            }
            1..=3 => mutate(&mut random, from.clone()),
            _ => (0..=random.below(3)).fold(from.clone(), |b, _| cbor::mutate(&mut random, &b)),
        };
        let blob = Blob {
            name: name.clone(),
            bytes,
        };
        let taken = calmly(&format!("restoring {:x?}", blob.bytes), || {
            device.restore_blob(&blob).is_ok()
        })?;
        if taken {
            let live = || {
                device.start();
                storm(&bench, &mut *device, &mut random, 40);
                let drained = settle(&mut *device, round);
                save(&*device).and(drained)
            };
            calmly(
                &format!("living on after restoring {:x?}", blob.bytes),
                live,
            )??;
            sound(&bench, round)?;
            calmly("a reset after a hostile restore", || {
                device.reset(ResetKind::Cold)
            })?;
        }
        if round % 500 == 499 {
            (bench, device) = subject.built();
        }
    }
    Ok(())
}

fn mutate(random: &mut Random, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        match random.below(8) {
            0 => bytes.truncate(at),
            // CBOR heads (RFC 8949 §3): integers of every width, lengths far beyond the bytes.
            1 | 2 => {
                let head = random.pick(&[0x00, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x3b, 0x5b, 0x9b]);
                bytes.insert(at, head);
            }
            3 => bytes.insert(at, random.word() as u8),
            4 if at < bytes.len() => {
                bytes.remove(at);
            }
            5 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            _ if at < bytes.len() => bytes[at] = random.pick(&[0, 1, 0x7f, 0x80, 0xf6, 0xff]),
            _ => bytes.push(random.word() as u8),
        }
    }
    bytes
}

/// Every offset, width and alignment of every window is answered or refused.
pub fn every_access_is_answered_or_refused(subject: &Subject) -> Verdict {
    let (bench, mut device) = subject.built();
    device.start();
    let mut random = Random::new(0xacce);
    let mut data = [0; 8];
    for (region, len) in windows(&bench) {
        for offset in offsets(&mut random, len) {
            for width in WIDTHS {
                if offset.checked_add(width as u64).is_none_or(|end| end > len) {
                    continue;
                }
                let hit = Hit::new(region, offset);
                let name = format!("{width} bytes at region {region} offset {offset:#x}");
                calmly(&format!("reading {name}"), || {
                    let _ = device.read(hit, &mut data[..width]);
                })?;
                random.fill(&mut data);
                calmly(&format!("writing {name}"), || {
                    let _ = device.write(hit, &data[..width]);
                })?;
                calmly(&format!("reading {name}, written before,"), || {
                    let _ = device.read(hit, &mut data[..width]);
                })?;
            }
        }
    }
    // A bus never sends these; a mistake in one must not take the machine with it.
    for hit in [
        Hit::new(0xee, 0),
        Hit::new(0, u64::MAX),
        Hit::new(0, u64::MAX - 6),
    ] {
        calmly("an access outside every window", || {
            let _ = device.read(hit, &mut data);
            let _ = device.write(hit, &data);
        })?;
    }
    settle(&mut *device, 0)?;
    sound(&bench, 0)
}

fn offsets(random: &mut Random, len: u64) -> Vec<u64> {
    if len <= WHOLE {
        return (0..len).collect();
    }
    let mut offsets: Vec<u64> = (0..WHOLE / 2).chain(len - 64..len).collect();
    for bit in 10..63 {
        offsets.extend([(1u64 << bit).wrapping_sub(1), 1 << bit, (1 << bit) + 4]);
    }
    offsets.extend((0..1000).map(|_| random.below(len)));
    offsets.retain(|offset| *offset < len);
    offsets
}

/// Starting, stopping and waking in any order is harmless, and stopping ends in time.
pub fn stop_drains_in_time(subject: &Subject) -> Verdict {
    for seed in 0..SEEDS {
        let (bench, mut device) = subject.built();
        let mut random = Random::new(seed);
        device.wake();
        settle(&mut *device, seed)?;
        for _ in 0..3 {
            device.start();
            storm(&bench, &mut *device, &mut random, STORM / 4);
            settle(&mut *device, seed)?;
            let before = save(&*device)?;
            device.wake();
            settle(&mut *device, seed)?;
            if save(&*device)? != before {
                return Err(format!("seed {seed}: a stopped device changed when woken"));
            }
        }
        sound(&bench, seed)?;
    }
    Ok(())
}

/// Unplugging leaves no wire high and no timer armed.
pub fn no_wire_stays_high_after_drop(subject: &Subject) -> Verdict {
    for seed in 0..SEEDS {
        let (bench, mut device) = subject.built();
        device.start();
        storm(&bench, &mut *device, &mut Random::new(seed), STORM);
        calmly("dropping the running device", || drop(device))?;
        if !bench.pins.high().is_empty() {
            return Err(format!(
                "seed {seed}: wires {:?} stay high",
                bench.pins.high()
            ));
        }
        if bench.clock.armed_timers() != 0 {
            return Err(format!("seed {seed}: a timer stays armed"));
        }
        sound(&bench, seed)?;
    }
    Ok(())
}

/// The inspect tree is JSON with names as they should be, also of a maltreated device.
pub fn inspect_is_valid(subject: &Subject) -> Verdict {
    let (_, fresh) = subject.built();
    let (_, tired) = subject.stormed(7)?;
    for device in [&fresh, &tired] {
        let tree = calmly("inspecting", || {
            let mut page = Prometheus::default();
            device.inspect(&mut page);
            let tree = Json::of(&**device);
            (tree, page.page())
        })?;
        let text = tree.0.to_string();
        if serde_json::from_str::<serde_json::Value>(&text)
            .ok()
            .as_ref()
            != Some(&tree.0)
        {
            return Err("the inspect tree does not survive serialisation".into());
        }
        names(&tree.0)?;
    }
    Ok(())
}

fn names(tree: &serde_json::Value) -> Verdict {
    for (name, child) in tree.as_object().into_iter().flatten() {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:.-".contains(c);
        if name.is_empty() || !name.chars().all(fits) {
            return Err(format!("{name:?} is no name for the inspect tree"));
        }
        names(child)?;
    }
    Ok(())
}

/// A blob of another kind is refused by name, and one without content by content.
pub fn a_foreign_blob_is_refused(subject: &Subject) -> Verdict {
    let (_, mut device) = subject.built();
    let own = save(&*device)?;
    let foreign = Blob {
        name: "another-kind/1".into(),
        bytes: own.bytes.clone(),
    };
    match device.restore_blob(&foreign) {
        Err(RestoreError::WrongKind { .. }) => {}
        _ => return Err("a blob of another kind was not refused as such".into()),
    }
    let empty = Blob {
        name: own.name.clone(),
        bytes: Vec::new(),
    };
    if device.restore_blob(&empty).is_ok() {
        return Err("a blob without content was accepted".into());
    }
    if save(&*device)? != own {
        return Err("a refused blob changed the device".into());
    }
    Ok(())
}

/// A device nobody uses arms no timer: an idle machine sleeps.
pub fn an_idle_device_sleeps(subject: &Subject) -> Verdict {
    let (bench, mut device) = subject.built();
    device.start();
    match bench.clock.armed_timers() {
        0 => settle(&mut *device, 0),
        n => Err(format!("{n} timers are armed in an idle device")),
    }
}

/// Tests that a device kind keeps the whole contract.
///
/// `conformance!(name, Kind, config)` makes a module `name` with one test per check; `config` is a
/// [`serde_json::Value`] and may use the character, block and network backends `{"kind": …}` of the
/// [`Bench`], under any kind. A fourth argument says how the device is attached, and a fifth puts
/// platform objects into its [`Extensions`].
#[macro_export]
macro_rules! conformance {
    ($name:ident, $kind:ty, $config:expr) => {
        $crate::conformance!($name, $kind, $config, Default::default());
    };
    ($name:ident, $kind:ty, $config:expr, $attach:expr) => {
        $crate::conformance!($name, $kind, $config, $attach, |_| ());
    };
    ($name:ident, $kind:ty, $config:expr, $attach:expr, $extensions:expr) => {
        $crate::conformance!(@tests $name, $kind, $config, $attach, $extensions;
            demand_is_deterministic
            unknown_configuration_is_refused
            acpi_is_deterministic
            reset_is_idempotent
            restore_is_the_inverse_of_save
            restore_survives_garbage
            every_access_is_answered_or_refused
            stop_drains_in_time
            no_wire_stays_high_after_drop
            inspect_is_valid
            a_foreign_blob_is_refused
            an_idle_device_sleeps
        );
    };
    (@tests $name:ident, $kind:ty, $config:expr, $attach:expr, $extensions:expr;
     $($check:ident)*) => {
        #[cfg(test)]
        mod $name {
            #[allow(unused_imports, reason = "the arguments may or may not name items from here")]
            use super::*;
            $(
                #[test]
                fn $check() {
                    let subject = $crate::Subject::new::<$kind>($config, $attach)
                        .with_extensions($extensions);
                    $crate::conformance::pass($crate::conformance::$check(&subject));
                }
            )*
        }
    };
}
