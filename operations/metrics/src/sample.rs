//! One look at everything, added up over devices and vCPUs.

use crate::{Measured, ProcessFacts};
use nyx_inspect::{Distribution, Series, Value};
use serde::{Serialize, Serializer};
use std::collections::BTreeSet;
use std::time::Duration;

/// Kinds of exits, as in the label `kind` of `nyx_vcpu_exits_total`.
pub const EXIT_KINDS: [&str; 5] = ["pio", "mmio", "eoi", "interrupted", "other"];

/// Durations of requests. Serialises as count, mean, quantiles and maximum in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency(pub Distribution);

impl Latency {
    /// The mean in microseconds; `None` without samples.
    pub fn average_us(&self) -> Option<f64> {
        self.0.average().map(us)
    }

    /// A quantile in microseconds; `None` without samples.
    pub fn quantile_us(&self, q: f64) -> Option<f64> {
        self.0.quantile(q).map(us)
    }
}

fn us(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut s = serializer.serialize_struct("Latency", 7)?;
        s.serialize_field("count", &self.0.count())?;
        s.serialize_field("min_us", &self.0.min().map(us))?;
        s.serialize_field("avg_us", &self.average_us())?;
        s.serialize_field("p50_us", &self.quantile_us(0.5))?;
        s.serialize_field("p90_us", &self.quantile_us(0.9))?;
        s.serialize_field("p99_us", &self.quantile_us(0.99))?;
        s.serialize_field("max_us", &self.0.max().map(us))?;
        s.end()
    }
}

/// Exits that reached the VMM, and what followed from them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exits {
    /// By kind, in the order of [`EXIT_KINDS`].
    pub by_kind: [u64; EXIT_KINDS.len()],
    /// Time in the VMM, of a sample of them.
    pub time: Latency,
    /// All exits of the guest, also those that the hypervisor served by itself.
    pub all: Measured<u64>,
    /// Interrupts that the hypervisor injected.
    pub injections: Measured<u64>,
    /// Time that vCPUs waited halted, in nanoseconds.
    pub halted: Measured<u64>,
    /// Interrupts that devices sent to the guest.
    pub interrupts: u64,
    /// Accesses to devices' windows.
    pub accesses: u64,
    /// Of these, refused.
    pub bad_accesses: u64,
}

impl Exits {
    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.by_kind.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }
}

/// All disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Discard and write-zeroes requests.
    pub discards: u64,
    /// Bytes asked to be read.
    pub read_bytes: u64,
    /// Bytes asked to be written.
    pub write_bytes: u64,
    /// Requests that the backend failed.
    pub errors: u64,
    /// Time of reads.
    pub read_latency: Latency,
    /// Time of writes.
    pub write_latency: Latency,
    /// Requests taken and not yet returned.
    pub queue_depth: u64,
}

/// All network devices; rx is toward the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Net {
    /// Frames to the guest.
    pub rx_packets: u64,
    /// Frames from the guest.
    pub tx_packets: u64,
    /// Bytes to the guest.
    pub rx_bytes: u64,
    /// Bytes from the guest.
    pub tx_bytes: u64,
    /// Transfers to the guest that failed in the backend.
    pub rx_errors: u64,
    /// Transfers from the guest that failed in the backend.
    pub tx_errors: u64,
    /// Frames to the guest that were lost.
    pub rx_dropped: u64,
    /// Frames from the guest that were lost.
    pub tx_dropped: u64,
    /// Frames taken from the guest and still to be sent.
    pub queue_depth: u64,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryFigures {
    /// Bytes the guest was given.
    pub allocated: u64,
    /// Bytes of the VMM in RAM, guest memory included.
    pub resident: Measured<u64>,
    /// Bytes taken back from the guest.
    pub balloon: Measured<u64>,
    /// Pages the guest has dirtied since somebody began to log that.
    pub dirty_pages: Measured<u64>,
    /// Page faults without I/O.
    pub minor_faults: Measured<u64>,
    /// Page faults that waited for I/O.
    pub major_faults: Measured<u64>,
    /// Allocations that found memory used up.
    pub allocation_failures: Measured<u64>,
}

/// Processor time and switches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProcessFigures {
    /// Processor time of all vCPU threads in nanoseconds.
    pub vcpu_time: Measured<u64>,
    /// Processor time of all other threads in nanoseconds.
    pub worker_time: Measured<u64>,
    /// Context switches of all threads.
    pub context_switches: Measured<u64>,
    /// Of these, of vCPU threads.
    pub vcpu_context_switches: Measured<u64>,
    /// Periods without processor because the quota was used up.
    pub quota_throttles: Measured<u64>,
    /// Times the host throttled because of heat.
    pub thermal_throttles: Measured<u64>,
}

