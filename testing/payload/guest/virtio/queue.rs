//! A split queue as the driver sees it (virtio 1.2, 2.7).

use super::feature;
use super::transport::NotifyAt;
use crate::cpu::{fence, shared_read, shared_write, write16, write32};
use crate::{mem, time};

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A descriptor.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Desc {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// A piece of a request.
#[derive(Clone, Copy)]
pub struct Part {
    pub at: u64,
    pub len: u32,
    /// Whether the device writes it.
    pub write: bool,
}

/// A piece that the device reads.
pub const fn reads(at: u64, len: u32) -> Part {
    Part {
        at,
        len,
        write: false,
    }
}

/// A piece that the device writes.
pub const fn writes(at: u64, len: u32) -> Part {
    Part {
        at,
        len,
        write: true,
    }
}

/// A queue in guest memory.
pub struct Queue {
    pub index: u16,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub notify_at: NotifyAt,
    indirect: bool,
    event_idx: bool,
    /// First free descriptor, and how many are free.
    free: u16,
    free_count: u16,
    /// Next entry of the available ring, as last published or about to be.
    next_avail: u16,
    /// The available index at the last notification.
    notified: u16,
    /// Next entry of the used ring to look at.
    next_used: u16,
    /// One indirect table of 16 entries for each descriptor.
    tables: u64,
}

const TABLE_ENTRIES: u64 = 16;

impl Queue {
    /// Allocates a queue.
    pub fn new(index: u16, size: u16, features: u64) -> Self {
        let entries = u64::from(size.max(1));
        let indirect = features & feature::INDIRECT != 0;
        let queue = Self {
            index,
            size,
            desc: mem::alloc(16 * entries, 4096) as u64,
            avail: mem::alloc(6 + 2 * entries, 64) as u64,
            used: mem::alloc(6 + 8 * entries, 64) as u64,
            notify_at: NotifyAt::default(),
            indirect,
            event_idx: features & feature::EVENT_IDX != 0,
            free: 0,
            free_count: size,
            next_avail: 0,
            notified: 0,
            next_used: 0,
            tables: if indirect {
                mem::alloc(16 * TABLE_ENTRIES * entries, 64) as u64
            } else {
                0
            },
        };
        for i in 0..size {
            queue.set_desc(
                i,
                Desc {
                    next: i.wrapping_add(1),
                    ..Desc::default()
                },
            );
        }
        queue
    }

    /// Writes a descriptor.
    pub fn set_desc(&self, index: u16, desc: Desc) {
        shared_write((self.desc + 16 * u64::from(index)) as *mut Desc, desc);
    }

    /// Reads a descriptor.
    pub fn get_desc(&self, index: u16) -> Desc {
        shared_read((self.desc + 16 * u64::from(index)) as *const Desc)
    }

    /// Descriptors free.
    pub fn room(&self) -> u16 {
        self.free_count
    }

    /// Puts a request into the ring without publishing it; its head, or none if there is no room.
    pub fn put(&mut self, parts: &[Part]) -> Option<u16> {
        let head = self.free;
        if self.indirect && parts.len() > 1 && parts.len() as u64 <= TABLE_ENTRIES {
            if self.free_count < 1 {
                return None;
            }
            let table = self.tables + 16 * TABLE_ENTRIES * u64::from(head);
            for (i, part) in parts.iter().enumerate() {
                let last = i + 1 == parts.len();
                let desc = part_desc(*part, (!last).then_some(i as u16 + 1));
                shared_write((table + 16 * i as u64) as *mut Desc, desc);
            }
            self.free = self.get_desc(head).next;
            self.free_count -= 1;
            let len = 16 * parts.len() as u32;
            self.set_desc(
                head,
                Desc {
                    address: table,
                    len,
                    flags: INDIRECT,
                    next: 0,
                },
            );
        } else {
            if usize::from(self.free_count) < parts.len() {
                return None;
            }
            let mut at = head;
            for (i, part) in parts.iter().enumerate() {
                let next = self.get_desc(at).next;
                let last = i + 1 == parts.len();
                self.set_desc(at, part_desc(*part, (!last).then_some(next)));
                if last {
                    // The free list goes on after this chain.
                    self.free = next;
                }
                at = next;
            }
            self.free_count -= parts.len() as u16;
        }
        self.put_head(head);
        Some(head)
    }

    /// Puts a head into the available ring, whatever it is.
    pub fn put_head(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        shared_write((self.avail + 4 + 2 * slot) as *mut u16, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Makes what was put visible to the device.
    pub fn publish(&mut self) {
        fence();
        shared_write((self.avail + 2) as *mut u16, self.next_avail);
        fence();
    }

    /// Sets the available index to any value.
    pub fn set_avail_index(&mut self, index: u16) {
        self.next_avail = index;
        self.publish();
    }

    /// The available index as published or about to be.
    pub fn avail_index(&self) -> u16 {
        self.next_avail
    }

    /// Publishes, and notifies if the device wants to be; whether it did.
    pub fn kick(&mut self) -> bool {
        self.publish();
        let wanted = if self.event_idx {
            let event = shared_read((self.used + 4 + 8 * u64::from(self.size)) as *const u16);
            // virtio 1.2, 2.7.10: notify if the event index lies in what is new.
            self.next_avail.wrapping_sub(event).wrapping_sub(1)
                < self.next_avail.wrapping_sub(self.notified)
        } else {
            shared_read(self.used as *const u16) & 1 == 0
        };
        if wanted {
            self.notify();
        }
        wanted
    }

    /// Notifies the device in any case.
    pub fn notify(&mut self) {
        self.notified = self.next_avail;
        if self.notify_at.is_mmio {
            write32(self.notify_at.address, self.index.into());
        } else {
            write16(self.notify_at.address, self.index);
        }
    }

    /// The used index.
    pub fn used_index(&self) -> u16 {
        shared_read((self.used + 2) as *const u16)
    }

    /// Takes the next used element: head and bytes written. Its descriptors are free again.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.next_used {
            return None;
        }
        fence();
        let slot = u64::from(self.next_used % self.size);
        let id: u32 = shared_read((self.used + 4 + 8 * slot) as *const u32);
        let len: u32 = shared_read((self.used + 8 + 8 * slot) as *const u32);
        self.next_used = self.next_used.wrapping_add(1);
        let head = id as u16;
        if id < u32::from(self.size) {
            self.give_back(head);
        }
        Some((head, len))
    }

    /// Puts a chain back on the free list.
    fn give_back(&mut self, head: u16) {
        let mut at = head;
        let mut count = 1;
        while self.get_desc(at).flags & NEXT != 0 && count < self.size {
            at = self.get_desc(at).next;
            count += 1;
        }
        let last = self.get_desc(at);
        self.set_desc(
            at,
            Desc {
                next: self.free,
                flags: 0,
                ..last
            },
        );
        self.free = head;
        self.free_count += count;
    }

    /// Waits for the next used element.
    pub fn wait(&mut self, cycles: u64) -> Option<(u16, u32)> {
        let end = crate::cpu::tsc() + cycles;
        loop {
            if let Some(taken) = self.take() {
                return Some(taken);
            }
            if crate::cpu::tsc() > end {
                return self.take();
            }
            core::hint::spin_loop();
        }
    }

    /// One request from start to end: the bytes that the device says it wrote.
    pub fn request(&mut self, parts: &[Part]) -> Option<u32> {
        let head = self.put(parts)?;
        self.kick();
        let (done, len) = self.wait(super::patience())?;
        (done == head).then_some(len)
    }

    /// Asks the device not to interrupt.
    pub fn silence(&mut self) {
        if self.event_idx {
            // An event index just behind: reached after 65 535 more elements at the earliest.
            let behind = self.next_used.wrapping_sub(1);
            shared_write(
                (self.avail + 4 + 2 * u64::from(self.size)) as *mut u16,
                behind,
            );
        } else {
            shared_write(self.avail as *mut u16, 1);
        }
        fence();
    }

    /// Asks for an interrupt after `count` more used elements than were taken.
    pub fn ask_interrupt(&mut self, count: u16) {
        if self.event_idx {
            let event = self.next_used.wrapping_add(count - 1);
            shared_write(
                (self.avail + 4 + 2 * u64::from(self.size)) as *mut u16,
                event,
            );
        } else {
            shared_write(self.avail as *mut u16, 0);
        }
        fence();
    }

    /// Whether event indices were agreed on.
    pub fn has_event_idx(&self) -> bool {
        self.event_idx
    }

    /// Whether indirect descriptors were agreed on.
    pub fn has_indirect(&self) -> bool {
        self.indirect
    }
}

fn part_desc(part: Part, next: Option<u16>) -> Desc {
    Desc {
        address: part.at,
        len: part.len,
        flags: if part.write { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 },
        next: next.unwrap_or(0),
    }
}

/// Waits until the device has no more to say.
pub fn settle() {
    time::pause(time::millis(20));
}
