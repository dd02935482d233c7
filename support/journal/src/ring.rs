//! The newest entries, oldest overwritten; in memory, or in a file that outlives a crash.
//!
//! With a file, entries are written to it as they come (they are in the page cache before the
//! emitter goes on, so a killed process loses none) and read back from it for queries: memory holds
//! only where each one lies. Without a file, or while the file cannot be written, memory holds them.
//!
//! The file is a header of 64 bytes and a ring of records, all numbers little-endian. A record
//! starts at a multiple of 32 bytes after the header: magic, length of the payload, sequence number,
//! CRC-32 of length, number and payload, then the payload, which is the entry as JSON. A record
//! never wraps around the end. A reader looks for records at every multiple of 32 bytes, so it needs
//! to know neither the head nor the tail, and a torn record is skipped by its checksum.

use crate::config::JournalError;
use crate::entry::Entry;
use crate::level::Level;
use crate::query::Query;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const HEADER: usize = 64;
const MAGIC: &[u8; 8] = b"NYXRING1";
const RECORD_MAGIC: u32 = 0x6552_794e;
const RECORD_HEADER: usize = 20;
const ALIGN: usize = 32;
/// Longest payload; an entry with all its fields at their limits, escaped, may be longer and then
/// loses its fields.
const MAX_PAYLOAD: usize = 64 * 1024;
/// Room in the ring per entry of its limit, in bytes; a usual entry takes 200.
const BYTES_PER_ENTRY: usize = 512;
/// How long to leave a file alone that could not be written.
const PATIENCE: Duration = Duration::from_secs(1);
/// Largest file that a reader looks at.
const MAX_READ: u64 = 1 << 30;

/// Where an entry is.
#[derive(Debug)]
enum Place {
    File { offset: usize },
    Memory(Arc<[u8]>),
}

#[derive(Debug)]
struct Slot {
    sequence: u64,
    level: Level,
    length: usize,
    place: Place,
}

/// What became of an entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// How many older ones had to go.
    pub(crate) overwritten: u64,
    /// The file failed for the first time since it last worked.
    pub(crate) failed: Option<String>,
    /// It is not in the file although there is one.
    pub(crate) held: bool,
}

#[derive(Debug)]
struct Backing {
    file: Arc<File>,
    failed: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Ring {
    slots: VecDeque<Slot>,
    entries: usize,
    /// Bytes for records, in the file or in memory.
    capacity: usize,
    /// Where the next record goes.
    head: usize,
    held: usize,
    backing: Option<Backing>,
    scratch: Vec<u8>,
}

fn aligned(length: usize) -> usize {
    (RECORD_HEADER + length).next_multiple_of(ALIGN)
}

/// The path under which the ring of the process before is kept.
pub fn previous_ring(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".previous");
    name.into()
}

impl Ring {
    /// A ring of `entries`, kept in the file `path` if given. What lies there already is kept
    /// beside as [`previous_ring`].
    pub(crate) fn new(entries: usize, path: Option<&Path>) -> Result<Self, JournalError> {
        let mut ring = Self {
            slots: VecDeque::new(),
            entries,
            capacity: (entries * BYTES_PER_ENTRY).max(4 * aligned(MAX_PAYLOAD)),
            head: 0,
            held: 0,
            backing: None,
            scratch: Vec::new(),
        };
        if let Some(path) = path {
            let refused = |source| JournalError::Open {
                field: "ring".into(),
                path: path.into(),
                source,
            };
            match fs::rename(path, previous_ring(path)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(refused(e)),
                _ => {}
            }
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .map_err(refused)?;
            ring.backing = Some(Backing {
                file: Arc::new(file),
                failed: None,
            });
            ring.write_header(0).map_err(refused)?;
        }
        Ok(ring)
    }

