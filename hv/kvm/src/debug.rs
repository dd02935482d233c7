//! A vCPU under a debugger.

use crate::Kvm;
use crate::ioctl;
use crate::probe;
use crate::refused;
use crate::saved::SavedMsr;
use crate::vcpu::{KvmVcpu, borrowed, read_msrs, segment, write_msrs, xsave_words};
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE, kvm_fpu, kvm_guest_debug, kvm_guest_debug_arch, kvm_segment,
};
use nyx_hypervisor::{
    Activity, DebugControl, DebugStop, FpuRegisters, HARDWARE_BREAKPOINTS, HvError, Registers,
    Segment, Table, VcpuDebug, WatchAccess,
};

/// DR6 with nothing to report: its reserved bits read as one (Intel SDM vol. 3 §18.2.3).
const DR6_NOTHING: u64 = 0xffff_0ff0;
/// DR7 with nothing enabled: bit 10 reads as one (Intel SDM vol. 3 §18.2.4).
const DR7_NOTHING: u64 = 1 << 10;

// The XSAVE area in its standard form (Intel SDM vol. 1 §13.4): components in use, and AVX.
const XSTATE_BV: usize = 512;
const AVX: usize = 576;
const AVX_COMPONENT: u64 = 1 << 2;

/// `kvm_guest_debug` for `control`, without what a kernel that knows `flags` lacks.
fn guest_debug(control: &DebugControl, flags: u32) -> kvm_guest_debug {
    if control.is_off() {
        return kvm_guest_debug::default();
    }
    let mut bits = KVM_GUESTDBG_ENABLE;
    if control.software {
        bits |= KVM_GUESTDBG_USE_SW_BP;
    }
    if control.step {
        bits |= KVM_GUESTDBG_SINGLESTEP;
        if control.block_interrupts {
            bits |= KVM_GUESTDBG_BLOCKIRQ & flags;
        }
    }
    let mut debugreg = [0; 8];
    debugreg[7] = DR7_NOTHING;
    for (n, breakpoint) in control.hardware.iter().enumerate() {
        let Some(breakpoint) = breakpoint else {
            continue;
        };
        bits |= KVM_GUESTDBG_USE_HW_BP;
        debugreg[n] = breakpoint.address;
        // Intel SDM vol. 3 §18.2.4: kind and length of breakpoint n, and its global enable bit.
        let kind = match breakpoint.access {
            WatchAccess::Execute => 0b00,
            WatchAccess::Write => 0b01,
            WatchAccess::ReadWrite => 0b11,
        };
        let len = match breakpoint.len {
            2 => 0b01,
            4 => 0b11,
            8 => 0b10,
            _ => 0b00,
        };
        debugreg[7] |= 0b10 << (2 * n) | kind << (16 + 4 * n) | len << (18 + 4 * n);
    }
    kvm_guest_debug {
        control: bits,
        pad: 0,
        arch: kvm_guest_debug_arch { debugreg },
    }
}

fn segment_of(s: &kvm_segment) -> Segment {
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        kind: s.type_,
        s: s.s != 0,
        dpl: s.dpl,
        present: s.present != 0 && s.unusable == 0,
        l: s.l != 0,
        db: s.db != 0,
        g: s.g != 0,
    }
}

/// Writes what differs, so that bits which [`Segment`] does not carry stay.
fn put_segment(place: &mut kvm_segment, wanted: Segment) {
    if segment_of(place) != wanted {
        *place = segment(wanted);
    }
}

impl KvmVcpu {
    fn set_guest_debug(&self, control: &DebugControl, inject: u32) -> Result<(), HvError> {
        let mut debug = guest_debug(control, self.host.capabilities.guest_debug_flags);
        if inject != 0 {
            debug.control |= KVM_GUESTDBG_ENABLE | inject;
        }
        self.fd
            .set_guest_debug(&debug)
            .map_err(refused("KVM_SET_GUEST_DEBUG"))
    }

    fn xsave_area(&self) -> Result<Option<Vec<u64>>, HvError> {
        let caps = &self.host.capabilities;
        if caps.xsave == 0 {
            return Ok(None);
        }
        let mut area = vec![0; xsave_words(&self.host)];
        ioctl::get_xsave(borrowed(&self.fd), &mut area, caps.xsave2 != 0).map_err(|source| {
            HvError {
                operation: "KVM_GET_XSAVE",
                source,
            }
        })?;
        Ok(Some(area))
    }
}

