//! Pure scheduling decisions: what a cluster has, what a pod asks for, and what is left. No I/O, no clock, no client.
//!
//! ```text
//!  Pod  ──requests──▶ PodFacts ──┐
//!                                ├──▶ Snapshot ──▶ Room          what a virtual node offers
//!  Node ────────────▶ NodeFacts ─┘     │      └──▶ NodeClass     nodes in groups of equals
//!                                      ▼
//!  Pod template ────▶ Demand ──────▶ FitEngine ──▶ Fit           how many fit, and why no more
//!                     (plugins)                └─▶ Place         the node that is held for a pod
//! ```
//!
//! Names and counts are kube-scheduler's own (Kubernetes 1.36): milli-CPU for `cpu`, base units for all else.

mod board;
mod demand;
mod engine;
mod fit;
pub mod name;
mod node_facts;
mod plugins;
mod pod_facts;
mod pool;
pub mod quantity;
pub mod requests;
pub mod resources;
mod room;
mod snapshot;
mod uid;

pub use demand::Demand;
pub use engine::{FitEngine, Place, Wish};
pub use fit::{CountedReason, Fit, FitView};
pub use node_facts::Taint;
pub use plugins::{Reason, node_ports::HostPort};
pub use pod_facts::PodFacts;
pub use pool::{Pool, PoolError};
pub use resources::Resources;
pub use room::{NodeClass, Room};
pub use snapshot::Snapshot;
