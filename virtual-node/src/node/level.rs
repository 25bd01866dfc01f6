//! What must change for the Node to be as it should be: (observed, facts, now) -> plan. Pure.
//!
//! Labels, annotations, taints and conditions of others, and `spec.unschedulable` (`kubectl cordon`), are left alone.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, NodeStatus, Taint},
    apimachinery::pkg::api::resource::Quantity,
};
use serde_json::{Map, Value, json};
use tensile_proto::vocabulary::{annotation, taint};

use super::{conditions, desired::Facts, reach::Reach};

/// Conditions are written anew after this time though nothing changed: a kubelet's `nodeStatusReportFrequency`.
const HEARTBEAT_SECONDS: i64 = 300;

/// One change to the Node.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    /// Register it.
    Create(Box<Node>),
    /// JSON merge patch of labels and annotations, by the node itself.
    Metadata(Value),
    /// JSON merge patch of `spec.taints` with the resourceVersion it was made for, by the ServiceAccount:
    /// NodeRestriction lets no node change its taints.
    Taints(Value),
    /// Strategic merge patch of the status, by the node itself.
    Status(Value),
}

/// The changes to make now, and when time alone asks for the next look.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// In the order in which to make them.
    pub(super) changes: Vec<Change>,
    /// When to plan again even if nothing is heard; `None` when there is no Node and none can be made yet.
    pub(super) next_look: Option<Timestamp>,
}

/// Plans. `features_kept` is false once the API server is known to drop `declaredFeatures` (its feature gate is off):
/// asking again and again would change nothing.
pub(super) fn plan(facts: &Facts<'_>, observed: Option<&Node>, features_kept: bool, now: Timestamp) -> Plan {
    let Some(node) = observed else {
        let changes = facts.node(now).map(|n| Change::Create(Box::new(n))).into_iter().collect();
        return Plan { changes, next_look: None };
    };
    let changes = [
        metadata(facts, node).map(Change::Metadata),
        // Before the status: when the lower cluster is away the taint keeps new pods off first.
        taints(facts, node).map(Change::Taints),
        status(facts, node, features_kept, now).map(Change::Status),
    ];
    let eviction = conditions::eviction_due(facts, observed, now).filter(|due| *due > now);
    let heartbeat = heartbeat_due(node).max(now);
    Plan {
        changes: changes.into_iter().flatten().collect(),
        next_look: Some(eviction.map_or(heartbeat, |due| due.min(heartbeat))),
    }
}

fn metadata(facts: &Facts<'_>, node: &Node) -> Option<Value> {
    let empty = BTreeMap::new();
    let has_annotations = node.metadata.annotations.as_ref().unwrap_or(&empty);
    let mut wants_annotations = facts.annotations();
    let mut labels = Map::new();
    if facts.shape.is_some() {
        let has = node.metadata.labels.as_ref().unwrap_or(&empty);
        let wants = facts.labels();
        let ours_before = has_annotations.get(annotation::NODE_LABELS).map(String::as_str).unwrap_or_default();
        for key in ours_before.split(',').filter(|k| has.contains_key(*k) && !wants.contains_key(*k)) {
            labels.insert(key.to_owned(), Value::Null);
        }
        labels.extend(missing(&wants, has));
    } else {
        // The labels that follow the lower nodes are not known yet; those on the Node stand.
        wants_annotations.remove(annotation::NODE_LABELS);
    }
    let annotations: Map<String, Value> = missing(&wants_annotations, has_annotations).collect();
    let mut changed = Map::new();
    if !labels.is_empty() {
        changed.insert("labels".to_owned(), labels.into());
    }
    if !annotations.is_empty() {
        changed.insert("annotations".to_owned(), annotations.into());
    }
    (!changed.is_empty()).then(|| json!({"metadata": changed}))
}

fn missing(wants: &BTreeMap<String, String>, has: &BTreeMap<String, String>) -> impl Iterator<Item = (String, Value)> {
    wants.iter().filter(|(k, v)| has.get(*k) != Some(v)).map(|(k, v)| (k.clone(), v.clone().into()))
}

