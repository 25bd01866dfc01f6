//! Pods that run to completion: their result is never lost, and they never run again.

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use tensile_e2e::{Seen, eventually};
use tensile_proto::vocabulary::finalizer;

use crate::world::{SOON, describe, phase, world};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes_and_its_pods_results_are_kept() {
    let space = world().await.namespace("job").await;
    space
        .apply(
            "
apiVersion: batch/v1
kind: Job
metadata: {name: sums, namespace: NAMESPACE}
spec:
  completions: 4
  parallelism: 2
  template:
    metadata: {annotations: {tensile.test/run-for: 1s}}
    spec:
      restartPolicy: Never
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      containers: [{name: sum, image: example.test/sum:1}]
",
        )
        .await;
    eventually("the Job is complete", SOON, || async {
        let status = space.upper::<Job>().get("sums").await?.status.unwrap_or_default();
        let complete = status.conditions.iter().flatten().any(|c| c.type_ == "Complete" && c.status == "True");
        Ok(Seen::when(complete && status.succeeded == Some(4), status))
    })
    .await
    .unwrap();
    let pods = space.upper_pods().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(pods.len(), 4, "no pod ran twice: {:?}", pods.iter().map(describe).collect::<Vec<_>>());
    for pod in &pods {
        assert_eq!(phase(pod), "Succeeded");
        let status = &pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
        assert_eq!(status.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 0);
        assert_eq!(pod.metadata.finalizers, None, "the Job controller has counted it");
    }
    // The lower pods are released, and go with the Job.
    eventually("the lower pods are released", SOON, || async {
        let held: Vec<String> = space
            .lower_pods()
            .await
            .iter()
            .filter(|(_, pod)| pod.finalizers().iter().any(|name| name == finalizer::RESULT))
            .map(|(_, pod)| describe(pod))
            .collect();
        Ok(Seen::when(held.is_empty(), held))
    })
    .await
    .unwrap();
    space.upper::<Job>().delete("sums", &DeleteParams::background()).await.unwrap();
    space.until_empty_below().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_pod_fails_above_with_its_exit_code() {
    let space = world().await.namespace("fails").await;
    space
        .apply(
            "
apiVersion: batch/v1
kind: Job
metadata: {name: broken, namespace: NAMESPACE}
spec:
  backoffLimit: 0
  template:
    metadata: {annotations: {tensile.test/run-for: 1s, tensile.test/exit-code: '3'}}
    spec:
      restartPolicy: Never
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      containers: [{name: main, image: example.test/broken:1}]
",
        )
        .await;
    eventually("the Job has failed", SOON, || async {
        let status = space.upper::<Job>().get("broken").await?.status.unwrap_or_default();
        Ok(Seen::when(
            status.failed == Some(1) && status.conditions.iter().flatten().any(|c| c.type_ == "Failed"),
            status,
        ))
    })
    .await
    .unwrap();
    let pods = space.upper_pods().list(&ListParams::default()).await.unwrap().items;
    let status = &pods[0].status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
    assert_eq!(status.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_pods_result_survives_that_its_lower_pod_is_deleted_by_somebody() {
    let world = world().await;
    let space = world.namespace("result").await;
    let change = json!({"restartPolicy": "Never", "nodeSelector": {"tensile.dev/cluster": "vn-a"}});
    space.pod("once", change).await;
    // KWOK's pods run on unless they are a Job's or are told when to end: end it by hand, and delete it at once.
    let lower = space.lower::<Pod>(&world.a);
    eventually("the lower pod runs", SOON, || async {
        let pod = lower.get("once").await?;
        Ok(Seen::when(matches!(phase(&pod), "Running" | "Succeeded"), describe(&pod)))
    })
    .await
    .unwrap();
    let done = json!({"status": {"phase": "Succeeded"}});
    lower.patch_status("once", &kube::api::PatchParams::default(), &kube::api::Patch::Strategic(done)).await.unwrap();
    lower.delete("once", &DeleteParams::default()).await.unwrap();
    space.until("once", "has succeeded", |pod| phase(pod) == "Succeeded").await;
    eventually("the lower pod goes once its result is written", SOON, || async {
        Ok(Seen::when(lower.get_opt("once").await?.is_none(), "still there"))
    })
    .await
    .unwrap();
    let upper = space.upper_pods().get("once").await.unwrap();
    assert_eq!(phase(&upper), "Succeeded", "{}", describe(&upper));
    assert_eq!(upper.metadata.deletion_timestamp, None);
}
