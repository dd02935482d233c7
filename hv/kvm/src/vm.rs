//! A virtual machine under KVM.

use crate::dirty::DirtyLog;
use crate::doorbells::{DoorbellPort, KvmDoorbells};
use crate::host::Host;
use crate::interrupts::{KvmMsi, Routes};
use crate::refused;
use crate::saved::SavedVm;
use crate::slots::{SlotObserver, Slots};
use crate::vcpu::KvmVcpu;
use kvm_bindings::{
    KVM_CAP_MAX_VCPU_ID, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CLOCK_REALTIME,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_clock_data,
    kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use nyx_device::{Doorbells, MsiSink};
use nyx_hypervisor::{HvError, IoapicRoutes, Topology, Vcpu, Vm};
use nyx_memory::{DirtySource, RamObserver};
use nyx_state::{Blob, PersistBlob, RestoreError, SaveError};
use parking_lot::Mutex;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Guest-physical pages that old Intel CPUs need in order to run real mode: one of page tables and
/// three of a task state segment (Linux, Documentation/virt/kvm/api.rst, KVM_SET_TSS_ADDR). A plan
/// must put nothing there. They lie between the local APICs and the firmware.
pub const RESERVED_FOR_REAL_MODE: Range<u64> = 0xfeff_c000..0xff00_0000;

/// See [`Vm`].
pub(crate) struct KvmVm {
    host: Arc<Host>,
    fd: Arc<VmFd>,
    topology: Topology,
    slots: Arc<Slots>,
    doorbells: Arc<KvmDoorbells>,
    routes: Arc<Routes>,
    wide_ids: bool,
    interrupts: AtomicBool,
}

fn error(operation: &'static str, what: String) -> HvError {
    HvError {
        operation,
        source: io::Error::new(io::ErrorKind::InvalidInput, what),
    }
}

impl KvmVm {
    pub(crate) fn create(host: Arc<Host>, topology: Topology) -> Result<Self, HvError> {
        use nyx_hypervisor::Hypervisor;
        let Topology {
            cpus,
            sockets,
            cores,
            threads,
        } = topology;
        let product = sockets
            .checked_mul(cores)
            .and_then(|n| n.checked_mul(threads));
        let most = crate::Kvm(host.clone()).max_vcpus();
        if cpus == 0 || cpus > most || product != Some(cpus) {
            return Err(error(
                "topology",
                format!(
                    "{cpus} CPUs as {sockets} sockets of {cores} cores of {threads} threads: \
                     the product must be the number of CPUs, from 1 to {most}"
                ),
            ));
        }
        let highest = topology.apic_id(cpus - 1);
        let ids = match host.capabilities.max_vcpu_id {
            0 => most,
            ids => ids,
        };
        if highest >= ids {
            return Err(error(
                "topology",
                format!("the highest APIC id would be {highest}, and KVM has {ids}"),
            ));
        }
        let fd = Arc::new(host.create_vm()?);
        let enable = |cap, value: u64| {
            let cap = kvm_enable_cap {
                cap,
                args: [value, 0, 0, 0],
                ..Default::default()
            };
            fd.enable_cap(&cap).is_ok()
        };
        // Optional: without it the kernel sizes its tables for the largest id of all.
        enable(KVM_CAP_MAX_VCPU_ID, u64::from(highest) + 1);
        let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        let wide_ids = host.capabilities.x2apic_api & flags == flags
            && enable(KVM_CAP_X2APIC_API, flags.into());
        if highest > 254 && !wide_ids {
            return Err(error(
                "KVM_CAP_X2APIC_API",
                format!("APIC id {highest} needs 32-bit ids, which this kernel lacks"),
            ));
        }
        if host.capabilities.set_identity_map_addr != 0 {
            fd.set_identity_map_address(RESERVED_FOR_REAL_MODE.start)
                .map_err(refused("KVM_SET_IDENTITY_MAP_ADDR"))?;
        }
        if host.capabilities.set_tss_addr != 0 {
            fd.set_tss_address((RESERVED_FOR_REAL_MODE.start + 0x1000) as usize)
                .map_err(refused("KVM_SET_TSS_ADDR"))?;
        }
        let any_length = host.capabilities.ioeventfd_any_length != 0;
        Ok(Self {
            slots: Arc::new(Slots::new(fd.clone(), &host)),
            doorbells: Arc::new(KvmDoorbells::new(fd.clone(), any_length)),
            routes: Arc::new(Routes {
                vm: fd.clone(),
                wide_ids,
                known: Mutex::default(),
            }),
            wide_ids,
            interrupts: AtomicBool::new(false),
            host,
            fd,
            topology,
        })
    }

    fn vcpu(&self, index: u32) -> Result<KvmVcpu, HvError> {
        if index >= self.topology.cpus {
            return Err(error(
                "KVM_CREATE_VCPU",
                format!(
                    "there is no CPU {index} in a machine of {}",
                    self.topology.cpus
                ),
            ));
        }
        if !self.interrupts.load(Ordering::Acquire) {
            return Err(error(
                "KVM_CREATE_VCPU",
                "the interrupt controllers must be made before the CPUs".into(),
            ));
        }
        KvmVcpu::create(
            self.host.clone(),
            &self.fd,
            self.topology,
            index,
            self.wide_ids,
        )
    }
}

impl Vm for KvmVm {
    fn ram_observer(&self) -> Box<dyn RamObserver> {
        Box::new(SlotObserver(self.slots.clone()))
    }

    fn power_interrupts(&self, pins: u32) -> Result<(), HvError> {
        let cap = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [pins.into(), 0, 0, 0],
            ..Default::default()
        };
        self.fd
            .enable_cap(&cap)
            .map_err(refused("KVM_CAP_SPLIT_IRQCHIP"))?;
        self.interrupts.store(true, Ordering::Release);
        Ok(())
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, HvError> {
        Ok(Box::new(self.vcpu(index)?))
    }

    fn msi(&self) -> Arc<dyn MsiSink> {
        Arc::new(KvmMsi {
            vm: self.fd.clone(),
            wide_ids: self.wide_ids,
        })
    }

    fn ioapic_routes(&self) -> Arc<dyn IoapicRoutes> {
        self.routes.clone()
    }

    fn doorbells(&self) -> Arc<dyn Doorbells> {
        Arc::new(DoorbellPort(self.doorbells.clone()))
    }

    fn dirty_source(&self) -> Box<dyn DirtySource> {
        Box::new(DirtyLog(self.slots.clone()))
    }

    fn save(&self) -> Result<Blob, SaveError> {
        Clock(self).save_blob()
    }

    fn restore(&self, blob: &Blob) -> Result<(), RestoreError> {
        Clock(self).restore_blob(blob)
    }
}

impl Drop for KvmVm {
    fn drop(&mut self) {
        self.doorbells.close();
    }
}

/// The VM-wide state: kvmclock.
struct Clock<'v>(&'v KvmVm);

