//! Deployment scenario 1: a machine for development.
//!
//! This version of Nyx refuses what it does not have yet, by name; `tests/scenarios.rs` says what that is.

use nyx::{Ending, SizeUnits, VmBuilder};
use std::error::Error;

pub(crate) fn describe() -> VmBuilder {
    VmBuilder::new()
        .name("development")
        .memory(4.gib())
        .cpus(4)
        .bios("seabios.bin")
        .disk("dev.qcow2")
        .nic("e1000")
        .gpu(true)
        .with_logging()
        .with_debug_symbols("app.dbg")
}

fn main() -> Result<Ending, Box<dyn Error>> {
    let mut vm = describe().build()?;
    let ending = vm.run()?;
    println!("{}", vm.get_performance_report());
    Ok(ending)
}
