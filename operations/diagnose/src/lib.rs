//! Why a boot failed: from what was said to a verdict, with stage timings and a bundle.
//!
//! * [`Recorder`] listens to the consoles of a running machine: it keeps the first and the last of what they
//!   say, and notes when the guest reaches which [`Stage`]. It never polls and never waits.
//! * A [`Scene`] is all that is known of a machine: what its consoles said, how it ended, what its plan and its
//!   devices say, what the host sees. It is plain data.
//! * [`diagnose`] turns a scene into [`Verdict`]s, by the rules of one table, [`RULES`]. It is a pure function;
//!   console text is hostile and only ever searched, in bounded time and memory.
//! * A [`Bundle`] is a scene with its verdicts and what else a person may want to see; [`Store`] keeps the last
//!   few of each machine, and [`render`] puts one on the screen.
#![forbid(unsafe_code)]

mod bundle;
mod document;
mod engine;
mod look;
mod observe;
pub mod probe;
mod recorder;
mod render;
mod rules;
mod scene;
mod stages;
mod store;
mod text;
mod verdict;

pub use bundle::{Bundle, worth_keeping};
pub use document::document;
pub use engine::diagnose;
pub use recorder::{Listener, Recorder};
pub use render::render;
pub use rules::{RULES, Rule};
pub use scene::{
    Answer, Console, Device, Host, Interface, Machine, Neighbour, NeighbourState, Outcome, Probe,
    Scene,
};
pub use stages::{LineBuffer, Reached, Stage, StageWatch};
pub use store::{Kept, Store, StoreError};
pub use verdict::{Confidence, Evidence, Gravity, Verdict};
