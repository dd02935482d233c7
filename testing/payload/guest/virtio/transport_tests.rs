//! Rules of the transports that hold for every device: queue registers, frozen configuration, odd
//! widths, capability layout.

use super::transport::{Transport, common, mmio};
use super::{Device, Setup, status};
use crate::cpu::{self, ones, read8, read16, read32, write8, write16, write32};
use crate::mem;
use crate::out::Test;
use crate::pci::header;

/// Checks every virtio device.
pub fn registers(test: &mut Test) {
    let mut found = false;
    for transport in super::all() {
        found = true;
        let mark = mem::mark();
        test.check(transport.reset(), "status does not become 0");
        one(test, transport);
        match transport {
            Transport::Pci(d) => {
                pci_structures(test, transport);
                odd_accesses(test, d.common, u64::from(d.common_len));
                odd_accesses(test, d.isr, 1);
                if d.config != 0 {
                    odd_accesses(test, d.config, d.config_len.into());
                }
            }
            Transport::Mmio(d) => {
                mmio_identity(test, transport);
                odd_accesses(test, d.base, d.len.min(0x200));
            }
        }
        test.check(
            transport.reset(),
            "status does not become 0 after odd accesses",
        );
        frozen(test, transport);
        transport.reset();
        mem::release(mark);
    }
    if !found {
        test.skip("no virtio device");
    }
}

fn one(test: &mut Test, transport: Transport) {
    let kind = transport.kind();
    // Word selectors past the second read as zero.
    for select in [2, 3, 0xffff_ffff] {
        test.eq_at(
            "feature word",
            select.into(),
            transport.feature_word(select),
            0_u32,
        );
    }
    test.eq_at(
        "VERSION_1 of device",
        kind.into(),
        transport.features() >> 32 & 1,
        1_u32,
    );
    let queues = transport.queues();
    test.check(queues > 0, "no queues");
    for index in 0..queues {
        let max = transport.select(index);
        test.check(max.is_power_of_two(), "queue size is no power of two");
        test.check(!transport.is_enabled(), "queue is enabled after reset");
    }
    // Queues that do not exist have size 0, and writes to them change nothing.
    for index in [queues, queues + 1, 0x7fff, 0xffff] {
        test.eq_at(
            "size of absent queue",
            index.into(),
            transport.select(index),
            0_u16,
        );
        transport.set_size(64);
        transport.set_addresses(0x1000, 0x2000, 0x3000);
        transport.enable();
        test.check(
            !transport.is_enabled(),
            "a queue that does not exist can be enabled",
        );
    }
    // Status bits stay as written until reset.
    for bits in [status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::DRIVER] {
        transport.set_status(bits);
        test.eq("status", transport.status(), bits);
    }
    test.check(transport.reset(), "status does not become 0");
    // A notification before DRIVER_OK, and one for a queue that does not exist, are ignored.
    let at = transport.notify_at(0);
    for index in [0_u16, queues, 0xffff] {
        if at.is_mmio {
            write32(at.address, index.into())
        } else {
            write16(at.address, index)
        }
    }
    test.eq("status after early notifications", transport.status(), 0_u8);
}

/// After DRIVER_OK the driver cannot change a queue's size or addresses.
fn frozen(test: &mut Test, transport: Transport) {
    if Device::start(transport, Setup::polled(1)).is_err() {
        return test.fail(format_args!(
            "device {} at {:#x} does not start",
            transport.kind(),
            transport.place()
        ));
    }
    let before = transport.select(0);
    for size in [0, 3, 1, 0x8000, 0xffff] {
        transport.set_size(size);
    }
    transport.set_addresses(0xffff_0000, 0xffff_1000, 0xffff_2000);
    if let Transport::Pci(d) = transport {
        test.eq(
            "queue size after writes to a running device",
            transport.select(0),
            before,
        );
        let address = read32(d.common + common::QUEUE_DESC);
        test.check(
            address != 0xffff_0000,
            "queue address can be changed while running",
        );
        // Enabling is one-way: a driver cannot write 0 (virtio 1.2, 4.1.4.3.2).
        write16(d.common + common::QUEUE_ENABLE, 0);
        test.check(
            transport.is_enabled(),
            "queue can be disabled without reset",
        );
    }
    test.eq(
        "status of a running device",
        transport.status() & status::DRIVER_OK,
        status::DRIVER_OK,
    );
}

