//! Three steps: build a machine, run it, read what it did. `quick_start KERNEL [CMDLINE]`.

use nyx::{Ending, SizeUnits, VmBuilder};
use std::error::Error;

fn main() -> Result<Ending, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let kernel = arguments.next().ok_or("name a kernel")?;
    let cmdline = arguments.next().unwrap_or_default();

    let mut vm = VmBuilder::new()
        .kernel(kernel)
        .cmdline(cmdline)
        .memory(512.mib())
        .with_metrics()
        .build()?;
    let ending = vm.run()?;
    println!("{}", vm.get_performance_report());

    Ok(ending)
}
