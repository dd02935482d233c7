//! The audit trail: no change, cut, insertion or new order goes unnoticed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use nyx_journal::audit::{PublicKey, Report, verify, verify_each, verify_file};
use nyx_journal::*;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

fn trail(config: AuditConfig, entries: usize) -> Journal {
    let config = JournalConfig {
        audit: Some(config),
        ..JournalConfig::default()
    };
    let origin = Origin {
        vm: Some("web".into()),
        ring: None,
    };
    let journal = Journal::new(&config, &origin).unwrap();
    for n in 0..entries {
        let fields = [
            ("n".into(), (n as u64).into()),
            ("who".into(), "root".into()),
        ];
        journal.write("audit", Level::Info, "disk attached", fields.into());
        journal.write("vm", Level::Info, "not audited", Fields::new());
    }
    journal
}

fn config(folder: &Path) -> AuditConfig {
    AuditConfig {
        fsync: Fsync::Never,
        ..AuditConfig::new(folder.join("audit.jsonl"))
    }
}

fn reasons(report: &Report) -> Vec<&str> {
    report
        .findings
        .iter()
        .map(|finding| finding.reason.as_str())
        .collect()
}

#[test]
fn an_intact_trail() {
    let folder = tempfile::tempdir().unwrap();
    for run in 1..=2_u64 {
        let journal = trail(config(folder.path()), 3);
        assert!(journal.flush(PATIENCE));
        let path = folder.path().join("audit.jsonl");
        let key = folder.path().join("audit.jsonl.key.pub");
        // While it is written, it is intact and not sealed.
        let report = verify_file(&path, &key).unwrap();
        assert_eq!((reasons(&report), report.sealed), (vec![], false));
        assert!(journal.close(PATIENCE));
        let mut seen = Vec::new();
        let public = PublicKey::from_file(&key).unwrap();
        let report = verify_each(&path, &public, &mut |entry| seen.push(entry.clone())).unwrap();
        assert!(report.is_intact() && report.sealed, "{report:?}");
        assert_eq!(
            (report.records, report.newest, report.lost),
            (5 * run, 5 * run, 0)
        );
        assert_eq!(seen.len() as u64, 3 * run);
        assert!(seen.iter().all(|entry| entry.component == "audit"));
        assert_eq!(journal.stats().audit_records.get(), 5);
        // The public key comes from the private key too.
        assert_eq!(
            PublicKey::from_file(&config(folder.path()).key_path()).unwrap(),
            public
        );
    }
    let mode = |name: &str| {
        fs::metadata(folder.path().join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("audit.jsonl.key"), 0o600);
    assert_eq!(mode("audit.jsonl"), 0o600);
}

#[test]
fn openssl_reads_the_keys_and_its_keys_are_read() {
    let folder = tempfile::tempdir().unwrap();
    trail(config(folder.path()), 1).close(PATIENCE);
    let key = config(folder.path()).key_path();
    let openssl = |arguments: &[&str]| {
        let out = Command::new("openssl").args(arguments).output();
        out.ok()
            .filter(|out| out.status.success())
            .map(|out| out.stdout)
    };
    let Some(public) = openssl(&["pkey", "-in", key.to_str().unwrap(), "-pubout"]) else {
        assert!(Command::new("openssl").arg("version").output().is_err());
        return;
    };
    assert_eq!(
        public,
        fs::read(folder.path().join("audit.jsonl.key.pub")).unwrap()
    );
    let other = folder.path().join("other.pem");
    openssl(&[
        "genpkey",
        "-algorithm",
        "ed25519",
        "-out",
        other.to_str().unwrap(),
    ])
    .unwrap();
    let given = AuditConfig {
        key: Some(other.clone()),
        ..AuditConfig::new(folder.path().join("second.jsonl"))
    };
    trail(given.clone(), 1).close(PATIENCE);
    assert!(verify_file(&given.path, &other).unwrap().is_intact());
    assert!(!verify_file(&given.path, &key).unwrap().is_intact());
}

#[test]
fn the_chain_goes_on_from_file_to_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.max_size = Some(Bytes(4096));
    trail(config.clone(), 30).close(PATIENCE);
    trail(config.clone(), 30).close(PATIENCE);
    let key = config.key_path();
    let report = verify_file(&config.path, &key).unwrap();
    assert_eq!(reasons(&report), [""; 0]);
    assert_eq!(report.records, 64);
    assert!(report.files.len() > 5, "{:?}", report.files);
    fs::remove_file(&report.files[2]).unwrap();
    let report = verify_file(&config.path, &key).unwrap();
    assert_eq!(report.found, 1);
    assert!(
        reasons(&report)[0].ends_with("are missing before it"),
        "{report:?}"
    );
}

