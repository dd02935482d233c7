//! virtio-blk (virtio 1.2, 5.2): requests of every kind and size, queues of every size, interrupts,
//! reset in the middle, and what it costs.
//!
//! Tests write to the disk unless it is read-only: they need one that may be overwritten. `blk_base=`
//! gives the first sector they may use, `blk_sectors=` how many.

use super::queue::{self, Part, Queue, reads, writes};
use super::transport::Transport;
use super::{Buffer, Device, Interrupts, Sequence, Setup, VEC_QUEUE, feature, kind, status};
use crate::cpu::{self, read8, read16, read32, tsc};
use crate::out::{self, Test};
use crate::{apic, cmdline, mem, smp, time};
use core::sync::atomic::{AtomicPtr, Ordering};

/// Request types.
mod request {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Request results.
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What the payload puts in the status byte before a request.
const NONE: u8 = 0xee;

/// Feature bits.
mod blk_feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const MULTI_QUEUE: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Offsets in the configuration.
mod config {
    pub const CAPACITY: u64 = 0;
    pub const SEG_MAX: u64 = 12;
    pub const BLK_SIZE: u64 = 20;
    pub const QUEUES: u64 = 34;
    pub const MAX_DISCARD: u64 = 36;
    pub const MAX_WRITE_ZEROES: u64 = 48;
}

/// A disk in operation.
pub struct Disk {
    pub device: Device,
    /// Request headers and status bytes, one slot of 32 bytes for each descriptor.
    slots: u64,
    pub capacity: u64,
    /// The sectors that tests may use.
    pub base: u64,
    pub sectors: u64,
}

impl Disk {
    /// Starts a disk.
    pub fn start(transport: Transport, setup: Setup) -> Result<Self, &'static str> {
        let device = Device::start(transport, setup)?;
        let slots = mem::alloc(32 * 32768, 4096) as u64;
        let capacity = transport.config64(config::CAPACITY);
        let base = cmdline::number_or("blk_base", 0).min(capacity);
        let sectors = cmdline::number_or("blk_sectors", capacity).min(capacity - base);
        Ok(Self {
            device,
            slots,
            capacity,
            base,
            sectors,
        })
    }

    /// Whether it refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.device.has(blk_feature::READ_ONLY)
    }

    fn slot(&self, queue: u16, n: u16) -> u64 {
        self.slots + 32 * (u64::from(queue) * 2048 + u64::from(n))
    }

    /// Puts a request with its header and status into a queue; `n` tells its slot apart from others'.
    pub fn put(
        &mut self,
        queue: u16,
        n: u16,
        kind: u32,
        sector: u64,
        data: &[Part],
    ) -> Option<u16> {
        let slot = self.slot(queue, n);
        put_request(self.device.queue(queue), slot, kind, sector, data)
    }

    /// The status byte of slot `n`.
    pub fn result(&self, queue: u16, n: u16) -> u8 {
        cpu::fence();
        cpu::shared_read((self.slot(queue, n) + 16) as *const u8)
    }

    /// One request from start to end: its status byte, and the bytes written as the device says.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[Part]) -> (u8, u32) {
        let Some(head) = self.put(0, 0, kind, sector, data) else {
            return (NONE, 0);
        };
        self.device.queue(0).kick();
        match self.device.queue(0).wait(super::patience()) {
            Some((done, len)) if done == head => (self.result(0, 0), len),
            _ => (NONE, 0),
        }
    }

    /// Reads sectors.
    pub fn read(&mut self, sector: u64, buffer: &Buffer, len: u32) -> (u8, u32) {
        self.request(request::IN, sector, &[writes(buffer.at, len)])
    }

    /// Writes sectors.
    pub fn write(&mut self, sector: u64, buffer: &Buffer, len: u32) -> (u8, u32) {
        self.request(request::OUT, sector, &[reads(buffer.at, len)])
    }

    /// Makes all that was written durable.
    pub fn flush(&mut self) -> (u8, u32) {
        self.request(request::FLUSH, 0, &[])
    }
}

/// Puts a request into `queue`, its header and status at `slot`.
fn put_request(queue: &mut Queue, slot: u64, kind: u32, sector: u64, data: &[Part]) -> Option<u16> {
    cpu::shared_write(slot as *mut u32, kind);
    cpu::shared_write((slot + 4) as *mut u32, 0);
    cpu::shared_write((slot + 8) as *mut u64, sector);
    cpu::shared_write((slot + 16) as *mut u8, NONE);
    let mut parts = [reads(slot, 16); 16];
    parts[1..=data.len()].copy_from_slice(data);
    parts[1 + data.len()] = writes(slot + 16, 1);
    queue.put(&parts[..data.len() + 2])
}

/// Fills sectors with what tells them apart: number and salt in every 8 bytes.
fn stamp(bytes: &mut [u8], sector: u64, salt: u64) {
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        let at = sector * 64 + i as u64;
        word.copy_from_slice(&Sequence(at ^ salt << 40).next().to_le_bytes());
    }
}

