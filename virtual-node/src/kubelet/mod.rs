//! The kubelet API of the virtual node: what an API server asks a node for when somebody runs `kubectl logs`, `exec`,
//! `attach` or `port-forward`.
//!
//! ```text
//!  kubectl ──▶ upper API server ──TLS──▶ authenticate ──▶ authorize ──▶ lookup ──▶ lower API server ──▶ kubelet
//!                                        certificate       Subject-      upper to        pods/log, pods/exec,
//!                                        or token          AccessReview  lower name      pods/attach, ...
//! ```
//!
//! Streams are spliced, not terminated: once the lower API server has switched protocols, bytes are copied both ways and
//! none is looked at ([`splice`]). CPU and memory come from the lower cluster's metrics API ([`usage`]).

mod args;
mod authentication;
mod authorization;
mod cache;
mod certificate;
mod client_ca;
mod health;
mod logs;
mod metrics;
mod own_metrics;
mod pods;
mod query;
mod reply;
mod review;
mod route;
mod server;
mod service;
mod splice;
mod stream;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing;
mod tls;
mod usage;

pub use args::KubeletArgs;
pub use certificate::CertificateError;
pub use server::{KubeletError, KubeletServer};

use jiff::Timestamp;

use crate::names::Key;

/// Where the pod of an upper name is in the lower cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It has a lower pod.
    Found {
        /// Namespace and name of the lower pod.
        lower: Key,
    },
    /// It is bound to this node and has no lower pod yet, or none any longer.
    NotYet {
        /// Why, in a few words for a user: they end the sentence "pod is waiting to start: ...".
        why: String,
    },
    /// It is not bound to this node.
    Unknown,
}

/// Knows which lower pod stands for an upper one. Asked at each request, so it answers from memory.
pub trait PodLookup: Send + Sync {
    /// Looks a pod up by its upper namespace and name.
    fn lower_of(&self, key: &Key) -> Lookup;

    /// Looks a pod up by its lower namespace and name; `None` when no upper pod stands for it (none of this UID, where
    /// one is given).
    fn running(&self, lower: &Key, upper_uid: Option<&str>) -> Option<RunningPod>;
}

/// What runs of an upper pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningPod {
    /// Its namespace and name.
    pub key: Key,
    /// Its UID.
    pub uid: String,
    /// Name and start of each container that runs now: also init and ephemeral ones.
    pub containers: Vec<(String, Timestamp)>,
}
