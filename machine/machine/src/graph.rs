//! All units of a machine, and the proof that they are at rest.

use nyx_device::{AnyUnit, Drain, ResetKind, Stuck, UnitName};
use nyx_state::{Blob, RestoreError, SaveError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// All units of a machine, in stop order: rank 0 holds the bus masters, higher ranks are nearer to
/// the CPUs' interrupt controllers. Start is the reverse.
#[derive(Default)]
pub struct UnitGraph {
    units: BTreeMap<UnitName, (u32, Arc<dyn AnyUnit>)>,
}

/// Units that did not quiesce in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not quiesced: {}", .0.iter().map(|n| &**n).collect::<Vec<_>>().join(", "))]
pub struct StuckUnits(pub Vec<UnitName>);

/// Proof that every unit is stopped and drained.
///
/// Save, restore and reset exist only here, so "called while running" is not an assertion but a
/// program that does not compile.
#[must_use = "dropping it resumes the machine"]
pub struct Quiesced<'m> {
    graph: &'m UnitGraph,
    resume: bool,
}

/// Units by rank.
type Ranks<'g> = BTreeMap<u32, Vec<(&'g UnitName, &'g Arc<dyn AnyUnit>)>>;

impl UnitGraph {
    /// Adds a unit; boot and hot-plug use the same call. A unit of the same name is replaced.
    pub fn add(&mut self, name: UnitName, rank: u32, unit: Arc<dyn AnyUnit>) {
        self.units.insert(name, (rank, unit));
    }

    /// The unit called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn AnyUnit>> {
        self.units.get(name).map(|(_, unit)| unit)
    }

    /// Takes a unit out; it is not stopped.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Arc<dyn AnyUnit>> {
        self.units.remove(name).map(|(_, unit)| unit)
    }

    /// Every unit, by name.
    pub fn all(&self) -> BTreeMap<UnitName, Arc<dyn AnyUnit>> {
        let unit =
            |(name, (_, unit)): (&UnitName, &(u32, Arc<dyn AnyUnit>))| (name.clone(), unit.clone());
        self.units.iter().map(unit).collect()
    }

    /// Starts every unit, those nearest to the CPUs first.
    pub fn start(&self) {
        for units in self.ranks().into_values().rev() {
            units.into_iter().for_each(|(_, unit)| unit.start());
        }
    }

    fn ranks(&self) -> Ranks<'_> {
        let mut ranks = Ranks::new();
        for (name, (rank, unit)) in &self.units {
            ranks.entry(*rank).or_default().push((name, unit));
        }
        ranks
    }

    /// Stops rank by rank, each rank in parallel. On failure the units run on and the stuck ones
    /// are named, so that they can be quarantined and the whole tried again.
    pub fn quiesce(&self, deadline: Instant) -> Result<Quiesced<'_>, StuckUnits> {
        let mut stuck = Vec::new();
        for units in self.ranks().into_values() {
            let drains: Vec<(&UnitName, Drain)> = units
                .into_iter()
                .map(|(name, unit)| (name, unit.stop()))
                .collect();
            for (name, drain) in drains {
                if let Err(Stuck) = drain.wait(deadline) {
                    stuck.push(name.clone());
                }
            }
        }
        let quiesced = Quiesced {
            graph: self,
            resume: true,
        };
        if stuck.is_empty() {
            Ok(quiesced)
        } else {
            Err(StuckUnits(stuck))
        }
    }

    /// Lets every unit hand over what it holds for the outside, for as long as until `deadline`.
    pub(crate) fn finish(&self, deadline: Instant) {
        let drains: Vec<_> = self.units.values().map(|(_, unit)| unit.finish()).collect();
        for drain in drains {
            // Output that nobody takes is lost with the machine.
            let _ = drain.wait(deadline);
        }
    }

    /// The graph as quiesced, when it was never started or was left stopped.
    pub(crate) fn at_rest(&self) -> Quiesced<'_> {
        Quiesced {
            graph: self,
            resume: false,
        }
    }

    /// Drops every unit.
    pub fn clear(&mut self) {
        for (_, unit) in self.units.values() {
            unit.clear();
        }
        self.units.clear();
    }
}

impl Quiesced<'_> {
    /// Saves every unit; empty slots are left out.
    pub fn save(&self) -> Result<BTreeMap<UnitName, Blob>, (UnitName, SaveError)> {
        let mut blobs = BTreeMap::new();
        for (name, (_, unit)) in &self.graph.units {
            if let Some(saved) = unit.save() {
                blobs.insert(name.clone(), saved.map_err(|e| (name.clone(), e))?);
            }
        }
        Ok(blobs)
    }

    /// Restores every unit; each must have a blob and each blob a unit.
    pub fn restore(
        &mut self,
        mut blobs: BTreeMap<UnitName, Blob>,
    ) -> Result<(), (UnitName, RestoreError)> {
        for (name, (_, unit)) in &self.graph.units {
            let Some(blob) = blobs.remove(name) else {
                return Err((
                    name.clone(),
                    RestoreError::Invalid("missing from the snapshot"),
                ));
            };
            unit.restore(&blob).map_err(|e| (name.clone(), e))?;
        }
        match blobs.into_keys().next() {
            Some(name) => Err((name, RestoreError::Invalid("no such unit in this machine"))),
            None => Ok(()),
        }
    }

    /// Resets every unit, bus masters first.
    pub fn reset(&mut self, kind: ResetKind) {
        for units in self.graph.ranks().into_values() {
            units.into_iter().for_each(|(_, unit)| unit.reset(kind));
        }
    }

    /// Leaves the units stopped.
    pub(crate) fn keep(mut self) {
        self.resume = false;
    }
}

impl Drop for Quiesced<'_> {
    fn drop(&mut self) {
        if self.resume {
            self.graph.start();
        }
    }
}
