//! Writes the trail.

use super::key::{self, PublicKey};
use super::record::{self, Content, HEAD_SIZE, Hash, Head, MAX_LINE, Record, hex};
use crate::config::{AuditConfig, Fsync, JournalError, beside};
use crate::entry::Entry;
use crate::output::file::make_folder;
use crate::output::{Fault, Sink};
use crate::rotation::Rotation;
use crate::stats::JournalStats;
use crate::time::Timestamp;
use ed25519_dalek::SigningKey;
use rustix::fs::{FlockOperation, OFlags, flock};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much of the end of a trail is read when it is continued; the last record is in it.
const TAIL: u64 = 2 * MAX_LINE as u64;
const SECOND: Duration = Duration::from_secs(1);

pub(crate) struct Trail {
    path: PathBuf,
    log: Option<File>,
    last: Timestamp,
    head: File,
    key: SigningKey,
    rotation: Rotation,
    fsync: Fsync,
    sequence: u64,
    previous: Hash,
    is_sealed: bool,
    /// Records that the checkpoint does not show yet.
    is_ahead: bool,
    /// When the first record was written that is not forced to the disk yet.
    unsynced: Option<Instant>,
    trouble: Option<String>,
    rotation_failed: bool,
    stats: Arc<JournalStats>,
}

fn open_log(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        let message = "it is not a regular file";
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }
}

