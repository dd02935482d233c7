//! Files: rotation, retention, and disks that are full. Times are those of the entries.

use super::file::LogFile;
use super::{Fault, Sink};
use crate::config::{Bytes, FileOutput, Format, OutputConfig, Rotate};
use crate::entry::{Entry, Fields};
use crate::level::Level;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn output(path: &Path, rotate: Rotate) -> FileOutput {
    FileOutput {
        path: path.into(),
        level: Level::Trace,
        format: Format::Text,
        rotate,
        max_size: None,
        keep_days: 30,
        max_files: None,
    }
}

fn entry(time: &str, message: &str) -> Entry {
    Entry {
        sequence: 1,
        time: time.parse().unwrap(),
        level: Level::Info,
        component: "vm".into(),
        message: message.into(),
        fields: Fields::new(),
    }
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn write(log: &mut LogFile, entries: &[(&str, &str)]) {
    for (time, message) in entries {
        log.write(&entry(time, message)).unwrap();
    }
}

#[test]
fn a_day_or_an_hour_begins_a_new_file() {
    let entries = [
        ("2030-02-28T22:59:59Z", "a"),
        ("2030-02-28T23:00:00Z", "b"),
        ("2030-02-28T23:59:59.9Z", "c"),
        ("2030-03-01T00:00:00Z", "d"),
    ];
    for (rotate, expected) in [
        (Rotate::Never, &["vm.log"][..]),
        (Rotate::Daily, &["vm-20300228T235959Z.log", "vm.log"]),
        (
            Rotate::Hourly,
            &[
                "vm-20300228T225959Z.log",
                "vm-20300228T235959Z.log",
                "vm.log",
            ],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/vm.log");
        let mut log = LogFile::open(&output(&path, rotate), "o").unwrap();
        write(&mut log, &entries);
        let folder = path.parent().unwrap();
        assert_eq!(files(folder), expected);
        let all: String = expected
            .iter()
            .map(|name| fs::read_to_string(folder.join(name)).unwrap())
            .collect();
        let messages: Vec<_> = all
            .lines()
            .map(|line| line.rsplit(' ').next().unwrap())
            .collect();
        assert_eq!(messages, ["a", "b", "c", "d"]);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777 & !0o640, 0);
    }
}

#[test]
fn a_file_of_an_earlier_process_is_put_aside_when_its_day_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    fs::write(&path, "old\n").unwrap();
    let then: crate::Timestamp = "2020-01-02T03:04:05.6Z".parse().unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_micros(then.micros());
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(then)
        .unwrap();
    let mut log = LogFile::open(&output(&path, Rotate::Daily), "o").unwrap();
    write(&mut log, &[("2020-01-03T00:00:00Z", "new")]);
    assert_eq!(files(folder.path()), ["vm", "vm-20200102T030405Z"]);
    assert_eq!(
        fs::read_to_string(folder.path().join("vm-20200102T030405Z")).unwrap(),
        "old\n"
    );
}

#[test]
fn a_size_begins_a_new_file_and_names_never_collide() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.log");
    let mut config = output(&path, Rotate::Size);
    config.max_size = Some(Bytes(4096));
    let mut log = LogFile::open(&config, "o").unwrap();
    let message = "x".repeat(1500);
    for _ in 0..7 {
        write(&mut log, &[("2030-01-01T00:00:00Z", &message)]);
    }
    assert_eq!(
        files(folder.path()),
        [
            "vm-20300101T000000Z-1.log",
            "vm-20300101T000000Z-2.log",
            "vm-20300101T000000Z.log",
            "vm.log"
        ]
    );
    for name in files(folder.path()) {
        assert!(fs::metadata(folder.path().join(name)).unwrap().len() <= 4096);
    }
}

