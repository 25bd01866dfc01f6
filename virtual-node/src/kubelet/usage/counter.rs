//! A total of CPU time, made of rates.
//!
//! The metrics API tells how fast CPU time was used within a window; a kubelet tells how much was used since a container's
//! start. A rate that holds from one sample to the next gives the total between them, and whoever takes the difference of
//! two totals over the time between them (metrics-server, Prometheus) gets the rate back, exactly.

use jiff::Timestamp;

/// Where totals start. Not zero, for metrics-server takes a total of zero for one that is missing and leaves out the
/// whole pod; a container that has run has used more than this microsecond.
const FIRST_NANOS: u64 = 1_000;

const NANOS_IN_SECOND: i128 = 1_000_000_000;

/// A total that only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    began: Timestamp,
    at: Timestamp,
    core_nanos: u64,
}

impl Counter {
    /// Nothing was counted before `began`.
    pub fn new(began: Timestamp) -> Self {
        Self { began, at: began, core_nanos: FIRST_NANOS }
    }

    /// CPU was used at this rate until `at`. What is not newer than the last sample changes nothing.
    pub fn advance(&mut self, at: Timestamp, nanocores: u64) {
        let elapsed = at.as_nanosecond() - self.at.as_nanosecond();
        if elapsed <= 0 {
            return;
        }
        let used = i128::from(nanocores).saturating_mul(elapsed) / NANOS_IN_SECOND;
        self.core_nanos = self.core_nanos.saturating_add(u64::try_from(used).unwrap_or(u64::MAX));
        self.at = at;
    }

    /// When the total was zero.
    pub fn began(&self) -> Timestamp {
        self.began
    }

    /// The time of the last sample.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// The total at that time, in nanoseconds of one core.
    pub fn core_nanos(&self) -> u64 {
        self.core_nanos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::constant(second, 0)
    }

    #[test]
    fn the_difference_of_two_totals_is_the_rate_between_them() {
        let mut counter = Counter::new(second(100));
        counter.advance(second(115), 250_000_000);
        let before = counter;
        counter.advance(second(130), 1_500_000_000);
        assert_eq!(counter.core_nanos() - before.core_nanos(), 15 * 1_500_000_000);
        assert_eq!((counter.began(), counter.at()), (second(100), second(130)));
    }

    #[test]
    fn a_sample_seen_twice_and_one_from_before_count_once() {
        let mut counter = Counter::new(second(100));
        counter.advance(second(115), 1_000_000_000);
        let once = counter;
        counter.advance(second(115), 1_000_000_000);
        counter.advance(second(110), 9_000_000_000);
        assert_eq!(counter, once);
    }

    #[test]
    fn the_total_is_never_zero_and_never_wraps() {
        let mut counter = Counter::new(second(100));
        counter.advance(second(115), 0);
        assert!(counter.core_nanos() > 0);
        counter.advance(second(1_000_000), u64::MAX);
        counter.advance(second(2_000_000), u64::MAX);
        assert_eq!(counter.core_nanos(), u64::MAX);
    }
}
