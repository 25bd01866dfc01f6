//! The virtual-node service: one process stands for one lower cluster, as a kubelet stands for one machine.
//!
//! ```text
//!  upper API server ──watch──▶ pods ──translate──▶ lower API server
//!        ▲                      │ ▲                      │
//!        └────── status ────────┘ └──────── watch ───────┘
//! ```

mod args;
mod bootstrap;
pub mod capacity;
mod command;
pub mod context;
pub mod contract;
pub mod events;
pub mod failure;
#[cfg(any(test, feature = "fault-points"))]
pub mod fault;
pub mod identity;
pub mod kubelet;
mod lead;
pub mod mirror;
pub mod names;
pub mod needs;
pub mod node;
pub mod owner;
mod packed;
pub mod pods;
mod run;
pub mod services;
pub mod translate;

pub use args::Args;
pub use command::command;
pub use run::run;
