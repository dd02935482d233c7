//! virtio-net (virtio 1.2, 5.1): sends broadcast frames that a host test can count, counts and answers
//! what it receives, and measures transmission.

use super::queue::{reads, writes};
use super::{Buffer, Device, Setup, kind};
use crate::cpu::{read16, tsc};
use crate::out::{self, Test};
use crate::{cmdline, cpu, mem, time};

const CSUM: u64 = 1;
const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const MRG_RXBUF: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;

/// The header before every frame: 12 bytes under VERSION_1.
const HEADER: u32 = 12;
/// EtherType for local experiments (IEEE 802).
const TYPE: [u8; 2] = [0x88, 0xb5];

/// Features that the tests drive: no segmentation, no control queue.
const FEATURES: u64 = CSUM
    | GUEST_CSUM
    | MTU
    | MAC
    | MRG_RXBUF
    | STATUS
    | super::feature::INDIRECT
    | super::feature::EVENT_IDX
    | super::feature::VERSION_1;

/// Writes an experimental frame of `len` bytes; its payload holds `number`.
fn frame(bytes: &mut [u8], mac: [u8; 6], number: u32) {
    bytes.fill(0);
    let f = &mut bytes[HEADER as usize..];
    f[..6].fill(0xff);
    f[6..12].copy_from_slice(&mac);
    f[12..14].copy_from_slice(&TYPE);
    f[14..18].copy_from_slice(&number.to_be_bytes());
    for (i, byte) in f[18..].iter_mut().enumerate() {
        *byte = (i as u32 ^ number) as u8;
    }
}

fn mac_of(device: &Device) -> [u8; 6] {
    let mut mac = [0x02, 0, 0, 0, 0, 1];
    if device.has(MAC) {
        for (i, byte) in mac.iter_mut().enumerate() {
            *byte = cpu::read8(device.transport.config() + i as u64);
        }
    }
    mac
}

/// Sends `net_frames=` frames (64 by default) of all sizes; receives for `net_wait=` milliseconds and
/// sends every experimental frame back to its sender (none by default).
pub fn basic(test: &mut Test) {
    let mut found = false;
    for transport in super::find(kind::NET) {
        found = true;
        let mark = mem::mark();
        let mut device = match Device::start(transport, Setup::polled(2).with_features(FEATURES)) {
            Ok(device) => device,
            Err(why) => return test.fail(format_args!("does not start: {why}")),
        };
        let mac = mac_of(&device);
        test.note(format_args!(
            "mac {mac:02x?}, features {:#x}",
            device.features
        ));
        test.eq("group bit of the MAC", mac[0] & 1, 0_u8);
        if device.has(MTU) {
            let mtu = read16(transport.config() + 10);
            test.check(mtu >= 68, "MTU below 68");
        }
        if device.has(STATUS) {
            test.note(format_args!("status {:#x}", read16(transport.config() + 6)));
        }
        receive_buffers(&mut device);
        transmit(test, &mut device, mac);
        let wait = cmdline::number_or("net_wait", 0);
        if wait > 0 {
            reflect(test, &mut device, mac, wait);
        }
        test.check(
            !device.needs_reset(),
            "the device needs a reset after frames that are in order",
        );
        odd_frames(test, device);
        transport.reset();
        mem::release(mark);
    }
    if !found {
        test.skip("no virtio-net device");
    }
}

const RECEIVE_SIZE: u64 = 2048;

fn receive_buffers(device: &mut Device) -> u64 {
    let count = device.queue(0).room().min(64);
    let at = mem::alloc(RECEIVE_SIZE * u64::from(device.queue(0).size), 4096) as u64;
    for _ in 0..count {
        // A one-part request's head is the buffer's number.
        let head = device
            .queue(0)
            .put(&[writes(at, RECEIVE_SIZE as u32)])
            .unwrap_or(0);
        let desc = device.queue(0).get_desc(head);
        let address = at + RECEIVE_SIZE * u64::from(head);
        device
            .queue(0)
            .set_desc(head, super::queue::Desc { address, ..desc });
    }
    device.queue(0).kick();
    at
}

fn transmit(test: &mut Test, device: &mut Device, mac: [u8; 6]) {
    let buffer = Buffer::new(4096);
    let frames = cmdline::number_or("net_frames", 64);
    for number in 0..frames {
        let len = (60 + number * 97 % 1455) as usize;
        frame(
            &mut buffer.bytes()[..HEADER as usize + len],
            mac,
            number as u32,
        );
        let total = HEADER + len as u32;
        let sent = match number % 3 {
            0 => device.queue(1).request(&[reads(buffer.at, total)]),
            1 => device
                .queue(1)
                .request(&[reads(buffer.at, HEADER), reads(buffer.at + 12, len as u32)]),
            _ => device.queue(1).request(&[
                reads(buffer.at, 5),
                reads(buffer.at + 5, 20),
                reads(buffer.at + 25, total - 25),
            ]),
        };
        if sent.is_none() {
            return test.fail(format_args!("frame {number} of {len} bytes is not taken"));
        }
    }
}

