//! The virtual-node service: one process stands for one lower cluster, as a kubelet stands for one machine.
//!
//! ```text
//!  upper API server ──watch──▶ pods ──translate──▶ lower API server
//!        ▲                      │ ▲                      │
//!        └────── status ────────┘ └──────── watch ───────┘
//! ```

pub mod context;
pub mod names;
pub mod owner;