/// The offset of the first byte that is not as `stamp` leaves it.
fn first_difference(bytes: &[u8], sector: u64, salt: u64) -> Option<usize> {
    bytes.chunks_exact(8).enumerate().position(|(i, word)| {
        let at = sector * 64 + i as u64;
        word != Sequence(at ^ salt << 40).next().to_le_bytes()
    })
}

/// Runs `body` for each disk, with memory given back and the disk reset after it.
fn for_each_disk(test: &mut Test, mut body: impl FnMut(&mut Test, Transport)) {
    let mut found = false;
    for transport in super::find(kind::BLOCK) {
        found = true;
        let mark = mem::mark();
        body(test, transport);
        transport.reset();
        mem::release(mark);
    }
    if !found {
        test.skip("no virtio-blk device");
    }
}

fn start(test: &mut Test, transport: Transport, setup: Setup) -> Option<Disk> {
    match Disk::start(transport, setup) {
        Ok(disk) => Some(disk),
        Err(why) => {
            test.fail(format_args!(
                "{} {:#x} does not start: {why}",
                transport.name(),
                transport.place()
            ));
            None
        }
    }
}

/// Reading, writing, flushing, identity, discard, write-zeroes, and the lengths between.
pub fn basic(test: &mut Test) {
    for_each_disk(test, |test, transport| {
        let Some(mut disk) = start(test, transport, Setup::polled(1)) else {
            return;
        };
        let size = disk.device.queue(0).size;
        test.note(format_args!(
            "{} {:#x}: {} sectors, features {:#x}, queue of {size}, {} queues",
            transport.name(),
            transport.place(),
            disk.capacity,
            disk.device.features,
            transport.queues()
        ));
        test.check(disk.capacity > 0, "capacity is zero");
        if disk.device.has(blk_feature::BLK_SIZE) {
            let size = read32(transport.config() + config::BLK_SIZE);
            test.check(
                size >= 512 && size.is_power_of_two(),
                "block size is no power of two of 512 or more",
            );
        }
        let buffer = Buffer::new(128 << 10);
        read_only_or_round_trip(test, &mut disk, &buffer);
        lengths(test, &mut disk, &buffer);
        out_of_range(test, &mut disk, &buffer);
        identity(test, &mut disk, &buffer);
        discard_and_zeroes(test, &mut disk, &buffer);

        let (result, _) = disk.request(0x7777, 0, &[writes(buffer.at, 512)]);
        test.eq("unknown request type", result, UNSUPP);
        test.eq("flush", disk.flush().0, OK);
        test.check(
            !disk.device.needs_reset(),
            "device needs a reset after requests that are valid or politely wrong",
        );
        torn_ranges(test, &mut disk, &buffer);
    });
}

fn read_only_or_round_trip(test: &mut Test, disk: &mut Disk, buffer: &Buffer) {
    if disk.is_read_only() {
        let before = disk.read(disk.base, buffer, 512);
        test.eq("read of a read-only disk", before.0, OK);
        let old = buffer.bytes()[0];
        buffer.bytes()[..512].fill(!old);
        test.eq(
            "write to a read-only disk",
            disk.write(disk.base, buffer, 512).0,
            IOERR,
        );
        disk.read(disk.base, buffer, 512);
        test.eq(
            "first byte of a read-only disk after a refused write",
            buffer.bytes()[0],
            old,
        );
        return;
    }
    // First, middle and last sectors, and lengths from one sector to the whole buffer.
    for (salt, len) in [512_usize, 1024, 4096, 65536, 131_072]
        .into_iter()
        .enumerate()
    {
        let count = (len / 512) as u64;
        if count > disk.sectors {
            continue;
        }
        for sector in [0, (disk.sectors / 2) & !7, disk.sectors - count] {
            let sector = (disk.base + sector).min(disk.base + disk.sectors - count);
            let salt = salt as u64 + 1;
            stamp(&mut buffer.bytes()[..len], sector, salt);
            let (result, written) = disk.write(sector, buffer, len as u32);
            test.eq_at("write", sector, result, OK);
            test.eq_at("bytes written by a write request", sector, written, 1_u32);
            buffer.fill(0);
            let (result, written) = disk.read(sector, buffer, len as u32);
            test.eq_at("read", sector, result, OK);
            test.eq_at(
                "bytes written by a read request",
                sector,
                written,
                len as u32 + 1,
            );
            if let Some(word) = first_difference(&buffer.bytes()[..len], sector, salt) {
                test.fail(format_args!(
                    "read of {len} bytes at sector {sector} differs at byte {}",
                    word * 8
                ));
            }
        }
    }
    // Scattered pieces, none aligned to anything, headers and data in one request of 8 parts.
    let at = disk.base;
    stamp(&mut buffer.bytes()[..4096], at, 99);
    let cuts = [0, 1, 513, 700, 2048, 3001, 4096];
    let mut parts = [reads(0, 0); 6];
    for (i, part) in parts.iter_mut().enumerate() {
        *part = reads(buffer.at + cuts[i], (cuts[i + 1] - cuts[i]) as u32);
    }
    let size = disk.device.queue(0).size;
    if size >= 8 || disk.device.queue(0).has_indirect() {
        test.eq(
            "scattered write",
            disk.request(request::OUT, at, &parts).0,
            OK,
        );
        let second = Buffer::new(8192);
        for (i, part) in parts.iter_mut().enumerate() {
            *part = writes(second.at + 7 + cuts[i], (cuts[i + 1] - cuts[i]) as u32);
        }
        test.eq(
            "scattered read",
            disk.request(request::IN, at, &parts).0,
            OK,
        );
        if let Some(word) = first_difference(&second.bytes()[7..4103], at, 99) {
            test.fail(format_args!("scattered read differs at byte {}", word * 8));
        }
        test.eq("byte before a scattered read", second.bytes()[6], 0_u8);
        test.eq("byte after a scattered read", second.bytes()[4103], 0_u8);
    }
}

