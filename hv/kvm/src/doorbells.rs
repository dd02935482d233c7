//! Doorbells by `KVM_IOEVENTFD`, unbound behind the caller's back.
//!
//! Unbinding waits for a grace period in the kernel, milliseconds on some hosts, and a guest that
//! moves a BAR unbinds a doorbell per queue. A dropped binding is therefore parked: a short-lived
//! thread unbinds what is parked, and a bind of the very same doorbell takes it back without any
//! call. Until it is unbound, a parked doorbell still rings its old event, which is harmless: the
//! event is alive, and the address is nobody's.

use crate::ioctl;
use kvm_bindings::{
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign,
    kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::VmFd;
use nyx_device::{Doorbell, DoorbellBinding, Doorbells, Space};
use nyx_reactor::EventFd;
use parking_lot::{Condvar, Mutex};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

/// What the kernel is told, and what it must be told again to unbind.
#[derive(Clone)]
struct Key {
    space: Space,
    address: u64,
    len: u8,
    value: Option<u32>,
    event: Arc<EventFd>,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.space == other.space
            && self.address == other.address
            && self.len == other.len
            && self.value == other.value
            && Arc::ptr_eq(&self.event, &other.event)
    }
}

impl Key {
    fn call(&self, vm: &VmFd, deassign: bool) -> io::Result<()> {
        let mut flags = 0;
        if self.space == Space::Pio {
            flags |= 1 << kvm_ioeventfd_flag_nr_pio;
        }
        if self.value.is_some() {
            flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
        }
        if deassign {
            flags |= 1 << kvm_ioeventfd_flag_nr_deassign;
        }
        let binding = kvm_ioeventfd {
            datamatch: self.value.unwrap_or(0).into(),
            addr: self.address,
            len: self.len.into(),
            fd: self.event.as_fd().as_raw_fd(),
            flags,
            ..Default::default()
        };
        // SAFETY: the descriptor is open for as long as `vm` lives.
        let vm = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
        ioctl::ioeventfd(vm, &binding)
    }
}

#[derive(Default)]
struct Parked {
    keys: Vec<Key>,
    /// A thread is unbinding.
    reaping: bool,
    /// The VM is being torn down, which unbinds everything.
    closing: bool,
}

/// The doorbells of one VM.
pub(crate) struct KvmDoorbells {
    vm: Arc<VmFd>,
    any_length: bool,
    parked: Mutex<Parked>,
    reaped: Condvar,
}

impl KvmDoorbells {
    pub(crate) fn new(vm: Arc<VmFd>, any_length: bool) -> Self {
        Self {
            vm,
            any_length,
            parked: Mutex::default(),
            reaped: Condvar::new(),
        }
    }

    /// The VM goes away: nothing needs unbinding any more.
    pub(crate) fn close(&self) {
        let mut parked = self.parked.lock();
        parked.closing = true;
        parked.keys.clear();
    }

    /// Waits until nothing is parked.
    pub(crate) fn wait_until_reaped(&self) {
        let mut parked = self.parked.lock();
        while parked.reaping {
            self.reaped.wait(&mut parked);
        }
    }

    fn park(self: &Arc<Self>, key: Key) {
        let mut parked = self.parked.lock();
        if parked.closing {
            return;
        }
        parked.keys.push(key);
        if parked.reaping {
            return;
        }
        parked.reaping = true;
        drop(parked);
        let reaper = self.clone();
        let thread = std::thread::Builder::new().name("doorbell-reaper".into());
        // A process that may not start threads waits instead.
        if thread.spawn(move || reaper.reap()).is_err() {
            self.reap();
        }
    }

    fn reap(&self) {
        loop {
            let mut parked = self.parked.lock();
            let Some(key) = parked.keys.pop() else {
                parked.reaping = false;
                self.reaped.notify_all();
                return;
            };
            drop(parked);
            // It was bound, so it can be unbound.
            let _ = key.call(&self.vm, true);
        }
    }
}

/// The seam's handle.
pub(crate) struct DoorbellPort(pub(crate) Arc<KvmDoorbells>);

impl Doorbells for DoorbellPort {
    fn bind(
        &self,
        space: Space,
        address: u64,
        bell: &Doorbell,
    ) -> io::Result<Box<dyn DoorbellBinding>> {
        // Older kernels know no doorbell of any width.
        if bell.len == 0 && !self.0.any_length {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let key = Key {
            space,
            address,
            len: bell.len,
            value: bell.value,
            event: bell.event.clone(),
        };
        let taken_back = {
            let mut parked = self.0.parked.lock();
            parked
                .keys
                .iter()
                .position(|k| *k == key)
                .map(|i| parked.keys.swap_remove(i))
        };
        if taken_back.is_none() {
            match key.call(&self.0.vm, false) {
                // An old binding of this address may be on its way out.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    self.0.wait_until_reaped();
                    key.call(&self.0.vm, false)?;
                }
                other => other?,
            }
        }
        Ok(Box::new(Binding {
            key: Some(key),
            doorbells: self.0.clone(),
        }))
    }
}

struct Binding {
    key: Option<Key>,
    doorbells: Arc<KvmDoorbells>,
}

impl DoorbellBinding for Binding {}

impl Drop for Binding {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.doorbells.park(key);
        }
    }
}
