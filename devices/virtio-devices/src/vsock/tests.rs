//! Streams through real Unix sockets, credit, ends of connections and packets against the rules.

use super::packet::{CLOSED, HEADER, HOST, Header, NO_SEND, STREAM, op};
use super::task::MAX_CONNECTIONS;
use super::*;
use crate::testing::{BUFFERS, Driver, Part, RAM, Rig, Running};
use nyx_inspect::Json;
use nyx_state::PersistBlob;
use proptest::prelude::{any, prop, prop_assert, proptest};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

const CID: u64 = 42;
/// What the guest says it buffers.
const ROOM: u32 = 32 << 10;

struct Bench {
    dir: tempfile::TempDir,
    rig: Rig,
    vsock: Vsock,
    task: Running,
    receive: Driver,
    transmit: Driver,
    events: Driver,
    forwarded: u32,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let config = VsockConfig {
        cid: CID as u32,
        socket: dir.path().join("v"),
    };
    let mut vsock = Vsock::new(&config).unwrap();
    let mut rig = Rig::new();
    let (mut tasks, mut drivers) = rig.activate(&mut vsock, 0);
    let events = drivers.remove(2);
    let transmit = drivers.remove(1);
    let (task, receive) = (tasks.remove(0), drivers.remove(0));
    Bench {
        dir,
        rig,
        vsock,
        task,
        receive,
        transmit,
        events,
        forwarded: 0,
    }
}

fn header(op: u16, guest_port: u32, host_port: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST,
        src_port: guest_port,
        dst_port: host_port,
        kind: STREAM,
        op,
        buf_alloc: ROOM,
        ..Header::default()
    }
}

impl Bench {
    fn offer(&mut self, count: usize, len: usize) {
        for _ in 0..count {
            self.receive.offer(&[Part::Write(len)]);
        }
        self.receive.kick.signal();
    }
    fn send(&mut self, header: Header, payload: &[u8]) {
        let header = Header {
            len: payload.len() as u32,
            fwd_cnt: self.forwarded,
            ..header
        }
        .to_bytes();
        self.transmit
            .send(&[Part::Read(header.to_vec()), Part::Read(payload.to_vec())]);
        self.task.run().unwrap();
        self.transmit.used();
    }
    /// What the device says, buffers renewed.
    fn heard(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.task.run().unwrap();
        let used = self.receive.used();
        self.offer(used.len(), 4096);
        self.task.run().unwrap();
        let packet = |u: &crate::testing::Used| {
            let header = Header::from_bytes(u.bytes.first_chunk().unwrap());
            (header, u.bytes[HEADER..u.len as usize].to_vec())
        };
        used.iter().filter(|u| u.len != 0).map(packet).collect()
    }
    fn heard_one(&mut self) -> (Header, Vec<u8>) {
        let mut heard = self.heard();
        assert_eq!(heard.len(), 1, "{heard:?}");
        heard.remove(0)
    }
    /// A host program's listener for guest connections to `port`.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v_{port}"))).unwrap()
    }
    /// A guest connection that the host took.
    fn reach(&mut self, port: u32) -> UnixStream {
        let listener = self.listen(port);
        self.offer(16, 4096);
        self.send(header(op::REQUEST, 1000, port), &[]);
        let (answer, _) = self.heard_one();
        assert_eq!(
            (answer.op, answer.src_port, answer.dst_port),
            (op::RESPONSE, port, 1000)
        );
        assert_eq!(
            (answer.src_cid, answer.dst_cid, answer.kind),
            (HOST, CID, STREAM)
        );
        let (stream, _) = listener.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream
    }
    fn count(&self, name: &str) -> u64 {
        Json::of(&self.vsock)[name].as_u64().unwrap()
    }
}

/// Whatever can be read now.
fn available(stream: &UnixStream) -> Vec<u8> {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    let _ = (&mut &*stream).read_to_end(&mut bytes);
    stream.set_nonblocking(false).unwrap();
    bytes
}

