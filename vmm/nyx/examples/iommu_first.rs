//! Deployment scenario 7: the first machine to try an IOMMU with.
//!
//! This version of Nyx refuses what it does not have yet, by name; `tests/scenarios.rs` says what that is.

use nyx::{Ending, SizeUnits, VmBuilder};
use std::error::Error;

pub(crate) fn describe() -> VmBuilder {
    VmBuilder::new()
        .name("iommu-first")
        .memory(4.gib())
        .cpus(2)
        .uefi("OVMF.fd")
        .disk("test_vm.qcow2")
        .with_iommu()
        .passthrough_device(0x0300, "STRICT")
        .with_logging()
        .with_error_handling()
}

fn main() -> Result<Ending, Box<dyn Error>> {
    let mut vm = describe().build()?;
    let ending = vm.run()?;
    println!("{}", vm.get_performance_report());
    Ok(ending)
}
