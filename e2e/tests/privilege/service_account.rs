//! A Deployment's life under a virtual node that has no certificate, only its ServiceAccount.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, Secret};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Cluster, KwokNodes, Seen, VirtualNode, eventually};

use crate::granted::{ACCOUNT, Right, cluster_role, forbidden, role, unused};

const WIDE_RIGHTS: &str = include_str!("../../../virtual-node/deploy/rbac-upper-service-account.yaml");

/// The time limit for what takes some seconds on an idle machine.
const SOON: Duration = Duration::from_mins(1);

/// Copies of what no pod needs any more are kept for 30 s.
const AFTER_GRACE: Duration = Duration::from_mins(2);

/// Granted above, and not used here for a reason.
const UNUSED: [(&str, &str); 2] = [
    ("patch events.events.k8s.io", "an event becomes a series only when the same is told again after 10 s or more"),
    (
        "create tokenreviews.authentication.k8s.io",
        "only callers with a bearer token need it; tests/kubelet_api are such",
    ),
];

const WORK: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: work}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: work}
data: {colour: red}
---
apiVersion: v1
kind: Secret
metadata: {name: password, namespace: work}
stringData: {word: sesame}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: work}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      containers:
        - name: web
          image: example.test/web:1
          envFrom: [{configMapRef: {name: settings}}, {secretRef: {name: password}}]
";

const LACKING: &str = "
apiVersion: v1
kind: Pod
metadata: {name: lacking, namespace: work}
spec:
  tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
  containers: [{name: main, image: 'example.test/app:1', envFrom: [{configMapRef: {name: nowhere}}]}]
";

