//! KVM behind the hypervisor seam, with its own decoding of `kvm_run`.
//!
//! ```text
//! Kvm::open ─▶ create_vm ─▶ ram_observer (memory slots) ─▶ power_interrupts ─▶ create_vcpu ─▶ run
//! ```
//!
//! The order is not taste: on some hosts a memory slot registered after the interrupt controllers
//! waits 7.6 ms for a grace period, and the kernel refuses a local APIC on a vCPU that is older than
//! the controllers.
//!
//! What this crate does not do: it knows no device, no firmware and no machine model, and it keeps
//! no policy about what to do with an exit.
//!
//! `unsafe` is used for the ioctls that `kvm-ioctls` does not offer, for the mapping of `kvm_run`,
//! for signals, and to register guest memory with the kernel; each in its own file.

mod abi;
mod capabilities;
mod cpuid;
mod debug;
mod dirty;
mod doorbells;
mod exit;
mod host;
mod interrupts;
mod ioctl;
mod kick;
mod probe;
mod run_page;
mod saved;
mod slots;
mod stats;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;

pub use capabilities::Capabilities;
pub use host::{Kvm, OpenError};
pub use probe::{GuestKernelSpeed, ProbeError, measure_guest_kernel};
pub use vm::RESERVED_FOR_REAL_MODE;

use nyx_hypervisor::HvError;

/// An ioctl's failure as the seam's error.
pub(crate) fn refused(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> HvError {
    move |e| HvError {
        operation,
        source: std::io::Error::from_raw_os_error(e.errno()),
    }
}
