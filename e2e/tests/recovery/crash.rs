//! The virtual-node dies at a bad time.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{batch::v1::Job, core::v1::Node};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use tensile_e2e::{Cluster, KwokNodes, Seen, VirtualNode, eventually};

use crate::support::{SOON, assert_one_twin_each, deployment, make_namespace, pods, twins, until_ready};

async fn clusters(nodes: usize) -> (Cluster, Cluster) {
    tokio::try_join!(
        Cluster::builder("upper").start(),
        Cluster::builder("lower").nodes(KwokNodes::count(nodes)).start()
    )
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_in_the_middle_of_a_burst_of_500_pods_loses_and_doubles_nothing() {
    let (upper, lower) = clusters(6).await;
    let node = VirtualNode::builder(&upper, &lower).name("vn").start().await.unwrap();
    make_namespace(&upper).await;
    upper.apply_yaml(&deployment(500)).await.unwrap();
    // Three times: early, in the middle, late.
    for share in [40, 200, 400] {
        eventually(&format!("{share} pods are below"), SOON, || async {
            let below = pods(&lower).list_metadata(&ListParams::default()).await?.items.len();
            Ok(Seen::when(below >= share, below))
        })
        .await
        .unwrap();
        node.kill9();
        node.restart().await.unwrap();
    }
    until_ready(&upper, 500, Duration::from_mins(4)).await;
    assert_one_twin_each(&upper, &lower).await;

    // And in the middle of their deletion.
    upper.apply_yaml(&deployment(0)).await.unwrap();
    eventually("some pods are gone", SOON, || async {
        let left = pods(&upper).list_metadata(&ListParams::default()).await?.items.len();
        Ok(Seen::when(left < 400, left))
    })
    .await
    .unwrap();
    node.kill9();
    node.restart().await.unwrap();
    eventually("all pods are gone in both clusters", Duration::from_mins(3), || async {
        let (above, below) = twins(&upper, &lower).await;
        Ok(Seen::when(above.is_empty() && below.is_empty(), (above.len(), below.len())))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn completed_pods_do_not_run_again_after_a_restart() {
    let (upper, lower) = clusters(2).await;
    let node = VirtualNode::builder(&upper, &lower).name("vn").start().await.unwrap();
    make_namespace(&upper).await;
    upper
        .apply_yaml(
            "
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: work}
spec:
  completions: 3
  parallelism: 3
  template:
    metadata: {annotations: {tensile.test/run-for: 1s}}
    spec:
      restartPolicy: Never
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      containers: [{name: main, image: example.test/once:1}]
",
        )
        .await
        .unwrap();
    let jobs: Api<Job> = Api::namespaced(upper.client(), "work");
    eventually("the Job is complete", SOON, || async {
        let status = jobs.get("once").await?.status.unwrap_or_default();
        Ok(Seen::when(status.succeeded == Some(3) && status.completion_time.is_some(), status))
    })
    .await
    .unwrap();
    let versions = |pods: Vec<k8s_openapi::api::core::v1::Pod>| -> BTreeMap<String, (String, i32)> {
        pods.iter()
            .map(|pod| {
                let restarts = pod
                    .status
                    .iter()
                    .flat_map(|s| s.container_statuses.iter().flatten())
                    .map(|c| c.restart_count)
                    .sum();
                (pod.name_any(), (pod.uid().unwrap(), restarts))
            })
            .collect()
    };
    let before = versions(pods(&lower).list(&ListParams::default()).await.unwrap().items);
    assert_eq!(before.len(), 3);
    // Also when the lower pods are gone: a completed pod is over.
    let first = before.keys().next().unwrap().clone();
    pods(&lower).delete(&first, &DeleteParams::default()).await.unwrap();
    node.kill9();
    node.restart().await.unwrap();
    // A pod made after the restart shows that the restarted process is at work on all it has to do.
    upper.apply_yaml(&deployment(1)).await.unwrap();
    eventually("the new pod runs", SOON, || async {
        let all = pods(&upper).list(&ListParams::default().labels("app=web")).await?.items;
        Ok(Seen::when(all.iter().any(crate::support::is_ready), all.len()))
    })
    .await
    .unwrap();
    let after = versions(pods(&lower).list(&ListParams::default().labels("app!=web")).await.unwrap().items);
    let mut expected = before.clone();
    expected.remove(&first);
    assert_eq!(after, expected, "the completed pods are as they were, and the deleted one did not come back");
    let job = jobs.get("once").await.unwrap().status.unwrap();
    assert_eq!((job.succeeded, job.failed.unwrap_or_default()), (Some(3), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_object_deleted_by_hand_comes_back_and_no_pod_is_touched_below() {
    let (upper, lower) = clusters(2).await;
    let _node = VirtualNode::builder(&upper, &lower).name("vn").start().await.unwrap();
    make_namespace(&upper).await;
    upper.apply_yaml(&deployment(5)).await.unwrap();
    until_ready(&upper, 5, SOON).await;
    let (_, before) = twins(&upper, &lower).await;
    let nodes: Api<Node> = Api::all(upper.client());
    let uid = nodes.get("vn").await.unwrap().uid();
    nodes.delete("vn", &DeleteParams::default()).await.unwrap();
    eventually("the Node is registered again", SOON, || async {
        let found = nodes.get_opt("vn").await?;
        Ok(Seen::when(found.as_ref().is_some_and(|node| node.uid() != uid), found.map(|node| node.uid())))
    })
    .await
    .unwrap();
    assert_one_twin_each(&upper, &lower).await;
    let (above, after) = twins(&upper, &lower).await;
    assert_eq!(above.len(), 5);
    assert_eq!(after, before, "the same lower pods as before");
}
