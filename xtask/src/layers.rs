//! `cargo xtask layers`: the rules of the house that a compiler does not know.
//!
//! Folders are layers; a crate depends on its own layer (as far as [`RULES`] lets it) and on lower ones.
//! Beyond that: what outside crates may appear where, which crates may use `unsafe`, names, and that every
//! file says what it is for. A dependency for tests follows the same rules, but may use the test kit.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nyx_harness::tool::Tool;
use nyx_harness::workspace;
use serde_json::Value;

/// The folders from the ground up. Equal numbers: one layer.
const LAYERS: &[(&str, u32)] = &[
    ("support", 0),
    ("vm", 2),
    ("devices", 3),
    ("backends", 3),
    ("hv", 3),
    ("firmware", 3),
    ("machine", 4),
    ("operations", 5),
    ("vmm", 6),
    ("control", 7),
    ("testing", 8),
    ("xtask", 9),
];

/// The folder whose crates tests of any layer may depend on.
const TESTING: &str = "testing";

/// Edges between layers that the order alone would allow: who, whom, why not.
const RULES: &[(&str, &str, &str)] = &[
    ("devices", "devices", "a device may not know another device"),
    ("devices", "backends", "a device knows backend traits only"),
    ("devices", "hv", "a device may not know the hypervisor"),
    (
        "devices",
        "firmware",
        "a device's tables are a pure function of its kind",
    ),
    ("backends", "devices", "a backend may not know a device"),
    ("backends", "hv", "a backend may not know the hypervisor"),
    (
        "backends",
        "firmware",
        "a backend has nothing to do with firmware",
    ),
    ("hv", "devices", "the hypervisor may not know a device"),
    ("hv", "backends", "the hypervisor may not know a backend"),
    (
        "hv",
        "firmware",
        "the hypervisor has nothing to do with firmware",
    ),
    (
        "firmware",
        "devices",
        "firmware tables come from a description, not from devices",
    ),
    (
        "firmware",
        "backends",
        "firmware has nothing to do with backends",
    ),
    (
        "firmware",
        "hv",
        "firmware has nothing to do with the hypervisor",
    ),
    (
        "machine",
        "devices",
        "a machine knows traits, not kinds (only the catalog does)",
    ),
    (
        "machine",
        "backends",
        "a machine knows traits, not kinds (only the catalog does)",
    ),
    (
        "machine",
        "hv/kvm",
        "a machine knows the hypervisor seam, not KVM",
    ),
    (
        "operations",
        "devices",
        "an operation works on a machine's public ports",
    ),
    (
        "operations",
        "hv/kvm",
        "an operation works on a machine's public ports",
    ),
];

/// The crate that lists device and backend kinds.
const CATALOG: &str = "machine/catalog";

/// Outside crates that belong in certain places only: crate, places, why.
const OUTSIDE: &[(&str, &[&str], &str)] = &[
    (
        "kvm-ioctls",
        &["hv/kvm"],
        "KVM stays behind the hypervisor seam",
    ),
    ("vfio-ioctls", &["devices/vfio"], "VFIO stays in its device"),
    (
        "tokio",
        &["vmm", "control", "testing", "xtask"],
        "nothing below the VM's actor is asynchronous",
    ),
    ("axum", HTTP_PLACES, HTTP_REASON),
    ("hyper", HTTP_PLACES, HTTP_REASON),
    ("reqwest", HTTP_PLACES, HTTP_REASON),
    ("tonic", HTTP_PLACES, HTTP_REASON),
    ("ureq", HTTP_PLACES, HTTP_REASON),
];
const HTTP_PLACES: &[&str] = &["vmm", "control", "testing", "xtask"];
const HTTP_REASON: &str = "HTTP is spoken at the edges only";

/// Crates that may use `unsafe`, by folder name; all others forbid it.
const UNSAFE: &[&str] = &[
    "memory", "reactor", "kvm", "block", "net", "char", "host", "payload",
];

/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &[
    "util", "utils", "common", "base", "core", "misc", "helper", "helpers",
];

/// A crate of the workspace.
#[derive(Clone, Debug)]
struct Member {
    name: String,
    /// Its folder from the workspace's root, such as `devices/chipset`.
    folder: String,
    needs: Vec<Need>,
    /// The files that are roots of a library or a program.
    roots: Vec<PathBuf>,
}

/// A dependency as a manifest declares it.
#[derive(Clone, Debug)]
struct Need {
    name: String,
    is_for_tests: bool,
}

/// Runs `cargo xtask layers`.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    if let Some(argument) = arguments.first() {
        bail!("layers takes no argument, not {argument:?}");
    }
    let found = violations()?;
    for violation in &found {
        eprintln!("error: {violation}");
    }
    println!("layers: {} violations", found.len());
    Ok(if found.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Everything in this workspace that breaks a rule, one sentence each.
pub(crate) fn violations() -> Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let json = Tool::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .folder(workspace::root())
        .output()?;
    let metadata: Value = serde_json::from_slice(&json).context("cargo metadata is no JSON")?;
    let members = members(&metadata)?;
    let mut found = check_edges(&members);
    for member in &members {
        let folder = workspace::root().join(&member.folder);
        for path in source_files(&folder)? {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let shown = path.strip_prefix(workspace::root()).unwrap_or(&path);
            found.extend(check_source(
                shown,
                &text,
                member,
                member.roots.contains(&path),
            ));
        }
    }
    Ok(found)
}

