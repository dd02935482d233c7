//! A vCPU as a debugger sees it: registers, breakpoints, single steps.

use crate::{HvError, Segment};

/// Base and limit of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Whether a vCPU executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// It executes instructions.
    #[default]
    Running,
    /// HLT: it waits for an interrupt.
    Halted,
    /// It waits for INIT or a start-up message; its registers mean nothing yet.
    Waiting,
}

/// Registers of a vCPU (Intel SDM vol. 1 §3.4, vol. 3 §2.1), but for floating point and MSRs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the processor's own names")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: Table,
    pub idt: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
}

/// Floating point and vector registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FpuRegisters {
    /// ST0 to ST7, 80 bits each, in the order of the register stack.
    pub st: [[u8; 10]; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word.
    pub fsw: u16,
    /// Tag byte in FXSAVE's form: one bit for each register that is in use.
    pub ftw: u8,
    /// Last opcode.
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last data pointer.
    pub fdp: u64,
    /// SSE control and status.
    pub mxcsr: u32,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// Upper halves of YMM0 to YMM15, where the vCPU has AVX.
    pub ymm_high: Option<[u128; 16]>,
}

/// What a hardware breakpoint waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchAccess {
    /// An instruction at the address.
    Execute,
    /// A write.
    Write,
    /// A read or a write: the processor knows no reads alone (Intel SDM vol. 3 §18.2.4).
    ReadWrite,
}

/// One of the four hardware breakpoints (Intel SDM vol. 3 §18.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareBreakpoint {
    /// Linear address, a multiple of `len`.
    pub address: u64,
    /// Bytes: 1, 2, 4 or 8; 1 for [`WatchAccess::Execute`].
    pub len: u8,
    /// What it waits for.
    pub access: WatchAccess,
}

/// Hardware breakpoints of a processor.
pub const HARDWARE_BREAKPOINTS: usize = 4;

/// When a vCPU shall stop for its debugger. The default is: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugControl {
    /// At the instruction INT3.
    pub software: bool,
    /// After one instruction.
    pub step: bool,
    /// While stepping, interrupts wait, where the hypervisor can do that: a step then never ends in
    /// an interrupt's code.
    pub block_interrupts: bool,
    /// At these places. While there are any, the guest's own debug registers have no effect.
    pub hardware: [Option<HardwareBreakpoint>; HARDWARE_BREAKPOINTS],
}

impl DebugControl {
    /// Whether the vCPU never stops for a debugger.
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a vCPU stopped: the contents of [`crate::Exit::Debug`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugStop {
    /// Exception number: 1 is #DB, 3 is #BP.
    pub exception: u32,
    /// Linear address of the instruction.
    pub pc: u64,
    /// DR6: which hardware breakpoint, or a single step (Intel SDM vol. 3 §18.2.3).
    pub dr6: u64,
    /// DR7 as it was.
    pub dr7: u64,
}

impl DebugStop {
    /// #DB: hardware breakpoints and single steps.
    pub const DB: u32 = 1;
    /// #BP: INT3.
    pub const BP: u32 = 3;

    /// Whether a single step ended (DR6.BS).
    pub fn is_step(&self) -> bool {
        self.exception == Self::DB && self.dr6 & 1 << 14 != 0
    }

    /// The hardware breakpoints that were met, lowest first (DR6.B0 to B3).
    pub fn met(&self) -> impl Iterator<Item = usize> + '_ {
        (0..HARDWARE_BREAKPOINTS).filter(|n| self.exception == Self::DB && self.dr6 & 1 << n != 0)
    }
}

/// A vCPU under a debugger, at an instruction boundary.
pub trait VcpuDebug {
    /// Reads the registers.
    fn registers(&mut self) -> Result<Registers, HvError>;
    /// Writes those registers that differ from what the vCPU has.
    fn set_registers(&mut self, registers: &Registers) -> Result<(), HvError>;
    /// Whether it executes, halts, or was never started.
    fn activity(&mut self) -> Result<Activity, HvError>;
    /// Reads floating point and vector registers.
    fn fpu(&mut self) -> Result<FpuRegisters, HvError>;
    /// Writes them.
    fn set_fpu(&mut self, fpu: &FpuRegisters) -> Result<(), HvError>;
    /// Reads MSRs by number; `None` for each that the hypervisor refuses.
    fn msrs(&mut self, indices: &[u32]) -> Vec<Option<u64>>;
    /// Writes an MSR; `false` if the hypervisor refuses.
    fn set_msr(&mut self, index: u32, value: u64) -> bool;
    /// Whether [`DebugControl::software`] works here. Where it does not, hardware breakpoints do. The
    /// first answer may take some milliseconds.
    fn stops_at_int3(&mut self) -> bool;
    /// Says when to stop from the next run on.
    fn control(&mut self, control: &DebugControl) -> Result<(), HvError>;
    /// Gives the guest the exception that stopped it: it was the guest's own.
    fn return_to_guest(&mut self, stop: &DebugStop) -> Result<(), HvError>;
}
