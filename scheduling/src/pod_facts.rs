//! What the snapshot keeps of a pod.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::{
    demand::Demand,
    plugins::node_ports::HostPort,
    requests::pod_requests,
    resources::{PODS, Resources},
};

/// What of a lower pod changes a node's room. Lives only on its way into [`crate::Snapshot`], which packs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.nodeName`; `None` until it is bound.
    pub node: Option<String>,
    /// What it asks of its node, with one of `pods`.
    pub requests: Resources,
    /// The host ports that it takes.
    pub ports: Vec<HostPort>,
    /// UID of the upper pod that it stands for, when it is a pod of this virtual node. Room that our own pods take is still ours to
    /// offer: the upper scheduler counts them itself.
    pub owner: Option<String>,
    /// Whether it has finished (phase Succeeded or Failed) and so takes no room. A pod that is being deleted still does.
    pub terminated: bool,
    /// What it asks of a node, while it waits for one that its scheduler may find any moment. `None` when it is bound, and when
    /// it is gated.
    pub waiting: Option<Arc<Demand>>,
}

impl PodFacts {
    /// Reads a pod. A quantity that is malformed, which no API server stores, makes the pod count as one that requests nothing,
    /// so that it disturbs nobody else.
    pub fn of(pod: &Pod, owner: Option<&str>) -> Self {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty());
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            node: node.map(ToOwned::to_owned),
            requests: pod_requests(pod).unwrap_or_else(|_| [(PODS, 1)].into_iter().collect()),
            ports: HostPort::of_pod(pod),
            owner: owner.map(ToOwned::to_owned),
            terminated: matches!(phase, Some("Succeeded" | "Failed")),
            waiting: if node.is_none() { waiting(pod) } else { None },
        }
    }
}

/// The demand of a pod that a scheduler is about to place.
fn waiting(pod: &Pod) -> Option<Arc<Demand>> {
    if pod.spec.as_ref()?.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()) {
        return None;
    }
    let demand = Demand::of(pod).ok()?;
    // Its scheduler has found no place, for a reason that cannot be followed here: guessing one would take it from others for ever.
    if demand.unjudged.is_some() && is_unschedulable(pod) {
        return None;
    }
    Some(Arc::new(demand))
}

fn is_unschedulable(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|each| each.type_ == "PodScheduled" && each.reason.as_deref() == Some("Unschedulable"))
}
