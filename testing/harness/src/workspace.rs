//! Where the project's tree and its cache of guests are.

use std::path::{Path, PathBuf};

/// The root of the workspace this crate was built from.
pub fn root() -> &'static Path {
    // This crate lives two folders below the root.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// The folder that holds fetched and built guests: `$NYX_CACHE`, or `target/guests`.
pub fn cache_folder() -> PathBuf {
    match std::env::var_os("NYX_CACHE") {
        Some(folder) if !folder.is_empty() => folder.into(),
        _ => target_folder().join("guests"),
    }
}

/// The folder cargo builds into: `$CARGO_TARGET_DIR`, or `target` of the workspace.
pub fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) if !folder.is_empty() => root().join(folder),
        _ => root().join("target"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_root_is_the_workspace() {
        let manifest = std::fs::read_to_string(super::root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace]"));
    }
}