/// Lengths that are no multiple of a sector must fail and leave the disk as it was.
fn lengths(test: &mut Test, disk: &mut Disk, buffer: &Buffer) {
    let sector = disk.base;
    for len in [1, 100, 511, 513, 1000, 4095] {
        buffer.fill(0);
        let (result, _) = disk.read(sector, buffer, len);
        test.check(
            result == IOERR || result == UNSUPP,
            "read of a length that is no multiple of 512 succeeds",
        );
        if !disk.is_read_only() {
            let (result, _) = disk.write(sector, buffer, len);
            test.check(
                result == IOERR || result == UNSUPP,
                "write of a length that is no multiple of 512 succeeds",
            );
        }
    }
    // No data at all: nothing can be wrong with that but that it asks for nothing.
    let (result, _) = disk.request(request::IN, sector, &[]);
    test.check(result != NONE, "read without data is not answered");
}

fn out_of_range(test: &mut Test, disk: &mut Disk, buffer: &Buffer) {
    let end = disk.capacity;
    for (sector, len) in [
        (end, 512),
        (end - 1, 1024),
        (end + 1, 512),
        (u64::MAX, 512),
        (u64::MAX / 512, 4096),
        (1 << 55, 512),
        (u64::MAX - 7, 4096),
    ] {
        buffer.fill(0x5a);
        let (result, _) = disk.read(sector, buffer, len);
        test.eq_at("read past the end", sector, result, IOERR);
        if !disk.is_read_only() {
            test.eq_at(
                "write past the end",
                sector,
                disk.write(sector, buffer, len).0,
                IOERR,
            );
        }
    }
}

fn identity(test: &mut Test, disk: &mut Disk, buffer: &Buffer) {
    buffer.fill(0xaa);
    let (result, written) = disk.request(request::GET_ID, 0, &[writes(buffer.at, 20)]);
    test.eq("get id", result, OK);
    test.check(
        written > 1 && written <= 21,
        "get id does not write between 1 and 20 bytes",
    );
    test.eq("byte after the id", buffer.bytes()[20], 0xaa_u8);
    let id = &buffer.bytes()[..20];
    let len = id.iter().position(|&b| b == 0).unwrap_or(20);
    let text = core::str::from_utf8(&id[..len]).unwrap_or("(not text)");
    test.note(format_args!("id \"{text}\""));
    if let Some(want) = cmdline::value("blk_id") {
        test.check(want == text, "id is not the one on the command line");
    }
}

