//! The upper status, kept small.
//!
//! To write only what differs the engine must know the upper status, for thousands of pods at once. A decoded
//! `PodStatus` is thousands of bytes in hundreds of allocations; the JSON of the fields that are mirrored is one.

use k8s_openapi::api::core::v1::PodStatus;
use serde::Serialize;

/// The mirrored part of an upper pod's status, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompactStatus(Box<[u8]>);

impl CompactStatus {
    /// Packs what [`status_up`](super::status_up) reads.
    pub fn of(status: &PodStatus) -> Self {
        let mirrored = Mirrored {
            phase: &status.phase,
            reason: &status.reason,
            message: &status.message,
            start_time: &status.start_time,
            resize: &status.resize,
            resources: &status.resources,
            allocated_resources: &status.allocated_resources,
            init_container_statuses: &status.init_container_statuses,
            container_statuses: &status.container_statuses,
            ephemeral_container_statuses: &status.ephemeral_container_statuses,
            pod_ip: &status.pod_ip,
            pod_ips: &status.pod_ips,
            host_ip: &status.host_ip,
            host_ips: &status.host_ips,
            observed_generation: &status.observed_generation,
            conditions: &status.conditions,
        };
        // API types always serialise; were it to fail, an empty status only makes the next patch whole.
        Self(serde_json::to_vec(&mirrored).unwrap_or_default().into_boxed_slice())
    }

    /// Unpacks it; fields that are not mirrored are absent.
    pub fn status(&self) -> PodStatus {
        serde_json::from_slice(&self.0).unwrap_or_default()
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was ever packed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

macro_rules! mirrored {
    ($($field:ident as $name:literal : $type:ty),* $(,)?) => {
        #[derive(Serialize)]
        struct Mirrored<'a> {
            $(#[serde(rename = $name, skip_serializing_if = "Option::is_none")] $field: &'a Option<$type>),*
        }
    };
}

type Statuses = Vec<k8s_openapi::api::core::v1::ContainerStatus>;

mirrored! {
    phase as "phase": String,
    reason as "reason": String,
    message as "message": String,
    start_time as "startTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
    resize as "resize": String,
    resources as "resources": k8s_openapi::api::core::v1::ResourceRequirements,
    allocated_resources as "allocatedResources":
        std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
    init_container_statuses as "initContainerStatuses": Statuses,
    container_statuses as "containerStatuses": Statuses,
    ephemeral_container_statuses as "ephemeralContainerStatuses": Statuses,
    pod_ip as "podIP": String,
    pod_ips as "podIPs": Vec<k8s_openapi::api::core::v1::PodIP>,
    host_ip as "hostIP": String,
    host_ips as "hostIPs": Vec<k8s_openapi::api::core::v1::HostIP>,
    observed_generation as "observedGeneration": i64,
    conditions as "conditions": Vec<k8s_openapi::api::core::v1::PodCondition>,
}
