//! Files put aside by time or size, named by time, and deleted by age or number.

use crate::config::{Bytes, Rotate};
use crate::time::Timestamp;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEFAULT_SIZE: u64 = 64 << 20;
const DAY: Duration = Duration::from_secs(86_400);
/// Most files that end in the same second.
const MAX_TWINS: u32 = 1000;

/// When a file is put aside, under which name, and until when it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    path: PathBuf,
    rotate: Rotate,
    max_size: Option<u64>,
    /// 0: for ever.
    keep_days: u32,
    max_files: Option<u32>,
}

/// A file put aside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Aside {
    /// When its last entry was written, to the second.
    pub(crate) time: Timestamp,
    twin: u32,
    pub(crate) path: PathBuf,
}

impl Rotation {
    pub(crate) fn new(path: &Path, rotate: Rotate, max_size: Option<Bytes>) -> Self {
        let max_size = match (rotate, max_size) {
            (_, Some(size)) => Some(size.0),
            (Rotate::Size, None) => Some(DEFAULT_SIZE),
            _ => None,
        };
        Self {
            path: path.into(),
            rotate,
            max_size,
            keep_days: 0,
            max_files: None,
        }
    }

    /// With limits for what was put aside.
    pub(crate) fn keep(mut self, days: u32, files: Option<u32>) -> Self {
        self.keep_days = days;
        self.max_files = files;
        self
    }

    /// Whether the file, last written at `last` and `size` bytes long, must go before `more` bytes
    /// are written at `now`.
    pub(crate) fn is_due(&self, last: Timestamp, size: u64, more: usize, now: Timestamp) -> bool {
        let by_time = match self.rotate {
            Rotate::Never | Rotate::Size => false,
            Rotate::Hourly => now.hours() > last.hours(),
            Rotate::Daily => now.days() > last.days(),
        };
        let by_size = self
            .max_size
            .is_some_and(|max| size.saturating_add(more as u64) > max);
        size > 0 && (by_time || by_size)
    }

    /// What names of files put aside begin and end with.
    fn affixes(&self) -> (String, String) {
        let part = |part: Option<&std::ffi::OsStr>| {
            part.unwrap_or_default().to_string_lossy().into_owned()
        };
        let extension = match self.path.extension() {
            None => String::new(),
            extension => format!(".{}", part(extension)),
        };
        (format!("{}-", part(self.path.file_stem())), extension)
    }

    /// Renames the file after the time of its last entry; never over another file.
    pub(crate) fn put_aside(&self, last: Timestamp) -> io::Result<PathBuf> {
        let (before, after) = self.affixes();
        let stamp = last.compact();
        for twin in 0..MAX_TWINS {
            let twin = match twin {
                0 => String::new(),
                twin => format!("-{twin}"),
            };
            let aside = self
                .path
                .with_file_name(format!("{before}{stamp}{twin}{after}"));
            match renameat_with(CWD, &self.path, CWD, &aside, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(aside),
                Err(rustix::io::Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn aside(&self, name: &str, before: &str, after: &str) -> Option<Aside> {
        let middle = name.strip_prefix(before)?.strip_suffix(after)?;
        let (stamp, twin) = middle.split_at_checked(16)?;
        let twin = match twin {
            "" => 0,
            twin => twin.strip_prefix('-')?.parse().ok().filter(|n| *n > 0)?,
        };
        let part = |from, to| stamp.get(from..to);
        let time = format!(
            "{}-{}-{}T{}:{}:{}Z",
            part(0, 4)?,
            part(4, 6)?,
            part(6, 8)?,
            part(9, 11)?,
            part(11, 13)?,
            part(13, 15)?
        );
        let time: Timestamp = time.parse().ok()?;
        (time.compact() == stamp).then(|| Aside {
            time,
            twin,
            path: self.path.with_file_name(name),
        })
    }

    /// The files put aside, oldest first. Only files with exactly such a name are among them.
    pub(crate) fn list(&self) -> io::Result<Vec<Aside>> {
        let (before, after) = self.affixes();
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            let aside = name
                .to_str()
                .and_then(|name| self.aside(name, &before, &after));
            found.extend(aside);
        }
        found.sort();
        Ok(found)
    }

    /// Deletes what is too old or too much.
    pub(crate) fn clean(&self, now: Timestamp) -> io::Result<()> {
        if self.keep_days == 0 && self.max_files.is_none() {
            return Ok(());
        }
        let found = self.list()?;
        let oldest = match self.keep_days {
            0 => Timestamp::default(),
            days => now.before(DAY * days),
        };
        let most = self.max_files.map_or(usize::MAX, |most| most as usize);
        let excess = found.len().saturating_sub(most);
        for (index, aside) in found.iter().enumerate() {
            if index < excess || aside.time < oldest {
                match fs::remove_file(&aside.path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
