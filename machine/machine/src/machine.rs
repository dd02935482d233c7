//! A machine: what it is made of, and its transitions.

use crate::debug::DebugPort;
use crate::fabric::Fabric;
use crate::graph::{Quiesced, StuckUnits, UnitGraph};
use crate::hotplug::Moves;
use crate::vcpu::VcpuSet;
use crate::view::View;
use nyx_device::{AnyUnit, Extensions, ResetKind, UnitName, VmClock};
use nyx_hypervisor::{EntryState, Vm};
use nyx_inspect::{Inspect, Visitor};
use nyx_memory::{DmaSpace, Memory};
use nyx_plan::MachinePlan;
use nyx_state::{Blob, RestoreError, SaveError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// A virtual machine.
///
/// Fields are dropped in this order: vCPU threads end first, then devices with their workers, then
/// what they stood on.
pub struct Machine {
    pub(crate) vcpus: VcpuSet,
    pub(crate) units: UnitGraph,
    pub(crate) fabric: Fabric,
    pub(crate) extensions: Extensions,
    pub(crate) clock: VmClock,
    pub(crate) memory: Memory,
    pub(crate) vm: Box<dyn Vm>,
    pub(crate) plan: MachinePlan,
    pub(crate) moves: Moves,
    pub(crate) running: bool,
}

/// Names under which the machine's own state stands among the units' blobs.
const VM_BLOB: &str = "vm";
const CLOCK_BLOB: &str = "clock";

impl Machine {
    /// Where everything is.
    pub fn plan(&self) -> &MachinePlan {
        &self.plan
    }

    /// Guest memory, untranslated.
    pub fn ram(&self) -> DmaSpace {
        self.memory.space()
    }

    /// A debugger's way to vCPUs and memory.
    pub fn debug_port(&self) -> DebugPort {
        DebugPort::new(self.vcpus.reins(), self.memory.space())
    }

    /// The unit called `name`.
    pub fn unit(&self, name: &str) -> Option<&Arc<dyn AnyUnit>> {
        self.units.get(name)
    }

    /// Handles that device kinds offered to the outside, by type: a power button.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// What can be seen of it, now and later, without it.
    pub fn view(&self) -> View {
        View {
            vcpus: self.vcpus.counters(),
            units: self.units.all(),
            ports: self.fabric.pio.clone(),
            memory: self.fabric.mmio.clone(),
        }
    }

    /// Guest time.
    pub fn clock(&self) -> VmClock {
        self.clock.clone()
    }

    /// Whether vCPUs may run.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Sets vCPU 0 to begin at `entry`. Only before the start or while quiesced.
    pub fn set_entry(&self, entry: EntryState) -> Result<(), String> {
        self.vcpus
            .with(0, move |vcpu| vcpu.set_entry(&entry))
            .ok_or_else(|| "there is no vCPU".to_string())?
            .map_err(|e| e.to_string())
    }

    /// Lets time, units and vCPUs run.
    pub fn start(&mut self) {
        self.clock.start();
        self.units.start();
        self.vcpus.run();
        self.running = true;
    }

    /// Lets a machine that was paused run on, and tells the guest's watchdogs that its time stood still.
    pub fn resume(&mut self) {
        for index in 0..self.vcpus.len() {
            // A vCPU that has ended says so itself.
            let _ = self.vcpus.with(index, |vcpu| vcpu.note_pause());
        }
        self.start();
    }

    /// Ends the machine: brings it to rest and lets units hand over output they still hold, each
    /// for as long as until `deadline`. What does not get there by then is abandoned.
    pub fn finish(&mut self, deadline: Instant) {
        if self.quiesce(deadline).map(QuiescedMachine::keep).is_err() {
            // Units may stay busy, but the guest does not go on after its end.
            self.vcpus.rest(deadline);
        }
        self.units.finish(deadline);
        self.vcpus.farewell();
    }

    /// Injects an NMI into vCPU 0.
    pub fn nmi(&self) {
        self.vcpus.nmi(0);
    }

    /// Brings the machine to rest: vCPUs first, then time, then units rank by rank. On failure it
    /// runs on and the stuck units are named.
    pub fn quiesce(&mut self, deadline: Instant) -> Result<QuiescedMachine<'_>, StuckUnits> {
        let was_running = self.running;
        if was_running {
            if !self.vcpus.rest(deadline) {
                self.vcpus.run();
                return Err(StuckUnits(vec!["vcpus".into()]));
            }
            self.clock.stop();
            match self.units.quiesce(deadline) {
                Ok(quiesced) => quiesced.keep(),
                Err(stuck) => {
                    self.clock.start();
                    self.vcpus.run();
                    return Err(stuck);
                }
            }
            self.running = false;
        }
        Ok(QuiescedMachine {
            machine: self,
            resume: was_running,
        })
    }
}

