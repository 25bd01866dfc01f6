//! What a pod asks of a node, in all that the filters read. Pods of one Deployment or Job have equal demands and so equal verdicts,
//! and share the work.

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::{
    plugins::{Reason, node_affinity::Affinity, node_ports::HostPort, taint_toleration::Toleration},
    requests::pod_requests,
    resources::{ResourceError, Resources},
};

/// A pod as the filters see it: its scheduling signature.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Demand {
    pub(crate) requests: Resources,
    pub(crate) node_name: Option<String>,
    pub(crate) affinity: Affinity,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) unjudged: Option<Unjudged>,
}

/// A constraint that no filter here judges. Such a pod is never placed blindly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Unjudged {
    field: &'static str,
    plugin: &'static str,
}

impl Demand {
    /// Reads a pod as it stands in the cluster whose nodes are asked. A quantity that cannot be read is refused with the
    /// resource's name.
    pub fn of(pod: &Pod) -> Result<Self, ResourceError> {
        let requests = pod_requests(pod)?;
        let Some(spec) = &pod.spec else { return Ok(Self { requests, ..Self::default() }) };
        Ok(Self {
            requests,
            node_name: spec.node_name.clone().filter(|name| !name.is_empty()),
            affinity: Affinity::of(spec),
            tolerations: spec.tolerations.iter().flatten().map(Toleration::of).collect(),
            ports: HostPort::of_pod(pod),
            unjudged: unjudged(spec),
        })
    }

    /// What it requests, with one of `pods`.
    pub fn requests(&self) -> &Resources {
        &self.requests
    }

    /// Why it fits nowhere, when it has a constraint that is not judged here.
    pub(crate) fn unjudged_reason(&self) -> Option<Reason> {
        let Unjudged { field, plugin } = self.unjudged?;
        Some(Reason { message: format!("this version does not judge {field}, so no room is promised"), plugin })
    }
}

/// The first constraint that only a plugin of kube-scheduler's judges which is not here.
fn unjudged(spec: &PodSpec) -> Option<Unjudged> {
    let affinity = spec.affinity.as_ref();
    let attract = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let repel = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let volumes = || spec.volumes.iter().flatten();
    let claims = || volumes().any(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some());
    let disks = || {
        volumes().any(|volume| {
            volume.gce_persistent_disk.is_some()
                || volume.aws_elastic_block_store.is_some()
                || volume.iscsi.is_some()
                || volume.rbd.is_some()
        })
    };
    let has = |terms: Option<&Vec<_>>| terms.is_some_and(|terms: &Vec<_>| !terms.is_empty());
    let spread =
        spec.topology_spread_constraints.iter().flatten().any(|each| each.when_unsatisfiable == "DoNotSchedule");
    [
        (
            has(attract.and_then(|rules| rules.required_during_scheduling_ignored_during_execution.as_ref())),
            "spec.affinity.podAffinity",
            "InterPodAffinity",
        ),
        (
            has(repel.and_then(|rules| rules.required_during_scheduling_ignored_during_execution.as_ref())),
            "spec.affinity.podAntiAffinity",
            "InterPodAffinity",
        ),
        (spread, "spec.topologySpreadConstraints", "PodTopologySpread"),
        (claims(), "volumes with claims", "VolumeBinding"),
        (disks(), "volumes that a node attaches", "VolumeRestrictions"),
        (
            spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()),
            "spec.resourceClaims",
            "DynamicResources",
        ),
    ]
    .into_iter()
    .find_map(|(found, field, plugin)| found.then_some(Unjudged { field, plugin }))
}
