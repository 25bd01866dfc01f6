//! What the snapshot keeps of a node.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use k8s_openapi::api::core::v1::Node;
use sha2::{Digest, Sha256};

use crate::{
    name::Name,
    resources::{EPHEMERAL_STORAGE, MEMORY, ResourceError, Resources},
};

/// Label that names the single node.
const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
/// Well-known labels of what a node runs on and where it stands, with their names of before Kubernetes 1.17.
const OS_LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];
const ARCH_LABELS: [&str; 2] = ["kubernetes.io/arch", "beta.kubernetes.io/arch"];
const REGION_LABELS: [&str; 2] = ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"];
const ZONE_LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];
/// Sizes count as equal within this many bytes of memory or storage: machines of one type differ by some kilobytes, and
/// without it each would be a class of its own.
const SIZE_STEP_BYTES: i64 = 64 << 20;
/// Bytes of the digest that names a class: enough that two never meet by chance.
const CLASS_ID_BYTES: usize = 8;

/// A taint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value; empty when there is none.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// What makes nodes equal to a scheduler. Shared by all nodes of a class.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Class {
    /// Labels, without those that name the single node.
    pub labels: BTreeMap<String, String>,
    /// Sorted.
    pub taints: Vec<Taint>,
    /// Sorted.
    pub declared_features: Vec<String>,
    /// Allocatable, with memory and storage rounded down to [`SIZE_STEP_BYTES`].
    pub size: Resources,
    /// Digest of the above, in hex.
    pub id: String,
}

/// What of a node changes what a virtual node offers. Heartbeats, images and the like are not in it, so that they change nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub class: Arc<Class>,
    /// Labels that name the single node, and so are not in its class.
    pub own_labels: BTreeMap<String, String>,
    /// Whether it takes pods: Ready and not `unschedulable`.
    pub takes_pods: bool,
    /// Whether its condition Ready says True.
    pub ready: bool,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    pub capacity: Resources,
    pub allocatable: Resources,
    pub os: Option<Name>,
    pub arch: Option<Name>,
    pub region: Option<Name>,
    pub zone: Option<Name>,
    pub pod_cidrs: Vec<String>,
}

impl NodeFacts {
    /// Reads a node; a quantity that cannot be read is refused with the resource's name.
    pub fn of(node: &Node) -> Result<Self, ResourceError> {
        let status = node.status.as_ref();
        let spec = node.spec.as_ref();
        let list = |pick: fn(&k8s_openapi::api::core::v1::NodeStatus) -> Option<&crate::requests::List>| {
            status.and_then(pick).map_or_else(|| Ok(Resources::default()), Resources::of_list)
        };
        let allocatable = list(|status| status.allocatable.as_ref())?;
        let ready = status.and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
            conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
        let unschedulable = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        let info = status.and_then(|status| status.node_info.as_ref());
        let label = |keys: [&str; 2]| {
            let labels = node.metadata.labels.as_ref()?;
            keys.iter().find_map(|key| labels.get(*key)).map(String::as_str)
        };
        let name = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(Name::new);
        let (own_labels, shared_labels) = split_labels(node);
        Ok(Self {
            class: Arc::new(Class::of(node, shared_labels, &allocatable)),
            own_labels,
            takes_pods: ready && !unschedulable,
            ready,
            unschedulable,
            capacity: list(|status| status.capacity.as_ref())?.clamped(),
            allocatable: allocatable.clamped(),
            os: name(label(OS_LABELS).or(info.map(|info| info.operating_system.as_str()))),
            arch: name(label(ARCH_LABELS).or(info.map(|info| info.architecture.as_str()))),
            region: name(label(REGION_LABELS)),
            zone: name(label(ZONE_LABELS)),
            pod_cidrs: pod_cidrs(node),
        })
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.class.labels.get(key).or_else(|| self.own_labels.get(key)).map(String::as_str)
    }
}

/// Labels that name the single node (the host name, and any whose value is the node's or the host's name), and all others.
fn split_labels(node: &Node) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let hostname = labels.get(HOSTNAME_LABEL).cloned();
    let names = [node.metadata.name.as_deref(), hostname.as_deref()];
    let names_node = |value: &str| !value.is_empty() && names.contains(&Some(value));
    labels.into_iter().partition(|(key, value)| key == HOSTNAME_LABEL || names_node(value))
}

impl Class {
    fn of(node: &Node, labels: BTreeMap<String, String>, allocatable: &Resources) -> Self {
        let mut taints: Vec<_> = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).map(taint).collect();
        taints.sort();
        let mut declared_features: Vec<_> =
            node.status.iter().flat_map(|status| status.declared_features.iter().flatten()).cloned().collect();
        declared_features.sort();
        declared_features.dedup();
        let mut size = allocatable.clone();
        for resource in [MEMORY, EPHEMERAL_STORAGE] {
            let amount = size.get(resource);
            size.set(resource, amount - amount.rem_euclid(SIZE_STEP_BYTES));
        }
        let id = class_id(&labels, &taints, &declared_features, &size);
        Self { labels, taints, declared_features, size, id }
    }
}

/// The same for the same nodes in every process and version: each part is hashed with its length before it.
fn class_id(labels: &BTreeMap<String, String>, taints: &[Taint], features: &[String], size: &Resources) -> String {
    let mut hash = Sha256::new();
    let mut part = |text: &str| {
        hash.update(text.len().to_le_bytes());
        hash.update(text.as_bytes());
    };
    part("labels");
    for (key, value) in labels {
        part(key);
        part(value);
    }
    part("taints");
    for taint in taints {
        part(&taint.key);
        part(&taint.value);
        part(&taint.effect);
    }
    part("features");
    for feature in features {
        part(feature);
    }
    part("size");
    for (name, amount) in size.iter() {
        part(name);
        part(&amount.to_string());
    }
    hash.finalize()[..CLASS_ID_BYTES].iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn taint(taint: &k8s_openapi::api::core::v1::Taint) -> Taint {
    Taint { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default(), effect: taint.effect.clone() }
}

fn pod_cidrs(node: &Node) -> Vec<String> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let mut cidrs = spec.pod_cidrs.clone().unwrap_or_default();
    if cidrs.is_empty() {
        cidrs.extend(spec.pod_cidr.clone());
    }
    cidrs
}