/// A machine at one time. Counts are since the machine was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// When, on the monotonic clock, since the metrics were set up.
    #[serde(serialize_with = "seconds")]
    pub at: Duration,
    /// When, in milliseconds since 1970.
    pub timestamp_ms: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Exits.
    pub exits: Exits,
    /// Disks.
    pub disk: Disk,
    /// Network.
    pub net: Net,
    /// Memory.
    pub memory: MemoryFigures,
    /// The process.
    pub process: ProcessFigures,
    /// Requests on all virtio queues.
    pub virtio_requests: u64,
}

fn seconds<S: Serializer>(at: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(at.as_secs_f64())
}

impl Sample {
    /// Adds up the series of a machine's tree.
    pub fn of(series: &[Series], process: &ProcessFacts) -> Self {
        let mut sample = Self::default();
        const NOT_TOLD: &str = "the hypervisor does not tell";
        sample.exits.all = Measured::Absent(NOT_TOLD);
        sample.exits.injections = Measured::Absent(NOT_TOLD);
        sample.exits.halted = Measured::Absent(NOT_TOLD);
        let units_with = |name: &str| -> BTreeSet<&str> {
            let series = series.iter().filter(|s| s.name == name);
            series.filter_map(|s| s.label("unit")).collect()
        };
        let disks = units_with("nyx_blk_requests_total");
        let nets = units_with("nyx_net_packets_total");
        for one in series {
            sample.add(one, &disks, &nets);
        }
        sample.process(process);
        sample
    }

    fn add(&mut self, one: &Series, disks: &BTreeSet<&str>, nets: &BTreeSet<&str>) {
        let label = |name| one.label(name).unwrap_or_default();
        let unit = label("unit");
        let perhaps = match one.name.as_str() {
            "nyx_kvm_exits_total" => Some(&mut self.exits.all),
            "nyx_kvm_interrupt_injections_total" => Some(&mut self.exits.injections),
            "nyx_kvm_halted_seconds_total" => Some(&mut self.exits.halted),
            _ => None,
        };
        if let (Some(to), Value::Count(n) | Value::Time(n)) = (perhaps, &one.value) {
            *to = Measured::Value(to.get().unwrap_or(0).saturating_add(*n));
            return;
        }
        match &one.value {
            Value::Count(n) => {
                let to = match (one.name.as_str(), label("op"), label("direction")) {
                    ("nyx_vcpu_exits_total", ..) => {
                        let kind = EXIT_KINDS.iter().position(|k| *k == label("kind"));
                        match kind.and_then(|kind| self.exits.by_kind.get_mut(kind)) {
                            Some(to) => to,
                            None => return,
                        }
                    }
                    ("nyx_pci_messages_total" | "nyx_ioapic_interrupts_total", ..) => {
                        &mut self.exits.interrupts
                    }
                    ("nyx_device_accesses_total", ..) => &mut self.exits.accesses,
                    ("nyx_device_bad_accesses_total", ..) => &mut self.exits.bad_accesses,
                    ("nyx_blk_requests_total", "read", _) => &mut self.disk.reads,
                    ("nyx_blk_requests_total", "write", _) => &mut self.disk.writes,
                    ("nyx_blk_requests_total", "flush", _) => &mut self.disk.flushes,
                    ("nyx_blk_requests_total", "discard" | "write_zeroes", _) => {
                        &mut self.disk.discards
                    }
                    ("nyx_blk_bytes_total", "read", _) => &mut self.disk.read_bytes,
                    ("nyx_blk_bytes_total", "write", _) => &mut self.disk.write_bytes,
                    ("nyx_blk_errors_total", ..) => &mut self.disk.errors,
                    ("nyx_net_packets_total", _, "rx") => &mut self.net.rx_packets,
                    ("nyx_net_packets_total", _, "tx") => &mut self.net.tx_packets,
                    ("nyx_net_bytes_total", _, "rx") => &mut self.net.rx_bytes,
                    ("nyx_net_bytes_total", _, "tx") => &mut self.net.tx_bytes,
                    ("nyx_net_errors_total", _, "rx") => &mut self.net.rx_errors,
                    ("nyx_net_errors_total", _, "tx") => &mut self.net.tx_errors,
                    ("nyx_net_dropped_total", _, "rx") => &mut self.net.rx_dropped,
                    ("nyx_net_dropped_total", _, "tx") => &mut self.net.tx_dropped,
                    ("nyx_virtio_queue_requests_total", ..) => &mut self.virtio_requests,
                    _ => return,
                };
                *to = to.saturating_add(*n);
            }
            Value::Level(n) if one.name == "nyx_virtio_queue_depth" => {
                // Receive queues (the even ones, Virtio 1.2 §5.1.2) hold buffers, not requests.
                let sends = label("queue").parse::<u16>().is_ok_and(|q| q % 2 == 1);
                if disks.contains(unit) {
                    self.disk.queue_depth = self.disk.queue_depth.saturating_add(*n);
                } else if nets.contains(unit) && sends {
                    self.net.queue_depth = self.net.queue_depth.saturating_add(*n);
                }
            }
            Value::Histogram(d) => {
                let to = match (one.name.as_str(), label("op")) {
                    ("nyx_vcpu_exit_seconds", _) => &mut self.exits.time,
                    ("nyx_blk_latency_seconds", "read") => &mut self.disk.read_latency,
                    ("nyx_blk_latency_seconds", "write") => &mut self.disk.write_latency,
                    _ => return,
                };
                *to = Latency(to.0.and(d));
            }
            Value::Level(_) | Value::Time(_) => {}
        }
    }

