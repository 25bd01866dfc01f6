//! The lower pod to create for an upper one.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use tensile_proto::vocabulary::{annotation, finalizer};

use super::{Context, Refusal, affinity, carried, containers, downward, restore, volumes};
use crate::{names::Key, owner::OwnerMark};

/// ServiceAccount of pods that name none (`K plugin/pkg/admission/serviceaccount`).
const SERVICE_ACCOUNT_DEFAULT: &str = "default";

/// The generation of a pod just created (`K pkg/registry/core/pod/strategy.go` PrepareForCreate).
const GENERATION_CREATED: i64 = 1;

/// Translates an upper pod into the lower pod that is to be created.
///
/// # Errors
/// A [`Refusal`] when the pod asks for something that cannot be had below; final for this spec.
pub fn pod_down(upper: &Pod, ctx: &Context<'_>) -> Result<Pod, Refusal> {
    let (Some(name), Some(namespace), Some(uid), Some(spec)) =
        (&upper.metadata.name, &upper.metadata.namespace, &upper.metadata.uid, &upper.spec)
    else {
        return Err(Refusal::new("Malformed", "the pod has no name, namespace, uid or spec; create it again"));
    };
    let mark = OwnerMark {
        cluster: ctx.settings.upper_cluster_uid.clone(),
        uid: uid.clone(),
        virtual_node: ctx.settings.node_name.clone(),
        key: Key::new(namespace.clone(), name.clone()),
    };
    Ok(Pod {
        metadata: metadata_down(upper, spec, &mark, ctx),
        spec: Some(spec_down(upper, spec, uid, ctx)?),
        status: None,
    })
}

fn metadata_down(upper: &Pod, spec: &PodSpec, mark: &OwnerMark, ctx: &Context<'_>) -> ObjectMeta {
    let owned = |(key, value): (&String, &String)| (key.clone(), value.clone());
    let mut meta = ObjectMeta {
        name: Some(mark.key.name.clone()),
        namespace: Some(ctx.settings.namespaces.lower(&mark.key.namespace)),
        labels: Some(carried::labels_down(upper).map(owned).collect()),
        annotations: Some(carried::annotations_down(upper).map(owned).collect()),
        finalizers: may_complete(spec).then(|| vec![finalizer::RESULT.to_owned()]),
        ..ObjectMeta::default()
    };
    mark.write(&mut meta);
    let annotations = meta.annotations.get_or_insert_default();
    let mut annotate = |key: &str, value: String| annotations.insert(key.to_owned(), value);
    annotate(annotation::UPPER_UID, mark.uid.clone());
    annotate(annotation::UPPER_NODE, ctx.settings.node_name.clone());
    annotate(
        annotation::UPPER_SERVICE_ACCOUNT,
        spec.service_account_name.clone().unwrap_or_else(|| SERVICE_ACCOUNT_DEFAULT.to_owned()),
    );
    for (key, value) in whole_maps_down(upper, spec) {
        annotate(key, value);
    }
    annotate(annotation::CARRIED, carried::Carried::at_creation(upper).to_string());
    if let Some(generation) = upper.metadata.generation {
        annotate(annotation::GENERATION, carried::generations(generation, GENERATION_CREATED));
    }
    meta
}

/// The annotations that hold the upper pod's whole labels and annotations, where a volume asks for them.
pub(super) fn whole_maps_down(upper: &Pod, spec: &PodSpec) -> Vec<(&'static str, String)> {
    let asked = downward::whole_maps(spec);
    let mut maps = Vec::new();
    if asked.labels {
        maps.push((
            annotation::UPPER_LABELS,
            downward::format_map(upper.metadata.labels.as_ref().unwrap_or(&BTreeMap::new())),
        ));
    }
    if asked.annotations {
        maps.push((
            annotation::UPPER_ANNOTATIONS,
            downward::format_map(upper.metadata.annotations.as_ref().unwrap_or(&BTreeMap::new())),
        ));
    }
    maps
}

/// Whether the pod may reach a terminal phase by itself: its result must not be lost, so the lower pod gets a finalizer.
/// Restart policies of single containers count too (KEP-5307), and a deadline ends any pod.
fn may_complete(spec: &PodSpec) -> bool {
    spec.restart_policy.as_deref().is_some_and(|policy| policy != "Always")
        || spec.active_deadline_seconds.is_some()
        || spec.containers.iter().any(|container| container.restart_policy.is_some())
}

fn spec_down(upper: &Pod, spec: &PodSpec, uid: &str, ctx: &Context<'_>) -> Result<PodSpec, Refusal> {
    refuse_claims(spec)?;
    let mut spec = spec.clone();

    // Decided by upper admission; lower admission decides anew and refuses numbers that are not its own.
    spec.priority = None;
    spec.preemption_policy = None;
    spec.overhead = None;
    // Decided by the upper scheduler.
    spec.node_name = None;
    spec.scheduling_gates = None;
    spec.scheduling_group = None;
    spec.scheduler_name.clone_from(&ctx.settings.lower_scheduler_name);
    // The upper ServiceAccount means nothing below; its tokens come by Secret.
    spec.service_account = None;
    spec.service_account_name = None;
    spec.automount_service_account_token = Some(false);
    // Not allowed at creation; they follow through their subresource.
    spec.ephemeral_containers = None;

    for volume in spec.volumes.iter_mut().flatten() {
        volumes::map_volume(volume, uid)?;
    }
    let given = containers::Given::of(&spec, ctx);
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        containers::map_environment(&mut container.env, container.env_from.as_mut(), &given);
    }
    // The variables of the upper cluster's Services are set; those of the lower one would name other Services.
    spec.enable_service_links = Some(false);

    let empty = BTreeMap::new();
    let labels = upper.metadata.labels.as_ref().unwrap_or(&empty);
    affinity::map_constraints(&mut spec, Some(labels), ctx.settings);
    restore::restore(&mut spec, upper, ctx.settings)?;
    if let Some(node) = upper.metadata.annotations.as_ref().and_then(|all| all.get(annotation::RESERVED_NODE)) {
        affinity::pin(&mut spec, node);
    }
    Ok(spec)
}

/// Whether the pod asks for something that cannot be had below; the part of [`pod_down`] that can be said at once.
///
/// # Errors
/// As [`pod_down`].
pub fn refuse_unsupported(upper: &Pod) -> Result<(), Refusal> {
    let Some(spec) = &upper.spec else { return Ok(()) };
    refuse_claims(spec)?;
    spec.volumes.iter().flatten().try_for_each(volumes::refuse_unsupported)
}

fn refuse_claims(spec: &PodSpec) -> Result<(), Refusal> {
    match spec.resource_claims.iter().flatten().next() {
        None => Ok(()),
        Some(claim) => Err(Refusal::new(
            "ResourceClaimsNotSupported",
            format!(
                "spec.resourceClaims {:?}: devices allocated by the upper cluster do not exist in the lower one; ask for \
                 an extended resource that the lower nodes offer, or keep the pod off virtual nodes",
                claim.name
            ),
        )),
    }
}

#[cfg(test)]
#[path = "down_tests.rs"]
mod tests;
