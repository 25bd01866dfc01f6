//! The virtual node as an object of the upper cluster: registered, kept level, with a lease as a kubelet's.
//!
//! ```text
//!  args, names   what an operator may say, checked                         (pure)
//!  claim         whether the name is ours to use                           (pure)
//!  desired       the Node as it should be, from facts                      (pure)
//!  conditions    its conditions, and when they change by time alone        (pure)
//!  level         (observed, facts, now) -> changes                         (pure)
//!  reach         whether the lower API server answers
//!  lease         tells the node lifecycle controller that we live
//!  keeper        watches the Node and makes the changes
//! ```

mod args;
mod claim;
mod conditions;
mod desired;
mod keeper;
mod lease;
mod level;
mod names;
pub mod reach;
mod said;

use std::sync::Arc;

pub(crate) use self::said::said;
pub use self::{
    args::{NodeArgs, NodeProfile, UnreachablePolicy},
    claim::NodeNameTaken,
    desired::{Advertised, Facts, Shape},
    keeper::{ClaimError, NodeKeeper, NodeKeeperInputs},
    names::{BadName, parse_label, parse_taint},
    reach::{Reach, ReachProbe},
};

/// Asked before each write: whether we lead still. An old leader stops writing at once.
pub type MayWrite = Arc<dyn Fn() -> bool + Send + Sync>;
