//! What the watches of a process do, for Prometheus.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::FailureReason;

/// The metrics of all watches of a process. Clones are the same metrics.
#[derive(Clone, Debug, Default)]
pub struct WatchMetrics {
    events: Family<EventLabels, Counter>,
    restarts: Family<RestartLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    watch: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RestartLabels {
    watch: &'static str,
    reason: &'static str,
}

/// One watch's counters, looked up once.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) listed: Counter,
    pub(super) applied: Counter,
    pub(super) deleted: Counter,
    pub(super) malformed: Counter,
    pub(super) bookmarks: Counter,
    watch: &'static str,
    restarts: Family<RestartLabels, Counter>,
}

impl WatchMetrics {
    /// Adds them to the registry of the process; call once and pass clones to the watches.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("tensile_watch_events", "Objects and bookmarks received", metrics.events.clone());
        registry.register(
            "tensile_watch_restarts",
            "Watches begun anew, by what stopped the one before",
            metrics.restarts.clone(),
        );
        metrics
    }

    pub(super) fn of(&self, watch: &'static str) -> Counters {
        let events = |kind| self.events.get_or_create(&EventLabels { watch, kind }).clone();
        Counters {
            listed: events("listed"),
            applied: events("applied"),
            deleted: events("deleted"),
            malformed: events("malformed"),
            bookmarks: events("bookmark"),
            watch,
            restarts: self.restarts.clone(),
        }
    }
}

impl Counters {
    pub(super) fn restarted(&self, reason: FailureReason) {
        self.restarts.get_or_create(&RestartLabels { watch: self.watch, reason: reason.label() }).inc();
    }
}
