//! Entropy, its bounds, and odd requests.

use super::*;
use crate::testing::{BUFFERS, Part, RAM, Rig, Running};
use nyx_inspect::Json;
use proptest::prelude::{any, prop, prop_assert, proptest};

fn start(rig: &mut Rig) -> (Rng, Running, crate::testing::Driver) {
    let mut rng = Rng::default();
    let (mut tasks, mut drivers) = rig.activate(&mut rng, 0);
    (rng, tasks.remove(0), drivers.remove(0))
}

#[test]
fn buffers_are_filled_across_descriptors_with_different_bytes() {
    let mut rig = Rig::new();
    let (rng, mut task, mut driver) = start(&mut rig);
    driver.send(&[Part::Write(3), Part::Write(61)]);
    driver.send(&[Part::Write(64)]);
    task.run().unwrap();
    let used = driver.used();
    assert_eq!(used.iter().map(|u| u.len).collect::<Vec<_>>(), [64, 64]);
    assert_ne!(used[0].bytes, used[1].bytes);
    assert!(
        used[0].bytes.iter().filter(|&&b| b == 0xa5).count() < 32,
        "the buffer is untouched"
    );
    assert_eq!(
        rig.interrupts("queue_interrupts"),
        1,
        "one interrupt for the batch"
    );
    assert_eq!(Json::of(&rng)["bytes"], 128);
}

#[test]
fn a_huge_request_gets_64_kib_and_the_host_allocates_nothing_for_it() {
    let mut rig = Rig::new();
    let (_, mut task, mut driver) = start(&mut rig);
    driver.send(&[Part::Raw(BUFFERS, (RAM - BUFFERS) as u32, true)]);
    task.task.ready(KICK, &Poller::new().unwrap()).unwrap();
    assert_eq!(driver.used_one().len, 64 << 10);
}

#[test]
fn memory_outside_ram_and_readable_buffers_get_nothing() {
    let mut rig = Rig::new();
    let (rng, mut task, mut driver) = start(&mut rig);
    driver.send(&[Part::Raw(1 << 40, 16, true)]);
    driver.send(&[Part::Read(vec![1, 2, 3])]);
    task.run().unwrap();
    assert_eq!(
        driver.used().iter().map(|u| u.len).collect::<Vec<_>>(),
        [0, 0]
    );
    assert_eq!(Json::of(&rng)["refused"], 2);
}

#[test]
fn a_loop_in_the_ring_is_an_error_and_not_a_loop() {
    let mut rig = Rig::new();
    let (_, mut task, mut driver) = start(&mut rig);
    driver.descriptor(5, 0x1000, 16, 3, 5);
    driver.make_available(5);
    driver.kick.signal();
    assert!(matches!(task.run(), Err(TaskError::Queue(_))));
}

#[test]
fn a_parked_task_takes_nothing_and_catches_up_on_resume() {
    let mut rig = Rig::new();
    let (_, mut task, mut driver) = start(&mut rig);
    assert!(task.task.drain().unwrap());
    driver.send(&[Part::Write(8)]);
    task.run().unwrap();
    assert_eq!(driver.outstanding(), 1);
    task.resume();
    assert_eq!(driver.used_one().len, 8);
}

proptest! {
    #[test]
    fn any_chains_are_answered(lens in prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>()), 1..8)) {
        let mut rig = Rig::new();
        let (_, mut task, mut driver) = start(&mut rig);
        let parts: Vec<_> = lens.iter().map(|&(addr, len, w)| Part::Raw(BUFFERS + addr % RAM, len, w)).collect();
        driver.send(&parts);
        match task.run() {
            Ok(()) => prop_assert!(driver.used_one().len <= 64 << 10),
            Err(e) => prop_assert!(matches!(e, TaskError::Queue(_))),
        }
    }
}
