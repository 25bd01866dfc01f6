//! Each case is a pod in JSON and what kube-scheduler counts for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};

use super::*;

#[allow(clippy::needless_pass_by_value)] // literals at every call
fn requests(spec: Value, status: Value) -> Resources {
    let pod: Pod = serde_json::from_value(json!({"spec": spec, "status": status})).unwrap();
    pod_requests(&pod).unwrap()
}

fn container(name: &str, cpu: &str) -> Value {
    json!({"name": name, "resources": {"requests": {"cpu": cpu}}})
}

fn sidecar(name: &str, cpu: &str) -> Value {
    json!({"name": name, "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}})
}

#[test]
fn a_pod_without_requests_still_takes_one_pod() {
    let requests = requests(json!({"containers": [{"name": "a"}]}), Value::Null);
    assert_eq!(requests, [("pods", 1)].into_iter().collect());
}

#[test]
fn containers_add_up_exactly_and_are_rounded_once() {
    let requests = requests(json!({"containers": [container("a", "1500u"), container("b", "1500u")]}), Value::Null);
    assert_eq!(requests.cpu_millis(), 3);
}

#[test]
fn init_containers_count_by_their_largest() {
    let spec =
        json!({"initContainers": [container("i", "3"), container("j", "2")], "containers": [container("a", "1")]});
    assert_eq!(requests(spec, Value::Null).cpu_millis(), 3_000);
}

#[test]
fn sidecars_run_beside_what_starts_after_them() {
    let spec = json!({
        "initContainers": [container("early", "4"), sidecar("s", "1"), container("late", "3500m")],
        "containers": [container("a", "2")],
    });
    assert_eq!(requests(spec, Value::Null).cpu_millis(), 4_500, "late + s is the most");
    let spec = json!({
        "initContainers": [sidecar("s", "1"), sidecar("t", "1")],
        "containers": [container("a", "2")],
    });
    assert_eq!(requests(spec, Value::Null).cpu_millis(), 4_000);
}

#[test]
fn pod_level_requests_replace_the_sum_and_overhead_comes_on_top() {
    let spec = json!({
        "resources": {"requests": {"cpu": "5", "ephemeral-storage": "9"}},
        "overhead": {"cpu": "250m", "memory": "1Mi"},
        "containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}],
    });
    let requests = requests(spec, Value::Null);
    assert_eq!(requests.cpu_millis(), 5_250);
    assert_eq!(requests.memory_bytes(), (1 << 30) + (1 << 20));
    assert_eq!(requests.ephemeral_storage_bytes(), 0, "not a pod-level resource");
}

#[test]
fn a_resize_in_progress_holds_the_most_of_wanted_allotted_and_in_force() {
    let status = json!({"containerStatuses": [{
        "name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "resources": {"requests": {"cpu": "2"}}, "allocatedResources": {"cpu": "3"},
    }]});
    assert_eq!(requests(json!({"containers": [container("a", "1")]}), status.clone()).cpu_millis(), 3_000);
    assert_eq!(requests(json!({"containers": [container("a", "4")]}), status).cpu_millis(), 4_000);
}

#[test]
fn a_resize_that_is_infeasible_does_not_count_what_is_wanted() {
    let status = json!({
        "conditions": [{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}],
        "containerStatuses": [{
            "name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "resources": {"requests": {"cpu": "2"}}, "allocatedResources": {"cpu": "1"},
        }],
    });
    assert_eq!(requests(json!({"containers": [container("a", "400")]}), status).cpu_millis(), 2_000);
}

#[test]
fn a_resize_of_the_whole_pod_counts_likewise() {
    let spec = json!({"resources": {"requests": {"cpu": "1"}}, "containers": [{"name": "a"}]});
    let status = json!({"resources": {"requests": {"cpu": "2"}}, "allocatedResources": {"cpu": "3"}});
    assert_eq!(requests(spec.clone(), status).cpu_millis(), 3_000);
    let allotted_only = json!({"allocatedResources": {"cpu": "3"}});
    assert_eq!(requests(spec, allotted_only).cpu_millis(), 1_000, "kube-scheduler looks at it only beside `resources`");
}

#[test]
fn a_status_of_an_ordinary_init_container_does_not_count() {
    let spec = json!({"initContainers": [container("i", "1")], "containers": [{"name": "a"}]});
    let status = json!({"initContainerStatuses": [{
        "name": "i", "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "resources": {"requests": {"cpu": "7"}},
    }]});
    assert_eq!(requests(spec, status).cpu_millis(), 1_000);
}

#[test]
fn extended_resources_and_huge_pages_count() {
    let spec = json!({"containers": [{"name": "a", "resources": {"requests": {"nvidia.com/gpu": "2", "hugepages-2Mi": "4Mi"}}}]});
    let requests = requests(spec, Value::Null);
    assert_eq!(requests.get("nvidia.com/gpu"), 2);
    assert_eq!(requests.get("hugepages-2Mi"), 4 << 20);
}
