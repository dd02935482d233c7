//! What happened between two samples.

use crate::Measured;
use crate::sample::{EXIT_KINDS, Latency, Sample};
use serde::Serialize;

/// Differences of two samples per second of the time between them.
///
/// A count that fell, because a device left, counts as standing still.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Seconds between the two.
    pub seconds: f64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Exits per second by kind, in the order of [`EXIT_KINDS`].
    pub exits_by_kind: [f64; EXIT_KINDS.len()],
    /// Exits per second.
    pub exits: f64,
    /// Exits per second and vCPU.
    pub exits_per_vcpu: f64,
    /// Time of exits in the VMM.
    pub exit_time: Latency,
    /// Exits per second, also those that the hypervisor served by itself.
    pub all_exits: Measured<f64>,
    /// Interrupts injected per second.
    pub injections: Measured<f64>,
    /// Interrupts that devices sent per second.
    pub interrupts: f64,
    /// Refused accesses per second.
    pub bad_accesses: f64,
    /// Read requests per second.
    pub disk_reads: f64,
    /// Write requests per second.
    pub disk_writes: f64,
    /// Bytes read per second.
    pub disk_read_bytes: f64,
    /// Bytes written per second.
    pub disk_write_bytes: f64,
    /// Failed requests per second.
    pub disk_errors: f64,
    /// Time of the reads in between.
    pub read_latency: Latency,
    /// Time of the writes in between.
    pub write_latency: Latency,
    /// Requests in flight at the end.
    pub disk_queue_depth: u64,
    /// Frames per second to the guest.
    pub net_rx_packets: f64,
    /// Frames per second from the guest.
    pub net_tx_packets: f64,
    /// Bytes per second to the guest.
    pub net_rx_bytes: f64,
    /// Bytes per second from the guest.
    pub net_tx_bytes: f64,
    /// Failed transfers per second, both directions.
    pub net_errors: f64,
    /// Lost frames per second, both directions.
    pub net_dropped: f64,
    /// Share of frames that failed or were lost, 0 to 1.
    pub net_error_share: Measured<f64>,
    /// Context switches per second.
    pub context_switches: Measured<f64>,
    /// Page faults per second.
    pub page_faults: Measured<f64>,
    /// Dirtied pages per second.
    pub dirty_pages: Measured<f64>,
    /// Failed allocations in between.
    pub allocation_failures: Measured<u64>,
    /// Thermal throttling events in between.
    pub thermal_throttles: Measured<u64>,
    /// Periods without processor in between.
    pub quota_throttles: Measured<u64>,
    /// Processor time of vCPU threads in seconds per second.
    pub vcpu_load: Measured<f64>,
    /// Processor time of other threads in seconds per second.
    pub worker_load: Measured<f64>,
    /// Change of activity per second, see [`Sample::activity`].
    pub activity: f64,
}

impl Rates {
    /// From `before` to `after`; all zero when no time passed.
    pub fn between(before: &Sample, after: &Sample) -> Self {
        let seconds = after.at.saturating_sub(before.at).as_secs_f64();
        let vcpus = after.vcpus.max(1);
        let per = |count: u64| {
            if seconds > 0.0 {
                count as f64 / seconds
            } else {
                0.0
            }
        };
        let rate = |get: fn(&Sample) -> u64| per(get(after).saturating_sub(get(before)));
        let passed = |get: fn(&Sample) -> Measured<u64>| match (get(before), get(after)) {
            (Measured::Value(then), Measured::Value(now)) => {
                Measured::Value(now.saturating_sub(then))
            }
            (Measured::Absent(why), _) | (_, Measured::Absent(why)) => Measured::Absent(why),
        };
        let latency = |get: fn(&Sample) -> &Latency| Latency(get(after).0.since(&get(before).0));
        let mut exits_by_kind = [0.0; EXIT_KINDS.len()];
        let kinds = after.exits.by_kind.iter().zip(before.exits.by_kind);
        for (to, (now, then)) in exits_by_kind.iter_mut().zip(kinds) {
            *to = per(now.saturating_sub(then));
        }
        let exits: f64 = exits_by_kind.iter().sum();
        let net_errors = rate(|s| s.net.rx_errors) + rate(|s| s.net.tx_errors);
        let net_dropped = rate(|s| s.net.rx_dropped) + rate(|s| s.net.tx_dropped);
        let packets = rate(|s| s.net.rx_packets) + rate(|s| s.net.tx_packets);
        let bad = net_errors + net_dropped;
        let frames = packets + bad;
        let faults = match (
            passed(|s| s.memory.minor_faults),
            passed(|s| s.memory.major_faults),
        ) {
            (Measured::Value(a), Measured::Value(b)) => Measured::Value(a.saturating_add(b)),
            (Measured::Absent(why), _) | (_, Measured::Absent(why)) => Measured::Absent(why),
        };
        Self {
            seconds,
            vcpus: after.vcpus,
            exits_by_kind,
            exits,
            exits_per_vcpu: exits / f64::from(vcpus),
            exit_time: latency(|s| &s.exits.time),
            all_exits: passed(|s| s.exits.all).map(per),
            injections: passed(|s| s.exits.injections).map(per),
            interrupts: rate(|s| s.exits.interrupts),
            bad_accesses: rate(|s| s.exits.bad_accesses),
            disk_reads: rate(|s| s.disk.reads),
            disk_writes: rate(|s| s.disk.writes),
            disk_read_bytes: rate(|s| s.disk.read_bytes),
            disk_write_bytes: rate(|s| s.disk.write_bytes),
            disk_errors: rate(|s| s.disk.errors),
            read_latency: latency(|s| &s.disk.read_latency),
            write_latency: latency(|s| &s.disk.write_latency),
            disk_queue_depth: after.disk.queue_depth,
            net_rx_packets: rate(|s| s.net.rx_packets),
            net_tx_packets: rate(|s| s.net.tx_packets),
            net_rx_bytes: rate(|s| s.net.rx_bytes),
            net_tx_bytes: rate(|s| s.net.tx_bytes),
            net_errors,
            net_dropped,
            net_error_share: Measured::of(
                (frames > 0.0).then(|| bad / frames),
                "no frame was carried",
            ),
            context_switches: passed(|s| s.process.context_switches).map(per),
            page_faults: faults.map(per),
            dirty_pages: passed(|s| s.memory.dirty_pages).map(per),
            allocation_failures: passed(|s| s.memory.allocation_failures),
            thermal_throttles: passed(|s| s.process.thermal_throttles),
            quota_throttles: passed(|s| s.process.quota_throttles),
            vcpu_load: passed(|s| s.process.vcpu_time).map(|n| per(n) / 1e9),
            worker_load: passed(|s| s.process.worker_time).map(|n| per(n) / 1e9),
            activity: rate(Sample::activity),
        }
    }

    /// Time of all disk requests in between, reads and writes together.
    pub fn disk_latency(&self) -> Latency {
        Latency(self.read_latency.0.and(&self.write_latency.0))
    }
}