/// Locks the checkpoint. A child of this process may hold a lock that was given up already, for as
/// long as it has not called exec.
fn lock(head: &File) -> bool {
    for _ in 0..20 {
        if flock(head, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// The end of a file that lies there already.
struct Tail {
    newest: Option<(u64, Hash)>,
    torn: u64,
}

/// Finds the last whole line, and whether it is a record of ours.
fn tail(log: &File, key: &PublicKey) -> io::Result<Tail> {
    let length = log.metadata()?.len();
    let start = length.saturating_sub(TAIL);
    let mut bytes = vec![0; usize::try_from(length - start).unwrap_or(0)];
    log.read_exact_at(&mut bytes, start)?;
    let whole = bytes
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |newline| newline + 1);
    let torn = (bytes.len() - whole) as u64;
    let line = bytes
        .get(..whole)
        .and_then(|lines| lines.strip_suffix(b"\n"))
        .and_then(|lines| lines.rsplit(|b| *b == b'\n').next());
    let newest = line
        .and_then(|line| record::check(line, key).ok())
        .map(|(record, hash)| (record.sequence, hash));
    Ok(Tail { newest, torn })
}

impl Trail {
    /// Begins a trail, or continues the one that is there.
    pub(crate) fn open(
        config: &AuditConfig,
        vm: Option<&str>,
        stats: Arc<JournalStats>,
    ) -> Result<Self, JournalError> {
        let path = config.path.clone();
        let failed = |source| JournalError::Open {
            field: "audit.path".into(),
            path: path.clone(),
            source,
        };
        let refused = |reason: &str| JournalError::Audit {
            path: path.clone(),
            reason: reason.into(),
        };
        make_folder(&path).map_err(failed)?;
        let key_path = config.key_path();
        make_folder(&key_path).map_err(failed)?;
        let rotation = Rotation::new(&path, config.rotate, config.max_size);
        let head_path = beside(&path, ".head");
        let exists = |path: &Path| fs::metadata(path).is_ok_and(|facts| facts.len() > 0);
        let is_new = !exists(&head_path);
        if is_new && (exists(&path) || !rotation.list().map_err(failed)?.is_empty()) {
            return Err(refused(
                "it has records but its checkpoint (.head) is missing, so its end may have been cut; keep it as evidence and name another path",
            ));
        }
        let key = key::load_or_make(&key_path).map_err(|e| refused(&e.to_string()))?;
        let public = PublicKey::of(&key);
        let head = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&head_path)
            .map_err(failed)?;
        if !lock(&head) {
            return Err(refused(
                "another process writes it; give every machine a trail of its own",
            ));
        }
        let mut trail = Self {
            log: None,
            last: Timestamp::now(),
            head,
            key,
            rotation,
            fsync: config.fsync,
            sequence: 0,
            previous: [0; 32],
            is_sealed: false,
            is_ahead: false,
            unsynced: None,
            trouble: None,
            rotation_failed: false,
            stats,
            path: path.clone(),
        };
        if is_new {
            // First, so that a trail without a checkpoint is always suspicious.
            trail.write_head().map_err(failed)?;
        } else {
            let mut bytes = [0; HEAD_SIZE];
            let intact = trail
                .head
                .read_exact_at(&mut bytes, 0)
                .is_ok()
                .then(|| Head::check(&bytes, &public))
                .flatten()
                .and_then(|head| Some((head.sequence, head.hash()?)));
            let Some((sequence, hash)) = intact else {
                return Err(refused(
                    "its checkpoint (.head) is damaged or signed with another key; name the right key, or keep the trail as evidence and name another path",
                ));
            };
            trail.sequence = sequence;
            trail.previous = hash;
        }
        let torn = trail.resume(&public).map_err(failed)?;
        trail
            .append(
                Timestamp::now(),
                Content::Open {
                    vm: vm.map(Into::into),
                    pid: std::process::id(),
                    public_key: public.to_string(),
                    torn,
                },
            )
            .map_err(failed)?;
        trail.settle(false).map_err(failed)?;
        Ok(trail)
    }

    /// Opens the file and finds out where to go on. If records are missing at its end, the
    /// checkpoint decides, and the gap stays visible for ever. Returns how much was torn.
    fn resume(&mut self, public: &PublicKey) -> io::Result<u64> {
        let log = open_log(&self.path)?;
        let Tail { newest, torn } = tail(&log, public)?;
        let facts = log.metadata()?;
        if torn > 0 {
            log.set_len(facts.len() - torn)?;
        }
        if facts.len() > 0 {
            self.last = facts.modified()?.into();
        }
        match newest {
            // The process before was killed after a record and before the checkpoint.
            Some((sequence, hash)) if sequence > self.sequence => {
                self.sequence = sequence;
                self.previous = hash;
            }
            _ => {}
        }
        self.log = Some(log);
        Ok(torn)
    }

    fn write_head(&mut self) -> io::Result<()> {
        let head = Head {
            sequence: self.sequence,
            hash: hex(&self.previous),
            sealed: self.is_sealed,
        };
        let bytes = head
            .seal(&self.key)
            .ok_or(io::Error::from(io::ErrorKind::InvalidData))?;
        self.head.write_all_at(&bytes, 0)
    }

    /// The file at the path, made anew if it is not there any more.
    fn current(&mut self) -> io::Result<&File> {
        if let Some(log) = &self.log {
            let ours = log.metadata()?;
            let is_same = fs::symlink_metadata(&self.path)
                .is_ok_and(|facts| facts.dev() == ours.dev() && facts.ino() == ours.ino());
            if !is_same {
                self.log = None;
                self.trouble = Some(format!(
                    "audit trail {} was taken away; it goes on in a new file",
                    self.path.display()
                ));
            }
        }
        match &mut self.log {
            Some(log) => Ok(log),
            none => Ok(none.insert(open_log(&self.path)?)),
        }
    }

    fn rotate(&mut self, more: usize, now: Timestamp) {
        let size = fs::metadata(&self.path).map_or(0, |facts| facts.len());
        if !self.rotation.is_due(self.last, size, more, now) {
            return;
        }
        match self.rotation.put_aside(self.last) {
            Ok(_) => {
                if let Some(log) = self.log.take()
                    && self.fsync != Fsync::Never
                {
                    // A failure shows when the next records are forced to the disk.
                    let _ = log.sync_data();
                }
                self.rotation_failed = false;
            }
            Err(e) => {
                if !self.rotation_failed {
                    let path = self.path.display();
                    self.trouble = Some(format!("{path} cannot be rotated: {e}; it is used on"));
                }
                self.rotation_failed = true;
            }
        }
    }

    fn append(&mut self, time: Timestamp, content: Content) -> io::Result<()> {
        let record = Record {
            sequence: self.sequence + 1,
            time,
            previous: hex(&self.previous),
            content,
        };
        let (line, hash) = record
            .seal(&self.key)
            .filter(|(line, _)| line.len() <= MAX_LINE)
            .ok_or(io::Error::from(io::ErrorKind::InvalidData))?;
        self.rotate(line.len(), time);
        let mut log = self.current()?;
        let before = log.metadata()?.len();
        if let Err(e) = log.write_all(&line) {
            // Nothing of it may stay.
            log.set_len(before)?;
            return Err(e);
        }
        self.sequence = record.sequence;
        self.previous = hash;
        self.last = time;
        self.is_ahead = true;
        self.unsynced.get_or_insert_with(Instant::now);
        self.stats.audit_records.inc();
        Ok(())
    }

    /// Brings the checkpoint up to date, and what is due to the disk; with `all`, everything.
    fn settle(&mut self, all: bool) -> io::Result<()> {
        let is_due = match self.fsync {
            Fsync::Always => true,
            Fsync::Second => all || self.unsynced.is_some_and(|since| since.elapsed() >= SECOND),
            Fsync::Never => false,
        };
        let syncs = is_due && self.unsynced.is_some();
        if let Some(log) = self.log.as_ref().filter(|_| syncs) {
            log.sync_data()?;
        }
        if self.is_ahead {
            self.write_head()?;
            self.is_ahead = false;
        }
        if syncs {
            self.head.sync_data()?;
            self.unsynced = None;
        }
        Ok(())
    }

    fn named(&self, e: &io::Error) -> Fault {
        let path = self.path.display();
        Fault::Again(io::Error::new(e.kind(), format!("{path}: {e}")))
    }
}

impl Sink for Trail {
    fn write(&mut self, entry: &Entry) -> Result<(), Fault> {
        self.append(entry.time, Content::Entry(entry.clone()))
            .map_err(|e| self.named(&e))
    }

    fn lost(&mut self, count: u64) -> Result<(), Fault> {
        self.append(Timestamp::now(), Content::Lost { count })
            .map_err(|e| self.named(&e))
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.settle(false).map_err(|e| self.named(&e))
    }

    fn due(&self) -> Option<Duration> {
        let since = self.unsynced.filter(|_| self.fsync == Fsync::Second)?;
        Some(SECOND.saturating_sub(since.elapsed()))
    }

    fn trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn close(&mut self) {
        self.is_sealed = self.append(Timestamp::now(), Content::Seal).is_ok();
        // Without the seal the trail says that its writer did not end in good order.
        let _ = self.settle(true);
    }
}
