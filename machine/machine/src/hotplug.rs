//! Devices that come to a machine and leave it: while it runs, while it rests, and by a reset.
//!
//! ```text
//!   attach ─▶ plugged ──detach: ask──▶ asked ──guest ejects──▶ ejected ──complete──▶ gone
//!                │                       └───────────── reset ────────────────────────▶ │
//!                ├──the guest ejects by itself───────────▶┘                             │
//!                └──detach: force─▶ going ──after a moment, by force again, reset─────▶ ┘
//! ```

use crate::assemble::{Arrival, Ports, Site};
use crate::machine::Machine;
use nyx_device::{AnyKind, BoxError, PciSlots, UnitName};
use nyx_plan::{PlaceError, RemoveError, slot_of};
use nyx_spec::DeviceSpec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a device is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detach {
    /// When the guest has let go of it.
    AskGuest,
    /// Whatever the guest is doing with it: a surprise removal.
    Force,
}

/// How far a removal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detaching {
    /// The guest was asked, and ejects the device when it is ready, or never.
    Asked,
    /// The guest sees an empty slot. The device serves what is in flight until then, to be taken apart
    /// by [`Machine::complete_ejections`].
    Going(Instant),
    /// The device is gone: its backend is closed and its slot is free.
    Gone,
}

/// A device could not come to the machine, which is as it was.
#[derive(Debug, thiserror::Error)]
pub enum DeviceAttachError {
    /// There is no place for it, or it is described wrongly.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It cannot be built.
    #[error("{unit}: {source}")]
    Build {
        /// Unit name.
        unit: String,
        /// Why.
        source: BoxError,
    },
}

/// What a machine remembers of devices on the move.
pub(crate) struct Moves {
    pub(crate) slots: Arc<PciSlots>,
    /// Asked to leave.
    leaving: BTreeSet<UnitName>,
    /// Out of the guest's sight, and still at work for so long.
    going: BTreeMap<UnitName, Instant>,
    /// Left by a reset, and nobody has heard of it yet.
    departed: Vec<UnitName>,
}

impl Moves {
    pub(crate) fn new(slots: Arc<PciSlots>) -> Self {
        Self {
            slots,
            leaving: BTreeSet::new(),
            going: BTreeMap::new(),
            departed: Vec::new(),
        }
    }
}

/// How long a device that is pulled goes on to answer. Linux's virtio drivers look for the device in
/// configuration space, and give up when it is not there; but they wait for requests in flight, and for
/// the device to confirm its reset, and would do so for ever.
const PARTING: Duration = Duration::from_secs(3);

/// What the guest knows of a removal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guest {
    Expects,
    IsSurprised,
}

impl Machine {
    /// Adds the device that `spec` describes, running or at rest: plans its place, opens its backend,
    /// builds it, connects it, and tells the guest that something is in its slot. On an error nothing
    /// of it stays.
    ///
    /// Of `ports`, those for faults, power and backends are used.
    pub fn attach(
        &mut self,
        spec: &DeviceSpec,
        catalog: &[&dyn AnyKind],
        ports: &Ports<'_>,
    ) -> Result<UnitName, DeviceAttachError> {
        let placement = self.plan.place(spec, catalog)?;
        let mut site = Site {
            fabric: &mut self.fabric,
            units: &mut self.units,
            extensions: &self.extensions,
            clock: &self.clock,
            memory: &self.memory,
            vm: &*self.vm,
            catalog,
            ports,
        };
        let arrival = Arrival::Later {
            running: self.running,
        };
        site.build(&placement, arrival)
            .map_err(|source| DeviceAttachError::Build {
                unit: spec.name.clone(),
                source,
            })?;
        let slot = slot_of(&placement);
        self.plan.add(placement);
        if let Some(slot) = slot {
            self.moves.slots.arrived(slot);
        }
        Ok(spec.name.as_str().into())
    }

