//! Finding the root file system on a disk, only to compose `root=`; never to guess an image's format.
//!
//! Everything read here is the guest's or a stranger's: sizes are bounded, arithmetic is checked, and a disk
//! that lies costs at most a bounded read of its partition table (1 MiB).
//! Sources: UEFI 2.10 §5 (GPT, protective MBR), the UAPI group's Discoverable Partitions Specification, and the
//! on-disk format documents of the file systems.

use std::fmt;
use std::io;

use crate::source::{ReadAt, le};

/// File systems recognised by their magic numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileSystem {
    /// ext2: no journal.
    Ext2,
    /// ext3: a journal, none of ext4's features.
    Ext3,
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// F2FS.
    F2fs,
    /// SquashFS, read-only.
    Squashfs,
    /// EROFS, read-only.
    Erofs,
}

impl FileSystem {
    /// Can this kind of file system not be written at all?
    pub fn is_read_only(self) -> bool {
        matches!(self, FileSystem::Squashfs | FileSystem::Erofs)
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileSystem::Ext2 => "ext2",
            FileSystem::Ext3 => "ext3",
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
            FileSystem::F2fs => "f2fs",
            FileSystem::Squashfs => "squashfs",
            FileSystem::Erofs => "erofs",
        })
    }
}

/// Where the root file system of a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootDisk {
    /// A partition of a GPT disk.
    GptPartition {
        /// Unique partition GUID in lower case, as `root=PARTUUID=` takes it.
        partuuid: String,
        /// Partition number, from 1.
        index: u32,
        /// Logical sector size the table was written for: the guest's disk must have the same.
        sector_size: u32,
        /// The partition's read-only attribute (bit 60) is set.
        read_only: bool,
    },
    /// A primary partition of an MBR disk.
    MbrPartition {
        /// Disk signature; 0 when the disk has none.
        disk_id: u32,
        /// Partition number, 1 to 4.
        index: u32,
    },
    /// A file system without partitions.
    WholeDisk {
        /// Which file system.
        file_system: FileSystem,
    },
}

/// Why no root was found, worded to follow the disk's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoRoot {
    /// Reading failed.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Nothing recognised.
    #[error("has neither partitions nor a known file system: say root= on the command line")]
    Nothing,
    /// A GPT without a partition to boot from.
    #[error(
        "has a GPT with {partitions} partitions, but none is of a Linux root or Linux file system type: say root= on the command line"
    )]
    NoLinuxPartition {
        /// Partitions in use.
        partitions: usize,
    },
    /// Several candidates.
    #[error("has several {kind} partitions (numbers {}): say root= on the command line", list(.indexes))]
    Ambiguous {
        /// Kind of partition there are several of.
        kind: &'static str,
        /// Their numbers.
        indexes: Vec<u32>,
    },
    /// A protective MBR without a usable GPT.
    #[error("has a damaged GPT ({0}): repair it, or say root= on the command line")]
    DamagedGpt(&'static str),
    /// An MBR without a Linux partition among the primary ones.
    #[error("has an MBR without a primary Linux partition: say root= on the command line")]
    NoMbrPartition,
}

fn list(indexes: &[u32]) -> String {
    indexes
        .iter()
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Linux root partition of an x86-64 system (Discoverable Partitions Specification), as on disk.
const LINUX_ROOT_X86_64: [u8; 16] = [
    0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
];
/// Linux file system data, as on disk.
const LINUX_FILE_SYSTEM: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];
const ATTRIBUTE_READ_ONLY: u64 = 1 << 60;
/// "No automatic use" in the Discoverable Partitions Specification.
const ATTRIBUTE_NO_AUTO: u64 = 1 << 63;

const SECTOR_SIZES: [u32; 2] = [512, 4096];
/// UEFI asks for room for 128 entries of 128 bytes; a mebibyte is sixty times that.
const MAX_TABLE: u64 = 1 << 20;
const MBR_LINUX: u8 = 0x83;
const MBR_PROTECTIVE: u8 = 0xee;

/// Finds the root file system of `disk`: a partition of a GPT or MBR, else the disk itself.
pub fn find_root(disk: &(impl ReadAt + ?Sized)) -> Result<RootDisk, NoRoot> {
    let size = disk.size()?;
    let mbr = Mbr::read(disk, size)?;
    match &mbr {
        Some(mbr) if mbr.is_protective() => return gpt_root(disk, size),
        Some(mbr) => return mbr.root(),
        None => {}
    }
    match file_system(disk, size)? {
        Some(file_system) => Ok(RootDisk::WholeDisk { file_system }),
        None => Err(NoRoot::Nothing),
    }
}