fn discard_and_zeroes(test: &mut Test, disk: &mut Disk, buffer: &Buffer) {
    let ranges = Buffer::new(4096);
    let range = |slot: usize, sector: u64, sectors: u32, flags: u32| {
        let bytes = &mut ranges.bytes()[16 * slot..16 * slot + 16];
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&flags.to_le_bytes());
        cpu::fence();
    };
    let sector = disk.base + 8;
    if disk.sectors < 32 || disk.is_read_only() {
        return;
    }
    for (bit, kind, limit, name) in [
        (
            blk_feature::WRITE_ZEROES,
            request::WRITE_ZEROES,
            config::MAX_WRITE_ZEROES,
            "write-zeroes",
        ),
        (
            blk_feature::DISCARD,
            request::DISCARD,
            config::MAX_DISCARD,
            "discard",
        ),
    ] {
        if !disk.device.has(bit) {
            range(0, sector, 8, 0);
            let (result, _) = disk.request(kind, 0, &[reads(ranges.at, 16)]);
            if result != UNSUPP {
                test.fail(format_args!(
                    "{name} is not offered but answered (got {result}, want {UNSUPP})"
                ));
            }
            continue;
        }
        let max = read32(disk.device.transport.config() + limit);
        test.check(max >= 8, "largest range is below 8 sectors");
        stamp(&mut buffer.bytes()[..16384], sector, 7);
        disk.write(sector, buffer, 16384);
        range(0, sector + 8, 8, 0);
        let (result, _) = disk.request(kind, 0, &[reads(ranges.at, 16)]);
        if result != OK {
            test.fail(format_args!(
                "{name} of 8 sectors (got {result}, want {OK})"
            ));
        }
        buffer.fill(0x11);
        disk.read(sector, buffer, 16384);
        let bytes = buffer.bytes();
        if kind == request::WRITE_ZEROES {
            test.check(
                bytes[4096..8192].iter().all(|&b| b == 0),
                "write-zeroes leaves something",
            );
        }
        test.check(
            first_difference(&bytes[..4096], sector, 7).is_none(),
            "the sectors before a range changed",
        );
        test.check(
            first_difference(&bytes[8192..16384], sector + 16, 7).is_none(),
            "the sectors after a range changed",
        );

        range(0, disk.capacity, 8, 0);
        let (result, _) = disk.request(kind, 0, &[reads(ranges.at, 16)]);
        if result != IOERR {
            test.fail(format_args!(
                "{name} past the end (got {result}, want {IOERR})"
            ));
        }
        range(0, u64::MAX - 3, 8, 0);
        let (result, _) = disk.request(kind, 0, &[reads(ranges.at, 16)]);
        if result != IOERR {
            test.fail(format_args!(
                "{name} with a range that overflows (got {result}, want {IOERR})"
            ));
        }
        range(0, sector, 8, 0xffff_fff0);
        let (result, _) = disk.request(kind, 0, &[reads(ranges.at, 16)]);
        if result != UNSUPP {
            test.fail(format_args!(
                "{name} with reserved flags (got {result}, want {UNSUPP})"
            ));
        }
        if kind == request::DISCARD {
            range(0, sector, 8, 1);
            let (result, _) = disk.request(kind, 0, &[reads(ranges.at, 16)]);
            test.eq("discard with the unmap flag", result, UNSUPP);
        }
    }
}

/// Ranges that are not whole: an error, or the device asks for a reset.
fn torn_ranges(test: &mut Test, disk: &mut Disk, buffer: &Buffer) {
    if !disk.device.has(blk_feature::WRITE_ZEROES) || disk.is_read_only() {
        return;
    }
    for len in [0, 15, 17] {
        if disk.device.needs_reset() {
            return;
        }
        let parts = [reads(buffer.at, len)];
        disk.put(
            0,
            0,
            request::WRITE_ZEROES,
            0,
            if len == 0 { &[] } else { &parts },
        );
        disk.device.queue(0).kick();
        let answered = time::until(super::patience(), || {
            disk.device.queue(0).take().is_some() || disk.device.needs_reset()
        });
        let result = disk.result(0, 0);
        test.check(answered, "a request with a torn range is not answered");
        test.check(result != OK, "a request with a torn range succeeds");
    }
}

/// Every power-of-two queue size, with and without indirect descriptors and event indices: each
/// wraps its rings several times.
pub fn queue_sizes(test: &mut Test) {
    for_each_disk(test, |test, transport| {
        let max = transport.select(0);
        for features in [
            u64::MAX,
            !feature::INDIRECT,
            !feature::EVENT_IDX,
            !(feature::INDIRECT | feature::EVENT_IDX),
        ] {
            let mut size = 1;
            while size <= max {
                let mark = mem::mark();
                one_size(test, transport, size, features);
                mem::release(mark);
                size *= 2;
            }
        }
    });
}

fn one_size(test: &mut Test, transport: Transport, size: u16, features: u64) {
    let mut disk = match Disk::start(
        transport,
        Setup::polled(1).with_size(size).with_features(features),
    ) {
        Ok(disk) => disk,
        Err(why) => {
            if size > 1 {
                test.fail(format_args!(
                    "queue of {size}, features {features:#x}: {why}"
                ));
            }
            return;
        }
    };
    let indirect = disk.device.queue(0).has_indirect();
    if size < 3 {
        return; // a request has three parts, and no chain may be longer than the queue (2.7.5.3.1)
    }
    let depth = if indirect { size } else { size / 3 };
    let buffers = Buffer::new(512 * usize::from(depth));
    let rounds = (3 * size / depth + 2).min(40);
    let mut bad = 0;
    for round in 0..rounds {
        let count = disk.sectors.min(u64::from(depth));
        for n in 0..depth {
            let sector = disk.base + u64::from(n) % count;
            let part = writes(buffers.at + 512 * u64::from(n), 512);
            if disk.put(0, n, request::IN, sector, &[part]).is_none() {
                test.fail(format_args!("no room for request {n} in a queue of {size}"));
                return;
            }
        }
        disk.device.queue(0).kick();
        for _ in 0..depth {
            match disk.device.queue(0).wait(super::patience()) {
                Some((_, len)) => bad += u32::from(len != 513),
                None => {
                    test.fail(format_args!(
                        "queue of {size}, features {features:#x}: round {round} does not complete"
                    ));
                    return;
                }
            }
        }
        for n in 0..depth {
            bad += u32::from(disk.result(0, n) != OK);
        }
    }
    test.eq_at("bad answers with a queue size of", size.into(), bad, 0_u32);
}

