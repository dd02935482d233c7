//! Devices that come and go: the actor's part of hot-plug.

use super::{Pending, Vmm, Wait};
use crate::control::{Request, added, no_place};
use nyx_api::{Code, Happening, Phase, Problem};
use nyx_catalog::KINDS;
use nyx_device::UnitName;
use nyx_machine::{Detach, Detaching, DeviceAttachError, Ports};
use nyx_plan::RemoveError;
use nyx_spec::DeviceSpec;
use std::time::{Duration, Instant};

/// How long a guest may take to let go of a device that it was asked for.
const GUEST_PATIENCE: Duration = Duration::from_secs(30);
/// How long a device's work in flight may take when the device is taken apart.
const DRAIN: Duration = Duration::from_secs(2);

impl Vmm {
    /// Adds the device that `request` describes.
    pub(super) fn add_device(&mut self, request: &Request) -> Result<(), Problem> {
        let plan = self.machine.plan();
        let spec = added(request, plan)?;
        let kind = match request {
            Request::AddNet(_) => "net",
            _ => "disk",
        };
        let ports = Ports {
            faults: self.mailbox.clone(),
            power: self.mailbox.clone(),
            vcpus: self.mailbox.clone(),
            hotplug: self.mailbox.clone(),
            backends: &self.backends,
        };
        let name = self
            .machine
            .attach(&spec, KINDS, &ports)
            .map_err(|e| not_attached(kind, &spec, &e))?;
        self.show();
        tracing::info!(target: "hotplug", unit = &*name, "a {kind} was added");
        self.control.happened(Happening::DeviceAdded {
            name: name.to_string(),
            kind: kind.into(),
        });
        Ok(())
    }

    /// Has a device leave: `true` when it has left, `false` when the guest was asked.
    pub(super) fn remove_device(
        &mut self,
        id: u64,
        name: &str,
        force: bool,
    ) -> Result<bool, Problem> {
        let how = if force {
            Detach::Force
        } else {
            Detach::AskGuest
        };
        let now = Instant::now();
        let detaching = self.machine.detach(name, how, now + DRAIN);
        match detaching.map_err(|e| not_detached(name, &e))? {
            Detaching::Gone => {
                self.departed(&[name.into()]);
                Ok(true)
            }
            Detaching::Going(until) => {
                tracing::info!(target: "hotplug", unit = name, "pulled");
                self.pending.push(Pending {
                    id,
                    begun: now,
                    deadline: until,
                    what: Wait::Parting(name.into()),
                });
                Ok(false)
            }
            Detaching::Asked => {
                tracing::info!(target: "hotplug", unit = name, "the guest was asked to let go of it");
                self.pending.push(Pending {
                    id,
                    begun: now,
                    deadline: now + GUEST_PATIENCE,
                    what: Wait::Ejection(name.into()),
                });
                Ok(false)
            }
        }
    }

    /// Takes apart what the guest let go of.
    pub(super) fn complete_ejections(&mut self) {
        let gone = self.machine.complete_ejections(Instant::now() + DRAIN);
        self.departed(&gone);
    }

    /// Tells that devices are gone, and ends the operations that waited for it.
    pub(super) fn departed(&mut self, gone: &[UnitName]) {
        if gone.is_empty() {
            return;
        }
        self.show();
        for name in gone {
            tracing::info!(target: "hotplug", unit = &**name, "removed");
            self.control.happened(Happening::DeviceRemoved {
                name: name.to_string(),
            });
            let waits = |wait: &Pending| wait.what.device() == Some(&**name);
            for wait in self.pending.extract_if(.., |wait| waits(wait)) {
                self.control.0.board.finish(wait.id, Ok(()));
            }
        }
    }

    /// Gives up waiting for guests that do not let go, and takes back what nobody waits for any more.
    pub(super) fn give_up(&mut self, cancelled: Vec<Pending>) {
        let now = Instant::now();
        let parted = |wait: &Pending| matches!(wait.what, Wait::Parting(_)) && wait.deadline <= now;
        if self.pending.iter().any(parted) {
            self.complete_ejections();
        }
        // A guest that is paused cannot answer.
        let patient = self.control.phase() == Phase::Paused;
        let expired = |wait: &mut Pending| {
            matches!(wait.what, Wait::Ejection(_)) && wait.deadline <= now && !patient
        };
        let expired: Vec<_> = self.pending.extract_if(.., expired).collect();
        for Pending { id, what, .. } in &expired {
            if let Wait::Ejection(name) = what {
                let seconds = GUEST_PATIENCE.as_secs();
                let why = format!("the guest has not let go of {name} within {seconds} s");
                tracing::warn!(target: "hotplug", unit = &**name, "{why}");
                let problem = Problem::new(Code::Failed, why)
                    .mend("unmount it and try again, or remove it by force");
                self.control.0.board.finish(*id, Err(problem));
            }
        }
        for wait in expired.into_iter().chain(cancelled) {
            let waited_for = |other: &Pending| other.what == wait.what;
            if let Wait::Ejection(name) = &wait.what
                && !self.pending.iter().any(waited_for)
            {
                self.machine.retract(name);
            }
        }
    }
}

fn not_attached(kind: &str, spec: &DeviceSpec, error: &DeviceAttachError) -> Problem {
    match error {
        DeviceAttachError::Place(error) => no_place(error),
        // What its backend was to open is what the user named.
        DeviceAttachError::Build { source, .. } => {
            let why = format!("cannot add the {kind} {}: {source}", spec.name);
            let field = if kind == "disk" { "path" } else { "kind" };
            Problem::new(Code::Invalid, why).field(field)
        }
    }
}

fn not_detached(name: &str, error: &RemoveError) -> Problem {
    let code = match error {
        RemoveError::Unknown(_) => Code::NotFound,
        RemoveError::Platform(_) => Code::Conflict,
        RemoveError::NoHotplug => Code::Unsupported,
    };
    Problem::new(code, error.to_string())
        .field("name")
        .value(name)
}
