//! How pods end: gracefully, by force, and behind our back.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tensile_e2e::{Seen, eventually};

use crate::world::{SOON, condition, describe, is_ready, phase, world};

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_stays_until_its_containers_have_stopped_below() {
    let world = world().await;
    let space = world.namespace("graceful").await;
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "slow", "annotations": {"tensile.test/terminate-after": "3s"}},
        "spec": {
            "containers": [{"name": "main", "image": "example.test/app:1"}],
            "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
            "nodeSelector": {"tensile.dev/cluster": "vn-a"},
        },
    }))
    .unwrap();
    pod.metadata.namespace = Some(space.name.clone());
    space.upper_pods().create(&PostParams::default(), &pod).await.unwrap();
    space.until("slow", "is ready", is_ready).await;
    space.upper_pods().delete("slow", &DeleteParams::default()).await.unwrap();
    let lower = space.lower::<Pod>(&world.a);
    eventually("the lower pod is asked to stop with the same grace", SOON, || async {
        let pod = lower.get("slow").await?;
        Ok(Seen::when(pod.metadata.deletion_grace_period_seconds == Some(30), describe(&pod)))
    })
    .await
    .unwrap();
    // At every look: as long as the lower pod is there, the upper one is.
    eventually("the upper pod is gone, never before the lower one", SOON, || async {
        let upper = space.upper_pods().get_opt("slow").await?;
        let below = lower.get_opt("slow").await?;
        assert!(upper.is_some() || below.is_none(), "the upper pod went first: {}", describe(&below.unwrap()));
        Ok(Seen::when(upper.is_none(), upper.as_ref().map(describe)))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_by_force_takes_its_lower_twin_along() {
    let world = world().await;
    let space = world.namespace("force").await;
    space.pod("forced", json!({})).await;
    space.until("forced", "is ready", is_ready).await;
    space
        .upper_pods()
        .delete("forced", &DeleteParams { grace_period_seconds: Some(0), ..Default::default() })
        .await
        .unwrap();
    space.until_gone("forced").await;
    space.until_empty_below().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_pod_deleted_by_somebody_else_is_replaced_by_its_controller() {
    let world = world().await;
    let space = world.namespace("behind").await;
    space
        .apply(
            "
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: rs, namespace: NAMESPACE}
spec:
  replicas: 1
  selector: {matchLabels: {app: rs}}
  template:
    metadata: {labels: {app: rs}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {tensile.dev/cluster: vn-b}
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      containers: [{name: main, image: example.test/app:1}]
",
        )
        .await;
    let ready_one = || async {
        let pods = space.upper_pods().list(&ListParams::default()).await?.items;
        Ok(match pods.iter().find(|pod| is_ready(pod)) {
            Some(pod) => Seen::Done(pod.clone()),
            None => Seen::NotYet(format!("{:?}", pods.iter().map(describe).collect::<Vec<_>>())),
        })
    };
    let first = eventually("a pod is ready", SOON, ready_one).await.unwrap();
    space.lower::<Pod>(&world.b).delete(&first.name_any(), &DeleteParams::default()).await.unwrap();
    let message = space.until_event(&first.name_any(), "LowerPodDeleted").await;
    assert!(message.contains("vn-b"), "{message}");
    space.until_gone(&first.name_any()).await;
    let second = eventually("another pod is ready", SOON, ready_one).await.unwrap();
    assert_ne!(second.uid(), first.uid());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_evicted_in_the_lower_cluster_fails_with_the_reason() {
    let world = world().await;
    let space = world.namespace("evicted").await;
    space.pod("victim", json!({"nodeSelector": {"tensile.dev/cluster": "vn-a"}})).await;
    space.until("victim", "is ready", is_ready).await;
    space.lower::<Pod>(&world.a).evict("victim", &EvictParams::default()).await.unwrap();
    let failed = space.until("victim", "has failed", |pod| phase(pod) == "Failed").await;
    let target = condition(&failed, "DisruptionTarget").expect("the condition is told above");
    assert_eq!(target.reason.as_deref(), Some("EvictionByEvictionAPI"));
    assert_eq!(failed.status.as_ref().unwrap().reason.as_deref(), Some("EvictionByEvictionAPI"));
    space.until_empty_below().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_before_it_could_start_is_never_created_below() {
    let world = world().await;
    let space = world.namespace("never").await;
    // It waits for a ConfigMap that never comes.
    space
        .pod(
            "early",
            json!({"containers": [{"name": "main", "image": "x", "envFrom": [{"configMapRef": {"name": "none"}}]}]}),
        )
        .await;
    space.until_event("early", "Failed").await;
    space.upper_pods().delete("early", &DeleteParams::default()).await.unwrap();
    space.until_gone("early").await;
    assert!(space.lower_pods().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_of_others_are_left_to_them() {
    let world = world().await;
    let space = world.namespace("finalizers").await;
    space.pod("held", json!({})).await;
    space.until("held", "is ready", is_ready).await;
    let hold = |finalizers: serde_json::Value| Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    space.upper_pods().patch("held", &PatchParams::default(), &hold(json!(["example.test/hold"]))).await.unwrap();
    space.upper_pods().delete("held", &DeleteParams::default()).await.unwrap();
    space.until_empty_below().await;
    space
        .until("held", "has its last status", |pod| {
            matches!(phase(pod), "Succeeded" | "Failed") && pod.metadata.deletion_grace_period_seconds == Some(0)
        })
        .await;
    space.upper_pods().patch("held", &PatchParams::default(), &hold(json!(null))).await.unwrap();
    space.until_gone("held").await;
}
