//! Real clusters: etcd, API server, controllers and scheduler as processes of this machine, with
//! KWOK nodes, real nodes, or both.

mod access;
mod apply;
mod audit;
mod builder;
mod certificates;
mod cluster;
mod component;
mod control_plane;
mod dns;
mod kwok;
mod metrics_server;
mod outages;
mod real_nodes;
mod snapshots;

pub(crate) use access::{Clients, account_token, approve_requests};
pub(crate) use apply::{api_of, apply_yaml, parse_yaml};
pub use audit::AuditEntry;
pub use builder::ClusterBuilder;
pub(crate) use certificates::write_private;
pub use cluster::Cluster;
pub use dns::ClusterDns;
pub use kwok::{KWOK_ANNOTATION, KwokNodes};
pub use metrics_server::MetricsServer;
pub use real_nodes::{ImageArchive, RealNodes, SHELL_IMAGE};
pub use snapshots::EtcdSnapshot;
