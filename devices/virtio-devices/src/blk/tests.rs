//! Block requests as drivers frame and misframe them, over a disk in memory.

use super::*;
use crate::testing::{BUFFERS, Driver, Part, RAM, Rig, Running, Used};
use nyx_device::{BlockDone, BlockQueue, BlockRequest};
use nyx_inspect::Json;
use nyx_reactor::EventFd;
use nyx_state::PersistBlob;
use nyx_testkit::Medium as Disk;
use proptest::prelude::{Strategy, any, prop, prop_assert, proptest};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
const FLUSH_FEATURE: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// A backend whose requests complete only when the test says so.
struct Later(Box<dyn BlockBackend>, Arc<EventFd>);

struct LaterQueue {
    inner: Box<dyn BlockQueue>,
    held: Vec<BlockRequest>,
    done: Vec<BlockDone>,
    event: Arc<EventFd>,
    flying: usize,
}

impl BlockBackend for Later {
    fn geometry(&self) -> BlockGeometry {
        self.0.geometry()
    }
    fn open_queue(&self) -> io::Result<Box<dyn BlockQueue>> {
        let inner = self.0.open_queue()?;
        let event = self.1.clone();
        Ok(Box::new(LaterQueue {
            inner,
            held: vec![],
            done: vec![],
            event,
            flying: 0,
        }))
    }
    fn describe(&self) -> String {
        "a slow disk".into()
    }
}

impl BlockQueue for LaterQueue {
    fn submit(&mut self, request: BlockRequest) {
        self.flying += 1;
        self.held.push(request);
    }
    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completions(&mut self, done: &mut Vec<BlockDone>) {
        if self.event.clear() {
            // Last in, first out: completions are unordered.
            for request in self.held.drain(..).rev() {
                self.inner.submit(request);
            }
            self.inner.completions(&mut self.done);
            self.flying -= self.done.len();
            done.append(&mut self.done);
        }
    }
    fn in_flight(&self) -> usize {
        self.flying
    }
    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }
}

struct Bench {
    rig: Rig,
    disk: Disk,
    blk: Blk,
    task: Running,
    driver: Driver,
}

