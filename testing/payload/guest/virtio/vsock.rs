//! virtio-vsock (virtio 1.2, 5.10): a stream to the host, echoed; and packets that break the rules.

use super::queue::{reads, writes};
use super::{Buffer, Device, Sequence, Setup, kind};
use crate::out::Test;
use crate::{cmdline, mem, time};

const HEADER: usize = 44;
const HOST: u64 = 2;
const LOCAL_PORT: u32 = 0x1234_5678;
const STREAM: u16 = 1;
const ROOM: u32 = 64 << 10;

/// Operations.
mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// A packet's header, as far as the tests look at it.
#[derive(Clone, Copy, Default)]
struct Packet {
    len: u32,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

struct Socket {
    device: Device,
    cid: u64,
    out: Buffer,
    inbox: u64,
    port: u32,
    received: u32,
}

const INBOX_EACH: u64 = 8192;

impl Socket {
    fn send(&mut self, op: u16, port: u32, data_len: usize, flags: u32) -> bool {
        let h = &mut self.out.bytes()[..HEADER];
        h[..8].copy_from_slice(&self.cid.to_le_bytes());
        h[8..16].copy_from_slice(&HOST.to_le_bytes());
        h[16..20].copy_from_slice(&LOCAL_PORT.to_le_bytes());
        h[20..24].copy_from_slice(&port.to_le_bytes());
        h[24..28].copy_from_slice(&(data_len as u32).to_le_bytes());
        h[28..30].copy_from_slice(&STREAM.to_le_bytes());
        h[30..32].copy_from_slice(&op.to_le_bytes());
        h[32..36].copy_from_slice(&flags.to_le_bytes());
        h[36..40].copy_from_slice(&ROOM.to_le_bytes());
        h[40..44].copy_from_slice(&self.received.to_le_bytes());
        let at = self.out.at;
        let queue = self.device.queue(1);
        if data_len == 0 {
            queue.request(&[reads(at, HEADER as u32)]).is_some()
        } else {
            queue
                .request(&[
                    reads(at, HEADER as u32),
                    reads(at + HEADER as u64, data_len as u32),
                ])
                .is_some()
        }
    }

    /// The next packet for this connection, and its data's place.
    fn receive(&mut self, cycles: u64) -> Option<(Packet, u64)> {
        let end = crate::cpu::tsc() + cycles;
        loop {
            let left = end.saturating_sub(crate::cpu::tsc());
            let (head, len) = self.device.queue(0).wait(left)?;
            let at = self.device.queue(0).get_desc(head).address;
            // SAFETY: a receive buffer that the device has given back.
            let h = unsafe { core::slice::from_raw_parts(at as *const u8, HEADER) };
            let word = |i: usize| u32::from_le_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
            let packet = Packet {
                len: word(24),
                op: u16::from_le_bytes([h[30], h[31]]),
                flags: word(32),
                buf_alloc: word(36),
                fwd_cnt: word(40),
            };
            let ours = word(20) == LOCAL_PORT && word(16) == self.port && len as usize >= HEADER;
            if ours {
                return Some((packet, at));
            }
            self.give_back(at);
        }
    }

