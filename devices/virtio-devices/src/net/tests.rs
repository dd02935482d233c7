//! Frames both ways over a scripted wire.

use super::*;
use crate::testing::{BUFFERS, Driver, Part, RAM, Rig, Running, Used};
use nyx_inspect::Json;
use nyx_memory::PinnedBuffers;
use nyx_state::PersistBlob;
use nyx_testkit::Wire;
use proptest::prelude::{any, prop, prop_assert, proptest};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const CONTROL: u64 =
    1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_CTRL_RX | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR;

fn config() -> NetConfig {
    let text = r#"{"backend": {"kind": "wire"}, "mac": "52:54:00:00:00:07"}"#;
    serde_json::from_str(text).unwrap()
}

struct Bench {
    rig: Rig,
    wire: Wire,
    net: Net,
    task: Running,
    rx: Driver,
    tx: Driver,
    control: Driver,
}

fn bench_on(wire: Wire, features: u64) -> Bench {
    let mut net = Net::new(&config(), wire.backend()).unwrap();
    let mut rig = Rig::new();
    let (mut tasks, mut drivers) = rig.activate(&mut net, features);
    assert_eq!((tasks.len(), drivers.len()), (1, 3));
    let control = drivers.remove(2);
    let tx = drivers.remove(1);
    Bench {
        rig,
        wire,
        net,
        task: tasks.remove(0),
        rx: drivers.remove(0),
        tx,
        control,
    }
}

fn bench(features: u64) -> Bench {
    bench_on(Wire::default(), features)
}

/// A wire whose frames have no header.
fn bare() -> Wire {
    let wire = Wire::default();
    wire.set_offloads(NetOffloads::default());
    wire
}

fn frame(header: [u8; 12], len: usize) -> Vec<u8> {
    header
        .into_iter()
        .chain((0..len).map(|n| n as u8))
        .collect()
}

impl Bench {
    fn count(&self, name: &str) -> u64 {
        Json::of(&self.net)[name].as_u64().unwrap()
    }
    fn command(&mut self, bytes: &[u8]) -> u8 {
        self.control
            .send(&[Part::Read(bytes.to_vec()), Part::Write(1)]);
        self.task.run().unwrap();
        self.control.used_one().bytes[0]
    }
    fn joined(used: &[Used]) -> Vec<u8> {
        used.iter()
            .flat_map(|u| u.bytes[..u.len as usize].to_vec())
            .collect()
    }
}

#[test]
fn a_frame_arrives_in_one_buffer_with_its_header() {
    let mut b = bench(MERGE);
    b.rx.send(&[Part::Write(12), Part::Write(2000)]);
    b.rx.send(&[Part::Write(2012)]);
    b.task.run().unwrap();
    let sent = frame([1, 0, 0, 0, 0, 0, 9, 0, 6, 0, 0, 0], 100);
    assert!(b.wire.send(&sent));
    b.task.run().unwrap();
    let used = b.rx.used_one();
    assert_eq!(used.len, 112);
    assert_eq!(used.bytes[..10], sent[..10], "the wire's header is kept");
    assert_eq!(used.bytes[10..12], [1, 0], "one buffer");
    assert_eq!(used.bytes[12..112], sent[12..]);
    assert_eq!(b.rx.outstanding(), 1);
    assert_eq!((b.count("rx_frames"), b.count("rx_bytes")), (1, 100));
    assert_eq!(b.rig.interrupts("queue_interrupts"), 1);
}

#[test]
fn a_long_frame_spans_buffers_and_says_how_many() {
    // With little on offer through the spill, with much straight into guest memory.
    for chains in [8u16, 60] {
        let mut b = bench(MERGE);
        for _ in 0..chains {
            b.rx.send(&[Part::Write(1500)]);
        }
        b.task.run().unwrap();
        for len in [5000, 40, 3000] {
            let sent = frame([0; 12], len);
            assert!(b.wire.send(&sent));
            b.task.run().unwrap();
            let used = b.rx.used();
            let count = (len + 12usize).div_ceil(1500);
            assert_eq!(used.len(), count);
            assert_eq!(used[0].bytes[10..12], (count as u16).to_le_bytes());
            let got = Bench::joined(&used);
            assert_eq!(got.len(), sent.len());
            assert_eq!(got[12..], sent[12..], "{chains} chains, {len} bytes");
        }
        assert_eq!(b.rx.outstanding(), usize::from(chains) - 8);
        let interrupts = b.rig.interrupts("queue_interrupts");
        assert_eq!(interrupts, 3, "one for each batch, not for each buffer");
    }
}

