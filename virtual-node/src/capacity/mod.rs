//! What the lower cluster has room for, kept up to date from watches of its nodes and pods.
//!
//! ```text
//!  lower nodes ──nodes.rs──▶ ledger (one scheduling::Snapshot) ──▶ Room, Shape ──▶ Node status, Cluster.Watch
//!  lower pods  ──(pods)────▶
//! ```

mod ledger;
mod nodes;
mod shape;

pub use self::{
    ledger::{CapacityLedger, Published},
    nodes::NodesWatch,
};
