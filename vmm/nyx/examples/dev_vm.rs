//! A machine for development that runs today: a kernel, a disk, a network with SSH forwarded, its console
//! here, its events and figures told. `dev_vm KERNEL DISK [INITRD]`.

use nyx::{Disk, Ending, Net, SizeUnits, VmBuilder};
use std::error::Error;
use std::path::PathBuf;

/// `dev_vm.toml` beside this file says the same for `nyx run`.
pub(crate) fn describe(kernel: PathBuf, disk: PathBuf) -> VmBuilder {
    VmBuilder::new()
        .name("dev")
        .memory(2.gib())
        .cpus(2)
        .kernel(kernel)
        .disk(Disk::new(disk).serial("DEV"))
        .net(Net::user().forward("tcp:127.0.0.1:2222:22"))
        .with_error_handling()
        .with_metrics()
        .with_pci_hotplug()
}

fn main() -> Result<Ending, Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(kernel), Some(disk)) = (arguments.next(), arguments.next()) else {
        return Err("usage: dev_vm KERNEL DISK [INITRD]".into());
    };
    let mut builder = describe(kernel, disk);
    if let Some(initrd) = arguments.next() {
        builder = builder.initrd(initrd);
    }
    let mut vm = builder.build()?;
    let running = vm.start()?;
    // COM1 is on this terminal; Ctrl-A x stops the machine.
    let ending = running.wait();
    eprintln!("\n{ending}");
    for fault in running
        .faults()
        .iter()
        .flat_map(|f| f.get_recent_faults(10))
    {
        eprintln!("{}: {}", fault.unit, fault.what);
    }
    eprintln!("{}", vm.get_performance_report());
    Ok(ending)
}
