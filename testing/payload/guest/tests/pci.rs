//! PCI configuration space through both mechanisms, BARs, MSI-X tables, and writes that must not stick.

use crate::cpu::{self, inb, inl, inw, ones, outb, outl, read32, write32};
use crate::out::Test;
use crate::pci::{self, Function, header};

/// Lists the functions.
pub fn enumerate(test: &mut Test) {
    if !pci::present() {
        return test.skip("no PCI");
    }
    let mut count = 0;
    for f in pci::functions() {
        let (vendor, device) = f.ids();
        test.note(format_args!(
            "{:02x}:{:02x}.{} {vendor:04x}:{device:04x} class {:04x} line {} pin {}",
            f.bus,
            f.device(),
            f.devfn & 7,
            f.read16(header::CLASS),
            f.read8(header::LINE),
            f.read8(header::PIN)
        ));
        count += 1;
    }
    test.check(count >= 1, "no function");
    test.eq(
        "class of 00:00.0 (host bridge)",
        Function::at(0, 0, 0).read16(header::CLASS),
        0x0600_u16,
    );
    // Absent functions read as ones.
    for (bus, device) in [(0, 31), (0xfe, 3)] {
        let f = Function::at(bus, device, 7);
        if !f.exists() {
            test.eq("absent function", f.read32(0), u32::MAX);
            f.write32(4, 0xffff_ffff);
        }
    }
}

/// Every offset through CF8/CFC and ECAM with every width, compared with whole words.
pub fn config_space(test: &mut Test) {
    if !pci::present() {
        return test.skip("no PCI");
    }
    // The address register: 32 bits wide, bits 1:0 and 30:24 reserved.
    outl(0xcf8, 0x8000_0004);
    test.eq("CF8", inl(0xcf8), 0x8000_0004_u32);
    // Narrow accesses to CF8 are not configuration accesses: 0xcf9 is the reset register, 0xcfa nobody's.
    let _ = (inb(0xcf8), inw(0xcf8), inb(0xcfa));
    outb(0xcfa, 0xff);
    test.eq("CF8 after byte writes", inl(0xcf8), 0x8000_0004_u32);
    // With the enable bit off, the data port reads ones.
    outl(0xcf8, 0);
    test.eq("CFC while disabled", inl(0xcfc), u32::MAX);
    for f in pci::functions() {
        let page = f.ecam();
        for offset in (0..256_u16).step_by(4) {
            let word = f.read32(offset);
            for byte in 0..4 {
                test.eq_at(
                    "byte through CF8",
                    (offset + byte).into(),
                    f.read8(offset + byte),
                    (word >> (8 * byte)) as u8,
                );
            }
            for half in [0, 2] {
                test.eq_at(
                    "half through CF8",
                    (offset + half).into(),
                    f.read16(offset + half),
                    (word >> (8 * half)) as u16,
                );
            }
            if let Some(page) = page {
                test.eq_at(
                    "word through ECAM",
                    offset.into(),
                    pci::ecam_read(page, offset, 4),
                    word,
                );
                for byte in 0..4 {
                    test.eq_at(
                        "byte through ECAM",
                        (offset + byte).into(),
                        pci::ecam_read(page, offset + byte, 1),
                        (word >> (8 * byte)) as u8,
                    );
                }
                test.eq_at(
                    "half through ECAM",
                    offset.into(),
                    pci::ecam_read(page, offset + 2, 2),
                    (word >> 16) as u16,
                );
            }
        }
        if let Some(page) = page {
            // Widths and offsets that real hardware may refuse: any answer will do.
            for offset in 0..256 {
                for width in [2, 4, 8] {
                    let _ = pci::ecam_read(page, offset, width);
                }
            }
            for offset in (256..4096).step_by(4) {
                let _ = pci::ecam_read(page, offset, 4);
            }
            let _ = pci::ecam_read(page, 4092, 8);
        }
        let looped = f.capabilities().count();
        test.check(looped < 48, "the capability list does not end");
    }
    // ECAM of an absent function.
    let absent = Function::at(0, 31, 7);
    if !absent.exists()
        && let Some(page) = absent.ecam()
    {
        for width in [1, 2, 4] {
            test.eq_at(
                "absent function through ECAM, width",
                width.into(),
                pci::ecam_read(page, 0, width),
                ones(width),
            );
        }
        write32(page + 4, u32::MAX);
    }
}