/// All queues at once, each with its own sectors.
pub fn multi_queue(test: &mut Test) {
    for_each_disk(test, |test, transport| {
        let queues = transport.queues().min(16);
        if let Some(want) = cmdline::value("blk_queues").and_then(cmdline::number) {
            test.eq("queues", queues, want);
        }
        let Some(mut disk) = start(test, transport, Setup::polled(queues)) else {
            return;
        };
        if disk.device.has(blk_feature::MULTI_QUEUE) {
            test.eq(
                "num_queues in the configuration",
                read16(transport.config() + config::QUEUES),
                transport.queues(),
            );
        }
        let buffer = Buffer::new(4096 * usize::from(queues));
        if disk.sectors < 8 * u64::from(queues) {
            return;
        }
        for (kind, salt) in [
            (request::OUT, 1),
            (request::IN, 1),
            (request::OUT, 2),
            (request::IN, 2),
        ] {
            if kind == request::OUT && disk.is_read_only() {
                continue;
            }
            for q in 0..queues {
                let at = 4096 * usize::from(q);
                let sector = disk.base + 8 * u64::from(q);
                let bytes = &mut buffer.bytes()[at..at + 4096];
                if kind == request::OUT {
                    stamp(bytes, sector, salt)
                } else {
                    bytes.fill(0)
                }
                let part = Part {
                    at: buffer.at + at as u64,
                    len: 4096,
                    write: kind == request::IN,
                };
                disk.put(q, 0, kind, sector, &[part]);
                disk.device.queue(q).kick();
            }
            for q in 0..queues {
                if disk.device.queue(q).wait(super::patience()).is_none() {
                    test.fail(format_args!("queue {q} does not complete"));
                    return;
                }
                test.eq_at("result on queue", q.into(), disk.result(q, 0), OK);
                let at = 4096 * usize::from(q);
                if kind == request::IN
                    && !disk.is_read_only()
                    && first_difference(
                        &buffer.bytes()[at..at + 4096],
                        disk.base + 8 * u64::from(q),
                        salt,
                    )
                    .is_some()
                {
                    test.fail(format_args!(
                        "queue {q} read something else than was written"
                    ));
                }
            }
        }
    });
}

/// What one CPU drives in `multi_cpu`.
struct Share {
    queue: Queue,
    slot: u64,
    buffer: u64,
    sector: u64,
    is_read_only: bool,
    wrong: u32,
}

static SHARES: [AtomicPtr<Share>; 16] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 16];

/// Every CPU drives a queue of its own at the same time, on sectors of its own.
pub fn multi_cpu(test: &mut Test) {
    let (running, _) = smp::start();
    for_each_disk(test, |test, transport| {
        let queues = transport.queues().min(16).min(running as u16);
        let Some(mut disk) = start(test, transport, Setup::polled(queues)) else {
            return;
        };
        if disk.sectors < 64 * u64::from(queues) {
            return;
        }
        for q in 0..queues {
            let Some(queue) = disk.device.queues[usize::from(q)].take() else {
                continue;
            };
            let share = Share {
                queue,
                slot: disk.slot(q, 0),
                buffer: Buffer::new(4096).at,
                sector: disk.base + 64 * u64::from(q),
                is_read_only: disk.is_read_only(),
                wrong: 0,
            };
            let at = mem::alloc(size_of::<Share>() as u64, 64).cast::<Share>();
            // SAFETY: fresh memory of the right size and alignment, used by one CPU until all are done.
            unsafe { at.write(share) };
            SHARES[usize::from(q)].store(at, Ordering::Release);
        }
        let done = smp::run(drive_share, time::seconds(60));
        if !test.check(done, "not every CPU ends its requests within 60 s") {
            return;
        }
        for (q, share) in SHARES.iter().enumerate() {
            let at = share.swap(core::ptr::null_mut(), Ordering::AcqRel);
            if !at.is_null() {
                // SAFETY: see above; all CPUs are done.
                test.eq_at(
                    "wrong answers on queue",
                    q as u64,
                    unsafe { (*at).wrong },
                    0_u32,
                );
            }
        }
        test.note(format_args!("{queues} queues driven by as many CPUs"));
    });
}

fn drive_share(cpu: usize) {
    let at = SHARES
        .get(cpu)
        .map_or(core::ptr::null_mut(), |share| share.load(Ordering::Acquire));
    if at.is_null() {
        return;
    }
    // SAFETY: the share of this CPU alone, until `multi_cpu` takes it back.
    let share = unsafe { &mut *at };
    let buffer = Buffer {
        at: share.buffer,
        len: 4096,
    };
    for round in 0..200_u64 {
        let sector = share.sector + round % 8 * 8;
        for kind in [request::OUT, request::IN] {
            if kind == request::OUT {
                if share.is_read_only {
                    continue;
                }
                stamp(buffer.bytes(), sector, round);
            } else {
                buffer.fill(0);
            }
            let part = Part {
                at: buffer.at,
                len: 4096,
                write: kind == request::IN,
            };
            let head = put_request(&mut share.queue, share.slot, kind, sector, &[part]);
            share.queue.kick();
            let done = share.queue.wait(super::patience());
            let result = cpu::shared_read((share.slot + 16) as *const u8);
            let answered = head.is_some() && done.map(|(id, _)| id) == head && result == OK;
            if !answered {
                share.wrong += 1;
                return;
            }
        }
        if !share.is_read_only && first_difference(buffer.bytes(), sector, round).is_some() {
            share.wrong += 1;
        }
    }
}

