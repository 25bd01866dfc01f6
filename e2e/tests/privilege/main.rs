//! Least privilege where `tests/rights.rs` does not look: the wide rights of `--identity=service-account`, and the paths
//! that are no resources.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod granted;
mod service_account;
