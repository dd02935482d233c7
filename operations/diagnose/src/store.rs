//! Bundles on disk: a folder for each, the last few of each machine.
//!
//! A bundle is written beside its place, made durable, and put into place by one rename: what has its name is
//! whole. Folders are for their owner alone, since consoles may show secrets.

use crate::bundle::{Bundle, FORMAT};
use crate::text;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bundles kept of each machine.
const KEPT: usize = 5;
/// Largest file of a bundle, in bytes, written or read.
const LARGEST: usize = 8 << 20;
/// The folder below a machine's state folder.
const FOLDER: &str = "bundles";
/// What a bundle that is being written is called.
const FRESH: &str = ".fresh-";
/// Entries of a journal that are kept.
const JOURNAL: usize = 2000;

/// A bundle could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The name is none of a machine.
    #[error("{0:?} is no name of a machine")]
    Name(String),
    /// The file system is full.
    #[error("no room for the bundle in {}: the file system is full", .0.display())]
    Full(PathBuf),
    /// Anything else of the file system.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// What is there is no bundle, or one of a later Nyx.
    #[error("{} is no bundle this version can read: {why}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A bundle in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its folder.
    pub folder: PathBuf,
    /// Whether everything went in; else the file system had room for the summary only.
    pub is_whole: bool,
}

/// The bundles of all machines, below a state folder.
#[derive(Clone, Debug)]
pub struct Store {
    state: PathBuf,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full(path),
        _ => StoreError::Io { what, path, source },
    }
}

