//! What the kernel tells of this process, its threads and its host, read when a sample is taken.

use crate::Measured;
use nyx_inspect::{About, Inspect, Leaf, Visitor};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What one thread has used. Several threads of one name count as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadFacts {
    /// Processor time in nanoseconds, in the guest and outside.
    pub cpu: u64,
    /// Switches because it had to wait.
    pub voluntary: u64,
    /// Switches because another thread was to run.
    pub involuntary: u64,
}

impl ThreadFacts {
    fn add(&mut self, other: &Self) {
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.voluntary = self.voluntary.saturating_add(other.voluntary);
        self.involuntary = self.involuntary.saturating_add(other.involuntary);
    }
}

/// The process and its host at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Memory in RAM, guest memory included, in bytes.
    pub resident: Measured<u64>,
    /// Page faults that needed no I/O.
    pub minor_faults: Measured<u64>,
    /// Page faults that waited for I/O.
    pub major_faults: Measured<u64>,
    /// By name; those that have ended are included.
    pub threads: BTreeMap<String, ThreadFacts>,
    /// Times an allocation found the control group's memory used up.
    pub allocation_failures: Measured<u64>,
    /// Periods in which the control group's processor quota was used up.
    pub quota_throttles: Measured<u64>,
    /// Times the host's processors lowered their clock because of heat.
    pub thermal_throttles: Measured<u64>,
}

/// Reads [`ProcessFacts`]. Remembers threads that have ended, so that no count ever falls.
#[derive(Debug)]
pub struct Host {
    proc: PathBuf,
    group: Option<PathBuf>,
    thermal: Vec<PathBuf>,
    page_size: u64,
    /// Nanoseconds of one tick of `/proc/PID/stat`.
    tick: u64,
    live: BTreeMap<u32, (String, ThreadFacts)>,
    ended: BTreeMap<String, ThreadFacts>,
}

const NO_PROC: &str = "/proc does not tell";
const NO_GROUP: &str = "the process is in no memory control group of version 2";
const NO_QUOTA: &str = "the process is in no processor control group of version 2";
const NO_THERMAL: &str = "the host shows no thermal_throttle counters";

/// Threads looked at in one sample, at most.
const MOST_THREADS: usize = 4096;

impl Default for Host {
    fn default() -> Self {
        Self::new(Path::new("/proc/self"), Path::new("/sys"))
    }
}

impl Host {
    /// Reads below `proc`, the folder of a process in a proc file system, and below `sys`.
    pub fn new(proc: &Path, sys: &Path) -> Self {
        let group = fs::read_to_string(proc.join("cgroup"))
            .ok()
            .and_then(|text| {
                let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
                Some(sys.join("fs/cgroup").join(path))
            });
        let thermal = fs::read_dir(sys.join("devices/system/cpu"))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path().join("thermal_throttle")))
            .flat_map(|folder| {
                ["core_throttle_count", "package_throttle_count"].map(|f| folder.join(f))
            })
            .filter(|file| file.is_file())
            .collect();
        Self {
            proc: proc.into(),
            group,
            thermal,
            page_size: rustix::param::page_size() as u64,
            tick: 1_000_000_000_u64
                .checked_div(rustix::param::clock_ticks_per_second())
                .unwrap_or(10_000_000),
            live: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }

    /// Reads everything now.
    pub fn read(&mut self) -> ProcessFacts {
        let statm = fs::read_to_string(self.proc.join("statm")).unwrap_or_default();
        let pages = word(&statm, 1);
        let stat = fs::read_to_string(self.proc.join("stat")).unwrap_or_default();
        let stat = after_name(&stat);
        ProcessFacts {
            resident: Measured::of(pages.map(|n| n.saturating_mul(self.page_size)), NO_PROC),
            // proc(5), fields 10 and 12; what follows the name begins with field 3.
            minor_faults: Measured::of(word(stat, 7), NO_PROC),
            major_faults: Measured::of(word(stat, 9), NO_PROC),
            threads: self.threads(),
            allocation_failures: Measured::of(self.keyed("memory.events", "oom"), NO_GROUP),
            quota_throttles: Measured::of(self.keyed("cpu.stat", "nr_throttled"), NO_QUOTA),
            thermal_throttles: self.thermal(),
        }
    }

    fn threads(&mut self) -> BTreeMap<String, ThreadFacts> {
        let mut now = BTreeMap::new();
        let tasks = fs::read_dir(self.proc.join("task")).into_iter().flatten();
        for entry in tasks.take(MOST_THREADS).flatten() {
            let tid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            // A thread may end while it is looked at.
            if let (Some(tid), Some(facts)) = (tid, self.thread(&entry.path())) {
                now.insert(tid, facts);
            }
        }
        for (tid, (name, facts)) in std::mem::replace(&mut self.live, now) {
            let same = self
                .live
                .get(&tid)
                .is_some_and(|(now, f)| *now == name && f.cpu >= facts.cpu);
            if !same {
                self.ended.entry(name).or_default().add(&facts);
            }
        }
        let mut all = self.ended.clone();
        for (name, facts) in self.live.values() {
            all.entry(name.clone()).or_default().add(facts);
        }
        all
    }

    fn thread(&self, folder: &Path) -> Option<(String, ThreadFacts)> {
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        let name = stat.get(stat.find('(')? + 1..stat.rfind(')')?)?;
        // The scheduler's own account is in nanoseconds; where it is not kept there are ticks.
        let precise = fs::read_to_string(folder.join("schedstat"))
            .ok()
            .and_then(|text| word(&text, 0));
        let ticks = || {
            let stat = after_name(&stat);
            // proc(5), fields 14 and 15.
            Some(word(stat, 11)?.saturating_add(word(stat, 12)?))
        };
        let cpu = precise.or_else(|| ticks().map(|n| n.saturating_mul(self.tick)))?;
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let of = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|text| text.trim().parse().ok())
        };
        let facts = ThreadFacts {
            cpu,
            voluntary: of("voluntary_ctxt_switches:")?,
            involuntary: of("nonvoluntary_ctxt_switches:")?,
        };
        Some((name.to_owned(), facts))
    }

    fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.group.as_ref()?.join(file)).ok()?;
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(' ')?;
            (name == key).then(|| value.trim().parse().ok())?
        })
    }

    fn thermal(&self) -> Measured<u64> {
        let counts: Vec<u64> = self
            .thermal
            .iter()
            .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
            .collect();
        if counts.is_empty() {
            return Measured::Absent(NO_THERMAL);
        }
        Measured::Value(counts.iter().fold(0, |sum, n| sum.saturating_add(*n)))
    }
}

