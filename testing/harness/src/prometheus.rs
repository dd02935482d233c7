//! Debian's Prometheus, unpacked and never installed: no service comes to life.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::{guests, produce::produce, workspace};

/// The monitoring server and its checker.
#[derive(Clone, Debug)]
pub struct Prometheus {
    /// `prometheus`.
    pub server: PathBuf,
    /// `promtool`.
    pub promtool: PathBuf,
}

/// Gives Debian's Prometheus, fetching it the first time.
pub fn prometheus() -> Result<Prometheus> {
    let folder = workspace::cache_folder().join("prometheus");
    produce(&folder, "prometheus, layout 1\n", |fresh| {
        eprintln!("nyx: fetching prometheus: the metrics page is checked and read by it");
        guests::fetch("prometheus", fresh)
    })?;
    let bin = folder.join("usr/bin");
    let found = Prometheus {
        server: bin.join("prometheus"),
        promtool: bin.join("promtool"),
    };
    for program in [&found.server, &found.promtool] {
        ensure!(
            program.is_file(),
            "the package prometheus has no {}",
            program.display()
        );
    }
    Ok(found)
}
