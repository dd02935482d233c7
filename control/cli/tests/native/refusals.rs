//! Bad input: one clear sentence each, and nothing left behind.

use crate::rig::{finish, image, nyx, run, until};
use nyx_payload::{Command as Guest, Ending};
use std::fs;
use std::path::Path;

fn refused<'a>(arguments: impl IntoIterator<Item = &'a str>, words: &[&str]) {
    finish(&mut nyx(arguments)).assert_refused(words);
}

fn payload() -> &'static str {
    nyx_payload::elf_path().to_str().unwrap()
}

fn tap_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_kernels_that_cannot_be_booted() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_string()
    };
    let elf = fs::read(payload()).unwrap();
    let mut arm = elf.clone();
    arm[18..20].copy_from_slice(&183u16.to_le_bytes());
    refused(
        ["run", "--kernel", "/nowhere/vmlinuz"],
        &["boot.kernel", "/nowhere/vmlinuz"],
    );
    refused(
        ["run", "--kernel", &file("arm", &arm)],
        &["boot.kernel", "aarch64"],
    );
    refused(
        ["run", "--kernel", &file("short", &elf[..elf.len() / 2])],
        &["boot.kernel", "short"],
    );
    refused(
        ["run", "--kernel", &file("empty", b"")],
        &["boot.kernel", "empty"],
    );
    refused(
        ["run", "--kernel", &file("text", b"#!/bin/sh\n")],
        &["boot.kernel", "text"],
    );
    refused(["run"], &["boot.kernel", "--kernel PATH"]);
    let absent = ["run", "--kernel", payload(), "--initrd", "/nowhere/initrd"];
    refused(absent, &["boot.initrd", "/nowhere/initrd"]);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_machines_that_make_no_sense() {
    let with = |more: &[&str], words: &[&str]| {
        refused(
            ["run", "--kernel", payload()]
                .into_iter()
                .chain(more.iter().copied()),
            words,
        );
    };
    with(&["--cpus", "0"], &["cpus", "0", "1 or more"]);
    with(&["--cpus", "-3"], &["cpus", "-3"]);
    with(&["--cpus", "99999"], &["cpus", "99999", "at most"]);
    with(
        &["--memory", "4097K"],
        &["memory", "multiple of the 4096-byte page"],
    );
    with(&["--memory", "12"], &["memory", "12 bytes", "\"12M\""]);
    with(&["--memory", "lots"], &["memory", "lots", "512M"]);
    with(&["--memory", "1000T"], &["memory", "at most"]);
    with(
        &["--net", "user,mac=53:54:00:00:00:01"],
        &["mac", "53:54:00:00:00:01", "even"],
    );
    with(&["--net", "usr"], &["net", "usr", "did you mean `user`"]);
    with(
        &["--disk", "a.img,readonyl"],
        &["disk", "readonyl", "did you mean `readonly`"],
    );
    with(
        &["--net", "null,name=a", "--net", "null,name=a"],
        &["nets[1].name", "\"a\"", "another device"],
    );
    with(
        &["--cmdline", "root=/dev/vda root=/dev/vdb"],
        &["cmdline", "two root", "keep one"],
    );
    with(
        &["--memory", "256M", "--huge-pages", "1G"],
        &["memory", "page"],
    );
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_an_unknown_key_in_the_file_is_named_with_line_and_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    fs::write(&path, "cpus = 1\n\n[boot]\nkernal = \"k\"\n").unwrap();
    let words = ["m.toml", "line 4", "`kernal`", "did you mean `kernel`"];
    refused(["run", path.to_str().unwrap()], &words);
    refused(
        ["run", "/nowhere/m.toml"],
        &["/nowhere/m.toml", "cannot be read"],
    );
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_disks_that_cannot_be_used_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let tap = "nyxrefused0";
    let odd = image(folder.path(), "odd", 513);
    let disk = |path: &str, words: &[&str]| {
        // The TAP is made before the disk is refused, or not at all; either way it must be gone.
        let mut command = nyx(["run", "--kernel", payload(), "--disk", path]);
        finish(command.args(["--net", &format!("tap,tap={tap}")])).assert_refused(words);
        assert!(!tap_exists(tap), "{path}: the TAP is still there");
    };
    disk(&odd, &["disk0", "513", "truncate"]);
    disk("/nowhere/disk.img", &["disk0", "/nowhere/disk.img"]);
    disk(folder.path().to_str().unwrap(), &["disk0", "directory"]);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_disk_in_use_is_refused_with_its_holder_until_that_ends() {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(folder.path(), "disk", 1 << 20);
    let log = folder.path().join("log");
    let mut command = run(&Guest::new().test("serial").then(Ending::Idle));
    command.args([
        "--disk",
        &disk,
        "--console",
        &format!("file,path={}", log.display()),
    ]);
    let mut holder = command.spawn().unwrap();
    until("the holder's start", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("done"))
    });
    let guest = Guest::new().test("virtio-blk");
    finish(run(&guest).args(["--disk", &disk])).assert_refused(&[
        "disk0",
        "in use",
        &holder.id().to_string(),
    ]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    finish(run(&guest).args(["--disk", &disk])).assert_passed();
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_the_plan_is_printed_without_running_anything() {
    let outcome = finish(&mut nyx([
        "plan",
        "--kernel",
        payload(),
        "--cpus",
        "2",
        "--net",
        "user",
    ]));
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    for words in ["2 vCPUs", "00:01.0  net0", "APIC", "console=ttyS0", "PVH"] {
        assert!(
            outcome.stdout.contains(words),
            "{words}: {}",
            outcome.stdout
        );
    }
    let json = finish(&mut nyx(["plan", "--kernel", payload(), "--json"]));
    let plan: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(plan["version"], 1);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_refused_machine_leaves_its_consoles_alone() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    fs::write(&log, "precious").unwrap();
    let console = format!("file,path={}", log.display());
    let mut command = nyx(["run", "--kernel", payload(), "--console", &console]);
    finish(command.args(["--disk", "/nowhere/disk.img"])).assert_refused(&["disk0"]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "precious");
}
