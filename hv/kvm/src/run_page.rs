//! The mapping of a vCPU's `kvm_run`, shared with the kernel.

use kvm_bindings::kvm_run;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Where the part begins that only the vCPU's own thread touches; before it lies
/// `immediate_exit`, which other threads write.
pub(crate) const BODY: usize = offset_of!(kvm_run, exit_reason);

struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain shared memory owned by this value. Byte `immediate_exit` is accessed
// as an atomic only; the rest through `RunPage::body`, which needs the one `&mut RunPage`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping with this length, and no reference into it outlives self.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.len);
        }
    }
}

/// The one owner of the mapping's body.
pub(crate) struct RunPage(Arc<Mapping>);

impl RunPage {
    /// Maps `len` bytes (`KVM_GET_VCPU_MMAP_SIZE`) of the vCPU.
    pub(crate) fn map(vcpu: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        if len < size_of::<kvm_run>() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(base.cast()) {
            Some(base) => Ok(Self(Arc::new(Mapping { base, len }))),
            None => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    /// Everything from byte [`BODY`] on. The kernel writes it during `KVM_RUN` only, which the
    /// owner of `self` calls.
    #[inline]
    pub(crate) fn body(&mut self) -> &mut [u8] {
        // SAFETY: `map` checked that the mapping is longer than BODY and it lives as long as self;
        // `&mut self` makes this the only reference to the body, and the atomic byte lies before.
        unsafe { std::slice::from_raw_parts_mut(self.0.base.as_ptr().add(BODY), self.0.len - BODY) }
    }

    /// A handle on `immediate_exit` for any thread.
    pub(crate) fn immediate_exit(&self) -> ImmediateExit {
        ImmediateExit(self.0.clone())
    }
}

/// `kvm_run::immediate_exit`: while it is one, `KVM_RUN` returns EINTR before entering the guest,
/// after completing a half-done exit.
#[derive(Clone)]
pub(crate) struct ImmediateExit(Arc<Mapping>);

impl ImmediateExit {
    /// Sets or clears it.
    pub(crate) fn set(&self, on: bool) {
        // SAFETY: the byte lies within the mapping, which `self` keeps alive, an AtomicU8 has the
        // layout of a u8, and every user-space access to this byte is atomic.
        let byte = unsafe {
            AtomicU8::from_ptr(
                self.0
                    .base
                    .as_ptr()
                    .add(offset_of!(kvm_run, immediate_exit)),
            )
        };
        byte.store(on.into(), Ordering::SeqCst);
    }
}
