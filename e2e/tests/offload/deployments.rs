//! Deployments and StatefulSets across lower clusters.

use std::collections::BTreeSet;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Seen, eventually};
use tensile_proto::vocabulary::label;

use crate::world::{SOON, Space, by_owner, describe, is_ready, lower_namespace, world};

const SPREAD_WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: NAMESPACE}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: tensile.dev/cluster, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers: [{name: web, image: example.test/web:1, resources: {requests: {cpu: 100m, memory: 64Mi}}}]
";

async fn until_ready(space: &Space<'_>, replicas: i32) {
    eventually(&format!("{replicas} replicas are ready"), SOON, || async {
        let status = space.upper::<Deployment>().get("web").await?.status.unwrap_or_default();
        let seen = (status.replicas.unwrap_or_default(), status.ready_replicas.unwrap_or_default());
        let pods = space.upper_pods().list(&ListParams::default()).await?.items;
        Ok(Seen::when(
            seen == (replicas, replicas) && pods.len() == usize::try_from(replicas)?,
            (seen, pods.iter().map(describe).collect::<Vec<_>>()),
        ))
    })
    .await
    .unwrap();
}

async fn scale(space: &Space<'_>, replicas: i32) {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    space.upper::<Deployment>().patch("web", &PatchParams::default(), &patch).await.unwrap();
}

/// Every upper pod has exactly one lower twin, and no lower pod is without an upper one.
async fn assert_one_twin_each(space: &Space<'_>) {
    eventually("every upper pod has exactly one lower pod", SOON, || async {
        let upper: BTreeSet<String> =
            space.upper_pods().list(&ListParams::default()).await?.items.iter().filter_map(ResourceExt::uid).collect();
        let lower = by_owner(&space.lower_pods().await);
        let matched =
            lower.len() == upper.len() && lower.iter().all(|(owner, twins)| upper.contains(owner) && twins.len() == 1);
        Ok(Seen::when(matched, (upper, lower)))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_spreads_over_both_clusters_and_scales_up_and_down() {
    let space = world().await.namespace("scale").await;
    space.apply(SPREAD_WEB).await;
    until_ready(&space, 6).await;
    let clusters: Vec<String> = space.lower_pods().await.into_iter().map(|(cluster, _)| cluster).collect();
    assert_eq!(clusters.iter().filter(|cluster| *cluster == "lower-a").count(), 3, "{clusters:?}");
    assert_eq!(clusters.len(), 6, "{clusters:?}");
    assert_one_twin_each(&space).await;

    scale(&space, 12).await;
    until_ready(&space, 12).await;
    assert_one_twin_each(&space).await;

    scale(&space, 2).await;
    until_ready(&space, 2).await;
    assert_one_twin_each(&space).await;

    space.upper::<Deployment>().delete("web", &DeleteParams::background()).await.unwrap();
    space.until_empty_below().await;
    eventually("the upper pods are gone", SOON, || async {
        let left = space.upper_pods().list(&ListParams::default()).await?.items;
        Ok(Seen::when(left.is_empty(), left.iter().map(describe).collect::<Vec<_>>()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_shows_the_status_that_a_kubelet_would_and_its_lower_pod_is_marked() {
    let world = world().await;
    let space = world.namespace("status").await;
    let pod = space.pod("one", json!({"nodeSelector": {"tensile.dev/cluster": "vn-a"}})).await;
    let ready = space.until("one", "is ready", is_ready).await;
    let status = ready.status.as_ref().unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert!(status.pod_ip.is_some() && status.start_time.is_some(), "{status:?}");
    assert!(status.container_statuses.as_ref().unwrap()[0].ready);
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));

    let lower: Pod = space.lower(&world.a).get("one").await.unwrap();
    assert_eq!(lower.status.as_ref().unwrap().pod_ip, status.pod_ip);
    assert_eq!(lower.labels()[label::UPPER_UID], pod.uid().unwrap());
    assert_eq!(lower.labels()[label::VIRTUAL_NODE], "vn-a");
    assert_eq!(lower.spec.as_ref().unwrap().service_account_name.as_deref(), Some("default"));
    assert_eq!(lower.spec.as_ref().unwrap().automount_service_account_token, Some(false));
    let namespace = lower_namespace(&world.a, &space.name).await.unwrap();
    assert_eq!(namespace.labels()[label::UPPER_CLUSTER], lower.labels()[label::UPPER_CLUSTER]);
    space.upper_pods().delete("one", &DeleteParams::default()).await.unwrap();
    space.until_gone("one").await;
    space.until_empty_below().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statefulset_pod_comes_back_under_its_name_only_after_the_old_one_is_gone() {
    let space = world().await.namespace("stateful").await;
    space
        .apply(
            "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: NAMESPACE}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}, annotations: {tensile.test/terminate-after: 2s}}
    spec:
      terminationGracePeriodSeconds: 5
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      containers: [{name: db, image: example.test/db:1}]
",
        )
        .await;
    let first = space.until("db-0", "is ready", is_ready).await;
    space.until("db-1", "is ready", is_ready).await;
    space.upper_pods().delete("db-0", &DeleteParams::default()).await.unwrap();
    let second = space.until("db-0", "is ready again", |pod| pod.uid() != first.uid() && is_ready(pod)).await;
    let owners = by_owner(&space.lower_pods().await);
    assert!(!owners.contains_key(&first.uid().unwrap()), "the old pod's twin is still there: {owners:?}");
    assert_eq!(owners[&second.uid().unwrap()].len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_labels_annotations_and_images_reach_the_lower_pod() {
    let world = world().await;
    let space = world.namespace("updates").await;
    space.pod("one", json!({"nodeSelector": {"tensile.dev/cluster": "vn-b"}})).await;
    space.until("one", "is ready", is_ready).await;
    let patch = json!({
        "metadata": {"labels": {"tier": "gold"}, "annotations": {"note": "hello"}},
        "spec": {"containers": [{"name": "main", "image": "example.test/app:2"}], "activeDeadlineSeconds": 9000},
    });
    space.upper_pods().patch("one", &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
    eventually("the lower pod has the changes", SOON, || async {
        let lower: Pod = space.lower(&world.b).get("one").await?;
        let spec = lower.spec.as_ref().unwrap();
        let seen = (
            lower.labels().get("tier").cloned(),
            lower.annotations().get("note").cloned(),
            spec.containers[0].image.clone(),
            spec.active_deadline_seconds,
        );
        let wanted =
            (Some("gold".to_owned()), Some("hello".to_owned()), Some("example.test/app:2".to_owned()), Some(9000));
        Ok(Seen::when(seen == wanted, seen))
    })
    .await
    .unwrap();
    // A removed label is removed below too.
    let patch = Patch::Merge(json!({"metadata": {"labels": {"tier": null}}}));
    space.upper_pods().patch("one", &PatchParams::default(), &patch).await.unwrap();
    eventually("the label is gone below", SOON, || async {
        let lower: Pod = space.lower(&world.b).get("one").await?;
        Ok(Seen::when(!lower.labels().contains_key("tier"), lower.labels()))
    })
    .await
    .unwrap();
}
