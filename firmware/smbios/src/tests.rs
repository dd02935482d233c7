//! Tests by an independent decoder, and by `dmidecode` where it is installed.

use std::process::Command;

use proptest::prelude::*;

use crate::*;

fn identity() -> Identity {
    Identity {
        serial: "NYX-00042".into(),
        uuid: *b"\x01\x23\x45\x67\x89\xab\xcd\xef\xfe\xdc\xba\x98\x76\x54\x32\x10",
        sku: "sku-1".into(),
        asset_tag: "rack 7".into(),
        baseboard: true,
        processors: Processors {
            sockets: 2,
            cores: 300,
            threads: 2,
            ..Processors::default()
        },
        memory: vec![0..0xc000_0000, 1 << 32..5 << 32],
        oem_strings: vec!["io.systemd.credential:a=b".into(), String::new()],
        ..Identity::default()
    }
}

/// A decoded structure: type, handle, formatted part from its start, strings.
type Decoded = (u8, u16, Vec<u8>, Vec<String>);

fn decode(mut table: &[u8]) -> Vec<Decoded> {
    let mut found = Vec::new();
    while !table.is_empty() {
        let len = usize::from(table[1]);
        let formatted = table[..len].to_vec();
        table = &table[len..];
        let mut strings = Vec::new();
        if table.starts_with(&[0, 0]) {
            table = &table[2..];
        } else {
            loop {
                let end = table.iter().position(|byte| *byte == 0).unwrap();
                if end == 0 {
                    table = &table[1..];
                    break;
                }
                strings.push(String::from_utf8(table[..end].to_vec()).unwrap());
                table = &table[end + 1..];
            }
        }
        found.push((
            formatted[0],
            u16::from_le_bytes([formatted[2], formatted[3]]),
            formatted,
            strings,
        ));
    }
    found
}

fn of_type(structures: &[Decoded], kind: u8) -> Vec<&Decoded> {
    structures
        .iter()
        .filter(|structure| structure.0 == kind)
        .collect()
}

