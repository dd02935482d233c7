//! Tests of the tables: goldens, checks of ACPICA's own tools, and invariants for any machine.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use crate::*;

fn cpus(count: u32) -> Vec<CpuEntry> {
    (0..count)
        .map(|n| CpuEntry {
            apic_id: n,
            processor_uid: n,
            enabled: true,
        })
        .collect()
}

/// A machine with everything the crate can describe.
fn pc() -> AcpiPlatform {
    AcpiPlatform {
        cpus: cpus(2),
        ioapics: vec![IoapicEntry {
            id: 0,
            address: 0xfec0_0000,
            gsi_base: 0,
        }],
        overrides: vec![
            SourceOverride {
                isa_irq: 0,
                gsi: 2,
                polarity: Polarity::High,
                trigger: Trigger::Edge,
            },
            SourceOverride {
                isa_irq: 9,
                gsi: 9,
                polarity: Polarity::High,
                trigger: Trigger::Level,
            },
        ],
        pm: Some(PmBlock {
            base: 0x600,
            sci_gsi: 9,
            gpe0: Some(GpeBlock {
                port: 0x620,
                len: 8,
            }),
            s5_type: 5,
        }),
        sleep: None,
        reset: Some(ResetRegister {
            port: 0xcf9,
            value: 6,
        }),
        ecam: Some(Ecam {
            base: 0xe000_0000,
            start_bus: 0,
            end_bus: 255,
        }),
        pci_root: Some(PciRoot {
            buses: 0..=255,
            io: vec![0..=0xcf7, 0xd00..=0xffff],
            mmio32: 0xc000_0000..0xe000_0000,
            mmio64: Some(0x10_0000_0000..0x20_0000_0000),
            prt: (1..4)
                .flat_map(|device| {
                    (0..4).map(move |pin| PrtEntry {
                        device,
                        pin,
                        gsi: 16 + u32::from((device + pin) % 8),
                    })
                })
                .collect(),
            native_control: NATIVE_CONTROL,
        }),
        spcr: Some(Spcr {
            port: 0x3f8,
            gsi: 4,
            baud: 115_200,
        }),
        pic: false,
        i8042: true,
        rtc: true,
        vga: false,
        fragments: vec![
            Fragment {
                scope: Scope::SystemBus,
                aml: parts::uart(1, 0x3f8, 4, Trigger::Edge),
            },
            Fragment {
                scope: Scope::SystemBus,
                aml: parts::rtc(8),
            },
            Fragment {
                scope: Scope::SystemBus,
                aml: parts::i8042(1, Some(12)),
            },
        ],
        extra_tables: vec![ExtraTable {
            signature: *b"WAET",
            revision: 1,
            body: vec![2, 0, 0, 0],
        }],
    }
}

/// The least machine: hardware-reduced, no PCI.
fn small() -> AcpiPlatform {
    AcpiPlatform {
        cpus: cpus(1),
        ioapics: vec![IoapicEntry {
            id: 0,
            address: 0xfec0_0000,
            gsi_base: 0,
        }],
        sleep: Some(SleepRegisters {
            control: 0x600,
            status: 0x601,
            s5_type: 5,
        }),
        ..AcpiPlatform::default()
    }
}

/// A listing of all tables: name, address, length and every byte.
fn listing(tables: &Tables) -> String {
    let mut text = String::new();
    let names = std::iter::once("RSDP".to_string()).chain(tables.tables.iter().map(Table::name));
    for (name, (address, bytes)) in names.zip(tables.writes()) {
        writeln!(text, "{name} at {address:#x}, {} bytes", bytes.len()).unwrap();
        for (row, chunk) in bytes.chunks(16).enumerate() {
            let hex: Vec<_> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
            let ascii: String = chunk
                .iter()
                .map(|b| {
                    if b.is_ascii_graphic() {
                        char::from(*b)
                    } else {
                        '.'
                    }
                })
                .collect();
            writeln!(text, "  {:04x}  {:47}  {ascii}", row * 16, hex.join(" ")).unwrap();
        }
    }
    text
}

/// Compares with the golden file, or writes it when `NYX_UPDATE_GOLDENS` is set.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/goldens")
        .join(name);
    if std::env::var_os("NYX_UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        text, expected,
        "tables changed: guests will see it (NYX_UPDATE_GOLDENS=1 to accept)"
    );
}

