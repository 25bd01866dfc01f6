//! What happens when something breaks: nothing is lost, nothing is doubled, nothing moves without need.
//!
//! Most tests have clusters of their own, for they break them; those that break less share some.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::large_futures)] // a world of three clusters is started by one

mod certificate;
mod crash;
mod loss;
mod outage;
mod restore;
mod sharing;
mod skew;
mod support;
mod takeover;