    fn give_back(&mut self, at: u64) {
        self.device.queue(0).put(&[writes(at, INBOX_EACH as u32)]);
        self.device.queue(0).kick();
    }
}

/// Connects to `vsock_port=` (1024) on the host, sends `vsock_bytes=` (64 KiB) and expects them back.
/// With `vsock=refused` it expects that nobody listens there.
pub fn basic(test: &mut Test) {
    let Some(transport) = super::find(kind::VSOCK).next() else {
        return test.skip("no virtio-vsock device");
    };
    let mark = mem::mark();
    match Device::start(transport, Setup::polled(3)) {
        Ok(device) => {
            let cid = transport.config64(0);
            test.check(
                cid > 2 && cid < u64::from(u32::MAX),
                "guest CID is reserved",
            );
            if let Some(want) = cmdline::value("vsock_cid").and_then(cmdline::number) {
                test.eq("guest CID", cid, want);
            }
            let count = device.queues[0].as_ref().map_or(0, |q| q.size.min(32));
            let mut socket = Socket {
                device,
                cid,
                out: Buffer::new(8192),
                inbox: mem::alloc(INBOX_EACH * u64::from(count), 4096) as u64,
                port: cmdline::number_or("vsock_port", 1024) as u32,
                received: 0,
            };
            for i in 0..u64::from(count) {
                let at = socket.inbox + INBOX_EACH * i;
                socket.device.queue(0).put(&[writes(at, INBOX_EACH as u32)]);
            }
            socket.device.queue(0).kick();
            connection(test, &mut socket);
            wild(test, &mut socket);
        }
        Err(why) => test.fail(format_args!("does not start: {why}")),
    }
    transport.reset();
    mem::release(mark);
}

fn connection(test: &mut Test, socket: &mut Socket) {
    let refused = cmdline::value("vsock") == Some("refused");
    let port = socket.port;
    test.check(
        socket.send(op::REQUEST, port, 0, 0),
        "a connection request is not taken",
    );
    let Some((answer, at)) = socket.receive(time::seconds(5)) else {
        return test.fail(format_args!("no answer to a connection request"));
    };
    socket.give_back(at);
    if refused {
        test.eq("answer where nobody listens", answer.op, op::RST);
        return;
    }
    if !test.eq("answer to a connection request", answer.op, op::RESPONSE) {
        return;
    }
    let total = cmdline::number_or("vsock_bytes", 64 << 10) as u32;
    let (mut peer_room, mut peer_taken) = (answer.buf_alloc, answer.fwd_cnt);
    let (mut sent, mut last_update) = (0_u32, 0_u32);
    let mut wrong = 0;
    while socket.received < total {
        let in_flight = sent.wrapping_sub(peer_taken);
        let len = (total - sent)
            .min(4096)
            .min(peer_room.saturating_sub(in_flight));
        if len > 0 {
            for i in 0..len {
                socket.out.bytes()[HEADER + i as usize] = pattern(sent + i);
            }
            if !test.check(
                socket.send(op::RW, port, len as usize, 0),
                "data is not taken",
            ) {
                return;
            }
            sent += len;
        }
        let patience = if len > 0 { 1 } else { time::seconds(10) };
        let Some((packet, at)) = socket.receive(patience) else {
            if len > 0 {
                continue;
            }
            return test.fail(format_args!(
                "nothing comes after {} of {total} bytes ({sent} sent)",
                socket.received
            ));
        };
        (peer_room, peer_taken) = (packet.buf_alloc, packet.fwd_cnt);
        match packet.op {
            op::RW => {
                for i in 0..packet.len.min(INBOX_EACH as u32 - HEADER as u32) {
                    let byte =
                        crate::cpu::shared_read((at + HEADER as u64 + u64::from(i)) as *const u8);
                    wrong += u32::from(byte != pattern(socket.received + i));
                }
                socket.received = socket.received.wrapping_add(packet.len);
            }
            op::CREDIT_REQUEST => {
                socket.send(op::CREDIT_UPDATE, port, 0, 0);
            }
            op::CREDIT_UPDATE => {}
            other => {
                return test.fail(format_args!(
                    "operation {other} after {} bytes",
                    socket.received
                ));
            }
        }
        socket.give_back(at);
        if socket.received - last_update > ROOM / 4 {
            last_update = socket.received;
            socket.send(op::CREDIT_UPDATE, port, 0, 0);
        }
    }
    test.eq("bytes that came back wrong", wrong, 0_u32);
    test.check(
        socket.send(op::SHUTDOWN, port, 0, 3),
        "a shutdown is not taken",
    );
    let mut closed = false;
    while let Some((packet, at)) = socket.receive(time::seconds(3)) {
        socket.give_back(at);
        if packet.op == op::RST {
            closed = true;
            break;
        }
    }
    test.check(closed, "no reset answers a shutdown of both directions");
}

fn pattern(at: u32) -> u8 {
    (Sequence(u64::from(at / 8)).next() >> (8 * (at % 8))) as u8
}

/// Packets that no connection fits, and packets that break the format, are taken and do no harm.
fn wild(test: &mut Test, socket: &mut Socket) {
    let port = socket.port;
    for op in [
        op::RW,
        op::RESPONSE,
        op::SHUTDOWN,
        op::CREDIT_UPDATE,
        op::RST,
        0,
        99,
        0xffff,
    ] {
        if !socket.send(op, port.wrapping_add(77), 0, 0) {
            return test.fail(format_args!(
                "a stray packet with operation {op} does not come back"
            ));
        }
    }
    // A header that promises more data than there is, less, and one cut short. The device may ask for a
    // reset instead of dropping them.
    let torn = [
        (0xffff_ffff_u32, 44, 0_u32),
        (100, 44, 10),
        (10, 44, 100),
        (65_537, 44, 4096),
    ];
    let short = [0, 1, 43].map(|len| (0, len, 0));
    for (promised, header, data) in torn.into_iter().chain(short) {
        let bytes = socket.out.bytes();
        bytes[24..28].copy_from_slice(&promised.to_le_bytes());
        bytes[30..32].copy_from_slice(&op::RW.to_le_bytes());
        let at = socket.out.at;
        let parts = [reads(at, header), reads(at + HEADER as u64, data)];
        let device = &mut socket.device;
        device.queue(1).put(&parts[..if data == 0 { 1 } else { 2 }]);
        device.queue(1).kick();
        let answered = time::until(time::seconds(5), || {
            device.needs_reset() || device.queue(1).take().is_some()
        });
        if !answered {
            test.fail(format_args!(
                "a packet of {header} and {data} bytes does not come back"
            ));
        }
        if !answered || device.needs_reset() {
            return;
        }
    }
}
