//! The chart of the virtual-node: what it renders, what its documents say, and one installation by helm on a real node.
//!
//! `TENSILE_UPDATE_DOCS=1` writes anew what is made from the chart: its README and `virtual-node/deploy`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod arguments;
mod documents;
mod helm;
mod installation;
mod lower_account;
mod refusals;
mod story;