/// Recognises the file system that begins at the start of `disk`, `size` bytes long.
pub fn file_system(disk: &(impl ReadAt + ?Sized), size: u64) -> io::Result<Option<FileSystem>> {
    let at = |offset: u64, len: usize| read(disk, size, offset, len);
    if let Some(start) = at(0, 4)? {
        match start.as_slice() {
            b"XFSB" => return Ok(Some(FileSystem::Xfs)),
            b"hsqs" => return Ok(Some(FileSystem::Squashfs)),
            _ => {}
        }
    }
    if let Some(superblock) = at(1024, 128)? {
        const EXT_MAGIC: u64 = 0xef53;
        const HAS_JOURNAL: u64 = 0x4;
        /// extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline data, encrypt, casefold
        const EXT4_INCOMPAT: u64 =
            0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
        match le::<4>(&superblock, 0) {
            Some(0xe0f5_e1e2) => return Ok(Some(FileSystem::Erofs)),
            Some(0xf2f5_2010) => return Ok(Some(FileSystem::F2fs)),
            _ => {}
        }
        if le::<2>(&superblock, 0x38) == Some(EXT_MAGIC) {
            let compatible = le::<4>(&superblock, 0x5c).unwrap_or(0);
            let incompatible = le::<4>(&superblock, 0x60).unwrap_or(0);
            return Ok(Some(if incompatible & EXT4_INCOMPAT != 0 {
                FileSystem::Ext4
            } else if compatible & HAS_JOURNAL != 0 {
                FileSystem::Ext3
            } else {
                FileSystem::Ext2
            }));
        }
    }
    if at(0x1_0040, 8)?.as_deref() == Some(b"_BHRfS_M") {
        return Ok(Some(FileSystem::Btrfs));
    }
    Ok(None)
}

