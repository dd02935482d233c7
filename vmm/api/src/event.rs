//! Events: what happens to a machine, in order.

use crate::{Operation, Phase};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One event. The stream carries it as JSON in the `data` of a server-sent event whose `id` is the sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts up from 1; a gap means that older ones were dropped.
    pub sequence: u64,
    /// When.
    pub time: String,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happening {
    /// The machine is in another phase.
    Phase {
        /// Which now.
        phase: Phase,
    },
    /// The platform was reset.
    Reset {
        /// How often so far.
        resets: u64,
        /// Who asked: `guest` or `operator`.
        by: String,
    },
    /// An operation changed.
    Operation {
        /// It.
        operation: Operation,
    },
    /// A device or another unit reported a fault.
    Fault {
        /// Who.
        unit: String,
        /// What.
        what: String,
    },
    /// So many faults were reported that further ones are only counted.
    FaultsMuted,
    /// A device came.
    DeviceAdded {
        /// Its name.
        name: String,
        /// `disk` or `net`.
        kind: String,
    },
    /// A device went.
    DeviceRemoved {
        /// Its name.
        name: String,
    },
    /// The boot got to a stage.
    Stage {
        /// `kernel`, `root`, `init`, `network`.
        stage: String,
        /// After how many milliseconds since the start.
        after_ms: u64,
    },
    /// The machine has ended.
    Ended {
        /// `powered-off`, `stopped`, `guest-panic`, `triple-fault`, `broken`.
        ending: String,
        /// More, for a person.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
}
