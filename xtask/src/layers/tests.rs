//! The rules tried on made-up workspaces, and on this one's metadata.

use super::*;

fn crate_of(folder: &str, needs: &[&str]) -> Member {
    let name = folder.rsplit('/').next().unwrap();
    let name = if name == "xtask" {
        name.to_owned()
    } else {
        format!("nyx-{name}")
    };
    let needs = needs.iter().map(|need| Need {
        name: need.trim_start_matches("test:").to_owned(),
        is_for_tests: need.starts_with("test:"),
    });
    Member {
        name,
        folder: folder.to_owned(),
        needs: needs.collect(),
        roots: Vec::new(),
    }
}

/// A workspace with one crate in every place, without edges.
fn house() -> Vec<Member> {
    [
        "support/inspect",
        "vm/device",
        "vm/memory",
        "devices/chipset",
        "devices/ahci",
        "devices/vfio",
        "backends/block",
        "hv/hypervisor",
        "hv/kvm",
        "firmware/acpi",
        "machine/machine",
        "machine/catalog",
        "operations/snapshot",
        "vmm/vmm",
        "control/cli",
        "testing/testkit",
        "testing/harness",
        "xtask",
    ]
    .map(|folder| crate_of(folder, &[]))
    .into()
}

/// What is wrong when the crate of `folder` has these dependencies.
fn broken(folder: &str, needs: &[&str]) -> Vec<String> {
    let mut members = house();
    let place = members
        .iter()
        .position(|member| member.folder == folder)
        .unwrap();
    members[place] = crate_of(folder, needs);
    check_edges(&members)
}

#[test]
fn what_the_house_plan_allows_is_allowed() {
    for (folder, needs) in [
        ("vm/device", &["nyx-inspect", "nyx-memory", "serde"][..]),
        (
            "devices/chipset",
            &["nyx-device", "nyx-inspect", "test:nyx-testkit"],
        ),
        ("devices/vfio", &["nyx-device", "vfio-ioctls"]),
        ("backends/block", &["nyx-device", "nyx-memory", "io-uring"]),
        ("hv/kvm", &["nyx-hypervisor", "nyx-memory", "kvm-ioctls"]),
        (
            "machine/machine",
            &["nyx-hypervisor", "nyx-device", "test:nyx-testkit"],
        ),
        ("machine/catalog", &["nyx-chipset", "nyx-ahci", "nyx-block"]),
        ("operations/snapshot", &["nyx-machine"]),
        (
            "vmm/vmm",
            &[
                "nyx-machine",
                "nyx-catalog",
                "nyx-kvm",
                "nyx-chipset",
                "tokio",
                "hyper",
            ],
        ),
        ("control/cli", &["nyx-vmm", "tokio", "axum"]),
        ("testing/testkit", &["nyx-device", "nyx-memory"]),
        ("testing/harness", &["nyx-cli", "tokio"]),
        ("xtask", &["nyx-harness"]),
    ] {
        assert_eq!(
            broken(folder, needs),
            Vec::<String>::new(),
            "{folder} on {needs:?}"
        );
    }
}

#[test]
fn every_forbidden_edge_is_found() {
    for (folder, need, part) in [
        ("support/inspect", "nyx-device", "higher layer"),
        ("vm/device", "nyx-chipset", "higher layer"),
        ("vm/memory", "nyx-kvm", "higher layer"),
        ("machine/machine", "nyx-vmm", "higher layer"),
        ("operations/snapshot", "nyx-vmm", "higher layer"),
        ("vmm/vmm", "nyx-cli", "higher layer"),
        ("devices/chipset", "nyx-testkit", "higher layer"),
        ("control/cli", "nyx-harness", "higher layer"),
        ("devices/ahci", "nyx-chipset", "another device"),
        ("devices/ahci", "nyx-block", "backend traits"),
        ("devices/ahci", "nyx-kvm", "hypervisor"),
        ("devices/ahci", "nyx-hypervisor", "hypervisor"),
        ("devices/ahci", "test:nyx-block", "backend traits"),
        ("backends/block", "nyx-chipset", "know a device"),
        ("backends/block", "nyx-hypervisor", "hypervisor"),
        ("hv/kvm", "nyx-ahci", "know a device"),
        ("firmware/acpi", "nyx-chipset", "not from devices"),
        ("machine/machine", "nyx-chipset", "traits, not kinds"),
        ("machine/machine", "nyx-block", "traits, not kinds"),
        ("machine/machine", "nyx-kvm", "not KVM"),
        ("machine/machine", "test:nyx-kvm", "not KVM"),
        ("operations/snapshot", "nyx-chipset", "public ports"),
        ("operations/snapshot", "nyx-kvm", "public ports"),
        ("devices/chipset", "kvm-ioctls", "hypervisor seam"),
        ("vmm/vmm", "kvm-ioctls", "hypervisor seam"),
        ("devices/ahci", "vfio-ioctls", "in its device"),
        ("machine/machine", "tokio", "asynchronous"),
        ("backends/block", "test:tokio", "asynchronous"),
        ("machine/machine", "hyper", "at the edges"),
    ] {
        let found = broken(folder, &[need]);
        assert_eq!(found.len(), 1, "{folder} on {need}: {found:?}");
        assert!(found[0].contains(part), "{folder} on {need}: {found:?}");
    }
}

