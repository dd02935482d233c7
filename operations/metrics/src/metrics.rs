//! The front of it all: one machine's metrics, for everybody who asks.

use crate::bottleneck::{Bottleneck, Class, Pressure, Thresholds, detect};
use crate::export::{ExportCallback, Labels, export};
use crate::health::{Health, HealthLimits, assess};
use crate::report::{DeviceIo, FlatReport, Report, TopExit};
use crate::{History, Host, Measured, Pace, ProcessFacts, Rollup, Sample, Trend};
use nyx_inspect::{About, Collector, Inspect, Leaf, Series, Visitor, matches, render};
use nyx_memory::DirtySource;
use parking_lot::{Condvar, Mutex, RwLock};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The state tree of a machine, as those who watch it see it.
pub type Tree = Arc<dyn Inspect + Send + Sync>;

/// What the metrics of a machine need to know of it.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Value of the label `vm`.
    pub vm: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Guest memory in bytes.
    pub memory: u64,
    /// When something is a bottleneck.
    pub thresholds: Thresholds,
    /// When health is impaired.
    pub limits: HealthLimits,
    /// The thread that samples ends when nobody has watched for so long.
    pub linger: Duration,
}

impl Setup {
    /// With defaults for all that can be configured.
    pub fn new(vm: impl Into<String>, vcpus: u32, memory: u64) -> Self {
        Self {
            vm: vm.into(),
            vcpus,
            memory,
            thresholds: Thresholds::default(),
            limits: HealthLimits::default(),
            linger: Duration::from_secs(300),
        }
    }
}

/// The metrics of one machine. Cheap to have: no thread and no table before somebody asks.
///
/// Asking reads the machine's shared counters; it never waits for the machine's owner.
pub struct Metrics {
    shared: Arc<Shared>,
}

struct Shared {
    setup: Setup,
    start: Instant,
    enabled: AtomicBool,
    tree: RwLock<Tree>,
    host: Mutex<Host>,
    history: Mutex<History>,
    /// What totals are counted from; see [`Metrics::reset`].
    baseline: Mutex<Option<Sample>>,
    /// Pages that a dirty log has reported; `u64::MAX` before anybody logs.
    dirty: AtomicU64,
    callbacks: Mutex<Vec<ExportCallback>>,
    sampler: Mutex<Sampler>,
    changed: Condvar,
}

#[derive(Default)]
struct Sampler {
    thread: Option<JoinHandle<()>>,
    /// Somebody watched last at this time.
    watched: Option<Instant>,
    stop: bool,
    /// The thread has left its loop, or will without looking again.
    ended: bool,
    /// Look again at once.
    poke: bool,
}

const NEVER: u64 = u64::MAX;
/// Samples closer than this are not worth two places in the history.
const CLOSEST: Duration = Duration::from_millis(20);

impl Metrics {
    /// The metrics of the machine whose tree is `tree`.
    pub fn new(setup: Setup, tree: Tree) -> Self {
        Self::on(setup, tree, Host::default())
    }

    /// The same with another host to read from.
    pub fn on(setup: Setup, tree: Tree, host: Host) -> Self {
        Self {
            shared: Arc::new(Shared {
                setup,
                start: Instant::now(),
                enabled: AtomicBool::new(true),
                tree: RwLock::new(tree),
                host: Mutex::new(host),
                history: Mutex::new(History::default()),
                baseline: Mutex::new(None),
                dirty: AtomicU64::new(NEVER),
                callbacks: Mutex::new(Vec::new()),
                sampler: Mutex::new(Sampler::default()),
                changed: Condvar::new(),
            }),
        }
    }

    /// Looks at another tree from now on: a device came or left.
    pub fn set_tree(&self, tree: Tree) {
        *self.shared.tree.write() = tree;
    }

    /// Switches the keeping of samples on or off; the page always tells the present.
    pub fn set_enabled(&self, on: bool) {
        self.shared.enabled.store(on, Ordering::Relaxed);
        if !on {
            self.stop();
            self.shared.history.lock().clear();
        }
    }

    /// Whether samples are kept.
    pub fn is_enabled(&self) -> bool {
        self.shared.enabled.load(Ordering::Relaxed)
    }

