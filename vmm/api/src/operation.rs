//! Operations: what was asked of a machine and what became of it.

use crate::Problem;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What can be asked of a machine.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// Stop the guest's time.
    Pause,
    /// Let it go on.
    Resume,
    /// Press the power button.
    PowerButton,
    /// Reset the platform.
    Reset,
    /// Power button, and the plug when that does not help in time.
    Stop,
    /// End the process.
    Kill,
    /// Inject a non-maskable interrupt.
    Nmi,
    /// Add a disk.
    AddDisk,
    /// Remove a disk.
    RemoveDisk,
    /// Add a network device.
    AddNet,
    /// Remove a network device.
    RemoveNet,
}

impl OperationKind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Pause,
        Self::Resume,
        Self::PowerButton,
        Self::Reset,
        Self::Stop,
        Self::Kill,
        Self::Nmi,
        Self::AddDisk,
        Self::RemoveDisk,
        Self::AddNet,
        Self::RemoveNet,
    ];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::PowerButton => "power-button",
            Self::Reset => "reset",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Nmi => "nmi",
            Self::AddDisk => "add-disk",
            Self::RemoveDisk => "remove-disk",
            Self::AddNet => "add-net",
            Self::RemoveNet => "remove-net",
        }
    }
}

impl std::fmt::Display for OperationKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// Others come first.
    Waiting,
    /// Under way.
    Running,
    /// It worked.
    Done,
    /// It did not; the problem says why.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl OperationState {
    /// Whether nothing more will come.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// How far an operation is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Steps or bytes done.
    pub done: u64,
    /// Of how many; 0 while unknown.
    pub total: u64,
    /// What it does now: "waiting for the guest to switch itself off".
    pub what: String,
}

/// Something that was asked of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its number; counts up from 1 in the life of the machine's process.
    pub id: u64,
    /// What was asked.
    pub kind: OperationKind,
    /// What it is about, for devices: their name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Where it stands.
    pub state: OperationState,
    /// How far it is.
    pub progress: Progress,
    /// Whether it can be cancelled now.
    pub cancellable: bool,
    /// When it was asked for.
    pub asked: String,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}
