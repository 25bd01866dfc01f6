//! Pods of an upper cluster run in two lower clusters: what a user of kubectl sees, on real control planes with KWOK nodes.
//!
//! One upper and two lower clusters serve all tests of this program; each test works in a namespace of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::large_futures)] // a world of three clusters is started by one

mod deletion;
mod deployments;
mod jobs;
mod metrics;
mod needs;
mod refusals;
mod services;
mod spec;
mod world;
