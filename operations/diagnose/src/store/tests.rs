//! Bundles on disk.

use super::*;
use crate::scene::{Console, Outcome, Scene};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

fn bundle(written_ms: u64) -> Bundle {
    let scene = Scene {
        outcome: Outcome::GuestPanicked,
        consoles: vec![
            Console {
                name: "com1".into(),
                head: "one\n\x1b[2Jtwo\n".into(),
                tail: "ten\n".into(),
                lost_bytes: 30,
                lost_lines: 7,
                ..Console::default()
            },
            Console {
                name: "/com1".into(),
                head: "of the same name".into(),
                ..Console::default()
            },
        ],
        ..Scene::default()
    };
    let mut bundle = Bundle::new("0.1.0", "web", scene);
    bundle.written_ms = written_ms;
    bundle.plan = json!({ "name": "web" });
    bundle.journal = vec![json!({ "message": "x" })];
    bundle
}

#[test]
fn what_is_kept_comes_back_and_is_for_its_owner() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::new(state.path());
    assert_eq!(store.latest("web").unwrap(), None);
    let written = bundle(1_795_244_709_123);
    let kept = store.keep(&written).unwrap();
    assert!(kept.is_whole);
    assert_eq!(
        store.latest("web").unwrap(),
        Some((kept.folder.clone(), written))
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&kept.folder), 0o700);
    assert_eq!(mode(kept.folder.parent().unwrap()), 0o700);
    for entry in fs::read_dir(&kept.folder).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    let console = fs::read_to_string(kept.folder.join("console-com1.txt")).unwrap();
    assert_eq!(
        console,
        "one\ntwo\n\n[... 30 bytes, 7 lines not kept ...]\nten\n\n"
    );
    let other = fs::read_to_string(kept.folder.join("console-com1-1.txt")).unwrap();
    assert_eq!(other, "of the same name\n");
    let why = fs::read_to_string(kept.folder.join("why.txt")).unwrap();
    assert!(why.starts_with("web panicked"));
}

#[test]
fn only_the_last_few_stay() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::new(state.path());
    let place = state.path().join("web/bundles");
    fs::create_dir_all(place.join(".fresh-1-1")).unwrap();
    for n in 1..=8 {
        store.keep(&bundle(n)).unwrap();
    }
    // Told twice in one millisecond: once.
    store.keep(&bundle(8)).unwrap();
    let times: Vec<u64> = store
        .list("web")
        .unwrap()
        .iter()
        .map(|folder| Store::open(folder).unwrap().written_ms)
        .collect();
    assert_eq!(times, [8, 7, 6, 5, 4]);
    assert_eq!(fs::read_dir(&place).unwrap().count(), KEPT);
}

#[test]
fn names_do_not_lead_elsewhere() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::new(state.path().join("state"));
    for name in [
        "",
        "..",
        ".",
        "a/b",
        "/etc",
        "a\0b",
        ".hidden",
        &"x".repeat(200),
    ] {
        let mut wrong = bundle(1);
        wrong.name = name.into();
        assert!(
            matches!(store.keep(&wrong), Err(StoreError::Name(_))),
            "{name:?}"
        );
        assert!(matches!(store.latest(name), Err(StoreError::Name(_))));
    }
    assert!(!state.path().join("state").exists());
}

#[test]
fn what_cannot_be_read_is_passed_over() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::new(state.path());
    let good = store.keep(&bundle(1)).unwrap().folder;
    let bad = store.keep(&bundle(2)).unwrap().folder;
    fs::write(bad.join("summary.json"), "{\"format\":1").unwrap();
    assert_eq!(store.latest("web").unwrap().unwrap().0, good);
    fs::remove_dir_all(&good).unwrap();
    let error = store.latest("web").unwrap_err().to_string();
    assert!(
        error.contains("summary.json is no bundle this version can read: EOF"),
        "{error}"
    );
    // A later Nyx's.
    let mut later = serde_json::to_value(bundle(2)).unwrap();
    later["format"] = json!(2);
    fs::write(bad.join("summary.json"), later.to_string()).unwrap();
    assert!(
        store
            .latest("web")
            .unwrap_err()
            .to_string()
            .contains("its form is 2, not 1")
    );
    // One that would fill memory.
    let file = File::create(bad.join("summary.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(
        store
            .latest("web")
            .unwrap_err()
            .to_string()
            .contains("longer than")
    );
}

#[test]
fn great_parts_are_left_out() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::new(state.path());
    let mut great = bundle(1);
    great.inspect = json!("x".repeat(LARGEST));
    let kept = store.keep(&great).unwrap();
    let (_, found) = store.latest("web").unwrap().unwrap();
    assert_eq!(
        found.inspect,
        json!(format!("left out: {} bytes", LARGEST + 2))
    );
    assert!(
        fs::metadata(kept.folder.join("inspect.json"))
            .unwrap()
            .len()
            < 100
    );
}

/// The tests below run again inside a mount namespace, on a file system of this many KiB.
const SMALL: &str = "NYX_TEST_SMALL_DISK";

/// Runs the test of this name again with a small tmpfs in a new mount namespace; false if the host allows none.
fn on_small_disk(name: &str, kib: u32) -> bool {
    let here = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o size={kib}k none {0} && {SMALL}={0} exec {1} --exact {name} --nocapture",
        here.path().display(),
        std::env::current_exe().unwrap().display(),
    );
    let is_allowed = std::process::Command::new("unshare")
        .args(["-Urm", "true"])
        .status();
    if !is_allowed.is_ok_and(|status| status.success()) {
        return false;
    }
    let status = std::process::Command::new("unshare")
        .args(["-Urm", "sh", "-c", &script])
        .status()
        .unwrap();
    assert!(status.success(), "{name} on a file system of {kib} KiB");
    true
}

#[test]
fn a_full_disk_is_said_and_costs_nothing_else() {
    let Some(disk) = std::env::var_os(SMALL) else {
        if !on_small_disk(
            "store::tests::a_full_disk_is_said_and_costs_nothing_else",
            16,
        ) {
            eprintln!("this host allows no mount namespace: not tested");
        }
        return;
    };
    let mut great = bundle(2);
    great.plan = json!("x".repeat(100_000));
    great.scene.errors = vec!["y".repeat(100_000)];
    let store = Store::new(&disk);
    let error = store.keep(&great).unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    assert!(error.to_string().ends_with("the file system is full"));
    assert_eq!(store.list("web").unwrap(), Vec::<PathBuf>::new());
    assert_eq!(
        fs::read_dir(Path::new(&disk).join("web/bundles"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn on_a_nearly_full_disk_the_summary_goes_first() {
    let Some(disk) = std::env::var_os(SMALL) else {
        on_small_disk(
            "store::tests::on_a_nearly_full_disk_the_summary_goes_first",
            128,
        );
        return;
    };
    let store = Store::new(&disk);
    store.keep(&bundle(1)).unwrap();
    let mut great = bundle(2);
    great.plan = json!("x".repeat(200_000));
    let kept = store.keep(&great).unwrap();
    assert!(!kept.is_whole);
    let (_, found) = store.latest("web").unwrap().unwrap();
    assert_eq!((found.written_ms, &found.plan), (2, &Value::Null));
    assert_eq!(found.verdicts, great.verdicts);
    assert!(found.scene.consoles.is_empty());
}
