//! The gRPC contract (`tensile.v1.Cluster`): what this lower cluster offers, told to schedulers and the descheduler.
//!
//! ```text
//!  capacity (snapshot) ──publisher──▶ ClusterState ──▶ Watch            newest state wins
//!           (engine) ───▶ fit ────────────────────────▶ Fit
//!                  ▲────▶ reservations ───────────────▶ Reserve, Release
//!  pods (verdicts) ─────▶ Placements ─────────────────▶ WatchPlacements  whole state, then changes
//! ```
//!
//! Invariant: nothing here queues for a client. A stream is pulled, and what a slow client missed is merged or told anew.

mod fit;
mod metrics;
mod placements;
mod publisher;
mod reservations;
mod reserve;
mod server;
mod service;
mod state;
mod stream;
mod template;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use metrics::ContractMetrics;
pub use placements::{PlacementVerdict, Placements};
pub use reservations::{Reservations, UpperPods};
pub use server::{ContractArgs, ContractInputs, ContractServer};
