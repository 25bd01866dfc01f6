//! Pods on bad days: the real clients, watches, queue and workers between two scripted API servers.
//!
//! Each scripted server keeps pods as an API server does, and does what a test tells it to on top of that.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod creation;
mod status;
mod tokens;
// The merge of an API server, which the unit tests use too.
#[path = "../../src/translate/strategic.rs"]
mod strategic;
mod watches;
mod world;
