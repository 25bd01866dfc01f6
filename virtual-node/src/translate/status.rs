//! The upper pod's status, from the lower pod's.
//!
//! What a kubelet owns is mirrored; what the API server, the scheduler and others own above stays theirs: qosClass is
//! immutable, nominatedNodeName may not be set on a bound pod, and the resource claim fields are checked against the
//! upper spec (`K pkg/apis/core/validation/validation.go` ValidatePodStatusUpdate).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Context, carried};

/// Conditions that a kubelet owns (`K pkg/kubelet/types/pod_status.go`) less PodScheduled, which is the upper scheduler's:
/// the pod *is* scheduled above, to the virtual node.
pub(super) const KUBELET_CONDITIONS: [&str; 7] = [
    "Initialized",
    "PodReadyToStartContainers",
    "ContainersReady",
    "Ready",
    "PodResizePending",
    "PodResizeInProgress",
    "AllContainersRestarting",
];

/// The condition that a kubelet shares with others (`PodConditionSharedByKubelet`).
const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// What differs between the upper status and the lower pod's: the value of `status` in a *strategic merge patch* of the
/// upper pod's status. `None` when nothing is to be written.
///
/// A terminal upper phase is final: nothing is written that would take it back.
pub fn status_up(upper: Option<&PodStatus>, lower: &Pod, ctx: &Context<'_>) -> Option<Value> {
    let wanted = lower.status.as_ref()?;
    let generations = carried::read_generations(lower).unwrap_or((0, i64::MAX));
    let empty = PodStatus::default();
    difference(upper.unwrap_or(&empty), wanted, generations, ctx.settings.node_address)
}

