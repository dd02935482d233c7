//! virtio-console (virtio 1.2, 5.3): port 0, and with several ports the control queues.

use super::queue::{reads, writes};
use super::{Buffer, Device, Setup, kind};
use crate::cpu::{read16, read32};
use crate::out::Test;
use crate::{cmdline, mem, time};

const SIZE: u64 = 1;
const MULTIPORT: u64 = 2;

/// Control events.
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const DEVICE_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const RESIZE: u16 = 5;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// Writes a greeting on every port; with `console=echo`, sends back what comes in on port 0 until a
/// line `quit`.
pub fn basic(test: &mut Test) {
    let mut found = false;
    for transport in super::find(kind::CONSOLE) {
        found = true;
        let mark = mem::mark();
        let queues = transport.queues().min(16);
        let mut device = match Device::start(transport, Setup::polled(queues)) {
            Ok(device) => device,
            Err(why) => return test.fail(format_args!("does not start: {why}")),
        };
        if device.has(SIZE) {
            let (columns, rows) = (read16(transport.config()), read16(transport.config() + 2));
            test.note(format_args!("{columns} columns, {rows} rows"));
        }
        if device.has(MULTIPORT) {
            let ports = read32(transport.config() + 4);
            test.check(ports >= 1, "max_nr_ports is 0");
            test.check(
                u32::from(transport.queues()) >= 2 * (ports.min(7) + 1),
                "fewer queues than the ports need",
            );
            control(test, &mut device);
        }
        let buffer = Buffer::new(4096);
        // Port 0 is queues 0 and 1, the control queues 2 and 3, port n from 1 queues 2n+2 and 2n+3.
        for port in 0..8_u16 {
            let transmit = if port == 0 { 1 } else { 2 * port + 3 };
            if transmit >= queues || (port > 0 && !device.has(MULTIPORT)) {
                break;
            }
            let text = b"payload: port ?\r\n";
            buffer.bytes()[..text.len()].copy_from_slice(text);
            buffer.bytes()[14] = b'0' + port as u8;
            let sent = device.queue(transmit).request(&[
                reads(buffer.at, 5),
                reads(buffer.at + 5, text.len() as u32 - 5),
            ]);
            test.check(
                sent == Some(0),
                "a transmit buffer does not come back with 0 bytes written",
            );
        }
        if cmdline::value("console") == Some("echo") {
            echo(test, &mut device);
        }
        transport.reset();
        mem::release(mark);
    }
    if !found {
        test.skip("no virtio-console device");
    }
}

/// The control conversation: ready, then ready and open for each port that is announced.
fn control(test: &mut Test, device: &mut Device) {
    const EACH: u64 = 128;
    let inbox = Buffer::new(4096);
    let outbox = Buffer::new(4096);
    for i in 0..16 {
        device
            .queue(2)
            .put(&[writes(inbox.at + EACH * i, EACH as u32)]);
    }
    device.queue(2).kick();
    let send = |device: &mut Device, id: u32, event: u16, value: u16| {
        let bytes = outbox.bytes();
        bytes[..4].copy_from_slice(&id.to_le_bytes());
        bytes[4..6].copy_from_slice(&event.to_le_bytes());
        bytes[6..8].copy_from_slice(&value.to_le_bytes());
        device.queue(3).request(&[reads(outbox.at, 8)])
    };
    test.check(
        send(device, 0, event::DEVICE_READY, 1).is_some(),
        "DEVICE_READY is not taken",
    );
    let (mut added, mut opened) = (0_u32, 0_u32);
    // A queue's heads here are the buffers' numbers: requests of one part, none given back.
    while let Some((head, len)) = device.queue(2).wait(time::millis(200)) {
        let at = usize::from(head) * EACH as usize;
        let message = inbox
            .bytes()
            .get(at..at + (len as usize).min(EACH as usize))
            .unwrap_or(&[]);
        if message.len() < 8 {
            test.fail(format_args!("a control message of {} bytes", message.len()));
            continue;
        }
        let id = u32::from_le_bytes([message[0], message[1], message[2], message[3]]);
        match u16::from_le_bytes([message[4], message[5]]) {
            event::DEVICE_ADD => {
                added += 1;
                send(device, id, event::PORT_READY, 1);
                send(device, id, event::PORT_OPEN, 1);
            }
            event::CONSOLE_PORT | event::RESIZE => {}
            event::PORT_OPEN => opened += 1,
            event::PORT_NAME => {
                let name = core::str::from_utf8(&message[8..]).unwrap_or("(not text)");
                test.note(format_args!(
                    "port {id} is called {}",
                    name.trim_end_matches('\0')
                ));
            }
            other => test.fail(format_args!("unknown control event {other}")),
        }
    }
    test.note(format_args!("{added} ports added, {opened} opened"));
    test.check(added >= 1, "no port was added");
    // Wild messages: unknown ports and events, and a short one.
    send(device, 0xffff_fff0, event::PORT_READY, 1);
    send(device, 0, 0x7777, 0xffff);
    test.check(
        device.queue(3).request(&[reads(outbox.at, 3)]).is_some(),
        "a short control message is not taken",
    );
    test.check(
        !device.needs_reset(),
        "the device needs a reset after wild control messages",
    );
}

fn echo(test: &mut Test, device: &mut Device) {
    let buffer = Buffer::new(4096);
    let mut tail = [0_u8; 4];
    loop {
        // Waits for the host as long as it takes.
        device.queue(0).put(&[writes(buffer.at, 256)]);
        device.queue(0).kick();
        let taken = loop {
            if let Some(taken) = device.queue(0).wait(time::seconds(60)) {
                break taken;
            }
        };
        let len = taken.1.min(256);
        for &byte in &buffer.bytes()[..len as usize] {
            tail.rotate_left(1);
            tail[3] = byte;
        }
        if len > 0 && device.queue(1).request(&[reads(buffer.at, len)]).is_none() {
            return test.fail(format_args!("an echo is not taken"));
        }
        if &tail == b"quit" {
            return;
        }
    }
}