/// One trail of two runs with the same key as another, and its parts.
struct Sample {
    _folder: tempfile::TempDir,
    log: Vec<u8>,
    head: Vec<u8>,
    other: Vec<u8>,
    key: PublicKey,
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let first = config(folder.path());
        trail(first.clone(), 1).close(PATIENCE);
        trail(first.clone(), 1).close(PATIENCE);
        let second = AuditConfig {
            key: Some(first.key_path()),
            ..AuditConfig::new(folder.path().join("other.jsonl"))
        };
        trail(second.clone(), 4).close(PATIENCE);
        Sample {
            log: fs::read(&first.path).unwrap(),
            head: fs::read(folder.path().join("audit.jsonl.head")).unwrap(),
            other: fs::read(&second.path).unwrap(),
            key: PublicKey::from_file(&first.key_path()).unwrap(),
            _folder: folder,
        }
    })
}

struct Copy(tempfile::TempDir);

impl Copy {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn check(&self, log: &[u8], head: &[u8]) -> Report {
        let path = self.0.path().join("audit.jsonl");
        fs::write(&path, log).unwrap();
        fs::write(self.0.path().join("audit.jsonl.head"), head).unwrap();
        verify(&path, &sample().key).unwrap()
    }
}

#[test]
fn every_cut_is_found() {
    let sample = sample();
    let copy = Copy::new();
    assert!(copy.check(&sample.log, &sample.head).is_intact());
    // At every record's end, and around it; cuts inside of records are torn records.
    let ends = (0..sample.log.len())
        .filter(|at| sample.log[*at] == b'\n')
        .map(|at| at + 1);
    for end in [0].into_iter().chain(ends) {
        for length in [end.saturating_sub(1), end, end + 1, end + 250] {
            if length < sample.log.len() {
                let report = copy.check(&sample.log[..length], &sample.head);
                assert!(!report.is_intact(), "cut to {length}");
                let last = reasons(&report).pop().unwrap();
                assert!(last.ends_with("missing at the end"), "{last}");
            }
        }
    }
    assert_eq!(
        reasons(&copy.check(b"", &sample.head)),
        ["records 1 to 6 are missing at the end"]
    );
    let headless = copy.check(&sample.log, b"");
    assert_eq!(
        reasons(&headless),
        ["the checkpoint was changed, or is signed with another key"]
    );
    fs::remove_file(copy.0.path().join("audit.jsonl.head")).unwrap();
    let gone = verify(&copy.0.path().join("audit.jsonl"), &sample.key).unwrap();
    assert_eq!(
        reasons(&gone),
        ["the checkpoint is missing, so the end of the trail may be too"]
    );
    fs::remove_file(copy.0.path().join("audit.jsonl")).unwrap();
    assert!(
        !verify(&copy.0.path().join("audit.jsonl"), &sample.key)
            .unwrap()
            .is_intact()
    );
}

#[test]
fn every_flip_of_a_bit_of_the_checkpoint_is_found() {
    let sample = sample();
    let copy = Copy::new();
    for at in 0..sample.head.len() {
        let mut head = sample.head.clone();
        head[at] ^= 1 << (at % 8);
        assert!(!copy.check(&sample.log, &head).is_intact(), "byte {at}");
    }
}

