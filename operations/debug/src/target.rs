//! A machine as gdbstub's target: one thread of gdb's for each vCPU.

use crate::arch::{AllRegisters, MSRS, RegisterId, X86_64};
use crate::breakpoints::BreakpointKind;
use crate::monitor;
use crate::paging::Paging;
use crate::server::MachineCommands;
use crate::watch::{Event, Reason, Stepping, Watch};
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume,
    MultiThreadResumeOps, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps,
    MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{
    SingleRegisterAccess, SingleRegisterAccessOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use nyx_hypervisor::{Activity, DebugControl, HvError, VcpuDebug};
use nyx_machine::{DebugError, Debugger};
use std::collections::VecDeque;
use std::sync::Arc;

/// What gdb wants of a vCPU at the next resume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Action {
    /// What it wants of those it does not mention.
    #[default]
    Unsaid,
    Continue,
    Step(Option<(u64, u64)>),
}

/// See the module.
pub(crate) struct GuestTarget {
    // Wiring
    pub(crate) debugger: Debugger,
    pub(crate) watch: Arc<Watch>,
    pub(crate) commands: Arc<dyn MachineCommands>,
    // State
    actions: Vec<Action>,
    /// vCPUs that are not mentioned stay put.
    locked: bool,
    /// What each vCPU was last told.
    applied: Vec<DebugControl>,
    /// Stops that came while another was being told: watchpoints, which would not come again.
    waiting: VecDeque<(usize, Reason)>,
    /// The vCPU that stopped last; `monitor` and breakpoints, for which gdb names none, mean it.
    pub(crate) current: usize,
    // Configuration
    /// INT3 in memory stops a vCPU.
    pub(crate) int3: bool,
    /// Addresses are guest-physical.
    pub(crate) physical: bool,
    /// Interrupts wait while a vCPU steps.
    pub(crate) quiet_steps: bool,
}

/// gdb counts threads from one.
fn index(tid: Tid) -> usize {
    tid.get() - 1
}

pub(crate) fn tid(index: usize) -> Tid {
    Tid::MIN.saturating_add(index)
}

fn all(vcpu: &mut dyn VcpuDebug) -> Result<AllRegisters, HvError> {
    let mut all = AllRegisters {
        cpu: vcpu.registers()?,
        fpu: vcpu.fpu()?,
        ..AllRegisters::default()
    };
    let values = vcpu.msrs(&MSRS.map(|(index, _)| index));
    for (place, value) in all.msrs.iter_mut().zip(values) {
        *place = value;
    }
    Ok(all)
}

/// Writes what differs; `false` if an MSR does not take its value.
fn set_all(vcpu: &mut dyn VcpuDebug, wanted: &AllRegisters) -> Result<bool, HvError> {
    let before = all(vcpu)?;
    if before.cpu != wanted.cpu {
        vcpu.set_registers(&wanted.cpu)?;
    }
    if before.fpu != wanted.fpu {
        let mut fpu = wanted.fpu;
        // What a vCPU lacks, gdb sends as zeros.
        fpu.ymm_high = before.fpu.ymm_high.and(fpu.ymm_high);
        vcpu.set_fpu(&fpu)?;
    }
    let mut taken = true;
    let values = before.msrs.iter().zip(&wanted.msrs);
    for ((before, wanted), (index, _)) in values.zip(MSRS) {
        if let (Some(before), Some(wanted)) = (before, wanted)
            && before != wanted
        {
            taken &= vcpu.set_msr(index, *wanted);
        }
    }
    Ok(taken)
}

impl GuestTarget {
    pub(crate) fn new(
        debugger: Debugger,
        watch: Arc<Watch>,
        commands: Arc<dyn MachineCommands>,
    ) -> Self {
        let vcpus = debugger.port().vcpus();
        let int3 = debugger.port().vcpu(0, |vcpu| vcpu.stops_at_int3());
        Self {
            int3: int3.unwrap_or(true),
            debugger,
            watch,
            commands,
            actions: vec![Action::Unsaid; vcpus],
            locked: false,
            applied: vec![DebugControl::default(); vcpus],
            waiting: VecDeque::new(),
            current: 0,
            physical: false,
            quiet_steps: true,
        }
    }