impl nyx_state::Persist for Clock<'_> {
    type Saved = SavedVm;

    fn save(&self) -> Result<SavedVm, SaveError> {
        if self.0.host.capabilities.adjust_clock == 0 {
            return Ok(SavedVm {
                clock: None,
                realtime: None,
            });
        }
        let clock = self
            .0
            .fd
            .get_clock()
            .map_err(|e| SaveError::Read(format!("KVM_GET_CLOCK: {e}")))?;
        let realtime = (clock.flags & KVM_CLOCK_REALTIME != 0).then_some(clock.realtime);
        Ok(SavedVm {
            clock: Some(clock.clock),
            realtime,
        })
    }

    /// The guest's clock goes on from where it was saved: time spent stopped is not counted.
    fn restore(&mut self, saved: SavedVm) -> Result<(), RestoreError> {
        let Some(clock) = saved.clock else {
            return Ok(());
        };
        if self.0.host.capabilities.adjust_clock == 0 {
            return Err(RestoreError::Apply(
                "this kernel cannot set kvmclock".into(),
            ));
        }
        // KVM keeps it as a signed difference to its own.
        if clock > i64::MAX as u64 {
            return Err(RestoreError::Invalid("the clock is beyond the year 2262"));
        }
        let clock = kvm_clock_data {
            clock,
            ..Default::default()
        };
        self.0
            .fd
            .set_clock(&clock)
            .map_err(|e| RestoreError::Apply(format!("KVM_SET_CLOCK: {e}")))
    }
}