fn le(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width]
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// What must hold for any set of tables.
fn check(tables: &Tables) {
    let mut free_from = tables.rsdp_address + tables.rsdp.len() as u64;
    for table in &tables.tables {
        assert!(
            table.address >= free_from,
            "{} overlaps its predecessor",
            table.name()
        );
        assert_eq!(table.address % 64, 0);
        free_from = table.address + table.bytes.len() as u64;
        assert_eq!(
            le(&table.bytes, 4, 4),
            table.bytes.len() as u64,
            "length of {}",
            table.name()
        );
        if &table.signature != b"FACS" {
            assert_eq!(sum(&table.bytes), 0, "checksum of {}", table.name());
            assert_eq!(&table.bytes[10..28], b"NYX   NYXVM   \x01\0\0\0");
        }
    }
    assert_eq!(tables.range(), tables.rsdp_address..free_from);
    let at = |address: u64| {
        tables
            .tables
            .iter()
            .find(|table| table.address == address)
            .unwrap()
    };
    let rsdp = &tables.rsdp;
    assert_eq!(
        (sum(&rsdp[..20]), sum(rsdp), &rsdp[..8]),
        (0, 0, b"RSD PTR ".as_slice())
    );
    let xsdt = at(le(rsdp, 24, 8));
    assert_eq!(&xsdt.signature, b"XSDT");
    let listed: Vec<_> = xsdt.bytes[36..]
        .chunks(8)
        .map(|entry| le(entry, 0, 8))
        .collect();
    let unlisted: &[&[u8; 4]] = &[b"FACS", b"DSDT", b"RSDT", b"XSDT"];
    let expected: Vec<_> = tables
        .tables
        .iter()
        .filter(|table| !unlisted.contains(&&table.signature))
        .map(|table| table.address)
        .collect();
    assert_eq!(listed, expected);
    match le(rsdp, 16, 4) {
        0 => assert!(free_from > 1 << 32, "an RSDT fits"),
        rsdt => {
            let narrow: Vec<_> = at(rsdt).bytes[36..]
                .chunks(4)
                .map(|entry| le(entry, 0, 4))
                .collect();
            assert_eq!(narrow, listed);
        }
    }
    let fadt = &tables.table(b"FACP").unwrap().bytes;
    assert_eq!(fadt.len(), 276);
    assert_eq!(&at(le(fadt, 140, 8)).signature, b"DSDT");
    assert!([0, le(fadt, 140, 8)].contains(&le(fadt, 40, 4)));
    let facs = le(fadt, 36, 4) | le(fadt, 132, 8);
    match tables.table(b"FACS") {
        Some(table) => assert_eq!(facs, table.address),
        None => assert_eq!(facs, 0),
    }
}

/// Type, and bytes after the two of the header, of each MADT entry.
fn madt_entries(tables: &Tables) -> Vec<(u8, Vec<u8>)> {
    let madt = &tables.table(b"APIC").unwrap().bytes;
    let mut rest = &madt[44..];
    let mut entries = Vec::new();
    while let [kind, len, ..] = *rest {
        entries.push((kind, rest[2..usize::from(len)].to_vec()));
        rest = &rest[usize::from(len)..];
    }
    entries
}

#[test]
fn tables_are_the_golden_ones() {
    let tables = build(&pc(), 0xe_0000).unwrap();
    check(&tables);
    golden("pc.txt", &listing(&tables));
    let tables = build(&small(), 0xe_0000).unwrap();
    check(&tables);
    golden("small.txt", &listing(&tables));
}

#[test]
fn fadt_tells_the_hardware() {
    let tables = build(&pc(), 0xe_0000).unwrap();
    let fadt = &tables.table(b"FACP").unwrap().bytes;
    // WBINVD, PROC_C1, no sleep button, no fixed RTC wake, 32-bit timer, reset register; a fixed power button.
    assert_eq!(
        le(fadt, 112, 4),
        1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10
    );
    assert_eq!(
        le(fadt, 109, 2),
        1 | 1 << 1 | 1 << 2 | 1 << 4,
        "legacy, 8042, no VGA, no ASPM"
    );
    assert_eq!(
        (le(fadt, 56, 4), le(fadt, 64, 4), le(fadt, 76, 4)),
        (0x600, 0x604, 0x608)
    );
    assert_eq!((le(fadt, 46, 2), le(fadt, 48, 4), fadt[92]), (9, 0, 8));
    assert_eq!(fadt[116..129], [1, 8, 0, 1, 0xf9, 0xc, 0, 0, 0, 0, 0, 0, 6]);
    let tables = build(&small(), 0xe_0000).unwrap();
    let fadt = &tables.table(b"FACP").unwrap().bytes;
    assert_eq!(le(fadt, 112, 4) >> 20 & 1, 1, "hardware-reduced");
    assert_eq!(fadt[244..250], [1, 8, 0, 1, 0, 6]);
    assert_eq!(tables.table(b"FACS"), None);
}

