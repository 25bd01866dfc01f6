#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::needless_pass_by_value)]

use serde_json::json;

use super::*;
use crate::translate::generate::settings;

fn now() -> Time {
    serde_json::from_value(json!("2026-01-01T01:00:00Z")).unwrap()
}

fn ended(spec: Value, last: Option<Value>, cause: Option<&Cause>) -> Value {
    let upper: Pod = serde_json::from_value(json!({
        "metadata": {"name": "a"}, "spec": spec, "status": {"phase": "Running"}
    }))
    .unwrap();
    let lower: Option<Pod> = last.map(|status| serde_json::from_value(json!({ "status": status })).unwrap());
    terminal_status(&upper, lower.as_ref(), cause, &now(), &Context::new(&settings())).unwrap()
}

fn one_container() -> Value {
    json!({"containers": [{"name": "main"}], "restartPolicy": "Always"})
}

fn container(name: &str, state: Value) -> Value {
    json!({"name": name, "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": state})
}

fn exited(code: i32) -> Value {
    json!({"terminated": {"exitCode": code}})
}

fn running() -> Value {
    json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
}

#[test]
fn a_running_container_is_declared_dead_with_137() {
    let status = ended(
        one_container(),
        Some(json!({"phase": "Running", "containerStatuses": [container("main", running())],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]})),
        None,
    );
    assert_eq!(status["phase"], "Failed");
    let main = &status["containerStatuses"][0];
    assert_eq!((&main["ready"], &main["started"]), (&json!(false), &json!(false)));
    assert_eq!(
        main["state"],
        json!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown",
            "message": "The container could not be located when the pod was terminated",
            "startedAt": "2026-01-01T00:00:00Z"}})
    );
    assert_eq!(
        status["conditions"],
        json!([{"type": "Ready", "status": "False", "reason": "PodFailed", "lastTransitionTime": "2026-01-01T01:00:00Z"},
               {"type": "ContainersReady", "status": "False", "reason": "PodFailed",
                "lastTransitionTime": "2026-01-01T01:00:00Z"}])
    );
}

#[test]
fn exit_codes_tell_success() {
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}],
        "initContainers": [{"name": "proxy", "restartPolicy": "Always"}]});
    let last = |b: Value| {
        json!({"phase": "Running", "initContainerStatuses": [container("proxy", running())],
            "containerStatuses": [container("a", exited(0)), container("b", b)]})
    };
    assert_eq!(ended(two.clone(), Some(last(exited(0))), None)["phase"], "Succeeded");
    assert_eq!(ended(two.clone(), Some(last(exited(3))), None)["phase"], "Failed");
    assert_eq!(ended(two, Some(last(running())), None)["phase"], "Failed");
}

#[test]
fn a_terminal_status_below_is_taken_as_it_is() {
    let last = json!({"phase": "Succeeded", "containerStatuses": [container("main", exited(0))]});
    let status = ended(one_container(), Some(last.clone()), None);
    assert_eq!(status, last);
}

#[test]
fn a_cause_makes_it_failed_with_that_reason() {
    let cause = Cause { reason: "Evicted".into(), message: "the node was low on memory".into() };
    let last = json!({"phase": "Running", "containerStatuses": [container("main", exited(0))]});
    let status = ended(one_container(), Some(last), Some(&cause));
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("Evicted")));
    assert_eq!(status["message"], "the node was low on memory");
}

#[test]
fn a_pod_that_was_never_seen_below_fails() {
    assert_eq!(ended(one_container(), None, None)["phase"], "Failed");
}

#[test]
fn containers_that_never_ran_stay_waiting() {
    let spec = json!({"containers": [{"name": "main"}], "initContainers": [{"name": "one"}, {"name": "two"}]});
    let waiting = || json!({"waiting": {"reason": "PodInitializing"}});
    let last = json!({"phase": "Pending",
        "initContainerStatuses": [container("one", running()), container("two", waiting())],
        "containerStatuses": [container("main", waiting())]});
    let status = ended(spec, Some(last), None);
    assert_eq!(status["phase"], "Failed");
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    assert_eq!(status["initContainerStatuses"][1]["state"], waiting());
    assert_eq!(status["containerStatuses"][0]["state"], waiting());
}

#[test]
fn an_ended_pod_is_left_alone() {
    let upper: Pod = serde_json::from_value(json!({"metadata": {}, "status": {"phase": "Succeeded"}})).unwrap();
    let settings = settings();
    assert_eq!(terminal_status(&upper, None, None, &now(), &Context::new(&settings)), None);
}
