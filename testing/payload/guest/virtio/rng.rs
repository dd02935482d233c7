//! virtio-rng (virtio 1.2, 5.4): a queue of buffers that come back filled.

use super::queue::writes;
use super::{Buffer, Device, Setup, kind};
use crate::mem;
use crate::out::Test;

/// Buffers of many sizes come back, not empty, not all alike, and never longer than they are.
pub fn basic(test: &mut Test) {
    let mut found = false;
    for transport in super::find(kind::ENTROPY) {
        found = true;
        let mark = mem::mark();
        let mut device = match Device::start(transport, Setup::polled(1)) {
            Ok(device) => device,
            Err(why) => return test.fail(format_args!("does not start: {why}")),
        };
        let buffer = Buffer::new(128 << 10);
        let mut ones = 0_u64;
        let mut bits = 0_u64;
        for len in [1_usize, 2, 7, 64, 256, 4096, 65536, 128 << 10] {
            buffer.fill(0);
            let Some(written) = device.queue(0).request(&[writes(buffer.at, len as u32)]) else {
                test.fail(format_args!("a buffer of {len} bytes does not come back"));
                break;
            };
            test.check(written > 0, "nothing was written");
            if test.check(
                written as usize <= len,
                "more was written than there is room",
            ) && len >= 64
            {
                let bytes = &buffer.bytes()[..written as usize];
                test.check(
                    bytes.iter().any(|&b| b != bytes[0]),
                    "all bytes are the same",
                );
                ones += bytes.iter().map(|b| u64::from(b.count_ones())).sum::<u64>();
                bits += 8 * bytes.len() as u64;
            }
            test.check(
                buffer.bytes()[len.min(buffer.len - 1)..]
                    .iter()
                    .skip(1)
                    .all(|&b| b == 0),
                "memory past the buffer was written",
            );
        }
        // 40 to 60 percent: far outside what chance allows for this many bits.
        test.check(
            bits == 0 || (ones * 10 > bits * 4 && ones * 10 < bits * 6),
            "ones and zeros are out of balance",
        );
        transport.reset();
        mem::release(mark);
    }
    if !found {
        test.skip("no virtio-rng device");
    }
}
