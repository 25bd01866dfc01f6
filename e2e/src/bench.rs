//! Measures offloading, side by side with the same work done without us. See docs/performance.md.
//!
//! ```text
//!  offload   one Deployment of N pods: ours (upper cluster, virtual node, lower cluster) and vanilla (straight in the
//!            lower cluster), in turn
//!  rest      one pod at a time: what is added to the time until it is Ready, and how soon a change is seen above
//!  takeover  the leader of two replicas dies: how long until the other one works
//!  fit       the fit engine alone, without any cluster
//!  sightings what a watcher of one cluster sees, and when
//!  observe   what a watcher sees of the pods, by this program's monotonic clock
//!  cost      CPU of the machine, requests by verb and resource from the API servers' own metrics
//!  report    table, JSON lines, SVG
//! ```

mod cost;
pub mod fit;
mod observe;
pub mod offload;
mod report;
pub mod rest;
mod sightings;
mod svg;
pub mod takeover;