/// The whole list, since strategic merge knows a taint by its key alone and would lose one of two effects. The
/// resourceVersion guards the taints that the node lifecycle controller changes at the same time.
fn taints(facts: &Facts<'_>, node: &Node) -> Option<Value> {
    let has = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let mut list: Vec<Taint> = has.to_vec();
    if matches!(facts.reach, Reach::Reachable) {
        list.retain(|t| t.key != taint::UNREACHABLE);
    }
    for wanted in facts.taints() {
        match list.iter_mut().find(|t| t.key == wanted.key && t.effect == wanted.effect) {
            // An absent value and an empty one are the same.
            Some(there)
                if there.value.as_deref().unwrap_or_default() == wanted.value.as_deref().unwrap_or_default() => {}
            Some(there) => there.value = wanted.value,
            None => list.push(wanted),
        }
    }
    (list != has)
        .then(|| json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": list}}))
}

fn status(facts: &Facts<'_>, node: &Node, features_kept: bool, now: Timestamp) -> Option<Value> {
    let unset = NodeStatus::default();
    let has = node.status.as_ref().unwrap_or(&unset);
    let mut patch = Map::new();
    if let Some(shape) = facts.shape {
        patch.extend(resources("capacity", &shape.capacity, has.capacity.as_ref()));
        patch.extend(resources("allocatable", &shape.allocatable, has.allocatable.as_ref()));
        let info = facts.node_info();
        if has.node_info.as_ref() != Some(&info) {
            patch.insert("nodeInfo".to_owned(), json!(info));
        }
        let features = facts.declared_features().unwrap_or_default();
        if features_kept && has.declared_features.as_deref().unwrap_or_default() != features {
            patch.insert("declaredFeatures".to_owned(), json!(features));
        }
    }
    if has.addresses.as_ref() != Some(&facts.addresses()) {
        // The merge key `type` is not unique, so the list is replaced whole (kubernetes #79391).
        let mut list: Vec<Value> = facts.addresses().iter().map(|a| json!(a)).collect();
        list.push(json!({"$patch": "replace"}));
        patch.insert("addresses".to_owned(), list.into());
    }
    if has.daemon_endpoints.as_ref() != Some(&facts.daemon_endpoints()) {
        patch.insert("daemonEndpoints".to_owned(), json!(facts.daemon_endpoints()));
    }
    let wanted = conditions::conditions(facts, Some(node), now);
    let level = wanted.iter().all(|w| conditions::find(node, &w.type_).is_some_and(|h| says_the_same(h, w)));
    if !level || heartbeat_due(node) <= now {
        patch.insert("conditions".to_owned(), json!(wanted));
    }
    (!patch.is_empty()).then(|| json!({"status": patch}))
}

/// The entries that differ; a resource that is gone below is gone above.
fn resources(
    field: &str,
    wants: &BTreeMap<String, Quantity>,
    has: Option<&BTreeMap<String, Quantity>>,
) -> Option<(String, Value)> {
    let empty = BTreeMap::new();
    let has = has.unwrap_or(&empty);
    let names: BTreeSet<&String> = wants.keys().chain(has.keys()).collect();
    let differing: Map<String, Value> = names
        .into_iter()
        .filter(|name| wants.get(*name) != has.get(*name))
        .map(|name| (name.clone(), json!(wants.get(name))))
        .collect();
    (!differing.is_empty()).then(|| (field.to_owned(), differing.into()))
}

fn says_the_same(a: &NodeCondition, b: &NodeCondition) -> bool {
    (&a.status, &a.reason, &a.message) == (&b.status, &b.reason, &b.message)
}

/// When the conditions must be written anew: by the oldest of ours.
fn heartbeat_due(node: &Node) -> Timestamp {
    let last = conditions::find(node, "Ready").and_then(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0);
    last.and_then(|t| t.checked_add(jiff::SignedDuration::from_secs(HEARTBEAT_SECONDS)).ok()).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
#[path = "level_tests.rs"]
mod tests;