    pub(crate) fn vcpus(&self) -> usize {
        self.actions.len()
    }

    /// Runs `job` on a vCPU, with what it or the hypervisor cannot do as an error that gdb shows.
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        index: usize,
        job: impl FnOnce(&mut dyn VcpuDebug) -> Result<R, HvError> + Send + 'static,
    ) -> Result<R, DebugError> {
        self.debugger
            .port()
            .vcpu(index, job)?
            .map_err(DebugError::Hypervisor)
    }

    pub(crate) fn paging(&self, index: usize) -> Result<Paging, DebugError> {
        self.ask(index, |vcpu| vcpu.registers())
            .map(|r| Paging::of(&r))
    }

    /// Brings all vCPUs to rest after one has stopped (or shall), and sorts what others met
    /// meanwhile.
    pub(crate) fn stop_all(&mut self) {
        if let Err(e) = self.debugger.hold_all() {
            tracing::warn!(target: "debug", "not everything stopped: {e}");
        }
        let mut watched = self.watch.lock();
        watched.stepping.fill(Stepping::default());
        let ended = watched.ended;
        for event in watched.events.drain(..) {
            // An instruction with a breakpoint has not run; it will be met again.
            if let Event::Stopped(vcpu, reason @ Reason::Watch(..)) = event {
                self.waiting.push_back((vcpu, reason));
            }
        }
        if ended {
            watched.events.push_back(Event::Ended);
        }
    }

    /// What to tell gdb of `reason`.
    pub(crate) fn stop_reason(
        &mut self,
        vcpu: usize,
        reason: Reason,
    ) -> MultiThreadStopReason<u64> {
        self.current = vcpu;
        let tid = tid(vcpu);
        match reason {
            Reason::Software => MultiThreadStopReason::SwBreak(tid),
            Reason::Hardware => MultiThreadStopReason::HwBreak(tid),
            Reason::Step => MultiThreadStopReason::SignalWithThread {
                tid,
                signal: Signal::SIGTRAP,
            },
            Reason::Watch(kind, addr) => MultiThreadStopReason::Watch {
                tid,
                kind: match kind {
                    BreakpointKind::Read(_) => WatchKind::Read,
                    BreakpointKind::Access(_) => WatchKind::ReadWrite,
                    _ => WatchKind::Write,
                },
                addr,
            },
        }
    }

    /// The reason of a stop on request.
    pub(crate) fn interrupted(&self) -> MultiThreadStopReason<u64> {
        MultiThreadStopReason::SignalWithThread {
            tid: tid(self.current),
            signal: Signal::SIGINT,
        }
    }

    /// Leaves no trace in the guest. All vCPUs must rest.
    pub(crate) fn clear_breakpoints(&mut self) {
        let memory = self.watch.memory();
        self.watch.lock().breakpoints.clear(&memory);
    }

    /// Takes a breakpoint; gdb asks while everything rests.
    fn add(&mut self, address: u64, kind: BreakpointKind) -> TargetResult<bool, Self> {
        // Where one vCPU has nothing mapped, another may.
        let others = (0..self.vcpus()).filter(|n| *n != self.current);
        let mut tables: Vec<Paging> = Vec::new();
        for vcpu in std::iter::once(self.current).chain(others) {
            if let Ok(paging) = self.paging(vcpu)
                && !tables.contains(&paging)
            {
                tables.push(paging);
            }
        }
        let memory = self.watch.memory();
        let breakpoints = &mut self.watch.lock().breakpoints;
        Ok(match kind {
            BreakpointKind::Software if self.int3 => {
                breakpoints.add_software(&memory, &tables, address)
            }
            kind => breakpoints.add_hardware(&memory, tables.first(), address, kind),
        })
    }

    fn remove(&mut self, address: u64, kind: BreakpointKind) -> bool {
        let memory = self.watch.memory();
        let breakpoints = &mut self.watch.lock().breakpoints;
        match kind {
            BreakpointKind::Software => breakpoints.remove_software(&memory, address),
            kind => breakpoints.remove_hardware(address, kind),
        }
    }
}

