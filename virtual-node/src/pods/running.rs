//! Which containers of a pod run. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

/// Name and start of each running container, of all kinds: a kubelet tells what init and ephemeral ones use, too.
pub fn containers(status: &PodStatus) -> Vec<(String, Timestamp)> {
    [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|container| {
            let running = container.state.as_ref()?.running.as_ref()?;
            Some((container.name.clone(), running.started_at.as_ref()?.0))
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_all_kinds_count_while_they_run() {
        let running = |name: &str, second: u8| {
            serde_json::json!({"name": name, "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": format!("2026-11-24T11:00:0{second}Z")}}})
        };
        let ended = serde_json::json!({"name": "setup", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "startedAt": "2026-11-24T11:00:00Z"}}});
        let status: PodStatus = serde_json::from_value(serde_json::json!({
            "initContainerStatuses": [ended, running("sidecar", 1)],
            "containerStatuses": [running("main", 2)],
            "ephemeralContainerStatuses": [running("debugger", 3)],
        }))
        .unwrap();
        let found = containers(&status);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["sidecar", "main", "debugger"]);
        assert_eq!(found[1].1.to_string(), "2026-11-24T11:00:02Z");
    }
}