fn le(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width]
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[test]
fn entry_point_leads_to_the_table() {
    let smbios = build(&identity(), 0xf_0000).unwrap();
    let entry = &smbios.entry_point;
    assert_eq!(&entry[..5], b"_SM3_");
    assert_eq!(
        (entry.len(), entry[6], entry[7], entry[8], entry[10]),
        (24, 24, 3, 2, 1)
    );
    assert_eq!(
        entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    assert_eq!(le(entry, 12, 4), smbios.table.len() as u64);
    assert_eq!(le(entry, 16, 8), 0xf_0020);
    assert_eq!(
        smbios.range(),
        0xf_0000..0xf_0020 + smbios.table.len() as u64
    );
}

#[test]
fn structures_have_the_lengths_of_their_version() {
    let smbios = build(&identity(), 0).unwrap();
    let structures = decode(&smbios.table);
    let lengths: Vec<_> = structures
        .iter()
        .map(|(kind, _, bytes, _)| (*kind, bytes.len()))
        .collect();
    let expected = [
        (0, 0x1a),
        (1, 0x1b),
        (2, 0x0f),
        (3, 0x16),
        (4, 0x30),
        (4, 0x30),
        (11, 5),
        (16, 0x17),
        (17, 0x54),
        (19, 0x1f),
        (19, 0x1f),
        (32, 0x0b),
        (127, 4),
    ];
    assert_eq!(lengths, expected);
    let mut handles: Vec<_> = structures.iter().map(|structure| structure.1).collect();
    handles.dedup();
    assert_eq!(handles.len(), structures.len(), "handles are unique");
}

#[test]
fn fields_hold_the_identity() {
    let structures = decode(&build(&identity(), 0).unwrap().table);
    let (_, _, firmware, strings) = of_type(&structures, 0)[0];
    assert_eq!(firmware[0x13], 0x14, "the virtual machine bit");
    assert_eq!(strings, &["Nyx", env!("CARGO_PKG_VERSION"), "01/01/2026"]);
    let (_, _, system, strings) = of_type(&structures, 1)[0];
    assert_eq!(
        system[8..24],
        *b"\x67\x45\x23\x01\xab\x89\xef\xcd\xfe\xdc\xba\x98\x76\x54\x32\x10"
    );
    assert_eq!(
        strings[1..4],
        [
            "Nyx Virtual Machine",
            env!("CARGO_PKG_VERSION"),
            "NYX-00042"
        ]
    );
    assert_eq!(
        (system[4..8].to_vec(), system[25], system[26]),
        (vec![1, 2, 3, 4], 5, 6)
    );
    let (_, _, processor, _) = of_type(&structures, 4)[1];
    assert_eq!(processor[0x23..0x26], [0xff, 0xff, 0xff]);
    assert_eq!((le(processor, 0x2a, 2), le(processor, 0x2e, 2)), (300, 600));
    assert_eq!(le(processor, 0x26, 2), 0b11_1100);
    assert_eq!(
        of_type(&structures, 11)[0].3,
        ["io.systemd.credential:a=b", " "]
    );
    let total = 0xc000_0000 + (4u64 << 32);
    let (_, _, array, _) = of_type(&structures, 16)[0];
    assert_eq!(le(array, 7, 4), total / 1024);
    let (_, _, module, _) = of_type(&structures, 17)[0];
    assert_eq!((le(module, 0x0c, 2), le(module, 0x1c, 4)), (19 << 10, 0));
    assert_eq!(le(module, 0x3c, 8), total);
    let mapped = of_type(&structures, 19);
    assert_eq!(
        (le(&mapped[0].2, 4, 4), le(&mapped[0].2, 8, 4)),
        (0, 0xc000_0000 / 1024 - 1)
    );
    assert_eq!(
        (le(&mapped[1].2, 4, 4), le(&mapped[1].2, 8, 4)),
        (1 << 22, (5 << 22) - 1)
    );
}

#[test]
fn large_memory_uses_the_wide_fields() {
    let end = 8u64 << 40;
    let large = Identity {
        memory: std::iter::once(0..end).collect(),
        ..identity()
    };
    let structures = decode(&build(&large, 0).unwrap().table);
    let (_, _, array, _) = of_type(&structures, 16)[0];
    assert_eq!((le(array, 7, 4), le(array, 15, 8)), (0x8000_0000, end));
    let (_, _, module, _) = of_type(&structures, 17)[0];
    assert_eq!(
        (le(module, 0x0c, 2), le(module, 0x1c, 4)),
        (0x7fff, 8 << 20)
    );
    let (_, _, mapped, _) = of_type(&structures, 19)[0];
    assert_eq!(
        (le(mapped, 4, 4), le(mapped, 15, 8), le(mapped, 23, 8)),
        (u64::from(u32::MAX), 0, end - 1)
    );
}

#[test]
fn impossible_identities_are_refused() {
    let refuse = |identity: Identity| build(&identity, 0).unwrap_err();
    let error = refuse(Identity {
        serial: "a\0b".into(),
        ..identity()
    });
    assert_eq!(
        error.to_string(),
        "the serial number contains a control character or is longer than 1024 bytes: \"a\\0b\""
    );
    assert!(matches!(
        refuse(Identity {
            sku: "x".repeat(1025),
            ..identity()
        }),
        BuildError::Text { .. }
    ));
    let with = |sockets, cores, threads| Identity {
        processors: Processors {
            sockets,
            cores,
            threads,
            ..Processors::default()
        },
        ..identity()
    };
    assert!(matches!(
        refuse(with(0, 1, 1)),
        BuildError::Count { value: 0, .. }
    ));
    assert!(matches!(
        refuse(with(257, 1, 1)),
        BuildError::Count { max: 256, .. }
    ));
    assert!(matches!(
        refuse(with(1, 40_000, 2)),
        BuildError::Count {
            value: 2,
            max: 1,
            ..
        }
    ));
    let overlapping = Identity {
        memory: vec![0..4096, 2048..8192],
        ..identity()
    };
    assert_eq!(
        refuse(overlapping),
        BuildError::Memory {
            start: 2048,
            end: 8192
        }
    );
    assert_eq!(build(&identity(), 8), Err(BuildError::Place(8)));
    assert_eq!(
        build(&identity(), u64::MAX - 15),
        Err(BuildError::Place(u64::MAX - 15))
    );
}

#[test]
fn dmidecode_reads_it() {
    let smbios = build(&identity(), 0).unwrap();
    // The tool's dump format: the entry point, padded to 32 bytes, with the table at that offset.
    let mut dump = smbios.entry_point.clone();
    dump.resize(32, 0);
    dump.extend(&smbios.table);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump");
    std::fs::write(&path, dump).unwrap();
    let output = ["dmidecode", "/usr/sbin/dmidecode"]
        .iter()
        .find_map(|tool| {
            Command::new(tool)
                .arg("--from-dump")
                .arg(&path)
                .output()
                .ok()
        });
    let Some(output) = output else {
        println!("skipped: dmidecode cannot be run; Debian has it in the package of that name");
        return;
    };
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    for line in [
        "SMBIOS 3.2.0 present.",
        "Product Name: Nyx Virtual Machine",
        "UUID: 01234567-89ab-cdef-fedc-ba9876543210",
        "System is a virtual machine",
        "Core Count: 300",
        "Thread Count: 600",
        "Asset Tag: rack 7",
        "Size: 19 GB",
        "Memory Technology: DRAM",
        "Operating Mode Capability: Volatile memory",
        "String 1: io.systemd.credential:a=b",
        "Ending Address: 0x000BFFFFFFF",
        "Status: No errors detected",
        "End Of Table",
    ] {
        assert!(said.contains(line), "{line:?} is missing in:\n{said}");
    }
    for word in [
        "nvalid",
        "broken",
        "truncated",
        "Bad",
        "<BAD",
        "OUT OF SPEC",
    ] {
        assert!(
            !said.to_lowercase().contains(&word.to_lowercase()),
            "{word:?} is in:\n{said}"
        );
    }
}

proptest! {
    #[test]
    fn any_identity_decodes_to_its_strings(
        serial in "[ -~]{0,80}",
        version in "[^\\x00-\\x1f\\x7f-\\u{9f}]{0,80}",
        sockets in 1u16..=256,
        cores in 1u16..2000,
        threads in 1u16..=4,
        starts in proptest::collection::btree_set(0u64..1 << 50, 0..=128),
        at in (0u64..1 << 59).prop_map(|n| n * 16),
    ) {
        let starts: Vec<_> = starts.into_iter().collect();
        let ends = starts.iter().skip(1).copied().chain([1 << 51]);
        let identity = Identity {
            serial: serial.clone(),
            version: version.clone(),
            processors: Processors { sockets, cores, threads, ..Processors::default() },
            memory: starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect(),
            ..identity()
        };
        let smbios = build(&identity, at).unwrap();
        prop_assert_eq!(smbios.entry_point.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let structures = decode(&smbios.table);
        prop_assert_eq!(of_type(&structures, 4).len(), usize::from(sockets));
        prop_assert_eq!(of_type(&structures, 19).len(), starts.len());
        prop_assert_eq!(structures.last().unwrap().0, 127);
        let (_, _, system, strings) = of_type(&structures, 1)[0];
        let field = |at: usize| match system[at] { 0 => "", n => strings[usize::from(n) - 1].as_str() };
        prop_assert_eq!((field(6), field(7)), (version.as_str(), serial.as_str()));
    }

    #[test]
    fn random_strings_never_panic(serial in any::<String>(), oem in proptest::collection::vec(any::<String>(), 0..300)) {
        let _ = build(&Identity { serial, oem_strings: oem, ..identity() }, 0);
    }
}
