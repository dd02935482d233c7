//! A virtual CPU under KVM.
//!
//! On the exit path there is one system call, `KVM_RUN`, one decoding, and no allocation.

use crate::abi::Plain;
use crate::exit;
use crate::host::Host;
use crate::ioctl;
use crate::kick::Kicker;
use crate::refused;
use crate::run_page::RunPage;
use crate::saved::{SavedMsr, SavedVcpu};
use crate::stats::Statistics;
use crate::{cpuid, cpuid::Request};
use kvm_bindings::{
    CpuId, KVM_EXIT_MEMORY_FAULT, Msrs, kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{VcpuFd, VmFd};
use minicbor::bytes::ByteVec;
use nyx_hypervisor::{
    DebugControl, EntryState, Exit, HvError, Kick, Segment, Topology, Vcpu, VcpuDebug,
};
use nyx_inspect::Inspect;
use nyx_state::{Blob, PersistBlob, RestoreError, SaveError};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

// Model-specific registers (Intel SDM vol. 4, table 2-2).
const IA32_TSC: u32 = 0x10;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Fast string operations are on.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// MTRRs enabled, write-back by default: without firmware nobody else would say so.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// Most MSRs in one call.
const MSR_BATCH: usize = 128;

/// Offset of the timer's entry in the local APIC's page, and its fields (Intel SDM vol. 3 §11.5.1).
const LVT_TIMER: usize = 0x320;
const LVT_MASKED: u32 = 1 << 16;
const LVT_MODE: u32 = 3 << 17;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
/// The local interrupt pins' entries and their delivery modes (Intel SDM vol. 3 figure 11-8).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const LVT_NMI: u32 = 4;
const LVT_EXTINT: u32 = 7;

/// Why state is applied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Reset,
    Restore,
}

/// See [`Vcpu`].
pub(crate) struct KvmVcpu {
    pub(crate) fd: VcpuFd,
    page: RunPage,
    kicker: Arc<Kicker>,
    pub(crate) host: Arc<Host>,
    power_on: SavedVcpu,
    /// When it stops for a debugger.
    pub(crate) debug_control: DebugControl,
}

impl KvmVcpu {
    pub(crate) fn create(
        host: Arc<Host>,
        vm: &VmFd,
        topology: Topology,
        index: u32,
        wide_ids: bool,
    ) -> Result<Self, HvError> {
        let fd = vm
            .create_vcpu(topology.apic_id(index).into())
            .map_err(refused("KVM_CREATE_VCPU"))?;
        let caps = &host.capabilities;
        let tsc_khz = match caps.get_tsc_khz {
            0 => None,
            _ => fd.get_tsc_khz().ok().filter(|&khz| khz != 0),
        };
        let request = Request {
            topology,
            index,
            tsc_deadline: caps.tsc_deadline != 0,
            tsc_khz,
            wide_ids,
            large_xsave: caps.xsave2 != 0,
        };
        let entries = cpuid::for_vcpu(&host.cpuid, &request);
        let table = CpuId::from_entries(&entries).map_err(|e| HvError {
            operation: "KVM_SET_CPUID2",
            source: io::Error::other(format!("{} entries: {e:?}", entries.len())),
        })?;
        fd.set_cpuid2(&table).map_err(refused("KVM_SET_CPUID2"))?;
        // SAFETY: the descriptor is open: `fd` lives to the end of this function.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let page = RunPage::map(borrowed, host.run_size).map_err(|source| HvError {
            operation: "mapping kvm_run",
            source,
        })?;
        let kicker = Arc::new(Kicker::new(page.immediate_exit()));
        initialize_msrs(&fd);
        initialize_lapic(&fd, index == 0)?;
        let power_on = power_on(&fd, &host).map_err(|e| HvError {
            operation: "vCPU state",
            source: io::Error::other(e),
        })?;
        Ok(Self {
            fd,
            page,
            kicker,
            host,
            power_on,
            debug_control: DebugControl::default(),
        })
    }

    #[inline]
    fn enter(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open for as long as `self.fd` lives.
        ioctl::run(unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) })
    }

    #[cold]
    fn not_run(&mut self, source: io::Error) -> Result<Exit<'_>, HvError> {
        match source.raw_os_error() {
            Some(libc::EINTR) => {
                self.kicker.seen();
                Ok(Exit::Interrupted)
            }
            // A vCPU that waits for INIT or SIPI was woken: look at the commands and run again.
            Some(libc::EAGAIN) => Ok(Exit::Interrupted),
            // These two describe themselves where the kernel can
            // (Linux, Documentation/virt/kvm/api.rst, KVM_EXIT_MEMORY_FAULT).
            Some(libc::EFAULT | libc::EHWPOISON)
                if exit::reason(self.page.body()) == KVM_EXIT_MEMORY_FAULT =>
            {
                Ok(exit::decode(self.page.body()))
            }
            _ => Err(HvError {
                operation: "KVM_RUN",
                source,
            }),
        }
    }

    fn apply_reset(&mut self) -> Result<(), RestoreError> {
        apply(&self.fd, &self.host, &self.power_on, Purpose::Reset)
    }
}

