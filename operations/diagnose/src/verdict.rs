//! What the engine answers.

use serde::{Deserialize, Serialize};

/// How bad the thing is that a verdict names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gravity {
    /// The guest cannot get further because of it.
    Fatal,
    /// The guest goes on, but something does not work or is slow.
    Degraded,
    /// It looks like a fault and is none.
    Benign,
}

/// How sure a verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// The evidence admits no other reading.
    Certain,
    /// The evidence has this cause nearly always.
    Likely,
    /// One of several causes.
    Possible,
}

/// What a verdict rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Where it comes from: the guest's name of a console (`ttyS0`), or `machine`, `device`, `host`, `vmm`.
    pub source: String,
    /// The line's number on that console, counted from 1 since the machine started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The line, or the fact in words. Holds no control characters.
    pub text: String,
}

/// One explanation of what went wrong, or of what only looks wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The rule's identifier; stable.
    pub id: String,
    /// What it is, in a few words.
    pub title: String,
    /// How bad it is.
    pub gravity: Gravity,
    /// How sure it is.
    pub confidence: Confidence,
    /// What it rests on, most telling first; at most [`Verdict::MOST_EVIDENCE`].
    pub evidence: Vec<Evidence>,
    /// What happened, in sentences.
    pub explanation: String,
    /// What to do about it, in sentences.
    pub mend: String,
}

impl Verdict {
    /// Most pieces of evidence that a verdict holds.
    pub const MOST_EVIDENCE: usize = 6;
}