/// `len` bytes at `offset`, or `None` beyond the end of the disk.
fn read(
    disk: &(impl ReadAt + ?Sized),
    size: u64,
    offset: u64,
    len: usize,
) -> io::Result<Option<Vec<u8>>> {
    if offset.checked_add(len as u64).is_none_or(|end| end > size) {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    disk.read_exact_at(offset, &mut bytes)?;
    Ok(Some(bytes))
}

/// A master boot record with at least one partition.
struct Mbr {
    disk_id: u32,
    /// Type byte of each primary partition in use, with its number.
    partitions: Vec<(u32, u8)>,
}

impl Mbr {
    fn read(disk: &(impl ReadAt + ?Sized), size: u64) -> io::Result<Option<Mbr>> {
        let Some(sector) = read(disk, size, 0, 512)? else {
            return Ok(None);
        };
        if le::<2>(&sector, 510) != Some(0xaa55) {
            return Ok(None);
        }
        let mut partitions = Vec::new();
        for (number, entry) in (1..).zip(sector.get(446..510).unwrap_or_default().chunks_exact(16))
        {
            let &[status, ..] = entry else { continue };
            // A boot sector of a file system has code here: not a table then.
            if status & 0x7f != 0 {
                return Ok(None);
            }
            let kind = entry.get(4).copied().unwrap_or(0);
            if kind != 0 && le::<4>(entry, 12).unwrap_or(0) != 0 {
                partitions.push((number, kind));
            }
        }
        if partitions.is_empty() {
            return Ok(None);
        }
        Ok(Some(Mbr {
            disk_id: le::<4>(&sector, 440).unwrap_or(0) as u32,
            partitions,
        }))
    }

    fn is_protective(&self) -> bool {
        self.partitions
            .iter()
            .any(|(_, kind)| *kind == MBR_PROTECTIVE)
    }

    fn root(&self) -> Result<RootDisk, NoRoot> {
        let linux = self
            .partitions
            .iter()
            .filter(|(_, kind)| *kind == MBR_LINUX);
        match linux
            .map(|(number, _)| *number)
            .collect::<Vec<_>>()
            .as_slice()
        {
            [] => Err(NoRoot::NoMbrPartition),
            [index] => Ok(RootDisk::MbrPartition {
                disk_id: self.disk_id,
                index: *index,
            }),
            several => Err(NoRoot::Ambiguous {
                kind: "Linux",
                indexes: several.to_vec(),
            }),
        }
    }
}

/// One partition of a GPT that is in use.
struct GptEntry {
    index: u32,
    kind: [u8; 16],
    unique: [u8; 16],
    attributes: u64,
}

fn gpt_root(disk: &(impl ReadAt + ?Sized), size: u64) -> Result<RootDisk, NoRoot> {
    let mut trouble = "no header";
    for sector_size in SECTOR_SIZES {
        match read_gpt(disk, size, sector_size)? {
            Ok(entries) => return choose(&entries, sector_size),
            Err(NotGpt::NoSignature) => {}
            Err(NotGpt::Damaged(why)) => trouble = why,
        }
    }
    Err(NoRoot::DamagedGpt(trouble))
}

/// Why a header is not that of a GPT.
enum NotGpt {
    NoSignature,
    Damaged(&'static str),
}

/// Reads the primary table. The backup is not consulted: Linux uses it only when told `gpt`.
fn read_gpt(
    disk: &(impl ReadAt + ?Sized),
    size: u64,
    sector_size: u32,
) -> io::Result<Result<Vec<GptEntry>, NotGpt>> {
    let damaged = |why| Ok(Err(NotGpt::Damaged(why)));
    let sector = u64::from(sector_size);
    let Some(mut header) = read(disk, size, sector, sector_size as usize)? else {
        return Ok(Err(NotGpt::NoSignature));
    };
    if header.get(..8) != Some(b"EFI PART") {
        return Ok(Err(NotGpt::NoSignature));
    }
    let field = |at| le::<4>(&header, at).unwrap_or(0);
    let (header_len, header_crc) = (field(12), field(16) as u32);
    let (count, entry_len, table_crc) = (field(80), field(84), field(88) as u32);
    let wide = |at| le::<8>(&header, at).unwrap_or(0);
    let (own_lba, first_usable, last_usable, table_lba) = (wide(24), wide(40), wide(48), wide(72));
    if !(92..=sector).contains(&header_len) {
        return damaged("its header has an impossible length");
    }
    if let Some(crc) = header.get_mut(16..20) {
        crc.fill(0);
    }
    if header.get(..header_len as usize).map(crc32fast::hash) != Some(header_crc) {
        return damaged("its header has a wrong checksum");
    }
    if own_lba != 1 {
        return damaged("its header is not where it says it is");
    }
    // UEFI 2.10 table 5.5: 128 × 2^n bytes.
    if entry_len < 128 || !entry_len.is_power_of_two() {
        return damaged("its entries have an impossible size");
    }
    let table_len = match count.checked_mul(entry_len) {
        Some(len) if len <= MAX_TABLE => len,
        _ => return damaged("its table is larger than 1 MiB"),
    };
    if table_lba < 2 {
        return damaged("its table overlaps its header");
    }
    let table = match table_lba.checked_mul(sector) {
        Some(offset) => read(disk, size, offset, table_len as usize)?,
        None => None,
    };
    let Some(table) = table else {
        return damaged("its table lies beyond the end of the disk");
    };
    if crc32fast::hash(&table) != table_crc {
        return damaged("its table has a wrong checksum");
    }
    let last_sector = (size / sector).saturating_sub(1);
    let entries = (1..)
        .zip(table.chunks_exact(entry_len as usize))
        .filter_map(|(index, entry)| {
            let kind = *entry.first_chunk::<16>()?;
            let unique = *entry.get(16..)?.first_chunk::<16>()?;
            let (first, last) = (le::<8>(entry, 32)?, le::<8>(entry, 40)?);
            let sound = first <= last
                && first >= first_usable
                && last <= last_usable
                && last <= last_sector;
            (kind != [0; 16] && sound).then_some(GptEntry {
                index,
                kind,
                unique,
                attributes: le::<8>(entry, 48)?,
            })
        });
    Ok(Ok(entries.collect()))
}

fn choose(entries: &[GptEntry], sector_size: u32) -> Result<RootDisk, NoRoot> {
    for (kind, name) in [
        (LINUX_ROOT_X86_64, "Linux root"),
        (LINUX_FILE_SYSTEM, "Linux file system"),
    ] {
        let candidates = entries
            .iter()
            .filter(|e| e.kind == kind && e.attributes & ATTRIBUTE_NO_AUTO == 0);
        match candidates.collect::<Vec<_>>().as_slice() {
            [] => {}
            [entry] => {
                return Ok(RootDisk::GptPartition {
                    partuuid: guid(&entry.unique),
                    index: entry.index,
                    sector_size,
                    read_only: entry.attributes & ATTRIBUTE_READ_ONLY != 0,
                });
            }
            several => {
                let indexes = several.iter().map(|entry| entry.index).collect();
                return Err(NoRoot::Ambiguous {
                    kind: name,
                    indexes,
                });
            }
        }
    }
    Err(NoRoot::NoLinuxPartition {
        partitions: entries.len(),
    })
}

/// A GUID in text: its first three fields are little-endian on disk (UEFI 2.10 appendix A).
fn guid(bytes: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let mut text = format!("{d:02x}{c:02x}{b:02x}{a:02x}-{f:02x}{e:02x}-{h:02x}{g:02x}-");
    for (index, byte) in rest.iter().enumerate() {
        if index == 2 {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
