//! What the snapshot keeps of a pod.

use k8s_openapi::api::core::v1::Pod;

use crate::{
    requests::pod_requests,
    resources::{PODS, Resources},
};

/// What of a lower pod changes a node's room. Lives only on its way into [`crate::Snapshot`], which packs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.nodeName`; `None` until it is bound.
    pub node: Option<String>,
    /// What it asks of its node, with one of `pods`.
    pub requests: Resources,
    /// Whether it stands for a pod of this virtual node. Room that our own pods take is still ours to offer: the upper scheduler
    /// counts them itself.
    pub ours: bool,
    /// Whether it has finished (phase Succeeded or Failed) and so takes no room. A pod that is being deleted still does.
    pub terminated: bool,
}

impl PodFacts {
    /// Reads a pod. A quantity that is malformed, which no API server stores, makes the pod count as one that requests nothing,
    /// so that it disturbs nobody else.
    pub fn of(pod: &Pod, ours: bool) -> Self {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            node: node.filter(|name| !name.is_empty()).map(ToOwned::to_owned),
            requests: pod_requests(pod).unwrap_or_else(|_| [(PODS, 1)].into_iter().collect()),
            ours,
            terminated: matches!(phase, Some("Succeeded" | "Failed")),
        }
    }
}
