//! Deployment scenario 3: a Linux server that can be migrated while it runs.
//!
//! This version of Nyx refuses what it does not have yet, by name; `tests/scenarios.rs` says what that is.

use nyx::{Ending, SizeUnits, VmBuilder};
use std::error::Error;

pub(crate) fn describe() -> VmBuilder {
    VmBuilder::new()
        .name("linux-migration")
        .memory(8.gib())
        .cpus(4)
        .uefi("OVMF.fd")
        .disk("root.img")
        .disk("var.img")
        .nic("virtio")
        .gpu(false)
        .with_error_handling()
        .with_logging()
        .with_metrics()
        .with_live_migration()
}

fn main() -> Result<Ending, Box<dyn Error>> {
    let mut vm = describe().build()?;
    let ending = vm.run()?;
    println!("{}", vm.get_performance_report());
    Ok(ending)
}
