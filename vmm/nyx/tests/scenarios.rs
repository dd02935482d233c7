//! The deployment scenarios: what this version of Nyx refuses of each, by name. Whoever brings one of these
//! features finds it here.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails by panicking"
)]

use nyx::{BuildErrorKind, Feature, SizeUnits, VmBuilder};
use std::path::{Path, PathBuf};

#[expect(dead_code, reason = "an example's main is for its own program")]
#[path = "../examples/dev_vm.rs"]
mod dev_vm;
#[expect(dead_code, reason = "an example's main is for its own program")]
#[path = "../examples/development.rs"]
mod development;
#[expect(dead_code, reason = "an example's main is for its own program")]
#[path = "../examples/ha_cluster.rs"]
mod ha_cluster;
#[expect(dead_code, reason = "an example's main is for its own program")]
#[path = "../examples/iommu_first.rs"]
mod iommu_first;
#[expect(dead_code, reason = "an example's main is for its own program")]
#[path = "../examples/iommu_production.rs"]
mod iommu_production;
#[expect(dead_code, reason = "an example's main is for its own program")]
#[path = "../examples/linux_migration.rs"]
mod linux_migration;
#[expect(dead_code, reason = "an example's main is for its own program")]
#[path = "../examples/passthrough.rs"]
mod passthrough;
#[expect(dead_code, reason = "an example's main is for its own program")]
#[path = "../examples/secure.rs"]
mod secure;
#[expect(dead_code, reason = "an example's main is for its own program")]
#[path = "../examples/windows_server.rs"]
mod windows_server;

/// The methods that are refused; nothing else may be wrong.
fn refused(builder: &VmBuilder) -> Vec<String> {
    let errors = builder.validate().unwrap_err();
    let is_later = |kind| kind == BuildErrorKind::NotInThisVersion;
    assert!(errors.iter().all(|e| is_later(e.kind)), "{errors}");
    let methods = errors.not_in_this_version();
    methods.into_iter().map(ToString::to_string).collect()
}

#[test]
fn scenario_1_development() {
    let expected = ["bios", "disk", "nic", "gpu", "with_debug_symbols"];
    assert_eq!(refused(&development::describe()), expected);
}

#[test]
fn scenario_2_windows_server() {
    let builder = windows_server::describe();
    let expected = ["uefi", "disk", "nic", "ahci", "with_tpm"];
    assert_eq!(refused(&builder), expected);
    // Each of the two disks is named; the two network interfaces are one and the same wish.
    assert_eq!(builder.validate().unwrap_err().iter().count(), 6);
    assert!(builder.is_enabled(Feature::PciHotplug) && builder.is_enabled(Feature::Metrics));
}

#[test]
fn scenario_3_linux_migration() {
    let expected = ["uefi", "with_live_migration"];
    assert_eq!(refused(&linux_migration::describe()), expected);
}

#[test]
fn scenario_4_ha_cluster() {
    let expected = ["uefi", "nic", "with_tpm", "with_live_migration"];
    assert_eq!(refused(&ha_cluster::describe()), expected);
    assert!(ha_cluster::describe().is_enabled(Feature::PerformanceTracing));
}

#[test]
fn scenario_5_passthrough() {
    let builder = passthrough::describe();
    let expected = ["uefi", "disk", "with_iommu", "passthrough_device"];
    assert_eq!(refused(&builder), expected);
    // Every device is named as the host knows it.
    let said = builder.validate().unwrap_err().to_string();
    for device in ["0000:01:00.0", "0000:03:00.0", "0000:04:00.0"] {
        assert!(said.contains(device), "{said}");
    }
}

#[test]
fn scenario_6_secure() {
    assert_eq!(
        refused(&secure::describe()),
        ["uefi", "with_tpm", "enable_iommu"]
    );
}

#[test]
fn scenario_7_iommu_first() {
    let expected = ["uefi", "disk", "with_iommu", "passthrough_device"];
    assert_eq!(refused(&iommu_first::describe()), expected);
}

#[test]
fn scenario_8_iommu_production() {
    let expected = [
        "uefi",
        "disk",
        "with_iommu",
        "passthrough_device",
        "with_live_migration",
    ];
    assert_eq!(refused(&iommu_production::describe()), expected);
    let said = iommu_production::describe().validate().unwrap_err();
    assert!(said.to_string().contains("0000:03:00.1"), "{said}");
}

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let entries = std::fs::read_dir(folder).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect()
}

#[test]
fn shipped_files_describe_machines_of_this_version() {
    let files = shipped();
    assert_eq!(files.len(), 5, "{files:?}");
    for path in files {
        let builder = VmBuilder::from_file(&path).unwrap();
        assert_eq!(builder.validate(), Ok(()), "{}", path.display());
        // Named like the file, so that `nyx ps` tells which it is.
        let name = builder.to_config().unwrap().name.unwrap();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let is_named_so =
            name == stem.replace('_', "-") || (stem, name.as_str()) == ("dev_vm", "dev");
        assert!(is_named_so, "{name} in {stem}");
    }
}

#[test]
fn shipped_files_are_of_the_size_of_their_scenario() {
    let sizes = [
        ("development", development::describe()),
        ("linux_migration", linux_migration::describe()),
        ("ha_cluster", ha_cluster::describe()),
        ("secure", secure::describe()),
    ];
    for (stem, builder) in sizes {
        let path = format!("{}/examples/{stem}.toml", env!("CARGO_MANIFEST_DIR"));
        let file = VmBuilder::from_file(path).unwrap();
        let (file, shown) = (format!("{file:?}"), format!("{builder:?}"));
        for key in ["memory: ", "cpus: "] {
            let value = |text: &str| {
                let rest = text.split_once(key).unwrap().1;
                rest.split_once("),").unwrap().0.to_string()
            };
            assert_eq!(value(&file), value(&shown), "{stem}: {key}");
        }
    }
}

#[test]
fn the_development_machine_of_today_is_the_same_in_code_and_file() {
    let path = format!("{}/examples/dev_vm.toml", env!("CARGO_MANIFEST_DIR"));
    let file = VmBuilder::from_file(path).unwrap().to_config().unwrap();
    let built = dev_vm::describe("/boot/vmlinuz".into(), "dev.img".into());
    assert_eq!(built.validate(), Ok(()));
    assert_eq!(built.to_config().unwrap(), file);
    assert_eq!(file.memory.table().size, 2.gib());
}
