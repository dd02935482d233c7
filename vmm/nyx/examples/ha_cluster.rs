//! Deployment scenario 4: a node of a high-availability cluster.
//!
//! This version of Nyx refuses what it does not have yet, by name; `tests/scenarios.rs` says what that is.

use nyx::{Ending, SizeUnits, VmBuilder};
use std::error::Error;

pub(crate) fn describe() -> VmBuilder {
    VmBuilder::new()
        .name("ha-cluster")
        .memory(32.gib())
        .cpus(16)
        .uefi("OVMF_HA.fd")
        // Mirrored by the guest.
        .disk("ssd0.nvme")
        .disk("ssd1.nvme")
        // Primary, heartbeat, data.
        .nic("e1000")
        .nic("e1000")
        .nic("virtio")
        .ahci(false)
        .with_tpm()
        .with_error_handling()
        .with_logging()
        .with_metrics()
        .with_live_migration()
        .with_performance_tracing()
}

fn main() -> Result<Ending, Box<dyn Error>> {
    let mut vm = describe().build()?;
    let ending = vm.run()?;
    println!("{}", vm.get_performance_report());
    Ok(ending)
}