/// Number `index` among the words of `text`.
fn word(text: &str, index: usize) -> Option<u64> {
    text.split_whitespace().nth(index)?.parse().ok()
}

/// What follows the name in a `stat` file; the name may hold anything.
fn after_name(stat: &str) -> &str {
    stat.rfind(')')
        .and_then(|at| stat.get(at + 1..))
        .unwrap_or_default()
}

impl Inspect for ProcessFacts {
    fn inspect(&self, v: &mut dyn Visitor) {
        let optional = |v: &mut dyn Visitor,
                        name,
                        about: About,
                        value: &Measured<u64>,
                        leaf: fn(u64) -> Leaf| {
            match value {
                Measured::Value(value) => {
                    v.about(&about);
                    v.leaf(name, leaf(*value));
                }
                Measured::Absent(why) => v.leaf(name, Leaf::Text(format!("unavailable: {why}"))),
            }
        };
        let about = About::metric(
            "process_resident_bytes",
            "Memory of the VMM that is in RAM, guest memory included.",
        );
        optional(v, "resident_bytes", about, &self.resident, Leaf::Level);
        let about = About::metric(
            "process_page_faults",
            "Page faults of the VMM, guest memory included; major ones waited for I/O.",
        );
        let minor = about.labels(&[("kind", "minor")]);
        optional(
            v,
            "minor_page_faults",
            minor,
            &self.minor_faults,
            Leaf::Count,
        );
        let major = about.labels(&[("kind", "major")]);
        optional(
            v,
            "major_page_faults",
            major,
            &self.major_faults,
            Leaf::Count,
        );
        let about = About::metric(
            "cgroup_allocation_failures",
            "Times an allocation found the memory of the VMM's control group used up.",
        );
        optional(
            v,
            "allocation_failures",
            about,
            &self.allocation_failures,
            Leaf::Count,
        );
        let about = About::metric(
            "cgroup_cpu_throttles",
            "Periods in which the processor quota of the VMM's control group was used up.",
        );
        optional(
            v,
            "cpu_quota_throttles",
            about,
            &self.quota_throttles,
            Leaf::Count,
        );
        let about = About::metric(
            "host_thermal_throttles",
            "Times the host's processors lowered their clock because of heat.",
        );
        optional(
            v,
            "thermal_throttles",
            about,
            &self.thermal_throttles,
            Leaf::Count,
        );
        v.child("threads", &Threads(&self.threads));
    }
}

struct Threads<'a>(&'a BTreeMap<String, ThreadFacts>);
impl Inspect for Threads<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        for (name, facts) in self.0 {
            v.about(&About::key("thread"));
            v.child(name, facts);
        }
    }
}

impl Inspect for ThreadFacts {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.about(&About::metric(
            "thread_cpu",
            "Processor time of a thread of the VMM; for a vCPU, in the guest too.",
        ));
        v.leaf("cpu_seconds", Leaf::Time(self.cpu));
        let about = About::metric(
            "thread_context_switches",
            "Context switches of a thread of the VMM: voluntary ones to wait, others because another \
             thread was to run.",
        );
        v.about(&about.labels(&[("kind", "voluntary")]));
        v.leaf("voluntary_switches", Leaf::Count(self.voluntary));
        v.about(&about.labels(&[("kind", "involuntary")]));
        v.leaf("involuntary_switches", Leaf::Count(self.involuntary));
    }
}
