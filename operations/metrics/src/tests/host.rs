//! Reading the process and its host from made-up files.

use crate::*;
use nyx_inspect::{Json, Prometheus};
use std::fs;
use std::path::Path;

fn write(folder: &Path, file: &str, text: &str) {
    let path = folder.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn stat(name: &str, ticks: u64) -> String {
    format!("7 ({name}) S 1 1 1 0 -1 4194304 120 0 3 0 {ticks} 1 0 0 20 0 3 0 100 9 9\n")
}

fn thread(proc: &Path, tid: u32, name: &str, ticks: u64, switches: (u64, u64)) {
    let (voluntary, involuntary) = switches;
    write(proc, &format!("task/{tid}/stat"), &stat(name, ticks));
    let status = format!(
        "Name:\tx\nvoluntary_ctxt_switches:\t{voluntary}\nnonvoluntary_ctxt_switches:\t{involuntary}\n"
    );
    write(proc, &format!("task/{tid}/status"), &status);
}

#[test]
fn everything_there_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (proc, sys) = (folder.path().join("proc"), folder.path().join("sys"));
    write(&proc, "statm", "1000 25 5 1 0 40 0\n");
    write(&proc, "stat", &stat("nyx) (", 5));
    write(&proc, "cgroup", "4:memory:/x\n0::/vms/web\n");
    write(
        &sys,
        "fs/cgroup/vms/web/memory.events",
        "low 0\nmax 9\noom 2\noom_kill 1\n",
    );
    write(
        &sys,
        "fs/cgroup/vms/web/cpu.stat",
        "usage_usec 5\nnr_throttled 4\n",
    );
    write(
        &sys,
        "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
        "3\n",
    );
    write(
        &sys,
        "devices/system/cpu/cpu1/thermal_throttle/package_throttle_count",
        "4\n",
    );
    thread(&proc, 7, "vcpu0", 100, (5, 6));
    thread(&proc, 8, "worker (a)", 10, (1, 0));
    write(&proc, "task/8/schedstat", "123456789 5 6\n");
    let facts = Host::new(&proc, &sys).read();
    let page = rustix::param::page_size() as u64;
    assert_eq!(facts.resident, Measured::Value(25 * page));
    assert_eq!(facts.minor_faults, Measured::Value(120));
    assert_eq!(facts.major_faults, Measured::Value(3));
    assert_eq!(facts.allocation_failures, Measured::Value(2));
    assert_eq!(facts.quota_throttles, Measured::Value(4));
    assert_eq!(facts.thermal_throttles, Measured::Value(7));
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
    let vcpu = facts.threads["vcpu0"];
    assert_eq!(
        (vcpu.cpu, vcpu.voluntary, vcpu.involuntary),
        (101 * tick, 5, 6)
    );
    // The precise account is taken where there is one.
    assert_eq!(facts.threads["worker (a)"].cpu, 123_456_789);
    let sample = Sample::of(&[], &facts);
    assert_eq!(sample.process.vcpu_time, Measured::Value(101 * tick));
    assert_eq!(sample.process.worker_time, Measured::Value(123_456_789));
    assert_eq!(sample.process.context_switches, Measured::Value(12));
    let page = Prometheus::of(&facts, &[]);
    assert!(page.contains("nyx_thread_cpu_seconds_total{thread=\"worker (a)\"} 0.123456789\n"));
    assert!(page.contains("nyx_process_page_faults_total{kind=\"major\"} 3\n"));
}

#[test]
fn what_is_not_there_is_absent_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let facts = Host::new(folder.path(), folder.path()).read();
    assert_eq!(facts.resident, Measured::Absent("/proc does not tell"));
    assert_eq!(facts.thermal_throttles.get(), None);
    assert!(Prometheus::of(&facts, &[]).is_empty());
    let tree = Json::of(&facts);
    assert_eq!(tree["resident_bytes"], "unavailable: /proc does not tell");
    let sample = Sample::of(&[], &facts);
    assert_eq!(sample.process.vcpu_time.get(), None);
}

#[test]
fn threads_that_end_are_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let proc = folder.path();
    let mut host = Host::new(proc, proc);
    thread(proc, 10, "pool", 100, (1, 1));
    thread(proc, 11, "pool", 50, (2, 2));
    let first = host.read().threads["pool"];
    assert_eq!((first.voluntary, first.involuntary), (3, 3));
    fs::remove_dir_all(proc.join("task/11")).unwrap();
    thread(proc, 10, "pool", 200, (4, 1));
    let second = host.read().threads["pool"];
    assert_eq!((second.voluntary, second.involuntary), (6, 3));
    assert!(second.cpu > first.cpu);
    // Another thread under the number of one that ended.
    thread(proc, 10, "other", 1, (0, 0));
    let third = host.read().threads;
    assert_eq!(third["pool"], second);
    assert_eq!(third["other"].voluntary, 0);
}
