//! What the lower cluster, or we, refuse: an event and a condition say what, where and how to mend it.

use k8s_openapi::api::core::v1::{LimitRange, Pod, ResourceQuota};
use k8s_openapi::api::{apps::v1::DaemonSet, node::v1::RuntimeClass, scheduling::v1::PriorityClass};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

use crate::world::{condition, is_ready, phase, world};

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_priority_class_is_named_and_the_pod_goes_on_when_it_is_made() {
    let world = world().await;
    let space = world.namespace("priority").await;
    let class: PriorityClass =
        serde_json::from_value(json!({"metadata": {"name": "tensile-test-high"}, "value": 1000})).unwrap();
    // Kept clusters may hold both classes from an earlier run.
    for cluster in [&world.upper, &world.a] {
        let _ = Api::<PriorityClass>::all(cluster.client()).delete("tensile-test-high", &DeleteParams::default()).await;
    }
    Api::all(world.upper.client()).create(&PostParams::default(), &class).await.unwrap();
    let change = json!({"priorityClassName": "tensile-test-high", "nodeSelector": {"tensile.dev/cluster": "vn-a"}});
    space.pod("important", change).await;
    let message = space.until_event("important", "PriorityClassNotFound").await;
    assert!(message.contains("tensile-test-high") && message.contains("create a PriorityClass"), "{message}");
    let waiting = space.upper_pods().get("important").await.unwrap();
    assert_eq!(condition(&waiting, "tensile.dev/Offloaded").unwrap().reason.as_deref(), Some("PriorityClassNotFound"));

    // The lower class has another value: the name counts, the number is the lower cluster's.
    let lower: PriorityClass =
        serde_json::from_value(json!({"metadata": {"name": "tensile-test-high"}, "value": 7})).unwrap();
    Api::all(world.a.client()).create(&PostParams::default(), &lower).await.unwrap();
    space.until("important", "is ready", is_ready).await;
    let below: Pod = space.lower(&world.a).get("important").await.unwrap();
    assert_eq!(below.spec.unwrap().priority, Some(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_runtime_class_is_named_and_the_pod_goes_on_when_it_is_made() {
    const CLASS: &str = "tensile-test-sandbox";
    let world = world().await;
    let space = world.namespace("runtime").await;
    let class: RuntimeClass =
        serde_json::from_value(json!({"metadata": {"name": CLASS}, "handler": "sandbox"})).unwrap();
    for cluster in [&world.upper, &world.a] {
        let _ = Api::<RuntimeClass>::all(cluster.client()).delete(CLASS, &DeleteParams::default()).await;
    }
    Api::all(world.upper.client()).create(&PostParams::default(), &class).await.unwrap();
    let change = json!({"runtimeClassName": CLASS, "nodeSelector": {"tensile.dev/cluster": "vn-a"}});
    space.pod("sandboxed", change).await;
    let message = space.until_event("sandboxed", "RuntimeClassNotFound").await;
    assert!(message.contains(CLASS) && message.contains("create a RuntimeClass"), "{message}");
    let waiting = space.upper_pods().get("sandboxed").await.unwrap();
    assert_eq!(condition(&waiting, "tensile.dev/Offloaded").unwrap().reason.as_deref(), Some("RuntimeClassNotFound"));
    Api::all(world.a.client()).create(&PostParams::default(), &class).await.unwrap();
    space.until("sandboxed", "is ready", is_ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemonsets_pods_stay_off_the_lower_clusters() {
    let world = world().await;
    let space = world.namespace("daemons").await;
    let daemon_set = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: NAME, namespace: NAMESPACE}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      tolerations: TOLERATIONS
      containers: [{name: main, image: 'example.test/agent:1'}]
";
    let made = |name: &str, tolerations: &str| {
        daemon_set.replace("TOLERATIONS", tolerations).replace("NAMESPACE", &space.name).replace("NAME", name)
    };
    // One of machines, and one of everything, as log collectors are.
    space.apply(&made("machines", "[]")).await;
    space.apply(&made("everywhere", "[{operator: Exists}]")).await;
    let of = |app: &str| ListParams::default().labels(&format!("app={app}"));
    let pods = tensile_e2e::eventually(
        "both virtual nodes have a pod of the one that tolerates all",
        crate::world::SOON,
        || async {
            let pods = space.upper_pods().list(&of("everywhere")).await?.items;
            let bound =
                pods.iter().filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())).count();
            Ok(if bound == 2 { tensile_e2e::Seen::Done(pods) } else { tensile_e2e::Seen::NotYet(format!("{bound}")) })
        },
    )
    .await
    .unwrap();
    for pod in &pods {
        let message = space.until_event(&pod.name_any(), "NotTaken").await;
        assert!(message.contains("type NotIn virtual-kubelet"), "{message}");
    }
    assert!(space.upper_pods().list(&of("machines")).await.unwrap().items.is_empty());
    assert!(space.lower_pods().await.is_empty());
    // Its deletion hangs on none of them.
    space.upper::<DaemonSet>().delete("everywhere", &DeleteParams::default()).await.unwrap();
    tensile_e2e::eventually("its pods are gone", crate::world::SOON, || async {
        let left = space.upper_pods().list(&of("everywhere")).await?.items.len();
        Ok(tensile_e2e::Seen::when(left == 0, left))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_below_is_told_and_waited_for() {
    let world = world().await;
    let space = world.namespace("quota").await;
    space.pod("first", json!({"nodeSelector": {"tensile.dev/cluster": "vn-b"}})).await;
    space.until("first", "is ready", is_ready).await;
    let quota: ResourceQuota =
        serde_json::from_value(json!({"metadata": {"name": "one"}, "spec": {"hard": {"pods": "1"}}})).unwrap();
    space.lower::<ResourceQuota>(&world.b).create(&PostParams::default(), &quota).await.unwrap();
    tensile_e2e::eventually("the quota counts", crate::world::SOON, || async {
        let status = space.lower::<ResourceQuota>(&world.b).get("one").await?.status.unwrap_or_default();
        Ok(tensile_e2e::Seen::when(status.used.is_some(), status))
    })
    .await
    .unwrap();
    space.pod("second", json!({"nodeSelector": {"tensile.dev/cluster": "vn-b"}})).await;
    let message = space.until_event("second", "LowerQuotaExceeded").await;
    assert!(message.contains("exceeded quota: one"), "{message}");
    space.lower::<ResourceQuota>(&world.b).delete("one", &DeleteParams::default()).await.unwrap();
    space.until("second", "is ready", is_ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_range_below_changes_resources_without_an_endless_correction() {
    let world = world().await;
    let space = world.namespace("limits").await;
    space.pod("first", json!({"nodeSelector": {"tensile.dev/cluster": "vn-a"}})).await;
    space.until("first", "is ready", is_ready).await;
    let limits: LimitRange = serde_json::from_value(json!({
        "metadata": {"name": "defaults"},
        "spec": {"limits": [{"type": "Container", "defaultRequest": {"cpu": "50m"}, "default": {"cpu": "100m"}}]},
    }))
    .unwrap();
    space.lower::<LimitRange>(&world.a).create(&PostParams::default(), &limits).await.unwrap();
    space.pod("second", json!({"nodeSelector": {"tensile.dev/cluster": "vn-a"}})).await;
    let ready = space.until("second", "is ready", is_ready).await;
    assert!(ready.spec.unwrap().containers[0].resources.clone().unwrap_or_default().requests.is_none());
    let below: Pod = space.lower(&world.a).get("second").await.unwrap();
    let generation = below.metadata.generation;
    let requests = below.spec.unwrap().containers[0].resources.clone().unwrap().requests.unwrap();
    assert_eq!(requests["cpu"].0, "50m");
    // A change of the upper pod goes through and leaves the lower cluster's defaults alone.
    let patch = kube::api::Patch::Merge(json!({"metadata": {"labels": {"touched": "yes"}}}));
    space.upper_pods().patch("second", &kube::api::PatchParams::default(), &patch).await.unwrap();
    let below = tensile_e2e::eventually("the label is below", crate::world::SOON, || async {
        let pod: Pod = space.lower(&world.a).get("second").await?;
        let there = pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key("touched"));
        Ok(if there { tensile_e2e::Seen::Done(pod) } else { tensile_e2e::Seen::NotYet("no label".into()) })
    })
    .await
    .unwrap();
    assert_eq!(below.metadata.generation, generation, "the spec was not touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_kube_system_are_not_taken_and_can_be_deleted() {
    let world = world().await;
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "system-pod", "namespace": "kube-system"},
        "spec": {
            "containers": [{"name": "main", "image": "x"}],
            "tolerations": [{"operator": "Exists"}],
            "nodeName": "vn-a",
            "serviceAccountName": "default",
        },
    }))
    .unwrap();
    pod.metadata.namespace = Some("kube-system".into());
    let pods: Api<Pod> = Api::namespaced(world.upper.client(), "kube-system");
    tensile_e2e::eventually("the pod can be created", crate::world::SOON, || async {
        Ok(match pods.create(&PostParams::default(), &pod).await {
            Ok(_) => tensile_e2e::Seen::Done(()),
            Err(error) => tensile_e2e::Seen::NotYet(error.to_string()),
        })
    })
    .await
    .unwrap();
    let events: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(world.upper.client(), "kube-system");
    tensile_e2e::eventually("an event says that it is not taken", crate::world::SOON, || async {
        let found = events.list(&ListParams::default()).await?.items;
        let told = found.iter().any(|e| {
            e.reason.as_deref() == Some("NotTaken") && e.involved_object.name.as_deref() == Some("system-pod")
        });
        Ok(tensile_e2e::Seen::when(told, found.len()))
    })
    .await
    .unwrap();
    assert!(Api::<Pod>::namespaced(world.a.client(), "kube-system").get_opt("system-pod").await.unwrap().is_none());
    pods.delete("system-pod", &DeleteParams::default()).await.unwrap();
    tensile_e2e::eventually("its deletion is finished", crate::world::SOON, || async {
        let left = pods.get_opt("system-pod").await?;
        Ok(tensile_e2e::Seen::when(left.is_none(), left.as_ref().map(phase)))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_no_lower_node_can_take_shows_the_lower_schedulers_reason() {
    let world = world().await;
    let space = world.namespace("toobig").await;
    // 60 CPUs: the virtual node has 96 in all, none of its lower nodes has more than 32.
    let change = json!({
        "nodeSelector": {"tensile.dev/cluster": "vn-a"},
        "containers": [{"name": "main", "image": "x", "resources": {"requests": {"cpu": "60"}}}],
    });
    space.pod("big", change).await;
    let message = space.until_event("big", "FailedScheduling").await;
    assert!(message.contains("[vn-a]") && message.contains("Insufficient cpu"), "{message}");
    space.upper_pods().delete("big", &DeleteParams::default()).await.unwrap();
    space.until_gone("big").await;
    space.until_empty_below().await;
}
