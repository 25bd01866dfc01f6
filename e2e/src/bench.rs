//! Measures offloading, side by side with the same work done without us. See docs/performance.md.
//!
//! ```text
//!  offload   one Deployment of N pods: ours (upper cluster, virtual node, lower cluster) and vanilla (straight in the
//!            lower cluster), in turn
//!  rest      one pod at a time: what is added to the time until it is Ready, and how soon a change is seen above
//!  observe   what a watcher sees of the pods, by this program's monotonic clock
//!  cost      CPU of the machine, requests by verb and resource from the API servers' own metrics
//!  report    table, JSON lines, SVG
//! ```

mod cost;
mod observe;
pub mod offload;
mod report;
pub mod rest;
mod svg;
