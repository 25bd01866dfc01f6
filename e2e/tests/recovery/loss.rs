//! The lower cluster loses a node, or takes a pod's place away.
//!
//! The tests share their clusters; each has nodes of its own there, which only its pods fit on.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Cluster, KwokNodes, Seen, VirtualNode, eventually};
use tokio::sync::OnceCell;

use crate::support::{SOON, is_ready, make_namespace, node, pods};

/// How long a lower node may be silent until it counts as lost. KWOK's nodes are heard of each 10 s.
const NODE_GRACE: Duration = Duration::from_secs(20);

/// How long pods stay on a lost node; Kubernetes gives them 300 s.
const EVICTION_SECONDS: u32 = 5;

/// The garbage collector looks every 20 s, and lets 40 s go by after a node was deleted.
const COLLECTED: Duration = Duration::from_mins(3);

struct World {
    upper: Cluster,
    lower: Cluster,
    _node: VirtualNode,
}

async fn world() -> &'static World {
    static WORLD: OnceCell<World> = OnceCell::const_new();
    WORLD.get_or_init(|| Box::pin(World::start())).await
}

impl World {
    async fn start() -> Self {
        let nodes = |prefix: &str, count: usize, resource: &str, amount: &str| KwokNodes {
            prefix: prefix.to_owned(),
            extended: vec![(resource.to_owned(), amount.to_owned())],
            ..KwokNodes::count(count)
        };
        let (upper, lower) = tokio::try_join!(
            // The tolerations that it writes into pods travel down.
            Cluster::builder("upper").default_toleration_seconds(EVICTION_SECONDS).start(),
            Cluster::builder("lower")
                .node_monitor_grace(NODE_GRACE)
                .nodes(nodes("mortal", 2, "example.test/rack", "8"))
                .nodes(nodes("doomed", 2, "example.test/slot", "1"))
                .nodes(nodes("busy", 1, "example.test/seat", "1"))
                .start()
        )
        .unwrap();
        let node = VirtualNode::builder(&upper, &lower).name("vn").start().await.unwrap();
        make_namespace(&upper).await;
        Self { upper, lower, _node: node }
    }

