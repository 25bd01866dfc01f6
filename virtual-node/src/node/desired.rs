//! The Node object as it should be: labels, annotations, taints and status from what is known. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        DaemonEndpoint, Node, NodeAddress, NodeDaemonEndpoints, NodeSpec, NodeStatus, NodeSystemInfo, Taint,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use tensile_proto::vocabulary::{annotation, foreign, label, taint};

use super::{NodeProfile, reach::Reach};
use crate::context::Settings;

/// Kubernetes's well-known labels that follow the lower nodes when these agree.
const HOSTNAME: &str = "kubernetes.io/hostname";
const OS: &str = "kubernetes.io/os";
const ARCH: &str = "kubernetes.io/arch";
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// What the lower cluster's nodes add up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shape {
    /// Size of every resource, `pods` among them.
    pub capacity: BTreeMap<String, Quantity>,
    /// What of it may be given to our pods.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Operating system, when all nodes agree.
    pub os: Option<String>,
    /// Architecture, when all nodes agree.
    pub arch: Option<String>,
    /// Region, when all nodes agree.
    pub region: Option<String>,
    /// Zone, when all nodes agree.
    pub zone: Option<String>,
    /// Features that all nodes declare.
    pub declared_features: Vec<String>,
    /// Nodes that are Ready and schedulable.
    pub nodes_ready: usize,
    /// All nodes.
    pub nodes_total: usize,
}

/// Where the leading replica is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// Address of the kubelet API: the Node's InternalIP.
    pub address: std::net::IpAddr,
    /// Port of the kubelet API.
    pub kubelet_port: u16,
    /// `host:port` of the gRPC endpoint, for the annotation `tensile.dev/endpoint`.
    pub endpoint: String,
}

/// Everything the Node object is made of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Names and UIDs.
    pub settings: &'a Settings,
    /// Labels, taints and policy from arguments.
    pub profile: &'a NodeProfile,
    /// The lower cluster's size; `None` until its nodes and pods have been listed once.
    pub shape: Option<&'a Shape>,
    /// Version of the lower API server, as `v1.36.3`.
    pub lower_version: &'a str,
    /// Where we are reached.
    pub advertised: &'a Advertised,
    /// Whether the lower API server answers.
    pub reach: &'a Reach,
}

