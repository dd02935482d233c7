//! `nyx plan`.

use crate::args::PlanArgs;
use crate::exit::{SUCCESS, refuse, tell};
use crate::output::json;
use nyx_kvm::Kvm;
use nyx_plan::HostFacts;
use nyx_vmm::{HostSource, Prepared};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// What is assumed of a host without KVM: a server CPU of the last ten years.
const ASSUMED: HostFacts = HostFacts {
    physical_address_bits: 46,
    max_vcpus: 1024,
};

pub(crate) fn plan(args: &PlanArgs) -> ExitCode {
    match show(args) {
        Ok(()) => ExitCode::from(SUCCESS),
        Err(e) => refuse(e),
    }
}

fn show(args: &PlanArgs) -> Result<(), String> {
    let config = args.machine.config()?;
    let kvm = Kvm::open();
    let host = match &kvm {
        Ok(kvm) => HostSource::Hypervisor(kvm),
        Err(e) => {
            tell!(
                "nyx: note: {e}; planning for {} address bits and {} vCPUs",
                ASSUMED.physical_address_bits,
                ASSUMED.max_vcpus
            );
            HostSource::Assumed(ASSUMED)
        }
    };
    let prepared = Prepared::new(&config, &host).map_err(|e| e.to_string())?;
    if let Some(folder) = &args.acpi {
        write_tables(folder, &prepared)?;
    }
    let text = if args.json || json() {
        serde_json::to_string_pretty(&prepared.plan).map_err(|e| e.to_string())? + "\n"
    } else {
        prepared.listing()
    };
    // A reader that has seen enough (`| head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn write_tables(folder: &Path, prepared: &Prepared) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("--acpi: {}: {e}", folder.display());
    std::fs::create_dir_all(folder).map_err(fail)?;
    for (number, table) in prepared.tables.acpi().tables.iter().enumerate() {
        let name = format!("{number:02}-{}.aml", table.name());
        std::fs::write(folder.join(name), &table.bytes).map_err(fail)?;
    }
    Ok(())
}