    /// Has pods of this owner, which ask for this resource.
    async fn apply(&self, kind: &str, name: &str, replicas: usize, resource: &str) {
        let service = if kind == "StatefulSet" { "serviceName: none" } else { "" };
        self.upper
            .apply_yaml(&format!(
                "
apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}, namespace: work}}
spec:
  {service}
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      tolerations: [{{key: virtual-kubelet.io/provider, operator: Exists}}]
      containers:
      - name: main
        image: example.test/app:1
        resources: {{limits: {{{resource}: 1}}}}
"
            ))
            .await
            .unwrap();
    }

    /// The pods of an owner in a cluster.
    async fn of(&self, cluster: &Cluster, name: &str) -> anyhow::Result<Vec<Pod>> {
        Ok(pods(cluster).list(&ListParams::default().labels(&format!("app={name}"))).await?.items)
    }

    /// Waits until so many pods of an owner are ready and wanted above, and each has its own pod below, on no node but
    /// these; gives the UIDs above by the nodes' names.
    async fn until_running(&self, name: &str, count: usize, not_on: Option<&str>) -> BTreeMap<String, String> {
        eventually(&format!("{count} pods of {name} run, not on {not_on:?}"), SOON, || async {
            let above = self.of(&self.upper, name).await?;
            let below: BTreeMap<String, Pod> =
                self.of(&self.lower, name).await?.into_iter().map(|pod| (pod.name_any(), pod)).collect();
            let runs: BTreeMap<String, String> = above
                .iter()
                .filter(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none())
                .filter_map(|pod| {
                    let node = below.get(&pod.name_any())?.spec.as_ref()?.node_name.clone()?;
                    (Some(node.as_str()) != not_on).then_some((pod.uid()?, node))
                })
                .collect();
            let told = above.iter().map(|pod| (pod.name_any(), is_ready(pod), &pod.metadata.deletion_timestamp));
            Ok(if runs.len() == count {
                Seen::Done(runs)
            } else {
                Seen::NotYet(format!("{:?}", told.collect::<Vec<_>>()))
            })
        })
        .await
        .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_lower_node_that_dies_are_replaced_as_in_a_plain_cluster() {
    let world = world().await;
    world.apply("Deployment", "web", 4, "example.test/rack").await;
    world.apply("StatefulSet", "db", 1, "example.test/rack").await;
    let before = world.until_running("web", 4, None).await;
    let db = world.until_running("db", 1, None).await;
    let (uid, dead) = db.into_iter().next().unwrap();
    world.lower.lose_kwok_node(&dead).await.unwrap();

    // The Deployment's pods are made anew on what is left, and those that were there all along stay.
    let elsewhere = world.until_running("web", 4, Some(&dead)).await;
    for (uid, node) in before.iter().filter(|(_, node)| **node != dead) {
        assert_eq!(elsewhere.get(uid), Some(node), "a pod on a healthy node was replaced");
    }
    // Nobody can know whether the dead node's containers have stopped. Like a plain cluster's, such pods stay Terminating,
    // and a StatefulSet, which promises at most one pod of a name, waits.
    let above = eventually("db-0 is being deleted", SOON, || async {
        let pod = pods(&world.upper).get("db-0").await?;
        let going = pod.metadata.deletion_timestamp.is_some();
        Ok(if going { Seen::Done(pod) } else { Seen::NotYet("not deleted".into()) })
    })
    .await
    .unwrap();
    assert_eq!(above.uid(), Some(uid.clone()));
    assert!(pods(&world.lower).get("db-0").await.unwrap().metadata.deletion_timestamp.is_some());
    // The room of the dead node is not offered any more, but for what our pods there still hold.
    eventually("the Node offers the healthy node's room alone", SOON, || async {
        let held: Vec<Pod> = [world.of(&world.lower, "web").await?, world.of(&world.lower, "db").await?].concat();
        let held =
            held.iter().filter(|pod| pod.spec.as_ref().and_then(|s| s.node_name.as_ref()) == Some(&dead)).count();
        let status = node(&world.upper, "vn").await.status.unwrap_or_default();
        let offered = status.allocatable.and_then(|all| all.get("example.test/rack").map(|amount| amount.0.clone()));
        Ok(Seen::when(offered == Some((8 + held).to_string()), (offered, held)))
    })
    .await
    .unwrap();

    // The operator says that the machine is off for good (KEP-2268). Now it is known.
    let nodes: Api<Node> = Api::all(world.lower.client());
    let taint = json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown",
        "effect": "NoExecute"}]}});
    nodes.patch(&dead, &PatchParams::default(), &Patch::Strategic(taint)).await.unwrap();
    eventually("another db-0 runs, and nothing is left Terminating", COLLECTED, || async {
        let (above, below) = (world.of(&world.upper, "db").await?, world.of(&world.lower, "db").await?);
        let (web_above, web_below) = (world.of(&world.upper, "web").await?, world.of(&world.lower, "web").await?);
        let seen = format!("{} {} db, {} {} web", above.len(), below.len(), web_above.len(), web_below.len());
        let another = above.len() == 1 && above[0].uid().as_ref() != Some(&uid) && is_ready(&above[0]);
        Ok(Seen::when(another && below.len() == 1 && web_above.len() == 4 && web_below.len() == 4, seen))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_lower_node_was_deleted_fails_and_is_replaced() {
    let world = world().await;
    world.apply("Deployment", "slotted", 1, "example.test/slot").await;
    let (uid, gone) = world.until_running("slotted", 1, None).await.into_iter().next().unwrap();
    world.lower.delete_kwok_node(&gone).await.unwrap();
    // It takes the lower cluster's garbage collector a minute to find the pod.
    let reason = eventually("the pod has failed above and is gone below", COLLECTED, || async {
        let (above, below) = (world.of(&world.upper, "slotted").await?, world.of(&world.lower, "slotted").await?);
        let stays = below.iter().any(|pod| pod.spec.as_ref().and_then(|s| s.node_name.as_ref()) == Some(&gone));
        let status = above.into_iter().find(|pod| pod.uid().as_ref() == Some(&uid)).and_then(|pod| pod.status);
        let failed = status.filter(|status| !stays && status.phase.as_deref() == Some("Failed"));
        let conditions = failed.and_then(|status| status.conditions).unwrap_or_default();
        let target = conditions.into_iter().find(|condition| condition.type_ == "DisruptionTarget");
        Ok(target.map_or_else(|| Seen::NotYet(format!("below: {stays}")), |target| Seen::Done(target.reason)))
    })
    .await
    .unwrap();
    assert_eq!(reason.as_deref(), Some("DeletionByPodGC"));
    world.until_running("slotted", 1, Some(&gone)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_preempted_in_the_lower_cluster_fails_with_the_reason_and_is_replaced_when_there_is_room() {
    let world = world().await;
    world.apply("ReplicaSet", "seated", 1, "example.test/seat").await;
    let (victim, _) = world.until_running("seated", 1, None).await.into_iter().next().unwrap();
    world
        .lower
        .apply_yaml(
            "
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: urgent}
value: 1000
---
apiVersion: v1
kind: Pod
metadata: {name: urgent, namespace: default}
spec:
  priorityClassName: urgent
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: example.test/urgent:1, resources: {limits: {example.test/seat: 1}}}]
",
        )
        .await
        .unwrap();
    let failed = eventually("the preempted pod has failed", SOON, || async {
        let above = world.of(&world.upper, "seated").await?;
        let failed = above.iter().find(|pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed"));
        Ok(failed.cloned().map_or_else(|| Seen::NotYet(format!("{above:?}")), Seen::Done))
    })
    .await
    .unwrap();
    assert_eq!(failed.uid(), Some(victim));
    assert_eq!(failed.status.unwrap().reason.as_deref(), Some("PreemptionByScheduler"));

    // Its successor waits for the seat, and takes it.
    let urgent: Api<Pod> = Api::namespaced(world.lower.client(), "default");
    eventually("the urgent pod runs in its place", SOON, || async {
        let pod = urgent.get("urgent").await?;
        Ok(Seen::when(is_ready(&pod), pod.status))
    })
    .await
    .unwrap();
    urgent.delete("urgent", &DeleteParams::default()).await.unwrap();
    world.until_running("seated", 1, None).await;
}