impl Drop for GuestTarget {
    fn drop(&mut self) {
        // The debugger, dropped after this, lets the guest go on.
        if let Err(e) = self.debugger.hold_all() {
            tracing::debug!(target: "debug", "leaving: {e}");
        }
        self.clear_breakpoints();
    }
}

/// What gdb sees of an error that concerns one request only.
fn refused<E>(_: DebugError) -> TargetError<E> {
    TargetError::NonFatal
}

impl Target for GuestTarget {
    type Arch = X86_64;
    type Error = DebugError;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64, DebugError> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for GuestTarget {
    fn read_registers(&mut self, registers: &mut AllRegisters, tid: Tid) -> TargetResult<(), Self> {
        *registers = self.ask(index(tid), all).map_err(refused)?;
        Ok(())
    }

    fn write_registers(&mut self, registers: &AllRegisters, tid: Tid) -> TargetResult<(), Self> {
        let wanted = registers.clone();
        match self.ask(index(tid), move |vcpu| set_all(vcpu, &wanted)) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(TargetError::NonFatal),
        }
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(
        &mut self,
        address: u64,
        bytes: &mut [u8],
        tid: Tid,
    ) -> TargetResult<usize, Self> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let memory = self.watch.memory();
        let read = if self.physical {
            let read = memory.read(address, bytes);
            let watched = self.watch.lock();
            watched.breakpoints.hide(address, &mut bytes[..read]);
            read
        } else {
            let paging = self.paging(index(tid)).map_err(refused)?;
            let watched = self.watch.lock();
            memory.translated(&paging, address, bytes.len(), |at, range| {
                let part = bytes.get_mut(range)?;
                let len = part.len();
                (memory.read(at, part) == len).then_some(())?;
                watched.breakpoints.hide(at, part);
                Some(())
            })
        };
        match read {
            0 => Err(TargetError::Errno(14)), // EFAULT
            read => Ok(read),
        }
    }

    fn write_addrs(&mut self, address: u64, bytes: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let memory = self.watch.memory();
        let mut bytes = bytes.to_vec();
        let len = bytes.len();
        let written = if self.physical {
            self.watch.lock().breakpoints.keep(address, &mut bytes);
            memory.write(address, &bytes)
        } else {
            let paging = self.paging(index(tid)).map_err(refused)?;
            let mut watched = self.watch.lock();
            memory.translated(&paging, address, len, |at, range| {
                let part = bytes.get_mut(range)?;
                watched.breakpoints.keep(at, part);
                (memory.write(at, part) == part.len()).then_some(())
            })
        };
        if written == len {
            Ok(())
        } else {
            Err(TargetError::Errno(14))
        }
    }

    fn list_active_threads(&mut self, each: &mut dyn FnMut(Tid)) -> Result<(), DebugError> {
        (0..self.vcpus()).map(tid).for_each(each);
        Ok(())
    }

