//! How much one component may write: a guest can make a device complain without end.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Instant;

/// Seconds' worth of entries that may come at once.
const BURST: u64 = 10;
const SECOND: u64 = 1_000_000;

#[derive(Debug)]
struct Bucket {
    /// Millionths of entries that may still come.
    tokens: u64,
    at: Instant,
    left_out: u64,
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is written.
    Write,
    /// It is written; so many before it were left out, which is over now.
    Resume(u64),
    /// It is left out, the first of many.
    Begin,
    /// It is left out.
    Drop,
}

/// A bucket of tokens for each component.
#[derive(Debug)]
pub(crate) struct Rate {
    /// Entries a second; 0: no limit.
    pub(crate) limit: u32,
    /// Bounded by the number of components in the program.
    buckets: Mutex<BTreeMap<&'static str, Bucket>>,
}

impl Rate {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            buckets: Mutex::default(),
        }
    }

    pub(crate) fn ask(&self, component: &'static str, now: Instant) -> Verdict {
        if self.limit == 0 {
            return Verdict::Write;
        }
        let rate = u64::from(self.limit);
        let full = rate * BURST * SECOND;
        let mut buckets = self.buckets.lock();
        let bucket = buckets.entry(component).or_insert(Bucket {
            tokens: full,
            at: now,
            left_out: 0,
        });
        let micros = now.saturating_duration_since(bucket.at).as_micros();
        let gained = u64::try_from(micros)
            .unwrap_or(u64::MAX)
            .saturating_mul(rate);
        bucket.tokens = bucket.tokens.saturating_add(gained).min(full);
        bucket.at = now;
        match bucket.tokens.checked_sub(SECOND) {
            Some(rest) => {
                bucket.tokens = rest;
                // While the flood lasts, tokens are spent as they come.
                if bucket.left_out > 0 && rest > full / 2 {
                    Verdict::Resume(std::mem::take(&mut bucket.left_out))
                } else {
                    Verdict::Write
                }
            }
            None => {
                bucket.left_out += 1;
                if bucket.left_out == 1 {
                    Verdict::Begin
                } else {
                    Verdict::Drop
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_cut_to_its_rate_and_said_at_both_ends() {
        let rate = Rate::new(100);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let burst: Vec<_> = (0..1000).map(|_| rate.ask("device", at(0))).collect();
        assert!(burst.iter().all(|verdict| *verdict == Verdict::Write));
        assert_eq!(rate.ask("device", at(0)), Verdict::Begin);
        assert_eq!(rate.ask("device", at(5)), Verdict::Drop);
        assert_eq!(rate.ask("guest", at(5)), Verdict::Write);
        // Ten entries each 10 ms, of which one may come.
        let flood: Vec<_> = (1..=100_u64)
            .flat_map(|tick| (0..10).map(move |_| tick))
            .map(|tick| rate.ask("device", at(10 * tick)))
            .collect();
        assert_eq!(flood.iter().filter(|v| **v == Verdict::Write).count(), 100);
        assert_eq!(flood.iter().filter(|v| **v == Verdict::Drop).count(), 900);
        assert_eq!(rate.ask("device", at(7000)), Verdict::Resume(902));
        assert_eq!(rate.ask("device", at(7000)), Verdict::Write);
        let free = Rate::new(0);
        assert!((0..100_000).all(|_| free.ask("device", start) == Verdict::Write));
    }
}
