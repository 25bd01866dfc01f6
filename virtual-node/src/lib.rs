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
pub mod context;
pub mod contract;
pub mod events;
pub mod failure;
pub mod identity;
pub mod kubelet;
pub mod names;
pub mod needs;
pub mod node;
pub mod owner;
pub mod pods;
mod run;
pub mod translate;

pub use args::Args;
pub use run::run;
