//! A library that `cargo xtask bench` preloads into a VMM: it measures what the VMM does between two
//! `KVM_RUN`s.
//!
//! It stands in for the C library's `ioctl` and notes, in cycles of the TSC, how long after one
//! `KVM_RUN` returned the same thread called the next. The notes go to the file that the environment
//! variable `EXIT_CLOCK` names, which must be [`BYTES`] long: a word that counts them, then the notes.
//! System calls themselves (entry, exit, the kernel's work) are not in them, nor is the guest.
#![no_std]

use core::arch::asm;
use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Notes kept; later ones are counted only.
const NOTES: u32 = 1 << 18;
/// Length of the file.
const BYTES: usize = 4 * (NOTES as usize + 1);

const KVM_RUN: u64 = 0xae80;
const SYS_IOCTL: isize = 16;
const O_RDWR: c_int = 2;
const PROT_READ_WRITE: c_int = 3;
const MAP_SHARED: c_int = 1;

unsafe extern "C" {
    fn getenv(name: *const c_char) -> *const c_char;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn mmap(
        at: *mut c_void,
        len: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
    fn abort() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: always sound; nothing here panics anyway.
    unsafe { abort() }
}

static FILE: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    // SAFETY: C library calls with valid, terminated strings; the result of each is checked before use.
    unsafe {
        let path = getenv(c"EXIT_CLOCK".as_ptr());
        if path.is_null() {
            return;
        }
        let fd = open(path, O_RDWR);
        if fd < 0 {
            return;
        }
        let at = mmap(
            core::ptr::null_mut(),
            BYTES,
            PROT_READ_WRITE,
            MAP_SHARED,
            fd,
            0,
        );
        close(fd);
        if at as isize != -1 {
            FILE.store(at.cast(), Ordering::Relaxed);
        }
    }
}

/// When the thread's last `KVM_RUN` returned. One vCPU is measured, so one word does; a second vCPU's
/// notes would be nonsense.
static LEFT: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];

fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has both instructions.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

fn note() {
    let file = FILE.load(Ordering::Relaxed);
    let left = u64::from(LEFT[0].load(Ordering::Relaxed))
        | u64::from(LEFT[1].load(Ordering::Relaxed)) << 32;
    if file.is_null() || left == 0 {
        return;
    }
    let took = u32::try_from(cycles().saturating_sub(left)).unwrap_or(u32::MAX);
    // SAFETY: the mapping has BYTES bytes: the count and NOTES notes.
    unsafe {
        let count = (*file).load(Ordering::Relaxed);
        if count < NOTES {
            (*file.add(1 + count as usize)).store(took, Ordering::Relaxed);
        }
        (*file).store(count.saturating_add(1), Ordering::Relaxed);
    }
}

/// Stands in for the C library's function. (Variadic there; the one argument is passed alike.)
///
/// # Safety
/// As ioctl(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: u64, argument: usize) -> c_int {
    let is_run = request & 0xffff_ffff == KVM_RUN;
    if is_run {
        note();
    }
    let mut result: isize;
    // SAFETY: the system call that the caller asked for, by the kernel's calling convention.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_IOCTL => result,
            in("rdi") fd as isize,
            in("rsi") request,
            in("rdx") argument,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if is_run {
        let now = cycles();
        LEFT[0].store(now as u32, Ordering::Relaxed);
        LEFT[1].store((now >> 32) as u32, Ordering::Relaxed);
    }
    if (-4095..0).contains(&result) {
        // SAFETY: the calling thread's errno.
        unsafe { *__errno_location() = -result as c_int };
        result = -1;
    }
    result as c_int
}