#[test]
fn madt_changes_over_to_x2apic_entries() {
    let mut platform = pc();
    platform.cpus = vec![
        CpuEntry {
            apic_id: 0,
            processor_uid: 0,
            enabled: true,
        },
        CpuEntry {
            apic_id: 254,
            processor_uid: 1,
            enabled: true,
        },
        CpuEntry {
            apic_id: 255,
            processor_uid: 2,
            enabled: true,
        },
        CpuEntry {
            apic_id: 1023,
            processor_uid: 300,
            enabled: false,
        },
    ];
    let entries = madt_entries(&build(&platform, 0).unwrap());
    assert_eq!(entries[0], (0, vec![0, 0, 1, 0, 0, 0]));
    assert_eq!(entries[1], (0, vec![1, 254, 1, 0, 0, 0]));
    assert_eq!(
        entries[2],
        (9, vec![0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])
    );
    assert_eq!(
        entries[3],
        (9, vec![0, 0, 0xff, 3, 0, 0, 2, 0, 0, 0, 44, 1, 0, 0])
    );
    assert_eq!(entries[4], (1, vec![0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]));
    assert_eq!(entries[5], (2, vec![0, 0, 2, 0, 0, 0, 0b0101, 0]));
    assert_eq!(entries[6], (2, vec![0, 9, 9, 0, 0, 0, 0b1101, 0]));
    assert_eq!(entries[7], (4, vec![0xff, 0, 0, 1]));
    assert_eq!(
        entries[8],
        (10, vec![0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0])
    );
    assert_eq!(entries.len(), 9);
}

#[test]
fn descriptions_that_cannot_be_are_refused() {
    let refuse = |change: &dyn Fn(&mut AcpiPlatform)| {
        let mut platform = pc();
        change(&mut platform);
        build(&platform, 0xe_0000).unwrap_err()
    };
    assert_eq!(refuse(&|p| p.cpus.clear()), BuildError::NoCpu);
    assert_eq!(
        refuse(&|p| p.cpus[1].processor_uid = 0),
        BuildError::CpuNumber(0)
    );
    assert_eq!(
        refuse(&|p| p.cpus[1].processor_uid = 4096),
        BuildError::CpuNumber(4096)
    );
    let root = |change: &dyn Fn(&mut PciRoot)| refuse(&|p| change(p.pci_root.as_mut().unwrap()));
    assert!(matches!(
        root(&|r| r.io = vec![0..=0xffff]),
        BuildError::Window { last: 0xffff, .. }
    ));
    assert!(matches!(
        root(&|r| r.mmio32 = 0xc000_0000..0xc000_0000),
        BuildError::Window { .. }
    ));
    assert!(matches!(
        root(&|r| r.mmio32 = 0xc000_0000..0x1_0000_1000),
        BuildError::Window { .. }
    ));
    assert!(matches!(
        root(&|r| r.mmio64 = Some(0x8000_0000..0x9000_0000)),
        BuildError::Window { .. }
    ));
    assert_eq!(
        root(&|r| r.prt[0].pin = 4),
        BuildError::Route { device: 1, pin: 4 }
    );
    assert_eq!(
        root(&|r| r.prt[0].device = 32),
        BuildError::Route { device: 32, pin: 0 }
    );
    assert_eq!(
        root(&|r| r.prt[1].pin = 0),
        BuildError::Route { device: 1, pin: 0 }
    );
    let stray = |p: &mut AcpiPlatform| {
        p.pci_root = None;
        p.fragments[0].scope = Scope::Pci0;
    };
    assert_eq!(refuse(&stray), BuildError::NoPciRoot);
    assert_eq!(build(&pc(), 0xe_0010), Err(BuildError::Alignment(0xe_0010)));
    assert!(matches!(
        build(&pc(), u64::MAX - 63),
        Err(BuildError::TooLarge(_))
    ));
}

/// Runs a tool of ACPICA in `folder`; `None`, with the reason printed, when it is not installed.
fn acpica(folder: &Path, tool: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(tool)
        .args(arguments)
        .current_dir(folder)
        .output()
    {
        Ok(output) => {
            let text =
                String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            Some(text.into_owned())
        }
        Err(error) => {
            println!("skipped: cannot run {tool} ({error}); Debian has it in acpica-tools");
            None
        }
    }
}

