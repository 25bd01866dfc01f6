//! A token bucket that hands out times instead of tokens.
//!
//! Callers are served in the order they came (a caller's turn is fixed when it asks), nobody is woken to find the
//! bucket empty, and the state is one instant. This is the generic cell rate algorithm (ITU-T I.371).

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct TokenBucket {
    /// Between two requests when the bucket is empty.
    interval: Duration,
    /// How far ahead of the steady rate a burst may run.
    tolerance: Duration,
    /// When the bucket would be full again.
    full_at: Mutex<Instant>,
}

impl TokenBucket {
    /// `None` when the rate is not limited.
    pub(super) fn new(qps: f32, burst: u32) -> Option<Self> {
        if !qps.is_finite() || qps <= 0.0 {
            return None;
        }
        let interval = Duration::from_secs_f32(1.0 / qps);
        Some(Self { interval, tolerance: interval * burst.max(1), full_at: Mutex::new(Instant::now()) })
    }

    /// Waits for this caller's turn; returns how long that took. The caller must be bounded in number: each one that
    /// waits moves the turn of the next one back.
    pub(super) async fn turn(&self) -> Duration {
        let now = Instant::now();
        let wait = self.book(now);
        if !wait.is_zero() {
            tokio::time::sleep_until(now + wait).await;
        }
        wait
    }

    fn book(&self, now: Instant) -> Duration {
        let mut full_at = self.full_at.lock();
        let booked = (*full_at).max(now) + self.interval;
        *full_at = booked;
        booked.saturating_duration_since(now).saturating_sub(self.tolerance)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let bucket = TokenBucket::new(100.0, 10).unwrap();
        let now = Instant::now();
        let waits: Vec<u128> = (0..13).map(|_| bucket.book(now).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 20, 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_time_fills_the_bucket_and_no_more_than_that() {
        let bucket = TokenBucket::new(10.0, 2).unwrap();
        for _ in 0..2 {
            assert_eq!(bucket.turn().await, Duration::ZERO);
        }
        tokio::time::advance(Duration::from_mins(1)).await;
        let waits: Vec<u128> =
            [bucket.turn().await, bucket.turn().await, bucket.turn().await].map(|w| w.as_millis()).to_vec();
        assert_eq!(waits, [0, 0, 100]);
    }

    #[test]
    fn zero_means_no_limit() {
        assert!(TokenBucket::new(0.0, 10).is_none());
        assert!(TokenBucket::new(f32::NAN, 10).is_none());
    }
}
