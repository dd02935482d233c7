//! The ring: order, limits, queries, and reading it after the process is gone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use nyx_journal::*;
use proptest::prelude::*;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn config(entries: u32) -> JournalConfig {
    JournalConfig {
        entries,
        ..JournalConfig::default()
    }
}

fn with_ring(path: &Path, entries: u32) -> Journal {
    let origin = Origin {
        vm: None,
        ring: Some(path.into()),
    };
    Journal::new(&config(entries), &origin).unwrap()
}

fn numbers(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.sequence).collect()
}

#[test]
fn the_oldest_entries_are_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.ring");
    for journal in [
        with_ring(&path, 10_000),
        Journal::new(&config(10_000), &Origin::default()).unwrap(),
    ] {
        for n in 0..10_025_u64 {
            let fields = [("n".into(), n.into())].into();
            journal.write("vm", Level::Info, "counted", fields);
        }
        let entries = journal.entries(&Query::default());
        assert_eq!(numbers(&entries), (26..=10_025).collect::<Vec<_>>());
        assert_eq!(entries[0].fields["n"], Value::Count(25));
        assert_eq!(journal.stats().overwritten.get(), 25);
    }
    assert_eq!(
        numbers(&read_ring(&path).unwrap().entries),
        (26..=10_025).collect::<Vec<_>>()
    );
}

#[test]
fn queries() {
    let journal = Journal::new(&config(100), &Origin::default()).unwrap();
    let write = |component, level| journal.write(component, level, "x", Fields::new());
    write("device", Level::Info);
    write("devil", Level::Error);
    write("vm", Level::Fatal);
    let since = journal.entries(&Query::last(1))[0].time;
    write("device", Level::Warn);
    write("vm", Level::Debug);
    let ask = |query: Query| numbers(&journal.entries(&query));
    let component = |text: &str| Some(text.parse().unwrap());
    assert_eq!(ask(Query::last(2)), [4, 5]);
    assert_eq!(
        ask(Query {
            after: Some(3),
            ..Query::default()
        }),
        [4, 5]
    );
    assert_eq!(
        ask(Query {
            component: component("device"),
            ..Query::default()
        }),
        [1, 4]
    );
    assert_eq!(
        ask(Query {
            component: component("dev*"),
            ..Query::last(2)
        }),
        [2, 4]
    );
    assert_eq!(
        ask(Query {
            level: Some(Level::Warn),
            ..Query::default()
        }),
        [2, 3, 4]
    );
    assert_eq!(
        ask(Query {
            since: Some(since),
            ..Query::default()
        })
        .last(),
        Some(&5)
    );
    assert!(
        ask(Query {
            since: Some(since),
            ..Query::default()
        })
        .contains(&3)
    );
    assert_eq!(journal.last_error().unwrap().sequence, 3);
    journal.clear();
    assert_eq!(ask(Query::default()), [0_u64; 0]);
    assert_eq!(journal.last_error(), None);
    write("vm", Level::Info);
    assert_eq!(ask(Query::default()), [6]);
}

#[test]
fn a_file_holds_what_was_cleared_no_longer_and_what_was_before_beside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.ring");
    let journal = with_ring(&path, 100);
    journal.write("vm", Level::Info, "one", Fields::new());
    journal.clear();
    journal.write("vm", Level::Info, "two", Fields::new());
    let recovered = read_ring(&path).unwrap();
    assert_eq!(numbers(&recovered.entries), [2]);
    assert_eq!(recovered.pid, Some(std::process::id()));
    let _next = with_ring(&path, 100);
    assert_eq!(read_ring(&path).unwrap().entries, []);
    assert_eq!(
        numbers(&read_ring(&previous_ring(&path)).unwrap().entries),
        [2]
    );
}

#[test]
fn long_entries_are_kept_and_the_longest_lose_their_fields() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.ring");
    let journal = with_ring(&path, 16);
    let long = "x".repeat(3000);
    for n in 0..200 {
        let count = if n % 2 == 0 { 1 } else { 200 };
        let fields = (0..count)
            .map(|i| (format!("field{i}").into(), long.as_str().into()))
            .collect();
        journal.write("vm", Level::Info, &long, fields);
    }
    let entries = journal.entries(&Query::default());
    assert_eq!(numbers(&entries), (185..=200).collect::<Vec<_>>());
    assert_eq!(
        entries[14].fields["field0"].as_text().unwrap().len(),
        MAX_FIELD + '…'.len_utf8()
    );
    assert_eq!(
        entries[15].fields.keys().collect::<Vec<_>>(),
        ["fields_dropped"]
    );
    assert_eq!(entries, read_ring(&path).unwrap().entries);
}

/// The child of the next test: writes entries until it is killed.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os("JOURNAL_RING") else {
        return;
    };
    let config = JournalConfig {
        rate: 0,
        ..JournalConfig::default()
    };
    let journal = Journal::install(
        &config,
        &Origin {
            vm: Some("doomed".into()),
            ring: Some(path.into()),
        },
    )
    .unwrap();
    for n in 0_u64.. {
        tracing::info!(target: "vm", n, "still here");
        if n == 20_000 {
            fatal!(target: "vm", "about to {}", "die");
            println!("enough");
            if std::env::var_os("JOURNAL_ABORT").is_some() {
                std::process::abort();
            }
        }
    }
    drop(journal);
}

