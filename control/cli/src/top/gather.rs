//! What `nyx top` knows of each machine: figures now, rates since the last look, and trends.

use super::page::{self, Sample};
use crate::session::Session;
use nyx_api::Machine;
use nyx_client::{CallError, Client, State};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How long one machine may keep the screen waiting.
const PATIENCE: Duration = Duration::from_millis(900);
/// Looks that a trend remembers.
pub(crate) const TREND: usize = 240;

/// Counters and levels at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// Exits by kind.
    pub(crate) exits: BTreeMap<String, f64>,
    pub(crate) disk_ops: f64,
    pub(crate) disk_bytes: f64,
    pub(crate) net_packets: f64,
    pub(crate) net_bytes: f64,
    /// Seconds of processor time of the process, if it could be read.
    pub(crate) cpu: Option<f64>,
    /// Bytes of the process in RAM, if they could be read.
    pub(crate) resident: Option<u64>,
}

/// The same per second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    pub(crate) exits_by_kind: BTreeMap<String, f64>,
    pub(crate) exits: f64,
    pub(crate) disk_ops: f64,
    pub(crate) disk_bytes: f64,
    pub(crate) net_packets: f64,
    pub(crate) net_bytes: f64,
    /// 100 is one processor.
    pub(crate) cpu_percent: f64,
}

/// A machine as it is shown.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) pid: u32,
    /// What it is, or why it does not say.
    pub(crate) machine: Result<Machine, String>,
    pub(crate) resident: Option<u64>,
    /// Nothing until the second look.
    pub(crate) rates: Option<Rates>,
    pub(crate) trend: VecDeque<Rates>,
    last: Option<(Instant, Figures)>,
}

impl Figures {
    /// From a metrics page.
    pub(crate) fn of_page(page: &str) -> Self {
        let mut figures = Self::default();
        for sample in page::samples(page) {
            figures.add(&sample);
        }
        figures
    }

    fn add(&mut self, sample: &Sample) {
        if !sample.value.is_finite() {
            return;
        }
        let to = match sample.name.as_str() {
            "nyx_vcpu_exits_total" => {
                // A machine has few kinds; a page with endless ones is no machine's.
                if self.exits.len() >= 64 && !self.exits.contains_key(sample.label("kind")) {
                    return;
                }
                self.exits.entry(sample.label("kind").into()).or_default()
            }
            "nyx_blk_requests_total" => &mut self.disk_ops,
            "nyx_blk_bytes_total" => &mut self.disk_bytes,
            "nyx_net_packets_total" => &mut self.net_packets,
            "nyx_net_bytes_total" => &mut self.net_bytes,
            _ => return,
        };
        *to += sample.value;
    }

    /// What the kernel says of the process (proc(5)).
    fn look_at(&mut self, pid: u32) {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        self.cpu = read("stat").and_then(|stat| cpu_seconds(&stat));
        let pages = read("statm").and_then(|statm| {
            let mut words = statm.split_whitespace();
            words.nth(1)?.parse::<u64>().ok()
        });
        let page = rustix::param::page_size() as u64;
        self.resident = pages.and_then(|pages| pages.checked_mul(page));
    }

    /// What happened since `before`, per second. A counter that fell, after a reset, stands still.
    pub(crate) fn since(&self, before: &Self, seconds: f64) -> Rates {
        let per = |now: f64, then: f64| (now - then).max(0.0) / seconds.max(1e-3);
        let kinds = self.exits.iter().map(|(kind, now)| {
            let then = before.exits.get(kind).copied().unwrap_or(0.0);
            (kind.clone(), per(*now, then))
        });
        let exits_by_kind: BTreeMap<_, _> = kinds.collect();
        Rates {
            exits: exits_by_kind.values().sum(),
            exits_by_kind,
            disk_ops: per(self.disk_ops, before.disk_ops),
            disk_bytes: per(self.disk_bytes, before.disk_bytes),
            net_packets: per(self.net_packets, before.net_packets),
            net_bytes: per(self.net_bytes, before.net_bytes),
            cpu_percent: match (self.cpu, before.cpu) {
                (Some(now), Some(then)) => per(now, then) * 100.0,
                _ => 0.0,
            },
        }
    }
}

/// User and system time, fields 14 and 15 of /proc/PID/stat.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace().skip(11);
    let user: u64 = words.next()?.parse().ok()?;
    let system: u64 = words.next()?.parse().ok()?;
    Some(user.saturating_add(system) as f64 / rustix::param::clock_ticks_per_second().max(1) as f64)
}

/// All machines that are watched, which come and go.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) machines: Vec<Watched>,
    /// Why the folder cannot be read.
    pub(crate) trouble: Option<String>,
}

