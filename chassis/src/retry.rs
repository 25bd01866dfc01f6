//! How long to wait before the next try.
//!
//! Every retry in tensile is bounded and jittered: without jitter the clients that one outage cut off come back in one
//! wave and cause the next one.

use std::time::Duration;

use rand::Rng;

/// Doubling is what client-go and every API server's own clients do.
const FACTOR: f64 = 2.0;

/// A wait is drawn from the upper half of its range: spread enough to break up a wave, long enough to give relief.
const JITTER: f64 = 0.5;

/// An exponential backoff with jitter. It holds the count of failures, so one value belongs to one loop.
#[derive(Clone, Debug)]
pub struct Backoff {
    /// The wait after the first failure, before jitter.
    pub initial: Duration,
    /// The longest wait, before jitter.
    pub max: Duration,
    /// What each further failure multiplies the wait by. Values below 1 count as 1.
    pub factor: f64,
    /// The share (0 to 1) of each wait that is random: 0.5 draws from the upper half.
    pub jitter: f64,
    failures: u32,
}

impl Backoff {
    /// A backoff that doubles from `initial` to `max`, with half of each wait random.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, factor: FACTOR, jitter: JITTER, failures: 0 }
    }

    /// The wait before the next try; counts one failure.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.delay_after(self.failures, rand::rng().random());
        self.failures = self.failures.saturating_add(1);
        delay
    }

    /// The wait after `failures` earlier failures. `random` is uniform in 0..1; given apart, so that this is pure.
    pub fn delay_after(&self, failures: u32, random: f64) -> Duration {
        let exponent = i32::try_from(failures).unwrap_or(i32::MAX);
        let grown = self.initial.as_secs_f64() * self.factor.max(1.0).powi(exponent);
        let full = grown.min(self.max.as_secs_f64());
        let jitter = self.jitter.clamp(0.0, 1.0);
        Duration::from_secs_f64(full * (1.0 - jitter * random.clamp(0.0, 1.0)))
    }

    /// Forgets past failures: the next wait is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How many waits were handed out since the last reset.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum() {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        let waits: Vec<u128> = [0, 1, 2, 5, 6, 40, u32::MAX].map(|n| backoff.delay_after(n, 0.0).as_millis()).to_vec();
        assert_eq!(waits, [200, 400, 800, 6_400, 10_000, 10_000, 10_000]);
    }

    #[test]
    fn jitter_takes_at_most_its_share() {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        assert_eq!(backoff.delay_after(0, 1.0), Duration::from_millis(100));
        assert_eq!(backoff.delay_after(0, 0.5), Duration::from_millis(150));
    }

    #[test]
    fn a_reset_starts_over() {
        let mut backoff = Backoff { jitter: 0.0, ..Backoff::new(Duration::from_millis(1), Duration::from_secs(1)) };
        backoff.next_delay();
        assert_eq!(backoff.next_delay(), Duration::from_millis(2));
        backoff.reset();
        assert_eq!(backoff.next_delay(), Duration::from_millis(1));
        assert_eq!(backoff.failures(), 1);
    }
}