fn mmio_identity(test: &mut Test, transport: Transport) {
    let Transport::Mmio(d) = transport else {
        return;
    };
    test.eq("magic", read32(d.base + mmio::MAGIC), 0x7472_6976_u32);
    test.eq("version", read32(d.base + mmio::VERSION), 2_u32);
    // Read-only registers ignore writes.
    for at in [mmio::MAGIC, mmio::VERSION, mmio::DEVICE_ID, mmio::VENDOR] {
        let before = read32(d.base + at);
        write32(d.base + at, !before);
        test.eq_at("read-only register", at, read32(d.base + at), before);
    }
}

fn pci_structures(test: &mut Test, transport: Transport) {
    let Transport::Pci(d) = transport else { return };
    let f = d.function;
    test.check(f.read8(header::REVISION) >= 1, "revision id below 1");
    let mut seen = 0_u32;
    for (id, at) in f.capabilities().filter(|&(id, _)| id == 0x09) {
        let len = f.read8(at + 2);
        let kind = f.read8(at + 3);
        test.check(
            len >= 16 || kind == 9,
            "a virtio capability is shorter than 16 bytes",
        );
        seen |= 1 << (kind & 31);
        let _ = id;
        if (1..=4).contains(&kind) {
            let bar = f.bar(f.read8(at + 4));
            let end = u64::from(f.read32(at + 8)) + u64::from(f.read32(at + 12));
            test.check(end <= bar.size, "a structure runs past its BAR");
            test.eq_at(
                "alignment of structure",
                kind.into(),
                f.read32(at + 8) & if kind == 3 { 0 } else { 3 },
                0_u32,
            );
        }
    }
    for kind in [1, 2, 3, 5] {
        test.check(
            seen & 1 << kind != 0,
            "a required virtio capability is missing",
        );
    }
    // The window through configuration space (virtio 1.2, 4.1.4.9) shows the same registers.
    if let Some((_, at)) = f
        .capabilities()
        .find(|&(id, at)| id == 0x09 && f.read8(at + 3) == 5)
    {
        let common_at = f
            .capabilities()
            .find(|&(id, at)| id == 0x09 && f.read8(at + 3) == 1)
            .map(|(_, at)| at);
        if let Some(common_at) = common_at {
            f.write(at + 4, 1, f.read(common_at + 4, 1));
            f.write32(at + 8, f.read32(common_at + 8) + common::QUEUES as u32);
            f.write32(at + 12, 2);
            test.eq(
                "queues through the configuration window",
                f.read16(at + 16),
                transport.queues(),
            );
            // Wild windows answer with anything but harm.
            for (bar, offset, len) in [
                (7, 0, 4),
                (0, u32::MAX, 4),
                (0, 0xffff_fffc, 8),
                (5, 0, 4),
                (0xff, 0, 1),
                (0, 0, 0),
                (0, 1, 4),
                (0, 0, 3),
                (0, 0, 0xffff_ffff),
            ] {
                f.write(at + 4, 1, bar);
                f.write32(at + 8, offset);
                f.write32(at + 12, len);
                let _ = f.read32(at + 16);
                f.write32(at + 16, 0xa5a5_a5a5);
            }
        }
    }
    // MSI-X vectors that do not exist read back as "none".
    if let Some(msix) = d_msix(transport) {
        for vector in [msix.vectors, 0x7ff, 0x1234] {
            if vector < msix.vectors {
                continue;
            }
            write16(d.common + common::CONFIG_VECTOR, vector);
            test.eq_at(
                "configuration vector",
                vector.into(),
                read16(d.common + common::CONFIG_VECTOR),
                0xffff_u16,
            );
        }
        write16(d.common + common::CONFIG_VECTOR, 0xffff);
    }
    let _ = read8(d.isr);
}

fn d_msix(transport: Transport) -> Option<crate::pci::Msix> {
    transport.msix()
}

/// Reads and writes of every width at every offset: nothing may break, and the device must reset.
fn odd_accesses(test: &mut Test, base: u64, len: u64) {
    for offset in 0..len.min(512) {
        for width in [1, 2, 4, 8] {
            let value = cpu::read(base + offset, width);
            if !test.check(
                value <= ones(width),
                "a read returns more bits than its width",
            ) {
                return;
            }
        }
    }
    for offset in 0..len.min(512) {
        for width in [1, 2, 4, 8] {
            cpu::write(base + offset, width, 0);
            cpu::write(base + offset, width, 0x5a5a_5a5a_5a5a_5a5a & ones(width));
        }
    }
    write8(base + len - 1, 0);
}
