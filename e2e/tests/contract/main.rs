//! The contract `tensile.v1.Cluster` over mutual TLS: what it promises against what the lower scheduler then does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod caller;
mod fit;
mod leaders;
mod reserve;
mod world;
