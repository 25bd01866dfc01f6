//! What a person gets wrong, and what the virtual-node says to it: an exit code, and words that name what, where and how
//! to mend. Where waiting may help, it waits and says so.
//!
//! One upper and two lower clusters serve all tests of this program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod accounts;
mod arguments;
mod clusters;
mod kubeconfigs;
mod names;
mod replicas;
mod world;