impl Vcpu for KvmVcpu {
    #[inline]
    fn run(&mut self) -> Result<Exit<'_>, HvError> {
        match self.enter() {
            Ok(()) => Ok(exit::decode(self.page.body())),
            Err(source) => self.not_run(source),
        }
    }

    fn settle(&mut self) -> Result<Option<Exit<'_>>, HvError> {
        match self.kicker.held_back(|| self.enter()) {
            Ok(()) => Ok(Some(exit::decode(self.page.body()))),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => Ok(None),
            Err(source) => self.not_run(source).map(Some),
        }
    }

    fn kick_handle(&mut self) -> Result<Arc<dyn Kick>, HvError> {
        self.kicker.attach().map_err(|source| HvError {
            operation: "installing the kick signal",
            source,
        })?;
        Ok(self.kicker.clone())
    }

    fn statistics(&mut self) -> Option<Box<dyn Inspect + Send + Sync>> {
        // A kernel without them (before Linux 5.14) refuses.
        let statistics = Statistics::open(borrowed(&self.fd)).ok()?;
        Some(Box::new(statistics))
    }

    fn set_entry(&mut self, entry: &EntryState) -> Result<(), HvError> {
        let mut sregs = self.fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        sregs.cs = segment(entry.cs);
        for data in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            *data = segment(entry.data);
        }
        // A processor always has a task register; an absent one keeps its reset value.
        if entry.tr.present {
            sregs.tr = segment(entry.tr);
        }
        sregs.gdt = table(entry.gdt);
        sregs.idt = table(entry.idt);
        (sregs.cr0, sregs.cr3, sregs.cr4) = (entry.cr0, entry.cr3, entry.cr4);
        sregs.efer = entry.efer;
        self.fd
            .set_sregs(&sregs)
            .map_err(refused("KVM_SET_SREGS"))?;
        let regs = kvm_regs {
            rip: entry.rip,
            rsp: entry.rsp,
            rbx: entry.rbx,
            rsi: entry.rsi,
            rflags: entry.rflags | 2, // bit 1 reads as one (Intel SDM vol. 1 §3.4.3)
            ..Default::default()
        };
        self.fd.set_regs(&regs).map_err(refused("KVM_SET_REGS"))
    }

    fn reset(&mut self) -> Result<(), HvError> {
        self.apply_reset().map_err(|e| HvError {
            operation: "vCPU reset",
            source: io::Error::other(e),
        })
    }

    fn save(&mut self) -> Result<Blob, SaveError> {
        State {
            fd: &self.fd,
            host: &self.host,
        }
        .save_blob()
    }

    fn restore(&mut self, blob: &Blob) -> Result<(), RestoreError> {
        State {
            fd: &self.fd,
            host: &self.host,
        }
        .restore_blob(blob)
    }

    fn inject_nmi(&mut self) -> Result<(), HvError> {
        self.fd.nmi().map_err(refused("KVM_NMI"))
    }

    fn note_pause(&mut self) {
        // KVM_KVMCLOCK_CTRL (KVM API, 4.68) sets PVCLOCK_GUEST_STOPPED. It is refused for a guest that has no
        // kvmclock, which then has nothing to be told by.
        let _ = self.fd.kvmclock_ctrl();
    }

    fn program_counter(&mut self) -> Result<u64, HvError> {
        Ok(self.fd.get_regs().map_err(refused("KVM_GET_REGS"))?.rip)
    }

    fn debug(&mut self) -> Option<&mut dyn VcpuDebug> {
        (self.host.capabilities.guest_debug != 0).then_some(self)
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kicker.detach();
    }
}

