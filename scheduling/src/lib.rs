//! Pure scheduling decisions: what a cluster has, what a pod asks for, and what is left. No I/O, no clock, no client.
//!
//! ```text
//!  Pod  ──requests──▶ PodFacts ──┐
//!                                ├──▶ Snapshot ──▶ Room          what a virtual node offers
//!  Node ────────────▶ NodeFacts ─┘            └──▶ NodeClass     nodes in groups of equals
//! ```
//!
//! Names and counts are kube-scheduler's own (Kubernetes 1.36): milli-CPU for `cpu`, base units for all else.

pub mod name;
mod node_facts;
mod pod_facts;
mod pool;
pub mod quantity;
pub mod requests;
pub mod resources;
mod room;
mod snapshot;
mod uid;

pub use node_facts::Taint;
pub use pod_facts::PodFacts;
pub use pool::{Pool, PoolError};
pub use resources::Resources;
pub use room::{NodeClass, Room};
pub use snapshot::Snapshot;
