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
