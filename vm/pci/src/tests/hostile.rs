//! Whatever a guest writes, and wherever, the function stays itself.

use super::probe::{Bench, HIGH, MEMORY, PORTS, TABLE, placement};
use nyx_device::{AnyUnit, PciPort, ResetKind};
use nyx_state::PersistBlob;
use nyx_testkit::Random;
use proptest::prelude::*;

const READ_ONLY: [(u16, u32); 5] = [
    (0x00, 0x5678_1234),
    (0x08, 0xff00_0003),
    (0x2c, 0xdef0_9abc),
    (0x34, 0x0000_0040),
    (0x100, 0),
];

#[test]
fn every_offset_and_width_is_answered() {
    let bench = Bench::default();
    let f = bench.plug(&placement());
    let mut random = Random::new(1);
    for width in [1usize, 2, 4, 8, 3] {
        for offset in (0..=0x1000u16).chain([0x1fff, 0x8000, 0xffff]) {
            let mut data = [0; 8];
            random.fill(&mut data);
            f.with(|function| function.config_write(offset, &data[..width]));
            f.with(|function| function.config_read(offset, &mut data[..width]));
            if offset >= 0x1000 {
                assert_eq!(data[..width], [0xff; 8][..width]);
            }
            f.port.fire(offset % 100);
            f.port.set_intx(offset % 3 == 0);
        }
    }
    for (offset, value) in READ_ONLY {
        assert_eq!(f.read(offset), value, "offset {offset:#x}");
    }
    f.slot.reset(ResetKind::Cold);
    assert_eq!(bench.mapped(), [MEMORY, TABLE, HIGH]);
    assert_eq!(bench.spaces.pio.windows()[0].0, PORTS);
    assert!(bench.faults.take().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_writes_keep_the_identity_and_survive_a_round_trip(
        writes in proptest::collection::vec(
            (0u16..0x110, proptest::collection::vec(any::<u8>(), 1..9), any::<bool>()),
            1..60,
        ),
    ) {
        let bench = Bench::default();
        let f = bench.plug(&placement());
        for (offset, data, ones) in writes {
            let data = if ones { vec![0xff; data.len()] } else { data };
            f.with(|function| function.config_write(offset, &data));
            let all = [bench.spaces.mmio.windows(), bench.spaces.pio.windows()].concat();
            prop_assert!(all.len() <= 4);
        }
        for (offset, value) in READ_ONLY {
            prop_assert_eq!(f.read(offset), value);
        }
        prop_assert!(matches!(f.read16(f.capability(1) + 4) & 3, 0 | 3));
        let blob = f.slot.save().unwrap().unwrap();
        let other = Bench::default();
        let twin = other.plug(&placement());
        twin.slot.restore(&blob).unwrap();
        twin.slot.start();
        prop_assert_eq!(twin.slot.save().unwrap().unwrap(), blob);
        prop_assert_eq!(other.mapped(), bench.mapped());
        for offset in (0..0x100).step_by(4) {
            prop_assert_eq!(twin.read(offset), f.read(offset), "offset {:#x}", offset);
        }
    }

    #[test]
    fn a_mutated_saved_state_is_refused_or_lived_with(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let bench = Bench::default();
        let f = bench.plug(&placement());
        let mut blob = f.slot.save().unwrap().unwrap();
        for (at, value) in changes {
            let at = at.index(blob.bytes.len());
            blob.bytes[at] = value;
        }
        if f.with(|function| function.restore_blob(&blob)).is_ok() {
            f.slot.start();
            f.command(7);
            f.port.fire(0);
        }
        prop_assert_eq!(f.read(0), 0x5678_1234);
        prop_assert!(bench.faults.take().is_empty());
    }
}
