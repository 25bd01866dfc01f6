//! What is counted of the contract.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// Counters of the contract. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub struct ContractMetrics {
    fit_durations: Histogram,
    reserves: Family<Outcome, Counter>,
    held: Gauge,
    ended: Family<How, Counter>,
    moves: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
    budget: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct How {
    how: &'static str,
}

impl Default for ContractMetrics {
    fn default() -> Self {
        Self {
            // From 20 µs to 0.6 s.
            fit_durations: Histogram::new(exponential_buckets(0.000_02, 2.0, 16)),
            reserves: Family::default(),
            held: Gauge::default(),
            ended: Family::default(),
            moves: Counter::default(),
        }
    }
}

impl ContractMetrics {
    /// Registers them under `tensile_contract_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("tensile_contract");
        registry.register("fit_duration_seconds", "Time to answer a Cluster.Fit", metrics.fit_durations.clone());
        registry.register(
            "reserves",
            "Requests of Cluster.Reserve, by outcome and by whether the caller's budget was of the newest state",
            metrics.reserves.clone(),
        );
        registry.register(
            "reservations",
            "Lower nodes' room that is held for upper pods not bound yet",
            metrics.held.clone(),
        );
        registry.register("reservations_ended", "Reservations that ended, by how", metrics.ended.clone());
        registry.register(
            "reservation_moves",
            "Pods whose reserved lower node had no room any more and that were given another",
            metrics.moves.clone(),
        );
        metrics
    }

    pub(super) fn fit_took(&self, duration: Duration) {
        self.fit_durations.observe(duration.as_secs_f64());
    }

    pub(super) fn reserved(&self, outcome: &'static str, budget: &'static str) {
        self.reserves.get_or_create(&Outcome { outcome, budget }).inc();
    }

    pub(super) fn held(&self, reservations: usize) {
        self.held.set(i64::try_from(reservations).unwrap_or(i64::MAX));
    }

    pub(super) fn ended(&self, how: &'static str) {
        self.ended.get_or_create(&How { how }).inc();
    }

    pub(super) fn moved(&self) {
        self.moves.inc();
    }
}