    // Looking now ----------------------------------------------------------------------------

    /// Every metric, those whose name matches `filter` (in which `*` stands for anything) if there is
    /// one.
    pub fn series(&self, filter: Option<&str>) -> Vec<Series> {
        let (mut series, _) = self.shared.look();
        if let Some(pattern) = filter {
            series.retain(|one| matches(pattern, &one.name));
        }
        series
    }

    /// The metrics page, Prometheus text format 0.0.4.
    pub fn page(&self, filter: Option<&str>) -> String {
        render(&self.series(filter))
    }

    /// Takes a sample.
    pub fn now(&self) -> Sample {
        self.shared.look().1
    }

    /// Sums of what happened, see [`Metrics::reset`].
    pub fn flat_report(&self) -> FlatReport {
        let sample = self.now();
        FlatReport::of(&self.shared.counted(sample))
    }

    /// Everything at once.
    pub fn report(&self) -> Report {
        let (series, sample) = self.shared.look();
        let rates = self.shared.history.lock().window();
        let timestamp = sample.timestamp_ms;
        let sample = self.shared.counted(sample);
        Report {
            timestamp,
            summary: FlatReport::of(&sample),
            device_io: DeviceIo::by_unit(&series),
            top_exits: TopExit::of(&series, crate::EXIT_KINDS.len()),
            bottlenecks: self.shared.detect(rates.as_ref()),
            rates,
            hypervisor_metrics: sample.exits,
            disk_io: sample.disk,
            network: sample.net,
            memory: sample.memory,
            process: sample.process,
        }
    }

    /// The most frequent kinds of exits.
    pub fn top_exits(&self, limit: usize) -> Vec<TopExit> {
        TopExit::of(&self.shared.look().0, limit)
    }

    /// What holds the machine up, over the last samples.
    pub fn bottlenecks(&self) -> Vec<Bottleneck> {
        self.shared.look();
        let window = self.shared.history.lock().window();
        self.shared.detect(window.as_ref())
    }

    /// Whether all is well, over the last samples.
    pub fn health(&self) -> Health {
        let (_, sample) = self.shared.look();
        self.shared.health(sample)
    }

    // Looking back ---------------------------------------------------------------------------

    /// Runs `f` on the samples kept. It holds up sampling, so it should be quick.
    pub fn history<R>(&self, f: impl FnOnce(&History) -> R) -> R {
        f(&self.shared.history.lock())
    }

    /// Trends of all figures whose name matches `pattern` over the last `count` samples.
    pub fn trends(&self, pattern: &str, count: usize) -> Vec<Trend> {
        self.shared.history.lock().trends(pattern, count)
    }

    /// Forgets the samples, and counts totals of reports from now on. The counters themselves, and with
    /// them the page, go on: a counter that falls would be taken for a restart.
    pub fn reset(&self) {
        let (_, sample) = self.shared.look();
        self.shared.history.lock().clear();
        *self.shared.baseline.lock() = Some(sample);
    }

    // Being told -----------------------------------------------------------------------------

    /// From now on `callback` is told every metric once a second while somebody watches, and at every
    /// [`Metrics::export`].
    pub fn register_export_callback(
        &self,
        callback: impl Fn(&str, f64, &Labels) + Send + Sync + 'static,
    ) {
        self.shared.callbacks.lock().push(Box::new(callback));
    }

    /// Tells every callback every metric now.
    pub fn export(&self) {
        let (series, _) = self.shared.look();
        self.shared.export(&series);
    }

    // Dirty pages ----------------------------------------------------------------------------

    /// Takes note of pages that a dirty log reported, such as a migration's.
    pub fn note_dirty_pages(&self, pages: u64) {
        let add = |sum: u64| {
            Some(if sum == NEVER {
                pages
            } else {
                sum.saturating_add(pages)
            })
        };
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        // It always adds.
        let _ = self.shared.dirty.fetch_update(set, get, add);
    }

