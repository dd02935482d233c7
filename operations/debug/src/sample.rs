//! One moment of all vCPUs, for stack traces: registers and the top of each stack.

use crate::memory::Physical;
use crate::paging::Paging;
use nyx_hypervisor::{Activity, Registers};
use nyx_machine::{DebugError, DebugPort};
use serde::Serialize;

/// MSRs that stack walks and symbol tables need (Intel SDM vol. 4 table 2-2).
const LSTAR: u32 = 0xc000_0082;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// Most bytes of one stack.
const MOST_STACK: usize = 64 << 10;

/// A vCPU at one moment. Numbers are the registers' own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are the processor's own names")]
pub struct VcpuSample {
    pub index: u32,
    /// `running`, `halted` (waits for an interrupt) or `waiting` (was never started).
    pub activity: &'static str,
    /// Privilege level: 0 is the kernel, 3 its programs.
    pub cpl: u8,
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
    pub cs: u16,
    pub ss: u16,
    pub fs_base: u64,
    pub gs_base: u64,
    pub kernel_gs_base: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub gdt_base: u64,
    pub idt_base: u64,
    /// Where the kernel is entered by a system call.
    pub lstar: u64,
    /// The bytes from RSP on, as many as there are.
    #[serde(skip)]
    pub stack: Vec<u8>,
}

impl VcpuSample {
    fn new(index: usize, registers: &Registers, activity: Activity, msrs: &[Option<u64>]) -> Self {
        let msr = |n: usize| msrs.get(n).copied().flatten().unwrap_or(0);
        let r = registers;
        Self {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            activity: match activity {
                Activity::Running => "running",
                Activity::Halted => "halted",
                Activity::Waiting => "waiting",
            },
            // The processor's own level is the stack segment's (Intel SDM vol. 3 §5.5).
            cpl: r.ss.dpl,
            rax: r.rax,
            rbx: r.rbx,
            rcx: r.rcx,
            rdx: r.rdx,
            rsi: r.rsi,
            rdi: r.rdi,
            rbp: r.rbp,
            rsp: r.rsp,
            r8: r.r8,
            r9: r.r9,
            r10: r.r10,
            r11: r.r11,
            r12: r.r12,
            r13: r.r13,
            r14: r.r14,
            r15: r.r15,
            rip: r.rip,
            rflags: r.rflags,
            cs: r.cs.selector,
            ss: r.ss.selector,
            fs_base: r.fs.base,
            gs_base: r.gs.base,
            kernel_gs_base: msr(1),
            cr0: r.cr0,
            cr2: r.cr2,
            cr3: r.cr3,
            cr4: r.cr4,
            cr8: r.cr8,
            efer: r.efer,
            gdt_base: r.gdt.base,
            idt_base: r.idt.base,
            lstar: msr(0),
            stack: Vec::new(),
        }
    }
}

/// Takes registers and up to `stack` bytes of each vCPU's stack at one moment: no vCPU runs
/// meanwhile, which takes well under a millisecond for a few vCPUs.
pub fn sample(port: &DebugPort, stack: usize) -> Result<Vec<VcpuSample>, DebugError> {
    port.glimpse(|port| {
        (0..port.vcpus())
            .map(|index| {
                let (registers, activity, msrs) = port.vcpu(index, |vcpu| {
                    let msrs = vcpu.msrs(&[LSTAR, KERNEL_GS_BASE]);
                    (vcpu.registers(), vcpu.activity(), msrs)
                })?;
                let registers = registers?;
                let mut sample = VcpuSample::new(index, &registers, activity?, &msrs);
                let mut bytes = vec![0; stack.min(MOST_STACK)];
                let paging = Paging::of(&registers);
                let read = Physical(port.memory()).read_virtual(&paging, registers.rsp, &mut bytes);
                bytes.truncate(read);
                sample.stack = bytes;
                Ok(sample)
            })
            .collect()
    })?
}
