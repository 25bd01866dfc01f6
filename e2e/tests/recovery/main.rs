//! What happens when something breaks: nothing is lost, nothing is doubled, nothing moves without need.
//!
//! Each test has clusters of its own, for it breaks them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::large_futures)] // a world of three clusters is started by one

mod crash;
mod outage;
mod sharing;
mod support;