#[test]
fn old_files_are_deleted_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.log");
    let strangers = [
        "other-20200101T000000Z.log",
        "vm-20200101T000000Z.log.gz",
        "vm-20200101T000000Z-0.log",
        "vm-20201301T000000Z.log",
        "vm-2020-01-01.log",
        "vm-.log",
        "vm.log.20200101T000000Z",
    ];
    let ours = [
        "vm-20200101T000000Z.log",
        "vm-20200101T000000Z-3.log",
        "vm-20300130T235959Z.log",
        "vm-20300131T000000Z.log",
    ];
    for name in strangers.iter().chain(&ours) {
        fs::write(folder.path().join(name), "x").unwrap();
    }
    let mut log = LogFile::open(&output(&path, Rotate::Daily), "o").unwrap();
    write(
        &mut log,
        &[("2030-03-01T12:00:00Z", "a"), ("2030-03-02T00:00:00Z", "b")],
    );
    let mut expected: Vec<_> = strangers.iter().map(ToString::to_string).collect();
    expected.extend(
        [
            "vm-20300131T000000Z.log",
            "vm-20300301T120000Z.log",
            "vm.log",
        ]
        .map(Into::into),
    );
    expected.sort();
    assert_eq!(files(folder.path()), expected);
}

#[test]
fn the_number_of_files_can_be_limited() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.log");
    let mut config = output(&path, Rotate::Hourly);
    config.keep_days = 0;
    config.max_files = Some(2);
    let mut log = LogFile::open(&config, "o").unwrap();
    for hour in 0..6 {
        write(&mut log, &[(&format!("2030-01-01T0{hour}:30:00Z"), "x")]);
    }
    assert_eq!(
        files(folder.path()),
        [
            "vm-20300101T033000Z.log",
            "vm-20300101T043000Z.log",
            "vm.log"
        ]
    );
}

#[test]
fn a_file_that_is_moved_or_deleted_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.log");
    let mut log = LogFile::open(&output(&path, Rotate::Never), "o").unwrap();
    write(&mut log, &[("2030-01-01T00:00:00Z", "a")]);
    fs::rename(&path, folder.path().join("moved")).unwrap();
    write(&mut log, &[("2030-01-01T00:00:00Z", "b")]);
    fs::remove_file(&path).unwrap();
    write(&mut log, &[("2030-01-01T00:00:00Z", "c")]);
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .ends_with("[INFO] vm: c\n")
    );
    assert!(
        fs::read_to_string(folder.path().join("moved"))
            .unwrap()
            .ends_with("vm: a\n")
    );
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_may_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.log");
    symlink("/dev/full", &path).unwrap();
    let mut log = LogFile::open(&output(&path, Rotate::Hourly), "o").unwrap();
    let Err(Fault::Again(error)) = log.write(&entry("2030-01-01T00:00:00Z", "a")) else {
        unreachable!("a full disk took an entry");
    };
    assert_eq!(
        error.to_string(),
        format!("{}: No space left on device (os error 28)", path.display())
    );
    fs::remove_file(&path).unwrap();
    write(&mut log, &[("2030-01-01T00:00:00Z", "b")]);
    assert!(fs::read_to_string(&path).unwrap().ends_with("vm: b\n"));
}

#[test]
fn a_rotation_that_fails_is_said_and_the_file_used_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.log");
    // A folder that cannot be deleted is in the way.
    fs::create_dir(folder.path().join("vm-20200101T000000Z.log")).unwrap();
    let mut log = LogFile::open(&output(&path, Rotate::Hourly), "o").unwrap();
    write(
        &mut log,
        &[("2030-01-01T00:00:00Z", "a"), ("2030-01-01T01:00:00Z", "b")],
    );
    assert!(log.trouble().unwrap().contains("vm.log cannot be rotated"));
    write(&mut log, &[("2030-01-01T02:00:00Z", "c")]);
    assert_eq!(log.trouble(), None);
    assert!(fs::read_to_string(&path).unwrap().ends_with("vm: c\n"));
}

#[test]
fn options_of_the_command_line() {
    let parsed: OutputConfig =
        "file,path=/var/log/x.log,rotate=daily,keep-days=7,max_size=10M,format=json,level=warn"
            .parse()
            .unwrap();
    assert_eq!(
        parsed,
        OutputConfig::File(FileOutput {
            path: "/var/log/x.log".into(),
            level: Level::Warn,
            format: Format::Json,
            rotate: Rotate::Daily,
            max_size: Some(Bytes(10 << 20)),
            keep_days: 7,
            max_files: None,
        })
    );
}