/// Whether a pod of this phase runs no more.
pub fn is_terminal(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The patch that makes the mirrored part of `upper` equal to `lower`. `generations` are the upper one and the lower one
/// that contains it.
pub(super) fn difference(
    upper: &PodStatus,
    lower: &PodStatus,
    generations: (i64, i64),
    node_address: IpAddr,
) -> Option<Value> {
    if is_terminal(upper.phase.as_deref()) && upper.phase != lower.phase {
        return None;
    }
    let mut patch = Map::new();
    put(&mut patch, "phase", upper.phase.as_ref(), lower.phase.as_ref());
    put(&mut patch, "reason", upper.reason.as_ref(), lower.reason.as_ref());
    put(&mut patch, "message", upper.message.as_ref(), lower.message.as_ref());
    put(&mut patch, "startTime", upper.start_time.as_ref(), lower.start_time.as_ref());
    put(&mut patch, "resize", upper.resize.as_ref(), lower.resize.as_ref());
    put(&mut patch, "resources", upper.resources.as_ref(), lower.resources.as_ref());
    put_filled(
        &mut patch,
        "allocatedResources",
        upper.allocated_resources.as_ref().filter(|map| !map.is_empty()),
        lower.allocated_resources.as_ref().filter(|map| !map.is_empty()),
    );
    // These lists have no merge key: a patch replaces them whole.
    for (field, upper, lower) in [
        ("initContainerStatuses", &upper.init_container_statuses, &lower.init_container_statuses),
        ("containerStatuses", &upper.container_statuses, &lower.container_statuses),
        ("ephemeralContainerStatuses", &upper.ephemeral_container_statuses, &lower.ephemeral_container_statuses),
    ] {
        put(
            &mut patch,
            field,
            upper.as_ref().filter(|list| !list.is_empty()),
            lower.as_ref().filter(|list| !list.is_empty()),
        );
    }
    addresses(&mut patch, upper, lower, node_address);
    if let Some(observed) = observed_above(lower.observed_generation, generations)
        && upper.observed_generation != Some(observed)
    {
        patch.insert("observedGeneration".to_owned(), observed.into());
    }
    let conditions = conditions(upper, lower, generations);
    if !conditions.is_empty() {
        patch.insert("conditions".to_owned(), Value::Array(conditions));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn put<T: Serialize + PartialEq>(patch: &mut Map<String, Value>, field: &str, upper: Option<&T>, lower: Option<&T>) {
    if upper != lower {
        patch.insert(field.to_owned(), json!(lower));
    }
}

/// A map merges key by key, so keys that are gone are named.
fn put_filled<V: Serialize + PartialEq>(
    patch: &mut Map<String, Value>,
    field: &str,
    upper: Option<&std::collections::BTreeMap<String, V>>,
    lower: Option<&std::collections::BTreeMap<String, V>>,
) {
    let (Some(upper), Some(lower)) = (upper, lower) else {
        return put(patch, field, upper, lower);
    };
    let mut changes = Map::new();
    for key in upper.keys().filter(|key| !lower.contains_key(*key)) {
        changes.insert(key.clone(), Value::Null);
    }
    for (key, value) in lower.iter().filter(|(key, value)| upper.get(*key) != Some(value)) {
        changes.insert(key.clone(), json!(value));
    }
    if !changes.is_empty() {
        patch.insert(field.to_owned(), Value::Object(changes));
    }
}

fn addresses(patch: &mut Map<String, Value>, upper: &PodStatus, lower: &PodStatus, node_address: IpAddr) {
    put(patch, "podIP", upper.pod_ip.as_ref(), lower.pod_ip.as_ref());
    let upper_ips: Vec<&str> = upper.pod_ips.iter().flatten().map(|each| each.ip.as_str()).collect();
    let lower_ips: Vec<&str> = lower.pod_ips.iter().flatten().map(|each| each.ip.as_str()).collect();
    put_ips(patch, "podIPs", &upper_ips, &lower_ips);
    // As soon as a lower kubelet has taken the pod up, and with that for good: another leader has another address, but
    // the pod has not moved, and thousands of writes at a takeover would tell nobody anything.
    if lower.host_ip.is_some() && upper.host_ip.is_none() {
        let own = node_address.to_string();
        put(patch, "hostIP", upper.host_ip.as_ref(), Some(&own));
        let upper_ips: Vec<&str> = upper.host_ips.iter().flatten().map(|each| each.ip.as_str()).collect();
        put_ips(patch, "hostIPs", &upper_ips, &[&own]);
    }
}

/// Addresses merge by `ip`: without the directive old ones would stay, and their order with them.
fn put_ips(patch: &mut Map<String, Value>, field: &str, upper: &[&str], lower: &[&str]) {
    if upper == lower {
        return;
    }
    let mut list: Vec<Value> = lower.iter().map(|ip| json!({ "ip": ip })).collect();
    if list.is_empty() {
        patch.insert(field.to_owned(), Value::Null);
        return;
    }
    if !upper.is_empty() {
        list.insert(0, json!({"$patch": "replace"}));
    }
    patch.insert(field.to_owned(), Value::Array(list));
}

/// The upper generation that a lower `observedGeneration` stands for; `None` while the lower kubelet has not yet seen
/// what we sent last. Leaving it out keeps the one reported before (the API server sees to it).
fn observed_above(observed: Option<i64>, (upper, lower): (i64, i64)) -> Option<i64> {
    (observed? >= lower).then_some(upper)
}

fn conditions(upper: &PodStatus, lower: &PodStatus, generations: (i64, i64)) -> Vec<Value> {
    let have = |type_: &str| upper.conditions.iter().flatten().find(|condition| condition.type_ == type_);
    let mut changes = Vec::new();
    for condition in lower.conditions.iter().flatten() {
        let above = have(&condition.type_);
        let mirrored = KUBELET_CONDITIONS.contains(&condition.type_.as_str())
            // Shared: one that is True above has a reason of its own there, and stays.
            || (condition.type_ == DISRUPTION_TARGET
                && condition.status == "True"
                && above.is_none_or(|above| above.status != "True"));
        if mirrored {
            changes.extend(condition_change(above, condition, generations));
        }
    }
    for condition in upper.conditions.iter().flatten() {
        let gone = lower.conditions.iter().flatten().all(|each| each.type_ != condition.type_);
        if gone && KUBELET_CONDITIONS.contains(&condition.type_.as_str()) {
            changes.push(json!({"$patch": "delete", "type": condition.type_}));
        }
    }
    changes
}

fn condition_change(above: Option<&PodCondition>, below: &PodCondition, generations: (i64, i64)) -> Option<Value> {
    let mut change = Map::new();
    let observed = observed_above(below.observed_generation, generations);
    let Some(above) = above else {
        let mut whole = below.clone();
        whole.observed_generation = observed;
        return Some(json!(whole));
    };
    put(&mut change, "status", Some(&above.status), Some(&below.status));
    put(&mut change, "reason", above.reason.as_ref(), below.reason.as_ref());
    put(&mut change, "message", above.message.as_ref(), below.message.as_ref());
    put(&mut change, "lastProbeTime", above.last_probe_time.as_ref(), below.last_probe_time.as_ref());
    put(&mut change, "lastTransitionTime", above.last_transition_time.as_ref(), below.last_transition_time.as_ref());
    if observed.is_some() {
        put(&mut change, "observedGeneration", above.observed_generation.as_ref(), observed.as_ref());
    }
    if change.is_empty() {
        return None;
    }
    change.insert("type".to_owned(), Value::String(below.type_.clone()));
    Some(Value::Object(change))
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
