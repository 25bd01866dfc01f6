//! The testbed proves itself: what other tests take for granted is shown here once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use tensile_e2e::{Cluster, KwokNodes, Seen, Tool, Tools, eventually};

/// The time limit for what takes a second or two on an idle machine.
const SOON: Duration = Duration::from_secs(60);

async fn cluster_with_nodes(name: &str, count: usize) -> Cluster {
    // Building tools is not part of a cluster's start time.
    for tool in
        [Tool::Etcd, Tool::KubeApiserver, Tool::KubeControllerManager, Tool::KubeScheduler, Tool::Kubectl, Tool::Kwok]
    {
        Tools::get(tool).await.unwrap();
    }
    let started = Instant::now();
    let cluster = Cluster::builder(name).nodes(KwokNodes::count(count)).start().await.unwrap();
    eprintln!("the cluster {name} with {count} KWOK nodes started in {:.1} s", started.elapsed().as_secs_f64());
    cluster
}

fn pods_ready(pods: &[Pod]) -> usize {
    pods.iter()
        .filter(|pod| {
            pod.status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten())
                .any(|c| c.type_ == "Ready" && c.status == "True")
        })
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_becomes_ready_on_kwok_nodes_and_its_pods_have_addresses_of_their_own() {
    let cluster = cluster_with_nodes("deploy", 3).await;
    cluster
        .apply_yaml(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 12
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: example.test/web:1}]
",
        )
        .await
        .unwrap();
    let deployments: Api<Deployment> = Api::default_namespaced(cluster.client());
    eventually("12 replicas are ready", SOON, || async {
        let status = deployments.get("web").await?.status.unwrap_or_default();
        Ok(Seen::when(status.ready_replicas == Some(12), status.ready_replicas))
    })
    .await
    .unwrap();
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let listed = pods.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(pods_ready(&listed), 12);
    let addresses: std::collections::BTreeSet<String> =
        listed.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.clone()).collect();
    assert_eq!(addresses.len(), 12, "{addresses:?}");
    cluster.stop().await;
}
