//! The last status of a pod whose lower twin is proven gone.
//!
//! A kubelet that finds a pod's containers gone reports them terminated with exit code 137 and ends the pod
//! (`K pkg/kubelet/status/status_manager.go` TerminatePod); whether it succeeded is told by the exit codes that were
//! seen (`K pkg/kubelet/kubelet_pods.go` getPhase of a terminal pod). Ours are gone with their cluster's pod.

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodSpec, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::Value;

use super::{
    Context, carried,
    status::{difference, is_terminal},
};

/// The kubelet's exit code of a container whose end it did not see.
const EXIT_CODE_UNKNOWN: i32 = 137;
/// The kubelet's reason for it (`ContainerReasonStatusUnknown`).
const REASON_UNKNOWN: &str = "ContainerStatusUnknown";

/// Why the lower pod went, where it did not go because the upper pod was deleted: evicted, preempted, lost with its
/// node. It makes the pod Failed with this reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `status.reason`, CamelCase.
    pub reason: String,
    /// `status.message`.
    pub message: String,
}

/// The `status` of a strategic merge patch that ends an upper pod; `None` when it is already written.
///
/// `last_lower` is the lower pod as it was last seen, `None` if it never was; `now` is the time of conditions that turn
/// False by this. Call it only when the lower pod is proven gone: it declares containers dead.
pub fn terminal_status(
    upper: &Pod,
    last_lower: Option<&Pod>,
    cause: Option<&Cause>,
    now: &Time,
    ctx: &Context<'_>,
) -> Option<Value> {
    let empty = PodStatus::default();
    let above = upper.status.as_ref().unwrap_or(&empty);
    if is_terminal(above.phase.as_deref()) {
        return None;
    }
    let spec = upper.spec.clone().unwrap_or_default();
    let mut last = last_lower.and_then(|lower| lower.status.clone()).unwrap_or_else(|| above.clone());
    let generations = match last_lower {
        Some(lower) => carried::read_generations(lower).unwrap_or((0, i64::MAX)),
        None => (0, i64::MAX),
    };
    if !is_terminal(last.phase.as_deref()) {
        end(&mut last, &spec, cause, now);
    } else if let Some(cause) = cause
        && spec.restart_policy.as_deref().is_none_or(|policy| policy == "Always")
    {
        // Its containers ended well when they were told to. For a pod that should run for ever that is no success.
        last.phase = Some("Failed".to_owned());
        last.reason = Some(cause.reason.clone());
        last.message = Some(cause.message.clone());
    }
    difference(above, &last, generations, ctx.settings.node_address)
}

fn end(status: &mut PodStatus, spec: &PodSpec, cause: Option<&Cause>, now: &Time) {
    let succeeded = cause.is_none() && has_succeeded(status, spec);
    if has_initialized(status, spec) {
        for container in status.container_statuses.iter_mut().flatten() {
            mark_unknown(container);
        }
    }
    let started = started_init_containers(status.init_container_statuses.as_deref().unwrap_or_default());
    for container in status.init_container_statuses.iter_mut().flatten().take(started) {
        mark_unknown(container);
    }
    for container in status.ephemeral_container_statuses.iter_mut().flatten() {
        if container.state.as_ref().is_some_and(|state| state.running.is_some()) {
            mark_unknown(container);
        }
    }
    let (phase, why) = if succeeded { ("Succeeded", "PodCompleted") } else { ("Failed", "PodFailed") };
    status.phase = Some(phase.to_owned());
    if let Some(cause) = cause {
        status.reason = Some(cause.reason.clone());
        status.message = Some(cause.message.clone());
    }
    for type_ in ["ContainersReady", "Ready"] {
        not_ready(status.conditions.get_or_insert_default(), type_, why, now);
    }
}

/// Every container of the pod was seen to end with code 0. Sidecars do not count: they end with the pod.
fn has_succeeded(status: &PodStatus, spec: &PodSpec) -> bool {
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    !spec.containers.is_empty()
        && spec.containers.iter().all(|container| {
            statuses.iter().find(|each| each.name == container.name).and_then(terminated).is_some_and(exited_well)
        })
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn last_terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref()?.terminated.as_ref()
}

fn exited_well(end: &ContainerStateTerminated) -> bool {
    end.exit_code == 0
}

fn is_waiting(status: &ContainerStatus) -> bool {
    // No state at all is the default, waiting (`ContainerState` in the API's docs).
    status.state.as_ref().is_none_or(|state| state.running.is_none() && state.terminated.is_none())
}

/// Whether regular containers may have run (`hasPodInitialized`).
fn has_initialized(status: &PodStatus, spec: &PodSpec) -> bool {
    let Some(last_init) = spec.init_containers.as_ref().and_then(|list| list.last()) else { return true };
    let regular = status.container_statuses.iter().flatten();
    if regular.into_iter().any(|each| last_terminated(each).is_some() || !is_waiting(each)) {
        return true;
    }
    let Some(status) = status.init_container_statuses.iter().flatten().find(|each| each.name == last_init.name) else {
        return false;
    };
    if is_sidecar(last_init) {
        status.started == Some(true) && status.state.as_ref().is_some_and(|state| state.running.is_some())
    } else {
        last_terminated(status).is_some_and(exited_well) || terminated(status).is_some_and(exited_well)
    }
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// How many init containers, from the first, show evidence of a start; at least one (`initializedContainers`).
fn started_init_containers(statuses: &[ContainerStatus]) -> usize {
    let last = statuses.iter().rposition(|each| !is_waiting(each) || last_terminated(each).is_some());
    last.map_or(1, |at| at + 1)
}

fn mark_unknown(status: &mut ContainerStatus) {
    if terminated(status).is_some() {
        return;
    }
    let started_at =
        status.state.as_ref().and_then(|state| state.running.as_ref()).and_then(|running| running.started_at.clone());
    status.ready = false;
    status.started = Some(false);
    status.state = Some(ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: EXIT_CODE_UNKNOWN,
            reason: Some(REASON_UNKNOWN.to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            container_id: status.container_id.clone(),
            started_at,
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    });
}

fn not_ready(conditions: &mut Vec<PodCondition>, type_: &str, reason: &str, now: &Time) {
    let at = conditions.iter().position(|condition| condition.type_ == type_);
    let condition = match at {
        Some(at) => &mut conditions[at],
        None => conditions.push_mut(PodCondition { type_: type_.to_owned(), ..PodCondition::default() }),
    };
    if condition.status != "False" {
        "False".clone_into(&mut condition.status);
        condition.last_transition_time = Some(now.clone());
    }
    condition.reason = Some(reason.to_owned());
    condition.message = None;
}

#[cfg(test)]
#[path = "terminal_tests.rs"]
mod tests;