    /// Asks `source` for the pages dirtied since it was asked last, takes note of them and returns their
    /// number. Logging must be on; it costs the guest a page fault for every page, so nobody does this
    /// unasked.
    pub fn read_dirty_log(&self, source: &mut dyn DirtySource) -> io::Result<u64> {
        let mut pages = 0_u64;
        source.drain(&mut |extent| {
            pages = pages.saturating_add((extent.len as u64).div_ceil(nyx_memory::PAGE));
        })?;
        self.note_dirty_pages(pages);
        Ok(pages)
    }

    // The thread -----------------------------------------------------------------------------

    /// Says that somebody watches: samples are taken from now on, every 100 ms while the guest does
    /// something and ever more seldom while it does not, until nobody has said so for
    /// [`Setup::linger`]. Costs next to nothing when they are taken already.
    pub fn watch(&self) -> io::Result<()> {
        if !self.is_enabled() {
            return Ok(());
        }
        let mut sampler = self.shared.sampler.lock();
        sampler.watched = Some(Instant::now());
        if sampler.thread.is_some() && !sampler.ended {
            sampler.poke = true;
            self.shared.changed.notify_all();
            return Ok(());
        }
        let old = sampler.thread.take();
        sampler.stop = false;
        sampler.ended = false;
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || shared.run())?;
        sampler.thread = Some(thread);
        drop(sampler);
        if let Some(old) = old {
            // It has left its loop.
            let _ = old.join();
        }
        Ok(())
    }

    /// Whether samples are being taken.
    pub fn is_watched(&self) -> bool {
        let sampler = self.shared.sampler.lock();
        sampler.thread.is_some() && !sampler.ended
    }

    /// Ends the sampling, until somebody watches again.
    pub fn stop(&self) {
        let mut sampler = self.shared.sampler.lock();
        sampler.stop = true;
        let thread = sampler.thread.take();
        self.shared.changed.notify_all();
        drop(sampler);
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A sampler that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Looks at everything, and keeps the sample.
    fn look(&self) -> (Vec<Series>, Sample) {
        let at = self.start.elapsed();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let process = self.host.lock().read();
        let mut collector = Collector::new(&[("vm", &self.setup.vm)]);
        let tree = self.tree.read().clone();
        tree.inspect(&mut collector);
        let mut series = collector.finish();
        let mut sample = Sample::of(&series, &process);
        sample.at = at;
        sample.timestamp_ms = since_epoch
            .ok()
            .and_then(|t| u64::try_from(t.as_millis()).ok())
            .unwrap_or(0);
        sample.vcpus = self.setup.vcpus;
        sample.memory.allocated = self.setup.memory;
        sample.memory.dirty_pages = match self.dirty.load(Ordering::Relaxed) {
            NEVER => Measured::Absent("nobody logs dirty pages"),
            pages => Measured::Value(pages),
        };
        if self.enabled.load(Ordering::Relaxed) {
            let mut history = self.history.lock();
            if history
                .last()
                .is_none_or(|last| at.saturating_sub(last.at) >= CLOSEST)
            {
                let rollup = history.push(sample.clone());
                drop(history);
                self.rolled(rollup.as_ref(), &series);
            }
        }
        let own = Own {
            process: &process,
            sample: &sample,
            health: self.health(sample.clone()),
        };
        series.extend(Collector::of(&own, &[("vm", &self.setup.vm)]));
        (series, sample)
    }

    /// A second is over.
    fn rolled(&self, rollup: Option<&Rollup>, series: &[Series]) {
        let Some(rollup) = rollup else { return };
        for bottleneck in self.detect(Some(&rollup.rates)) {
            tracing::debug!(target: "metrics", key = bottleneck.key, "{bottleneck}");
        }
        self.export(series);
    }

    fn export(&self, series: &[Series]) {
        for callback in &*self.callbacks.lock() {
            export(series, callback);
        }
    }

    fn detect(&self, window: Option<&crate::Rates>) -> Vec<Bottleneck> {
        window.map_or_else(Vec::new, |rates| {
            detect(&Pressure::of(rates), &self.setup.thresholds)
        })
    }

    fn health(&self, sample: Sample) -> Health {
        let window = self.history.lock().window();
        let bottlenecks = self.detect(window.as_ref());
        let metrics = FlatReport::of(&self.counted(sample));
        assess(window.as_ref(), bottlenecks, metrics, &self.setup.limits)
    }

    /// `sample` with its totals counted from the last reset.
    fn counted(&self, sample: Sample) -> Sample {
        match &*self.baseline.lock() {
            Some(baseline) => sample.since(baseline),
            None => sample,
        }
    }

    /// The body of the sampling thread.
    fn run(&self) {
        let mut pace = Pace::default();
        let mut told: Vec<(Class, crate::Severity)> = Vec::new();
        loop {
            let (before, after) = {
                let before = self.history.lock().last().cloned();
                (before, self.look().1)
            };
            if let Some(before) = before
                && before.at < after.at
            {
                pace.saw(crate::Rates::between(&before, &after).activity);
            }
            self.tell_news(&mut told);
            let mut sampler = self.sampler.lock();
            let until = Instant::now() + pace.wait();
            while !sampler.stop && !sampler.poke {
                if self.changed.wait_until(&mut sampler, until).timed_out() {
                    break;
                }
            }
            if std::mem::take(&mut sampler.poke) {
                pace.wake();
            }
            let unwatched = sampler
                .watched
                .is_none_or(|then| then.elapsed() > self.setup.linger);
            if sampler.stop || unwatched {
                sampler.ended = true;
                return;
            }
        }
    }

    /// Tells the journal of bottlenecks that come, get worse, or go.
    fn tell_news(&self, told: &mut Vec<(Class, crate::Severity)>) {
        let window = self.history.lock().window();
        let found = self.detect(window.as_ref());
        for bottleneck in &found {
            let before = told.iter().find(|(class, _)| *class == bottleneck.class);
            if before.is_none_or(|(_, severity)| *severity < bottleneck.severity) {
                tracing::warn!(target: "metrics", key = bottleneck.key, "{bottleneck}");
            }
        }
        for (class, _) in told.iter() {
            if !found.iter().any(|bottleneck| bottleneck.class == *class) {
                tracing::info!(target: "metrics", key = class.key(), "{} is over", class.key());
            }
        }
        *told = found.iter().map(|b| (b.class, b.severity)).collect();
    }
}