#[test]
fn without_merging_a_frame_too_long_is_dropped_and_the_next_arrives() {
    let mut b = bench(0);
    b.rx.send(&[Part::Write(512)]);
    b.task.run().unwrap();
    assert!(b.wire.send(&frame([0; 12], 501)));
    assert!(b.wire.send(&frame([0; 12], 500)));
    b.task.run().unwrap();
    let used = b.rx.used_one();
    assert_eq!((used.len, &used.bytes[10..12]), (512, [1, 0].as_slice()));
    assert_eq!(b.count("rx_oversize"), 1);
}

#[test]
fn a_frame_that_the_ring_cannot_hold_waits_for_one_kick_and_stalls_nothing() {
    let mut b = bench(MERGE);
    b.rx.send(&[Part::Write(600)]);
    b.task.run().unwrap();
    assert!(b.wire.send(&frame([0; 12], 1000)));
    assert!(b.wire.send(&frame([0; 12], 200)));
    b.task.run().unwrap();
    assert_eq!(b.rx.used(), [], "it waits");
    b.rx.send(&[Part::Write(600)]);
    b.rx.send(&[Part::Write(600)]);
    b.task.run().unwrap();
    assert_eq!(b.rx.used().len(), 3, "two buffers and one");
    assert_eq!(b.count("rx_oversize"), 0);
    // Now buffers come, but too few: it is dropped, and what is behind it arrives.
    assert!(b.wire.send(&frame([0; 12], 5000)));
    assert!(b.wire.send(&frame([0; 12], 50)));
    b.rx.send(&[Part::Write(600)]);
    b.task.run().unwrap();
    b.rx.send(&[Part::Write(600)]);
    b.task.run().unwrap();
    assert_eq!((b.count("rx_oversize"), b.rx.used_one().len), (1, 62));
}

#[test]
fn with_no_buffers_the_wire_is_left_alone_until_a_kick() {
    let mut b = bench(MERGE);
    assert!(b.wire.send(&frame([0; 12], 60)));
    b.task.run().unwrap();
    assert_eq!(
        b.task.wakeup(std::time::Duration::from_millis(20)).unwrap(),
        0,
        "it would spin"
    );
    b.rx.send(&[Part::Write(2000)]);
    b.task.run().unwrap();
    assert_eq!(b.rx.used_one().len, 72);
}

#[test]
fn bad_receive_buffers_are_returned_empty_in_order() {
    for features in [0, MERGE] {
        let mut b = bench(features);
        b.rx.offer(&[Part::Write(11)]);
        b.rx.offer(&[Part::Write(1500)]);
        b.rx.offer(&[Part::Raw(RAM - 8, 1500, true)]);
        b.rx.offer(&[Part::Read(vec![0; 64])]);
        b.rx.offer(&[Part::Write(1500)]);
        b.rx.kick.signal();
        assert!(b.wire.send(&frame([0; 12], 60)));
        assert!(b.wire.send(&frame([0; 12], 61)));
        b.task.run().unwrap();
        let lens: Vec<_> = b.rx.used().iter().map(|u| u.len).collect();
        assert_eq!(lens, [0, 72, 0, 0, 73]);
        assert_eq!(b.count("bad_buffers"), 3);
    }
}

#[test]
fn a_parked_task_gives_unused_buffers_back() {
    let mut b = bench(MERGE);
    for _ in 0..5 {
        b.rx.send(&[Part::Write(1500)]);
    }
    assert!(b.wire.send(&frame([0; 12], 60)));
    b.task.run().unwrap();
    assert!(b.task.task.drain().unwrap());
    let progress = b.task.task.queues()[0].progress();
    assert_eq!((progress.next_available, progress.next_used), (1, 1));
    b.task.resume();
    assert!(b.wire.send(&frame([0; 12], 61)));
    b.task.run().unwrap();
    assert_eq!(
        b.rx.used().iter().map(|u| u.len).collect::<Vec<_>>(),
        [72, 73]
    );
}