impl VcpuDebug for KvmVcpu {
    fn registers(&mut self) -> Result<Registers, HvError> {
        let r = self.fd.get_regs().map_err(refused("KVM_GET_REGS"))?;
        let s = self.fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        Ok(Registers {
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
            cs: segment_of(&s.cs),
            ds: segment_of(&s.ds),
            es: segment_of(&s.es),
            fs: segment_of(&s.fs),
            gs: segment_of(&s.gs),
            ss: segment_of(&s.ss),
            tr: segment_of(&s.tr),
            ldt: segment_of(&s.ldt),
            gdt: Table {
                base: s.gdt.base,
                limit: s.gdt.limit,
            },
            idt: Table {
                base: s.idt.base,
                limit: s.idt.limit,
            },
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            cr8: s.cr8,
            efer: s.efer,
            apic_base: s.apic_base,
        })
    }

    fn set_registers(&mut self, wanted: &Registers) -> Result<(), HvError> {
        let mut r = self.fd.get_regs().map_err(refused("KVM_GET_REGS"))?;
        let before = r;
        r.rax = wanted.rax;
        r.rbx = wanted.rbx;
        r.rcx = wanted.rcx;
        r.rdx = wanted.rdx;
        r.rsi = wanted.rsi;
        r.rdi = wanted.rdi;
        r.rbp = wanted.rbp;
        r.rsp = wanted.rsp;
        r.r8 = wanted.r8;
        r.r9 = wanted.r9;
        r.r10 = wanted.r10;
        r.r11 = wanted.r11;
        r.r12 = wanted.r12;
        r.r13 = wanted.r13;
        r.r14 = wanted.r14;
        r.r15 = wanted.r15;
        r.rip = wanted.rip;
        r.rflags = wanted.rflags;
        if r != before {
            self.fd.set_regs(&r).map_err(refused("KVM_SET_REGS"))?;
        }
        let mut s = self.fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        let before = s;
        put_segment(&mut s.cs, wanted.cs);
        put_segment(&mut s.ds, wanted.ds);
        put_segment(&mut s.es, wanted.es);
        put_segment(&mut s.fs, wanted.fs);
        put_segment(&mut s.gs, wanted.gs);
        put_segment(&mut s.ss, wanted.ss);
        put_segment(&mut s.tr, wanted.tr);
        put_segment(&mut s.ldt, wanted.ldt);
        (s.gdt.base, s.gdt.limit) = (wanted.gdt.base, wanted.gdt.limit);
        (s.idt.base, s.idt.limit) = (wanted.idt.base, wanted.idt.limit);
        s.cr0 = wanted.cr0;
        s.cr2 = wanted.cr2;
        s.cr3 = wanted.cr3;
        s.cr4 = wanted.cr4;
        s.cr8 = wanted.cr8;
        s.efer = wanted.efer;
        s.apic_base = wanted.apic_base;
        if s != before {
            // An interrupt that is about to be injected would be lost with a bitmap of zeros, but it
            // comes back as it was read.
            self.fd.set_sregs(&s).map_err(refused("KVM_SET_SREGS"))?;
        }
        Ok(())
    }

    fn activity(&mut self) -> Result<Activity, HvError> {
        let state = self
            .fd
            .get_mp_state()
            .map_err(refused("KVM_GET_MP_STATE"))?;
        Ok(match state.mp_state {
            KVM_MP_STATE_RUNNABLE => Activity::Running,
            KVM_MP_STATE_HALTED => Activity::Halted,
            _ => Activity::Waiting,
        })
    }

    fn fpu(&mut self) -> Result<FpuRegisters, HvError> {
        let fpu = self.fd.get_fpu().map_err(refused("KVM_GET_FPU"))?;
        let mut registers = FpuRegisters {
            fcw: fpu.fcw,
            fsw: fpu.fsw,
            ftw: fpu.ftwx,
            fop: fpu.last_opcode,
            fip: fpu.last_ip,
            fdp: fpu.last_dp,
            mxcsr: fpu.mxcsr,
            xmm: fpu.xmm.map(u128::from_le_bytes),
            ..FpuRegisters::default()
        };
        for (st, slot) in registers.st.iter_mut().zip(&fpu.fpr) {
            st.copy_from_slice(&slot[..10]);
        }
        // XCR0 says whether the guest has AVX switched on.
        let xcr0 = match self.host.capabilities.xcrs {
            0 => 0,
            _ => self
                .fd
                .get_xcrs()
                .map_or(0, |xcrs| xcrs.xcrs.first().map_or(0, |xcr| xcr.value)),
        };
        if xcr0 & AVX_COMPONENT != 0
            && let Some(area) = self.xsave_area()?
            && let Some(words) = area.get(AVX / 8..AVX / 8 + 32)
        {
            let mut high = [0; 16];
            let used = area
                .get(XSTATE_BV / 8)
                .is_some_and(|bv| bv & AVX_COMPONENT != 0);
            for (half, pair) in high.iter_mut().zip(words.chunks_exact(2)).filter(|_| used) {
                *half = u128::from(pair[0]) | u128::from(pair[1]) << 64;
            }
            registers.ymm_high = Some(high);
        }
        Ok(registers)
    }