fn members(metadata: &Value) -> Result<Vec<Member>> {
    let root = metadata["workspace_root"]
        .as_str()
        .context("no workspace_root")?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    packages
        .iter()
        .map(|package| member(root, package))
        .collect()
}

fn member(root: &str, package: &Value) -> Result<Member> {
    let name = package["name"]
        .as_str()
        .context("a package without name")?
        .to_owned();
    let manifest = Path::new(
        package["manifest_path"]
            .as_str()
            .context("no manifest_path")?,
    );
    let folder = manifest
        .parent()
        .and_then(|folder| folder.strip_prefix(root).ok())
        .with_context(|| format!("{name} is outside the workspace"))?;
    let needs = package["dependencies"]
        .as_array()
        .context("no dependencies")?;
    let needs = needs.iter().map(|need| {
        let name = need["name"]
            .as_str()
            .context("a dependency without name")?
            .to_owned();
        Ok(Need {
            name,
            is_for_tests: need["kind"] == "dev",
        })
    });
    let targets = package["targets"].as_array().context("no targets")?;
    let roots = targets.iter().filter(|target| {
        let kinds = target["kind"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        kinds
            .iter()
            .any(|kind| kind == "lib" || kind == "bin" || kind == "proc-macro")
    });
    Ok(Member {
        name,
        folder: folder.to_string_lossy().into_owned(),
        needs: needs.collect::<Result<_>>()?,
        roots: roots
            .filter_map(|target| target["src_path"].as_str())
            .map(PathBuf::from)
            .collect(),
    })
}

fn layer(folder: &str) -> Option<u32> {
    let top = folder.split('/').next()?;
    LAYERS
        .iter()
        .find(|(name, _)| *name == top)
        .map(|(_, layer)| *layer)
}

/// Is `folder` the place, or in it?
fn is_in(folder: &str, place: &str) -> bool {
    folder == place
        || folder
            .strip_prefix(place)
            .is_some_and(|rest| rest.starts_with('/'))
}

fn check_edges(members: &[Member]) -> Vec<String> {
    let folders: BTreeMap<&str, &str> = members
        .iter()
        .map(|member| (member.name.as_str(), member.folder.as_str()))
        .collect();
    let mut found = Vec::new();
    for member in members {
        found.extend(check_name(member));
        let Some(own) = layer(&member.folder) else {
            found.push(format!(
                "{} is in {}, which is no layer",
                member.name, member.folder
            ));
            continue;
        };
        for need in &member.needs {
            let Some(other) = folders.get(need.name.as_str()) else {
                found.extend(check_outside(member, need));
                continue;
            };
            if need.is_for_tests && is_in(other, TESTING) {
                continue;
            }
            let edge = format!(
                "{} ({}) depends on {} ({other})",
                member.name, member.folder, need.name
            );
            // An unknown layer is reported where it is, not at everyone who depends on it.
            if layer(other).is_some_and(|other| other > own) {
                found.push(format!("{edge}: that is a higher layer"));
                continue;
            }
            for (from, to, why) in RULES {
                if is_in(&member.folder, from) && is_in(other, to) && member.folder != CATALOG {
                    found.push(format!("{edge}: {why}"));
                }
            }
        }
    }
    found
}

fn check_name(member: &Member) -> Option<String> {
    let name = member.name.as_str();
    if let Some(word) = name.split('-').find(|word| EMPTY_NAMES.contains(word)) {
        return Some(format!(
            "{name} ({}) has {word:?} in its name, which says nothing",
            member.folder
        ));
    }
    let is_ours = name == "xtask" || name == "nyx" || name.starts_with("nyx-");
    (!is_ours).then(|| format!("{name} ({}) is not called nyx-…", member.folder))
}

fn check_outside(member: &Member, need: &Need) -> Option<String> {
    let (name, places, why) = OUTSIDE.iter().find(|(name, ..)| *name == need.name)?;
    let is_allowed = places.iter().any(|place| is_in(&member.folder, place));
    (!is_allowed).then(|| {
        let places = places.join(", ");
        format!(
            "{} ({}) depends on {name}, which belongs in {places}: {why}",
            member.name, member.folder
        )
    })
}

fn check_source(path: &Path, text: &str, member: &Member, is_root: bool) -> Vec<String> {
    let mut found = Vec::new();
    let shown = path.display();
    if !text.starts_with("//!") {
        found.push(format!(
            "{shown} does not begin with a //! line that says what it is for"
        ));
    }
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        found.push(format!("{shown} has a name that says nothing"));
    }
    let folder = member.folder.rsplit('/').next().unwrap_or_default();
    let forbids = text
        .lines()
        .any(|line| line.trim() == "#![forbid(unsafe_code)]");
    if is_root && !forbids && !UNSAFE.contains(&folder) {
        found.push(format!(
            "{shown} does not say #![forbid(unsafe_code)], and {} may not use unsafe code",
            member.name
        ));
    }
    found
}

/// The Rust files of a crate, but not of crates or built files below it.
fn source_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = ["src", "tests", "benches", "examples"]
        .iter()
        .map(|name| folder.join(name))
        .collect();
    let build = folder.join("build.rs");
    if build.is_file() {
        files.push(build);
    }
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry
                .with_context(|| format!("cannot list {}", folder.display()))?
                .path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
