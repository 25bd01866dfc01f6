//! The time of the upper API server.
//!
//! It issues tokens, so it decides when they end. A clock of ours that is ten minutes behind would leave a pod without a
//! valid token for that long, and one that is ahead would have a token of ten minutes asked for anew all the time.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

/// How far our clock is ahead of the upper API server's, in seconds: learned from each token that it issues.
#[derive(Debug, Default)]
pub(super) struct ServerClock {
    ahead_seconds: AtomicI64,
}

impl ServerClock {
    /// The time by the API server's clock. Ours, as long as no token was issued.
    pub(super) fn now(&self) -> Timestamp {
        self.of(Timestamp::now())
    }

    /// The API server has just issued (at `ours` by our clock) a token that lives for so long, and ends at `expires`.
    pub(super) fn learn(&self, ours: Timestamp, life_seconds: i64, expires: Timestamp) {
        let issued = expires - SignedDuration::from_secs(life_seconds);
        self.ahead_seconds.store(ours.duration_since(issued).as_secs(), Ordering::Relaxed);
    }

    fn of(&self, ours: Timestamp) -> Timestamp {
        ours - SignedDuration::from_secs(self.ahead_seconds.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_of_ours_that_is_wrong_is_found_out_by_the_next_token() {
        let time = |text: &str| -> Timestamp { text.parse().unwrap() };
        let clock = ServerClock::default();
        let expires = time("2026-01-01T00:10:00Z");
        for (ours, later, server) in [
            ("2026-01-01T00:10:00Z", "2026-01-01T00:18:00Z", "2026-01-01T00:08:00Z"),
            ("2025-12-31T23:50:00Z", "2025-12-31T23:58:00Z", "2026-01-01T00:08:00Z"),
        ] {
            clock.learn(time(ours), 600, expires);
            assert_eq!(clock.of(time(later)), time(server));
        }
    }
}
