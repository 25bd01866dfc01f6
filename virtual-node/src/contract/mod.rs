//! The gRPC contract (`tensile.v1.Cluster`): what this lower cluster offers, told to schedulers and the descheduler.
//!
//! ```text
//!  capacity (snapshot) ──publisher──▶ ClusterState ──▶ Watch            newest state wins
//!  pods (verdicts) ─────▶ Placements ─────────────────▶ WatchPlacements  whole state, then changes
//! ```

mod placements;

pub use placements::{PlacementVerdict, Placements};
