//! Guest RAM as KVM memory slots.

use crate::dirty::enable_manual_protect;
use crate::host::Host;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use nyx_memory::{Backing, Extent, PAGE, RamObserver};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// One registered slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) host: u64,
}

#[derive(Default)]
struct Table {
    slots: BTreeMap<u32, Slot>,
    logging: bool,
}

/// The slots of one VM, shared by the observer and the dirty source.
pub(crate) struct Slots {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) manual_protect: bool,
    most: u32,
    table: Mutex<Table>,
}

impl Slots {
    pub(crate) fn new(vm: Arc<VmFd>, host: &Host) -> Self {
        let manual_protect = enable_manual_protect(&vm, &host.capabilities);
        Self {
            vm,
            manual_protect,
            most: host.capabilities.nr_memslots.max(32),
            table: Mutex::default(),
        }
    }

    fn register(&self, slot: u32, at: Slot, logging: bool) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if logging { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: at.base,
            memory_size: at.len,
            userspace_addr: at.host,
        };
        // SAFETY: the range is the backing of an extent that `RamObserver::mapped` announced: it
        // stays mapped until `unmapped`, which deletes the slot, and nothing else lives in it. A
        // length of zero deletes.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }

    /// Turns logging on or off for all slots, present and future. On failure the slots already
    /// switched are switched back.
    pub(crate) fn log(&self, on: bool) -> io::Result<()> {
        let mut table = self.table.lock();
        if table.logging == on {
            return Ok(());
        }
        let mut switched = Vec::with_capacity(table.slots.len());
        for (&slot, &at) in &table.slots {
            if let Err(e) = self.register(slot, at, on) {
                for (slot, at) in switched {
                    // The reverse change was legal a moment ago; there is nobody else to tell.
                    let _ = self.register(slot, at, !on);
                }
                return Err(e);
            }
            switched.push((slot, at));
        }
        table.logging = on;
        Ok(())
    }

    /// The slots now registered, if they are being logged.
    pub(crate) fn logged(&self) -> Option<Vec<(u32, Slot)>> {
        let table = self.table.lock();
        table
            .logging
            .then(|| table.slots.iter().map(|(&n, &s)| (n, s)).collect())
    }
}

/// Keeps the slots in step with guest RAM.
pub(crate) struct SlotObserver(pub(crate) Arc<Slots>);

impl RamObserver for SlotObserver {
    fn mapped(&mut self, extent: Extent, backing: &Backing<'_>) -> io::Result<()> {
        let at = Slot {
            base: extent.base.0,
            len: extent.len as u64,
            host: backing.host.as_ptr() as u64,
        };
        if at.len == 0 || !at.base.is_multiple_of(PAGE) || !at.len.is_multiple_of(PAGE) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "memory at {:#x} of {:#x} bytes is not whole pages",
                    at.base, at.len
                ),
            ));
        }
        let mut table = self.0.table.lock();
        let slot = (0..self.0.most)
            .find(|n| !table.slots.contains_key(n))
            .ok_or_else(|| {
                io::Error::other(format!(
                    "all {} memory slots of KVM are in use",
                    self.0.most
                ))
            })?;
        self.0.register(slot, at, table.logging)?;
        table.slots.insert(slot, at);
        Ok(())
    }

    fn unmapped(&mut self, extent: Extent) {
        let mut table = self.0.table.lock();
        let GuestAddress(base) = extent.base;
        let len = extent.len as u64;
        let found = table
            .slots
            .iter()
            .find(|(_, s)| s.base == base && s.len == len);
        let Some((&slot, &at)) = found else {
            return;
        };
        // Deleting an existing slot fails only for lack of memory. The guest then meets the
        // unmapped range as a memory fault; the host is safe, because the kernel follows the
        // process's own mappings.
        if self.0.register(slot, Slot { len: 0, ..at }, false).is_ok() {
            table.slots.remove(&slot);
        }
    }
}