/// Proof that the machine is at rest. Dropping it resumes a machine that ran before.
#[must_use = "dropping it resumes the machine"]
pub struct QuiescedMachine<'m> {
    machine: &'m mut Machine,
    resume: bool,
}

impl QuiescedMachine<'_> {
    fn units(&self) -> Quiesced<'_> {
        self.machine.units.at_rest()
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        self.machine
    }

    /// Leaves the machine at rest.
    pub fn keep(mut self) {
        self.resume = false;
    }

    /// Lets the machine run from here, even if it did not before.
    pub fn run(mut self) {
        self.resume = true;
    }

    /// Saves everything but memory, by unit.
    pub fn save(&self) -> Result<BTreeMap<UnitName, Blob>, (UnitName, SaveError)> {
        let machine = &*self.machine;
        let mut blobs = self.units().save()?;
        for index in 0..machine.vcpus.len() {
            let name: UnitName = format!("vcpu{index}").into();
            let saved = machine
                .vcpus
                .with(index, |vcpu| vcpu.save())
                .unwrap_or(Err(SaveError::Unsupported("the vCPU has ended")));
            blobs.insert(name.clone(), saved.map_err(|e| (name, e))?);
        }
        let vm = machine.vm.save().map_err(|e| (VM_BLOB.into(), e))?;
        blobs.insert(VM_BLOB.into(), vm);
        let nanos = u64::try_from(machine.clock.now().as_nanos()).unwrap_or(u64::MAX);
        let clock = Blob {
            name: "clock/1".into(),
            bytes: nanos.to_le_bytes().into(),
        };
        blobs.insert(CLOCK_BLOB.into(), clock);
        Ok(blobs)
    }

    /// Re-applies what [`QuiescedMachine::save`] captured, on a machine of the same plan. Memory
    /// must be in place already. A machine that was restored in part is left at rest.
    pub fn restore(
        &mut self,
        blobs: BTreeMap<UnitName, Blob>,
    ) -> Result<(), (UnitName, RestoreError)> {
        self.machine.forget_requests();
        let applied = self.apply(blobs);
        self.resume &= applied.is_ok();
        applied
    }

    fn apply(
        &mut self,
        mut blobs: BTreeMap<UnitName, Blob>,
    ) -> Result<(), (UnitName, RestoreError)> {
        let machine = &*self.machine;
        let mut take = |name: &str| {
            let missing = RestoreError::Invalid("missing from the snapshot");
            blobs
                .remove(name)
                .ok_or_else(|| (UnitName::from(name), missing))
        };
        let clock = take(CLOCK_BLOB)?;
        let bytes: [u8; 8] = clock.bytes.as_slice().try_into().map_err(|_| {
            (
                UnitName::from(CLOCK_BLOB),
                RestoreError::Invalid("a clock of another size"),
            )
        })?;
        machine
            .clock
            .set(std::time::Duration::from_nanos(u64::from_le_bytes(bytes)));
        let vm = take(VM_BLOB)?;
        for index in 0..machine.vcpus.len() {
            let name = format!("vcpu{index}");
            let blob = take(&name)?;
            machine
                .vcpus
                .with(index, move |vcpu| vcpu.restore(&blob))
                .unwrap_or(Err(RestoreError::Invalid("the vCPU has ended")))
                .map_err(|e| (name.into(), e))?;
        }
        // The VM's clock goes on from where it was saved, once the vCPUs' TSCs are right.
        machine.vm.restore(&vm).map_err(|e| (VM_BLOB.into(), e))?;
        self.units().restore(blobs)
    }

    /// Resets units and vCPUs. Memory keeps its content. Removals under way are completed, see
    /// [`Machine::take_departed`]. A machine that was reset in part is left
    /// at rest.
    pub fn reset(&mut self, kind: ResetKind) -> Result<(), String> {
        let done = self.reset_all(kind);
        self.resume &= done.is_ok();
        done
    }

    fn reset_all(&mut self, kind: ResetKind) -> Result<(), String> {
        self.machine.complete_removals();
        self.units().reset(kind);
        for index in 0..self.machine.vcpus.len() {
            self.machine
                .vcpus
                .with(index, |vcpu| vcpu.reset())
                .ok_or_else(|| format!("vCPU {index} has ended"))?
                .map_err(|e| format!("vCPU {index}: {e}"))?;
        }
        Ok(())
    }
}

impl Drop for QuiescedMachine<'_> {
    fn drop(&mut self) {
        if self.resume {
            self.machine.start();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.vcpus.end();
        self.units.clear();
    }
}

impl Inspect for Machine {
    fn inspect(&self, v: &mut dyn Visitor) {
        self.view().inspect(v);
    }
}
