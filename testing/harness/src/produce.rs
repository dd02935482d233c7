//! Makes a folder of files once and keeps it until its recipe changes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The file inside a produced folder that holds the recipe it was made by.
const STAMP: &str = ".recipe";

/// A lock that other processes of the project respect; released when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: fs::File,
}

impl Lock {
    /// Takes the lock named by `path`, waiting for whoever holds it.
    pub fn take(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let file =
            fs::File::create(path).with_context(|| format!("cannot open {}", path.display()))?;
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

/// Gives `folder` as `build` makes it, building only if it is absent or was made by another recipe.
///
/// `build` fills a fresh folder, which takes its place in one rename: a reader never sees half of it,
/// and a build that fails leaves what was there. Test processes running side by side build once.
pub fn produce(
    folder: &Path,
    recipe: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    if is_made(folder, recipe) {
        return Ok(folder.to_owned());
    }
    let _lock = Lock::take(&folder.with_added_extension("lock"))?;
    if is_made(folder, recipe) {
        return Ok(folder.to_owned());
    }
    let fresh = folder.with_added_extension("new");
    remove_tree(&fresh)?;
    fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    if let Err(error) = build(&fresh) {
        // The error is what the user must see, not a failure to tidy up after it.
        let _ = remove_tree(&fresh);
        return Err(error);
    }
    fs::write(fresh.join(STAMP), recipe)
        .with_context(|| format!("cannot stamp {}", fresh.display()))?;
    remove_tree(folder)?;
    fs::rename(&fresh, folder)
        .with_context(|| format!("cannot put {} in place", folder.display()))?;
    Ok(folder.to_owned())
}

fn is_made(folder: &Path, recipe: &str) -> bool {
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|made| made == recipe)
}

fn remove_tree(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_once_and_again_when_the_recipe_changes() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("thing");
        let mut builds = 0;
        for recipe in ["one", "one", "two", "two"] {
            produce(&folder, recipe, |fresh| {
                builds += 1;
                Ok(fs::write(fresh.join("content"), recipe)?)
            })
            .unwrap();
            assert_eq!(fs::read_to_string(folder.join("content")).unwrap(), recipe);
        }
        assert_eq!(builds, 2);
    }

    #[test]
    fn a_failed_build_leaves_the_old_one() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("thing");
        produce(&folder, "one", |fresh| {
            Ok(fs::write(fresh.join("content"), "kept")?)
        })
        .unwrap();
        let failed = produce(&folder, "two", |_| anyhow::bail!("no flour"));
        assert_eq!(failed.unwrap_err().to_string(), "no flour");
        assert_eq!(fs::read_to_string(folder.join("content")).unwrap(), "kept");
        assert!(!place.path().join("thing.new").exists());
    }
}
