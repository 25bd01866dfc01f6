//! What every part of the virtual-node is given: who we are, and the clients to both clusters.

use std::{collections::BTreeSet, net::IpAddr};

use crate::names::NamespaceMapping;

/// Facts that hold for the whole life of the process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the Node in the upper cluster.
    pub node_name: String,
    /// Name of the lower cluster, the value of the label `tensile.dev/cluster`.
    pub cluster_name: String,
    /// UID of the upper cluster's kube-system namespace.
    pub upper_cluster_uid: String,
    /// UID of the lower cluster's kube-system namespace.
    pub lower_cluster_uid: String,
    /// How namespaces map.
    pub namespaces: NamespaceMapping,
    /// Existing lower namespaces that may be used although they are not labelled as ours.
    pub adopt_namespaces: BTreeSet<String>,
    /// `schedulerName` of lower pods; `None` leaves the lower cluster's default.
    pub lower_scheduler_name: Option<String>,
    /// Address and port (`KUBERNETES_SERVICE_HOST`, `KUBERNETES_SERVICE_PORT`) of the upper API server as seen from
    /// lower pods; `None` leaves what the lower cluster injects.
    pub upper_api_for_pods: Option<(String, u16)>,
    /// The virtual node's own address: status.addresses InternalIP, and status.hostIP of its pods.
    pub node_address: IpAddr,
}

/// Clients to the upper cluster.
#[derive(Clone)]
pub struct UpperClients {
    /// Acts as `system:node:NAME`: pods, their Secrets, ConfigMaps and tokens, the node, its lease, events.
    pub node: kube::Client,
    /// Acts as our ServiceAccount: what the Node authorizer does not cover (node taints, leases of election, namespaces).
    pub account: kube::Client,
}

/// Clients to the lower cluster.
#[derive(Clone)]
pub struct LowerClients {
    /// Requests and watches: HTTP/2, rate-limited, retried.
    pub api: kube::Client,
    /// Streams that are upgraded or followed: HTTP/1.1, no time limit.
    pub streaming: kube::Client,
}