#[test]
fn acpica_disassembles_and_recompiles_every_table() {
    for platform in [
        pc(),
        small(),
        AcpiPlatform {
            cpus: cpus(1024),
            vga: true,
            ..pc()
        },
    ] {
        let folder = tempfile::tempdir().unwrap();
        let tables = build(&platform, 0xe_0000).unwrap();
        for table in &tables.tables {
            let name = table.name();
            std::fs::write(folder.path().join(format!("{name}.dat")), &table.bytes).unwrap();
            let Some(said) = acpica(folder.path(), "iasl", &["-d", &format!("{name}.dat")]) else {
                return;
            };
            assert!(
                said.contains("ASL Output") || said.contains("Formatted output"),
                "{name}: {said}"
            );
            for word in ["Error", "Warning", "Invalid", "incorrect", "Unknown"] {
                assert!(!said.contains(word), "{name}: {said}");
            }
        }
        let Some(said) = acpica(folder.path(), "iasl", &["-tc", "DSDT.dsl"]) else {
            return;
        };
        assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
    }
}

#[test]
fn acpica_evaluates_the_methods() {
    let folder = tempfile::tempdir().unwrap();
    let mut platform = pc();
    platform.cpus = cpus(300);
    let tables = build(&platform, 0xe_0000).unwrap();
    std::fs::write(
        folder.path().join("dsdt.aml"),
        &tables.table(b"DSDT").unwrap().bytes,
    )
    .unwrap();
    let evaluate = |what: &str| acpica(folder.path(), "acpiexec", &["-b", what, "dsdt.aml"]);
    let uuid = "(5B 4D DB 33 F7 1F 1C 40 96 57 74 41 C0 3D D7 66)";
    // Query support, no segments, control 0x1f asked for: hot-plug must be masked, and said to be.
    let asked = "(00 00 00 00 00 00 00 00 1F 00 00 00)";
    let Some(said) = evaluate(&format!("evaluate \\_SB.PCI0._OSC {uuid} 1 3 {asked}")) else {
        return;
    };
    assert!(
        said.contains("10 00 00 00 00 00 00 00 1C 00 00 00"),
        "{said}"
    );
    let said = evaluate(&format!("evaluate \\_SB.PCI0._OSC {uuid} 2 3 {asked}")).unwrap();
    assert!(
        said.contains("18 00 00 00 00 00 00 00 1C 00 00 00"),
        "unknown revision: {said}"
    );
    let other = uuid.replace("5B", "5C");
    let said = evaluate(&format!("evaluate \\_SB.PCI0._OSC {other} 1 3 {asked}")).unwrap();
    assert!(
        said.contains("04 00 00 00 00 00 00 00 1F 00 00 00"),
        "unknown UUID: {said}"
    );
    let said = evaluate("evaluate \\_S5").unwrap();
    assert!(said.contains("Package] Contains 4 Elements"), "{said}");
    let said = evaluate("evaluate \\_SB.C12B._UID").unwrap();
    assert!(said.contains("000000000000012B"), "{said}");
    let said = evaluate("evaluate \\_SB.PCI0._PRT").unwrap();
    assert!(said.contains("Contains 12 Elements"), "{said}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tables_hold_together_for_any_machine(
        count in 1u32..=1024,
        stride in 1u32..4,
        base in prop_oneof![
            (0u64..1 << 26).prop_map(|n| n * 64),
            (0u64..64).prop_map(|n| (1 << 32) - n * 64 * 32),
            (0u64..1 << 46).prop_map(|n| n * 64),
        ],
        (pm, ecam, root, spcr, vga) in any::<(bool, bool, bool, bool, bool)>(),
        prt in proptest::collection::btree_set((0u8..32, 0u8..4), 0..128),
    ) {
        let mut platform = pc();
        platform.cpus = (0..count).map(|n| CpuEntry { apic_id: n * stride, processor_uid: n, enabled: n % 3 != 1 }).collect();
        platform.pm = platform.pm.filter(|_| pm);
        platform.ecam = platform.ecam.filter(|_| ecam);
        platform.spcr = platform.spcr.filter(|_| spcr);
        platform.vga = vga;
        if root {
            let routes = prt.iter().map(|(device, pin)| PrtEntry { device: *device, pin: *pin, gsi: 16 });
            platform.pci_root.as_mut().unwrap().prt = routes.collect();
        } else {
            platform.pci_root = None;
        }
        let tables = build(&platform, base).unwrap();
        check(&tables);
        let processors = madt_entries(&tables).iter().filter(|(kind, _)| [0, 9].contains(kind)).count();
        prop_assert_eq!(processors, count as usize);
        prop_assert_eq!(build(&platform, base).unwrap(), tables, "pure");
    }
}