/// Frames too short, too long, or with a wild header come back, sent or not, or the device asks for a
/// reset; after that it is started again.
fn odd_frames(test: &mut Test, mut device: Device) {
    // flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
    const HEADERS: [[u8; 10]; 4] = [
        [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        [1, 1, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
        [0xff; 10],
        [0, 0x81, 0, 0, 0xff, 0xff, 14, 0, 200, 0],
    ];
    const LENGTHS: [u32; 9] = [0, 1, 11, 12, 13, 25, 26, 70_000, 200_000];
    let buffer = Buffer::new(256 << 10);
    let lengths = LENGTHS.into_iter().map(|len| (len, [0; 10]));
    for (len, header) in lengths.chain(HEADERS.into_iter().map(|header| (200, header))) {
        buffer.fill(0);
        buffer.bytes()[..10].copy_from_slice(&header);
        device.queue(1).put(&[reads(buffer.at, len)]);
        device.queue(1).kick();
        let answered = time::until(time::seconds(5), || {
            device.needs_reset() || device.queue(1).take().is_some()
        });
        if !answered {
            return test.fail(format_args!(
                "{len} bytes with the header {header:x?} do not come back"
            ));
        }
        if device.needs_reset() {
            match Device::start(device.transport, Setup::polled(2).with_features(FEATURES)) {
                Ok(again) => device = again,
                Err(why) => {
                    return test.fail(format_args!("does not start after {len} bytes: {why}"));
                }
            }
        }
    }
}

fn reflect(test: &mut Test, device: &mut Device, mac: [u8; 6], wait: u64) {
    let out_buffer = Buffer::new(4096);
    let (mut received, mut reflected) = (0_u32, 0_u32);
    let end = tsc() + time::millis(wait);
    while tsc() < end {
        let Some((head, len)) = device.queue(0).wait(time::millis(5)) else {
            continue;
        };
        received += 1;
        let at = device.queue(0).get_desc(head).address;
        let len = (len as usize).min(RECEIVE_SIZE as usize);
        if !test.check(
            len > HEADER as usize + 14,
            "a received frame is shorter than its header",
        ) {
            continue;
        }
        // SAFETY: a receive buffer that the device has given back.
        let bytes = unsafe { core::slice::from_raw_parts(at as *const u8, len) };
        if bytes[24..26] == TYPE {
            let out = out_buffer.bytes();
            out[..len].copy_from_slice(bytes);
            out[..12].fill(0);
            out[12..18].copy_from_slice(&bytes[18..24]);
            out[18..24].copy_from_slice(&mac);
            if device
                .queue(1)
                .request(&[reads(out_buffer.at, len as u32)])
                .is_some()
            {
                reflected += 1;
            }
        }
        // The buffer goes back as it was.
        if let Some(again) = device.queue(0).put(&[writes(at, RECEIVE_SIZE as u32)]) {
            test.eq("head of a buffer put back", again, head);
        }
        device.queue(0).kick();
    }
    test.note(format_args!("received {received}, sent back {reflected}"));
}

/// Measures the transmission of `len`-byte frames with a full queue; polled.
pub fn bench(name: &str, len: u32, frames: u64) {
    let Some(transport) = super::find(kind::NET).next() else {
        return out::line(format_args!("fail {name}: no virtio-net device"));
    };
    let mark = mem::mark();
    let mut device = match Device::start(transport, Setup::polled(2).with_features(FEATURES)) {
        Ok(device) => device,
        Err(why) => return out::line(format_args!("fail {name}: {why}")),
    };
    let buffer = Buffer::new(4096);
    let len = len.clamp(60, 1514);
    let mac = mac_of(&device);
    frame(&mut buffer.bytes()[..(HEADER + len) as usize], mac, 0);
    let (mut put, mut done) = (0, 0);
    let start = tsc();
    while done < frames {
        let mut new = false;
        while put < frames
            && device
                .queue(1)
                .put(&[reads(buffer.at, HEADER + len)])
                .is_some()
        {
            put += 1;
            new = true;
        }
        if new {
            device.queue(1).kick();
        }
        if device.queue(1).wait(super::patience()).is_none() {
            return out::line(format_args!(
                "fail {name}: stuck after {done} of {frames} frames"
            ));
        }
        done += 1;
        while device.queue(1).take().is_some() {
            done += 1;
        }
    }
    out::bench(name, frames, tsc() - start);
    transport.reset();
    mem::release(mark);
}