#[test]
fn the_finding_says_which_record_and_why() {
    let sample = sample();
    let copy = Copy::new();
    let text = String::from_utf8(sample.log.clone()).unwrap();
    let changed = text.replacen("disk attached", "disk detached", 1);
    let report = copy.check(changed.as_bytes(), &sample.head);
    assert_eq!(
        reasons(&report),
        [
            "record 2 was changed: its content does not have its hash",
            "record 2 is missing before it"
        ]
    );
    assert_eq!(
        (report.findings[0].line, report.findings[0].sequence),
        (2, Some(2))
    );
    assert!(
        report.findings[0]
            .to_string()
            .contains("audit.jsonl, line 2: record 2 was")
    );
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    let removed = [&lines[..1], &lines[3..]].concat().concat();
    assert_eq!(
        reasons(&copy.check(removed.as_bytes(), &sample.head)),
        ["records 2 to 3 are missing before it"]
    );
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    assert_eq!(
        reasons(&copy.check(swapped.concat().as_bytes(), &sample.head)),
        [
            "record 3 is missing before it",
            "record 3 comes after record 4",
            "record 4 is missing before it"
        ]
    );
    // A record of another trail with the same key and the right number.
    let other = String::from_utf8(sample.other.clone()).unwrap();
    let mut spliced = lines.clone();
    spliced[1] = other.split_inclusive('\n').nth(1).unwrap();
    assert_eq!(
        reasons(&copy.check(spliced.concat().as_bytes(), &sample.head)),
        [
            "record 2 does not continue the record before it",
            "record 3 does not continue the record before it"
        ]
    );
    let mut replaced = lines.clone();
    replaced[5] = other.split_inclusive('\n').nth(5).unwrap();
    assert!(
        !copy
            .check(replaced.concat().as_bytes(), &sample.head)
            .is_intact()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_flip_of_a_byte_is_found(at in 0_usize..100_000, flip in 1_u8..) {
        let sample = sample();
        let mut log = sample.log.clone();
        let at = at % log.len();
        log[at] ^= flip;
        let report = Copy::new().check(&log, &sample.head);
        prop_assert!(!report.is_intact(), "byte {at} by {flip:#x}");
    }

    #[test]
    fn every_new_order_repetition_or_removal_of_lines_is_found(
        order in proptest::collection::vec(0_usize..6, 0..9)
    ) {
        let sample = sample();
        let lines: Vec<_> = sample.log.split_inclusive(|b| *b == b'\n').collect();
        let log: Vec<u8> = order.iter().flat_map(|line| lines[*line].iter().copied()).collect();
        let report = Copy::new().check(&log, &sample.head);
        prop_assert_eq!(report.is_intact(), order == [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn every_insertion_and_deletion_of_bytes_is_found(
        at in 0_usize..100_000,
        gone in 0_usize..700,
        put in proptest::collection::vec(any::<u8>(), 0..50),
    ) {
        let sample = sample();
        let mut log = sample.log.clone();
        let at = at % log.len();
        let end = (at + gone).min(log.len());
        log.splice(at..end, put);
        let same = log == sample.log;
        prop_assert_eq!(Copy::new().check(&log, &sample.head).is_intact(), same);
    }

    #[test]
    fn garbage_is_survived(log in proptest::collection::vec(any::<u8>(), 0..500), head in "\\PC{0,600}") {
        prop_assert!(!Copy::new().check(&log, head.as_bytes()).is_intact());
    }
}

fn refused(config: &AuditConfig) -> String {
    let config = JournalConfig {
        audit: Some(config.clone()),
        ..JournalConfig::default()
    };
    Journal::new(&config, &Origin::default())
        .unwrap_err()
        .to_string()
}

#[test]
fn a_trail_that_was_tampered_with_is_not_made_good_by_going_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let head = folder.path().join("audit.jsonl.head");
    trail(config.clone(), 3).close(PATIENCE);
    let good = fs::read(&head).unwrap();
    fs::remove_file(&head).unwrap();
    assert!(refused(&config).contains("its checkpoint (.head) is missing"));
    assert!(!head.exists());
    fs::write(&head, &good[..500]).unwrap();
    assert!(refused(&config).contains("its checkpoint (.head) is damaged"));
    fs::write(&head, &good).unwrap();
    // Its last two records are cut off: it goes on, and the gap stays.
    let log = fs::read_to_string(&config.path).unwrap();
    let lines: Vec<_> = log.split_inclusive('\n').collect();
    fs::write(&config.path, lines[..3].concat()).unwrap();
    trail(config.clone(), 1).close(PATIENCE);
    let report = verify_file(&config.path, &config.key_path()).unwrap();
    assert_eq!(reasons(&report), ["records 4 to 5 are missing before it"]);
}

#[test]
fn one_trail_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let journal = trail(config.clone(), 1);
    assert!(refused(&config).contains("another process writes it"));
    journal.close(PATIENCE);
    drop(journal);
    trail(config, 1).close(PATIENCE);
}

#[test]
fn every_second_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.fsync = Fsync::Second;
    let journal = trail(config.clone(), 2);
    std::thread::sleep(Duration::from_millis(1300));
    journal.write("audit", Level::Info, "later", Fields::new());
    assert!(journal.close(PATIENCE));
    assert!(
        verify_file(&config.path, &config.key_path())
            .unwrap()
            .is_intact()
    );
}

/// The child of the next test.
#[test]
fn child_that_audits_until_it_is_killed() {
    let Some(folder) = std::env::var_os("JOURNAL_AUDIT") else {
        return;
    };
    let journal = trail(config(&PathBuf::from(folder)), 0);
    for n in 0_u64.. {
        journal.write(
            "audit",
            Level::Info,
            "entry",
            [("n".into(), n.into())].into(),
        );
        if n % 16 == 0 {
            journal.flush(PATIENCE);
        }
        if n == 208 {
            println!("enough");
        }
    }
}

#[test]
fn a_killed_writer_loses_nothing_that_was_written() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child_that_audits_until_it_is_killed",
                "--nocapture",
            ])
            .env("JOURNAL_AUDIT", folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("enough")));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // A torn last line, as a loss of power may leave it.
    let mut log = fs::read(&config.path).unwrap();
    let torn = log[..100].to_vec();
    log.extend(torn);
    fs::write(&config.path, log).unwrap();
    trail(config.clone(), 1).close(PATIENCE);
    let report = verify_file(&config.path, &config.key_path()).unwrap();
    assert_eq!(reasons(&report), [""; 0]);
    assert!(report.sealed && report.records > 3 * 209);
    assert!(
        fs::read_to_string(&config.path)
            .unwrap()
            .contains("\"torn\":100")
    );
}
