//! The page of a machine with every kind of device: its documentation, the dashboard, and what a real
//! Prometheus says of them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod dashboard;
mod document;
mod lint;
mod machine;
mod prometheus;
