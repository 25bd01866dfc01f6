//! Questions about a pod's status.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition};
use kube::ResourceExt;

/// Its phase; empty without one.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Its condition of this type.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// Whether its condition of this type says True.
pub fn is_true(pod: &Pod, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|condition| condition.status == "True")
}

/// Whether it is Ready.
pub fn is_ready(pod: &Pod) -> bool {
    is_true(pod, "Ready")
}

/// The status of a container or init container.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|container| container.name == name)
}

/// How a container ended, if it has.
pub fn terminated<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStateTerminated> {
    container(pod, name)?.state.as_ref()?.terminated.as_ref()
}

/// Why a container waits, if it does.
pub fn waiting<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    container(pod, name)?.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

/// Whether a container runs.
pub fn runs(pod: &Pod, name: &str) -> bool {
    container(pod, name).and_then(|container| container.state.as_ref()).is_some_and(|state| state.running.is_some())
}

/// How often a container was started again.
pub fn restarts(pod: &Pod, name: &str) -> i32 {
    container(pod, name).map_or(0, |container| container.restart_count)
}

/// A pod in some lines, for the message of a failed wait.
pub fn describe(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let conditions: Vec<String> = status
        .conditions
        .iter()
        .flatten()
        .map(|c| format!("{}={} {:?} {:?}", c.type_, c.status, c.reason, c.message))
        .collect();
    let containers: Vec<String> = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten()
        .map(|c| format!("{} restarts {} state {:?} last {:?}", c.name, c.restart_count, c.state, c.last_state))
        .collect();
    format!(
        "{} on {:?} phase {} reason {:?} deleting {:?} finalizers {:?}\n  {}\n  {}",
        pod.name_any(),
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()),
        phase(pod),
        status.reason,
        pod.metadata.deletion_timestamp.as_ref().map(|at| at.0.to_string()),
        pod.metadata.finalizers,
        conditions.join("; "),
        containers.join("\n  "),
    )
}