fn config() -> BlkConfig {
    serde_json::from_str(r#"{"backend": {"kind": "ram"}}"#).unwrap()
}

fn pattern() -> Vec<u8> {
    (0..1u32 << 18).flat_map(|n| n.to_le_bytes()).collect()
}

fn bench_with(config: &BlkConfig, change: impl FnOnce(&mut BlockGeometry), features: u64) -> Bench {
    let disk = Disk::of(pattern());
    disk.set_geometry(change);
    let mut blk = Blk::new(config, disk.backend(), None).unwrap();
    let mut rig = Rig::new();
    let (mut tasks, mut drivers) = rig.activate(&mut blk, features);
    Bench {
        rig,
        disk,
        blk,
        task: tasks.remove(0),
        driver: drivers.remove(0),
    }
}

fn bench() -> Bench {
    bench_with(&config(), |_| (), FLUSH_FEATURE)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

impl Bench {
    fn request(&mut self, parts: &[Part]) -> Used {
        self.driver.send(parts);
        self.task.run().unwrap();
        self.driver.used_one()
    }
    /// The status of a request without input.
    fn status(&mut self, kind: u32, sector: u64, data: Vec<u8>) -> u8 {
        let used = self.request(&[
            Part::Read(header(kind, sector)),
            Part::Read(data),
            Part::Write(1),
        ]);
        assert_eq!(used.len, 1);
        used.bytes[0]
    }
    fn read(&mut self, sector: u64, len: usize) -> Used {
        self.request(&[
            Part::Read(header(VIRTIO_BLK_T_IN, sector)),
            Part::Write(len),
            Part::Write(1),
        ])
    }
    fn count(&self, name: &str) -> u64 {
        Json::of(&self.blk)[name].as_u64().unwrap()
    }
}

#[test]
fn reads_return_what_is_on_the_medium() {
    let mut b = bench();
    let used = b.read(3, 1024);
    assert_eq!(used.len, 1025);
    assert_eq!(used.bytes[..1024], pattern()[1536..2560]);
    assert_eq!(used.bytes[1024], OK);
    assert_eq!((b.count("reads"), b.count("read_bytes")), (1, 1024));
    assert_eq!(b.rig.interrupts("queue_interrupts"), 1);
}

#[test]
fn each_request_counts_towards_the_latency_of_its_kind() {
    let mut b = bench();
    b.read(0, 512);
    b.read(0, 512);
    assert_eq!(b.status(VIRTIO_BLK_T_OUT, 0, vec![1; 512]), OK);
    assert_eq!(b.status(VIRTIO_BLK_T_FLUSH, 0, vec![]), OK);
    // What never reaches the backend has no latency.
    assert_eq!(b.status(99, 0, vec![]), UNSUPP);
    let tree = Json::of(&b.blk);
    let count = |name: &str| tree[name]["count"].as_u64().unwrap();
    assert_eq!(count("read_latency"), 2);
    assert_eq!(count("write_latency"), 1);
    assert_eq!(count("flush_latency"), 1);
    assert_eq!(count("discard_latency"), 0);
    assert!(tree["read_latency"]["max_ns"].as_u64().unwrap() > 0);
}

#[test]
fn any_framing_means_the_same() {
    let mut b = bench();
    let h = header(VIRTIO_BLK_T_IN, 1);
    // Header in three pieces, status in one buffer with the data, data at odd boundaries.
    let used = b.request(&[
        Part::Read(h[..1].to_vec()),
        Part::Read(h[1..9].to_vec()),
        Part::Read(h[9..].to_vec()),
        Part::Write(511),
        Part::Write(2),
    ]);
    assert_eq!(used.bytes[..512], pattern()[512..1024]);
    assert_eq!(used.bytes[512], OK);
    // Header and data in one buffer.
    let mut bytes = header(VIRTIO_BLK_T_OUT, 2);
    bytes.extend([0x77; 512]);
    let used = b.request(&[Part::Read(bytes), Part::Write(1)]);
    assert_eq!(used.bytes, [OK]);
    assert_eq!(b.disk.bytes()[1024..1536], [0x77; 512]);
    // Empty descriptors between.
    let used = b.request(&[
        Part::Read(vec![]),
        Part::Read(header(VIRTIO_BLK_T_IN, 0)),
        Part::Read(vec![]),
        Part::Write(0),
        Part::Write(513),
        Part::Write(0),
    ]);
    assert_eq!(used.bytes[512], OK);
}

#[test]
fn ranges_beyond_the_medium_and_broken_lengths_fail_that_request_only() {
    let mut b = bench();
    let last = (1 << 20) / 512;
    for (sector, len) in [
        (last, 512),
        (last - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 0),
        (0, 100),
        (0, 513),
    ] {
        let used = b.read(sector, len);
        assert_eq!((used.bytes[len], used.len), (IOERR, 1), "{sector}+{len}");
        let status = b.status(VIRTIO_BLK_T_OUT, sector, vec![0; len]);
        assert_eq!(status, IOERR, "{sector}+{len}");
    }
    assert_eq!(b.count("refused"), 14);
    assert_eq!(b.read(last - 1, 512).bytes[512], OK);
    assert_eq!(b.disk.bytes(), pattern());
}

#[test]
fn buffers_outside_memory_fail_the_request() {
    let mut b = bench();
    for addr in [RAM - 256, RAM, 1 << 45, u64::MAX - 512] {
        b.driver.send(&[
            Part::Read(header(VIRTIO_BLK_T_IN, 0)),
            Part::Raw(addr, 512, true),
            Part::Write(1),
        ]);
        b.task.run().unwrap();
        assert_eq!(b.driver.used_one().bytes, [IOERR], "{addr:#x}");
    }
    // 4 GiB in each descriptor, 16 of them.
    let mut parts = vec![Part::Read(header(VIRTIO_BLK_T_IN, 0))];
    parts.extend(vec![Part::Raw(BUFFERS, u32::MAX, true); 16]);
    parts.push(Part::Write(1));
    assert_eq!(b.request(&parts).bytes, [IOERR]);
}

#[test]
fn a_short_header_fails_and_no_room_for_a_status_breaks_the_device() {
    let mut b = bench();
    assert_eq!(
        b.request(&[Part::Read(vec![0; 15]), Part::Write(1)]).bytes,
        [IOERR]
    );
    assert_eq!(b.request(&[Part::Write(1)]).bytes, [IOERR]);
    b.driver.send(&[Part::Read(header(VIRTIO_BLK_T_FLUSH, 0))]);
    assert!(matches!(b.task.run(), Err(TaskError::Protocol(_))));
    let mut b = bench();
    b.driver.send(&[
        Part::Read(header(VIRTIO_BLK_T_FLUSH, 0)),
        Part::Raw(RAM, 1, true),
    ]);
    assert!(matches!(b.task.run(), Err(TaskError::Protocol(_))));
}

#[test]
fn flush_and_identifier() {
    let mut b = bench();
    assert_eq!(b.status(VIRTIO_BLK_T_FLUSH, 0, vec![]), OK);
    assert_eq!(b.disk.flushes(), 1);
    let id = |len: usize| {
        [
            Part::Read(header(VIRTIO_BLK_T_GET_ID, 0)),
            Part::Write(len + 1),
        ]
    };
    let used = b.request(&id(20));
    assert_eq!(
        (&used.bytes[..8], used.bytes[20], used.len),
        (b"ramdisk\0".as_slice(), OK, 21)
    );
    assert_eq!(b.request(&id(4)).bytes, [b'r', b'a', b'm', b'd', OK]);
    assert_eq!(
        b.request(&id(64)).bytes[19..21],
        [0, 0xa5],
        "twenty bytes and no more"
    );
    assert_eq!(b.status(99, 0, vec![]), UNSUPP);
}

#[test]
fn a_driver_that_knows_no_flush_gets_durable_writes() {
    let mut b = bench_with(&config(), |_| (), 0);
    assert_eq!(b.status(VIRTIO_BLK_T_OUT, 0, vec![1; 512]), OK);
    assert_eq!(b.disk.flushes(), 1);
    // One that does may choose, and its choice survives.
    let mut b = bench();
    assert_eq!(b.status(VIRTIO_BLK_T_OUT, 0, vec![1; 512]), OK);
    assert_eq!(b.disk.flushes(), 0);
    b.blk.write_config(WRITEBACK, &[0]);
    assert_eq!(b.status(VIRTIO_BLK_T_OUT, 0, vec![1; 512]), OK);
    assert_eq!(b.disk.flushes(), 1);
    let saved = b.blk.save_blob().unwrap();
    let mut other = Blk::new(&config(), b.disk.backend(), None).unwrap();
    other.restore_blob(&saved).unwrap();
    let mut mode = [9];
    other.read_config(WRITEBACK, &mut mode);
    assert_eq!(mode, [0]);
    other.reset();
    other.read_config(WRITEBACK, &mut mode);
    assert_eq!(mode, [1]);
}

#[test]
fn discards_and_zeroes_are_checked_in_full_before_any_takes_effect() {
    let mut b = bench();
    let zeroes = |b: &mut Bench, data: Vec<u8>| b.status(VIRTIO_BLK_T_WRITE_ZEROES, 0, data);
    let two = [segment(1, 1, 1), segment(4, 2, 0)].concat();
    assert_eq!(zeroes(&mut b, two), OK);
    let mut wanted = pattern();
    wanted[512..1024].fill(0);
    wanted[2048..3072].fill(0);
    assert_eq!(b.disk.bytes(), wanted);
    let half_bad = [segment(8, 1, 0), segment(2048, 1, 0)].concat();
    assert_eq!(zeroes(&mut b, half_bad), IOERR);
    assert_eq!(zeroes(&mut b, vec![]), IOERR);
    assert_eq!(zeroes(&mut b, vec![0; 15]), IOERR);
    assert_eq!(
        zeroes(&mut b, segment(0, MAX_SEGMENT_SECTORS + 1, 0)),
        IOERR
    );
    assert_eq!(zeroes(&mut b, segment(0, 1, 2)), UNSUPP);
    assert_eq!(zeroes(&mut b, vec![0; 16 * 33]), IOERR);
    assert_eq!(b.disk.bytes(), wanted);
    assert_eq!(b.status(VIRTIO_BLK_T_DISCARD, 0, segment(0, 1, 1)), UNSUPP);
    assert_eq!(b.status(VIRTIO_BLK_T_DISCARD, 0, segment(16, 1, 0)), OK);
    wanted[8192..8704].fill(0);
    assert_eq!(b.disk.bytes(), wanted);
    assert_eq!(zeroes(&mut b, segment(5, 0, 0)), OK);
}

#[test]
fn what_was_not_offered_is_not_supported() {
    let mut b = bench_with(
        &config(),
        |g| {
            g.discard = false;
            g.write_zeroes = false;
            g.write_cache = false;
        },
        0,
    );
    let absent = 1u64 << VIRTIO_BLK_F_DISCARD
        | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        | 1 << VIRTIO_BLK_F_FLUSH
        | 1 << VIRTIO_BLK_F_CONFIG_WCE
        | 1 << VIRTIO_BLK_F_MQ;
    assert_eq!(b.blk.features() & absent, 0);
    assert_eq!(b.status(VIRTIO_BLK_T_DISCARD, 0, segment(0, 1, 0)), UNSUPP);
    assert_eq!(
        b.status(VIRTIO_BLK_T_WRITE_ZEROES, 0, segment(0, 1, 0)),
        UNSUPP
    );
    assert_eq!(b.status(VIRTIO_BLK_T_FLUSH, 0, vec![]), OK);
    assert_eq!(b.disk.flushes(), 0);
}

#[test]
fn a_read_only_disk_refuses_every_kind_of_write() {
    let config = BlkConfig {
        read_only: true,
        ..config()
    };
    let mut b = bench_with(&config, |_| (), FLUSH_FEATURE);
    assert_ne!(b.blk.features() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(b.status(VIRTIO_BLK_T_OUT, 0, vec![9; 512]), IOERR);
    assert_eq!(b.status(VIRTIO_BLK_T_DISCARD, 0, segment(0, 1, 0)), UNSUPP);
    assert_eq!(b.disk.bytes(), pattern());
    assert_eq!(b.read(0, 512).bytes[512], OK);
}

#[test]
fn a_failing_medium_fails_requests_and_not_the_device() {
    let mut b = bench();
    b.disk.set_failing(true);
    assert_eq!(b.read(0, 512).bytes[512], IOERR);
    assert_eq!(
        b.status(VIRTIO_BLK_T_WRITE_ZEROES, 0, segment(0, 1, 0)),
        IOERR
    );
    b.disk.set_failing(false);
    assert_eq!(b.read(0, 512).bytes[512], OK);
    assert_eq!(b.count("failed"), 2);
}

#[test]
fn a_write_without_room_is_kept_until_the_device_was_stopped_and_started() {
    let config = BlkConfig {
        hold_without_space: true,
        ..config()
    };
    let mut b = bench_with(&config, |_| (), FLUSH_FEATURE);
    b.disk.set_full(true);
    let write = [
        Part::Read(header(VIRTIO_BLK_T_OUT, 2)),
        Part::Read(vec![7; 512]),
        Part::Write(1),
    ];
    let head = b.driver.send(&write);
    b.task.run().unwrap();
    assert_eq!(b.driver.used(), []);
    assert_eq!((b.count("held"), b.count("failed")), (1, 0));
    // Others go on meanwhile, and what is kept does not keep the device from coming to rest.
    assert_eq!(b.read(0, 512).bytes[512], OK);
    assert!(b.task.task.drain().unwrap());
    // Still no room: kept again.
    b.task.resume();
    assert_eq!(b.driver.used(), []);
    assert_eq!(b.count("held"), 2);
    assert!(b.task.task.drain().unwrap());
    b.disk.set_full(false);
    b.task.resume();
    let used = b.driver.used_one();
    assert_eq!((used.head, used.bytes[0]), (head, OK));
    assert_eq!(b.disk.bytes()[1024..1536], [7; 512]);
}

#[test]
fn a_write_without_room_is_an_error_when_that_is_wanted() {
    let mut b = bench();
    b.disk.set_full(true);
    assert_eq!(b.status(VIRTIO_BLK_T_OUT, 0, vec![7; 512]), IOERR);
    assert_eq!((b.count("held"), b.count("failed")), (0, 1));
}

#[test]
fn asynchronous_completions_are_batched_and_a_drain_waits_for_them() {
    let disk = Disk::of(pattern());
    let event = Arc::new(EventFd::new().unwrap());
    let mut blk = Blk::new(
        &config(),
        Box::new(Later(disk.backend(), event.clone())),
        None,
    )
    .unwrap();
    let mut rig = Rig::new();
    let (mut tasks, mut drivers) = rig.activate(&mut blk, FLUSH_FEATURE);
    let (mut task, mut driver) = (tasks.remove(0), drivers.remove(0));
    let read = |sector| {
        [
            Part::Read(header(VIRTIO_BLK_T_IN, sector)),
            Part::Write(513),
        ]
    };
    let heads: Vec<_> = (0..4).map(|n| driver.send(&read(n))).collect();
    task.run().unwrap();
    assert_eq!(driver.used(), []);
    assert!(!task.task.drain().unwrap(), "four are in flight");
    let late = driver.send(&read(9));
    task.run().unwrap();
    event.signal();
    task.run().unwrap();
    let used = driver.used();
    let order: Vec<_> = used.iter().map(|u| u.head).collect();
    assert_eq!(order, heads.iter().rev().copied().collect::<Vec<_>>());
    assert!(used.iter().all(|u| u.bytes[512] == OK));
    assert_eq!(used[3].bytes[..512], pattern()[..512]);
    assert_eq!(rig.interrupts("queue_interrupts"), 1);
    assert!(task.task.drain().unwrap());
    assert_eq!(
        task.task.queues()[0].progress().next_available,
        4,
        "a parked queue takes nothing"
    );
    task.resume();
    event.signal();
    task.run().unwrap();
    assert_eq!(driver.used_one().head, late);
}

#[test]
fn a_full_queue_of_every_size_is_served() {
    for size in [4, 256, 1024] {
        let mut b = bench_with(
            &BlkConfig {
                queue_size: size,
                ..config()
            },
            |_| (),
            FLUSH_FEATURE,
        );
        for n in 0..size / 2 {
            b.driver.offer(&[
                Part::Read(header(VIRTIO_BLK_T_IN, n.into())),
                Part::Write(513),
            ]);
        }
        b.driver.kick.signal();
        b.task.run().unwrap();
        let used = b.driver.used();
        assert_eq!(used.len(), usize::from(size / 2));
        assert!(used.iter().all(|u| u.bytes[512] == OK));
    }
}

#[test]
fn the_configuration_space_says_what_the_medium_is() {
    let config = BlkConfig {
        queues: 3,
        ..config()
    };
    let mut b = bench_with(&config, |g| g.physical_block = 4096, FLUSH_FEATURE);
    let mut space = [0xff; 64];
    b.blk.read_config(0, &mut space);
    let le32 = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    assert_eq!((le32(0), le32(4)), (2048, 0), "capacity in sectors");
    assert_eq!((le32(12), le32(20)), (254, 512), "segments, block size");
    assert_eq!((space[24], space[26], space[32], space[34]), (3, 8, 1, 3));
    assert_eq!((le32(36), le32(40), le32(44)), (MAX_SEGMENT_SECTORS, 32, 1));
    assert_eq!(
        (le32(48), le32(52), space[56]),
        (MAX_SEGMENT_SECTORS, 32, 1)
    );
    assert_eq!(space[60..], [0; 4], "zeroes beyond the end");
    b.blk.read_config(u64::MAX, &mut space);
    assert_eq!(space, [0; 64]);
    // Growth is told.
    b.disk.set_geometry(|g| g.size = 4 << 20);
    b.blk.wake();
    b.blk.wake();
    let mut low = [0; 2];
    b.blk.read_config(1, &mut low);
    assert_eq!(low, [0x20, 0]);
    assert_eq!(b.rig.interrupts("config_interrupts"), 1);
}

#[test]
fn bad_configurations_are_refused_by_name() {
    let bad = |change: fn(&mut BlkConfig)| {
        let mut config = config();
        change(&mut config);
        BlkKind::shape(&config).unwrap_err().to_string()
    };
    assert_eq!(bad(|c| c.queues = 17), "queues: 17 is not from 1 to 16");
    assert_eq!(
        bad(|c| c.queue_size = 100),
        "queue_size: 100 is not a power of two from 4 to 1024"
    );
    assert!(bad(|c| c.serial = Some("x".repeat(21))).starts_with("serial: "));
    assert!(
        serde_json::from_str::<BlkConfig>(r#"{"backend": {"kind": "a"}, "colour": 1}"#).is_err()
    );
    let disk = Disk::of(vec![0; 512]);
    disk.set_geometry(|g| g.size = 1000);
    let error = Blk::new(&config(), disk.backend(), None)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("1000 bytes"), "{error}");
}

fn part() -> impl Strategy<Value = Part> {
    proptest::prop_oneof![
        (0..20u32, any::<u64>()).prop_map(|(kind, sector)| Part::Read(header(kind, sector % 4096))),
        (0..64usize).prop_map(Part::Write),
        prop::collection::vec(any::<u8>(), 0..64).prop_map(Part::Read),
        (0..4usize).prop_map(|n| Part::Write(n * 512 + 1)),
        (any::<u64>(), any::<u32>(), any::<bool>()).prop_map(|(addr, len, w)| Part::Raw(
            BUFFERS + addr % RAM,
            len,
            w
        )),
    ]
}

proptest! {
    #[test]
    fn any_chains_leave_the_device_answering_or_broken(chains in prop::collection::vec(prop::collection::vec(part(), 1..6), 1..12)) {
        let mut b = bench();
        for chain in &chains {
            b.driver.send(chain);
        }
        match b.task.run() {
            Ok(()) => prop_assert!(b.driver.used().len() == chains.len()),
            Err(e) => prop_assert!(matches!(e, TaskError::Queue(_) | TaskError::Protocol(_))),
        }
    }
}

/// `bytes` in readable pieces whose lengths `cuts` suggest.
fn pieces(mut bytes: &[u8], cuts: &[usize]) -> Vec<Part> {
    let mut parts = Vec::new();
    for cut in cuts {
        let (head, tail) = bytes.split_at(*cut.min(&bytes.len()));
        parts.push(Part::Read(head.to_vec()));
        bytes = tail;
    }
    parts.push(Part::Read(bytes.to_vec()));
    parts
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// However requests are framed, the disk is what a model says.
    #[test]
    fn the_disk_is_what_was_written(
        steps in prop::collection::vec(
            (0..4u8, 0..2040u64, 1..8usize, prop::collection::vec(0..700usize, 0..6)), 1..40,
        ),
    ) {
        let mut b = bench();
        let mut model = pattern();
        for (number, (action, sector, sectors, cuts)) in steps.into_iter().enumerate() {
            let (start, len) = (sector as usize * 512, sectors * 512);
            let range = start..start + len;
            match action {
                0 | 1 => {
                    let bytes: Vec<u8> = (0..len).map(|n| (n * 3 + number) as u8).collect();
                    let request = [header(VIRTIO_BLK_T_OUT, sector), bytes.clone()].concat();
                    let mut parts = pieces(&request, &cuts);
                    parts.push(Part::Write(1));
                    assert_eq!(b.request(&parts).bytes, [OK]);
                    model[range].copy_from_slice(&bytes);
                }
                2 => {
                    let data = segment(sector, sectors as u32, 0);
                    assert_eq!(b.status(VIRTIO_BLK_T_WRITE_ZEROES, 0, data), OK);
                    model[range].fill(0);
                }
                _ => {
                    let mut parts = pieces(&header(VIRTIO_BLK_T_IN, sector), &cuts);
                    let mut left = len + 1;
                    for cut in cuts {
                        let here = cut.min(left);
                        parts.push(Part::Write(here));
                        left -= here;
                    }
                    parts.push(Part::Write(left));
                    let used = b.request(&parts);
                    assert_eq!(&used.bytes[..len], &model[range]);
                    assert_eq!((used.bytes[len], used.len as usize), (OK, len + 1));
                }
            }
        }
        prop_assert!(b.disk.bytes() == model);
    }
}
