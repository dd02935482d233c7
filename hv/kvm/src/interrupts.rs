//! Messages to the local APICs, and the routes that make level-triggered ends of interrupt exit.

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::VmFd;
use nyx_device::{Msi, MsiSink};
use nyx_hypervisor::IoapicRoutes;
use parking_lot::Mutex;
use std::sync::Arc;

/// Trigger mode in message data: level (Intel SDM vol. 3 §11.11.2).
const LEVEL: u32 = 1 << 15;

/// Address of a message in KVM's form.
///
/// A guest that was told `KVM_FEATURE_MSI_EXT_DEST_ID` puts destination bits 14:8 into address bits
/// 11:5; KVM wants bits 31:8 in the high half (Linux, Documentation/virt/kvm/api.rst,
/// KVM_CAP_X2APIC_API). Bit 4 set would be the remappable format, which a vIOMMU has replaced by
/// the time a message arrives here.
fn address(msi: Msi, wide_ids: bool) -> (u32, u32) {
    let (low, high) = (msi.address as u32, (msi.address >> 32) as u32);
    if !wide_ids {
        return (low, 0);
    }
    let extended = low >> 5 & 0x7f;
    if low & 0x10 == 0 && extended != 0 {
        (low & !0xfe0, (high & 0xffff_ff00) | extended << 8)
    } else {
        (low, high & 0xffff_ff00)
    }
}

/// `KVM_SIGNAL_MSI`.
pub(crate) struct KvmMsi {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) wide_ids: bool,
}

impl MsiSink for KvmMsi {
    fn signal(&self, msi: Msi) {
        let (address_lo, address_hi) = address(msi, self.wide_ids);
        let message = kvm_msi {
            address_lo,
            address_hi,
            data: msi.data,
            ..Default::default()
        };
        // Zero means that the guest has the vector blocked; an error, that it aimed at nobody or
        // wrote nonsense. Hardware drops such messages too.
        let _ = self.vm.signal_msi(message);
    }
}

/// `KVM_SET_GSI_ROUTING` of the I/O APIC's pins.
pub(crate) struct Routes {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) wide_ids: bool,
    /// What the kernel has.
    pub(crate) known: Mutex<Vec<Option<Msi>>>,
}

impl Routes {
    fn entries(&self, routes: &[Option<Msi>]) -> Vec<kvm_irq_routing_entry> {
        let entry = |(pin, msi): (usize, &Option<Msi>)| {
            let msi = (*msi)?;
            let (address_lo, address_hi) = address(msi, self.wide_ids);
            // Only level-triggered routes make the kernel report the end of the interrupt.
            let data = msi.data | LEVEL;
            Some(kvm_irq_routing_entry {
                gsi: pin as u32,
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 {
                    msi: kvm_irq_routing_msi {
                        address_lo,
                        address_hi,
                        data,
                        ..Default::default()
                    },
                },
                ..Default::default()
            })
        };
        routes.iter().enumerate().filter_map(entry).collect()
    }
}

impl IoapicRoutes for Routes {
    fn set(&self, routes: &[Option<Msi>]) {
        let mut known = self.known.lock();
        if *known == routes {
            return;
        }
        let Ok(table) = KvmIrqRouting::from_entries(&self.entries(routes)) else {
            return;
        };
        // It fails for lack of memory only; `known` stays as it was, so the next change tries again.
        if self.vm.set_gsi_routing(&table).is_ok() {
            known.clear();
            known.extend_from_slice(routes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_destinations_move_to_the_high_half() {
        let msi = |address| Msi { address, data: 0 };
        // Destination 0x7f12: low byte in 19:12, 0x7f in 11:5.
        assert_eq!(address(msi(0xfee1_2fe0), true), (0xfee1_2000, 0x7f00));
        assert_eq!(address(msi(0xfee1_2000), true), (0xfee1_2000, 0));
        // A remapping unit gives the high half itself.
        assert_eq!(
            address(msi(0x0001_0000_fee1_2000), true),
            (0xfee1_2000, 0x1_0000)
        );
        // Redirection hint and destination mode are kept.
        assert_eq!(address(msi(0xfee1_202c), true), (0xfee1_200c, 0x100));
        // Without 32-bit ids KVM wants zero there.
        assert_eq!(address(msi(0x0001_0000_fee1_2fe0), false), (0xfee1_2fe0, 0));
    }
}
