//! The `nyx` command against machines that tests play, good and bad ones.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails by panicking, in its helpers too"
)]

mod consoles;
mod hostile;
mod looking;
mod rig;
mod steering;