/// An MSI-X entry aimed at each CPU in turn reaches that CPU and no other.
pub fn msix_targets(test: &mut Test) {
    let (running, _) = smp::start();
    if running < 2 {
        return test.skip("one CPU");
    }
    for_each_disk(test, |test, transport| {
        let Some(msix) = transport.msix() else { return };
        let setup = Setup::polled(1).with_interrupts(Interrupts::Msix);
        let Some(mut disk) = start(test, transport, setup) else {
            return;
        };
        let entry = 1.min(msix.vectors - 1);
        let buffer = Buffer::new(4096);
        let counter = |cpu: usize| {
            cpu::shared_read(&raw const mem::cpu_record(cpu).counters[usize::from(VEC_QUEUE)])
        };
        // An MSI address has room for eight bits of APIC id.
        for target in (1..running.min(255)).chain([1]) {
            msix.set(entry, VEC_QUEUE, smp::apic_id(target));
            let before = counter(target);
            let others: u32 = (0..running).filter(|&cpu| cpu != target).map(counter).sum();
            disk.device.queue(0).ask_interrupt(1);
            test.eq("read", disk.read(disk.base, &buffer, 512).0, OK);
            if !time::until(super::patience(), || counter(target) == before + 1) {
                test.fail(format_args!(
                    "CPU {target} takes no interrupt that is aimed at it"
                ));
            }
            let now: u32 = (0..running).filter(|&cpu| cpu != target).map(counter).sum();
            test.eq_at(
                "interrupts on other CPUs, aimed at",
                target as u64,
                now,
                others,
            );
        }
        msix.control(false, false);
    });
}

/// Reset with requests in flight, many times; then the device must work, and memory of the old
/// queues must stay untouched.
pub fn reset(test: &mut Test) {
    for_each_disk(test, |test, transport| {
        for round in 0..20_u64 {
            let mark = mem::mark();
            let Some(mut disk) = start(test, transport, Setup::polled(1)) else {
                return;
            };
            let depth = disk
                .device
                .queue(0)
                .room()
                .min(if disk.device.queue(0).has_indirect() {
                    32
                } else {
                    disk.device.queue(0).size / 3
                });
            let buffer = Buffer::new(4096 * usize::from(depth.max(1)));
            for n in 0..depth {
                let sector =
                    disk.base + 8 * u64::from(n) % disk.sectors.max(8).saturating_sub(8).max(1);
                disk.put(
                    0,
                    n,
                    request::IN,
                    sector,
                    &[writes(buffer.at + 4096 * u64::from(n), 4096)],
                );
            }
            disk.device.queue(0).kick();
            time::pause(round * 20_000);
            if !test.check(
                transport.reset(),
                "status does not become 0 with requests in flight",
            ) {
                return;
            }
            // After reset the device may not write memory (virtio 1.2, 2.1.2).
            let used = disk.device.queue(0).used_index();
            buffer.fill(0xc3);
            queue::settle();
            test.eq(
                "used index after reset",
                disk.device.queue(0).used_index(),
                used,
            );
            test.check(
                buffer.bytes().iter().all(|&b| b == 0xc3),
                "memory written after reset",
            );
            mem::release(mark);
        }
        if let Some(mut disk) = start(test, transport, Setup::polled(1)) {
            let buffer = Buffer::new(4096);
            test.eq(
                "read after resets",
                disk.read(disk.base, &buffer, 512).0,
                OK,
            );
        }
    });
}

