//! Drivers that break the rules. The device must end the request with an error, or say that it needs a
//! reset, or ignore what it cannot use: it may not hang, touch memory that is not its own, or take the
//! machine with it. After each case a reset must bring it back.

use super::blk::Disk;
use super::queue::{Desc, INDIRECT, NEXT, Queue, WRITE};
use super::transport::Transport;
use super::{Buffer, Device, Setup, feature, kind};
use crate::cpu;
use crate::out::Test;
use crate::{boot, mem, time};

/// What a case may put into the ring.
struct Scene<'a> {
    queue: &'a mut Queue,
    /// A request header (read of sector 0), data and status.
    header: u64,
    data: u64,
    status: u64,
}

impl Scene<'_> {
    fn desc(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.queue.set_desc(
            index,
            Desc {
                address,
                len,
                flags,
                next,
            },
        );
    }

    /// Publishes a head and notifies, whatever the device wants.
    fn go(&mut self, head: u16) {
        self.queue.put_head(head);
        self.queue.publish();
        self.queue.notify();
    }
}

/// What it is, and how it is put into the ring. A name that ends in `?` may succeed all the same.
type Case = (&'static str, fn(&mut Scene<'_>));

/// Address past all RAM and devices.
const NOWHERE: u64 = 0x0000_4000_0000_0000;

