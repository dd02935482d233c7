//! The root complex's routing of configuration accesses.

use crate::Function;
use crate::spec::header;
use arc_swap::ArcSwap;
use nyx_device::{Bdf, Slot};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A function could not be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The address is taken.
    #[error("there is a function at {0} already")]
    Occupied(Bdf),
    /// Device numbers end at 31, function numbers at 7.
    #[error("{0} is not an address")]
    NoAddress(Bdf),
}

type Table = BTreeMap<u16, Place>;

/// A function, and whether it answers.
#[derive(Clone)]
struct Place {
    slot: Arc<Slot<Function>>,
    present: Arc<AtomicBool>,
}

impl Place {
    fn is_present(&self) -> bool {
        self.present.load(Ordering::Acquire)
    }
}

#[derive(Default)]
struct Routes {
    table: ArcSwap<Table>,
    edit: Mutex<()>,
}

/// Every PCI function by its address. Cloning gives another handle of the same topology.
///
/// Lookups are wait-free: the table is replaced, never edited. A function that is absent, or whose
/// slot is empty, reads as ones and ignores writes, which is how a root complex ends an unclaimed
/// configuration access.
#[derive(Clone, Default)]
pub struct Topology {
    routes: Arc<Routes>,
}

/// A function's place in the topology. Dropping it detaches the function.
#[must_use = "dropping an attachment detaches the function"]
pub struct Attachment {
    routes: Arc<Routes>,
    rid: u16,
}

impl Topology {
    /// Makes the function in `slot` answer at `bdf`.
    pub fn attach(&self, bdf: Bdf, slot: Arc<Slot<Function>>) -> Result<Attachment, AttachError> {
        if bdf.device > 31 || bdf.function > 7 {
            return Err(AttachError::NoAddress(bdf));
        }
        let rid = bdf.rid().0;
        let _edit = self.routes.edit.lock();
        let mut table = Table::clone(&self.routes.table.load());
        if table.contains_key(&rid) {
            return Err(AttachError::Occupied(bdf));
        }
        let present = Arc::new(AtomicBool::new(true));
        table.insert(rid, Place { slot, present });
        self.routes.table.store(Arc::new(table));
        Ok(Attachment {
            routes: self.routes.clone(),
            rid,
        })
    }

    /// Reads configuration space at `offset`.
    pub fn read(&self, bdf: Bdf, offset: u16, data: &mut [u8]) {
        let table = self.routes.table.load();
        let rid = bdf.rid().0;
        let done = table
            .get(&rid)
            .filter(|place| place.is_present())
            .and_then(|place| {
                place
                    .slot
                    .with(|function| function.config_read(offset, data))
            });
        if done.is_none() {
            data.fill(0xff);
            return;
        }
        // PCI Local Bus 3.0 §6.2.1: software looks for functions 1 to 7 only where function 0 says
        // that there are some.
        let kind = header::TYPE
            .checked_sub(usize::from(offset))
            .and_then(|at| data.get_mut(at));
        if let Some(kind) = kind
            && table.range(rid & !7..=rid | 7).nth(1).is_some()
        {
            *kind |= header::MULTI_FUNCTION;
        }
    }

    /// Writes configuration space at `offset`.
    pub fn write(&self, bdf: Bdf, offset: u16, data: &[u8]) {
        let table = self.routes.table.load();
        if let Some(place) = table.get(&bdf.rid().0).filter(|place| place.is_present()) {
            place
                .slot
                .with(|function| function.config_write(offset, data));
        }
    }

    /// Makes the function at `bdf`, if there is one, answer or not: one that its guest has ejected
    /// is not there any more, though it is still to be taken apart.
    pub fn set_present(&self, bdf: Bdf, present: bool) {
        if let Some(place) = self.routes.table.load().get(&bdf.rid().0) {
            place.present.store(present, Ordering::Release);
        }
    }

    /// The addresses at which functions are attached, in order.
    pub fn functions(&self) -> Vec<Bdf> {
        let table = self.routes.table.load();
        let bdf = |rid: &u16| {
            let [devfn, bus] = rid.to_le_bytes();
            Bdf {
                bus,
                device: devfn >> 3,
                function: devfn & 7,
            }
        };
        table.keys().map(bdf).collect()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let _edit = self.routes.edit.lock();
        let mut table = Table::clone(&self.routes.table.load());
        table.remove(&self.rid);
        self.routes.table.store(Arc::new(table));
    }
}
