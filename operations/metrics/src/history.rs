//! The last samples, and what they sum up to per second.

use crate::{Rates, Sample};
use nyx_inspect::matches;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;

/// One second, or longer while the guest was idle.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rollup {
    /// Its end, in milliseconds since 1970.
    pub timestamp_ms: u64,
    /// What happened in it.
    pub rates: Rates,
    /// Most disk requests in flight at one time.
    pub peak_disk_queue_depth: u64,
    /// Most exits per second and vCPU between two samples.
    pub peak_exits_per_vcpu: f64,
}

/// Where a figure is going.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trend {
    /// The figure, as in [`Sample::figures`].
    pub name: String,
    /// Its oldest value.
    pub first: f64,
    /// Its newest value.
    pub last: f64,
    /// Slope of the line closest to all values, per second.
    pub per_second: f64,
}

/// Samples and roll-ups, the oldest dropped first. Memory is taken as they come.
#[derive(Debug, Default)]
pub struct History {
    samples: VecDeque<Sample>,
    rollups: VecDeque<Rollup>,
    /// What the second at hand began with, and its peaks so far.
    second: Option<(Sample, u64, f64)>,
}

impl History {
    /// Samples kept: 100 s at 100 ms.
    pub const SAMPLES: usize = 1000;
    /// Roll-ups kept: a quarter of an hour at 1 s.
    pub const ROLLUPS: usize = 900;
    /// The time one roll-up covers, at least.
    pub const SECOND: Duration = Duration::from_secs(1);
    /// Samples that detection looks at.
    pub const WINDOW: usize = 10;

    /// Adds a sample; one that is not newer than the last is ignored. Returns the roll-up that it
    /// completed, if any.
    pub fn push(&mut self, sample: Sample) -> Option<Rollup> {
        if self.samples.back().is_some_and(|last| last.at >= sample.at) {
            return None;
        }
        let rates = self
            .samples
            .back()
            .map(|last| Rates::between(last, &sample));
        while self.samples.len() >= Self::SAMPLES {
            self.samples.pop_front();
        }
        let finished = self.roll(&sample, rates);
        self.samples.push_back(sample);
        finished
    }

    fn roll(&mut self, sample: &Sample, rates: Option<Rates>) -> Option<Rollup> {
        let (Some((begin, depth, exits)), Some(rates)) = (&mut self.second, rates) else {
            self.second = Some((sample.clone(), 0, 0.0));
            return None;
        };
        *depth = (*depth).max(sample.disk.queue_depth);
        *exits = exits.max(rates.exits_per_vcpu);
        if sample.at.saturating_sub(begin.at) < Self::SECOND {
            return None;
        }
        let rollup = Rollup {
            timestamp_ms: sample.timestamp_ms,
            rates: Rates::between(begin, sample),
            peak_disk_queue_depth: *depth,
            peak_exits_per_vcpu: *exits,
        };
        while self.rollups.len() >= Self::ROLLUPS {
            self.rollups.pop_front();
        }
        self.rollups.push_back(rollup.clone());
        self.second = Some((sample.clone(), 0, 0.0));
        Some(rollup)
    }

    /// The samples, oldest first.
    pub fn samples(&self) -> impl DoubleEndedIterator<Item = &Sample> + ExactSizeIterator {
        self.samples.iter()
    }

    /// The roll-ups, oldest first.
    pub fn rollups(&self) -> impl DoubleEndedIterator<Item = &Rollup> + ExactSizeIterator {
        self.rollups.iter()
    }

    /// The newest sample.
    pub fn last(&self) -> Option<&Sample> {
        self.samples.back()
    }

    /// What happened over the last [`History::WINDOW`] intervals; `None` with fewer than two samples.
    pub fn window(&self) -> Option<Rates> {
        let last = self.samples.back()?;
        let first = self.samples.len().saturating_sub(Self::WINDOW + 1);
        let first = self.samples.get(first)?;
        (first.at < last.at).then(|| Rates::between(first, last))
    }

    /// What happened since the sample before the last; `None` with fewer than two.
    pub fn latest(&self) -> Option<Rates> {
        let last = self.samples.back()?;
        let before = self.samples.get(self.samples.len().checked_sub(2)?)?;
        Some(Rates::between(before, last))
    }

    /// Trends of all figures whose name matches `pattern` over the last `count` samples; none with
    /// fewer than two.
    pub fn trends(&self, pattern: &str, count: usize) -> Vec<Trend> {
        let skip = self.samples.len().saturating_sub(count);
        let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
        for sample in self.samples.iter().skip(skip) {
            let at = sample.at.as_secs_f64();
            for (name, value) in sample.figures() {
                if !matches(pattern, &name) {
                    continue;
                }
                match lines.iter_mut().find(|(there, _)| *there == name) {
                    Some((_, points)) => points.push((at, value)),
                    None => lines.push((name, vec![(at, value)])),
                }
            }
        }
        lines
            .into_iter()
            .filter_map(|(name, points)| {
                let [(_, first), .., (_, last)] = points[..] else {
                    return None;
                };
                let per_second = slope(&points);
                Some(Trend {
                    name,
                    first,
                    last,
                    per_second,
                })
            })
            .collect()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Slope by least squares; zero if all points are at one time.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (x, y) = points
        .iter()
        .fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
    let (x, y) = (x / n, y / n);
    let (over, under) = points.iter().fold((0.0, 0.0), |(over, under), p| {
        (over + (p.0 - x) * (p.1 - y), under + (p.0 - x) * (p.0 - x))
    });
    if under > 0.0 { over / under } else { 0.0 }
}
