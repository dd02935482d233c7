//! Disks made byte by byte: partition tables, file systems, and hostile tables.

use proptest::prelude::*;

use crate::disk_probe::{FileSystem, NoRoot, RootDisk, file_system, find_root};

const ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
const DATA: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
const UNIQUE: &str = "01234567-89ab-cdef-fedc-ba9876543210";

fn guid(text: &str) -> [u8; 16] {
    let hex = text.replace('-', "");
    let mut bytes: Vec<u8> = (0..16)
        .map(|i| u8::from_str_radix(&hex[i * 2..i * 2 + 2], 16).unwrap())
        .collect();
    bytes[0..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes.try_into().unwrap()
}

fn seal(disk: &mut [u8], sector: usize) {
    let table_crc = crc32fast::hash(&disk[2 * sector..2 * sector + 128 * 128]);
    disk[sector + 88..sector + 92].copy_from_slice(&table_crc.to_le_bytes());
    disk[sector + 16..sector + 20].fill(0);
    let crc = crc32fast::hash(&disk[sector..sector + 92]);
    disk[sector + 16..sector + 20].copy_from_slice(&crc.to_le_bytes());
}

fn gpt(sector: usize, partitions: &[(&str, u64)]) -> Vec<u8> {
    let mut disk = vec![0; sector * 1024];
    disk[450] = 0xee;
    disk[458..462].copy_from_slice(&1023u32.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let header = &mut disk[sector..sector + 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..12].copy_from_slice(&0x1_0000u32.to_le_bytes());
    header[12..16].copy_from_slice(&92u32.to_le_bytes());
    for (at, value) in [(24, 1u64), (32, 1023), (40, 40), (48, 1000), (72, 2)] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    header[80..84].copy_from_slice(&128u32.to_le_bytes());
    header[84..88].copy_from_slice(&128u32.to_le_bytes());
    for (index, (kind, attributes)) in partitions.iter().enumerate() {
        let entry = &mut disk[2 * sector + index * 128..][..128];
        entry[..16].copy_from_slice(&guid(kind));
        entry[16..32].copy_from_slice(&guid(UNIQUE));
        entry[16] ^= index as u8;
        let first = 40 + index as u64 * 10;
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&(first + 9).to_le_bytes());
        entry[48..56].copy_from_slice(&attributes.to_le_bytes());
    }
    seal(&mut disk, sector);
    disk
}

fn mbr(entries: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[440..444].copy_from_slice(&0xdead_beefu32.to_le_bytes());
    for (index, kind) in entries.iter().enumerate() {
        let entry = &mut disk[446 + 16 * index..][..16];
        entry[4] = *kind;
        entry[12..16].copy_from_slice(&100u32.to_le_bytes());
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

fn marked(marks: &[(usize, &[u8])]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    for (at, bytes) in marks {
        disk[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    disk
}

#[test]
fn root_type_wins_over_plain_linux() {
    let disk = gpt(512, &[(ESP, 0), (DATA, 0), (ROOT, 0)]);
    assert_eq!(
        find_root(&disk).unwrap(),
        RootDisk::GptPartition {
            partuuid: "01234565-89ab-cdef-fedc-ba9876543210".into(),
            index: 3,
            sector_size: 512,
            read_only: false,
        }
    );
}

#[test]
fn single_linux_partition_with_4096_byte_sectors() {
    let disk = gpt(4096, &[(ESP, 0), (DATA, 1 << 60)]);
    let root = find_root(&disk).unwrap();
    let RootDisk::GptPartition {
        index: 2,
        sector_size: 4096,
        read_only: true,
        partuuid,
    } = root
    else {
        panic!("{root:?}");
    };
    assert_eq!(partuuid, "01234566-89ab-cdef-fedc-ba9876543210");
}

#[test]
fn gpt_refusals_explain() {
    let why = |disk: Vec<u8>| find_root(&disk).unwrap_err().to_string();
    assert_eq!(
        why(gpt(512, &[(DATA, 0), (ESP, 0), (DATA, 0)])),
        "has several Linux file system partitions (numbers 1, 3): say root= on the command line"
    );
    assert!(why(gpt(512, &[(ESP, 0)])).starts_with("has a GPT with 1 partitions, but none"));
    // "No auto" takes the first root partition out of the choice.
    assert!(find_root(&gpt(512, &[(ROOT, 1 << 63), (ROOT, 0)])).is_ok());

    let damage = |at: usize, value: u8, resealed: bool| {
        let mut disk = gpt(512, &[(ROOT, 0)]);
        disk[at] = value;
        if resealed {
            seal(&mut disk, 512);
        }
        why(disk)
    };
    assert!(damage(512 + 41, 7, false).contains("header has a wrong checksum"));
    assert!(damage(1024 + 60, 7, false).contains("table has a wrong checksum"));
    assert!(damage(512, 7, false).contains("no header"));
    assert!(damage(512 + 24, 9, true).contains("not where it says"));
    assert!(damage(512 + 84, 127, true).contains("impossible size"));
    assert!(damage(512 + 83, 0x7f, true).contains("larger than 1 MiB"));
    assert!(damage(512 + 79, 0x7f, true).contains("beyond the end"));
    assert!(damage(512 + 13, 0x7f, false).contains("impossible length"));
    // A partition beyond the disk is not one.
    assert!(damage(1024 + 46, 1, true).contains("GPT with 0 partitions"));
}

#[test]
fn mbr_disks() {
    assert_eq!(
        find_root(&mbr(&[0x82, 0x83])).unwrap(),
        RootDisk::MbrPartition {
            disk_id: 0xdead_beef,
            index: 2
        }
    );
    assert!(matches!(
        find_root(&mbr(&[0x83, 0x83])),
        Err(NoRoot::Ambiguous { .. })
    ));
    assert!(matches!(
        find_root(&mbr(&[0x07, 0x05])),
        Err(NoRoot::NoMbrPartition)
    ));
    assert!(matches!(find_root(&mbr(&[])), Err(NoRoot::Nothing)));
}

#[test]
fn file_systems_by_magic() {
    let of = |marks: &[(usize, &[u8])]| match find_root(&marked(marks)) {
        Ok(RootDisk::WholeDisk { file_system }) => Some(file_system),
        _ => None,
    };
    let ext: (usize, &[u8]) = (1024 + 0x38, b"\x53\xef");
    assert_eq!(of(&[ext]), Some(FileSystem::Ext2));
    assert_eq!(of(&[ext, (1024 + 0x5c, b"\x3c")]), Some(FileSystem::Ext3));
    assert_eq!(
        of(&[ext, (1024 + 0x5c, b"\x3c"), (1024 + 0x60, b"\xc2\x02")]),
        Some(FileSystem::Ext4)
    );
    assert_eq!(of(&[(0, b"XFSB")]), Some(FileSystem::Xfs));
    assert_eq!(of(&[(0x1_0040, b"_BHRfS_M")]), Some(FileSystem::Btrfs));
    assert_eq!(of(&[(0, b"hsqs")]), Some(FileSystem::Squashfs));
    assert_eq!(
        of(&[(1024, &0xe0f5_e1e2u32.to_le_bytes())]),
        Some(FileSystem::Erofs)
    );
    assert_eq!(
        of(&[(1024, &0xf2f5_2010u32.to_le_bytes())]),
        Some(FileSystem::F2fs)
    );
    assert_eq!(of(&[]), None);
    // A file system with boot code and the boot signature, but no partitions, is still a whole disk.
    assert_eq!(
        of(&[ext, (446, &[0x33; 64]), (510, b"\x55\xaa")]),
        Some(FileSystem::Ext2)
    );
    assert_eq!(file_system(&vec![0u8; 100], 100).unwrap(), None);
}

proptest! {
    #[test]
    fn random_disks_never_panic(disk in proptest::collection::vec(any::<u8>(), 0..4096), sign in any::<bool>()) {
        let mut disk = disk;
        if sign && disk.len() >= 512 {
            disk[446..510].fill(0);
            disk[450] = 0xee;
            disk[458] = 1;
            disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
        let _ = find_root(&disk);
    }

    #[test]
    fn damaged_tables_never_panic(
        large in any::<bool>(),
        cut in 0usize..1 << 20,
        flips in proptest::collection::vec((0usize..8 * 1024, any::<u8>()), 0..8),
        resealed in any::<bool>(),
    ) {
        let sector = if large { 4096 } else { 512 };
        let mut disk = gpt(sector, &[(ESP, 0), (ROOT, 0), (DATA, 0)]);
        for (at, value) in flips {
            disk[at] = value;
        }
        if resealed {
            seal(&mut disk, sector);
        }
        disk.truncate(cut);
        let _ = find_root(&disk);
    }
}
