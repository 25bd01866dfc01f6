//! The kubelet API, asked the way it is asked in production: kubectl, an upper API server, our server, a lower API server,
//! a real kubelet. Only the registration of the node and the creation of lower pods are done by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod command;
mod exec;
mod forward;
mod logs;
mod metrics;
mod world;
