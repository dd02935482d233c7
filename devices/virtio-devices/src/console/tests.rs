//! Bytes both ways, the control protocol, back-pressure and terminal sizes.

use super::*;
use crate::testing::{BUFFERS, Driver, Part, RAM, Rig, Running};
use nyx_inspect::Json;
use nyx_state::PersistBlob;
use nyx_testkit::Console as Far;
use proptest::prelude::{any, prop, prop_assert, proptest};

struct Bench {
    rig: Rig,
    far: Vec<Far>,
    console: Console,
    task: Running,
    queues: Vec<Driver>,
}

fn config(ports: &str) -> ConsoleConfig {
    serde_json::from_str(&format!(r#"{{"ports": [{ports}]}}"#)).unwrap()
}

const PLAIN: &str = r#"{"backend": {"kind": "a"}}"#;
const CHANNEL: &str = r#"{"backend": {"kind": "b"}, "name": "org.agent", "console": false}"#;

fn device(config: &ConsoleConfig, far: &[Far]) -> Console {
    Console::new(config, far.iter().map(Far::backend).collect()).unwrap()
}

fn bench_of(ports: &str, features: u64) -> Bench {
    let config = config(ports);
    let far: Vec<_> = config.ports.iter().map(|_| Far::default()).collect();
    let mut console = device(&config, &far);
    let mut rig = Rig::new();
    let (mut tasks, queues) = rig.activate(&mut console, features);
    Bench {
        rig,
        far,
        console,
        task: tasks.remove(0),
        queues,
    }
}

/// Control messages of the guest.
fn control(id: u32, event: u16, value: u16) -> Vec<u8> {
    [
        &id.to_le_bytes()[..],
        &event.to_le_bytes(),
        &value.to_le_bytes(),
    ]
    .concat()
}

impl Bench {
    fn say(&mut self, id: u32, event: u16, value: u16) {
        self.queues[3].send(&[Part::Read(control(id, event, value))]);
        self.task.run().unwrap();
        assert_eq!(self.queues[3].used_one().len, 0);
    }
    /// What the device says on its control queue.
    fn heard(&mut self) -> Vec<Vec<u8>> {
        self.task.run().unwrap();
        let used = self.queues[2].used();
        used.into_iter()
            .map(|u| u.bytes[..u.len as usize].to_vec())
            .collect()
    }
    fn count(&self, name: &str) -> u64 {
        Json::of(&self.console)[name].as_u64().unwrap()
    }
}

fn two_ports() -> Bench {
    bench_of(
        &format!("{PLAIN}, {CHANNEL}"),
        1 << F_MULTIPORT | 1 << F_SIZE,
    )
}

#[test]
fn a_single_console_needs_no_control_queue() {
    let mut b = bench_of(PLAIN, 1 << F_SIZE);
    assert_eq!(b.console.features() & 1 << F_MULTIPORT, 0);
    assert_eq!(b.queues.len(), 2);
    b.queues[1].send(&[Part::Read(b"hel".to_vec()), Part::Read(b"lo".to_vec())]);
    b.task.run().unwrap();
    assert_eq!(
        (b.far[0].take_output(), b.queues[1].used_one().len),
        (b"hello".to_vec(), 0)
    );
    b.queues[0].send(&[Part::Write(4)]);
    b.queues[0].send(&[Part::Write(4)]);
    b.far[0].type_in(b"world");
    b.far[0].ring();
    b.task.run().unwrap();
    let used = b.queues[0].used();
    assert_eq!((used[0].len, &used[0].bytes[..4]), (4, b"worl".as_slice()));
    assert_eq!((used[1].len, used[1].bytes[0]), (1, b'd'));
    assert_eq!((b.count("input_bytes"), b.count("output_bytes")), (5, 5));
}

#[test]
fn input_stays_with_the_backend_until_the_guest_has_buffers() {
    let mut b = bench_of(PLAIN, 0);
    b.far[0].type_in(&[b'x'; 100]);
    b.far[0].ring();
    b.task.run().unwrap();
    assert_eq!(b.far[0].unread(), 100);
    b.queues[0].send(&[Part::Write(60)]);
    b.task.run().unwrap();
    assert_eq!((b.far[0].unread(), b.queues[0].used_one().len), (40, 60));
}

#[test]
fn output_waits_for_a_slow_backend_without_loss_or_spinning_even_over_a_snapshot() {
    let mut b = bench_of(PLAIN, 0);
    b.far[0].set_room(Some(3));
    b.queues[1].send(&[Part::Read(b"0123456789".to_vec())]);
    b.queues[1].send(&[Part::Read(b"ab".to_vec())]);
    b.task.run().unwrap();
    assert_eq!(
        (b.far[0].take_output(), b.queues[1].used().len()),
        (b"012".to_vec(), 0)
    );
    assert_eq!(
        b.task.wakeup(std::time::Duration::from_millis(20)).unwrap(),
        0
    );
    assert!(b.task.task.drain().unwrap());
    assert_eq!(
        b.task.task.queues()[1].progress().next_available,
        0,
        "nothing is in flight"
    );
    let saved = b.console.save_blob().unwrap();
    b.console.reset();
    b.console.restore_blob(&saved).unwrap();
    b.far[0].set_room(None);
    b.task.resume();
    assert_eq!(
        (b.far[0].take_output(), b.queues[1].used().len()),
        (b"3456789ab".to_vec(), 2)
    );
    assert_eq!(b.count("output_stalls"), 1);
}

#[test]
fn the_size_of_a_single_terminal_is_in_the_configuration_space() {
    let mut b = bench_of(PLAIN, 1 << F_SIZE);
    b.far[0].resize(132, 50);
    b.far[0].ring();
    b.task.run().unwrap();
    let mut space = [0xff; 14];
    b.console.read_config(0, &mut space);
    assert_eq!(space, [132, 0, 50, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(b.rig.interrupts("config_interrupts"), 1);
    b.far[0].ring();
    b.task.run().unwrap();
    assert_eq!(b.rig.interrupts("config_interrupts"), 1, "nothing changed");
}

#[test]
fn ports_are_announced_named_opened_and_resized() {
    let mut b = two_ports();
    for _ in 0..16 {
        b.queues[2].send(&[Part::Write(64)]);
    }
    assert_eq!(
        b.heard(),
        Vec::<Vec<u8>>::new(),
        "nothing before the driver is ready"
    );
    b.far[0].resize(80, 25);
    b.far[0].ring();
    b.say(0, 0, 1);
    assert_eq!(b.heard(), [control(0, 1, 1), control(1, 1, 1)]);
    b.say(0, 3, 1);
    b.say(1, 3, 1);
    let resize = [control(0, 5, 0), vec![80, 0, 25, 0]].concat();
    let name = [control(1, 7, 1), b"org.agent".to_vec()].concat();
    let wanted = [
        control(0, 4, 1),
        resize,
        control(0, 6, 1),
        name,
        control(1, 6, 1),
    ];
    assert_eq!(b.heard(), wanted);
    b.far[0].resize(100, 30);
    b.far[0].ring();
    assert_eq!(
        b.heard(),
        [[control(0, 5, 0), vec![100, 0, 30, 0]].concat()]
    );
    // Bytes of the second port go by its own queues, once it is open.
    b.queues[4].send(&[Part::Write(16)]);
    b.far[1].type_in(b"ping");
    b.far[1].ring();
    b.task.run().unwrap();
    assert_eq!(b.queues[4].used(), [], "the guest has not opened it");
    b.say(1, 6, 1);
    assert_eq!(b.queues[4].used_one().bytes[..4], *b"ping");
    b.queues[5].send(&[Part::Read(b"pong".to_vec())]);
    b.task.run().unwrap();
    assert_eq!(
        (b.far[1].take_output(), b.far[0].take_output()),
        (b"pong".to_vec(), vec![])
    );
}

#[test]
fn messages_wait_for_room_and_nonsense_is_counted() {
    let mut b = two_ports();
    b.say(0, 0, 1);
    assert_eq!(b.heard().len(), 0);
    b.queues[2].send(&[Part::Write(8)]);
    assert_eq!(b.heard(), [control(0, 1, 1)]);
    b.queues[2].send(&[Part::Write(7)]);
    assert_eq!(b.heard(), [Vec::<u8>::new()], "too short for it");
    b.say(7, 3, 1);
    b.say(u32::MAX, 6, 1);
    b.say(0, 99, 1);
    b.queues[3].send(&[Part::Read(vec![1; 7])]);
    b.queues[3].send(&[Part::Write(7)]);
    b.task.run().unwrap();
    assert_eq!(b.queues[3].used().len(), 2);
    assert_eq!(b.count("refused_messages"), 6);
    // Told again and again, the device keeps nothing but bits.
    for _ in 0..1000 {
        b.say(0, 3, 1);
    }
    b.queues[2].send(&[Part::Write(64)]);
    b.queues[2].send(&[Part::Write(64)]);
    b.queues[2].send(&[Part::Write(64)]);
    assert_eq!(b.heard(), [control(0, 4, 1), control(0, 6, 1)]);
}

#[test]
fn a_driver_without_multiport_has_the_first_port() {
    let mut b = bench_of(&format!("{PLAIN}, {CHANNEL}"), 0);
    b.queues[1].send(&[Part::Read(b"x".to_vec())]);
    b.task.run().unwrap();
    assert_eq!(b.far[0].take_output(), b"x");
    assert_eq!(b.task.task.queues().len(), 2);
}

#[test]
fn emergency_output_works_at_any_time() {
    let config = config(PLAIN);
    let far = [Far::default()];
    let mut console = device(&config, &far);
    console.write_config(8, &[b'a', 0, 0, 0]);
    assert_eq!(far[0].take_output(), b"a", "before any driver");
    let mut rig = Rig::new();
    let (mut tasks, _) = rig.activate(&mut console, 0);
    console.write_config(8, b"b");
    console.write_config(0, b"zzzz");
    tasks[0].run().unwrap();
    assert_eq!(far[0].take_output(), b"b");
    for _ in 0..2 * MAX_EMERGENCY {
        console.write_config(6, b"..c");
    }
    tasks[0].run().unwrap();
    assert_eq!(far[0].take_output().len(), MAX_EMERGENCY);
    drop(tasks);
    console.reset();
    console.write_config(8, b"d");
    assert_eq!(far[0].take_output(), b"d");
}

#[test]
fn state_survives_a_round_trip_and_bad_state_is_refused() {
    let mut b = two_ports();
    b.far[0].resize(80, 25);
    b.far[0].ring();
    b.say(0, 0, 1);
    b.say(0, 3, 1);
    b.say(0, 6, 1);
    let saved = b.console.save_blob().unwrap();
    let far = [Far::default(), Far::default()];
    let mut other = device(&config(&format!("{PLAIN}, {CHANNEL}")), &far);
    other.restore_blob(&saved).unwrap();
    assert_eq!(other.save_blob().unwrap(), saved);
    let mut one = device(&config(PLAIN), &far[..1]);
    assert!(one.restore_blob(&saved).is_err());
}

#[test]
fn bad_configurations_are_refused_by_name() {
    let shape = |ports: &str| ConsoleKind::shape(&config(ports)).unwrap_err().to_string();
    assert_eq!(shape(""), "ports: 0 ports are not from 1 to 31");
    assert_eq!(
        shape(&[PLAIN; 32].join(",")),
        "ports: 32 ports are not from 1 to 31"
    );
    assert_eq!(
        shape(&[CHANNEL; 2].join(",")),
        "ports.1.name: \"org.agent\" names two ports"
    );
    assert!(shape(r#"{"backend": {"kind": "a"}, "name": ""}"#).starts_with("ports.0.name: "));
    assert_eq!(ConsoleKind::shape(&config(CHANNEL)).unwrap().queues, 4);
}

proptest! {
    #[test]
    fn any_chains_leave_the_device_answering_or_broken(
        chains in prop::collection::vec((0..6usize, any::<u64>(), any::<u32>(), any::<bool>(), prop::collection::vec(0..9u8, 0..12)), 1..40),
    ) {
        let mut b = two_ports();
        for (queue, addr, len, writable, bytes) in chains {
            b.far[0].type_in(&bytes);
            b.far[0].ring();
            let parts = if queue % 2 == 0 {
                vec![Part::Write(bytes.len()), Part::Raw(BUFFERS + addr % RAM, len, true)]
            } else {
                vec![Part::Read(bytes), Part::Raw(BUFFERS + addr % RAM, len % 0x100_0000, writable)]
            };
            b.queues[queue].send(&parts);
            if let Err(e) = b.task.run() {
                prop_assert!(matches!(e, TaskError::Queue(_) | TaskError::Protocol(_)));
                return Ok(());
            }
        }
        b.queues[1].used();
        b.queues[3].used();
        prop_assert!(b.queues[1].outstanding() == 0 && b.queues[3].outstanding() == 0);
    }
}