#[tokio::test(flavor = "multi_thread")]
async fn the_wide_rights_of_an_account_without_a_certificate_are_all_used_and_enough() {
    tensile_e2e::install_crypto();
    let (upper, lower) = tokio::try_join!(
        Cluster::builder("upper-plain").start(),
        Cluster::builder("lower-plain").nodes(KwokNodes::count(2)).start(),
    )
    .unwrap();
    upper.apply_yaml(&WIDE_RIGHTS.replace("{{NODE_NAME}}", "plain")).await.unwrap();
    let node = VirtualNode::builder(&upper, &lower).name("plain").args(["--identity=service-account"]).unapproved();
    let node = node.start().await.unwrap();

    // The Node follows the size of its cluster, and somebody takes a label of ours off it.
    lower.delete_kwok_node("kwok-1").await.unwrap();
    let nodes: Api<Node> = Api::all(upper.client());
    let unlabelled = Patch::Merge(json!({"metadata": {"labels": {"tensile.dev/cluster": null}}}));
    nodes.patch("plain", &PatchParams::default(), &unlabelled).await.unwrap();
    eventually("the Node is smaller, and labelled again", SOON, || async {
        let node = nodes.get("plain").await?;
        let cpu = node.status.and_then(|s| s.allocatable?.get("cpu").cloned()).map(|quantity| quantity.0);
        let labelled = node.metadata.labels.is_some_and(|labels| labels.contains_key("tensile.dev/cluster"));
        Ok(Seen::when(cpu.as_deref() == Some("32") && labelled, (cpu, labelled)))
    })
    .await
    .unwrap();

    upper.apply_yaml(WORK).await.unwrap();
    until_running(&upper, 3).await;
    let settings = |cluster: &Cluster| Api::<ConfigMap>::namespaced(cluster.client(), "work");
    let blue = Patch::Merge(json!({"data": {"colour": "blue"}}));
    settings(&upper).patch("settings", &PatchParams::default(), &blue).await.unwrap();
    eventually("the edit has reached the lower cluster", SOON, || async {
        let colour = settings(&lower).get("settings").await?.data.and_then(|d| d.get("colour").cloned());
        Ok(Seen::when(colour.as_deref() == Some("blue"), colour))
    })
    .await
    .unwrap();
    // Copies that somebody deletes below are made anew, from a fresh read above.
    let secrets: Api<Secret> = Api::namespaced(lower.client(), "work");
    settings(&lower).delete("settings", &DeleteParams::default()).await.unwrap();
    secrets.delete("password", &DeleteParams::default()).await.unwrap();
    eventually("the copies are back", SOON, || async {
        let back =
            (settings(&lower).get_opt("settings").await?.is_some(), secrets.get_opt("password").await?.is_some());
        Ok(Seen::when(back == (true, true), back))
    })
    .await
    .unwrap();
    // A pod that lacks something is told so.
    upper.apply_yaml(LACKING).await.unwrap();
    let events: Api<Event> = Api::namespaced(upper.client(), "work");
    eventually("the pod has an event", SOON, || async {
        let told = events.list(&ListParams::default().fields("involvedObject.name=lacking")).await?.items;
        let ours = told.iter().any(|event| event.message.as_deref().is_some_and(|text| text.contains("nowhere")));
        Ok(Seen::when(ours, told.into_iter().map(|event| event.message).collect::<Vec<_>>()))
    })
    .await
    .unwrap();
    upper.kubectl().args(["-n", "work", "delete", "pod", "lacking", "--wait=false"]).output().unwrap();

    // KWOK has no logs; that the caller's rights are asked for is what counts here.
    let first = pods(&upper).await.into_iter().find(|name| name.starts_with("web")).unwrap();
    let _ = upper.kubectl().args(["-n", "work", "--request-timeout=5s", "logs", &first]).output().unwrap();

    upper.apply_yaml(&WORK.replace("replicas: 3", "replicas: 0")).await.unwrap();
    eventually("no pod is left in either cluster", SOON, || async {
        let left = [pods(&upper).await, pods(&lower).await].concat();
        Ok(Seen::when(left.is_empty(), left))
    })
    .await
    .unwrap();
    eventually("the copies are gone", AFTER_GRACE, || async {
        let left =
            (settings(&lower).get_opt("settings").await?.is_some(), secrets.get_opt("password").await?.is_some());
        Ok(Seen::when(left == (false, false), left))
    })
    .await
    .unwrap();
    assert!(node.term(SOON).await.unwrap().success());

    let refused = [forbidden(&upper), forbidden(&lower)].concat();
    assert!(refused.is_empty(), "forbidden to {ACCOUNT}:\n{}", refused.join("\n"));
    let wide = [
        cluster_role(&upper, "tensile:virtual-node:plain:wide").await,
        role(&upper, "kube-node-lease", "tensile:virtual-node:plain").await,
    ];
    let excused: BTreeSet<Right> = UNUSED.iter().map(|(right, _)| (*right).to_owned()).collect();
    let left: Vec<Right> = unused(&wide.concat(), &upper).difference(&excused).cloned().collect();
    assert!(left.is_empty(), "granted above and never used: {left:#?}");

    // tests/rights.rs compares the resources below.
    let below = cluster_role(&lower, "tensile:virtual-node").await;
    let paths: Vec<Right> = unused(&below, &lower).into_iter().filter(|right| right.contains(" /")).collect();
    assert!(paths.is_empty(), "granted below and never asked for: {paths:#?}");
    tokio::join!(upper.stop(), lower.stop());
}

async fn pods(cluster: &Cluster) -> Vec<String> {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "work");
    let all = pods.list(&ListParams::default()).await.unwrap().items;
    all.into_iter().filter_map(|pod| pod.metadata.name).collect()
}

async fn until_running(cluster: &Cluster, count: usize) {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "work");
    eventually(&format!("{count} pods run"), SOON, || async {
        let all = pods.list(&ListParams::default()).await?.items;
        let phases: Vec<_> = all.iter().map(|pod| pod.status.as_ref().and_then(|s| s.phase.clone())).collect();
        let running = phases.iter().filter(|phase| phase.as_deref() == Some("Running")).count();
        Ok(Seen::when(running == count, phases))
    })
    .await
    .unwrap();
}
