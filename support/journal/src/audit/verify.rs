//! Checks a trail.

use super::key::PublicKey;
use super::record::{Broken, Content, HEAD_SIZE, Hash, Head, MAX_LINE, check, hex};
use crate::config::{Rotate, beside};
use crate::entry::Entry;
use crate::rotation::Rotation;
use rustix::fs::OFlags;
use serde::Serialize;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most findings listed; more are counted.
const MAX_FINDINGS: usize = 100;

/// Something wrong with a trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// In which file.
    pub file: PathBuf,
    /// In which line, from 1; 0: in none, such as when something is missing at the end.
    pub line: u64,
    /// The number of the record, if it is known.
    pub sequence: Option<u64>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ", line {}", self.line)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// What the check of a trail found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The files of the trail, oldest first.
    pub files: Vec<PathBuf>,
    /// Records that are intact by themselves.
    pub records: u64,
    /// The number of the newest of them.
    pub newest: u64,
    /// Whether the process that wrote last ended in good order.
    pub sealed: bool,
    /// How many entries the writer itself had to give up, and says so.
    pub lost: u64,
    /// What is wrong: the first 100. Empty: nothing.
    pub findings: Vec<Finding>,
    /// All that is wrong.
    pub found: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_intact(&self) -> bool {
        self.found == 0
    }
}

/// Where the chain is.
struct Walk<'a> {
    key: &'a PublicKey,
    report: Report,
    /// Number and hash of the record before.
    newest: (u64, Hash),
    sees: &'a mut dyn FnMut(&Entry),
}

impl Walk<'_> {
    fn found(&mut self, file: &Path, line: u64, sequence: Option<u64>, reason: String) {
        self.report.found += 1;
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(Finding {
                file: file.into(),
                line,
                sequence,
                reason,
            });
        }
    }

    fn file(&mut self, path: &Path) -> io::Result<()> {
        let mut reader = BufReader::new(open(path)?);
        let mut line = Vec::new();
        let mut number = 0;
        loop {
            line.clear();
            let limit = MAX_LINE as u64 + 1;
            if reader.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            number += 1;
            match line.strip_suffix(b"\n") {
                Some(line) => self.line(path, number, line),
                None => {
                    let reason = format!("{} bytes are no whole record", line.len());
                    self.found(path, number, None, reason);
                    skip_line(&mut reader)?;
                }
            }
        }
    }

    fn line(&mut self, file: &Path, number: u64, line: &[u8]) {
        let (record, hash) = match check(line, self.key) {
            Ok(checked) => checked,
            Err((broken, sequence)) => {
                let name = sequence.map_or("this".into(), |sequence| format!("record {sequence}"));
                let reason = match broken {
                    Broken::Form => format!("{name} does not have the form of a record"),
                    Broken::Hash => {
                        format!("{name} was changed: its content does not have its hash")
                    }
                    Broken::Signature => format!("{name} is not signed with this key"),
                };
                self.found(file, number, sequence, reason);
                return;
            }
        };
        let sequence = record.sequence;
        let (before, previous) = self.newest;
        let fault = if sequence <= before {
            Some(format!("record {sequence} comes after record {before}"))
        } else if sequence > before + 1 {
            Some(match sequence - before {
                2 => format!("record {} is missing before it", sequence - 1),
                _ => format!(
                    "records {} to {} are missing before it",
                    before + 1,
                    sequence - 1
                ),
            })
        } else if record.previous != hex(&previous) {
            Some(format!(
                "record {sequence} does not continue the record before it"
            ))
        } else {
            None
        };
        if let Some(reason) = fault {
            self.found(file, number, Some(sequence), reason);
        }
        self.newest = (sequence, hash);
        self.report.records += 1;
        self.report.newest = self.report.newest.max(sequence);
        self.report.sealed = matches!(record.content, Content::Seal);
        match record.content {
            Content::Entry(entry) => (self.sees)(&entry),
            Content::Lost { count } => self.report.lost = self.report.lost.saturating_add(count),
            Content::Open { .. } | Content::Seal => {}
        }
    }

    fn head(&mut self, path: &Path, bytes: Option<&[u8]>) {
        let checked = bytes.map(|bytes| Head::check(bytes, self.key));
        let (newest, hash) = self.newest;
        let reason = match checked {
            None => "the checkpoint is missing, so the end of the trail may be too".into(),
            Some(None) => "the checkpoint was changed, or is signed with another key".into(),
            Some(Some(head)) if head.sequence > newest => match head.sequence - newest {
                1 => format!("record {} is missing at the end", head.sequence),
                _ => format!(
                    "records {} to {} are missing at the end",
                    newest + 1,
                    head.sequence
                ),
            },
            Some(Some(head)) if head.sequence == newest && head.hash() != Some(hash) => {
                format!("record {newest} is not the one that the checkpoint names")
            }
            Some(Some(_)) => return,
        };
        self.found(path, 0, None, reason);
    }
}

/// Opens a regular file. A pipe in its place must not be waited for.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        let message = format!("{} is not a regular file", path.display());
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        match bytes.iter().position(|b| *b == b'\n') {
            Some(newline) => {
                reader.consume(newline + 1);
                return Ok(());
            }
            None => {
                let count = bytes.len();
                reader.consume(count);
            }
        }
    }
}

/// The number of the first record of a file, by which files are put in order: their names carry
/// times, and clocks are set back.
fn first(path: &Path) -> u64 {
    let mut line = Vec::new();
    let read = open(path)
        .and_then(|file| file.take(64).read_to_end(&mut line))
        .is_ok();
    read.then(|| super::record::claimed(&line))
        .flatten()
        .unwrap_or(u64::MAX)
}

/// Checks the trail at `path` with all files that were put aside, and its checkpoint: any change,
/// cut, insertion or new order is found. A trail that is being written may be checked.
///
/// # Errors
/// A file cannot be read. That nothing is there at all is a finding, not an error.
pub fn verify(path: &Path, key: &PublicKey) -> io::Result<Report> {
    verify_each(path, key, &mut |_| {})
}

/// As [`verify`], with the public key in a file.
///
/// # Errors
/// The key or a file cannot be read.
pub fn verify_file(path: &Path, key: &Path) -> io::Result<Report> {
    let key = PublicKey::from_file(key)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e.to_string()))?;
    verify(path, &key)
}

/// As [`verify`], and shows every intact entry to `sees`, in the order of the files.
///
/// # Errors
/// A file cannot be read.
pub fn verify_each(
    path: &Path,
    key: &PublicKey,
    sees: &mut dyn FnMut(&Entry),
) -> io::Result<Report> {
    // The checkpoint first: a trail that is being written may be ahead of it then, never behind.
    let head_path = beside(path, ".head");
    let head = match open(&head_path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(HEAD_SIZE as u64 + 1).read_to_end(&mut bytes)?;
            Some(bytes)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let aside = Rotation::new(path, Rotate::Never, None).list()?;
    let mut files: Vec<_> = aside.into_iter().map(|aside| aside.path).collect();
    files.sort_by_cached_key(|path| first(path));
    if fs::exists(path)? {
        files.push(path.into());
    }
    let mut walk = Walk {
        key,
        report: Report::default(),
        newest: (0, [0; 32]),
        sees,
    };
    for file in &files {
        walk.file(file)?;
    }
    walk.head(&head_path, head.as_deref());
    walk.report.files = files;
    Ok(walk.report)
}
