//! What was found, for people and programs.

use serde::Serialize;

/// How well something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, with a cost.
    Warning,
    /// It is not there.
    Missing,
}

/// One thing examined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name for programs: `kvm`, `guest-kernels`.
    pub id: String,
    /// Name for people.
    pub title: String,
    /// How it stands.
    pub status: Status,
    /// What was seen.
    pub evidence: String,
    /// What that costs, where it costs something.
    pub consequence: Option<String>,
    /// How to mend it, where it can be mended.
    pub fix: Option<String>,
}

/// How this host runs a guest's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestKernels {
    /// At the processor's speed.
    Native,
    /// Instruction by instruction in software: a stock kernel takes many minutes to boot.
    Emulated,
    /// Not at all.
    Unavailable,
}

/// Everything examined.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// How guest kernels run.
    pub guest_kernels: GuestKernels,
    /// Measured time of one ring-0 instruction of a guest, in nanoseconds.
    pub nanoseconds_per_instruction: Option<f64>,
    /// The findings, most important first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The finding called `id`.
    pub fn finding(&self, id: &str) -> Option<&Finding> {
        self.findings.iter().find(|f| f.id == id)
    }
}