    fn process(&mut self, facts: &ProcessFacts) {
        self.memory.resident = facts.resident;
        self.memory.minor_faults = facts.minor_faults;
        self.memory.major_faults = facts.major_faults;
        self.memory.allocation_failures = facts.allocation_failures;
        self.memory.balloon = Measured::Absent("the machine has no balloon");
        self.memory.dirty_pages = Measured::Absent("nobody logs dirty pages");
        self.process.quota_throttles = facts.quota_throttles;
        self.process.thermal_throttles = facts.thermal_throttles;
        if facts.threads.is_empty() {
            const NONE: &str = "/proc shows no threads";
            self.process.vcpu_time = Measured::Absent(NONE);
            self.process.worker_time = Measured::Absent(NONE);
            self.process.context_switches = Measured::Absent(NONE);
            self.process.vcpu_context_switches = Measured::Absent(NONE);
            return;
        }
        let (mut vcpu, mut worker) = ((0_u64, 0_u64), (0_u64, 0_u64));
        for (name, thread) in &facts.threads {
            let to = if is_vcpu(name) {
                &mut vcpu
            } else {
                &mut worker
            };
            to.0 = to.0.saturating_add(thread.cpu);
            to.1 =
                to.1.saturating_add(thread.voluntary.saturating_add(thread.involuntary));
        }
        self.process.vcpu_time = Measured::Value(vcpu.0);
        self.process.worker_time = Measured::Value(worker.0);
        self.process.vcpu_context_switches = Measured::Value(vcpu.1);
        self.process.context_switches = Measured::Value(vcpu.1.saturating_add(worker.1));
    }