impl Store {
    /// The bundles below `state`, the folder with one folder for each machine. Nothing is made before it is
    /// needed.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
        }
    }

    /// The folder of a machine's bundles.
    fn folder(&self, name: &str) -> Result<PathBuf, StoreError> {
        let is_name = !name.is_empty()
            && name.len() <= 128
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !is_name {
            return Err(StoreError::Name(text::clean(name, 64)));
        }
        Ok(self.state.join(name).join(FOLDER))
    }

    /// Writes a bundle and removes those that are too many. Where the file system has no room for all of it, the
    /// summary alone is tried. Whatever comes of it, the caller goes on.
    pub fn keep(&self, bundle: &Bundle) -> Result<Kept, StoreError> {
        let place = self.folder(&bundle.name)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&place)
            .map_err(failed("make", &place))?;
        remove_fresh(&place);
        let (folder, is_whole) = match write(&place, bundle, true) {
            Err(StoreError::Full(_)) => {
                // The oldest make room for the newest, which says why there is none.
                prune(&place, 1);
                (write(&place, bundle, false)?, false)
            }
            other => (other?, true),
        };
        prune(&place, KEPT);
        Ok(Kept { folder, is_whole })
    }

    /// The bundles of a machine, newest first.
    pub fn list(&self, name: &str) -> Result<Vec<PathBuf>, StoreError> {
        let place = self.folder(name)?;
        match list(&place) {
            Ok(list) => Ok(list),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(failed("read", &place)(e)),
        }
    }

    /// The newest bundle of a machine that can be read, with its folder.
    pub fn latest(&self, name: &str) -> Result<Option<(PathBuf, Bundle)>, StoreError> {
        let mut first_error = None;
        for folder in self.list(name)? {
            match Self::open(&folder) {
                Ok(bundle) => return Ok(Some((folder, bundle))),
                Err(e) => {
                    first_error.get_or_insert(e);
                }
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    /// Reads a bundle from its folder.
    pub fn open(folder: &Path) -> Result<Bundle, StoreError> {
        let path = folder.join("summary.json");
        let mut bundle: Bundle = read(&path)?;
        if bundle.format != FORMAT {
            return Err(StoreError::Format {
                path,
                why: format!("its form is {}, not {FORMAT}", bundle.format),
            });
        }
        // These may be absent, where there was no room for them.
        bundle.config = read(&folder.join("config.json")).unwrap_or_default();
        bundle.plan = read(&folder.join("plan.json")).unwrap_or_default();
        bundle.inspect = read(&folder.join("inspect.json")).unwrap_or_default();
        bundle.journal = read(&folder.join("journal.json")).unwrap_or_default();
        Ok(bundle)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST as u64 + 1).read_to_end(&mut bytes))
        .map_err(failed("read", path))?;
    let wrong = |why: String| StoreError::Format {
        path: path.to_owned(),
        why,
    };
    if bytes.len() > LARGEST {
        return Err(wrong(format!("it is longer than {LARGEST} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))
}

/// The folders of bundles, newest first.
fn list(place: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_bundle = name
            .to_str()
            .is_some_and(|name| name.starts_with(|c: char| c.is_ascii_digit()));
        if is_bundle && entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    // Names begin with the time.
    found.sort();
    found.reverse();
    Ok(found)
}

/// Removes the oldest bundles beyond `kept`. One that cannot be removed stays.
fn prune(place: &Path, kept: usize) {
    for old in list(place).unwrap_or_default().iter().skip(kept) {
        let _ = fs::remove_dir_all(old);
    }
}

/// Removes what an earlier process left half-written.
fn remove_fresh(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(FRESH) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes a bundle's folder, or only its summary.
fn write(place: &Path, bundle: &Bundle, is_whole: bool) -> Result<PathBuf, StoreError> {
    let name = format!("{:013}-{}", bundle.written_ms, std::process::id());
    let fresh = place.join(format!("{FRESH}{name}"));
    let folder = place.join(&name);
    let done = fill(&fresh, bundle, is_whole).and_then(|()| {
        // Of the same millisecond and process: the same machine, told again.
        let _ = fs::remove_dir_all(&folder);
        fs::rename(&fresh, &folder).map_err(failed("make", &folder))?;
        sync(place)
    });
    if done.is_err() {
        // Its room is needed by others.
        let _ = fs::remove_dir_all(&fresh);
    }
    done.map(|()| folder)
}

fn fill(fresh: &Path, bundle: &Bundle, is_whole: bool) -> Result<(), StoreError> {
    DirBuilder::new()
        .mode(0o700)
        .create(fresh)
        .map_err(failed("make", fresh))?;
    if is_whole {
        put_json(fresh, "summary.json", bundle)?;
        for (name, value) in [
            ("config.json", &bundle.config),
            ("plan.json", &bundle.plan),
            ("inspect.json", &bundle.inspect),
        ] {
            put_json(fresh, name, value)?;
        }
        let from = bundle.journal.len().saturating_sub(JOURNAL);
        put_json(
            fresh,
            "journal.json",
            &bundle.journal.get(from..).unwrap_or_default(),
        )?;
        for (index, console) in bundle.scene.consoles.iter().enumerate() {
            let kept = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let name: String = console.name.chars().filter(kept).take(64).collect();
            let mut file = format!("console-{name}.txt");
            if fresh.join(&file).exists() {
                file = format!("console-{name}-{index}.txt");
            }
            put(fresh, &file, readable(console).as_bytes())?;
        }
        put(fresh, "why.txt", crate::render(bundle, None).as_bytes())?;
    } else {
        let mut summary = bundle.clone();
        summary.scene.consoles.clear();
        put_json(fresh, "summary.json", &summary)?;
    }
    sync(fresh)
}

/// What a console said, for reading: without control functions, one line for one.
fn readable(console: &crate::Console) -> String {
    let mut shown = String::new();
    let mut add = |part: &str| {
        for line in part.split('\n') {
            shown.push_str(text::clean(line, text::LONGEST).trim_end());
            shown.push('\n');
        }
    };
    add(&console.head);
    if console.lost_bytes > 0 {
        add(&format!(
            "[... {} bytes, {} lines not kept ...]",
            console.lost_bytes, console.lost_lines
        ));
    }
    if !console.tail.is_empty() {
        add(&console.tail);
    }
    shown
}

fn put_json<T: serde::Serialize>(folder: &Path, name: &str, value: &T) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| StoreError::Format {
        path: folder.join(name),
        why: e.to_string(),
    })?;
    if bytes.len() > LARGEST {
        // Cut JSON is none: say so in its place.
        let note = Value::String(format!("left out: {} bytes", bytes.len()));
        return put(folder, name, note.to_string().as_bytes());
    }
    put(folder, name, &bytes)
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let path = folder.join(name);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(failed("write", &path))
}

fn sync(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("write", folder))
}

#[cfg(test)]
mod tests;