#[test]
fn names_that_say_nothing_are_found() {
    for name in ["nyx-util", "nyx-vm-common", "nyx-core", "helpers"] {
        let member = Member {
            name: name.into(),
            ..crate_of("vm/device", &[])
        };
        assert!(
            check_name(&member).unwrap().contains("says nothing"),
            "{name}"
        );
    }
    let stranger = Member {
        name: "device".into(),
        ..crate_of("vm/device", &[])
    };
    assert!(check_name(&stranger).unwrap().contains("not called nyx-"));
    assert_eq!(check_name(&crate_of("support/corelation", &[])), None);
}

#[test]
fn a_crate_outside_the_layers_is_found() {
    let found = check_edges(&[
        crate_of("tools/thing", &[]),
        crate_of("vm/device", &["nyx-thing"]),
    ]);
    assert_eq!(found, ["nyx-thing is in tools/thing, which is no layer"]);
}

#[test]
fn sources_are_checked() {
    let check = |path: &str, text: &str, folder: &str, is_root: bool| {
        check_source(Path::new(path), text, &crate_of(folder, &[]), is_root)
    };
    let good = "//! Something.\n\n#![forbid(unsafe_code)]\n";
    let open = "//! Something.\n";
    assert!(check("lib.rs", good, "vm/device", true).is_empty());
    assert!(check("queue.rs", open, "vm/device", false).is_empty());
    assert!(
        check("lib.rs", open, "vm/memory", true).is_empty(),
        "memory may use unsafe"
    );
    assert!(check("lib.rs", open, "vm/device", true)[0].contains("forbid"));
    assert!(
        check(
            "lib.rs",
            "//! x\n// #![forbid(unsafe_code)]\n",
            "vm/device",
            true
        )[0]
        .contains("forbid")
    );
    assert!(check("queue.rs", "// Something.\n", "vm/device", false)[0].contains("//!"));
    assert!(check("queue.rs", "", "vm/device", false)[0].contains("//!"));
    assert!(check("utils.rs", open, "vm/device", false)[0].contains("says nothing"));
}

#[test]
fn metadata_is_read() {
    let metadata = serde_json::json!({
        "workspace_root": "/w",
        "packages": [{
            "name": "nyx-device",
            "manifest_path": "/w/vm/device/Cargo.toml",
            "dependencies": [
                { "name": "serde", "kind": null },
                { "name": "nyx-testkit", "kind": "dev" },
            ],
            "targets": [
                { "kind": ["lib"], "src_path": "/w/vm/device/src/lib.rs" },
                { "kind": ["test"], "src_path": "/w/vm/device/tests/a.rs" },
            ],
        }],
    });
    let members = members(&metadata).unwrap();
    assert_eq!(members[0].folder, "vm/device");
    assert_eq!(members[0].roots, [PathBuf::from("/w/vm/device/src/lib.rs")]);
    let needs: Vec<_> = members[0]
        .needs
        .iter()
        .map(|n| (n.name.as_str(), n.is_for_tests))
        .collect();
    assert_eq!(needs, [("serde", false), ("nyx-testkit", true)]);
}

#[test]
fn this_workspace_is_found_whole() {
    let files = source_files(&workspace::root().join("xtask")).unwrap();
    assert!(
        files
            .iter()
            .any(|path| path.ends_with("src/layers/tests.rs")),
        "{files:?}"
    );
    // Whether it keeps the rules is the business of `cargo xtask layers`; that they can be read is ours.
    violations().unwrap();
}
