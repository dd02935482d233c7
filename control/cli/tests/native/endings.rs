//! How a machine ends: exit codes and what is said.

use crate::rig::{Outcome, finish, run, until, wait};
use nyx_payload::{Command as Guest, Ending};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Read as _;
use std::time::Duration;

fn end_with(ending: Ending) -> Outcome {
    finish(&mut run(&Guest::new().test("serial").then(ending)))
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_power_off_is_success() {
    let outcome = end_with(Ending::PowerOff);
    outcome.assert_passed();
    assert_eq!(outcome.stderr, "");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_every_way_to_reset_boots_again() {
    for ending in [Ending::Reset, Ending::ResetI8042, Ending::ResetCf9] {
        let guest = Guest::new().test("serial").then(ending).option("boots", 3);
        let outcome = finish(&mut run(&guest));
        if outcome.code != 0 || !outcome.stderr.contains("nyx: reset 2") {
            outcome.fail(&format!("{ending:?}"));
        }
        assert_eq!(outcome.stdout.matches("ok serial").count(), 3, "{ending:?}");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_reset_works_with_every_device_live_and_without_pci() {
    let folder = tempfile::tempdir().unwrap();
    let disk = crate::rig::image(folder.path(), "disk", 1 << 20);
    for transport in [&[][..], &["--no-pci"]] {
        let guest = Guest::new()
            .test("virtio-blk")
            .test("virtio-rng")
            .test("virtio-net")
            .then(Ending::Reset)
            .option("boots", 3);
        let mut command = run(&guest);
        command
            .args(["--disk", &disk, "--net", "null", "--cpus", "2"])
            .args(transport);
        let outcome = finish(&mut command);
        if outcome.code != 0 || outcome.stdout.matches("ok virtio-rng").count() != 3 {
            outcome.fail("three boots");
        }
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_triple_fault_is_told_with_the_last_lines() {
    let outcome = end_with(Ending::TripleFault);
    if outcome.code != 4
        || !outcome
            .stderr
            .contains("nyx: the guest's CPU 0 gave up (triple fault)")
        || !outcome.stderr.contains("nyx:   ok serial")
    {
        outcome.fail("a triple fault");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_guest_panic_is_told_with_the_last_lines() {
    for ending in [Ending::PvPanic, Ending::Panic] {
        let outcome = end_with(ending);
        if outcome.code != 3
            || !outcome.stderr.contains("nyx: the guest panicked")
            || !outcome.stderr.contains("nyx:   ok serial")
        {
            outcome.fail(&format!("{ending:?}"));
        }
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_signals_stop_a_machine_whatever_its_guest_does() {
    for ending in [Ending::Hang, Ending::Idle] {
        for signal in [Signal::TERM, Signal::INT] {
            let mut command = run(&Guest::new().test("serial").then(ending));
            let mut child = command
                .args(["--cpus", "2", "--net", "user"])
                .spawn()
                .unwrap();
            let mut seen = String::new();
            let mut stdout = child.stdout.take().unwrap();
            until("the guest's tests", || {
                let mut byte = [0];
                stdout.read_exact(&mut byte).unwrap();
                seen.push(char::from(byte[0]));
                seen.contains("done")
            });
            std::thread::sleep(Duration::from_millis(20));
            kill_process(Pid::from_child(&child), signal).unwrap();
            let outcome = wait(child);
            if outcome.code != 6 || outcome.stderr != "nyx: stopped\n" {
                outcome.fail(&format!("{ending:?} {signal:?}"));
            }
        }
    }
}