/// MSI-X: an interrupt for each completion asked for, none when not asked; masking holds it back and
/// sets the pending bit; unmasking delivers it.
pub fn msix(test: &mut Test) {
    for_each_disk(test, |test, transport| {
        let Some(msix) = transport.msix() else { return };
        let Some(mut disk) = start(
            test,
            transport,
            Setup::polled(1).with_interrupts(Interrupts::Msix),
        ) else {
            return;
        };
        let entry = 1.min(msix.vectors - 1);
        let vector = if entry == 0 {
            super::VEC_CONFIG
        } else {
            VEC_QUEUE
        };
        apic::enable();
        cpu::irq_on();
        let buffer = Buffer::new(4096);
        for i in 0..10 {
            let before = cpu::taken(vector);
            disk.device.queue(0).ask_interrupt(1);
            disk.put(0, 0, request::IN, disk.base, &[writes(buffer.at, 512)]);
            disk.device.queue(0).kick();
            if !time::until(super::patience(), || cpu::taken(vector) != before) {
                test.fail(format_args!("no MSI-X interrupt for request {i}"));
                break;
            }
            test.check(
                disk.device.queue(0).take().is_some(),
                "interrupt before the used element is there",
            );
            test.eq(
                "interrupts for one request",
                cpu::taken(vector) - before,
                1_u32,
            );
        }
        // Not asked for.
        let before = cpu::taken(vector);
        disk.device.queue(0).silence();
        test.eq("read", disk.read(disk.base, &buffer, 512).0, OK);
        queue::settle();
        if disk.device.queue(0).has_event_idx() {
            test.eq(
                "interrupts while none is wanted",
                cpu::taken(vector),
                before,
            );
        }
        // Masked entry, then masked function.
        for whole in [false, true] {
            let before = cpu::taken(vector);
            if whole {
                msix.control(true, true)
            } else {
                msix.mask(entry, true)
            }
            disk.device.queue(0).ask_interrupt(1);
            test.eq(
                "read while masked",
                disk.read(disk.base, &buffer, 512).0,
                OK,
            );
            queue::settle();
            test.eq("interrupts while masked", cpu::taken(vector), before);
            test.check(msix.pending(entry), "pending bit is not set");
            if whole {
                msix.control(true, false)
            } else {
                msix.mask(entry, false)
            }
            test.check(
                time::until(super::patience(), || cpu::taken(vector) != before),
                "no interrupt after unmasking",
            );
            test.check(!msix.pending(entry), "pending bit stays after delivery");
        }
        cpu::irq_off();
        msix.control(false, false);
    });
}

/// The wire: level-triggered through the I/O APIC. While the device holds it, an end of interrupt
/// brings the next one; reading the interrupt status lowers it; a masked pin stays silent.
pub fn wire(test: &mut Test) {
    let vector = 0x31; // ended by hand
    for_each_disk(test, |test, transport| {
        let Some(pin) = transport.gsi() else {
            test.note(format_args!(
                "{} {:#x} has no wire",
                transport.name(),
                transport.place()
            ));
            return;
        };
        let Some(mut disk) = start(
            test,
            transport,
            Setup::polled(1).with_interrupts(Interrupts::Wire),
        ) else {
            return;
        };
        apic::enable();
        transport.acknowledge(3);
        apic::route(pin, vector, apic::LEVEL, apic::id());
        cpu::irq_on();
        let buffer = Buffer::new(4096);
        let before = cpu::taken(vector);
        disk.device.queue(0).ask_interrupt(1);
        disk.put(0, 0, request::IN, disk.base, &[writes(buffer.at, 512)]);
        disk.device.queue(0).kick();
        if test.check(
            time::until(super::patience(), || cpu::taken(vector) != before),
            "no interrupt on the wire",
        ) {
            test.check(
                apic::ioapic_read(0x10 + 2 * pin) & apic::REMOTE_IRR != 0,
                "remote IRR is not set",
            );
            // Still high: the end of the interrupt brings it again.
            apic::end();
            test.check(
                time::until(super::patience(), || cpu::taken(vector) >= before + 2),
                "no second interrupt while the wire stays high",
            );
            let bits = transport.interrupt_status();
            transport.acknowledge(bits);
            test.eq("interrupt status", bits & 1, 1_u32);
            test.eq(
                "interrupt status after acknowledging",
                transport.interrupt_status(),
                0_u32,
            );
            test.check(
                apic::end_for_good(vector),
                "the interrupt goes on after it was acknowledged",
            );
            let after = cpu::taken(vector);
            queue::settle();
            test.eq("interrupts after the wire fell", cpu::taken(vector), after);
            test.eq(
                "remote IRR at rest",
                apic::ioapic_read(0x10 + 2 * pin) & apic::REMOTE_IRR,
                0_u32,
            );
        }
        // Masked: silent; unmasked with the wire high: delivered.
        disk.device.queue(0).take();
        apic::set_flags(pin, apic::LEVEL | apic::MASKED);
        let before = cpu::taken(vector);
        disk.device.queue(0).ask_interrupt(1);
        test.eq(
            "read with the pin masked",
            disk.read(disk.base, &buffer, 512).0,
            OK,
        );
        queue::settle();
        test.eq("interrupts with the pin masked", cpu::taken(vector), before);
        apic::set_flags(pin, apic::LEVEL);
        test.check(
            time::until(super::patience(), || cpu::taken(vector) != before),
            "no interrupt after unmasking the pin",
        );
        let bits = transport.interrupt_status();
        transport.acknowledge(bits);
        apic::mask(pin);
        apic::end_for_good(vector);
        cpu::irq_off();
    });
}

/// Writes a pattern over the test's sectors and flushes; `verify` reads it in a later boot.
pub fn fill(test: &mut Test) {
    pattern(test, true);
}

/// Reads what `fill` wrote.
pub fn verify(test: &mut Test) {
    pattern(test, false);
}

