//! What to send to the lower pod when the upper one changed.

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, ResourceRequirements, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};
use serde_json::{Map, Value, json};
use tensile_proto::vocabulary::annotation;

use super::{
    Context, Refusal, affinity,
    carried::{Carried, Part, annotations_down, gates, generations, is_generation_carried, labels_down},
    containers, down,
};

/// Patches of the lower pod; each is a whole body for a *strategic merge patch*.
///
/// Send [`patch`](Self::patch) first, then those of the subresources, then what [`claim`](Self::claim) gives for those
/// that were accepted. A crash in between repeats requests that change nothing. After an update that changed the spec,
/// the next call gives one more patch, of an annotation only: the generation that the change got is known only then.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    /// For the pod itself: labels, annotations, images, tolerations, deadlines, and our bookkeeping of those.
    pub patch: Option<Value>,
    /// For `pods/resize`.
    pub resize: Option<Value>,
    /// For `pods/ephemeralcontainers`.
    pub ephemeral: Option<Value>,
    /// For `pods/status`: conditions that readiness gates name, so that the lower kubelet computes Ready with them.
    pub status: Option<Value>,
    carried: Carried,
    wanted: Carried,
}

/// The subresources that an update may travel by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// `pods/resize`.
    Resize,
    /// `pods/ephemeralcontainers`.
    Ephemeral,
    /// `pods/status`.
    Status,
}

impl Update {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.patch.is_none() && self.resize.is_none() && self.ephemeral.is_none() && self.status.is_none()
    }

    /// The patch of the pod that records what its subresources accepted; `None` when there is nothing to record.
    pub fn claim(&self, accepted: &[Subresource]) -> Option<Value> {
        let mut carried = self.carried.clone();
        for subresource in accepted {
            let part = match subresource {
                Subresource::Resize => Part::Resources,
                Subresource::Ephemeral => Part::Ephemeral,
                Subresource::Status => Part::Gates,
            };
            carried.set(part, self.wanted.get(part).to_owned());
        }
        (carried != self.carried)
            .then(|| json!({"metadata": {"annotations": {annotation::CARRIED: carried.to_string()}}}))
    }
}

/// Compares an upper pod with what its lower twin carries.
///
/// # Errors
/// A [`Refusal`] when the change cannot be carried.
pub fn pod_update(upper: &Pod, lower: &Pod, ctx: &Context<'_>) -> Result<Update, Refusal> {
    let (Some(want), Some(have)) = (&upper.spec, &lower.spec) else {
        return Err(Refusal::new("Malformed", "the pod has no spec; create it again"));
    };
    let sent = Carried::read(lower);
    let wanted = Carried::of(upper);
    let changed = |part| sent.get(part) != wanted.get(part);

    let mut labels = Map::new();
    let mut annotations = Map::new();
    let mut spec = Map::new();
    if changed(Part::Labels) {
        let have = lower.metadata.labels.as_ref();
        map_changes(&mut labels, labels_down(upper).collect(), have, |key| sent.sent_key(Part::Labels, key));
    }
    if changed(Part::Annotations) {
        let have = lower.metadata.annotations.as_ref();
        let removable = |key: &str| sent.sent_key(Part::Annotations, key);
        map_changes(&mut annotations, annotations_down(upper).collect(), have, removable);
    }
    if changed(Part::Labels) || changed(Part::Annotations) {
        for (key, value) in down::whole_maps_down(upper, want) {
            if lower.metadata.annotations.as_ref().and_then(|all| all.get(key)) != Some(&value) {
                annotations.insert(key.to_owned(), Value::String(value));
            }
        }
    }
    if changed(Part::Images) {
        insert_list(&mut spec, "containers", images(&want.containers, &have.containers));
        insert_list(&mut spec, "initContainers", images(init(want), init(have)));
    }
    if changed(Part::Limits) {
        limits(&mut spec, want, have);
    }
    let resize = if changed(Part::Resources) { resize(want, have) } else { None };
    let ephemeral = if changed(Part::Ephemeral) { ephemeral(want, have, ctx) } else { None };
    let status = if changed(Part::Gates) { gate_conditions(upper, lower) } else { None };

    // What travels by the pod itself is recorded with it; what travels by a subresource only once that accepted it.
    let mut carried = wanted.clone();
    for (part, travels_apart) in
        [(Part::Resources, resize.is_some()), (Part::Ephemeral, ephemeral.is_some()), (Part::Gates, status.is_some())]
    {
        if travels_apart {
            carried.set(part, sent.get(part).to_owned());
        }
    }
    if carried != sent {
        annotations.insert(annotation::CARRIED.to_owned(), Value::String(carried.to_string()));
    }
    let spec_changes = !spec.is_empty() || resize.is_some() || ephemeral.is_some();
    if let Some(generation) = upper.metadata.generation
        && !spec_changes
        && !is_generation_carried(upper, lower)
    {
        let value = generations(generation, lower.metadata.generation.unwrap_or_default());
        annotations.insert(annotation::GENERATION.to_owned(), Value::String(value));
    }
    Ok(Update { patch: patch_of(labels, annotations, spec), resize, ephemeral, status, carried, wanted })
}

