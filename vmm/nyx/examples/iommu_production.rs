//! Deployment scenario 8: a machine in production with two network interfaces of the host.
//!
//! This version of Nyx refuses what it does not have yet, by name; `tests/scenarios.rs` says what that is.

use nyx::{Ending, SizeUnits, VmBuilder};
use std::error::Error;

pub(crate) fn describe() -> VmBuilder {
    VmBuilder::new()
        .name("iommu-production")
        .memory(8.gib())
        .cpus(4)
        .uefi("OVMF.fd")
        .disk("production.qcow2")
        .with_iommu()
        .passthrough_device(0x0300, "STRICT")
        .passthrough_device(0x0301, "STRICT")
        .with_live_migration()
        .with_error_handling()
        .with_logging()
        .with_metrics()
}

fn main() -> Result<Ending, Box<dyn Error>> {
    let mut vm = describe().build()?;
    let ending = vm.run()?;
    println!("{}", vm.get_performance_report());
    Ok(ending)
}