impl Facts<'_> {
    /// Labels that we keep on the Node; others on it are left alone.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        if let Some(shape) = self.shape {
            let uniform = [(OS, &shape.os), (ARCH, &shape.arch), (REGION, &shape.region), (ZONE, &shape.zone)];
            labels.extend(uniform.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))));
        }
        labels.extend(self.profile.labels.clone());
        labels.insert(foreign::NODE_TYPE_LABEL.to_owned(), foreign::NODE_TYPE_VIRTUAL.to_owned());
        labels.insert(label::CLUSTER.to_owned(), self.settings.cluster_name.clone());
        labels.insert(HOSTNAME.to_owned(), self.settings.node_name.clone());
        labels.insert(foreign::EXCLUDE_FROM_LOAD_BALANCERS.to_owned(), "true".to_owned());
        labels
    }

    /// Annotations that we keep on the Node.
    pub(super) fn annotations(&self) -> BTreeMap<String, String> {
        let keys: Vec<String> = self.labels().into_keys().collect();
        BTreeMap::from([
            (annotation::LOWER_CLUSTER.to_owned(), self.settings.lower_cluster_uid.clone()),
            (annotation::ENDPOINT.to_owned(), self.advertised.endpoint.clone()),
            (annotation::NODE_LABELS.to_owned(), keys.join(",")),
        ])
    }

    /// Taints that the Node must have.
    pub(super) fn taints(&self) -> Vec<Taint> {
        let provider = Taint {
            key: foreign::PROVIDER_TAINT.to_owned(),
            value: Some(foreign::PROVIDER.to_owned()),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        };
        let mut taints = vec![provider];
        taints.extend(self.profile.taints.clone());
        if matches!(self.reach, Reach::Unreachable { .. }) {
            taints.push(unreachable_taint());
        }
        taints
    }

    /// Addresses in the order in which API servers prefer them.
    pub(super) fn addresses(&self) -> Vec<NodeAddress> {
        let of = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
        vec![of("InternalIP", self.advertised.address.to_string()), of("Hostname", self.settings.node_name.clone())]
    }

    /// Port of the kubelet API.
    pub(super) fn daemon_endpoints(&self) -> NodeDaemonEndpoints {
        let port = i32::from(self.advertised.kubelet_port);
        NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port }) }
    }

    /// What `kubectl get node -o wide` shows. Operating system and architecture follow the labels.
    pub(super) fn node_info(&self) -> NodeSystemInfo {
        let labels = self.labels();
        let from = |key: &str| labels.get(key).cloned().unwrap_or_default();
        NodeSystemInfo {
            operating_system: from(OS),
            architecture: from(ARCH),
            kubelet_version: kubelet_version(self.lower_version),
            container_runtime_version: concat!("tensile://", env!("CARGO_PKG_VERSION")).to_owned(),
            os_image: format!("cluster {}", self.settings.cluster_name),
            // The cluster is the machine: its identity is the best there is for these.
            machine_id: self.settings.lower_cluster_uid.clone(),
            system_uuid: self.settings.lower_cluster_uid.clone(),
            ..NodeSystemInfo::default()
        }
    }

    /// Features that every lower node declares.
    ///
    /// `ExtendWebSocketsToKubelet` among them makes the upper API server hand WebSocket streams on instead of translating
    /// them to SPDY (KEP-4006). We splice them, so the lower API server must understand them: it does where its nodes
    /// declare the feature, for a kubelet is never newer than its API server. Over SPDY a stream that is cut looks to
    /// kubectl like one that ended well; see docs/adr/0003-websockets-where-the-lower-cluster-has-them.md.
    pub(super) fn declared_features(&self) -> Option<Vec<String>> {
        let mut features = self.shape?.declared_features.clone();
        // The API server wants them sorted and each once (`pkg/apis/core/validation`).
        features.sort_unstable();
        features.dedup();
        Some(features)
    }

    /// The Node to register. `None` until the lower cluster's size is known: a Node of capacity zero would make the
    /// scheduler refuse pods that fit a moment later.
    pub(super) fn node(&self, now: jiff::Timestamp) -> Option<Node> {
        let shape = self.shape?;
        let mut node = Node::default();
        node.metadata.name = Some(self.settings.node_name.clone());
        node.metadata.labels = Some(self.labels());
        node.metadata.annotations = Some(self.annotations());
        node.spec = Some(NodeSpec {
            taints: Some(self.taints()),
            // A scheme that no cloud knows: cloud node lifecycle controllers delete a NotReady Node that they look up by
            // name and do not find, but leave one with a foreign provider ID alone.
            provider_id: Some(format!("tensile://{}/{}", self.settings.lower_cluster_uid, self.settings.node_name)),
            ..NodeSpec::default()
        });
        node.status = Some(NodeStatus {
            capacity: Some(shape.capacity.clone()),
            allocatable: Some(shape.allocatable.clone()),
            addresses: Some(self.addresses()),
            daemon_endpoints: Some(self.daemon_endpoints()),
            node_info: Some(self.node_info()),
            declared_features: self.declared_features().filter(|f| !f.is_empty()),
            conditions: Some(super::conditions::conditions(self, None, now)),
            ..NodeStatus::default()
        });
        Some(node)
    }
}

/// The taint of a virtual node whose lower API server is away.
pub(super) fn unreachable_taint() -> Taint {
    Taint { key: taint::UNREACHABLE.to_owned(), value: None, effect: "NoSchedule".to_owned(), time_added: None }
}

/// The lower version with our own as semver build metadata, as k3s does it: version checks compare the lower version
/// alone. `v1.36.3` becomes `v1.36.3+tensile.0.1.0`, and `v1.36.3+k3s1` becomes `v1.36.3+k3s1.tensile.0.1.0`.
///
/// What is given may be what we made of it before: a process that starts during an outage has it from the Node.
fn kubelet_version(lower: &str) -> String {
    let plain = lower.find("tensile.").map_or(lower, |ours| lower[..ours].trim_end_matches(['+', '.']));
    // Unknown; a version must still parse.
    let plain = if plain.is_empty() { "v0.0.0" } else { plain };
    let joint = if plain.contains('+') { '.' } else { '+' };
    format!("{plain}{joint}tensile.{}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::kubelet_version;

    #[test]
    fn our_version_is_added_once() {
        let ours = env!("CARGO_PKG_VERSION");
        for (lower, expected) in [
            ("v1.36.3", format!("v1.36.3+tensile.{ours}")),
            ("v1.36.3+k3s1", format!("v1.36.3+k3s1.tensile.{ours}")),
            ("", format!("v0.0.0+tensile.{ours}")),
        ] {
            assert_eq!(kubelet_version(lower), expected);
            assert_eq!(kubelet_version(&expected), expected, "made of our own");
        }
    }
}
