//! Stock Debian kernels under Nyx: run by `cargo xtask test lab`.
//!
//! Each test boots one lab and, in it, guest after guest. What a guest must find and what its host must find
//! stands in one [`GuestTest`].

#![expect(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod diagnosis;
mod disks;
mod endings;
mod hotplug;
mod machines;
mod networks;

use anyhow::Result;
use nyx_guest_tests::{Ground, GuestTest, Report};
use nyx_harness::packages::{DEBUGGER, install};

const ALL: [&[&GuestTest]; 6] = [
    machines::ALL,
    disks::ALL,
    networks::ALL,
    endings::ALL,
    diagnosis::ALL,
    hotplug::ALL,
];

/// Boots a lab and in it `tests`, or those of them whose names `NYX_GUEST_TESTS` lists.
fn run(tests: &[&GuestTest]) {
    run_judged(tests, |_, _| Ok(()));
}

/// The same, with checks that `judge` adds.
fn run_judged(tests: &[&GuestTest], judge: impl Fn(&GuestTest, &mut Report) -> Result<()>) {
    let wanted = std::env::var("NYX_GUEST_TESTS").unwrap_or_default();
    let wanted: Vec<&str> = wanted
        .split([' ', ','])
        .filter(|name| !name.is_empty())
        .collect();
    let tests: Vec<&GuestTest> = tests
        .iter()
        .copied()
        .filter(|test| wanted.is_empty() || wanted.contains(&test.name))
        .collect();
    if tests.is_empty() {
        return;
    }
    let all: Vec<&GuestTest> = ALL.iter().flat_map(|group| group.iter().copied()).collect();
    Ground::new(&all)
        .unwrap()
        .run_judged(&tests, judge)
        .unwrap();
}

#[test]
#[ignore = "boots the lab"]
fn lab_guests_find_their_machine() {
    // One of them is looked into with it.
    install(DEBUGGER).unwrap();
    run(machines::ALL);
}

#[test]
#[ignore = "boots the lab"]
fn lab_guests_keep_their_data() {
    run(disks::ALL);
}

#[test]
#[ignore = "boots the lab"]
fn lab_guests_reach_the_world() {
    run(networks::ALL);
}

#[test]
#[ignore = "boots the lab"]
fn lab_guests_end_as_they_should() {
    run(endings::ALL);
}

#[test]
#[ignore = "boots the lab"]
fn lab_guests_that_fail_say_why() {
    run_judged(diagnosis::ALL, diagnosis::judge);
}

#[test]
#[ignore = "boots the lab"]
fn lab_guests_take_devices_that_come_and_go() {
    run(hotplug::ALL);
}

#[test]
fn every_test_has_a_name_of_its_own() {
    let mut names: Vec<&str> = ALL
        .iter()
        .flat_map(|group| group.iter().map(|test| test.name))
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
