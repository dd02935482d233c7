//! Everything about one boot that a person may want to see later.

use crate::engine::diagnose;
use crate::scene::{Outcome, Scene};
use crate::verdict::{Confidence, Gravity, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The form of a bundle on disk.
pub(crate) const FORMAT: u32 = 1;

/// A scene with its verdicts, and what the machine was made of. Plain data: JSON of the crates above is taken
/// as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bundle {
    /// The form of a bundle on disk.
    pub format: u32,
    /// Version of Nyx.
    pub version: String,
    /// The machine's name.
    pub name: String,
    /// The machine's id, if it has one.
    #[serde(default)]
    pub id: String,
    /// When this was put together, in milliseconds since 1970.
    pub written_ms: u64,
    /// What is known.
    pub scene: Scene,
    /// What it means.
    pub verdicts: Vec<Verdict>,
    /// The description the machine was made from.
    #[serde(skip)]
    pub config: Value,
    /// The plan.
    #[serde(skip)]
    pub plan: Value,
    /// The inspect tree.
    #[serde(skip)]
    pub inspect: Value,
    /// Entries of the journal, oldest first.
    #[serde(skip)]
    pub journal: Vec<Value>,
}

impl Bundle {
    /// Makes one of a scene, now; the verdicts are found here. Config, plan, inspect tree and journal may be
    /// filled in afterwards.
    pub fn new(version: &str, name: &str, scene: Scene) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            format: FORMAT,
            version: version.into(),
            name: name.into(),
            id: String::new(),
            written_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            verdicts: diagnose(&scene),
            scene,
            config: Value::Null,
            plan: Value::Null,
            inspect: Value::Null,
            journal: Vec::new(),
        }
    }

    /// The answer of `nyx why NAME` for programs: everything but consoles, plan, inspect tree and journal.
    pub fn summary(&self, folder: Option<&Path>) -> Value {
        json!({
            "name": self.name,
            "id": self.id,
            "version": self.version,
            "written_ms": self.written_ms,
            "outcome": self.scene.outcome,
            "resets": self.scene.resets,
            "errors": self.scene.errors,
            "stages": self.scene.stages,
            "verdicts": self.verdicts,
            "bundle": folder.map(|folder| folder.to_string_lossy()),
        })
    }
}

/// Whether a machine that ended so is worth a bundle: always, unless it went as it should, that is, somebody
/// or the guest itself ended it and nothing grave is to be said with some certainty.
pub fn worth_keeping(scene: &Scene, verdicts: &[Verdict]) -> bool {
    let is_in_order = matches!(scene.outcome, Outcome::PoweredOff | Outcome::Stopped);
    let is_grave = |verdict: &Verdict| {
        verdict.gravity == Gravity::Fatal && verdict.confidence < Confidence::Possible
    };
    !is_in_order || verdicts.iter().any(is_grave)
}