#[test]
fn the_configuration_space_is_the_address() {
    let b = bench();
    let mut space = [0xff; 9];
    b.vsock.read_config(0, &mut space);
    assert_eq!(space, [42, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_host_program_reaches_the_guest_and_is_echoed() {
    let mut b = bench();
    b.offer(16, 4096);
    let mut host = UnixStream::connect(b.dir.path().join("v")).unwrap();
    host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    host.write_all(b"CONN").unwrap();
    assert_eq!(b.heard(), []);
    host.write_all(b"ECT 5000\nearly").unwrap();
    let (request, _) = b.heard_one();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 5000));
    let port = request.src_port;
    assert!(port >= 1 << 30);
    assert_eq!(available(&host), b"");
    b.send(header(op::RESPONSE, 5000, port), &[]);
    let mut lines = BufReader::new(host.try_clone().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, format!("OK {port}\n"));
    let (data, payload) = b.heard_one();
    assert_eq!((data.op, payload.as_slice()), (op::RW, b"early".as_slice()));
    b.send(header(op::RW, 5000, port), &payload);
    let mut echo = [0; 5];
    lines.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"early");
    assert_eq!(
        (b.count("to_guest_bytes"), b.count("from_guest_bytes")),
        (5, 5)
    );
    // The host program goes: both halves end, and the guest confirms.
    drop((host, lines));
    let (end, _) = b.heard_one();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, CLOSED));
    assert_eq!(b.count("connections"), 1);
    b.send(header(op::RST, 5000, port), &[]);
    assert_eq!((b.count("connections"), b.heard()), (0, vec![]));
}

#[test]
fn bad_greetings_and_refusals_close_the_host_programs_socket() {
    let mut b = bench();
    b.offer(16, 4096);
    let long = "C".repeat(40);
    for text in [
        "GET / HTTP/1.1\n",
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT 1 2\n",
        "CONNECT 4294967296\n",
        &long,
    ] {
        let mut host = UnixStream::connect(b.dir.path().join("v")).unwrap();
        host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        host.write_all(text.as_bytes()).unwrap();
        assert_eq!(b.heard(), [], "{text}");
        // Unread bytes make the end a reset.
        let end = host.read(&mut [0; 8]);
        assert!(
            matches!(&end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
        );
    }
    let mut host = UnixStream::connect(b.dir.path().join("v")).unwrap();
    host.write_all(b"connect 7\n").unwrap();
    let (request, _) = b.heard_one();
    b.send(header(op::RST, 7, request.src_port), &[]);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    // One that gives up before the guest has answered.
    let mut host = UnixStream::connect(b.dir.path().join("v")).unwrap();
    host.write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = b.heard_one();
    drop(host);
    let (end, _) = b.heard_one();
    assert_eq!((end.op, end.src_port), (op::RST, request.src_port));
    assert_eq!(b.count("connections"), 0);
}

#[test]
fn a_guest_program_reaches_a_host_program_or_gets_a_reset() {
    let mut b = bench();
    let mut host = b.reach(80);
    b.send(header(op::RW, 1000, 80), b"question");
    let mut got = [0; 8];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"question");
    host.write_all(b"answer").unwrap();
    assert_eq!(b.heard_one().1, b"answer");
    b.send(header(op::REQUEST, 1001, 81), &[]);
    let (reset, _) = b.heard_one();
    assert_eq!(
        (reset.op, reset.src_port, reset.dst_port),
        (op::RST, 81, 1001)
    );
    assert_eq!(
        (b.count("guest_connections"), b.count("refused_connections")),
        (1, 1)
    );
}

#[test]
fn halves_end_one_by_one() {
    let mut b = bench();
    let mut host = b.reach(80);
    b.send(header(op::RW, 1000, 80), b"last words");
    b.send(
        Header {
            flags: NO_SEND,
            ..header(op::SHUTDOWN, 1000, 80)
        },
        &[],
    );
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last words");
    host.write_all(b"still heard").unwrap();
    assert_eq!(b.heard_one().1, b"still heard");
    host.shutdown(std::net::Shutdown::Write).unwrap();
    let (end, _) = b.heard_one();
    assert_eq!(end.op, op::SHUTDOWN);
    // Both directions are over now, so the kernel reports the socket as hung up.
    assert_ne!(end.flags & NO_SEND, 0);
    assert_eq!(
        b.task.wakeup(Duration::from_millis(20)).unwrap(),
        0,
        "no spinning on its end"
    );
    b.send(
        Header {
            flags: CLOSED,
            ..header(op::SHUTDOWN, 1000, 80)
        },
        &[],
    );
    assert_eq!(b.heard_one().0.op, op::RST);
    assert_eq!(b.count("connections"), 0);
    // The host ends its half first.
    let mut host = b.reach(81);
    host.shutdown(std::net::Shutdown::Write).unwrap();
    let (end, _) = b.heard_one();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, NO_SEND));
    b.send(header(op::RW, 1000, 81), b"and yet");
    let mut got = [0; 7];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"and yet");
    drop(host);
    b.send(header(op::RW, 1000, 81), b"to nobody");
    let (end, _) = b.heard_one();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, CLOSED));
    b.send(header(op::RST, 1000, 81), &[]);
    assert_eq!(b.count("connections"), 0);
}