pub(crate) fn segment(s: Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind & 0xf,
        present: s.present.into(),
        dpl: s.dpl & 3,
        db: s.db.into(),
        s: s.s.into(),
        l: s.l.into(),
        g: s.g.into(),
        avl: 0,
        unusable: (!s.present).into(),
        padding: 0,
    }
}

fn table((base, limit): (u64, u16)) -> kvm_dtable {
    kvm_dtable {
        base,
        limit,
        ..Default::default()
    }
}

/// What firmware would leave behind. KVM may refuse any of them; the guest then sees KVM's value.
fn initialize_msrs(fd: &VcpuFd) {
    let misc = read_msrs(fd, &[IA32_MISC_ENABLE])
        .first()
        .map_or(0, |m| m.value);
    let msrs = [
        (IA32_MISC_ENABLE, misc | MISC_ENABLE_FAST_STRING),
        (IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
        (IA32_TSC, 0),
    ];
    write_msrs(fd, &msrs.map(|(index, value)| SavedMsr { index, value }));
}

/// Sets the local interrupt pins as firmware does: LINT1 is NMI, and LINT0 of the boot processor takes
/// the 8259's interrupts (MultiProcessor Specification 1.4 §3.6.2.2, virtual wire mode).
///
/// Writing the local APIC also makes KVM look at its id again. It must: KVM resets a new vCPU's
/// local APIC before it adds the vCPU to the VM, so until then no interrupt, INIT or SIPI finds it.
fn initialize_lapic(fd: &VcpuFd, boot_processor: bool) -> Result<(), HvError> {
    let mut lapic = fd.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
    let mut put = |offset: usize, mode: u32| {
        let bytes = (mode << 8).to_le_bytes();
        for (register, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(bytes) {
            *register = byte as _;
        }
    };
    if boot_processor {
        put(LVT_LINT0, LVT_EXTINT);
    }
    put(LVT_LINT1, LVT_NMI);
    fd.set_lapic(&lapic).map_err(refused("KVM_SET_LAPIC"))
}

/// Reads those of `indices` that can be read.
pub(crate) fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Vec<SavedMsr> {
    let mut read = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(MSR_BATCH)];
        let entries: Vec<_> = batch
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let Ok(mut msrs) = Msrs::from_entries(&entries) else {
            break;
        };
        // The kernel stops at the first that it refuses, and says how many came before it.
        let count = fd.get_msrs(&mut msrs).unwrap_or(0).min(batch.len());
        read.extend(msrs.as_slice()[..count].iter().map(|m| SavedMsr {
            index: m.index,
            value: m.data,
        }));
        let next = if count < batch.len() {
            count + 1
        } else {
            count
        };
        rest = &rest[next..];
    }
    read
}

/// Writes `msrs` in order and returns those that were refused.
pub(crate) fn write_msrs(fd: &VcpuFd, msrs: &[SavedMsr]) -> Vec<SavedMsr> {
    let mut refused = Vec::new();
    let mut rest = msrs;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(MSR_BATCH)];
        let entries: Vec<_> = batch
            .iter()
            .map(|m| kvm_msr_entry {
                index: m.index,
                data: m.value,
                ..Default::default()
            })
            .collect();
        let Ok(list) = Msrs::from_entries(&entries) else {
            refused.extend_from_slice(rest);
            break;
        };
        let count = fd.set_msrs(&list).unwrap_or(0).min(batch.len());
        let mut next = count;
        if let Some(first) = batch.get(count) {
            refused.push(*first);
            next += 1;
        }
        rest = &rest[next..];
    }
    refused
}

/// A settled vCPU's state, for [`nyx_state::Persist`].
struct State<'v> {
    fd: &'v VcpuFd,
    host: &'v Host,
}

impl nyx_state::Persist for State<'_> {
    type Saved = SavedVcpu;

    fn save(&self) -> Result<SavedVcpu, SaveError> {
        capture(self.fd, self.host)
    }

    fn restore(&mut self, saved: SavedVcpu) -> Result<(), RestoreError> {
        apply(self.fd, self.host, &saved, Purpose::Restore)?;
        if self.host.capabilities.kvmclock_ctrl != 0 {
            // Refused when the guest has no kvmclock; then there is nobody to tell that time was
            // lost and that a watchdog should not bark.
            let _ = self.fd.kvmclock_ctrl();
        }
        Ok(())
    }
}