#[test]
fn the_ring_outlives_a_process_that_is_killed_or_aborts() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    for aborts in [false, true] {
        let path = folder.path().join(format!("{aborts}.ring"));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "child_that_writes_until_it_is_killed",
                "--nocapture",
            ])
            .env("JOURNAL_RING", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if aborts {
            command.env("JOURNAL_ABORT", "1");
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("enough")));
        if !aborts {
            std::thread::sleep(Duration::from_millis(20));
            child.kill().unwrap();
        }
        child.wait().unwrap();
        let recovered = read_ring(&path).unwrap();
        assert_eq!(recovered.pid, Some(child.id()));
        let entries = recovered.entries;
        let newest = entries.last().unwrap().sequence;
        assert!(newest >= 20_002, "{newest}");
        assert_eq!(
            numbers(&entries),
            (newest - 9_999..=newest).collect::<Vec<_>>()
        );
        let fatal = entries
            .iter()
            .find(|entry| entry.level == Level::Fatal)
            .unwrap();
        assert_eq!(fatal.message, "about to die");
        assert!(fatal.fields.is_empty());
        let (first, count) = (&entries[0], newest - 9_999);
        assert_eq!(first.fields["n"], Value::Count(count - 1));
    }
}

#[test]
fn a_torn_last_record_costs_only_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.ring");
    let journal = with_ring(&path, 100);
    for n in 0..50_u64 {
        journal.write("vm", Level::Info, "entry", [("n".into(), n.into())].into());
    }
    drop(journal);
    let length = std::fs::metadata(&path).unwrap().len();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff; 16], length - 64).unwrap();
    let recovered = read_ring(&path).unwrap();
    assert_eq!(numbers(&recovered.entries), (1..=49).collect::<Vec<_>>());
    assert_eq!(recovered.damaged, 1);
    file.set_len(length - 40).unwrap();
    assert_eq!(
        numbers(&read_ring(&path).unwrap().entries),
        (1..=49).collect::<Vec<_>>()
    );
}

#[test]
fn a_ring_file_that_is_full_of_traps_is_read_in_reasonable_time() {
    // Beginnings of records of the greatest length everywhere: each would be summed up in full.
    let mut bytes = vec![0; 16 << 20];
    for start in (64..bytes.len()).step_by(32) {
        bytes[start..start + 4].copy_from_slice(&0x6552_794e_u32.to_le_bytes());
        bytes[start + 4..start + 8].copy_from_slice(&65_536_u32.to_le_bytes());
    }
    let start = Instant::now();
    let recovered = parse_ring(&bytes);
    assert_eq!(recovered.entries, []);
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_pipe_or_a_folder_is_no_ring() {
    let folder = tempfile::tempdir().unwrap();
    assert!(read_ring(folder.path()).is_err());
    let pipe = folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    assert!(read_ring(&pipe).is_err());
    assert!(read_ring(&folder.path().join("none")).is_err());
}

#[test]
fn a_ring_in_a_missing_folder_is_refused_with_a_sentence() {
    let origin = Origin {
        vm: None,
        ring: Some("/nowhere/at/all/journal.ring".into()),
    };
    let error = Journal::new(&JournalConfig::default(), &origin).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ring \"/nowhere/at/all/journal.ring\": No such file or directory (os error 2); name a path that this process may create and write"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = parse_ring(&bytes);
    }

    /// Damage anywhere never invents or changes an entry.
    #[test]
    fn damage_only_loses_entries(flips in proptest::collection::vec((0_usize..12_000, 1_u8..), 1..20), cut in 0_usize..12_000) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ring");
        let journal = with_ring(&path, 64);
        for n in 0..80_u64 {
            journal.write("vm", Level::Warn, "entry", [("n".into(), n.into())].into());
        }
        let whole = journal.entries(&Query::default());
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, flip) in flips {
            let length = bytes.len();
            bytes[at % length] ^= flip;
        }
        bytes.truncate(bytes.len().max(cut));
        let recovered = parse_ring(&bytes);
        for entry in recovered.entries.iter().filter(|entry| entry.sequence >= whole[0].sequence) {
            prop_assert!(whole.contains(entry));
        }
        prop_assert!(recovered.entries.len() >= 20);
    }

    /// Whatever the lengths: what a reader of the file sees is what the journal says, oldest first.
    #[test]
    fn file_and_journal_agree(lengths in proptest::collection::vec(0_usize..4090, 1..400)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ring");
        // Few enough bytes that they, not the number of entries, decide what goes.
        let journal = with_ring(&path, 400);
        for length in &lengths {
            journal.write("vm", Level::Info, &"y".repeat(*length), Fields::new());
        }
        let own = journal.entries(&Query::default());
        let read = read_ring(&path).unwrap();
        prop_assert_eq!(read.damaged, 0);
        prop_assert_eq!(own.last().unwrap().sequence, lengths.len() as u64);
        let consecutive = own.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1);
        prop_assert!(consecutive);
        prop_assert!(own.len() >= lengths.len().min(50));
        prop_assert!(read.entries.ends_with(&own));
    }
}
