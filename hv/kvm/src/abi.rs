//! Kernel structures as bytes, for saved state: their layout is the kernel's stable ABI.

use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_regs, kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs,
};

/// A kernel structure without implicit padding, valid for any bit pattern.
///
/// # Safety
/// The type is `repr(C)`, consists of integers only, and has no padding that its definition does
/// not name as a field.
pub(crate) unsafe trait Plain: Copy {
    /// A copy of the structure's bytes.
    fn to_bytes(&self) -> Vec<u8> {
        // SAFETY: the trait's contract: every byte is initialized.
        unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(self).cast::<u8>(), size_of::<Self>())
        }
        .to_vec()
    }

    /// The structure with these bytes, if there are exactly as many as it has.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        // SAFETY: the length was checked, the read is unaligned, and the trait's contract makes
        // every bit pattern valid.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

// SAFETY: eighteen u64.
unsafe impl Plain for kvm_regs {}
// SAFETY: segments of 24 named bytes, tables of 16 named bytes, u64.
unsafe impl Plain for kvm_sregs {}
// SAFETY: as kvm_sregs, with u64 in place of the bitmap.
unsafe impl Plain for kvm_sregs2 {}
// SAFETY: u64 only.
unsafe impl Plain for kvm_debugregs {}
// SAFETY: two u32, sixteen times (u32, u32, u64), u64.
unsafe impl Plain for kvm_xcrs {}
// SAFETY: 1024 bytes.
unsafe impl Plain for kvm_lapic_state {}
// SAFETY: bytes and u32 laid out by the kernel without gaps: 8 + 4 + 4 + 4 + 4 + 4 + 1 + 26 + 1
// bytes put the final u64 at 56, a multiple of 8.
unsafe impl Plain for kvm_vcpu_events {}

const _: () = assert!(size_of::<kvm_vcpu_events>() == 64);
const _: () = assert!(size_of::<kvm_regs>() == 18 * 8);
const _: () = assert!(size_of::<kvm_debugregs>() == 16 * 8);
const _: () = assert!(size_of::<kvm_xcrs>() == 8 + 16 * 16 + 16 * 8);
const _: () = assert!(size_of::<kvm_sregs>() == 8 * 24 + 2 * 16 + 7 * 8 + 32);
const _: () = assert!(size_of::<kvm_sregs2>() == 8 * 24 + 2 * 16 + 7 * 8 + 8 + 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_and_other_lengths_are_refused() {
        let regs = kvm_regs {
            rax: 1,
            rip: 0x1234_5678_9abc_def0,
            ..Default::default()
        };
        let bytes = regs.to_bytes();
        assert_eq!(kvm_regs::from_bytes(&bytes), Some(regs));
        assert_eq!(kvm_regs::from_bytes(&bytes[1..]), None);
        assert_eq!(kvm_regs::from_bytes(&[]), None);
    }
}