    fn set_fpu(&mut self, wanted: &FpuRegisters) -> Result<(), HvError> {
        let mut fpr = [[0; 16]; 8];
        for (slot, st) in fpr.iter_mut().zip(&wanted.st) {
            slot[..10].copy_from_slice(st);
        }
        let fpu = kvm_fpu {
            fpr,
            fcw: wanted.fcw,
            fsw: wanted.fsw,
            ftwx: wanted.ftw,
            pad1: 0,
            last_opcode: wanted.fop,
            last_ip: wanted.fip,
            last_dp: wanted.fdp,
            xmm: wanted.xmm.map(u128::to_le_bytes),
            mxcsr: wanted.mxcsr,
            pad2: 0,
        };
        self.fd.set_fpu(&fpu).map_err(refused("KVM_SET_FPU"))?;
        if let Some(high) = wanted.ymm_high
            && let Some(mut area) = self.xsave_area()?
            && area.len() >= AVX / 8 + 32
        {
            for (pair, half) in area[AVX / 8..].chunks_exact_mut(2).zip(high) {
                pair[0] = half as u64;
                pair[1] = (half >> 64) as u64;
            }
            area[XSTATE_BV / 8] |= AVX_COMPONENT;
            ioctl::set_xsave(borrowed(&self.fd), &area).map_err(|source| HvError {
                operation: "KVM_SET_XSAVE",
                source,
            })?;
        }
        Ok(())
    }

    fn msrs(&mut self, indices: &[u32]) -> Vec<Option<u64>> {
        let read = read_msrs(&self.fd, indices);
        // What was read keeps the order of what was asked.
        let mut read = read.into_iter().peekable();
        indices
            .iter()
            .map(|&index| read.next_if(|m| m.index == index).map(|m| m.value))
            .collect()
    }

    fn set_msr(&mut self, index: u32, value: u64) -> bool {
        write_msrs(&self.fd, &[SavedMsr { index, value }]).is_empty()
    }

    fn stops_at_int3(&mut self) -> bool {
        let host = self.host.clone();
        // A probe that fails says nothing; processors do stop.
        *self
            .host
            .stops_at_int3
            .get_or_init(|| probe::stops_at_int3(&Kvm(host)).unwrap_or(true))
    }

    fn control(&mut self, control: &DebugControl) -> Result<(), HvError> {
        self.set_guest_debug(control, 0)?;
        self.debug_control = *control;
        Ok(())
    }

    fn return_to_guest(&mut self, stop: &DebugStop) -> Result<(), HvError> {
        let inject = match stop.exception {
            DebugStop::BP => KVM_GUESTDBG_INJECT_BP,
            DebugStop::DB => {
                if self.host.capabilities.debugregs != 0 {
                    let mut debug = self
                        .fd
                        .get_debug_regs()
                        .map_err(refused("KVM_GET_DEBUGREGS"))?;
                    debug.dr6 = stop.dr6 | DR6_NOTHING;
                    self.fd
                        .set_debug_regs(&debug)
                        .map_err(refused("KVM_SET_DEBUGREGS"))?;
                }
                KVM_GUESTDBG_INJECT_DB
            }
            _ => return Ok(()),
        };
        self.set_guest_debug(&self.debug_control, inject)
    }
}

const _: () = assert!(HARDWARE_BREAKPOINTS == 4);

#[cfg(test)]
mod tests {
    use super::*;
    use nyx_hypervisor::HardwareBreakpoint;

    #[test]
    fn breakpoints_become_debug_registers() {
        let at = |address, len, access| {
            Some(HardwareBreakpoint {
                address,
                len,
                access,
            })
        };
        let mut control = DebugControl::default();
        assert_eq!(guest_debug(&control, u32::MAX).control, 0);
        control.hardware = [
            at(0x1000, 1, WatchAccess::Execute),
            at(0x2000, 2, WatchAccess::Write),
            at(0x3000, 4, WatchAccess::ReadWrite),
            at(0x4000, 8, WatchAccess::Write),
        ];
        let debug = guest_debug(&control, u32::MAX);
        assert_eq!(debug.control, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP);
        let registers = debug.arch.debugreg;
        assert_eq!(registers[..4], [0x1000, 0x2000, 0x3000, 0x4000]);
        // LEN3 R/W3 LEN2 R/W2 LEN1 R/W1 LEN0 R/W0, then bit 10, G3 G2 G1 G0 (figure 18-1).
        assert_eq!(
            registers[7],
            0b1001_1111_0101_0000 << 16 | 1 << 10 | 0b1010_1010
        );

        let step = DebugControl {
            step: true,
            block_interrupts: true,
            ..DebugControl::default()
        };
        assert_eq!(
            guest_debug(&step, 0).control,
            KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
        );
        assert_ne!(
            guest_debug(&step, u32::MAX).control & KVM_GUESTDBG_BLOCKIRQ,
            0
        );
    }
}
