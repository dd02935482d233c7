//! Looks at every debug exit on the vCPU's own thread: is it the debugger's or the guest's own?

use crate::breakpoints::{BreakpointKind, Breakpoints, Met};
use crate::memory::Physical;
use crate::paging::Paging;
use nyx_hypervisor::{DebugStop, Registers, VcpuDebug};
use nyx_machine::DebugSink;
use nyx_memory::DmaSpace;
use nyx_reactor::EventFd;
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;

/// What the server hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A vCPU stopped and stays held.
    Stopped(usize, Reason),
    /// The machine has ended.
    Ended,
}

/// Why a vCPU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Software,
    Hardware,
    Watch(BreakpointKind, u64),
    Step,
}

/// How a vCPU steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stepping {
    pub(crate) on: bool,
    /// Go on stepping while the instruction lies in here.
    pub(crate) range: Option<(u64, u64)>,
}

/// What the server and the vCPUs share. Never locked while a vCPU is waited for.
#[derive(Default)]
pub(crate) struct Watched {
    pub(crate) breakpoints: Breakpoints,
    pub(crate) stepping: Vec<Stepping>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) ended: bool,
}

pub(crate) struct Watch {
    memory: DmaSpace,
    watched: Mutex<Watched>,
    wake: Arc<EventFd>,
}

impl Watch {
    pub(crate) fn new(memory: DmaSpace, vcpus: usize, wake: Arc<EventFd>) -> Self {
        let watched = Watched {
            stepping: vec![Stepping::default(); vcpus],
            ..Watched::default()
        };
        Self {
            memory,
            watched: Mutex::new(watched),
            wake,
        }
    }

    pub(crate) fn memory(&self) -> Physical<'_> {
        Physical(&self.memory)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock()
    }

    /// Puts `event` where the server looks.
    pub(crate) fn tell(&self, event: Event) {
        self.lock().events.push_back(event);
        self.wake.signal();
    }

    /// The reason if the debugger waits for this stop; `Err` if the guest does.
    fn judge(
        &self,
        vcpu: usize,
        stop: &DebugStop,
        registers: &Registers,
    ) -> Result<Option<Reason>, ()> {
        let (memory, paging) = (self.memory(), Paging::of(registers));
        let mut watched = self.lock();
        if stop.exception == DebugStop::BP {
            return match watched.breakpoints.met_int3(&memory, &paging, stop.pc) {
                true => Ok(Some(Reason::Software)),
                false => Err(()),
            };
        }
        let met = stop
            .met()
            .find_map(|n| watched.breakpoints.met_hardware(&memory, &paging, n));
        let reason = met.map(|met| match met {
            Met::Software => Reason::Software,
            Met::Hardware => Reason::Hardware,
            Met::Watch(kind, address) => Reason::Watch(kind, address),
        });
        if reason.is_some() || !stop.is_step() {
            return Ok(reason);
        }
        match watched.stepping.get(vcpu) {
            Some(Stepping { on: true, range }) => Ok(match range {
                Some((start, end)) if (*start..*end).contains(&stop.pc) => None,
                _ => Some(Reason::Step),
            }),
            // The guest steps through itself.
            _ => Err(()),
        }
    }
}

impl DebugSink for Watch {
    fn stopped(&self, vcpu: u32, stop: &DebugStop, state: &mut dyn VcpuDebug) -> bool {
        let Ok(registers) = state.registers() else {
            return false;
        };
        let vcpu = vcpu as usize;
        match self.judge(vcpu, stop, &registers) {
            Ok(None) => false,
            Ok(Some(reason)) => {
                if stop.exception == DebugStop::BP && registers.rip == stop.pc.wrapping_add(1) {
                    // Some processors report INT3 behind it; the instruction that it hides is next.
                    let _ = state.set_registers(&Registers {
                        rip: stop.pc,
                        ..registers
                    });
                }
                self.tell(Event::Stopped(vcpu, reason));
                true
            }
            Err(()) => {
                if let Err(e) = state.return_to_guest(stop) {
                    tracing::warn!(target: "debug", vcpu, "cannot give the guest its exception: {e}");
                }
                false
            }
        }
    }

    fn starting(&self) {
        let memory = self.memory();
        self.lock().breakpoints.renew(&memory);
    }

    fn ended(&self) {
        let before = std::mem::replace(&mut self.lock().ended, true);
        if !before {
            self.tell(Event::Ended);
        }
    }
}