const CASES: &[Case] = &[
    ("a chain that points to itself", |s| {
        s.desc(0, s.header, 16, NEXT, 0);
        s.go(0);
    }),
    ("a chain of two that loops", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, s.data, 512, NEXT | WRITE, 0);
        s.go(0);
    }),
    ("a loop of the whole queue", |s| {
        for i in 0..s.queue.size {
            s.desc(i, s.data, 512, NEXT | WRITE, (i + 1) % s.queue.size);
        }
        s.desc(0, s.header, 16, NEXT, 1 % s.queue.size);
        s.go(0);
    }),
    ("next past the table", |s| {
        s.desc(0, s.header, 16, NEXT, s.queue.size);
        s.go(0);
    }),
    ("next 65535", |s| {
        s.desc(0, s.header, 16, NEXT, 0xffff);
        s.go(0);
    }),
    ("a head past the table", |s| s.go(s.queue.size)),
    ("head 65535", |s| s.go(0xffff)),
    ("an available index that jumps past the queue's size", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, s.status, 1, WRITE, 0);
        let index = s
            .queue
            .avail_index()
            .wrapping_add(s.queue.size)
            .wrapping_add(1);
        s.queue.set_avail_index(index);
        s.queue.notify();
    }),
    ("an available index that jumps by 32768", |s| {
        let index = s.queue.avail_index().wrapping_add(0x8000);
        s.queue.set_avail_index(index);
        s.queue.notify();
    }),
    ("an available index that goes back", |s| {
        let index = s.queue.avail_index().wrapping_sub(1);
        s.queue.set_avail_index(index);
        s.queue.notify();
    }),
    ("a header outside memory", |s| {
        s.desc(0, NOWHERE, 16, NEXT, 1);
        s.desc(1, s.data, 512, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("data outside memory", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, NOWHERE, 512, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("data that runs past the end of the address space", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, u64::MAX - 255, 512, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("data that runs past the end of RAM", |s| {
        // Tables and reserved pages that follow RAM may be memory too.
        let h = boot::handover();
        let mut end = 1 << 20;
        for range in &h.memory[..h.ranges] {
            if range.start <= end {
                end = end.max(range.start + range.len);
            }
        }
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, end - 256, 512, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("data in the device's own registers", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, crate::apic::ioapic_base(), 512, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("a status outside memory", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, s.data, 512, NEXT | WRITE, 2);
        s.desc(2, NOWHERE, 1, WRITE, 0);
        s.go(0);
    }),
    ("data of length 0?", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, s.data, 0, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("data of 4 GiB less 512", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, s.data, 0xffff_fe00, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("as many descriptors of 4 GiB as there are", |s| {
        s.desc(0, s.header, 16, NEXT, 1 % s.queue.size);
        for i in 1..s.queue.size {
            s.desc(i, s.data, u32::MAX, NEXT | WRITE, i + 1);
        }
        s.desc(s.queue.size - 1, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("a header of 15 bytes", |s| {
        s.desc(0, s.header, 15, NEXT, 1);
        s.desc(1, s.data, 512, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("a header of length 0", |s| {
        s.desc(0, s.header, 0, NEXT, 1);
        s.desc(1, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("a header alone", |s| {
        s.desc(0, s.header, 16, 0, 0);
        s.go(0);
    }),
    ("a status alone", |s| {
        s.desc(0, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("a header that the device should write", |s| {
        s.desc(0, s.header, 16, NEXT | WRITE, 1);
        s.desc(1, s.data, 512, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("a status that the device should read", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, s.data, 512, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, 0, 0);
        s.go(0);
    }),
    ("data to read after data to write", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, s.status, 1, WRITE | NEXT, 2);
        s.desc(2, s.data, 512, 0, 0);
        s.go(0);
    }),
    ("read into a buffer that the device may only read?", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, s.data, 512, NEXT, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("unknown descriptor flags?", |s| {
        s.desc(0, s.header, 16, NEXT | 0xfff8, 1);
        s.desc(1, s.data, 512, NEXT | WRITE | 0xfff8, 2);
        s.desc(2, s.status, 1, WRITE | 0xfff8, 0);
        s.go(0);
    }),
    ("an indirect table outside memory", |s| {
        s.desc(0, NOWHERE, 48, INDIRECT, 0);
        s.go(0);
    }),
    ("an indirect table of length 0", |s| {
        s.desc(0, s.data, 0, INDIRECT, 0);
        s.go(0);
    }),
    ("an indirect table of 17 bytes", |s| {
        s.desc(0, s.data, 17, INDIRECT, 0);
        s.go(0);
    }),
    ("an indirect table of 4 GiB", |s| {
        s.desc(0, s.data, 0xffff_fff0, INDIRECT, 0);
        s.go(0);
    }),
    ("an indirect table that loops", |s| {
        let table = s.data;
        cpu::shared_write(
            table as *mut Desc,
            Desc {
                address: s.header,
                len: 16,
                flags: NEXT,
                next: 1,
            },
        );
        cpu::shared_write(
            (table + 16) as *mut Desc,
            Desc {
                address: s.data + 2048,
                len: 512,
                flags: NEXT | WRITE,
                next: 1,
            },
        );
        s.desc(0, table, 32, INDIRECT, 0);
        s.go(0);
    }),
    ("next past an indirect table", |s| {
        let table = s.data;
        cpu::shared_write(
            table as *mut Desc,
            Desc {
                address: s.header,
                len: 16,
                flags: NEXT,
                next: 2,
            },
        );
        s.desc(0, table, 32, INDIRECT, 0);
        s.go(0);
    }),
    ("an indirect table within an indirect table", |s| {
        let table = s.data;
        cpu::shared_write(
            table as *mut Desc,
            Desc {
                address: table,
                len: 32,
                flags: INDIRECT,
                next: 0,
            },
        );
        s.desc(0, table, 32, INDIRECT, 0);
        s.go(0);
    }),
    ("indirect and next together", |s| {
        let table = s.data;
        cpu::shared_write(
            table as *mut Desc,
            Desc {
                address: s.header,
                len: 16,
                flags: 0,
                next: 0,
            },
        );
        s.desc(0, table, 16, INDIRECT | NEXT, 1);
        s.desc(1, s.status, 1, WRITE, 0);
        s.go(0);
    }),
    ("the same head many times?", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, s.data, 512, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        for _ in 0..s.queue.size {
            s.queue.put_head(0);
        }
        s.queue.publish();
        s.queue.notify();
    }),
    ("used ring asked to be overwritten by data?", |s| {
        s.desc(0, s.header, 16, NEXT, 1);
        s.desc(1, s.queue.used & !511, 512, NEXT | WRITE, 2);
        s.desc(2, s.status, 1, WRITE, 0);
        s.go(0);
    }),
];

/// All cases on every disk, each followed by a reset and a request that must succeed.
pub fn rings(test: &mut Test) {
    let mut found = false;
    for transport in super::find(kind::BLOCK) {
        found = true;
        for &(name, case) in CASES {
            let mark = mem::mark();
            one(test, transport, name, case);
            mem::release(mark);
        }
        addresses(test, transport);
    }
    if !found {
        test.skip("no virtio-blk device");
    }
}

fn one(test: &mut Test, transport: Transport, name: &str, case: fn(&mut Scene<'_>)) {
    let setup = Setup::polled(1).with_features(!feature::EVENT_IDX);
    let mut device = match Device::start(transport, setup) {
        Ok(device) => device,
        Err(why) => return test.fail(format_args!("before {name}: {why}")),
    };
    let page = Buffer::new(8192);
    let header = page.at + 4096;
    // Canaries around what the device may write: the first 512 bytes of data and one of status.
    let guard = Buffer::new(4096);
    guard.fill(0x77);
    let queue = device.queue(0);
    let mut scene = Scene {
        queue,
        header,
        data: page.at,
        status: page.at + 4096 + 64,
    };
    let status = scene.status;
    cpu::write8(status, 0xee);
    case(&mut scene);
    let answered = time::until(time::seconds(2), || {
        device.needs_reset()
            || device.queues[0]
                .as_ref()
                .is_some_and(|q| q.used_index() != 0)
    });
    if !answered {
        test.fail(format_args!(
            "{name}: neither a used element nor DEVICE_NEEDS_RESET within 2 s"
        ));
    }
    if !name.ends_with('?') && cpu::read8(status) == 0 {
        test.fail(format_args!("{name}: the request succeeds"));
    }
    // A worker may still be at it.
    time::pause(time::millis(5));
    test.check(
        guard.bytes().iter().all(|&b| b == 0x77),
        "memory that no descriptor names was written",
    );
    if !transport.reset() {
        return test.fail(format_args!("{name}: the device cannot be reset"));
    }
    let works = Disk::start(transport, Setup::polled(1)).is_ok_and(|mut disk| {
        let buffer = Buffer::new(512);
        disk.read(0, &buffer, 512).0 == 0
    });
    if !works {
        test.fail(format_args!("{name}: no read succeeds after a reset"));
    }
}

/// Queues whose rings lie outside memory, are not aligned, or wrap around the address space.
fn addresses(test: &mut Test, transport: Transport) {
    let good = mem::alloc(16384, 4096) as u64;
    for (desc, driver, device) in [
        (NOWHERE, good, good + 8192),
        (good, NOWHERE, good + 8192),
        (good, good + 4096, NOWHERE),
        (u64::MAX - 15, good, good + 8192),
        (good, u64::MAX - 1, good + 8192),
        (good, good + 4096, u64::MAX - 3),
        (good + 1, good + 4097, good + 8193),
        (0, 0, 0),
        (0xfec0_0000, 0xfec0_0000, 0xfec0_0000),
    ] {
        let mark = mem::mark();
        if let Ok(negotiated) = Device::negotiate(transport, Setup::polled(1)) {
            let max = transport.select(0);
            transport.set_size(max);
            transport.set_addresses(desc, driver, device);
            transport.enable();
            negotiated.go();
            let at = transport.notify_at(0);
            if at.is_mmio {
                cpu::write32(at.address, 0)
            } else {
                cpu::write16(at.address, 0)
            }
            time::pause(time::millis(5));
        }
        if !transport.reset() {
            test.fail(format_args!(
                "rings at {desc:#x}, {driver:#x}, {device:#x}: the device cannot be reset"
            ));
        }
        mem::release(mark);
    }
    let works = Disk::start(transport, Setup::polled(1)).is_ok_and(|mut disk| {
        let buffer = Buffer::new(512);
        disk.read(0, &buffer, 512).0 == 0
    });
    test.check(works, "no read succeeds after queues at bad addresses");
    transport.reset();
}

/// A chain with a loop, a wild head or a table outside memory, on every queue of every virtio device.
pub fn all_devices(test: &mut Test) {
    for transport in super::all() {
        for variant in 0..6 {
            let mark = mem::mark();
            let Ok(mut device) = Device::start(transport, Setup::polled(16)) else {
                test.fail(format_args!(
                    "device {} at {:#x} does not start",
                    transport.kind(),
                    transport.place()
                ));
                break;
            };
            let page = Buffer::new(4096);
            for queue in device.queues.iter_mut().flatten() {
                let (head, desc) = match variant {
                    0 => (
                        0,
                        Desc {
                            address: page.at,
                            len: 64,
                            flags: NEXT,
                            next: 0,
                        },
                    ),
                    1 => (
                        0,
                        Desc {
                            address: NOWHERE,
                            len: 64,
                            flags: WRITE,
                            next: 0,
                        },
                    ),
                    2 => (queue.size, Desc::default()),
                    3 => (
                        0,
                        Desc {
                            address: NOWHERE,
                            len: 160,
                            flags: INDIRECT,
                            next: 0,
                        },
                    ),
                    4 => (
                        0,
                        Desc {
                            address: page.at,
                            len: u32::MAX,
                            flags: 0,
                            next: 0,
                        },
                    ),
                    _ => (
                        0,
                        Desc {
                            address: page.at,
                            len: 0,
                            flags: 0,
                            next: 0,
                        },
                    ),
                };
                queue.set_desc(0, desc);
                queue.put_head(head);
                queue.publish();
                queue.notify();
            }
            time::pause(time::millis(5));
            if !transport.reset() {
                test.fail(format_args!(
                    "device {} at {:#x}, case {variant}: cannot be reset",
                    transport.kind(),
                    transport.place()
                ));
            }
            mem::release(mark);
        }
    }
}