/// What the page tells beside the machine's tree.
struct Own<'a> {
    process: &'a ProcessFacts,
    sample: &'a Sample,
    health: Health,
}

impl Inspect for Own<'_> {
    fn inspect(&self, v: &mut dyn Visitor) {
        v.about(&About::metric(
            "memory_allocated_bytes",
            "Memory that the guest was given.",
        ));
        v.leaf("allocated", Leaf::Level(self.sample.memory.allocated));
        v.about(&About::metric("vcpus", "Number of vCPUs."));
        v.leaf("vcpus", Leaf::Level(self.sample.vcpus.into()));
        if let Measured::Value(pages) = self.sample.memory.dirty_pages {
            v.about(&About::metric(
                "memory_dirtied_pages",
                "Pages that the guest dirtied while somebody logged that.",
            ));
            v.leaf("dirty_pages", Leaf::Count(pages));
        }
        v.about(&About::metric(
            "health_status",
            "Health over the last samples: 0 unknown, 1 healthy, 2 degraded, 3 critical.",
        ));
        v.leaf("health", Leaf::Level(self.health.status as u64));
        for class in Class::ALL {
            let found = self.health.bottlenecks.iter().find(|b| b.class == class);
            v.about(&About::metric(
                "bottleneck_severity",
                "Bottlenecks over the last samples: 0 none, 1 low, 2 medium, 3 high, 4 critical.",
            ).labels(label(class)));
            let severity = found.map_or(0, |b| b.severity as u64 + 1);
            v.leaf("bottleneck", Leaf::Level(severity));
        }
        self.process.inspect(v);
    }
}

fn label(class: Class) -> &'static [(&'static str, &'static str)] {
    match class {
        Class::IoBottleneck => &[("kind", "vm_exit_rate")],
        Class::DiskBottleneck => &[("kind", "disk_latency")],
        Class::NetworkBottleneck => &[("kind", "network_errors")],
        Class::MemoryBottleneck => &[("kind", "memory_allocation_failures")],
        Class::ThermalBottleneck => &[("kind", "thermal_throttling")],
    }
}
