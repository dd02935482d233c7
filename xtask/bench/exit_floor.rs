//! A program that `cargo xtask bench` measures beside the VMMs: the least that a VMM can do between two
//! `KVM_RUN`s, which is to look at the exit's reason and call again.
//!
//! Its guest, in ring 3 like the VMMs' guest, writes to an address without memory for ever; after as many
//! exits as its argument says the program ends.

use std::ffi::{c_char, c_int, c_void};
use std::io::Error;

const KVM_CREATE_VM: u64 = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: u64 = 0xae04;
const KVM_CREATE_VCPU: u64 = 0xae41;
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const KVM_RUN: u64 = 0xae80;
const KVM_SET_REGS: u64 = 0x4090_ae82;
const KVM_GET_SREGS: u64 = 0x8138_ae83;
const KVM_SET_SREGS: u64 = 0x4138_ae84;
const KVM_EXIT_MMIO: u32 = 6;
/// Offset of `exit_reason` in `kvm_run`.
const REASON: usize = 8;

unsafe extern "C" {
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn ioctl(fd: c_int, request: u64, ...) -> c_int;
    fn mmap(
        at: *mut c_void,
        len: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
}

fn checked(what: &str, result: c_int) -> Result<c_int, String> {
    if result < 0 {
        Err(format!("{what}: {}", Error::last_os_error()))
    } else {
        Ok(result)
    }
}

/// `again: mov [rdi], al; jmp again`
const GUEST: [u8; 4] = [0x88, 0x07, 0xeb, 0xfc];

/// The guest's memory: the code, then page tables that map 4 MiB one to one for ring 3.
const MEMORY: usize = 0x4000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
/// Present, writable, for users (Intel SDM vol. 3 table 5-19).
const TABLE: u64 = 7;
const LARGE_PAGE: u64 = 0x87;
/// Behind the memory.
const NOWHERE: u64 = 0x20_0000;

/// Words of `kvm_sregs`: a segment has three, CS is first and SS sixth.
const CS: usize = 0;
const SS: usize = 15;
const CR0: usize = 28;
const CR3: usize = 30;
const CR4: usize = 31;
const EFER: usize = 33;

/// A flat segment of ring 3 in `kvm_segment`'s layout: base, limit and selector, attributes.
fn ring3(words: &mut [u64], selector: u64, kind: u64, is_code: bool) {
    words[0] = 0;
    words[1] = 0xffff_ffff | selector << 32 | kind << 48 | 1 << 56;
    // DPL, D/B, S, L, G.
    words[2] = 3 | u64::from(!is_code) << 8 | 1 << 16 | u64::from(is_code) << 24 | 1 << 32;
}

fn main() -> Result<(), String> {
    let exits: u64 = std::env::args()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .ok_or("how many exits?")?;
    // SAFETY: system calls with valid arguments, each result checked before use; the mappings live to
    // the end and are written through raw pointers within their lengths only.
    unsafe {
        let kvm = checked("/dev/kvm", open(c"/dev/kvm".as_ptr(), 2))?;
        let vm = checked("KVM_CREATE_VM", ioctl(kvm, KVM_CREATE_VM, 0usize))?;
        let memory = mmap(std::ptr::null_mut(), MEMORY, 3, 0x21, -1, 0);
        if memory as isize == -1 {
            return Err("no memory".into());
        }
        std::ptr::copy_nonoverlapping(GUEST.as_ptr(), memory.cast(), GUEST.len());
        let table = |at: u64| memory.cast::<u8>().add(at as usize).cast::<u64>();
        table(PML4).write(PDPT | TABLE);
        table(PDPT).write(DIRECTORY | TABLE);
        table(DIRECTORY).write(LARGE_PAGE);
        table(DIRECTORY + 8).write(NOWHERE | LARGE_PAGE);
        // kvm_userspace_memory_region: slot and flags, guest address, size, user address.
        let region = [0u64, 0, MEMORY as u64, memory as u64];
        let set = ioctl(vm, KVM_SET_USER_MEMORY_REGION, region.as_ptr());
        checked("KVM_SET_USER_MEMORY_REGION", set)?;
        let vcpu = checked("KVM_CREATE_VCPU", ioctl(vm, KVM_CREATE_VCPU, 0usize))?;
        let size = checked("mmap size", ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0usize))?;
        let run = mmap(std::ptr::null_mut(), size as usize, 3, 1, vcpu, 0);
        if run as isize == -1 {
            return Err("cannot map kvm_run".into());
        }
        let mut sregs = [0u64; 39];
        checked(
            "KVM_GET_SREGS",
            ioctl(vcpu, KVM_GET_SREGS, sregs.as_mut_ptr()),
        )?;
        ring3(&mut sregs[CS..CS + 3], 0x33, 11, true);
        ring3(&mut sregs[SS..SS + 3], 0x2b, 3, false);
        // Protection and paging; PAE; long mode enabled and active (Intel SDM vol. 3 §2.5, §2.2.1).
        sregs[CR0] = 1 << 31 | 1 << 5 | 1 << 4 | 1;
        sregs[CR3] = PML4;
        sregs[CR4] = 1 << 5;
        sregs[EFER] = 1 << 10 | 1 << 8;
        checked("KVM_SET_SREGS", ioctl(vcpu, KVM_SET_SREGS, sregs.as_ptr()))?;
        // kvm_regs: RDI is word 5, RIP 16, RFLAGS 17.
        let mut regs = [0u64; 18];
        regs[5] = NOWHERE;
        regs[17] = 2;
        checked("KVM_SET_REGS", ioctl(vcpu, KVM_SET_REGS, regs.as_ptr()))?;
        let reason = run.cast::<u8>().add(REASON).cast::<u32>();
        for _ in 0..exits {
            checked("KVM_RUN", ioctl(vcpu, KVM_RUN, 0usize))?;
            let reason = reason.read_volatile();
            if reason != KVM_EXIT_MMIO {
                return Err(format!("exit reason {reason}"));
            }
        }
    }
    Ok(())
}
