//! Machines of every shape, and every test of the payload on them.

use crate::rig::{Outcome, finish, image, run};
use nyx_payload::{Command as Guest, TESTS};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;

/// Every test of the payload passed or was skipped for a reason in `skips`.
fn assert_complete(outcome: &Outcome, skips: &[&str]) {
    let report = outcome.assert_passed();
    for test in TESTS {
        let skipped = report.skips.iter().any(|s| s.test == *test);
        if skipped != skips.contains(test) || (!skipped && !report.is_ok(test)) {
            outcome.fail(&format!(
                "the test {test} neither passed nor was expected to be skipped"
            ));
        }
    }
}

/// Answers every connection of the guest to port 1024 with what it sends.
fn echo_service(socket: &str) {
    let listener = UnixListener::bind(format!("{socket}_1024")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn everything(transport: &[&str], guest: &Guest) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(folder.path(), "disk", 16 << 20);
    let socket = folder.path().join("vsock").to_str().unwrap().to_string();
    echo_service(&socket);
    let mut command = run(guest);
    command.args([
        "--cpus",
        "4",
        "--disk",
        &format!("{disk},serial=nyx-test,queues=4"),
    ]);
    command.args([
        "--net",
        "null",
        "--vsock",
        &format!("cid=7,socket={socket}"),
    ]);
    command.args(["--console", "stdio", "--console", "null,device=virtio"]);
    command.args(transport);
    finish(&mut command)
}

fn all_tests() -> Guest {
    Guest::new()
        .test("all")
        .option("want_cpus", 4)
        .option("blk_id", "nyx-test")
        .option("blk_queues", 4)
        .option("vsock_cid", 7)
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_every_test_passes_over_pci() {
    // The I/O APIC, the first functions' configuration space, and every BAR.
    let windows = "0xfec00000:0x1000,0xb0000000:0x40000,0xc0000000:0x40000";
    assert_complete(
        &everything(&[], &all_tests().option("windows", windows)),
        &[],
    );
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_every_test_passes_over_mmio() {
    let pci = ["pci", "pci-config", "pci-bars", "pci-msix", "pci-wild"];
    let windows = "0xfec00000:0x1000,0xc0000000:0x6000";
    let outcome = everything(&["--no-pci"], &all_tests().option("windows", windows));
    assert_complete(&outcome, &pci);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_memory_is_as_configured_on_both_sides_of_the_hole() {
    for (size, bytes) in [
        ("8M", 8u64 << 20),
        ("64M", 64 << 20),
        ("2816M", 2816 << 20),
        ("6G", 6 << 30),
    ] {
        let guest = Guest::new()
            .test("memory")
            .test("handover")
            .option("want_memory", bytes);
        finish(run(&guest).args(["--memory", size])).assert_passed();
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_memory_may_be_shared_prefaulted_or_transparently_huge() {
    for flags in [
        &["--shared-memory", "--prefault"][..],
        &["--huge-pages", "transparent"],
    ] {
        let guest = Guest::new().test("memory").option("want_memory", 128 << 20);
        finish(run(&guest).args(["--memory", "128M"]).args(flags)).assert_passed();
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_many_cpus_come_up() {
    for cpus in ["1", "2", "16", "64"] {
        let guest = Guest::new()
            .test("smp")
            .test("acpi")
            .option("want_cpus", cpus);
        finish(run(&guest).args(["--cpus", cpus])).assert_passed();
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_what_is_written_is_there_in_the_next_run_with_every_engine() {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(folder.path(), "disk", 4 << 20);
    for (salt, options) in [
        ("1", "engine=io_uring"),
        ("2", "engine=threads"),
        ("3", "direct"),
        ("4", "queues=2"),
    ] {
        for test in ["blk-fill", "blk-verify"] {
            let guest = Guest::new().test(test).option("salt", salt);
            finish(run(&guest).args(["--disk", &format!("{disk},{options}")])).assert_passed();
        }
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_an_initrd_arrives_whole() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..300_001u32).map(|n| (n * 7) as u8).collect();
    let sum: u64 = bytes.iter().map(|b| u64::from(*b)).sum();
    let path = folder.path().join("initrd");
    std::fs::write(&path, &bytes).unwrap();
    let guest = Guest::new()
        .test("initrd")
        .option("initrd_len", bytes.len())
        .option("initrd_sum", sum);
    finish(run(&guest).arg("--initrd").arg(&path)).assert_passed();
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_frames_reach_a_user_network() {
    let guest = Guest::new().test("virtio-net").option("net_frames", 256);
    finish(run(&guest).args(["--net", "user"])).assert_passed();
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_file_says_the_same_as_flags() {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(folder.path(), "disk", 1 << 20);
    let file = folder.path().join("machine.toml");
    let text = format!(
        "name = \"filed\"\ncpus = 2\nmemory = \"64M\"\n[boot]\nkernel = {:?}\ncmdline = {:?}\n\
         [[disks]]\npath = {disk:?}\nserial = \"from-file\"\n",
        nyx_payload::elf_path(),
        Guest::new()
            .test("virtio-blk")
            .test("smp")
            .option("want_cpus", 2)
            .option("blk_id", "from-file")
            .to_string(),
    );
    std::fs::write(&file, text).unwrap();
    finish(&mut crate::rig::nyx(["run", file.to_str().unwrap()])).assert_passed();
}
