//! How often to look: often while the guest works, hardly ever while it does not.

use std::time::Duration;

/// The time to the next sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    shortest: Duration,
    longest: Duration,
    now: Duration,
}

impl Default for Pace {
    /// From 100 ms to 10 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(10))
    }
}

impl Pace {
    /// Events per second up to which a guest counts as idle: its own clock and the terminal's cursor
    /// make that many.
    pub const QUIET: f64 = 10.0;

    /// From `shortest` to `longest`.
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        Self {
            shortest,
            longest: longest.max(shortest),
            now: shortest,
        }
    }

    /// How long to wait now.
    pub fn wait(&self) -> Duration {
        self.now
    }

    /// A sample showed so many events per second: stay close, or wait twice as long as last time.
    pub fn saw(&mut self, events_per_second: f64) {
        self.now = if events_per_second > Self::QUIET {
            self.shortest
        } else {
            self.now.saturating_mul(2).min(self.longest)
        };
    }

    /// Somebody looks: close again.
    pub fn wake(&mut self) {
        self.now = self.shortest;
    }
}