pub(crate) fn borrowed(fd: &VcpuFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `fd` is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// Words of the FPU area that the kernel transfers.
pub(crate) fn xsave_words(host: &Host) -> usize {
    ioctl::XSAVE_LEGACY
        .max(host.capabilities.xsave2 as usize)
        .div_ceil(8)
}

/// A block of state, as saved.
type Block = Option<ByteVec>;

fn unread(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> SaveError {
    move |e| SaveError::Read(format!("{what}: {e}"))
}

fn block(state: &impl Plain) -> ByteVec {
    state.to_bytes().into()
}

fn mp_state(fd: &VcpuFd) -> Result<u32, SaveError> {
    Ok(fd
        .get_mp_state()
        .map_err(unread("KVM_GET_MP_STATE"))?
        .mp_state)
}

/// `kvm_sregs` or `kvm_sregs2`, whichever this kernel has.
fn system_registers(fd: &VcpuFd, host: &Host) -> Result<(Block, Block), SaveError> {
    if host.capabilities.sregs2 != 0 {
        let sregs2 = ioctl::get_sregs2(borrowed(fd))
            .map_err(|e| SaveError::Read(format!("KVM_GET_SREGS2: {e}")))?;
        Ok((None, Some(block(&sregs2))))
    } else {
        let sregs = fd.get_sregs().map_err(unread("KVM_GET_SREGS"))?;
        Ok((Some(block(&sregs)), None))
    }
}

fn lapic(fd: &VcpuFd) -> Result<ByteVec, SaveError> {
    Ok(block(&fd.get_lapic().map_err(unread("KVM_GET_LAPIC"))?))
}

fn xsave(fd: &VcpuFd, host: &Host) -> Result<Block, SaveError> {
    if host.capabilities.xsave == 0 {
        return Ok(None);
    }
    let mut area = vec![0u64; xsave_words(host)];
    ioctl::get_xsave(borrowed(fd), &mut area, host.capabilities.xsave2 != 0)
        .map_err(|e| SaveError::Read(format!("KVM_GET_XSAVE2: {e}")))?;
    let mut bytes: Vec<u8> = area.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let used = bytes
        .iter()
        .rposition(|&b| b != 0)
        .map_or(0, |last| last + 1);
    bytes.truncate(used);
    Ok(Some(bytes.into()))
}

/// Reads everything. The processor's run state comes first: asking for it makes the kernel accept
/// a pending INIT or SIPI, which changes the rest.
fn capture(fd: &VcpuFd, host: &Host) -> Result<SavedVcpu, SaveError> {
    let caps = &host.capabilities;
    let mp_state = mp_state(fd)?;
    let regs = block(&fd.get_regs().map_err(unread("KVM_GET_REGS"))?);
    let (sregs, sregs2) = system_registers(fd, host)?;
    let xsave = xsave(fd, host)?;
    let xcrs = match caps.xcrs {
        0 => None,
        _ => Some(block(&fd.get_xcrs().map_err(unread("KVM_GET_XCRS"))?)),
    };
    let debugregs = match caps.debugregs {
        0 => None,
        _ => Some(block(
            &fd.get_debug_regs().map_err(unread("KVM_GET_DEBUGREGS"))?,
        )),
    };
    let lapic = Some(lapic(fd)?);
    let tsc_khz = match caps.get_tsc_khz {
        0 => None,
        _ => fd.get_tsc_khz().ok().filter(|&khz| khz != 0),
    };
    let msrs = match host.readable_msrs.get() {
        Some(indices) => read_msrs(fd, indices),
        None => {
            let msrs = read_msrs(fd, &host.msrs);
            // All vCPUs have the same CPUID but for their ids, so they have the same registers.
            let _ = host
                .readable_msrs
                .set(msrs.iter().map(|m| m.index).collect());
            msrs
        }
    };
    let events = match caps.vcpu_events {
        0 => None,
        _ => Some(block(
            &fd.get_vcpu_events()
                .map_err(unread("KVM_GET_VCPU_EVENTS"))?,
        )),
    };
    Ok(SavedVcpu {
        mp_state,
        regs,
        sregs,
        sregs2,
        xsave,
        xcrs,
        debugregs,
        lapic,
        events,
        tsc_khz,
        msrs,
    })
}

/// The state of a vCPU that was just made. Only the run state, the system registers and the local
/// APIC tell one from another, so the rest is read once per process.
fn power_on(fd: &VcpuFd, host: &Host) -> Result<SavedVcpu, SaveError> {
    let Some(first) = host.power_on.get() else {
        let state = capture(fd, host)?;
        // Another thread may have been faster; then it holds the same.
        let _ = host.power_on.set(state.clone());
        return Ok(state);
    };
    let mp_state = mp_state(fd)?;
    let (sregs, sregs2) = system_registers(fd, host)?;
    Ok(SavedVcpu {
        mp_state,
        sregs,
        sregs2,
        lapic: Some(lapic(fd)?),
        ..first.clone()
    })
}

fn structure<T: Plain>(bytes: &[u8], what: &'static str) -> Result<T, RestoreError> {
    T::from_bytes(bytes).ok_or(RestoreError::Invalid(what))
}

/// A block of state that this host has no place for.
fn no_place(what: &str) -> RestoreError {
    RestoreError::Apply(format!("this host's KVM has no {what}"))
}

/// Applies `saved`.
///
/// The order matters: system registers before the local APIC (they say in which mode it is), the
/// local APIC before the MSRs (the deadline is ignored unless its timer is in that mode), the TSC
/// before the deadline, events after the run state.
fn apply(
    fd: &VcpuFd,
    host: &Host,
    saved: &SavedVcpu,
    purpose: Purpose,
) -> Result<(), RestoreError> {
    let caps = &host.capabilities;
    // Destructured in full, so that a new field does not compile until it is applied.
    let SavedVcpu {
        mp_state,
        regs,
        sregs,
        sregs2,
        xsave,
        xcrs,
        debugregs,
        lapic,
        events,
        tsc_khz,
        msrs,
    } = saved;
    let failed = |what: &'static str| {
        move |e: kvm_ioctls::Error| RestoreError::Apply(format!("{what}: {e}"))
    };
    let failed_io =
        |what: &'static str| move |e: io::Error| RestoreError::Apply(format!("{what}: {e}"));

    if let Some(khz) = *tsc_khz {
        match_tsc_frequency(fd, host, khz)?;
    }
    fd.set_mp_state(kvm_mp_state {
        mp_state: *mp_state,
    })
    .map_err(failed("KVM_SET_MP_STATE"))?;
    let regs: kvm_regs = structure(regs, "general registers of another size")?;
    fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
    match (sregs2, sregs) {
        (Some(bytes), _) => {
            let value: kvm_sregs2 = structure(bytes, "system registers of another size")?;
            if caps.sregs2 != 0 {
                ioctl::set_sregs2(borrowed(fd), &value).map_err(failed_io("KVM_SET_SREGS2"))?;
            } else {
                // Without them the PAE pointers are reloaded from guest memory.
                fd.set_sregs(&without_pointers(&value))
                    .map_err(failed("KVM_SET_SREGS"))?;
            }
        }
        (None, Some(bytes)) => {
            let value: kvm_sregs = structure(bytes, "system registers of another size")?;
            fd.set_sregs(&value).map_err(failed("KVM_SET_SREGS"))?;
        }
        (None, None) => return Err(RestoreError::Invalid("no system registers")),
    }
    if let Some(bytes) = xsave {
        if caps.xsave == 0 {
            return Err(no_place("XSAVE state"));
        }
        let mut area = vec![0u64; xsave_words(host)];
        if bytes.len() > area.len() * 8 {
            return Err(no_place("place for that much FPU state"));
        }
        for (word, chunk) in area.iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_ne_bytes(whole);
        }
        ioctl::set_xsave(borrowed(fd), &area).map_err(failed_io("KVM_SET_XSAVE"))?;
    }
    if let Some(bytes) = xcrs {
        let value: kvm_xcrs = structure(bytes, "extended control registers of another size")?;
        if caps.xcrs == 0 {
            return Err(no_place("extended control registers"));
        }
        fd.set_xcrs(&value).map_err(failed("KVM_SET_XCRS"))?;
    }
    if let Some(bytes) = debugregs {
        let value: kvm_debugregs = structure(bytes, "debug registers of another size")?;
        if caps.debugregs == 0 {
            return Err(no_place("debug registers"));
        }
        fd.set_debug_regs(&value)
            .map_err(failed("KVM_SET_DEBUGREGS"))?;
    }
    let mut deadline_mode = false;
    if let Some(bytes) = lapic {
        let value: kvm_lapic_state = structure(bytes, "a local APIC of another size")?;
        fd.set_lapic(&value).map_err(failed("KVM_SET_LAPIC"))?;
        let lvt = bytes
            .get(LVT_TIMER..)
            .and_then(|b| b.first_chunk())
            .copied()
            .unwrap_or([0; 4]);
        let lvt = u32::from_le_bytes(lvt);
        deadline_mode = lvt & LVT_MODE == LVT_TSC_DEADLINE && lvt & LVT_MASKED == 0;
    }
    apply_msrs(fd, host, msrs, purpose, deadline_mode)?;
    if let Some(bytes) = events {
        let value: kvm_vcpu_events = structure(bytes, "pending events of another size")?;
        if caps.vcpu_events == 0 {
            return Err(no_place("pending events"));
        }
        fd.set_vcpu_events(&value)
            .map_err(failed("KVM_SET_VCPU_EVENTS"))?;
    }
    Ok(())
}