    fn is_thread_alive(&mut self, tid: Tid) -> Result<bool, DebugError> {
        Ok(index(tid) < self.vcpus())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for GuestTarget {
    fn read_register(
        &mut self,
        tid: Tid,
        register: RegisterId,
        bytes: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let all = self.ask(index(tid), all).map_err(refused)?;
        Ok(all.get(register, bytes))
    }

    fn write_register(
        &mut self,
        tid: Tid,
        register: RegisterId,
        bytes: &[u8],
    ) -> TargetResult<(), Self> {
        let bytes = bytes.to_vec();
        let set = self.ask(index(tid), move |vcpu| {
            let mut wanted = all(vcpu)?;
            match wanted.set(register, &bytes) {
                Some(()) => set_all(vcpu, &wanted),
                None => Ok(false),
            }
        });
        match set {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(TargetError::NonFatal),
        }
    }
}

impl ThreadExtraInfo for GuestTarget {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, DebugError> {
        let index = index(tid);
        let state = self.ask(index, |vcpu| Ok((vcpu.registers()?, vcpu.activity()?)));
        let text = match state {
            Ok((_, Activity::Waiting)) => format!("vCPU {index}, not started"),
            Ok((r, activity)) => {
                let halted = match activity {
                    Activity::Halted => ", halted",
                    _ => "",
                };
                format!("vCPU {index}, ring {}{halted}", r.ss.dpl)
            }
            Err(e) => format!("vCPU {index}, {e}"),
        };
        let len = text.len().min(buffer.len());
        buffer[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl MultiThreadResume for GuestTarget {
    fn resume(&mut self) -> Result<(), DebugError> {
        while let Some((vcpu, reason)) = self.waiting.pop_front() {
            let still = match reason {
                Reason::Watch(kind, address) => {
                    self.watch.lock().breakpoints.watches(kind, address)
                }
                _ => false,
            };
            if still {
                self.watch.tell(Event::Stopped(vcpu, reason));
                return Ok(());
            }
        }
        if self.watch.lock().ended {
            self.watch.tell(Event::Ended);
            return Ok(());
        }
        let base = self.watch.lock().breakpoints.control();
        let mut going = Vec::new();
        for vcpu in 0..self.vcpus() {
            let stepping = match self.actions.get(vcpu) {
                Some(Action::Step(range)) => Stepping {
                    on: true,
                    range: *range,
                },
                Some(Action::Unsaid) if self.locked => continue,
                _ => Stepping::default(),
            };
            let control = DebugControl {
                step: stepping.on,
                block_interrupts: stepping.on && self.quiet_steps,
                ..base
            };
            if self.applied.get(vcpu) != Some(&control) {
                match self.debugger.control(vcpu, control) {
                    // It has ended: there is nothing to stop.
                    Err(DebugError::NoVcpu(_)) => {}
                    other => other?,
                }
                if let Some(applied) = self.applied.get_mut(vcpu) {
                    *applied = control;
                }
            }
            if let Some(place) = self.watch.lock().stepping.get_mut(vcpu) {
                *place = stepping;
            }
            going.push(vcpu);
        }
        for vcpu in going {
            self.debugger.release(vcpu);
        }
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), DebugError> {
        self.actions.fill(Action::Unsaid);
        self.locked = false;
        Ok(())
    }

    // Signals mean nothing to a processor.
    fn set_resume_action_continue(
        &mut self,
        tid: Tid,
        _: Option<Signal>,
    ) -> Result<(), DebugError> {
        self.set_action(tid, Action::Continue)
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl GuestTarget {
    fn set_action(&mut self, tid: Tid, action: Action) -> Result<(), DebugError> {
        // A thread that does not exist was told to do something: nothing comes of it. The first
        // action that names a thread counts (gdb's manual, vCont).
        if let Some(place @ Action::Unsaid) = self.actions.get_mut(index(tid)) {
            *place = action;
        }
        Ok(())
    }
}

impl MultiThreadSingleStep for GuestTarget {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), DebugError> {
        self.set_action(tid, Action::Step(None))
    }
}

impl MultiThreadRangeStepping for GuestTarget {
    fn set_resume_action_range_step(
        &mut self,
        tid: Tid,
        start: u64,
        end: u64,
    ) -> Result<(), DebugError> {
        self.set_action(tid, Action::Step(Some((start, end))))
    }
}

impl MultiThreadSchedulerLocking for GuestTarget {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), DebugError> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for GuestTarget {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for GuestTarget {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.add(address, BreakpointKind::Software)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(address, BreakpointKind::Software))
    }
}

impl HwBreakpoint for GuestTarget {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.add(address, BreakpointKind::Hardware)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(address, BreakpointKind::Hardware))
    }
}

/// The kind of a watchpoint; lengths that no processor has are refused later.
fn watchpoint(kind: WatchKind, len: u64) -> BreakpointKind {
    let len = u8::try_from(len).unwrap_or(0);
    match kind {
        WatchKind::Write => BreakpointKind::Write(len),
        WatchKind::Read => BreakpointKind::Read(len),
        WatchKind::ReadWrite => BreakpointKind::Access(len),
    }
}

impl HwWatchpoint for GuestTarget {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.add(address, watchpoint(kind, len))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.remove(address, watchpoint(kind, len)))
    }
}

impl MonitorCmd for GuestTarget {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), DebugError> {
        let text = String::from_utf8_lossy(command);
        out.write_raw(monitor::run(self, &text).as_bytes());
        out.flush();
        Ok(())
    }
}
