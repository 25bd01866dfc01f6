//! Small questions to a pod object. Pure.

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use tensile_proto::vocabulary::condition;

use crate::{names::Key, translate};

/// Why the lower cluster takes a pod away, from the reason of its DisruptionTarget condition (KEP-3329).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disruption {
    /// A pod of higher priority takes its place.
    Preempted,
    /// The Eviction API, or the kubelet under pressure, ended it.
    Evicted,
    /// Its node is lost or tainted. The lower pod may stay Terminating for as long as its node is away.
    NodeLost,
}

impl Disruption {
    /// Whether the upper pod fails once the lower one is gone. A pod lost with its node is deleted above at once
    /// instead, so that its controller replaces it while the lower pod still hangs on the dead node.
    pub fn fails(self) -> bool {
        self != Self::NodeLost
    }
}

/// Reads why the lower cluster takes a pod away; `None` when it does not.
pub fn disruption(pod: &Pod) -> Option<Disruption> {
    disruption_in(pod.status.as_ref()?)
}

/// The same, from the status alone.
pub fn disruption_in(status: &PodStatus) -> Option<Disruption> {
    match disruption_condition(status)?.reason.as_deref() {
        Some("PreemptionByScheduler") => Some(Disruption::Preempted),
        Some("DeletionByTaintManager" | "DeletionByPodGC") => Some(Disruption::NodeLost),
        _ => Some(Disruption::Evicted),
    }
}

/// The DisruptionTarget condition, when it says True.
pub fn disruption_condition(status: &PodStatus) -> Option<&PodCondition> {
    let conditions = status.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")
}

/// The scheduler's word that it finds no node for a pod.
pub fn unschedulable(pod: &Pod) -> Option<&PodCondition> {
    if pod.spec.as_ref()?.node_name.as_ref().is_some_and(|node| !node.is_empty()) {
        return None;
    }
    let scheduled = pod.status.as_ref()?.conditions.iter().flatten().find(|each| each.type_ == "PodScheduled")?;
    (scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable")).then_some(scheduled)
}

/// Whether a pod has its final phase.
pub fn is_terminal(status: &PodStatus) -> bool {
    translate::is_terminal(status.phase.as_deref())
}

/// Whether the pod's user was told that it cannot be offloaded.
pub fn is_reported_stuck(status: &PodStatus) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == condition::OFFLOADED && condition.status == "False")
}

/// What must be equal for the lower pod to carry all of the upper one: the digest of what may change, and the generation
/// that it belongs to (API servers before 1.33 count none).
pub fn with_generation(digest: String, generation: Option<i64>) -> String {
    match generation {
        Some(generation) => format!("{digest}@{generation}"),
        None => digest,
    }
}

/// The part of an upper status that goes down: conditions, for readiness gates.
pub fn only_what_travels(status: &PodStatus) -> PodStatus {
    PodStatus { conditions: status.conditions.clone(), ..PodStatus::default() }
}

/// Drops what of a lower pod is never read after its facts were taken, which is most of its size.
pub fn without_spec(mut pod: Pod) -> Pod {
    pod.spec = None;
    pod.metadata.labels = None;
    pod.metadata.owner_references = None;
    pod
}

/// Namespace and name of a pod.
pub fn key_of(pod: &Pod) -> Option<Key> {
    Some(Key::new(pod.metadata.namespace.clone()?, pod.metadata.name.clone()?))
}

/// Seconds of grace of a pod that is being deleted.
pub fn deletion_grace(pod: &Pod) -> Option<i64> {
    pod.metadata.deletion_timestamp.as_ref()?;
    Some(pod.metadata.deletion_grace_period_seconds.unwrap_or_default())
}

/// Resource versions of one resource are comparable as integers (KEP-5504); what is no integer compares as oldest.
pub fn version_of(version: Option<&str>) -> u64 {
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}