#[test]
fn the_guests_credit_is_respected_and_asked_for() {
    let mut b = bench();
    let mut host = b.reach(80);
    let bytes: Vec<u8> = (0..3 * ROOM).map(|n| (n % 251) as u8).collect();
    host.set_nonblocking(true).unwrap();
    let mut written = 0;
    let (mut got, mut requests) = (Vec::new(), 0);
    for _ in 0..1000 {
        if let Ok(n) = host.write(&bytes[written..]) {
            written += n;
        }
        for (header, payload) in b.heard() {
            match header.op {
                op::RW => got.extend(payload),
                op::CREDIT_REQUEST => requests += 1,
                other => panic!("{other}"),
            }
        }
        assert!(
            got.len() as u32 - b.forwarded <= ROOM,
            "more than the guest has room for"
        );
        if requests != 0 && got.len() as u32 != b.forwarded {
            assert_eq!(got.len() as u32 - b.forwarded, ROOM);
            b.forwarded = got.len() as u32;
            requests = 0;
            b.send(header(op::CREDIT_UPDATE, 1000, 80), &[]);
        }
        if got.len() == bytes.len() {
            break;
        }
    }
    assert_eq!(got, bytes);
}

#[test]
fn a_slow_host_program_holds_the_guest_back_and_a_cheat_is_reset() {
    let mut b = bench();
    let host = b.reach(80);
    let chunk = [7; 32 << 10];
    // The guest obeys what it is allowed: nothing is lost.
    let (mut sent, mut told, mut allowed) = (0u32, 0u32, 256u32 << 10);
    while sent - told + chunk.len() as u32 <= allowed {
        b.send(header(op::RW, 1000, 80), &chunk);
        sent += chunk.len() as u32;
        for (header, _) in b.heard() {
            (told, allowed) = (header.fwd_cnt, header.buf_alloc);
        }
    }
    assert!(sent >= 256 << 10);
    let mut read = 0;
    while read < sent as usize {
        read += available(&host).len();
        b.task.run().unwrap();
    }
    assert_eq!(b.heard().last().unwrap().0.op, op::CREDIT_UPDATE);
    assert_eq!(b.count("bad_packets"), 0);
    // It sends more than that: its connection is reset, and the host program sees the end.
    for _ in 0..64 {
        b.send(header(op::RW, 1000, 80), &chunk);
    }
    let resets = b.heard().iter().filter(|(h, _)| h.op == op::RST).count();
    assert!(resets >= 1);
    assert_eq!(b.count("connections"), 0);
    assert_ne!(b.count("bad_packets"), 0);
}

#[test]
fn credit_is_told_when_it_matters_and_when_asked() {
    let mut b = bench();
    let host = b.reach(80);
    let mut updates = 0;
    for _ in 0..100 {
        b.send(header(op::RW, 1000, 80), &[1; 8192]);
        assert_eq!(available(&host).len(), 8192);
        updates += b.heard().len();
    }
    // 800 KiB through an allowance of 256 KiB, told at every half of it.
    assert!((3..=8).contains(&updates), "{updates}");
    b.send(header(op::CREDIT_REQUEST, 1000, 80), &[]);
    let (update, _) = b.heard_one();
    assert_eq!((update.op, update.fwd_cnt), (op::CREDIT_UPDATE, 819_200));
}

#[test]
fn a_pause_holds_connections_and_loses_nothing() {
    let mut b = bench();
    let mut host = b.reach(80);
    assert!(b.task.task.drain().unwrap());
    // A parked worker hears nothing but commands, so the task does not run here.
    host.write_all(b"while you slept").unwrap();
    let bytes = Header {
        len: 3,
        ..header(op::RW, 1000, 80)
    }
    .to_bytes();
    b.transmit
        .send(&[Part::Read(bytes.to_vec()), Part::Read(b"zzz".to_vec())]);
    b.task.resume();
    assert_eq!(b.heard_one().1, b"while you slept");
    assert_eq!(available(&host), b"zzz");
}

