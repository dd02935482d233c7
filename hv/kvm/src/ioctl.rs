//! The ioctls that `kvm-ioctls` does not offer, or not in the form needed.

use kvm_bindings::{
    KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_ioeventfd, kvm_sregs2,
    kvm_xsave,
};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// Linux's _IOC encoding (include/uapi/asm-generic/ioctl.h).
const fn request(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | (KVMIO as u64) << 8 | number
}
const WRITE: u64 = 1;
const READ: u64 = 2;

const RUN: u64 = request(0, 0x80, 0);
const GET_XSAVE2: u64 = request(READ, 0xcf, size_of::<kvm_xsave>());
const GET_XSAVE: u64 = request(READ, 0xa4, size_of::<kvm_xsave>());
const SET_XSAVE: u64 = request(WRITE, 0xa5, size_of::<kvm_xsave>());
const GET_SREGS2: u64 = request(READ, 0xcc, size_of::<kvm_sregs2>());
const SET_SREGS2: u64 = request(WRITE, 0xcd, size_of::<kvm_sregs2>());
const CLEAR_DIRTY_LOG: u64 = request(READ | WRITE, 0xc0, size_of::<kvm_clear_dirty_log>());
const GET_STATS_FD: u64 = request(0, 0xce, 0);
const IOEVENTFD: u64 = request(WRITE, 0x79, size_of::<kvm_ioeventfd>());

/// Bytes of FPU state that `KVM_GET_XSAVE` and `KVM_SET_XSAVE` always transfer.
pub(crate) const XSAVE_LEGACY: usize = size_of::<kvm_xsave>();

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `KVM_RUN`.
#[inline]
pub(crate) fn run(vcpu: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: KVM_RUN takes no argument. What it writes is the guest's memory, registered under
    // the obligations of `slots`, and `kvm_run`, to which the caller holds no reference because
    // this is called with its vCPU borrowed mutably.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), RUN, 0) })
}

/// `KVM_GET_STATS_FD` (Linux 5.14).
pub(crate) fn get_stats_fd(vcpu: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: KVM_GET_STATS_FD takes no argument.
    let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), GET_STATS_FD, 0) };
    check(fd)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `KVM_GET_XSAVE2` (or `KVM_GET_XSAVE`): `area` must be as large as `KVM_CAP_XSAVE2` says.
pub(crate) fn get_xsave(vcpu: BorrowedFd<'_>, area: &mut [u64], xsave2: bool) -> io::Result<()> {
    if size_of_val(area) < XSAVE_LEGACY {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let request = if xsave2 { GET_XSAVE2 } else { GET_XSAVE };
    // SAFETY: the kernel writes 4096 bytes for KVM_GET_XSAVE, which was checked, and for
    // KVM_GET_XSAVE2 as many as KVM_CAP_XSAVE2 returned, which is how long callers make `area`.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), request, area.as_mut_ptr()) })
}

/// `KVM_SET_XSAVE`: `area` must be as large as `KVM_CAP_XSAVE2` says.
pub(crate) fn set_xsave(vcpu: BorrowedFd<'_>, area: &[u64]) -> io::Result<()> {
    if size_of_val(area) < XSAVE_LEGACY {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel reads as many bytes as KVM_CAP_XSAVE2 returned (4096 without it).
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_XSAVE, area.as_ptr()) })
}

/// `KVM_GET_SREGS2`.
pub(crate) fn get_sregs2(vcpu: BorrowedFd<'_>) -> io::Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: the kernel writes one kvm_sregs2.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), GET_SREGS2, &raw mut sregs) })?;
    Ok(sregs)
}

/// `KVM_SET_SREGS2`.
pub(crate) fn set_sregs2(vcpu: BorrowedFd<'_>, sregs: &kvm_sregs2) -> io::Result<()> {
    // SAFETY: the kernel reads one kvm_sregs2.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_SREGS2, std::ptr::from_ref(sregs)) })
}

/// `KVM_CLEAR_DIRTY_LOG` of `pages` pages from `first_page` (a multiple of 64) on.
pub(crate) fn clear_dirty_log(
    vm: BorrowedFd<'_>,
    slot: u32,
    first_page: u64,
    pages: u32,
    bitmap: &[u64],
) -> io::Result<()> {
    if (bitmap.len() as u64) * 64 < pages.into() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let log = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bitmap.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the kernel reads `log`, and through it ceil(pages / 64) words, which were checked.
    check(unsafe { libc::ioctl(vm.as_raw_fd(), CLEAR_DIRTY_LOG, &raw const log) })
}

/// `KVM_IOEVENTFD`.
pub(crate) fn ioeventfd(vm: BorrowedFd<'_>, binding: &kvm_ioeventfd) -> io::Result<()> {
    // SAFETY: the kernel reads one kvm_ioeventfd and takes its own reference to the descriptor.
    check(unsafe { libc::ioctl(vm.as_raw_fd(), IOEVENTFD, std::ptr::from_ref(binding)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_numbers() {
        // As printed by strace for these requests on x86-64.
        assert_eq!(RUN, 0xae80);
        assert_eq!(GET_XSAVE2, 0x9000_aecf);
        assert_eq!(SET_XSAVE, 0x5000_aea5);
        assert_eq!(CLEAR_DIRTY_LOG, 0xc018_aec0);
        assert_eq!(IOEVENTFD, 0x4040_ae79);
        assert_eq!(GET_SREGS2, 0x8140_aecc);
    }
}
