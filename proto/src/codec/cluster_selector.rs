//! The annotation `tensile.dev/cluster-selector`: constraints that only mean something inside a lower cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use serde::{Deserialize, Deserializer, Serialize};

use super::json::{CodecError, decode, encode};
use crate::vocabulary::{annotation::CLUSTER_SELECTOR, foreign::TENSILE_KUBE_CLUSTER_SELECTOR};

/// Constraints that the webhook took out of a pod's spec, out of the upper scheduler's way, and that the virtual-node puts back
/// into the lower pod. Each field has the name and meaning that it has in core/v1 PodSpec; what is empty is left out.
///
/// Their values are not judged here beyond their types: the lower API server does that, by its own version's rules.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterSelector {
    /// Labels that the lower node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub node_selector: BTreeMap<String, String>,
    /// Node affinity, required and preferred, and pod affinity and anti-affinity. Namespaces in it are those of the upper
    /// cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Tolerations of taints of lower nodes.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub tolerations: Vec<Toleration>,
    /// How replicas spread over lower nodes.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Whether the pod uses its lower node's network. Above it must not: all pods of a virtual node would share its ports.
    #[serde(skip_serializing_if = "is_false", deserialize_with = "null_is_default")]
    pub host_network: bool,
    /// Ports that containers take on their lower node.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub host_ports: Vec<HostPort>,
}

/// A port that a container takes on its node. Container, port and protocol say where it was in the spec: they are
/// unique there among ports with a host port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// Name of the container or init container.
    pub container: String,
    /// `containerPort`, 1 to 65535.
    pub container_port: i32,
    /// `TCP`, `UDP` or `SCTP`. Absent: `TCP`.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// `hostPort`, 1 to 65535.
    pub host_port: i32,
    /// `hostIP`. Absent: all addresses of the node.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<String>,
}

/// tensile-kube's annotation: fewer fields, of the same form.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TensileKube {
    #[serde(deserialize_with = "null_is_default")]
    node_selector: BTreeMap<String, String>,
    affinity: Option<Affinity>,
    #[serde(deserialize_with = "null_is_default")]
    tolerations: Vec<Toleration>,
}

impl ClusterSelector {
    /// Reads what stands on a pod; `None` when there is nothing. Our annotation goes before tensile-kube's: where both are, our
    /// webhook wrote its own from a pod that still carried the other.
    pub fn of_annotations(annotations: &BTreeMap<String, String>) -> Result<Option<Self>, CodecError> {
        if let Some(text) = annotations.get(CLUSTER_SELECTOR) {
            return Self::decode(text).map(Some);
        }
        let Some(text) = annotations.get(TENSILE_KUBE_CLUSTER_SELECTOR) else { return Ok(None) };
        let TensileKube { node_selector, affinity, tolerations } = decode(TENSILE_KUBE_CLUSTER_SELECTOR, text)?;
        Ok(Some(Self { node_selector, affinity, tolerations, ..Self::default() }))
    }

    /// Reads the value of our annotation.
    pub fn decode(text: &str) -> Result<Self, CodecError> {
        let selector: Self = decode(CLUSTER_SELECTOR, text)?;
        for (index, port) in selector.host_ports.iter().enumerate() {
            port.check().map_err(|(field, problem)| CodecError::Field {
                annotation: CLUSTER_SELECTOR,
                path: format!("hostPorts[{index}].{field}"),
                problem,
            })?;
        }
        Ok(selector)
    }

    /// Writes the value of our annotation.
    pub fn encode(&self) -> Result<String, CodecError> {
        encode(CLUSTER_SELECTOR, self)
    }

    /// Whether it says nothing, so that no annotation is needed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl HostPort {
    /// Field and problem, if one is wrong. Unlike the other fields these are not core/v1's own, so nobody else judges them before
    /// they are put back.
    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.container.is_empty() {
            return Err(("container", "names no container".to_owned()));
        }
        for (field, port) in [("containerPort", self.container_port), ("hostPort", self.host_port)] {
            if !(1..=65_535).contains(&port) {
                return Err((field, format!("{port} is no port: use 1 to 65535")));
            }
        }
        if !["TCP", "UDP", "SCTP"].contains(&self.protocol.as_str()) {
            return Err(("protocol", format!("{:?} is no protocol: use TCP, UDP or SCTP", self.protocol)));
        }
        Ok(())
    }
}

fn tcp() -> String {
    "TCP".to_owned()
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference
fn is_false(value: &bool) -> bool {
    !value
}

/// Kubernetes takes `null` for absent, so a value written by hand may have it.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
#[path = "cluster_selector_tests.rs"]
mod tests;
