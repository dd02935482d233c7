//! Saved state of a vCPU and of the VM's clock.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use nyx_state::Saved;

/// One model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SavedMsr {
    #[n(0)]
    pub(crate) index: u32,
    #[n(1)]
    pub(crate) value: u64,
}

/// A vCPU. Kernel structures are kept as bytes: their layout is the kernel's ABI. A block that the
/// host did not have is absent.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct SavedVcpu {
    /// `KVM_MP_STATE_*`.
    #[n(0)]
    pub(crate) mp_state: u32,
    /// `kvm_regs`.
    #[n(1)]
    pub(crate) regs: ByteVec,
    /// `kvm_sregs`, on a host without `KVM_CAP_SREGS2`.
    #[n(2)]
    pub(crate) sregs: Option<ByteVec>,
    /// `kvm_sregs2`.
    #[n(3)]
    pub(crate) sregs2: Option<ByteVec>,
    /// XSAVE area in the standard format, without trailing zeros.
    #[n(4)]
    pub(crate) xsave: Option<ByteVec>,
    /// `kvm_xcrs`.
    #[n(5)]
    pub(crate) xcrs: Option<ByteVec>,
    /// `kvm_debugregs`.
    #[n(6)]
    pub(crate) debugregs: Option<ByteVec>,
    /// `kvm_lapic_state`.
    #[n(7)]
    pub(crate) lapic: Option<ByteVec>,
    /// `kvm_vcpu_events`.
    #[n(8)]
    pub(crate) events: Option<ByteVec>,
    /// TSC frequency.
    #[n(9)]
    pub(crate) tsc_khz: Option<u32>,
    /// Model-specific registers.
    #[n(10)]
    pub(crate) msrs: Vec<SavedMsr>,
}

impl Saved for SavedVcpu {
    const NAME: &'static str = "vcpu/1";
}

/// The VM as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct SavedVm {
    /// kvmclock in nanoseconds.
    #[n(0)]
    pub(crate) clock: Option<u64>,
    /// The host's wall clock at the same instant, in nanoseconds since 1970, where KVM tells.
    #[n(1)]
    pub(crate) realtime: Option<u64>,
}

impl Saved for SavedVm {
    const NAME: &'static str = "vm/1";
}