/// Sets the MSRs that differ, the TSC always, and the deadline last.
fn apply_msrs(
    fd: &VcpuFd,
    host: &Host,
    msrs: &[SavedMsr],
    purpose: Purpose,
    deadline_mode: bool,
) -> Result<(), RestoreError> {
    let known = |index: u32| host.msrs.contains(&index);
    // A register that only another kernel knows can be left out if it holds nothing.
    if let Some(m) = msrs.iter().find(|m| !known(m.index) && m.value != 0) {
        return Err(no_place(&format!("MSR {:#x}", m.index)));
    }
    let indices: Vec<u32> = msrs.iter().map(|m| m.index).filter(|&i| known(i)).collect();
    let mut present = read_msrs(fd, &indices);
    present.sort_by_key(|m| m.index);
    let same = |m: &SavedMsr| {
        present
            .binary_search_by_key(&m.index, |p| p.index)
            .is_ok_and(|at| present[at].value == m.value)
    };
    let timed = |index| index == IA32_TSC || index == IA32_TSC_DEADLINE;
    // A register that already has the value is not written: some accept no write at all.
    let mut writes: Vec<SavedMsr> = msrs
        .iter()
        .copied()
        .filter(|m| known(m.index) && !timed(m.index) && !same(m))
        .collect();
    let value = |index| msrs.iter().find(|m| m.index == index).map(|m| m.value);
    let tsc = match purpose {
        Purpose::Reset => Some(0),
        Purpose::Restore => value(IA32_TSC),
    };
    writes.extend(tsc.map(|value| SavedMsr {
        index: IA32_TSC,
        value,
    }));
    if let (Some(deadline), Some(tsc)) = (value(IA32_TSC_DEADLINE), tsc) {
        // Zero with the timer armed: it expired while the vCPU was being saved, and the interrupt
        // may not have reached the local APIC. One too many is harmless, one too few is a hang.
        let expired = deadline == 0 && deadline_mode && purpose == Purpose::Restore;
        let value = if expired { tsc } else { deadline };
        writes.push(SavedMsr {
            index: IA32_TSC_DEADLINE,
            value,
        });
    }
    let refused = write_msrs(fd, &writes);
    match refused.first() {
        Some(m) if purpose == Purpose::Restore && !timed(m.index) => Err(RestoreError::Apply(
            format!("KVM refuses {:#x} for MSR {:#x}", m.value, m.index),
        )),
        _ => Ok(()),
    }
}

