//! Golden plans: a folder of descriptions and what becomes of them. A difference is a decision about
//! compatibility; `NYX_UPDATE_GOLDENS=1` accepts it.

use crate::Tables;
use nyx_boot::disk_probe::{FileSystem, RootDisk};
use nyx_catalog::KINDS;
use nyx_plan::{BootDisk, HostFacts, Listing, resolve};
use nyx_spec::parse_toml;
use std::fs;
use std::path::Path;

const HOST: HostFacts = HostFacts {
    physical_address_bits: 46,
    max_vcpus: 1024,
};

/// Disk 0 has a GPT, disk 1 a file system, further ones nothing.
fn disks() -> Vec<BootDisk> {
    let gpt = RootDisk::GptPartition {
        partuuid: "0b2ae7c8-6b1c-4b8e-a6a5-3b3d2c0f9e11".into(),
        index: 1,
        sector_size: 512,
        read_only: false,
    };
    let ext4 = RootDisk::WholeDisk {
        file_system: FileSystem::Ext4,
    };
    vec![
        BootDisk {
            index: 0,
            root: Ok(gpt),
        },
        BootDisk {
            index: 1,
            root: Ok(ext4),
        },
    ]
}

fn listing(text: &str) -> String {
    let spec = parse_toml(text).unwrap().validate().unwrap();
    let count = spec
        .devices
        .iter()
        .filter(|d| d.kind == "virtio-blk")
        .count();
    let disks: Vec<_> = disks().into_iter().take(count).collect();
    let plan = resolve(&spec, &HOST, KINDS, &disks).unwrap();
    let tables = Tables::build(&plan, KINDS).unwrap();
    Listing {
        plan: &plan,
        tables: tables.list(),
    }
    .to_string()
}

#[test]
fn plans_are_what_they_were() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens");
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        seen += 1;
        let made = listing(&fs::read_to_string(&path).unwrap());
        let golden = path.with_extension("plan");
        if std::env::var_os("NYX_UPDATE_GOLDENS").is_some() {
            fs::write(&golden, &made).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(made, expected, "{}", golden.display());
    }
    assert!(seen >= 5, "the goldens are gone");
}

#[test]
fn a_thousand_cpus_and_thirty_disks_still_fit_their_tables() {
    for cpus in [1, 255, 256, 1024] {
        let disks = "[[disks]]\npath = \"d\"\n".repeat(25);
        let text = format!("cpus = {cpus}\nmemory = \"1G\"\nboot.kernel = \"k\"\n{disks}");
        assert!(listing(&text).contains("APIC"), "{cpus}");
    }
}

/// Runs a tool of ACPICA in `folder`; `None`, with the reason printed, when it is not installed.
fn acpica(folder: &Path, tool: &str, arguments: &[&str]) -> Option<String> {
    let ran = std::process::Command::new(tool)
        .args(arguments)
        .current_dir(folder)
        .output();
    match ran {
        Ok(output) => Some(
            String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr),
        ),
        Err(error) => {
            println!("skipped: cannot run {tool} ({error}); Debian has it in acpica-tools");
            None
        }
    }
}

#[test]
fn acpica_compiles_and_evaluates_what_devices_add_to_the_dsdt() {
    let text = "memory = \"256M\"\nboot.kernel = \"k\"\n[[disks]]\npath = \"d\"\n";
    let spec = parse_toml(text).unwrap().validate().unwrap();
    let plan = resolve(&spec, &HOST, KINDS, &[]).unwrap();
    let tables = Tables::build(&plan, KINDS).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dsdt = tables.acpi().table(b"DSDT").unwrap();
    fs::write(folder.path().join("dsdt.aml"), &dsdt.bytes).unwrap();
    let Some(said) = acpica(folder.path(), "iasl", &["-d", "dsdt.aml"]) else {
        return;
    };
    for word in ["Error", "Warning", "Invalid", "incorrect", "Unknown"] {
        assert!(!said.contains(word), "{said}");
    }
    let said = acpica(folder.path(), "iasl", &["-tc", "dsdt.dsl"]).unwrap();
    assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
    fs::write(folder.path().join("dsdt.aml"), &dsdt.bytes).unwrap();

    // The tool keeps what is written to I/O ports.
    let evaluate = |what: &str| acpica(folder.path(), "acpiexec", &["-b", what, "dsdt.aml"]);
    let eject = "evaluate \\_SB.PCI0.S04._EJ0 1; evaluate \\_SB.PCI0.PHPE";
    let Some(said) = evaluate(eject) else { return };
    assert!(said.contains("0000000000000010"), "{said}");
    let said = evaluate("evaluate \\_SB.PCI0.PHPN 18 1").unwrap();
    for slot in ["S01_", "S04_"] {
        let notified = |line: &str| line.contains("Notify") && line.contains(slot);
        assert!(said.lines().any(notified), "{slot}: {said}");
    }
    assert!(!said.contains("S02_"), "{said}");
    let said = evaluate("evaluate \\_GPE._E01").unwrap();
    assert!(
        !said.contains("AE_") && !said.contains("Notify on"),
        "{said}"
    );
    let said = evaluate("evaluate \\_SB.PCI0.S1F._ADR").unwrap();
    assert!(said.contains("00000000001F0000"), "{said}");
}
