//! The virtual node as an object of a real upper cluster: its certificate, its name, its life, and what an outage of the
//! lower cluster does to it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod certificate;
mod names;
mod outage;
mod registration;
mod support;