    /// The same with its counts taken from `baseline` on, an older sample. Levels stay.
    #[must_use]
    pub fn since(mut self, baseline: &Self) -> Self {
        let sub = |to: &mut u64, then: u64| *to = to.saturating_sub(then);
        let later = |to: &mut Latency, then: &Latency| *to = Latency(to.0.since(&then.0));
        let perhaps = |to: &mut Measured<u64>, then: Measured<u64>| {
            if let (Measured::Value(now), Measured::Value(then)) = (&mut *to, then) {
                *now = now.saturating_sub(then);
            }
        };
        for (to, then) in self.exits.by_kind.iter_mut().zip(baseline.exits.by_kind) {
            sub(to, then);
        }
        let (to, then) = (&mut self.exits, &baseline.exits);
        later(&mut to.time, &then.time);
        perhaps(&mut to.all, then.all);
        perhaps(&mut to.injections, then.injections);
        perhaps(&mut to.halted, then.halted);
        sub(&mut to.interrupts, then.interrupts);
        sub(&mut to.accesses, then.accesses);
        sub(&mut to.bad_accesses, then.bad_accesses);
        let (to, then) = (&mut self.disk, &baseline.disk);
        sub(&mut to.reads, then.reads);
        sub(&mut to.writes, then.writes);
        sub(&mut to.flushes, then.flushes);
        sub(&mut to.discards, then.discards);
        sub(&mut to.read_bytes, then.read_bytes);
        sub(&mut to.write_bytes, then.write_bytes);
        sub(&mut to.errors, then.errors);
        later(&mut to.read_latency, &then.read_latency);
        later(&mut to.write_latency, &then.write_latency);
        let (to, then) = (&mut self.net, &baseline.net);
        sub(&mut to.rx_packets, then.rx_packets);
        sub(&mut to.tx_packets, then.tx_packets);
        sub(&mut to.rx_bytes, then.rx_bytes);
        sub(&mut to.tx_bytes, then.tx_bytes);
        sub(&mut to.rx_errors, then.rx_errors);
        sub(&mut to.tx_errors, then.tx_errors);
        sub(&mut to.rx_dropped, then.rx_dropped);
        sub(&mut to.tx_dropped, then.tx_dropped);
        let (to, then) = (&mut self.memory, &baseline.memory);
        perhaps(&mut to.dirty_pages, then.dirty_pages);
        perhaps(&mut to.minor_faults, then.minor_faults);
        perhaps(&mut to.major_faults, then.major_faults);
        perhaps(&mut to.allocation_failures, then.allocation_failures);
        let (to, then) = (&mut self.process, &baseline.process);
        perhaps(&mut to.vcpu_time, then.vcpu_time);
        perhaps(&mut to.worker_time, then.worker_time);
        perhaps(&mut to.context_switches, then.context_switches);
        perhaps(&mut to.vcpu_context_switches, then.vcpu_context_switches);
        perhaps(&mut to.quota_throttles, then.quota_throttles);
        perhaps(&mut to.thermal_throttles, then.thermal_throttles);
        sub(&mut self.virtio_requests, baseline.virtio_requests);
        self
    }

    /// What a guest does, as one number that grows with every exit, request and frame: it stands still
    /// while the guest is idle.
    pub fn activity(&self) -> u64 {
        [
            self.exits.total(),
            self.virtio_requests,
            self.net.rx_packets,
            self.net.tx_packets,
        ]
        .iter()
        .fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Every figure by a flat name, for filters and trends; what was not measured is left out.
    pub fn figures(&self) -> Vec<(String, f64)> {
        let mut all = Vec::new();
        let mut put = |name: &str, value: u64| all.push((name.to_owned(), value as f64));
        for (kind, n) in EXIT_KINDS.iter().zip(self.exits.by_kind) {
            put(&format!("exits.{kind}"), n);
        }
        put("exits.total", self.exits.total());
        put("exits.interrupts", self.exits.interrupts);
        put("exits.accesses", self.exits.accesses);
        put("exits.bad_accesses", self.exits.bad_accesses);
        let d = &self.disk;
        put("disk.reads", d.reads);
        put("disk.writes", d.writes);
        put("disk.flushes", d.flushes);
        put("disk.discards", d.discards);
        put("disk.read_bytes", d.read_bytes);
        put("disk.write_bytes", d.write_bytes);
        put("disk.errors", d.errors);
        put("disk.queue_depth", d.queue_depth);
        let n = &self.net;
        put("net.rx_packets", n.rx_packets);
        put("net.tx_packets", n.tx_packets);
        put("net.rx_bytes", n.rx_bytes);
        put("net.tx_bytes", n.tx_bytes);
        put("net.rx_errors", n.rx_errors);
        put("net.tx_errors", n.tx_errors);
        put("net.rx_dropped", n.rx_dropped);
        put("net.tx_dropped", n.tx_dropped);
        put("memory.allocated", self.memory.allocated);
        put("virtio.requests", self.virtio_requests);
        let p = &self.process;
        for (name, value) in [
            ("exits.all", self.exits.all),
            ("exits.injections", self.exits.injections),
            ("exits.halted", self.exits.halted),
            ("memory.resident", self.memory.resident),
            ("memory.balloon", self.memory.balloon),
            ("memory.dirty_pages", self.memory.dirty_pages),
            ("memory.minor_faults", self.memory.minor_faults),
            ("memory.major_faults", self.memory.major_faults),
            (
                "memory.allocation_failures",
                self.memory.allocation_failures,
            ),
            ("process.vcpu_time", p.vcpu_time),
            ("process.worker_time", p.worker_time),
            ("process.context_switches", p.context_switches),
            ("process.quota_throttles", p.quota_throttles),
            ("process.thermal_throttles", p.thermal_throttles),
        ] {
            if let Measured::Value(value) = value {
                put(name, value);
            }
        }
        all
    }
}

/// Whether a thread of this name runs a vCPU.
fn is_vcpu(name: &str) -> bool {
    name.strip_prefix("vcpu")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}
