//! Devices together, on buses and in slots as in a machine.

use crate::{Ioapic, Rtc, Serial};
use nyx_device::{Bus, Device, DeviceKind, IrqLine, IrqSink, Mapping, RegionId, Slot, VmClock};
use nyx_testkit::{Bench, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const VECTOR: u32 = 0x44;
const LEVEL: u32 = 1 << 15;

/// One device of kind `K` behind an I/O APIC whose `pin` is programmed to `entry`.
struct Machine {
    apic: Bench,
    bench: Bench,
    ioapic: Arc<Slot<dyn Device>>,
    ports: Bus,
    _mapping: Mapping,
}

impl Machine {
    fn new<K: DeviceKind>(config: serde_json::Value, pin: u32, entry: u32) -> Self {
        let apic = Bench::new::<Ioapic>(json!({}));
        let ioapic = apic.plug(apic.build::<Ioapic>());
        let start = |slot: &Slot<dyn Device>| slot.with(|device| device.start());
        start(&ioapic);
        let program = |device: &mut (dyn Device + 'static)| {
            device
                .write(nyx_device::Hit::new(0, 0), &[0x10 + 2 * pin as u8])
                .unwrap();
            device
                .write(nyx_device::Hit::new(0, 0x10), &entry.to_le_bytes())
                .unwrap();
        };
        ioapic.with(program);
        let bench = Bench::new::<K>(config);
        let mut wiring = bench.wiring();
        let sink: Arc<dyn IrqSink> = ioapic.clone();
        let roles: Vec<_> = wiring.lines.keys().cloned().collect();
        for role in roles {
            let gsi = bench.placement.irqs[&role];
            wiring.lines.insert(role, IrqLine::new(sink.clone(), gsi));
        }
        let config = serde_json::from_value(bench.placement.config.clone()).unwrap();
        let device = K::build(config, &mut wiring).unwrap();
        drop(wiring);
        let slot = bench.plug(device);
        start(&slot);
        let ports = Bus::default();
        let (window, base) = bench.placement.window(0).unwrap();
        let mapping = ports.map(base, window.len, RegionId(0), slot).unwrap();
        Self {
            apic,
            bench,
            ioapic,
            ports,
            _mapping: mapping,
        }
    }
    fn read(&self, port: u64) -> u8 {
        let mut data = [0];
        self.ports.read(port, &mut data);
        data[0]
    }
    fn sent(&self) -> Vec<u32> {
        self.apic.msis.take().iter().map(|msi| msi.data).collect()
    }
    fn end(&self) {
        self.ioapic.with(|device| {
            device
                .as_irq_controller()
                .unwrap()
                .end_of_interrupt(VECTOR as u8);
        });
    }
}

#[test]
fn a_typed_character_becomes_a_message_and_ends_when_it_is_read() {
    let config = json!({"backend": {"kind": "tty"}});
    let machine = Machine::new::<Serial>(config, 4, LEVEL | VECTOR);
    machine.ports.write(0x3fc, &[0x08]);
    machine.ports.write(0x3f9, &[0x01]);
    let console = machine.bench.consoles.at("tty");
    console.type_in(b"a");
    console.ring();
    assert_eq!(machine.sent(), [0xc000 | VECTOR]);
    machine.end();
    assert_eq!(machine.sent(), [0xc000 | VECTOR], "nobody has read it yet");
    assert_eq!(machine.read(0x3f8), b'a');
    machine.end();
    assert!(machine.sent().is_empty());
    // Unplugging while the wire is high lowers it.
    console.type_in(b"b");
    console.ring();
    assert_eq!(machine.sent().len(), 1);
    let (_, _, owner) = machine.ports.windows().remove(0);
    assert_eq!(owner, "test/serial");
}

fn wait(limit: Duration, mut until: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if until() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn periodic_interrupts_come_by_themselves_while_the_clock_runs() {
    let machine = Machine::new::<Rtc>(json!({}), 8, VECTOR);
    let clock: &VmClock = &machine.bench.clock;
    clock.start();
    // 128 Hz, periodic interrupt enabled.
    machine.ports.write(0x70, &[0x0a, 0x29]);
    machine.ports.write(0x70, &[0x0b, 0x42]);
    for _ in 0..3 {
        assert!(wait(Duration::from_secs(10), || !machine.sent().is_empty()));
        machine.ports.write(0x70, &[0x0c]);
        assert_eq!(machine.read(0x71) & 0xc0, 0xc0);
    }
    clock.stop();
    let _ = machine.read(0x71);
    std::thread::sleep(Duration::from_millis(30));
    machine.sent();
    std::thread::sleep(Duration::from_millis(30));
    assert!(machine.sent().is_empty(), "time stands still");
    clock.start();
    let again = wait(Duration::from_secs(10), || {
        let _ = machine.read(0x71);
        !machine.sent().is_empty()
    });
    assert!(again);
}
