//! `kill -9` at every step: a virtual-node dies, or loses an answer, at each write that it makes, one after the other, and
//! is started again. Nothing may be lost, doubled, run again or left behind.
//!
//! The steps are not timed: the binary under test is built with the feature `fault-points` and ends itself at the point
//! that the test names (virtual-node/src/fault.rs). `coverage` holds the list of points to what the scenes pass.
//!
//! Two clusters serve all scenes; each scene has a virtual node of its own, for it is killed all the time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::large_futures)] // a world of two clusters is started by one

mod behind;
mod coverage;
mod cut;
mod ends;
mod leftovers;
mod life;
mod services;
mod space;
mod start;
mod subject;
mod twins;
mod update;
mod waits;
mod webhook;
mod world;
