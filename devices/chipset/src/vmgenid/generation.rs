//! The device.

use super::saved::SavedVmGenId;
use super::uuid::Uuid;
use nyx_device::{
    AccessResult, BadAccess, Device, Drain, FaultKind, FaultPort, GenerationChange, Hit, IrqLine,
    Lifecycle, Registers, ResetKind,
};
use nyx_inspect::{About, Counter, Inspect, Leaf, Visitor};
use nyx_memory::DmaSpace;
use nyx_state::{Persist, RestoreError, SaveError};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

/// Where in its page the id lies. The specification wants it 8-byte aligned; the beginning of the
/// page is left free, as firmware puts a table header there.
pub(super) const OFFSET: u64 = 40;

/// A VM generation id.
pub struct VmGenId {
    // Wiring
    event: IrqLine,
    memory: DmaSpace,
    change: Option<Arc<GenerationChange>>,
    faults: FaultPort,
    running: bool,
    // Configuration
    address: GuestAddress,
    first_id: Uuid,
    // State
    id: Uuid,
    /// The id changed while the machine was paused: the guest is told on resume.
    notice_due: bool,
    // Statistics
    changes: Counter,
}

impl VmGenId {
    /// A generation id of `id` in the page at `page`; `change`, if any, announces new generations,
    /// and `event` tells the guest.
    pub fn new(
        event: IrqLine,
        memory: DmaSpace,
        change: Option<Arc<GenerationChange>>,
        faults: FaultPort,
        page: GuestAddress,
        id: Uuid,
    ) -> Self {
        let device = Self {
            event,
            memory,
            change,
            faults,
            running: false,
            address: GuestAddress(page.0.saturating_add(OFFSET)),
            first_id: id,
            id,
            notice_due: false,
            changes: Counter::default(),
        };
        device.publish();
        device
    }

    /// Writes the id where the guest looks.
    fn publish(&self) {
        let guid = self.id.to_guid();
        if let Err(error) = self.memory.view().write_slice(&guid, self.address) {
            self.faults
                .report(FaultKind::Dma, format_args!("generation id: {error}"));
        }
    }

    /// Takes a new id and tells the guest, now or on resume.
    fn regenerate(&mut self) {
        match Uuid::random() {
            Ok(id) => self.id = id,
            Err(error) => {
                let what = format_args!("no random numbers for a generation id: {error}");
                return self.faults.report(FaultKind::Backend, what);
            }
        }
        self.changes.inc();
        self.publish();
        self.notice_due = true;
        self.notify();
    }

    fn notify(&mut self) {
        if self.running && std::mem::take(&mut self.notice_due) {
            self.event.pulse();
        }
    }

    fn take_announcement(&mut self) {
        if self
            .change
            .as_ref()
            .is_some_and(|change| change.take_announcement())
        {
            self.regenerate();
        }
    }
}

impl Registers for VmGenId {
    fn read(&mut self, _: Hit, _: &mut [u8]) -> AccessResult {
        Err(BadAccess::NoRegister)
    }
    fn write(&mut self, _: Hit, _: &[u8]) -> AccessResult {
        Err(BadAccess::NoRegister)
    }
}

impl Lifecycle for VmGenId {
    fn start(&mut self) {
        self.running = true;
        self.take_announcement();
        self.notify();
    }

    fn stop(&mut self) -> Drain {
        self.running = false;
        Drain::idle()
    }

    /// A rebooted machine is the same one: the id stays. A cold reset makes it new again.
    fn reset(&mut self, kind: ResetKind) {
        let Self {
            event: _,
            memory: _,
            change: _,
            faults: _,
            running: _,
            address: _,
            first_id,
            id,
            notice_due,
            changes: _,
        } = self;
        *notice_due = false;
        if kind == ResetKind::Cold {
            *id = *first_id;
        }
        self.publish();
    }

    fn wake(&mut self) {
        if self.running {
            self.take_announcement();
        }
    }
}

impl Persist for VmGenId {
    type Saved = SavedVmGenId;

    fn save(&self) -> Result<SavedVmGenId, SaveError> {
        let Self {
            event: _,
            memory: _,
            change: _,
            faults: _,
            running: _,
            address: _,
            first_id: _,
            id,
            notice_due,
            changes: _,
        } = self;
        Ok(SavedVmGenId {
            id: id.bytes().to_vec(),
            notice_due: *notice_due,
        })
    }

    fn restore(&mut self, saved: SavedVmGenId) -> Result<(), RestoreError> {
        let SavedVmGenId { id, notice_due } = saved;
        let id = id
            .try_into()
            .map_err(|_| RestoreError::Invalid("an id has 16 bytes"))?;
        self.id = Uuid::from_bytes(id);
        self.notice_due = notice_due;
        self.publish();
        Ok(())
    }
}

impl Inspect for VmGenId {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.leaf("id", Leaf::Text(self.id.to_string()));
        v.leaf("address", Leaf::Hex(self.address.0));
        v.leaf("notice_due", Leaf::Flag(self.notice_due));
        v.about(&About::metric(
            "vmgenid_changes",
            "New generations of the machine, such as after a restore.",
        ));
        v.leaf("changes", Leaf::Count(self.changes.get()));
    }
}

impl Device for VmGenId {}
