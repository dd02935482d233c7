//! How long a device looks at an empty ring before it goes to sleep.

use crate::VirtQueue;
use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// The first look, and the shortest that is worth it: about what going to sleep and being woken costs.
const SHORTEST: Duration = Duration::from_micros(5);
/// The longest, so that commands to the worker are heard in time.
const LONGEST: Duration = Duration::from_micros(20);
/// After looks in vain, this many empty rings are left at once.
const REST: u32 = 64;
/// Looks at the ring between looks at the clock.
const GLANCES: u32 = 16;

/// Waits for the driver's next chain for a moment, if that has paid off of late.
///
/// A driver with one request in flight sends the next soon after the answer. Going to sleep in between
/// costs both sides more than the wait: the device two switches and three system calls, the driver an
/// exit to kick with. Drivers that are slower than that are noticed, and not waited for.
#[derive(Debug)]
pub struct Patience {
    /// Length of the next look.
    window: Duration,
    /// Empty rings left to ignore.
    rest: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            window: SHORTEST,
            rest: 0,
        }
    }
}

impl Patience {
    /// Whether a chain came. To be asked with kicks disabled, when the ring is empty and nothing else
    /// is to be done.
    pub fn wait(&mut self, queue: &VirtQueue) -> bool {
        if !self.begins() {
            return false;
        }
        let start = Instant::now();
        let came = loop {
            if (0..GLANCES).any(|_| {
                spin_loop();
                queue.waiting() != 0
            }) {
                break true;
            }
            if start.elapsed() >= self.window {
                break false;
            }
        };
        self.learns(came);
        came
    }

    fn begins(&mut self) -> bool {
        match self.rest.checked_sub(1) {
            Some(less) => {
                self.rest = less;
                false
            }
            None => true,
        }
    }

    fn learns(&mut self, came: bool) {
        if came {
            self.window = (self.window * 2).min(LONGEST);
        } else if self.window > SHORTEST {
            self.window = (self.window / 2).max(SHORTEST);
        } else {
            self.rest = REST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_makes_patient_and_failure_tired() {
        let mut patience = Patience::default();
        assert!(patience.begins());
        for _ in 0..10 {
            patience.learns(true);
        }
        assert_eq!(patience.window, LONGEST);
        patience.learns(false);
        patience.learns(false);
        assert_eq!(patience.window, SHORTEST);
        assert!(patience.begins());
        patience.learns(false);
        assert_eq!((0..=REST).filter(|_| patience.begins()).count(), 1);
        // One success after the rest is enough to be patient again.
        patience.learns(true);
        assert!(patience.begins());
        assert!(patience.window > SHORTEST);
    }
}