    /// Has the device called `name` leave. Asking twice asks the guest twice. [`Detach::Force`] gives the
    /// guest of a running machine a moment to notice, the second time none; work in flight then gets
    /// until `deadline` to end.
    pub fn detach(
        &mut self,
        name: &str,
        how: Detach,
        deadline: Instant,
    ) -> Result<Detaching, RemoveError> {
        let placement = self.plan.removable(name)?;
        match how {
            Detach::AskGuest => {
                if let Some(slot) = slot_of(placement) {
                    self.moves.leaving.insert(name.into());
                    self.moves.slots.ask(slot);
                }
                Ok(Detaching::Asked)
            }
            Detach::Force => {
                let slot = slot_of(placement).unwrap_or_default();
                // A guest that has ejected it already is not surprised.
                let ejected = self.moves.slots.ejected() >> slot & 1 != 0;
                let guest = match ejected {
                    true => Guest::Expects,
                    false => Guest::IsSurprised,
                };
                if let (Guest::IsSurprised, true, Some(bdf)) = (guest, self.running, placement.bdf)
                {
                    let until = Instant::now() + PARTING;
                    self.fabric.topology.set_present(bdf, false);
                    self.moves.slots.withdraw(slot);
                    self.moves.going.insert(name.into(), until);
                    return Ok(Detaching::Going(until));
                }
                self.pull(name, guest, deadline);
                Ok(Detaching::Gone)
            }
        }
    }

    /// Takes apart what the guest has ejected, asked or not, and what is [going](Detaching::Going) and
    /// has had its time, and returns the names. To be called when the
    /// [`EjectionSink`](nyx_device::EjectionSink) was, and at that time; nothing to do is no error. Work
    /// in flight gets until `deadline` to end.
    pub fn complete_ejections(&mut self, deadline: Instant) -> Vec<UnitName> {
        let ejected = self.moves.slots.ejected();
        let mut gone = Vec::new();
        let now = Instant::now();
        for slot in (0..32u8).filter(|slot| ejected >> slot & 1 != 0) {
            let name = self.plan.in_slot(slot).map(|p| UnitName::from(&*p.name));
            match name {
                Some(name)
                    if self
                        .moves
                        .going
                        .get(&name)
                        .is_some_and(|until| *until > now) => {}
                Some(name) => {
                    self.pull(&name, Guest::Expects, deadline);
                    gone.push(name);
                }
                None => self.moves.slots.freed(slot),
            }
        }
        gone
    }

    /// The devices that were asked to leave and are still there.
    pub fn leaving(&self) -> impl Iterator<Item = &UnitName> {
        self.moves.leaving.iter()
    }

    /// Withdraws the request to leave: a reset does not remove the device any more, and a guest that
    /// has not heard of the request will not. One that has may eject the device still. Whether there
    /// was a request.
    pub fn retract(&mut self, name: &str) -> bool {
        let asked = self.moves.leaving.remove(name);
        if let Some(slot) = self.plan.removable(name).ok().and_then(slot_of)
            && asked
        {
            self.moves.slots.retract(slot);
        }
        asked
    }

    /// The devices that left by resets since the last call.
    pub fn take_departed(&mut self) -> Vec<UnitName> {
        std::mem::take(&mut self.moves.departed)
    }

    /// A reset ends every removal that is under way, as it does on boards: the guest that was asked is
    /// no more.
    pub(crate) fn complete_removals(&mut self) {
        // At rest there is nothing in flight to wait for.
        let now = Instant::now();
        self.moves.going.clear();
        let mut gone = self.complete_ejections(now);
        while let Some(name) = self.moves.leaving.pop_first() {
            self.pull(&name, Guest::Expects, now);
            gone.push(name);
        }
        self.moves.departed.append(&mut gone);
    }

    /// Forgets requests made of a guest that has been replaced by another.
    pub(crate) fn forget_requests(&mut self) {
        self.moves.leaving.clear();
        self.moves.going.clear();
    }

    fn pull(&mut self, name: &str, guest: Guest, deadline: Instant) {
        // Unreachable first, so that no driver starts it again.
        self.fabric.disconnect(name);
        if let Some(unit) = self.units.remove(name) {
            let drain = unit.stop();
            // What is stuck is dropped all the same; its threads end when their work does.
            let _ = drain.wait(deadline);
            unit.clear();
        }
        self.moves.leaving.remove(name);
        self.moves.going.remove(name);
        let Ok(placement) = self.plan.remove(name) else {
            return;
        };
        match (slot_of(&placement), guest) {
            (Some(slot), Guest::Expects) => self.moves.slots.freed(slot),
            (Some(slot), Guest::IsSurprised) => self.moves.slots.vanished(slot),
            (None, _) => {}
        }
    }
}
