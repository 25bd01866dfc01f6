#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::needless_pass_by_value)]

use super::*;
use crate::translate::{carried::is_carried, carried_digest, generate::settings, pod_down, strategic::patched};

const CARRIED: &str = annotation::CARRIED;
const GENERATION: &str = annotation::GENERATION;

fn upper() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "team", "uid": "u1", "generation": 1,
            "labels": {"app": "web", "old": "1"}, "annotations": {"note": "a"}},
        "spec": {
            "containers": [
                {"name": "main", "image": "i:1", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}},
                {"name": "side", "image": "s:1"}],
            "readinessGates": [{"conditionType": "example.com/gate"}],
            "tolerations": [{"key": "a", "operator": "Exists"}]}
    }))
    .unwrap()
}

/// The twin as the lower API server shows it after creation.
fn twin(upper: &Pod) -> Pod {
    let settings = settings();
    let mut lower = pod_down(upper, &Context::new(&settings)).unwrap();
    lower.metadata.generation = Some(1);
    lower
}

fn update(upper: &Pod, lower: &Pod) -> Update {
    let settings = settings();
    pod_update(upper, lower, &Context::new(&settings)).unwrap()
}

fn spec(pod: &mut Pod) -> &mut PodSpec {
    pod.spec.as_mut().unwrap()
}

#[test]
fn nothing_changed_nothing_sent() {
    let upper = upper();
    assert!(update(&upper, &twin(&upper)).is_empty());
}

#[test]
fn a_new_image_is_sent_by_name_and_the_generation_follows() {
    let mut upper = upper();
    let lower = twin(&upper);
    spec(&mut upper).containers[1].image = Some("s:2".into());
    upper.metadata.generation = Some(2);
    let first = update(&upper, &lower);
    assert_eq!(
        first.patch,
        Some(json!({"metadata": {"annotations": {CARRIED: carried_digest(&upper)}},
                    "spec": {"containers": [{"name": "side", "image": "s:2"}]}}))
    );
    assert_eq!((&first.resize, &first.ephemeral, &first.status, first.claim(&[])), (&None, &None, &None, None));

    let mut lower = patched(&lower, &first.patch.unwrap());
    lower.metadata.generation = Some(2);
    assert!(!is_carried(&upper, &lower));
    let second = update(&upper, &lower);
    assert_eq!(second.patch, Some(json!({"metadata": {"annotations": {GENERATION: "2/2"}}})));
    assert!(is_carried(&upper, &patched(&lower, &second.patch.unwrap())));
}

#[test]
fn labels_are_set_and_removed_but_never_those_of_others() {
    let mut upper = upper();
    let mut lower = twin(&upper);
    lower.metadata.labels.as_mut().unwrap().insert("injected".into(), "x".into());
    upper.metadata.labels = Some([("app".into(), "web2".into()), ("new".into(), "1".into())].into());
    assert_eq!(
        update(&upper, &lower).patch,
        Some(json!({"metadata": {"labels": {"app": "web2", "new": "1", "old": null},
                    "annotations": {CARRIED: carried_digest(&upper)}}}))
    );
}

#[test]
fn what_lower_admission_changed_is_left_alone() {
    let mut upper = upper();
    let mut lower = twin(&upper);
    spec(&mut lower).containers[0].image = Some("mirror/i:1".into());
    spec(&mut lower).containers[0].resources = None;
    assert!(update(&upper, &lower).is_empty());
    upper.metadata.annotations = Some([("note".into(), "b".into())].into());
    assert_eq!(
        update(&upper, &lower).patch,
        Some(json!({"metadata": {"annotations": {"note": "b", CARRIED: carried_digest(&upper)}}}))
    );
}

#[test]
fn a_resize_travels_apart_and_is_recorded_when_accepted() {
    let mut upper = upper();
    let lower = twin(&upper);
    let requests = spec(&mut upper).containers[0].resources.as_mut().unwrap().requests.as_mut().unwrap();
    requests.insert("cpu".into(), Quantity("200m".into()));
    let update = update(&upper, &lower);
    assert_eq!(update.patch, None);
    assert_eq!(
        update.resize,
        Some(json!({"spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": "200m"}}}]}}))
    );
    assert_eq!(update.claim(&[]), None, "a refused resize is not recorded");
    let lower =
        patched(&patched(&lower, &update.resize.clone().unwrap()), &update.claim(&[Subresource::Resize]).unwrap());
    assert!(is_carried(&upper, &lower));
}

#[test]
fn ephemeral_containers_are_added_with_the_same_environment() {
    let mut upper = upper();
    let lower = twin(&upper);
    let debug = json!([{"name": "debug", "image": "d", "targetContainerName": "main", "env": [
        {"name": "NS", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}]}]);
    spec(&mut upper).ephemeral_containers = serde_json::from_value(debug).unwrap();
    let update = update(&upper, &lower);
    let env = &update.ephemeral.as_ref().unwrap()["spec"]["ephemeralContainers"][0]["env"];
    assert_eq!(env[0], json!({"name": "KUBERNETES_SERVICE_HOST", "value": "203.0.113.7"}));
    assert_eq!(env[8]["valueFrom"]["fieldRef"]["fieldPath"], "metadata.annotations['tensile.dev/upper-namespace']");
    let lower = patched(&lower, update.ephemeral.as_ref().unwrap());
    let lower = patched(&lower, &update.claim(&[Subresource::Ephemeral]).unwrap());
    assert!(is_carried(&upper, &lower));
}

#[test]
fn gate_conditions_go_down_and_away() {
    let mut upper = upper();
    let mut lower = twin(&upper);
    let conditions = json!({"conditions": [
        {"type": "example.com/gate", "status": "True", "reason": "Attached", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        {"type": "example.com/other", "status": "True"}]});
    upper.status = serde_json::from_value(conditions).unwrap();
    assert!(!is_carried(&upper, &lower));
    let first = update(&upper, &lower);
    assert_eq!(
        first.status,
        Some(json!({"status": {"conditions": [{"type": "example.com/gate", "status": "True", "reason": "Attached",
            "message": null, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
    );
    lower = patched(&lower, first.status.as_ref().unwrap());
    lower = patched(&lower, &first.claim(&[Subresource::Status]).unwrap());
    assert!(is_carried(&upper, &lower));

    upper.status = None;
    let second = update(&upper, &lower);
    assert_eq!(
        second.status,
        Some(json!({"status": {"conditions": [{"$patch": "delete", "type": "example.com/gate"}]}}))
    );
}

#[test]
fn tolerations_are_only_added_and_their_seconds_changed() {
    let list = |value: Value| -> Vec<Toleration> { serde_json::from_value(value).unwrap() };
    let have = list(json!([{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                           {"key": "injected", "operator": "Exists"}]));
    let want = list(json!([{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
                           {"key": "virtual-kubelet.io/provider", "operator": "Exists"},
                           {"key": "b", "operator": "Exists"}]));
    assert_eq!(
        json!(merged_tolerations(&want, &have)),
        json!([{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
               {"key": "injected", "operator": "Exists"}, {"key": "b", "operator": "Exists"}])
    );
}

#[test]
fn another_format_of_the_bookkeeping_sends_everything_once_and_removes_nothing() {
    let upper = upper();
    let mut lower = twin(&upper);
    lower.metadata.annotations.as_mut().unwrap().insert(CARRIED.into(), "0;unknown".into());
    lower.metadata.labels.as_mut().unwrap().insert("injected".into(), "x".into());
    let update = update(&upper, &lower);
    assert_eq!(update.patch, Some(json!({"metadata": {"annotations": {CARRIED: carried_digest(&upper)}}})));
}
