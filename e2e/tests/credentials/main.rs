//! Credentials of the lower and the upper cluster: every kind carries pods, and every kind is replaced while the
//! virtual-node runs.
//!
//! One upper and one lower cluster serve all tests of this program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod changes;
mod files;
mod issuer;
mod kinds;
mod probes;
mod upper;
mod world;
