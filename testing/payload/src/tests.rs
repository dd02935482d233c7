//! The report reader, the command line, and the shape of the ELF file.

use super::*;

#[test]
fn a_whole_output_is_read() {
    let output = "!note tsc-rate 2100000000\r\nok serial\r\nbench exit-pio 1000 17000000\r\n\
                  fail rtc: register D after a write (got 0x0, want 0x80)\r\n\
                  skip virtio-rng: no virtio-rng device\r\nsomething else\r\ndone\r\n";
    let report = Report::parse(output);
    assert_eq!(report.oks, ["serial"]);
    assert_eq!(report.fails.len(), 1);
    assert_eq!(report.fails[0].test, "rtc");
    assert_eq!(
        report.fails[0].why,
        "register D after a write (got 0x0, want 0x80)"
    );
    assert_eq!(report.skips[0].test, "virtio-rng");
    assert_eq!(report.others, ["something else"]);
    assert_eq!(report.tsc_rate(), Some(2_100_000_000));
    let bench = report.bench("exit-pio").unwrap();
    assert_eq!((bench.iterations, bench.cycles), (1000, 17_000_000));
    assert!((bench.cycles_each() - 17_000.0).abs() < f64::EPSILON);
    assert!(report.done && !report.passed() && report.is_ok("serial") && !report.is_ok("rtc"));
}

#[test]
fn an_output_cut_short_is_not_done() {
    let report = Report::parse("!ok serial\nok ioap");
    assert!(!report.done && !report.passed());
    assert_eq!(report.oks, ["serial", "ioap"]);
    assert_eq!(Report::parse(""), Report::default());
}

#[test]
fn malformed_lines_are_kept_as_others() {
    let report =
        Report::parse("bench x 1\nbench x one 2\nfail nothing\nok\nskip y\ndone now\nnote z\n");
    assert_eq!(report.others.len(), 7);
    assert_eq!(
        Report {
            others: Vec::new(),
            ..report
        },
        Report::default()
    );
}

#[test]
fn a_command_line_is_written_in_the_guests_form() {
    assert_eq!(Command::new().to_string(), "");
    let line = Command::new()
        .then(Ending::Reset)
        .test("pci")
        .option("hold", "1M")
        .test("rtc");
    assert_eq!(line.to_string(), "test=pci,rtc then=reset hold=1M");
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len]
        .iter()
        .rev()
        .fold(0, |n, &byte| n << 8 | u64::from(byte))
}

#[test]
fn the_elf_file_is_static_and_has_a_pvh_note() {
    let elf = elf();
    assert_eq!(elf, std::fs::read(elf_path()).unwrap());
    assert_eq!(&elf[..5], b"\x7fELF\x02");
    assert_eq!(number(elf, 16, 2), 2, "ET_EXEC");
    assert_eq!(number(elf, 18, 2), 62, "EM_X86_64");
    let headers = number(elf, 32, 8) as usize;
    let count = number(elf, 56, 2) as usize;
    let mut entry = None;
    let mut range = None;
    for header in (0..count).map(|i| headers + 56 * i) {
        let offset = number(elf, header + 8, 8) as usize;
        match number(elf, header, 4) {
            1 => range = Some((number(elf, header + 24, 8), number(elf, header + 40, 8))),
            4 => {
                // Name size, descriptor size, type, name, descriptor.
                assert_eq!(number(elf, offset, 4), 4);
                assert_eq!(number(elf, offset + 8, 4), 18, "XEN_ELFNOTE_PHYS32_ENTRY");
                assert_eq!(&elf[offset + 12..offset + 16], b"Xen\0");
                entry = Some(number(elf, offset + 16, 4));
            }
            other => assert!(matches!(other, 0x6474_e551), "segment of type {other:#x}"),
        }
    }
    let (start, len) = range.unwrap();
    assert_eq!(start, 0x10_0000);
    assert!(len < 4 << 20, "the guest needs {len} bytes");
    assert!((start..start + len).contains(&entry.unwrap()));
}

#[test]
fn the_tests_have_unique_names() {
    assert!(TESTS.contains(&"serial") && TESTS.contains(&"virtio-blk") && TESTS.len() > 30);
    let unique: std::collections::BTreeSet<_> = TESTS.iter().collect();
    assert_eq!(unique.len(), TESTS.len());
}