impl Gathered {
    /// Looks at every machine, or at those whose name or id begins as one of `names`.
    pub(crate) fn look(&mut self, session: &Session, names: &[String]) {
        let found = match session.folder.machines() {
            Ok(found) => found,
            Err(e) => {
                self.trouble = Some(e.to_string());
                self.machines.clear();
                return;
            }
        };
        self.trouble = None;
        let wanted = |name: &str, id: &str| {
            let meant = |wanted: &String| name == wanted || id.starts_with(wanted.as_str());
            names.is_empty() || names.iter().any(meant)
        };
        let records: Vec<_> = found
            .into_iter()
            .filter(|found| found.state != State::Dead)
            .map(|found| found.record)
            .filter(|record| wanted(&record.name, &record.id))
            .collect();
        let answers = session.blocking.on(async {
            let calls: Vec<_> = records
                .iter()
                .map(|record| {
                    let client = Client::new(&record.socket).within(PATIENCE);
                    tokio::spawn(async move {
                        let machine = client.machine().await?;
                        let page = client.metrics().await?;
                        Ok::<_, CallError>((machine, page))
                    })
                })
                .collect();
            let mut answers = Vec::new();
            for call in calls {
                answers.push(match call.await {
                    Ok(answer) => answer.map_err(|e| e.to_string()),
                    Err(e) => Err(e.to_string()),
                });
            }
            answers
        });
        let mut before: BTreeMap<String, Watched> = std::mem::take(&mut self.machines)
            .into_iter()
            .map(|watched| (watched.id.clone(), watched))
            .collect();
        for (record, answer) in records.into_iter().zip(answers) {
            let mut watched = before.remove(&record.id).unwrap_or_else(|| Watched {
                name: record.name.clone(),
                id: record.id.clone(),
                pid: record.pid,
                machine: Err(String::new()),
                resident: None,
                rates: None,
                trend: VecDeque::new(),
                last: None,
            });
            watched.take(answer);
            self.machines.push(watched);
        }
    }
}

impl Watched {
    fn take(&mut self, answer: Result<(Machine, String), String>) {
        let (machine, page) = match answer {
            Ok(answer) => answer,
            Err(why) => {
                self.machine = Err(why);
                self.rates = None;
                return;
            }
        };
        self.machine = Ok(machine);
        let now = Instant::now();
        let mut figures = Figures::of_page(&page);
        figures.look_at(self.pid);
        self.resident = figures.resident;
        if let Some((then, before)) = &self.last {
            let rates = figures.since(before, now.duration_since(*then).as_secs_f64());
            if self.trend.len() == TREND {
                self.trend.pop_front();
            }
            self.trend.push_back(rates.clone());
            self.rates = Some(rates);
        }
        self.last = Some((now, figures));
    }
}

#[cfg(test)]
impl Watched {
    /// A running machine that uses `cpu` percent of a processor.
    pub(crate) fn for_test(name: &str, cpu: f64) -> Self {
        let machine = serde_json::from_value(serde_json::json!({
            "id": name, "name": name, "pid": 1, "version": "0.1.0", "phase": "running", "cpus": 2,
            "memory": 512 << 20, "resets": 0, "devices": [], "consoles": [], "operations": [],
            "started": { "at": "2026-11-21T06:00:00Z", "uptime_ms": 61_000, "guest_ms": 60_000 },
        }));
        let rates = Rates {
            cpu_percent: cpu,
            exits: 7.0,
            exits_by_kind: BTreeMap::from([("mmio".into(), 7.0)]),
            ..Rates::default()
        };
        Self {
            name: name.into(),
            id: name.into(),
            pid: 1,
            machine: machine.map_err(|e: serde_json::Error| e.to_string()),
            resident: Some(64 << 20),
            rates: Some(rates.clone()),
            trend: VecDeque::from([rates]),
            last: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "nyx_vcpu_exits_total{kind=\"mmio\",vcpu=\"0\"} 10\n\
                        nyx_vcpu_exits_total{kind=\"mmio\",vcpu=\"1\"} 20\n\
                        nyx_vcpu_exits_total{kind=\"pio\",vcpu=\"0\"} 5\n\
                        nyx_blk_requests_total{op=\"read\"} 7\nnyx_blk_bytes_total{op=\"read\"} 4096\n\
                        nyx_net_packets_total{direction=\"rx\"} 3\nnyx_net_bytes_total{direction=\"tx\"} 1500\n\
                        nyx_blk_bytes_total NaN\n";

    #[test]
    fn figures_add_up_over_vcpus_and_devices_and_become_rates() {
        let before = Figures::of_page(PAGE);
        assert_eq!(before.exits["mmio"], 30.0);
        assert_eq!((before.disk_ops, before.disk_bytes), (7.0, 4096.0));
        assert_eq!((before.net_packets, before.net_bytes), (3.0, 1500.0));
        let after = Figures::of_page(&PAGE.replace("} 10", "} 50").replace("} 7", "} 1"));
        let rates = after.since(&before, 2.0);
        assert_eq!(rates.exits_by_kind["mmio"], 20.0);
        assert_eq!((rates.exits, rates.disk_ops), (20.0, 0.0));
    }

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "42 (a ) b) S 1 1 1 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 1";
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(cpu_seconds(stat), Some(200.0 / ticks));
        assert_eq!(cpu_seconds("42 (x"), None);
    }
}