    fn write_header(&self, cleared_through: u64) -> io::Result<()> {
        let Some(backing) = &self.backing else {
            return Ok(());
        };
        let mut header = [0; HEADER];
        let numbers = [
            self.capacity as u64,
            self.entries as u64,
            cleared_through,
            u64::from(std::process::id()),
        ];
        header[..8].copy_from_slice(MAGIC);
        for (place, number) in header[8..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32fast::hash(&header[..HEADER - 4]);
        header[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        backing.file.write_all_at(&header, 0)
    }

    pub(crate) fn push(&mut self, entry: &Entry) -> Pushed {
        let mut pushed = Pushed::default();
        let mut record = std::mem::take(&mut self.scratch);
        record.clear();
        record.resize(RECORD_HEADER, 0);
        if serde_json::to_writer(&mut record, entry).is_err()
            || record.len() - RECORD_HEADER > MAX_PAYLOAD
        {
            record.truncate(RECORD_HEADER);
            let short = Entry {
                message: entry.message.chars().take(256).collect(),
                component: entry.component.chars().take(64).collect::<String>().into(),
                fields: [("fields_dropped".into(), true.into())].into(),
                ..*entry
            };
            // A handful of short texts always fits.
            let _ = serde_json::to_writer(&mut record, &short);
        }
        let length = record.len() - RECORD_HEADER;
        let place = match self.write(&mut record, entry.sequence, &mut pushed) {
            Some(offset) => Place::File { offset },
            None => {
                let payload = record.get(RECORD_HEADER..).unwrap_or_default();
                self.held += payload.len();
                Place::Memory(payload.into())
            }
        };
        self.scratch = record;
        self.slots.push_back(Slot {
            sequence: entry.sequence,
            level: entry.level,
            length,
            place,
        });
        while self.slots.len() > self.entries || self.held > self.capacity {
            pushed.overwritten += self.forget(1);
        }
        pushed
    }

    /// Writes a record to the file; where, if that worked.
    fn write(&mut self, record: &mut Vec<u8>, sequence: u64, pushed: &mut Pushed) -> Option<usize> {
        let backing = self.backing.as_ref()?;
        if backing.failed.is_some_and(|at| at.elapsed() < PATIENCE) {
            pushed.held = true;
            return None;
        }
        let length = record.len() - RECORD_HEADER;
        let size = aligned(length);
        let file = Arc::clone(&backing.file);
        if self.head + size > self.capacity {
            // What lies between the head and the end is older than what lies at the start.
            let head = self.head;
            pushed.overwritten += self.forget_while(|offset, _| offset >= head);
            self.head = 0;
        }
        let (start, end) = (self.head, self.head + size);
        pushed.overwritten +=
            self.forget_while(|offset, size| offset < end && start < offset + size);
        record.resize(size, 0);
        let length32 = u32::try_from(length).unwrap_or(u32::MAX);
        record[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        record[4..8].copy_from_slice(&length32.to_le_bytes());
        record[8..16].copy_from_slice(&sequence.to_le_bytes());
        let crc = checksum(
            &record[4..16],
            &record[RECORD_HEADER..RECORD_HEADER + length],
        );
        record[16..20].copy_from_slice(&crc.to_le_bytes());
        let written = file.write_all_at(record, (HEADER + start) as u64);
        record.truncate(RECORD_HEADER + length);
        let backing = self.backing.as_mut()?;
        match written {
            Ok(()) => {
                backing.failed = None;
                self.head = end;
                Some(start)
            }
            Err(e) => {
                pushed.held = true;
                if backing.failed.is_none() {
                    pushed.failed = Some(e.to_string());
                }
                backing.failed = Some(Instant::now());
                None
            }
        }
    }

    /// Forgets the oldest entries through the last one at the front of the file for which `gone`
    /// holds. Entries held in memory between them go too: order matters more.
    fn forget_while(&mut self, gone: impl Fn(usize, usize) -> bool) -> u64 {
        let mut forgotten = 0;
        loop {
            let oldest = self.slots.iter().position(|slot| match slot.place {
                Place::File { .. } => true,
                Place::Memory(_) => false,
            });
            let Some(index) = oldest else {
                return forgotten;
            };
            let Some(Slot {
                place: Place::File { offset },
                length,
                ..
            }) = self.slots.get(index)
            else {
                return forgotten;
            };
            if !gone(*offset, aligned(*length)) {
                return forgotten;
            }
            forgotten += self.forget(index + 1);
        }
    }

    fn forget(&mut self, count: usize) -> u64 {
        let count = count.min(self.slots.len());
        for slot in self.slots.drain(..count) {
            if let Place::Memory(payload) = &slot.place {
                self.held -= payload.len();
            }
        }
        count as u64
    }

    /// Forgets all entries, of which `newest` is the last.
    pub(crate) fn clear(&mut self, newest: u64) {
        self.forget(self.slots.len());
        // If the header cannot be written, a reader of the file sees more than it should; no harm.
        let _ = self.write_header(newest);
    }

    /// What a query may read without holding up the emitters.
    pub(crate) fn view(&self, query: &Query) -> View {
        let slots = self.slots.iter().rev();
        let wanted = slots
            .take_while(|slot| query.after.is_none_or(|after| slot.sequence > after))
            .filter(|slot| query.level.is_none_or(|level| slot.level >= level));
        // Nothing else need be looked at: as many as are wanted will do.
        let is_exact = query.component.is_none() && query.since.is_none();
        let limit = query.last.filter(|_| is_exact).unwrap_or(usize::MAX);
        View {
            file: self.backing.as_ref().map(|b| Arc::clone(&b.file)),
            places: wanted
                .take(limit)
                .map(|slot| Found {
                    sequence: slot.sequence,
                    length: slot.length,
                    place: match &slot.place {
                        Place::File { offset } => Place::File { offset: *offset },
                        Place::Memory(payload) => Place::Memory(Arc::clone(payload)),
                    },
                })
                .collect(),
        }
    }
}

struct Found {
    sequence: u64,
    length: usize,
    place: Place,
}

/// Places of entries, newest first.
pub(crate) struct View {
    file: Option<Arc<File>>,
    places: Vec<Found>,
}

impl View {
    /// Reads the entries that match, oldest first. One that is overwritten meanwhile is left out.
    pub(crate) fn read(self, query: &Query) -> Vec<Entry> {
        let limit = query.last.unwrap_or(usize::MAX);
        let mut found = Vec::new();
        let mut buffer = Vec::new();
        for place in &self.places {
            if found.len() >= limit {
                break;
            }
            let Some(entry) = self.entry(place, &mut buffer) else {
                continue;
            };
            if query.matches(&entry) {
                found.push(entry);
            }
        }
        found.reverse();
        found
    }

    fn entry(&self, found: &Found, buffer: &mut Vec<u8>) -> Option<Entry> {
        match &found.place {
            Place::Memory(payload) => serde_json::from_slice(payload).ok(),
            Place::File { offset } => {
                buffer.resize(RECORD_HEADER + found.length, 0);
                let file = self.file.as_ref()?;
                file.read_exact_at(buffer, (HEADER + offset) as u64).ok()?;
                let (sequence, payload) = record_at(buffer, &mut (found.length as u64 + 1))?;
                (sequence == found.sequence)
                    .then(|| serde_json::from_slice(payload).ok())
                    .flatten()
            }
        }
    }
}

fn checksum(numbers: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(numbers);
    crc.update(payload);
    crc.finalize()
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The record that `bytes` begins with: its number and payload. `budget` bounds how many bytes are
/// summed up, since garbage may be made of beginnings of long records.
fn record_at<'a>(bytes: &'a [u8], budget: &mut u64) -> Option<(u64, &'a [u8])> {
    if number(bytes, 0)? != RECORD_MAGIC {
        return None;
    }
    let length = usize::try_from(number(bytes, 4)?).ok()?;
    if length > MAX_PAYLOAD {
        return None;
    }
    let payload = bytes.get(RECORD_HEADER..)?.get(..length)?;
    *budget = budget.checked_sub(length as u64 + 1)?;
    let crc = checksum(bytes.get(4..16)?, payload);
    let sequence = u64::from_le_bytes(*bytes.get(8..16)?.first_chunk()?);
    (number(bytes, 16)? == crc).then_some((sequence, payload))
}

/// What was found in the file of a ring.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// The process that wrote it, if the header is intact.
    pub pid: Option<u32>,
    /// The entries, oldest first.
    pub entries: Vec<Entry>,
    /// Beginnings of records that are not intact: torn by the end of the process, or damaged.
    pub damaged: u64,
}

/// Reads the entries from the file of a ring: of a process that died, or of one that lives.
/// Whatever the file holds, this ends, and takes memory in proportion to the file.
///
/// # Errors
/// The file cannot be read, or is no regular file.
pub fn read_ring(path: &Path) -> io::Result<Recovered> {
    // Without NONBLOCK a pipe in its place would be waited for.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        let message = format!("{} is not a regular file", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let mut bytes = Vec::new();
    file.take(MAX_READ).read_to_end(&mut bytes)?;
    Ok(parse_ring(&bytes))
}

/// As [`read_ring`], for the content of the file.
pub fn parse_ring(bytes: &[u8]) -> Recovered {
    let mut recovered = Recovered::default();
    let mut limit = 10_000;
    let mut cleared_through = 0;
    let header = bytes.get(..HEADER).unwrap_or_default();
    let intact = header.starts_with(MAGIC)
        && number(header, HEADER - 4) == header.get(..HEADER - 4).map(crc32fast::hash);
    if intact {
        let field = |index: usize| {
            let bytes = header.get(8 + 8 * index..).and_then(|b| b.first_chunk());
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        limit = field(1);
        cleared_through = field(2);
        recovered.pid = u32::try_from(field(3)).ok();
    }
    let mut budget = (bytes.len() as u64).saturating_mul(4);
    let mut found = BTreeMap::new();
    let mut at = HEADER;
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= RECORD_HEADER) {
        at += match record_at(rest, &mut budget) {
            Some((sequence, payload)) => {
                found.insert(sequence, payload);
                aligned(payload.len())
            }
            None => {
                recovered.damaged += u64::from(number(rest, 0) == Some(RECORD_MAGIC));
                ALIGN
            }
        };
    }
    let newest = found.keys().next_back().copied().unwrap_or(0);
    let oldest = newest.saturating_sub(limit).max(cleared_through);
    for (sequence, payload) in found {
        if sequence <= oldest {
            continue;
        }
        match serde_json::from_slice::<Entry>(payload) {
            Ok(entry) if entry.sequence == sequence => recovered.entries.push(entry),
            _ => recovered.damaged += 1,
        }
    }
    recovered
}
