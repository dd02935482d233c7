//! Deployment scenario 6: a machine that keeps secrets.
//!
//! This version of Nyx refuses what it does not have yet, by name; `tests/scenarios.rs` says what that is.

use nyx::{Ending, SizeUnits, VmBuilder};
use std::error::Error;

pub(crate) fn describe() -> VmBuilder {
    VmBuilder::new()
        .name("secure")
        .memory(8.gib())
        .cpus(4)
        .uefi("OVMF_SECURE.fd")
        .with_tpm()
        .with_error_handling()
        .with_logging()
        .enable_iommu()
}

fn main() -> Result<Ending, Box<dyn Error>> {
    let mut vm = describe().build()?;
    let ending = vm.run()?;
    println!("{}", vm.get_performance_report());
    Ok(ending)
}