/// The guest has measured its TSC; it must go on at that speed.
fn match_tsc_frequency(fd: &VcpuFd, host: &Host, khz: u32) -> Result<(), RestoreError> {
    if host.capabilities.get_tsc_khz == 0 {
        return Ok(()); // nothing to compare with
    }
    let Some(own) = fd.get_tsc_khz().ok().filter(|&own| own != 0) else {
        return Ok(());
    };
    // Up to 250 ppm, time keeping corrects it: so much do calibrations of one host differ.
    if u64::from(own.abs_diff(khz)) * 1_000_000 <= u64::from(own) * 250 {
        return Ok(());
    }
    if host.capabilities.tsc_control != 0 && fd.set_tsc_khz(khz).is_ok() {
        return Ok(());
    }
    Err(RestoreError::Apply(format!(
        "the guest's TSC runs at {khz} kHz, this host's at {own} kHz, and it cannot scale"
    )))
}

fn without_pointers(s: &kvm_sregs2) -> kvm_sregs {
    kvm_sregs {
        cs: s.cs,
        ds: s.ds,
        es: s.es,
        fs: s.fs,
        gs: s.gs,
        ss: s.ss,
        tr: s.tr,
        ldt: s.ldt,
        gdt: s.gdt,
        idt: s.idt,
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        interrupt_bitmap: [0; 4],
    }
}
