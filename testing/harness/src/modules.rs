//! Kernel modules: which files to insert, in which order, for the modules one wants.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::tool::Tool;

/// The modules of one kernel, as `depmod` indexed them.
#[derive(Debug)]
pub struct ModuleTree {
    folder: PathBuf,
    /// Module name to its file and the files it needs first, relative to the folder.
    files: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl ModuleTree {
    /// Reads the index of `folder`, a `lib/modules/RELEASE`.
    pub fn open(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Self {
            folder: folder.to_owned(),
            files: parse_dependencies(&read("modules.dep")?),
            builtin: read("modules.builtin")?.lines().map(name_of).collect(),
        })
    }

    /// The files to insert so that all of `wanted` are there, each after what it needs.
    ///
    /// A module built into the kernel needs no file; one that this kernel does not have at all is left
    /// out (the cloud kernel lacks much), so callers list what must be there in `required`.
    pub fn load_order(&self, wanted: &[&str], required: &[&str]) -> Result<Vec<PathBuf>> {
        for name in required {
            let name = canonical(name);
            if !self.files.contains_key(&name) && !self.builtin.contains(&name) {
                bail!(
                    "the kernel of {} has no module {name}",
                    self.folder.display()
                );
            }
        }
        let mut order: Vec<&str> = Vec::new();
        for name in required.iter().chain(wanted) {
            let Some((file, needs)) = self.files.get(&canonical(name)) else {
                continue;
            };
            // modules.dep lists what a module needs with the deepest need last.
            for path in needs.iter().rev().chain([file]) {
                if !order.contains(&path.as_str()) {
                    order.push(path);
                }
            }
        }
        Ok(order
            .into_iter()
            .map(|path| self.folder.join(path))
            .collect())
    }
}

/// The content of a module file, unpacked if the distribution packs them.
pub fn content(path: &Path) -> Result<Vec<u8>> {
    let packed_by = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    Tool::new(packed_by).arg("-dc").arg(path).output()
}

/// The name of a module file without its folder and endings, in the kernel's spelling.
pub fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split(".ko").next().unwrap_or(file))
}

/// Module names are spelled with `-` or `_` alike; the kernel reports `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn parse_dependencies(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| {
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            (name_of(file), (file.to_owned(), needs))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, ModuleTree) {
        let folder = tempfile::tempdir().unwrap();
        let dependencies = "kernel/virtio.ko:\n\
            kernel/virtio-ring.ko.xz: kernel/virtio.ko\n\
            kernel/blk.ko: kernel/virtio-ring.ko.xz kernel/virtio.ko\n\
            kernel/net.ko: kernel/failover.ko kernel/virtio-ring.ko.xz kernel/virtio.ko\n\
            kernel/failover.ko:\n";
        fs::write(folder.path().join("modules.dep"), dependencies).unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/fs/ext4.ko\n").unwrap();
        let tree = ModuleTree::open(folder.path()).unwrap();
        (folder, tree)
    }

    #[test]
    fn needs_come_first_and_only_once() {
        let (folder, tree) = tree();
        let order = tree
            .load_order(&["net", "not_there"], &["blk", "ext4"])
            .unwrap();
        let names: Vec<String> = order
            .iter()
            .map(|path| {
                path.strip_prefix(folder.path())
                    .unwrap()
                    .display()
                    .to_string()
            })
            .collect();
        assert_eq!(
            names,
            [
                "kernel/virtio.ko",
                "kernel/virtio-ring.ko.xz",
                "kernel/blk.ko",
                "kernel/failover.ko",
                "kernel/net.ko"
            ]
        );
    }

    #[test]
    fn a_required_module_must_be_there() {
        let (_folder, tree) = tree();
        let error = tree.load_order(&[], &["nvme"]).unwrap_err().to_string();
        assert!(error.contains("no module nvme"), "{error}");
    }

    #[test]
    fn names_are_spelled_the_kernels_way() {
        assert_eq!(name_of("kernel/arch/x86/kvm/kvm-amd.ko.xz"), "kvm_amd");
        assert_eq!(name_of("crc32c-intel.ko"), "crc32c_intel");
    }
}