/// Sizes are powers of two, addresses are aligned, ranges do not overlap.
pub fn bars(test: &mut Test) {
    if !pci::present() {
        return test.skip("no PCI");
    }
    let mut ranges = [(0_u64, 0_u64, false); 64];
    let mut count = 0;
    for f in pci::functions() {
        if f.read8(header::TYPE) & 0x7f != 0 {
            continue;
        }
        f.enable();
        let mut index = 0;
        while index < 6 {
            let bar = f.bar(index);
            index += if bar.is_64bit { 2 } else { 1 };
            if bar.size == 0 {
                continue;
            }
            let place = u64::from(f.devfn) << 8 | u64::from(index);
            test.check(bar.size.is_power_of_two(), "BAR size is no power of two");
            test.check(bar.is_io || bar.size >= 16, "memory BAR below 16 bytes");
            test.eq_at(
                "BAR address below its size, devfn and index",
                place,
                bar.address % bar.size.max(1),
                0_u64,
            );
            for &(start, end, io) in &ranges[..count] {
                if io == bar.is_io && bar.address < end && start < bar.address + bar.size {
                    test.fail(format_args!(
                        "BARs overlap: {:#x} and {start:#x}",
                        bar.address
                    ));
                }
            }
            if count < ranges.len() {
                ranges[count] = (bar.address, bar.address + bar.size, bar.is_io);
                count += 1;
            }
        }
        // The ROM BAR: its size, then as it was.
        let rom = f.read32(header::ROM);
        f.write32(header::ROM, 0xffff_fffe);
        let size = (f.read32(header::ROM) & 0xffff_f800).wrapping_neg();
        test.check(
            size == 0 || size.is_power_of_two(),
            "ROM size is no power of two",
        );
        f.write32(header::ROM, rom);
        moving(test, f);
    }
}

/// A memory BAR can be moved, answers at its new place and no longer at the old one.
fn moving(test: &mut Test, f: Function) {
    let Some(msix) = f.msix() else { return };
    let at = f.capability(0x11).unwrap_or(0);
    let index = (f.read32(at + 4) & 7) as u8;
    let bar = f.bar(index);
    if bar.address == 0 || bar.address.checked_add(bar.size).is_none() {
        return;
    }
    let register = header::BAR0 + 4 * u16::from(index);
    write32(msix.table + 8, 0x1234);
    test.eq("MSI-X data", read32(msix.table + 8), 0x1234_u32);
    let command = f.read16(header::COMMAND);
    // Off: nobody answers.
    f.write16(header::COMMAND, command & !2);
    test.eq("BAR with decoding off", read32(msix.table + 8), u32::MAX);
    // To a free place below 4 GiB; the upper half is kept zero for that.
    let target = crate::cmdline::number_or("pci_free", 0xfd00_0000).next_multiple_of(bar.size);
    f.write32(register, target as u32);
    if bar.is_64bit {
        f.write32(register + 4, 0);
    }
    f.write16(header::COMMAND, command);
    test.eq(
        "MSI-X data at a BAR's new place",
        read32(target + (msix.table - bar.address) + 8),
        0x1234_u32,
    );
    test.eq("a BAR's old place", read32(msix.table + 8), u32::MAX);
    f.write16(header::COMMAND, command & !2);
    f.write32(register, bar.address as u32);
    if bar.is_64bit {
        f.write32(register + 4, (bar.address >> 32) as u32);
    }
    f.write16(header::COMMAND, command);
    test.eq(
        "MSI-X data at a BAR's place again",
        read32(msix.table + 8),
        0x1234_u32,
    );
    write32(msix.table + 8, 0);
}

