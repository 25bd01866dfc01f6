//! Containers that do not do well, as the upper cluster sees them.

use serde_json::json;

use crate::{
    pods::{container, is_ready, phase, restarts, runs, terminated, waiting},
    world::{SLEEP, space},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loop_and_its_restart_count_show_above() {
    let Some(space) = space("crash-loop").await else { return };
    space.pod("crashes", "exit 9", json!({})).await;
    let loops = |pod: &_| waiting(pod, "main") == Some("CrashLoopBackOff") && restarts(pod, "main") >= 1;
    let pod = space.until("crashes", "is in a crash loop", loops).await;
    let last = container(&pod, "main").unwrap().last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(last.exit_code, 9);
    assert_eq!(phase(&pod), "Running");
    let message = space.until_event("crashes", "BackOff").await;
    assert!(message.contains("restarting failed container"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_takes_too_much_memory_is_shown_as_oom_killed() {
    let Some(space) = space("out-of-memory").await else { return };
    let mut main = crate::world::container("main", "tail /dev/zero");
    main["resources"] = json!({"limits": {"memory": "32Mi"}});
    space.pod("greedy", "", json!({"containers": [main], "restartPolicy": "Never"})).await;
    let pod = space.until("greedy", "has failed", |pod| phase(pod) == "Failed").await;
    let ended = terminated(&pod, "main").unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (137, Some("OOMKilled")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_liveness_probe_restarts_the_container() {
    let Some(space) = space("liveness").await else { return };
    let mut main = crate::world::container("main", &format!("rm -f /data/ill; {SLEEP}"));
    main["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    main["livenessProbe"] = json!({
        "exec": {"command": ["sh", "-c", "[ ! -e /data/ill ]"]}, "periodSeconds": 1, "failureThreshold": 1,
    });
    space.pod("patient", "", json!({"containers": [main], "volumes": [{"name": "data", "emptyDir": {}}]})).await;
    let pod = space.until("patient", "is ready", is_ready).await;
    assert_eq!(restarts(&pod, "main"), 0);
    space.inside("patient", "touch /data/ill").await;
    space.until("patient", "runs again", |pod| restarts(pod, "main") == 1 && runs(pod, "main")).await;
    let message = space.until_event("patient", "Unhealthy").await;
    assert!(message.contains("Liveness probe failed"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_past_its_deadline_fails_with_that_reason() {
    let Some(space) = space("past-deadline").await else { return };
    space.pod("slow", SLEEP, json!({"activeDeadlineSeconds": 3, "restartPolicy": "Never"})).await;
    let pod = space.until("slow", "has failed", |pod| phase(pod) == "Failed").await;
    assert_eq!(pod.status.unwrap().reason.as_deref(), Some("DeadlineExceeded"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_had_is_told_in_status_and_events() {
    let Some(space) = space("no-image").await else { return };
    let image = |policy: &str| json!({"containers": [{"name": "main", "image": "absent.test/nowhere:1", "imagePullPolicy": policy}]});
    space.pod("never", "", image("Never")).await;
    space.pod("pulls", "", image("IfNotPresent")).await;
    space.until("never", "shows ErrImageNeverPull", |pod| waiting(pod, "main") == Some("ErrImageNeverPull")).await;
    let message = space.until_event("never", "ErrImageNeverPull").await;
    assert!(message.contains("absent.test/nowhere:1") && message.contains("[vn-real]"), "{message}");
    let failing = |pod: &_| matches!(waiting(pod, "main"), Some("ErrImagePull" | "ImagePullBackOff"));
    let pod = space.until("pulls", "shows that its image cannot be pulled", failing).await;
    assert_eq!(phase(&pod), "Pending");
    let message = space.until_event("pulls", "Failed").await;
    assert!(message.contains("absent.test/nowhere:1"), "{message}");
}