#[test]
fn packets_against_the_rules_are_reset_or_ignored() {
    let mut b = bench();
    b.offer(32, 4096);
    for bad in [
        header(op::RW, 9, 9),
        header(op::RESPONSE, 9, 9),
        Header {
            kind: 2,
            ..header(op::REQUEST, 9, 9)
        },
        Header {
            dst_cid: 7,
            ..header(op::REQUEST, 9, 9)
        },
        header(77, 9, 9),
    ] {
        b.send(bad, &[]);
        let (reset, _) = b.heard_one();
        assert_eq!(
            (reset.op, reset.src_cid, reset.kind),
            (op::RST, bad.dst_cid, bad.kind)
        );
        assert_eq!((reset.src_port, reset.dst_port), (9, 9));
    }
    b.send(header(op::RST, 9, 9), &[]);
    b.send(
        Header {
            src_cid: 43,
            ..header(op::RW, 9, 9)
        },
        &[],
    );
    b.transmit.send(&[Part::Read(vec![0; 43])]);
    b.transmit.send(&[Part::Write(64)]);
    b.transmit.send(&[Part::Raw(RAM, 64, false)]);
    assert_eq!(b.heard(), []);
    assert_eq!(b.count("bad_packets"), 10);
    // A length beyond the chain ends its connection.
    let _host = b.reach(80);
    let lie = Header {
        len: 100,
        ..header(op::RW, 1000, 80)
    };
    b.transmit
        .send(&[Part::Read(lie.to_bytes().to_vec()), Part::Read(vec![0; 99])]);
    assert_eq!(b.heard_one().0.op, op::RST);
}

#[test]
fn without_buffers_answers_wait_and_packets_stay_in_the_queue() {
    let mut b = bench();
    for _ in 0..100 {
        let bytes = header(op::RW, 9, 9).to_bytes().to_vec();
        b.transmit.send(&[Part::Read(bytes)]);
    }
    b.task.run().unwrap();
    assert_eq!(b.transmit.used().len(), 64);
    b.offer(128, 64);
    let heard = b.heard();
    assert_eq!((heard.len(), b.transmit.used().len()), (100, 36));
}

#[test]
fn buffers_with_room_for_headers_only_are_used_up_and_nothing_spins() {
    let mut b = bench();
    let mut host = b.reach(80);
    b.task.run().unwrap();
    // The sixteen real ones first.
    for n in 0..16u8 {
        host.write_all(&[n; 100]).unwrap();
        b.task.run().unwrap();
    }
    host.write_all(b"stuck").unwrap();
    for len in [0, 43, 44] {
        b.receive.offer(&[Part::Write(len)]);
    }
    b.receive.kick.signal();
    b.task.run().unwrap();
    assert_ne!(b.count("bad_buffers"), 0);
    b.offer(1, 64);
    let heard = b.heard();
    assert_eq!(heard.last().unwrap().1, b"stuck");
}

#[test]
fn after_a_restore_the_guest_is_told_that_its_connections_are_gone() {
    let mut b = bench();
    b.events.send(&[Part::Write(4)]);
    b.task.run().unwrap();
    assert_eq!(b.events.used(), [], "nothing happened yet");
    let saved = b.vsock.save_blob().unwrap();
    assert!(b.task.task.drain().unwrap());
    let Bench {
        mut rig,
        mut vsock,
        task,
        dir,
        ..
    } = b;
    drop(task);
    vsock.restore_blob(&saved).unwrap();
    let (mut tasks, mut drivers) = rig.activate(&mut vsock, 0);
    drivers[2].send(&[Part::Write(8)]);
    drivers[2].send(&[Part::Write(8)]);
    tasks[0].run().unwrap();
    let used = drivers[2].used_one();
    assert_eq!((used.len, &used.bytes[..4]), (4, [0; 4].as_slice()));
    drop(vsock);
    assert!(
        !dir.path().join("v").exists(),
        "even while a worker still has the socket"
    );
    drop(tasks);
}

#[test]
fn connections_are_limited_and_greeters_make_way() {
    let mut b = bench();
    let listener = b.listen(80);
    b.offer(200, 64);
    let mut taken = Vec::new();
    for n in 0..MAX_CONNECTIONS as u32 + 8 {
        b.send(header(op::REQUEST, 2000 + n, 80), &[]);
        let heard = b.heard();
        assert_eq!(heard.len(), 1, "{n}");
        let op = heard[0].0.op;
        let wanted = if n < MAX_CONNECTIONS as u32 {
            op::RESPONSE
        } else {
            op::RST
        };
        assert_eq!(op, wanted, "{n}");
        if op == op::RESPONSE {
            taken.push(listener.accept().unwrap());
        }
    }
    assert_eq!(b.count("connections"), 1024);
    // A host program waits in the backlog meanwhile.
    let mut host = UnixStream::connect(b.dir.path().join("v")).unwrap();
    host.write_all(b"CONNECT 7\n").unwrap();
    assert_eq!(b.heard(), []);
    b.send(header(op::RST, 2000, 80), &[]);
    assert_eq!(b.heard_one().0.op, op::REQUEST);
}

