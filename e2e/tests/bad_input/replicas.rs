//! Two replicas of one virtual-node: one works, the other stands by and takes over.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::json;
use tensile_e2e::{Cluster, Seen, VirtualNode, eventually};

use crate::world::{SOON, until_said, world};

/// A lease runs out after 15 s; then the standby takes it.
const TAKEOVER: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_second_replica_stands_by_and_takes_over_without_restarting_a_pod() {
    let w = world().await;
    let replica = || VirtualNode::builder(&w.upper, &w.b).name("pair").start();
    let first = replica().await.unwrap();
    until_said(&first, &["this replica leads"]).await;
    let second = replica().await.unwrap();
    until_said(&second, &["standing by"]).await;

    w.upper.apply_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: pair}}").await.unwrap();
    for number in 0..10 {
        create(&w.upper, &format!("before-{number}")).await;
    }
    until_running(&w.upper, 10).await;
    let before = containers(&w.b).await;
    assert_eq!(before.len(), 10);
    assert!(!second.logs().contains("this replica leads"), "both lead");

    first.kill9();
    let killed = Instant::now();
    create(&w.upper, "after").await;
    eventually("the second replica leads", TAKEOVER, || async {
        Ok(Seen::when(second.logs().contains("this replica leads"), second.logs().lines().last()))
    })
    .await
    .unwrap();
    let led = killed.elapsed();
    until_running(&w.upper, 11).await;
    println!(
        "took over {:.1} s after kill -9; a pod created right after the kill ran {:.1} s after it",
        led.as_secs_f64(),
        killed.elapsed().as_secs_f64()
    );

    let mut after = containers(&w.b).await;
    assert!(after.remove("after").is_some());
    assert_eq!(after, before, "pods were restarted or replaced");
    let account = "system:serviceaccount:tensile-system:virtual-node";
    let deletions: Vec<String> =
        w.b.audit_log(account)
            .unwrap()
            .into_iter()
            .filter(|e| e.verb == "delete" && e.resource == "pods" && e.namespace == "pair")
            .map(|e| e.name)
            .collect();
    assert!(deletions.is_empty(), "{deletions:?}");

    // The first one comes back as the standby.
    first.restart_without_waiting().unwrap();
    eventually("the first replica stands by", SOON, || async {
        let logs = first.logs();
        Ok(Seen::when(
            logs.matches("standing by").count() == 1 && logs.matches("this replica leads").count() == 1,
            logs,
        ))
    })
    .await
    .unwrap();
}

async fn create(cluster: &Cluster, name: &str) {
    let pod = json!({"metadata": {"name": name}, "spec": {
        "automountServiceAccountToken": false,
        "containers": [{"name": "main", "image": "example.test/app:1"}],
        // Bound by name: the other virtual nodes of these tests come and go.
        "nodeSelector": {"kubernetes.io/hostname": "pair"},
        "tolerations": [{"operator": "Exists"}],
    }});
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "pair");
    let pod = serde_json::from_value(pod).unwrap();
    eventually("the pod is accepted", SOON, || async {
        // The namespace's ServiceAccount may be a moment behind.
        Ok(match pods.create(&PostParams::default(), &pod).await {
            Ok(_) => Seen::Done(()),
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
    .await
    .unwrap();
}

async fn until_running(cluster: &Cluster, count: usize) {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "pair");
    eventually(&format!("{count} pods run"), TAKEOVER, || async {
        let all = pods.list(&ListParams::default()).await?.items;
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        let running = all.iter().filter(|pod| phase(pod) == "Running").count();
        Ok(Seen::when(running == count, all.iter().map(phase).collect::<Vec<_>>()))
    })
    .await
    .unwrap();
}

/// Of each lower pod: its UID, when its containers started, and how often they were restarted.
async fn containers(cluster: &Cluster) -> BTreeMap<String, String> {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "pair");
    let all = pods.list(&ListParams::default()).await.unwrap().items;
    all.iter()
        .map(|pod| {
            let status = pod.status.clone().unwrap_or_default();
            let containers = status.container_statuses.unwrap_or_default();
            let lives: Vec<_> = containers.iter().map(|c| (c.restart_count, c.state.clone())).collect();
            (pod.name_any(), format!("{:?} {:?} {lives:?}", pod.uid(), status.start_time))
        })
        .collect()
}
