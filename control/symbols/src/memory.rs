//! What this crate must know of a running guest.

/// Guest memory by linear address.
pub trait GuestMemory {
    /// Fills `bytes` with what is at `address` in the address space of vCPU `vcpu`; `false` if not all
    /// of it is mapped.
    fn read(&mut self, vcpu: u32, address: u64, bytes: &mut [u8]) -> bool;
}

impl<F: FnMut(u32, u64, &mut [u8]) -> bool> GuestMemory for F {
    fn read(&mut self, vcpu: u32, address: u64, bytes: &mut [u8]) -> bool {
        self(vcpu, address, bytes)
    }
}

/// A vCPU at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Which.
    pub index: u32,
    /// Privilege level: 0 is the kernel.
    pub cpl: u8,
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Frame pointer, where code keeps one.
    pub rbp: u64,
    /// R10 and R13, which unwinding tables refer to.
    pub r10: u64,
    /// See `r10`.
    pub r13: u64,
    /// MSR LSTAR: where a system call enters the kernel.
    pub lstar: u64,
    /// Base of the interrupt descriptor table.
    pub idt_base: u64,
    /// Bytes of the stack from `rsp` on, taken at the same moment as the registers; what is missing is
    /// read from memory.
    pub stack: Vec<u8>,
}

/// Where a 64-bit Linux kernel's image lies (Linux, Documentation/arch/x86/x86_64/mm.rst).
pub(crate) const KERNEL_IMAGE: std::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;
/// Where its modules lie.
pub(crate) const MODULES: std::ops::Range<u64> = 0xffff_ffff_c000_0000..0xffff_ffff_ff00_0000;

/// Little-endian numbers out of bytes that may be too few.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
