//! How containers begin and end: hooks, restart policies, deadlines, and what they leave behind.

use serde_json::{Value, json};

use crate::{
    pods::{container, describe, is_ready, phase, restarts, terminated},
    world::{SLEEP, space},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_post_start_hook_runs_beside_the_container_and_its_failure_is_told() {
    let Some(space) = space("post-start").await else { return };
    let hooked = |script: &str, hook: &str| {
        let mut main = crate::world::container("main", script);
        main["lifecycle"] = json!({"postStart": {"exec": {"command": ["sh", "-c", hook]}}});
        json!({"containers": [main]})
    };
    space.pod("greeted", "", hooked(SLEEP, "echo hello >/tmp/hook")).await;
    space.pod("unlucky", "", hooked(SLEEP, "echo no such luck; exit 5")).await;
    space.until("greeted", "is ready", is_ready).await;
    assert_eq!(space.inside("greeted", "cat /tmp/hook").await, "hello\n");
    let message = space.until_event("unlucky", "FailedPostStartHook").await;
    assert!(message.contains("PostStartHook failed"), "{message}");
    space.until("unlucky", "was started again", |pod| restarts(pod, "main") > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_policies_of_the_pod_and_of_its_containers_decide_what_runs_again() {
    let Some(space) = space("restarts").await else { return };
    // Fails the first time with this code, and then ends well.
    let twice = |code: u8| {
        let script = format!("[ -e /data/again ] && exit 0; touch /data/again; exit {code}");
        let mut main = crate::world::container("main", &script);
        main["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        main
    };
    let spec = |policy: &str, main: Value| json!({"restartPolicy": policy, "containers": [main], "volumes": [{"name": "data", "emptyDir": {}}]});
    // KEP-5307: exit code 42 asks for a restart, all others are final.
    let ruled = |code| {
        let mut main = twice(code);
        main["restartPolicy"] = "Never".into();
        main["restartPolicyRules"] = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        main
    };
    space.pod("on-failure", "", spec("OnFailure", twice(7))).await;
    space.pod("never", "", spec("Never", twice(7))).await;
    space.pod("by-rule", "", spec("Never", ruled(42))).await;
    space.pod("by-no-rule", "", spec("Never", ruled(43))).await;
    for (name, wanted, times, code) in [
        ("on-failure", "Succeeded", 1, 0),
        ("never", "Failed", 0, 7),
        ("by-rule", "Succeeded", 1, 0),
        ("by-no-rule", "Failed", 0, 43),
    ] {
        let pod = space.until(name, &format!("has {wanted}"), |pod| phase(pod) == wanted).await;
        assert_eq!(restarts(&pod, "main"), times, "{}", describe(&pod));
        assert_eq!(terminated(&pod, "main").map(|ended| ended.exit_code), Some(code), "{}", describe(&pod));
        let last = container(&pod, "main").unwrap().last_state.clone().and_then(|state| state.terminated);
        assert_eq!(last.is_some(), times > 0, "{}", describe(&pod));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_fails_when_its_deadline_is_over() {
    let Some(space) = space("deadline").await else { return };
    space.pod("late", SLEEP, json!({"activeDeadlineSeconds": 3, "restartPolicy": "Never"})).await;
    let pod = space.until("late", "has failed", |pod| phase(pod) == "Failed").await;
    let status = pod.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    assert!(status.message.unwrap().contains("longer than the specified deadline"));
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_leave_a_message_at_their_own_path_or_in_the_log() {
    let Some(space) = space("messages").await else { return };
    let mut own = crate::world::container("own", "echo -n from the file >/tmp/last-words; echo from the log; exit 1");
    own["terminationMessagePath"] = "/tmp/last-words".into();
    let mut log = crate::world::container("log", "echo from the log; exit 2");
    log["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    let mut well = crate::world::container("well", "echo from the log");
    well["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    space.pod("spoken", "", json!({"containers": [own, log, well], "restartPolicy": "Never"})).await;
    let pod = space.until("spoken", "has failed", |pod| phase(pod) == "Failed").await;
    let left = ["own", "log", "well"].map(|name| {
        let ended = terminated(&pod, name).unwrap();
        (ended.exit_code, ended.message.as_deref())
    });
    assert_eq!(left, [(1, Some("from the file")), (2, Some("from the log\n")), (0, None)], "{}", describe(&pod));
}