/// MSI-X tables hold what is written; control has one bit; the PBA is read-only.
pub fn msix_tables(test: &mut Test) {
    if !pci::present() {
        return test.skip("no PCI");
    }
    for f in pci::functions() {
        f.enable();
        let Some(msix) = f.msix() else { continue };
        msix.control(false, false);
        test.eq("MSI-X control, off", msix.read_control() & 0xc000, 0_u16);
        msix.control(true, true);
        test.eq(
            "MSI-X control, on and masked",
            msix.read_control() & 0xc000,
            0xc000_u16,
        );
        for entry in 0..msix.vectors {
            let at = msix.table + 16 * u64::from(entry);
            test.eq_at(
                "mask bit of entry",
                entry.into(),
                read32(at + 12) & 1,
                1_u32,
            );
            write32(at, 0xfee0_1004);
            write32(at + 4, 0x1);
            write32(at + 8, 0x4055);
            test.eq_at(
                "address of entry",
                entry.into(),
                read32(at),
                0xfee0_1004_u32,
            );
            test.eq_at(
                "upper address of entry",
                entry.into(),
                read32(at + 4),
                1_u32,
            );
            test.eq_at("data of entry", entry.into(), read32(at + 8), 0x4055_u32);
            // Quad accesses are legal too.
            cpu::write64(at, 0);
            cpu::write64(at + 8, 1 << 32);
            test.eq_at(
                "entry through 64 bits",
                entry.into(),
                cpu::read64(at),
                0_u64,
            );
            test.eq_at("control of entry", entry.into(), read32(at + 12), 1_u32);
        }
        // Odd accesses, then past the last entry.
        for offset in 0..32 {
            for width in [1, 2, 4, 8] {
                let _ = cpu::read(msix.table + offset, width);
            }
            let _ = cpu::read(msix.table + 16 * u64::from(msix.vectors) + offset, 4);
        }
        let pending = read32(msix.pba);
        write32(msix.pba, !pending);
        test.eq("pending bits after a write", read32(msix.pba), pending);
        msix.control(false, false);
    }
}

/// Ones and zeros into every register of every function: identity and structure stay.
pub fn wild_writes(test: &mut Test) {
    if !pci::present() {
        return test.skip("no PCI");
    }
    for f in pci::functions() {
        let mut before = [0_u32; 64];
        for (i, word) in before.iter_mut().enumerate() {
            *word = f.read32(4 * i as u16);
        }
        // Off first, so that BARs flying about hit nothing.
        f.write16(header::COMMAND, 0);
        let first_bridge = f.bus == 0 && f.devfn == 0;
        for width in [1, 2, 4_u32] {
            for value in [u32::MAX, 0, 0xa5a5_a5a5] {
                for offset in (0..256_u16).step_by(width as usize) {
                    // The host bridge may hold the ECAM base and memory ranges: only its header.
                    if offset & !3 == 4 || (first_bridge && offset >= 0x40) {
                        continue;
                    }
                    f.write(offset, width, value);
                }
            }
        }
        for (i, word) in before.iter().enumerate().rev() {
            let offset = 4 * i as u16;
            if offset != header::COMMAND {
                f.write32(offset, *word);
            }
        }
        f.write16(header::COMMAND, before[1] as u16);
        // Identity, class, header type, subsystem, capability pointer, interrupt pin.
        for (offset, mask) in [
            (0x00, u32::MAX),
            (0x08, u32::MAX),
            (0x0c, 0x007f_0000),
            (0x2c, u32::MAX),
            (0x34, 0xff),
            (0x3c, 0xff00),
        ] {
            if f.read8(header::TYPE) & 0x7f != 0 && offset == 0x2c {
                continue;
            }
            let want = before[usize::from(offset / 4)] & mask;
            test.eq_at(
                "read-only register after wild writes",
                u64::from(f.devfn) << 8 | u64::from(offset),
                f.read32(offset) & mask,
                want,
            );
        }
        for (i, word) in before.iter().enumerate() {
            let offset = 4 * i as u64;
            // Status bits may clear, the rest is as it was; virtio's window into registers (a capability
            // of kind 5) reads what it points at.
            if offset != 4 && !in_window(f, offset as u16) {
                test.eq_at(
                    "register put back",
                    u64::from(f.devfn) << 8 | offset,
                    f.read32(offset as u16),
                    *word,
                );
            }
        }
    }
}

fn in_window(f: Function, offset: u16) -> bool {
    f.capabilities()
        .any(|(id, at)| id == 0x09 && f.read8(at + 3) == 5 && (at..at + 20).contains(&offset))
}