fn pattern(test: &mut Test, write: bool) {
    let salt = cmdline::number_or("salt", 1);
    for_each_disk(test, |test, transport| {
        let Some(mut disk) = start(test, transport, Setup::polled(1)) else {
            return;
        };
        let buffer = Buffer::new(64 << 10);
        let mut sector = disk.base;
        let end = disk.base + disk.sectors;
        while sector < end {
            let len = (512 * (end - sector)).min(64 << 10) as usize;
            let result = if write {
                stamp(&mut buffer.bytes()[..len], sector, salt);
                disk.write(sector, &buffer, len as u32).0
            } else {
                disk.read(sector, &buffer, len as u32).0
            };
            if !test.eq_at("result", sector, result, OK) {
                return;
            }
            if !write && let Some(word) = first_difference(&buffer.bytes()[..len], sector, salt) {
                test.fail(format_args!(
                    "sector {} is not what was written",
                    sector + word as u64 / 64
                ));
                return;
            }
            sector += len as u64 / 512;
        }
        test.eq("flush", disk.flush().0, OK);
    });
}

/// Measures requests of `len` bytes with `depth` in flight, at random places; polled.
pub fn bench(name: &str, write: bool, len: u32, depth: u16, requests: u64) {
    let Some(transport) = super::find(kind::BLOCK).next() else {
        return out::line(format_args!("fail {name}: no virtio-blk device"));
    };
    let mark = mem::mark();
    let mut disk = match Disk::start(transport, Setup::polled(1).with_features(!bench_without())) {
        Ok(disk) => disk,
        Err(why) => return out::line(format_args!("fail {name}: {why}")),
    };
    let (kind, places) = (
        if write { request::OUT } else { request::IN },
        disk.sectors * 512 / u64::from(len),
    );
    if places == 0 {
        return out::line(format_args!("fail {name}: the disk is too small"));
    }
    let room = if disk.device.queue(0).has_indirect() {
        disk.device.queue(0).size
    } else {
        disk.device.queue(0).size / 3
    };
    let depth = depth.clamp(1, room);
    let buffer = Buffer::new(len as usize * usize::from(depth));
    let mut random = Sequence(tsc());
    // Which slot each head carries.
    let mut slots = [0_u16; 2048];
    let (mut put, mut done, mut bad) = (0, 0, 0);
    let start = tsc();
    let mut free = [0_u16; 2048];
    let mut free_count = depth;
    for n in 0..depth {
        free[usize::from(n)] = n;
    }
    while done < requests {
        let mut new = false;
        while put < requests && free_count > 0 {
            let n = free[usize::from(free_count - 1)];
            let sector = disk.base + random.below(places) * u64::from(len) / 512;
            let part = Part {
                at: buffer.at + u64::from(len) * u64::from(n),
                len,
                write: !write,
            };
            let Some(head) = disk.put(0, n, kind, sector, &[part]) else {
                break;
            };
            slots[usize::from(head) & 2047] = n;
            free_count -= 1;
            put += 1;
            new = true;
        }
        if new {
            disk.device.queue(0).kick();
        }
        let Some((head, _)) = disk.device.queue(0).wait(super::patience()) else {
            return out::line(format_args!(
                "fail {name}: stuck after {done} of {requests} requests"
            ));
        };
        let mut next = Some(head);
        while let Some(head) = next {
            let n = slots[usize::from(head) & 2047];
            bad += u32::from(disk.result(0, n) != OK);
            free[usize::from(free_count)] = n;
            free_count += 1;
            done += 1;
            next = disk.device.queue(0).take().map(|(head, _)| head);
        }
    }
    let cycles = tsc() - start;
    if bad != 0 {
        out::line(format_args!("fail {name}: {bad} requests failed"));
    }
    out::bench(name, requests, cycles);
    transport.reset();
    mem::release(mark);
}

/// Features that a bench should do without (`without=indirect,event-idx`).
fn bench_without() -> u64 {
    cmdline::value("without")
        .unwrap_or("")
        .split(',')
        .fold(0, |bits, word| {
            bits | match word {
                "indirect" => feature::INDIRECT,
                "event-idx" => feature::EVENT_IDX,
                _ => 0,
            }
        })
}

/// The device refuses a driver that goes on without FEATURES_OK, or asks for what was not offered.
pub fn negotiation(test: &mut Test) {
    for_each_disk(test, |test, transport| {
        let offered = transport.features();
        let missing = (0..64).find(|bit| offered >> bit & 1 == 0).unwrap_or(50);
        transport.reset();
        transport.set_status(status::ACKNOWLEDGE);
        transport.set_status(status::ACKNOWLEDGE | status::DRIVER);
        transport.accept(feature::VERSION_1 | 1 << missing);
        transport.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        test.eq(
            "FEATURES_OK with a feature that was not offered",
            transport.status() & status::FEATURES_OK,
            0_u8,
        );
        transport.reset();
        transport.set_status(status::ACKNOWLEDGE | status::DRIVER);
        transport.accept(0);
        transport.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        test.eq(
            "FEATURES_OK without VERSION_1",
            transport.status() & status::FEATURES_OK,
            0_u8,
        );
        let _ = read8(transport.config());
    });
}
