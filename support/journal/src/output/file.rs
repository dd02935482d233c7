//! Entries in a file, with rotation.

use super::{Fault, Sink};
use crate::config::{FileOutput, Format, JournalError};
use crate::entry::Entry;
use crate::rotation::Rotation;
use crate::time::Timestamp;
use rustix::fs::OFlags;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long rotation is left alone after it failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct LogFile {
    path: PathBuf,
    format: Format,
    rotation: Rotation,
    file: Option<Opened>,
    trouble: Option<String>,
    rotation_failed: Option<Instant>,
}

struct Opened {
    file: File,
    device: u64,
    inode: u64,
    is_regular: bool,
    /// When the last entry was written.
    last: Timestamp,
}

/// Makes the folder of `path`, for its owner and group only, if it is missing.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => {
            DirBuilder::new().recursive(true).mode(0o750).create(folder)
        }
        _ => Ok(()),
    }
}

fn open(path: &Path) -> io::Result<Opened> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        // A pipe without a reader must not be waited for.
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    let facts = file.metadata()?;
    Ok(Opened {
        device: facts.dev(),
        inode: facts.ino(),
        is_regular: facts.is_file(),
        last: facts.modified()?.into(),
        file,
    })
}

impl LogFile {
    pub(crate) fn open(config: &FileOutput, field: &str) -> Result<Self, JournalError> {
        let refused = |source| JournalError::Open {
            field: format!("{field}.path"),
            path: config.path.clone(),
            source,
        };
        make_folder(&config.path).map_err(refused)?;
        let file = open(&config.path).map_err(refused)?;
        Ok(Self {
            path: config.path.clone(),
            format: config.format,
            rotation: Rotation::new(&config.path, config.rotate, config.max_size)
                .keep(config.keep_days, config.max_files),
            file: Some(file),
            trouble: None,
            rotation_failed: None,
        })
    }

    /// Puts the file aside if it is time to. A failure to do so is said, and the file used on.
    fn rotate(&mut self, more: usize, now: Timestamp) {
        let Some(opened) = self.file.as_ref().filter(|opened| opened.is_regular) else {
            return;
        };
        let size = opened.file.metadata().map_or(0, |facts| facts.len());
        let is_waiting = self
            .rotation_failed
            .is_some_and(|at| at.elapsed() < PATIENCE);
        if is_waiting || !self.rotation.is_due(opened.last, size, more, now) {
            return;
        }
        let done = self.rotation.put_aside(opened.last);
        if done.is_ok() {
            self.file = None;
        }
        if let Err(e) = done.and_then(|_| self.rotation.clean(now)) {
            if self.rotation_failed.is_none() {
                let path = self.path.display();
                self.trouble = Some(format!("{path} cannot be rotated: {e}; it is used on"));
            }
            self.rotation_failed = Some(Instant::now());
        } else {
            self.rotation_failed = None;
        }
    }

    /// The file at the path; opened anew if somebody moved or deleted it.
    fn current(&mut self) -> io::Result<&mut Opened> {
        if let Some(opened) = &self.file {
            let is_same = fs::metadata(&self.path)
                .is_ok_and(|facts| facts.dev() == opened.device && facts.ino() == opened.inode);
            if !is_same {
                self.file = None;
            }
        }
        match &mut self.file {
            Some(opened) => Ok(opened),
            none => {
                make_folder(&self.path)?;
                Ok(none.insert(open(&self.path)?))
            }
        }
    }

    fn put(&mut self, line: &[u8], now: Timestamp) -> io::Result<()> {
        let opened = self.current()?;
        let before = opened.file.metadata()?.len();
        let mut written = 0;
        while let Some(rest) = line.get(written..).filter(|rest| !rest.is_empty()) {
            match opened.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    super::stream::wait_writable(&opened.file)?;
                }
                Err(e) => {
                    // A part of a line must not stay, unless somebody else wrote after it.
                    let is_ours = opened.is_regular
                        && opened
                            .file
                            .metadata()
                            .is_ok_and(|facts| facts.len() == before + written as u64);
                    if written > 0 && is_ours {
                        opened.file.set_len(before)?;
                    }
                    return Err(e);
                }
            }
        }
        opened.last = now;
        Ok(())
    }
}

impl Sink for LogFile {
    fn write(&mut self, entry: &Entry) -> Result<(), Fault> {
        let mut line = match self.format {
            Format::Text => entry.to_string(),
            Format::Json => serde_json::to_string(entry).map_err(|_| Fault::Refused)?,
        };
        line.push('\n');
        self.rotate(line.len(), entry.time);
        self.put(line.as_bytes(), entry.time).map_err(|e| {
            let path = self.path.display();
            Fault::Again(io::Error::new(e.kind(), format!("{path}: {e}")))
        })
    }

    fn trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(5)
    }
}
