//! Streams through a virtual-node where they are hard: many at once, big ones, readers that stop, clusters that go away.
//!
//! The clusters are this program's own, for what is measured (memory, descriptors) and what is broken (the lower API
//! server, the virtual-node) is everybody's. So one test runs at a time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod big;
// The same commands as in the tests with a real node.
#[path = "../real_node/command.rs"]
mod command;
mod cut;
mod many;
mod slow;
mod split;
mod world;