#[test]
fn bad_configurations_are_refused_by_name() {
    let shape = |cid, socket: &str| {
        VsockKind::shape(&VsockConfig {
            cid,
            socket: socket.into(),
        })
        .unwrap_err()
        .to_string()
    };
    assert_eq!(shape(2, "/v"), "cid: 2 is not from 3 to 4294967294");
    assert_eq!(
        shape(u32::MAX, "/v"),
        "cid: 4294967295 is not from 3 to 4294967294"
    );
    assert_eq!(shape(3, ""), "socket: a path of 0 bytes is not of 1 to 96");
    assert!(shape(3, &"x".repeat(97)).starts_with("socket: "));
    let missing = VsockConfig {
        cid: 3,
        socket: "/nonexistent/v".into(),
    };
    let error = Vsock::new(&missing).err().unwrap().to_string();
    assert!(
        error.starts_with("cannot listen on \"/nonexistent/v\": "),
        "{error}"
    );
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn any_packets_leave_the_device_answering_or_broken(
        packets in prop::collection::vec(
            ((0..9u16, 0..3u32, 78..82u32, any::<u32>()), (0..4000u32, any::<bool>(), any::<u64>()), 0..6u8),
            1..60,
        ),
    ) {
        let mut b = bench();
        let listener = b.listen(80);
        listener.set_nonblocking(true).unwrap();
        let mut hosts = Vec::new();
        for ((op, guest, host, flags), (len, honest, addr), action) in packets {
            let header = Header { flags, len, ..header(op, guest, host) };
            let tail = if honest { Part::Read(vec![0; len as usize]) } else { Part::Raw(BUFFERS + addr % RAM, len, addr & 1 != 0) };
            b.transmit.send(&[Part::Read(header.to_bytes().to_vec()), tail]);
            match action {
                0 => b.offer(4, len as usize),
                1 => b.offer(4, 4096),
                2 => hosts.extend(listener.accept().ok()),
                3 => drop(hosts.pop()),
                4 => hosts.iter_mut().for_each(|(s, _)| { let _ = s.write(b"bytes"); }),
                _ => {}
            }
            if let Err(e) = b.task.run() {
                prop_assert!(matches!(e, TaskError::Queue(_) | TaskError::Protocol(_)), "{e}");
                return Ok(());
            }
        }
        prop_assert!(b.count("connections") <= 12);
        prop_assert!(b.rig.interrupts("broken_rings") == 0);
    }
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    /// Both directions of a stream, in any pieces, with pauses, at any pace of either side.
    #[test]
    fn streams_arrive_whole(
        steps in prop::collection::vec((0..7u8, 1..9000usize), 1..120),
    ) {
        let mut b = bench();
        let mut host = b.reach(80);
        host.set_nonblocking(true).unwrap();
        let byte = |n: usize| (n % 253) as u8;
        let (mut to_guest, mut to_host) = (0, 0);
        let (mut at_guest, mut at_host) = (Vec::new(), Vec::new());
        let (mut allowed, mut told) = (256u32 << 10, 0u32);
        let mut last = 0;
        for (action, size) in steps.into_iter().chain((0..200).map(|n| ([2, 3, 4][n % 3], 9000))) {
            match action {
                0 => {
                    let bytes: Vec<u8> = (to_guest..to_guest + size).map(byte).collect();
                    to_guest += host.write(&bytes).unwrap_or(0);
                }
                1 if to_host as u32 - told + size as u32 <= allowed => {
                    let bytes: Vec<u8> = (to_host..to_host + size).map(byte).collect();
                    b.send(header(op::RW, 1000, 80), &bytes);
                    to_host += size;
                }
                2 => at_host.extend(available(&host)),
                3 => {
                    b.forwarded = at_guest.len() as u32;
                    b.send(header(op::CREDIT_UPDATE, 1000, 80), &[]);
                }
                5 => b.offer(1, HEADER + size % 200),
                6 => {
                    prop_assert!(b.task.task.drain().unwrap());
                    b.task.resume();
                }
                _ => {}
            }
            host.set_nonblocking(true).unwrap();
            for (header, payload) in b.heard() {
                prop_assert!(matches!(header.op, op::RW | op::CREDIT_UPDATE | op::CREDIT_REQUEST));
                at_guest.extend(payload);
                (told, allowed) = (header.fwd_cnt, header.buf_alloc);
                last = header.op;
            }
            prop_assert!(at_guest.len() as u32 - b.forwarded <= ROOM);
        }
        assert_eq!((at_guest.len(), at_host.len()), (to_guest, to_host), "last was {}", last);
        prop_assert!(at_guest.iter().enumerate().all(|(n, &b)| b == byte(n)));
        prop_assert!(at_host.iter().enumerate().all(|(n, &b)| b == byte(n)));
    }
}
