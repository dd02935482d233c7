//! Distributions of durations, counted without a lock.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Number of buckets: one for each bound and one for what is beyond the last.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// Upper bounds of the buckets in nanoseconds, each included in its bucket: 1, 2 and 5 of every power
/// of ten from 100 ns to 10 s.
pub const BOUNDS: [u64; 25] = bounds();

const fn bounds() -> [u64; 25] {
    let mut bounds = [0; 25];
    let mut ten = 100;
    let mut at = 0;
    while at < bounds.len() {
        bounds[at] = ten
            * match at % 3 {
                0 => 1,
                1 => 2,
                _ => 5,
            };
        if at % 3 == 2 {
            ten *= 10;
        }
        at += 1;
    }
    bounds
}

/// A distribution of durations in nanoseconds.
///
/// All operations are single relaxed atomics, so writers never wait. A reader may see a sample in its
/// bucket before it sees it in the sum; the count is that of the buckets and agrees with them always.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    min: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: array::from_fn(|_| AtomicU64::new(0)),
            sum: AtomicU64::new(0),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
        }
    }
}

fn bucket(nanos: u64) -> usize {
    BOUNDS.partition_point(|bound| *bound < nanos)
}

impl Histogram {
    /// Counts a duration; any number of threads may do so at once.
    pub fn record(&self, nanos: u64) {
        if let Some(bucket) = self.buckets.get(bucket(nanos)) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(nanos, Relaxed);
        // Nearly always the extremes stay, and looking is cheaper than a locked instruction.
        if nanos < self.min.load(Relaxed) {
            self.min.fetch_min(nanos, Relaxed);
        }
        if nanos > self.max.load(Relaxed) {
            self.max.fetch_max(nanos, Relaxed);
        }
    }

    /// Counts a duration in a histogram that has one writer only, or whose writers a lock keeps apart:
    /// plain additions instead of locked ones.
    pub fn record_alone(&self, nanos: u64) {
        if let Some(bucket) = self.buckets.get(bucket(nanos)) {
            bucket.store(bucket.load(Relaxed).wrapping_add(1), Relaxed);
        }
        self.sum
            .store(self.sum.load(Relaxed).wrapping_add(nanos), Relaxed);
        self.min.store(self.min.load(Relaxed).min(nanos), Relaxed);
        self.max.store(self.max.load(Relaxed).max(nanos), Relaxed);
    }

    /// Counts the time passed since `start`.
    pub fn record_since(&self, start: std::time::Instant) {
        self.record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    /// What was counted until now.
    pub fn snapshot(&self) -> Distribution {
        let buckets = array::from_fn(|at| self.buckets.get(at).map_or(0, |b| b.load(Relaxed)));
        Distribution {
            buckets,
            sum: self.sum.load(Relaxed),
            min: self.min.load(Relaxed),
            max: self.max.load(Relaxed),
        }
    }
}

/// What a [`Histogram`] held at one time. All durations are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Samples by bucket, see [`BOUNDS`]; not cumulative.
    pub buckets: [u64; BUCKETS],
    /// Sum of all samples.
    pub sum: u64,
    min: u64,
    max: u64,
}

impl Default for Distribution {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            sum: 0,
            min: u64::MAX,
            max: 0,
        }
    }
}

impl Distribution {
    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// The shortest sample; `None` without samples.
    pub fn min(&self) -> Option<u64> {
        (self.count() != 0).then_some(self.min.min(self.max))
    }

    /// The longest sample; `None` without samples.
    pub fn max(&self) -> Option<u64> {
        (self.count() != 0).then_some(self.max)
    }

    /// The mean, rounded down; `None` without samples.
    pub fn average(&self) -> Option<u64> {
        self.sum.checked_div(self.count())
    }

    /// An estimate of the `q` quantile, `q` from 0 to 1: exact to the bucket, in proportion within it.
    /// `None` without samples.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let (min, max) = (self.min()?, self.max()?);
        let rank = q.clamp(0.0, 1.0) * self.count() as f64;
        let mut below = 0.0;
        for (at, n) in self.buckets.iter().enumerate().filter(|(_, n)| **n != 0) {
            let n = *n as f64;
            if below + n >= rank {
                let low = at.checked_sub(1).and_then(|at| BOUNDS.get(at)).copied();
                let low = low.unwrap_or(0).max(min).min(max);
                let high = BOUNDS.get(at).copied().unwrap_or(max).min(max).max(low);
                let share = ((rank - below) / n).clamp(0.0, 1.0);
                return Some(low + ((high - low) as f64 * share) as u64);
            }
            below += n;
        }
        Some(max)
    }

    /// What came after `earlier`, an older state of the same histogram. Its extremes are known to the
    /// bucket only.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let buckets: [u64; BUCKETS] = array::from_fn(|at| {
            let then = earlier.buckets.get(at).copied().unwrap_or(0);
            self.buckets
                .get(at)
                .map_or(0, |now| now.saturating_sub(then))
        });
        let first = buckets.iter().position(|n| *n != 0);
        let last = buckets.iter().rposition(|n| *n != 0);
        let (Some(first), Some(last)) = (first, last) else {
            return Self::default();
        };
        let low = first.checked_sub(1).and_then(|at| BOUNDS.get(at)).copied();
        let high = BOUNDS.get(last).copied().unwrap_or(self.max);
        Self {
            buckets,
            sum: self.sum.saturating_sub(earlier.sum),
            min: low.unwrap_or(0).max(self.min),
            max: high.min(self.max),
        }
    }

    /// This and `other` taken together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            buckets: array::from_fn(|at| {
                let of = |d: &Self| d.buckets.get(at).copied().unwrap_or(0);
                of(self).saturating_add(of(other))
            }),
            sum: self.sum.saturating_add(other.sum),
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }
}
