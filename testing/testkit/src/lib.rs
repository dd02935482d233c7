//! Fakes and the conformance suite that every device kind passes.
//!
//! A [`Bench`] plays the machine: it places one device, hands it a [`nyx_device::Wiring`] made of
//! fakes, and keeps the other end of each of them. [`conformance!`] turns a kind and a configuration
//! into the tests that every device must pass:
//!
//! ```
//! nyx_testkit::conformance!(post, nyx_testkit::example::Latch, nyx_testkit::json!({}));
//! ```
//!
//! This crate is for tests only, so it panics where a product would return an error.
#![forbid(unsafe_code)]

mod bench;
mod cbor;
mod chars;
pub mod conformance;
mod disk;
pub mod example;
mod net;
mod records;
mod rng;
#[cfg(test)]
mod tests;

pub use bench::{Bench, RAM_LEN};
pub use chars::{Console, Consoles};
pub use conformance::Subject;
pub use disk::{Disks, Medium};
pub use net::{Networks, Wire};
pub use records::{RecordedFaults, RecordedMsis, RecordedPci, RecordedPins, RecordedPower};
pub use rng::Random;
pub use serde_json::json;
