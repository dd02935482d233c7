//! The `nyx` command with the payload guest on this machine's own `/dev/kvm`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails by panicking, in its helpers too"
)]

mod api;
mod consoles;
mod endings;
mod machines;
mod operating;
mod refusals;
mod rig;
