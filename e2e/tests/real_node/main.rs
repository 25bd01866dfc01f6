//! The whole product where it counts: kubectl, an upper API server, our virtual-node, a lower cluster with a real kubelet,
//! and containers that really run.
//!
//! One upper and one lower cluster serve all tests of this program; each test works in a namespace of its own. Most of a
//! test's time is a kubelet's, so the program is quickest with `--test-threads=8`.
//!
//! libtest starts tests in the order of their names: `what_was_forbidden` comes last and waits for the others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod command;
mod config;
mod containers;
mod crashes;
mod deletion;
mod fields;
mod jobs;
mod lifecycles;
mod logs;
mod pods;
mod probes;
mod remote;
mod service_links;
mod sessions;
mod tokens;
mod top;
mod what_was_forbidden;
mod world;