fn patch_of(labels: Map<String, Value>, annotations: Map<String, Value>, spec: Map<String, Value>) -> Option<Value> {
    let mut metadata = Map::new();
    insert_map(&mut metadata, "labels", labels);
    insert_map(&mut metadata, "annotations", annotations);
    let mut patch = Map::new();
    insert_map(&mut patch, "metadata", metadata);
    insert_map(&mut patch, "spec", spec);
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn insert_map(target: &mut Map<String, Value>, key: &str, value: Map<String, Value>) {
    if !value.is_empty() {
        target.insert(key.to_owned(), Value::Object(value));
    }
}

fn insert_list(target: &mut Map<String, Value>, key: &str, value: Vec<Value>) {
    if !value.is_empty() {
        target.insert(key.to_owned(), Value::Array(value));
    }
}

fn init(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

/// Sets what differs, and removes (`null`) the keys that were sent before and are wanted no more.
fn map_changes(
    changes: &mut Map<String, Value>,
    want: Vec<(&String, &String)>,
    have: Option<&std::collections::BTreeMap<String, String>>,
    sent_before: impl Fn(&str) -> bool,
) {
    for key in have.into_iter().flat_map(|have| have.keys()) {
        if sent_before(key) && want.iter().all(|(wanted, _)| *wanted != key) {
            changes.insert(key.clone(), Value::Null);
        }
    }
    for (key, value) in want {
        if have.and_then(|have| have.get(key)) != Some(value) {
            changes.insert(key.clone(), Value::String(value.clone()));
        }
    }
}

fn images(want: &[Container], have: &[Container]) -> Vec<Value> {
    let mut changes = Vec::new();
    for container in want {
        let Some(twin) = have.iter().find(|each| each.name == container.name) else { continue };
        if container.image != twin.image {
            changes.push(json!({"name": container.name, "image": container.image}));
        }
    }
    changes
}

fn limits(spec: &mut Map<String, Value>, want: &PodSpec, have: &PodSpec) {
    let have_tolerations = have.tolerations.as_deref().unwrap_or_default();
    let tolerations = merged_tolerations(want.tolerations.as_deref().unwrap_or_default(), have_tolerations);
    if tolerations != have_tolerations {
        spec.insert("tolerations".to_owned(), json!(tolerations));
    }
    // Neither may be unset once set (`K pkg/apis/core/validation` ValidatePodUpdate).
    if let Some(seconds) = want.active_deadline_seconds
        && have.active_deadline_seconds != Some(seconds)
    {
        spec.insert("activeDeadlineSeconds".to_owned(), seconds.into());
    }
    if let Some(seconds) = want.termination_grace_period_seconds
        && have.termination_grace_period_seconds != Some(seconds)
    {
        spec.insert("terminationGracePeriodSeconds".to_owned(), seconds.into());
    }
}

/// Tolerations may only be added, and their seconds changed; those that lower admission added stay.
fn merged_tolerations(want: &[Toleration], have: &[Toleration]) -> Vec<Toleration> {
    let mut merged = have.to_vec();
    for toleration in want.iter().filter(|each| affinity::passes(each)) {
        let same = |other: &&mut Toleration| {
            (&other.key, &other.operator, &other.value, &other.effect)
                == (&toleration.key, &toleration.operator, &toleration.value, &toleration.effect)
        };
        match merged.iter_mut().find(same) {
            Some(known) => known.toleration_seconds = toleration.toleration_seconds,
            None => merged.push(toleration.clone()),
        }
    }
    merged
}

fn resize(want: &PodSpec, have: &PodSpec) -> Option<Value> {
    let mut spec = Map::new();
    insert_list(&mut spec, "containers", resized(&want.containers, &have.containers));
    insert_list(&mut spec, "initContainers", resized(init(want), init(have)));
    if let Some(resources) = resource_changes(want.resources.as_ref(), have.resources.as_ref()) {
        spec.insert("resources".to_owned(), resources);
    }
    (!spec.is_empty()).then(|| json!({ "spec": spec }))
}

fn resized(want: &[Container], have: &[Container]) -> Vec<Value> {
    let mut changes = Vec::new();
    for container in want {
        let Some(twin) = have.iter().find(|each| each.name == container.name) else { continue };
        if let Some(resources) = resource_changes(container.resources.as_ref(), twin.resources.as_ref()) {
            changes.push(json!({"name": container.name, "resources": resources}));
        }
    }
    changes
}

/// Requests and limits that differ. None is removed: a resize may not (`validateContainerResize`), and what the upper
/// pod lacks was set by lower admission.
fn resource_changes(want: Option<&ResourceRequirements>, have: Option<&ResourceRequirements>) -> Option<Value> {
    type Quantities = std::collections::BTreeMap<String, Quantity>;
    let differing = |want: Option<&Quantities>, have: Option<&Quantities>| {
        let mut changes = Map::new();
        for (name, quantity) in want.into_iter().flatten() {
            if have.and_then(|have| have.get(name)) != Some(quantity) {
                changes.insert(name.clone(), Value::String(quantity.0.clone()));
            }
        }
        changes
    };
    let want = want?;
    let mut resources = Map::new();
    let requests = differing(want.requests.as_ref(), have.and_then(|have| have.requests.as_ref()));
    let limits = differing(want.limits.as_ref(), have.and_then(|have| have.limits.as_ref()));
    insert_map(&mut resources, "requests", requests);
    insert_map(&mut resources, "limits", limits);
    (!resources.is_empty()).then_some(Value::Object(resources))
}

/// Ephemeral containers may only be added.
fn ephemeral(want: &PodSpec, have: &PodSpec, ctx: &Context<'_>) -> Option<Value> {
    let have = have.ephemeral_containers.as_deref().unwrap_or_default();
    let given = containers::Given::of(want, ctx);
    let mut added = Vec::new();
    for container in want.ephemeral_containers.iter().flatten() {
        if have.iter().all(|each| each.name != container.name) {
            let mut container = container.clone();
            containers::map_environment(&mut container.env, container.env_from.as_mut(), &given);
            added.push(container);
        }
    }
    (!added.is_empty()).then(|| json!({"spec": {"ephemeralContainers": added}}))
}

fn gate_conditions(upper: &Pod, lower: &Pod) -> Option<Value> {
    let have = || lower.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut conditions = Vec::new();
    for condition in gates(upper) {
        let twin = have().find(|each| each.type_ == condition.type_);
        let same = twin.is_some_and(|twin| {
            (&twin.status, &twin.reason, &twin.message) == (&condition.status, &condition.reason, &condition.message)
        });
        if !same {
            conditions.push(json!({
                "type": condition.type_, "status": condition.status, "reason": condition.reason,
                "message": condition.message, "lastTransitionTime": condition.last_transition_time,
            }));
        }
    }
    let names = upper.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    for gate in names.map(|gate| &gate.condition_type) {
        let wanted = gates(upper).any(|condition| condition.type_ == *gate);
        if !wanted && have().any(|condition| condition.type_ == *gate) {
            conditions.push(json!({"$patch": "delete", "type": gate}));
        }
    }
    (!conditions.is_empty()).then(|| json!({"status": {"conditions": conditions}}))
}

#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;
