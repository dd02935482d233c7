//! Deployment scenario 2: a Windows server in production.
//!
//! This version of Nyx refuses what it does not have yet, by name; `tests/scenarios.rs` says what that is.

use nyx::{Ending, SizeUnits, VmBuilder};
use std::error::Error;

pub(crate) fn describe() -> VmBuilder {
    VmBuilder::new()
        .name("windows-server")
        .memory(16.gib())
        .cpus(8)
        .uefi("OVMF_WIN.fd")
        .disk("system.vhdx")
        .disk("data.vhdx")
        // Two, for teaming.
        .nic("e1000")
        .nic("e1000")
        .ahci(true)
        .gpu(false)
        .with_tpm()
        .with_error_handling()
        .with_logging()
        .with_metrics()
        .with_pci_hotplug()
}

fn main() -> Result<Ending, Box<dyn Error>> {
    let mut vm = describe().build()?;
    let ending = vm.run()?;
    println!("{}", vm.get_performance_report());
    Ok(ending)
}