#[test]
fn frames_leave_as_the_guest_wrote_them() {
    let mut b = bench(MERGE);
    let sent = frame([1, 1, 54, 0, 0, 5, 0, 0, 0, 0, 0, 0], 3000);
    b.tx.send(&[
        Part::Read(sent[..5].to_vec()),
        Part::Read(sent[5..100].to_vec()),
        Part::Read(sent[100..].to_vec()),
    ]);
    b.task.run().unwrap();
    assert_eq!(b.wire.receive().unwrap(), sent);
    assert_eq!(
        (
            b.tx.used_one().len,
            b.count("tx_frames"),
            b.count("tx_bytes")
        ),
        (0, 1, 3000)
    );
}

#[test]
fn malformed_frames_are_dropped_and_counted() {
    let mut b = bench(MERGE);
    b.tx.send(&[Part::Read(vec![0; 11])]);
    b.tx.send(&[Part::Read(vec![0; 12])]);
    b.tx.send(&[Part::Write(100)]);
    b.tx.send(&[Part::Read(vec![0; LONGEST + 1])]);
    b.tx.send(&[
        Part::Raw(BUFFERS, u32::MAX, false),
        Part::Raw(BUFFERS, u32::MAX, false),
    ]);
    b.tx.send(&[Part::Read(vec![0; 12]), Part::Raw(1 << 50, 100, false)]);
    b.task.run().unwrap();
    assert_eq!(b.tx.used().len(), 6);
    assert_eq!((b.count("tx_dropped"), b.count("tx_frames")), (6, 0));
    assert_eq!(b.wire.receive(), None);
    b.tx.send(&[Part::Read(vec![0; LONGEST])]);
    b.task.run().unwrap();
    assert_eq!(b.wire.receive().unwrap().len(), LONGEST);
}

#[test]
fn a_full_wire_makes_the_guest_wait_and_not_the_worker_spin() {
    let mut b = bench(MERGE);
    for _ in 0..200 {
        b.tx.offer(&[Part::Read(frame([0; 12], 4000))]);
    }
    b.tx.kick.signal();
    b.task.run().unwrap();
    let sent = b.tx.used().len();
    assert!((1..200).contains(&sent), "{sent} fitted");
    assert_eq!(
        b.task.wakeup(std::time::Duration::from_millis(20)).unwrap(),
        0
    );
    let mut got = 0;
    while got < 200 {
        while b.wire.receive().is_some() {
            got += 1;
        }
        b.task.run().unwrap();
    }
    assert_eq!(b.tx.used().len(), 200 - sent);
    assert_ne!(b.count("tx_stalls"), 0);
}

