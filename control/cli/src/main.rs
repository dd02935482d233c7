//! The `nyx` command.
fn main() {}
