//! Real clusters for tests, the playground and the bench.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use tensile_e2e::{Cluster, KwokNodes};
//!
//! let lower = Cluster::builder("lower").nodes(KwokNodes::count(3)).start().await?;
//! lower.kubectl().args(["get", "nodes"]).status()?;
//! lower.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! Everything started here is ended again: on `stop`, on drop, and when the process dies in any
//! way (see [`run`]).

pub mod bench;
pub mod claim;
pub mod eventually;
pub mod image;
pub mod kept;
pub mod playground;
pub mod process;
pub mod rights;
pub mod run;
pub mod site;
pub mod testbed;
pub mod tools;
pub mod virtual_node;

pub use eventually::{Seen, eventually};
pub use process::Supervised;
pub use site::Site;
pub use testbed::{
    AuditEntry, Cluster, ClusterBuilder, ClusterDns, EtcdSnapshot, ImageArchive, KwokNodes, MetricsServer, RealNodes,
    SHELL_IMAGE,
};
pub use tools::{Tool, Tools};
pub use virtual_node::{VirtualNode, VirtualNodeBuilder};

/// Chooses the TLS provider for this process; later calls change nothing. Without it the first
/// use of TLS panics when two providers are compiled in.
pub fn install_crypto() {
    // An error means that one is installed, which is what we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