#[test]
fn a_wire_without_headers_gets_and_gives_plain_frames() {
    let mut b = bench_on(bare(), MERGE);
    let offloads = 1u64 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM;
    assert_eq!(b.net.features() & offloads, 0);
    b.tx.send(&[Part::Read(frame([0; 12], 90))]);
    b.tx.send(&[Part::Read(frame([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 90))]);
    b.task.run().unwrap();
    assert_eq!(b.wire.receive().unwrap(), frame([0; 12], 90)[12..]);
    assert_eq!(b.wire.receive(), None, "nobody would finish its checksum");
    assert_eq!(b.count("tx_dropped"), 1);
    b.rx.send(&[Part::Write(60)]);
    b.rx.send(&[Part::Write(60)]);
    b.task.run().unwrap();
    assert!(b.wire.send(&[7; 90]));
    b.task.run().unwrap();
    let used = b.rx.used();
    assert_eq!(used[0].bytes[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(Bench::joined(&used)[12..], [7; 90]);
}

#[test]
fn offloads_follow_the_negotiation() {
    let wire = Wire::default();
    let all = NetOffloads {
        vnet_header: true,
        checksum: true,
        tso4: true,
        tso6: true,
        uso: true,
    };
    wire.set_offloads(all);
    let b = bench_on(wire, MERGE);
    let offered = b.net.features();
    for bit in [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_HOST_USO,
    ] {
        assert_ne!(offered & 1 << bit, 0, "{bit}");
    }
    assert_eq!(
        b.wire.accepted(),
        NetOffloads {
            vnet_header: true,
            ..NetOffloads::default()
        }
    );
    let wire = Wire::default();
    wire.set_offloads(all);
    let b = bench_on(wire, offered);
    assert_eq!(b.wire.accepted(), all);
    let tso_alone = 1 << VIRTIO_NET_F_GUEST_TSO4;
    assert!(!b.net.accepted(tso_alone).tso4, "it needs checksums");
}

#[test]
fn commands_are_obeyed_or_refused() {
    let mut b = bench(MERGE | CONTROL);
    let (ok, refused) = (0, 1);
    assert_eq!(b.command(&[0, 0, 1]), ok);
    assert_eq!(b.command(&[0, 1, 1]), ok);
    assert_eq!(b.command(&[0, 0]), refused, "no operand");
    assert_eq!(b.command(&[0, 3, 1]), refused, "not offered");
    assert_eq!(b.command(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), ok);
    assert_eq!(b.command(&[1, 1, 2, 4, 6, 8, 10, 12]), ok);
    assert_eq!(b.command(&[1, 1, 1, 4, 6, 8, 10, 12]), refused, "multicast");
    assert_eq!(b.command(&[1, 1, 2, 4]), refused, "half an address");
    assert_eq!(b.command(&[4, 0, 1, 0]), refused, "MQ was not negotiated");
    assert_eq!(b.command(&[]), refused);
    assert_eq!(b.command(&[77, 0]), refused);
    let mut mac = [0; 6];
    b.net.read_config(0, &mut mac);
    assert_eq!(mac, [2, 4, 6, 8, 10, 12]);
    let tree = Json::of(&b.net);
    assert_eq!(
        (&tree["promiscuous"], &tree["all_multicast"]),
        (&true.into(), &true.into())
    );
    // All of it survives a snapshot, and none of it a reset.
    let saved = b.net.save_blob().unwrap();
    b.net.reset();
    b.net.read_config(0, &mut mac);
    assert_eq!(mac, [0x52, 0x54, 0, 0, 0, 7]);
    b.net.restore_blob(&saved).unwrap();
    assert_eq!(b.net.save_blob().unwrap(), saved);
    // No room for an answer.
    b.control.send(&[Part::Read(vec![0, 0, 1])]);
    assert!(matches!(b.task.run(), Err(TaskError::Protocol(_))));
}

/// Two pairs, with the state of each queue to look at.
struct Many {
    near: Vec<UnixDatagram>,
    enabled: Arc<Mutex<Vec<bool>>>,
    up: Arc<AtomicBool>,
}
struct ManyQueue(UnixDatagram, usize, Arc<Mutex<Vec<bool>>>, Arc<AtomicBool>);
impl NetBackend for Many {
    fn offloads(&self) -> NetOffloads {
        NetOffloads {
            vnet_header: true,
            ..NetOffloads::default()
        }
    }
    fn queue_pairs(&self) -> u16 {
        2
    }
    fn take_queues(&mut self) -> io::Result<Vec<Box<dyn NetQueue>>> {
        let queues = self.near.drain(..).enumerate();
        Ok(queues
            .map(|(n, near)| {
                Box::new(ManyQueue(near, n, self.enabled.clone(), self.up.clone()))
                    as Box<dyn NetQueue>
            })
            .collect())
    }
    fn link(&self) -> NetLink {
        if self.up.load(Ordering::Relaxed) {
            NetLink::Up
        } else {
            NetLink::Down
        }
    }
    fn describe(&self) -> String {
        "two wires".into()
    }
}
impl NetQueue for ManyQueue {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
    fn receive(&mut self, buffers: &PinnedBuffers) -> io::Result<usize> {
        let mut bytes = [0; 4096];
        let len = self.0.recv(&mut bytes)?;
        Ok(buffers.write(&bytes[..len]))
    }
    fn receive_bytes(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if !self.3.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.0.recv(bytes)
    }
    fn send(&mut self, _: &PinnedBuffers) -> io::Result<()> {
        Ok(())
    }
    fn set_offloads(&mut self, _: NetOffloads) -> io::Result<()> {
        Ok(())
    }
    fn set_in_service(&mut self, on: bool) -> io::Result<()> {
        self.2.lock()[self.1] = on;
        Ok(())
    }
}

#[test]
fn pairs_are_put_to_use_when_the_driver_says_so_and_the_link_is_told() {
    let (near, far): (Vec<_>, Vec<_>) = (0..2).map(|_| UnixDatagram::pair().unwrap()).unzip();
    for socket in &near {
        socket.set_nonblocking(true).unwrap();
    }
    let (enabled, up) = (
        Arc::new(Mutex::new(vec![true; 2])),
        Arc::new(AtomicBool::new(true)),
    );
    let backend = Many {
        near,
        enabled: enabled.clone(),
        up: up.clone(),
    };
    let config = NetConfig {
        queue_pairs: 2,
        mtu: Some(9000),
        ..config()
    };
    let mut net = Net::new(&config, Box::new(backend)).unwrap();
    let mut rig = Rig::new();
    let features = MERGE | CONTROL | 1 << VIRTIO_NET_F_MQ;
    let (mut tasks, mut drivers) = rig.activate(&mut net, features);
    assert_eq!((tasks.len(), drivers.len()), (2, 5));
    assert_eq!(*enabled.lock(), [true, false]);
    drivers[2].send(&[Part::Write(2000)]);
    far[1].send(&frame([0; 12], 60)).unwrap();
    tasks[1].run().unwrap();
    assert_eq!(drivers[2].used(), [], "a pair not in use gets nothing");
    for (pairs, answer) in [(0u8, 1), (3, 1), (2, 0)] {
        drivers[4].send(&[Part::Read(vec![4, 0, pairs, 0]), Part::Write(1)]);
        tasks[0].run().unwrap();
        assert_eq!(drivers[4].used_one().bytes, [answer]);
    }
    tasks[1].run().unwrap();
    assert_eq!(*enabled.lock(), [true, true]);
    assert_eq!(drivers[2].used_one().len, 72);
    // Configuration space and link.
    let mut space = [0; 12];
    net.read_config(0, &mut space);
    assert_eq!(space[6..], [1, 0, 2, 0, 0x28, 0x23]);
    up.store(false, Ordering::Relaxed);
    net.wake();
    net.wake();
    net.read_config(0, &mut space);
    assert_eq!((space[6], rig.interrupts("config_interrupts")), (0, 1));
    up.store(true, Ordering::Relaxed);
    net.wake();
    // A wire that dies says so once, and then nobody listens to it any more.
    up.store(false, Ordering::Relaxed);
    drivers[0].send(&[Part::Write(2000)]);
    tasks[0].run().unwrap();
    net.read_config(0, &mut space);
    assert_eq!((space[6], rig.interrupts("config_interrupts")), (0, 3));
    // After a reset, wires are lent again, to a driver that knows nothing of pairs.
    drop(tasks);
    net.reset();
    let (tasks, _) = rig.activate(&mut net, MERGE | CONTROL);
    assert_eq!(
        (tasks.len(), enabled.lock().clone()),
        (1, vec![true, false])
    );
    assert_eq!(
        tasks[0]
            .task
            .queues()
            .iter()
            .map(|q| q.index())
            .collect::<Vec<_>>(),
        [0, 1, 2]
    );
}

#[test]
fn bad_configurations_are_refused_by_name() {
    let parse = |rest: &str| {
        let text = format!(r#"{{"backend": {{"kind": "tap"}}, {rest}}}"#);
        serde_json::from_str::<NetConfig>(&text).map_err(|e| e.to_string())
    };
    assert!(
        parse(r#""mac": "01:00:00:00:00:00""#)
            .unwrap_err()
            .contains("multicast")
    );
    let shape = |rest: &str| {
        NetKind::shape(&parse(rest).unwrap())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(shape(r#""mtu": 67"#), "mtu: 67 is not from 68 to 65535");
    assert_eq!(
        shape(r#""queue_pairs": 9"#),
        "queue_pairs: 9 is not from 1 to 8"
    );
    let two = NetConfig {
        queue_pairs: 2,
        ..config()
    };
    let error = Net::new(&two, Wire::default().backend())
        .err()
        .unwrap()
        .to_string();
    assert_eq!(error, "queue_pairs: 2 wanted, but a scripted wire has 1");
}

proptest! {
    #[test]
    fn any_chains_and_frames_leave_the_device_answering_or_broken(
        chains in prop::collection::vec((0..3usize, any::<u64>(), 0..6000u32, any::<bool>()), 1..40),
        frames in prop::collection::vec(0..9000usize, 0..20),
        merge in any::<bool>(),
        headed in any::<bool>(),
    ) {
        let wire = if headed { Wire::default() } else { bare() };
        let mut b = bench_on(wire, CONTROL | if merge { MERGE } else { 0 });
        let mut broken = false;
        let mut frames = frames.into_iter();
        for (queue, addr, len, writable) in chains {
            let driver = match queue { 0 => &mut b.rx, 1 => &mut b.tx, _ => &mut b.control };
            driver.send(&[Part::Raw(BUFFERS + addr % RAM, len, writable), Part::Write(20)]);
            if let Some(len) = frames.next() {
                b.wire.send(&vec![0; len]);
            }
            broken |= b.task.run().is_err();
            if broken {
                break;
            }
        }
        let tx = b.tx.used().len();
        prop_assert!(broken || b.tx.outstanding() == 0, "{tx} sent");
    }
}

/// What the driver makes of the chains that came back: frames without their headers.
fn frames_of(used: &[Used]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = used;
    while let Some(first) = rest.first() {
        let count = usize::from(u16::from_le_bytes([first.bytes[10], first.bytes[11]]));
        let (frame, tail) = rest.split_at(count);
        frames.push(Bench::joined(frame)[HEADER..].to_vec());
        rest = tail;
    }
    frames
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(96))]
    /// Whatever the buffers, frames arrive intact and in order; those that do not are counted.
    #[test]
    fn frames_arrive_whole_or_are_counted(
        steps in prop::collection::vec((0..5u8, 12..2500usize, 0..12usize, 14..5000usize), 1..80),
        merge in any::<bool>(),
        headed in any::<bool>(),
    ) {
        let wire = if headed { Wire::default() } else { bare() };
        let mut b = bench_on(wire, if merge { MERGE } else { 0 });
        let (mut sent, mut used) = (Vec::new(), Vec::new());
        for (number, (action, room, split, len)) in steps.into_iter().enumerate() {
            match action {
                0 | 1 => {
                    let head = split.min(room);
                    b.rx.send(&[Part::Write(head), Part::Write(room - head)]);
                }
                2 => {
                    prop_assert!(b.task.task.drain().unwrap());
                    b.task.resume();
                }
                _ => {
                    let frame: Vec<u8> = (0..len).map(|n| (n + number * 7) as u8).collect();
                    let header = if headed { vec![0; HEADER] } else { vec![] };
                    if b.wire.send(&[header, frame.clone()].concat()) {
                        sent.push(frame);
                    }
                }
            }
            b.task.run().unwrap();
            used.extend(b.rx.used());
        }
        // Room for everything, at last.
        for _ in 0..64 {
            b.rx.send(&[Part::Write(6000)]);
            b.task.run().unwrap();
            used.extend(b.rx.used());
        }
        let arrived = frames_of(&used);
        let lost = b.count("rx_oversize") + b.count("rx_dropped");
        assert_eq!(arrived.len() as u64 + lost, sent.len() as u64);
        let mut all = sent.iter();
        for frame in &arrived {
            prop_assert!(all.any(|s| s == frame), "not sent, or out of order");
        }
    }
}
