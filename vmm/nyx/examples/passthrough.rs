//! Deployment scenario 5: a machine with devices of the host.
//!
//! This version of Nyx refuses what it does not have yet, by name; `tests/scenarios.rs` says what that is.

use nyx::{Ending, SizeUnits, VmBuilder};
use std::error::Error;

pub(crate) fn describe() -> VmBuilder {
    VmBuilder::new()
        .name("passthrough")
        .memory(16.gib())
        .cpus(8)
        .uefi("OVMF.fd")
        .disk("system.qcow2")
        .with_iommu()
        // A GPU, a network interface, storage.
        .passthrough_device(0x0100, "STRICT")
        .passthrough_device(0x0300, "STRICT")
        .passthrough_device(0x0400, "SHARED")
        .with_error_handling()
        .with_metrics()
}

fn main() -> Result<Ending, Box<dyn Error>> {
    let mut vm = describe().build()?;
    let ending = vm.run()?;
    println!("{}", vm.get_performance_report());
    Ok(ending)
}
