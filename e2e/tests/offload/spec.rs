//! Parts of a pod's spec that only a real API server shows to be translated right.

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use tensile_e2e::{Seen, eventually};

use crate::world::{SOON, condition, describe, is_ready, world};

#[tokio::test(flavor = "multi_thread")]
async fn match_label_keys_are_merged_once_not_twice() {
    let world = world().await;
    let space = world.namespace("keys").await;
    space
        .apply(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: NAMESPACE}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {tensile.dev/cluster: vn-b}
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector: {matchLabels: {app: web}}
          matchLabelKeys: [pod-template-hash]
      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 1
              podAffinityTerm:
                topologyKey: kubernetes.io/hostname
                labelSelector: {matchLabels: {app: web}}
                matchLabelKeys: [pod-template-hash]
      containers: [{name: web, image: example.test/web:1}]
",
        )
        .await;
    eventually("all replicas are ready", SOON, || async {
        let status = space.upper::<Deployment>().get("web").await?.status.unwrap_or_default();
        Ok(Seen::when(status.ready_replicas == Some(3), status.ready_replicas))
    })
    .await
    .unwrap();
    for pod in space.lower::<Pod>(&world.b).list(&ListParams::default()).await.unwrap() {
        let spec = pod.spec.as_ref().unwrap();
        let spread = &spec.topology_spread_constraints.as_ref().unwrap()[0];
        let expressions = spread.label_selector.as_ref().unwrap().match_expressions.clone().unwrap_or_default();
        assert_eq!(expressions.iter().filter(|e| e.key == "pod-template-hash").count(), 1, "{expressions:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_gates_set_above_decide_readiness_on_both_sides() {
    let world = world().await;
    let space = world.namespace("gates").await;
    let change = json!({
        "readinessGates": [{"conditionType": "example.test/registered"}],
        "nodeSelector": {"tensile.dev/cluster": "vn-a"},
    });
    space.pod("gated", change).await;
    space
        .until("gated", "runs and is not ready", |pod| {
            condition(pod, "ContainersReady").is_some_and(|c| c.status == "True") && !is_ready(pod)
        })
        .await;
    let gate = json!({"status": {"conditions": [{"type": "example.test/registered", "status": "True"}]}});
    space.upper_pods().patch_status("gated", &PatchParams::default(), &Patch::Strategic(gate)).await.unwrap();
    eventually("the gate is open below", SOON, || async {
        let pod: Pod = space.lower(&world.a).get("gated").await?;
        Ok(Seen::when(condition(&pod, "example.test/registered").is_some_and(|c| c.status == "True"), describe(&pod)))
    })
    .await
    .unwrap();
    space.until("gated", "is ready", is_ready).await;
    let upper = space.upper_pods().get("gated").await.unwrap();
    assert_eq!(condition(&upper, "PodScheduled").map(|c| c.status.as_str()), Some("True"), "{}", describe(&upper));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_somebody_else_overwrote_is_restored() {
    let world = world().await;
    let space = world.namespace("overwritten").await;
    space.pod("one", json!({"nodeSelector": {"tensile.dev/cluster": "vn-a"}})).await;
    space.until("one", "is ready", is_ready).await;
    let lie = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Lie"}]}});
    space.upper_pods().patch_status("one", &PatchParams::default(), &Patch::Strategic(lie)).await.unwrap();
    space.until("one", "is ready again", is_ready).await;
}
