//! The `nyx` command with the payload guest on this machine's own `/dev/kvm`.

mod consoles;
mod endings;
mod machines;
mod refusals;
mod rig;
