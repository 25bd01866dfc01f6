//! etcd is put back to an older snapshot: of what came after it, the cluster knows nothing any more.
//!
//! The virtual-node runs through it. It has heard of resource versions that the API server has yet to reach again; a
//! watch from one of those would be taken, and stay silent.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, stream};
use k8s_openapi::api::{
    batch::v1::Job,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Cluster, EtcdSnapshot, KwokNodes, Seen, VirtualNode, eventually};
use tensile_proto::vocabulary::label;

use crate::support::{SOON, deployment, is_ready, make_namespace, node, node_condition, pods};

/// Versions that the cluster whose data goes back is ahead by, at least: it must not catch up while the test looks.
const AHEAD: usize = 400;

const REST: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: work}
data: {mode: one}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: work}
spec:
  replicas: 2
  podManagementPolicy: Parallel
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {type: virtual-kubelet}
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      containers: [{name: db, image: example.test/db:1, envFrom: [{configMapRef: {name: settings}}]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: work}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {app: once}, annotations: {tensile.test/run-for: 10s}}
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      nodeSelector: {type: virtual-kubelet}
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      containers: [{name: main, image: example.test/once:1}]
";

/// Two clusters with work in them, and a snapshot of one of them from before the work went on.
struct World {
    upper: Cluster,
    lower: Cluster,
    _node: VirtualNode,
    /// UIDs of the lower pods by those of the upper ones, for the pods that were there at the snapshot and still are.
    survivors: BTreeMap<String, String>,
    /// Upper and lower UID of the Job's pod, which has completed since the snapshot.
    once: (String, String),
    snapshot: EtcdSnapshot,
}

impl World {
    async fn start(which: for<'a> fn(&'a Cluster, &'a Cluster) -> &'a Cluster) -> Self {
        let (upper, lower) = tokio::try_join!(
            Cluster::builder("upper").start(),
            Cluster::builder("lower").nodes(KwokNodes::count(2)).start()
        )
        .unwrap();
        let node = VirtualNode::builder(&upper, &lower).name("vn").start().await.unwrap();
        make_namespace(&upper).await;
        upper.apply_yaml(&deployment(3)).await.unwrap();
        upper.apply_yaml(REST).await.unwrap();
        until_level(&upper, &lower, 3).await;
        let once = eventually("the Job runs", SOON, || async {
            let above = labelled(&upper, "app=once").await?;
            let below = labelled(&lower, "app=once").await?;
            Ok(match (&above[..], &below[..]) {
                ([above], [below]) if is_ready(above) => Seen::Done((above.uid().unwrap(), below.uid().unwrap())),
                other => Seen::NotYet(format!("{other:?}")),
            })
        })
        .await
        .unwrap();
        let survivors = twins(&lower).await;
        let snapshot = which(&upper, &lower).snapshot_etcd().unwrap();
        let mut world = Self { upper, lower, _node: node, survivors, once, snapshot };
        world.go_on().await;
        get_ahead(which(&world.upper, &world.lower)).await;
        world
    }

    /// What happens after the snapshot.
    async fn go_on(&mut self) {
        let first = labelled(&self.upper, "app=web").await.unwrap()[0].name_any();
        for doomed in [first.as_str(), "db-0"] {
            let pod = pods(&self.upper).get(doomed).await.unwrap();
            self.survivors.remove(&pod.uid().unwrap()).unwrap();
            pods(&self.upper).delete(doomed, &DeleteParams::default()).await.unwrap();
        }
        self.upper.apply_yaml(&deployment(5)).await.unwrap();
        let settings: Api<ConfigMap> = Api::namespaced(self.upper.client(), "work");
        let patch = Patch::Merge(json!({"data": {"mode": "two"}}));
        settings.patch("settings", &PatchParams::default(), &patch).await.unwrap();
        until_copied(&self.lower, "two").await;
        self.until_complete().await;
        until_level(&self.upper, &self.lower, 5).await;
    }

    async fn until_complete(&self) {
        let jobs: Api<Job> = Api::namespaced(self.upper.client(), "work");
        eventually("the Job is complete", SOON, || async {
            let status = jobs.get("once").await?.status.unwrap_or_default();
            Ok(Seen::when(status.completion_time.is_some(), status))
        })
        .await
        .unwrap();
        let status = jobs.get("once").await.unwrap().status.unwrap();
        assert_eq!((status.succeeded, status.failed.unwrap_or_default()), (Some(1), 0));
    }

    /// The pods that saw it all were not touched.
    async fn assert_survivors_kept(&self) {
        let now = twins(&self.lower).await;
        let kept: BTreeMap<_, _> = now.into_iter().filter(|(uid, _)| self.survivors.contains_key(uid)).collect();
        assert_eq!(kept, self.survivors);
    }
}

async fn labelled(cluster: &Cluster, selector: &str) -> anyhow::Result<Vec<Pod>> {
    Ok(pods(cluster).list(&ListParams::default().labels(selector)).await?.items)
}

/// UIDs of the lower pods of `web` and `db`, by the UIDs of the upper ones in their marks.
async fn twins(lower: &Cluster) -> BTreeMap<String, String> {
    let below = labelled(lower, "app in (web,db)").await.unwrap();
    below.iter().map(|pod| (pod.labels()[label::UPPER_UID].clone(), pod.uid().unwrap())).collect()
}

/// Waits until there are so many pods of `web`, and two of `db`, all ready, each with one lower pod, and no other below.
async fn until_level(upper: &Cluster, lower: &Cluster, web: usize) {
    eventually(&format!("{web} pods of web and 2 of db run, each once"), SOON, || async {
        let above = labelled(upper, "app in (web,db)").await?;
        let below = labelled(lower, "app in (web,db)").await?;
        let of = |app: &str| above.iter().filter(|pod| pod.labels()["app"] == app).count();
        let well = |pod: &Pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none();
        let owners: Vec<&String> = below.iter().map(|pod| &pod.labels()[label::UPPER_UID]).collect();
        let distinct: BTreeSet<&String> = owners.iter().copied().collect();
        let wanted: Vec<String> = above.iter().filter_map(ResourceExt::uid).collect();
        let level = of("web") == web
            && of("db") == 2
            && above.iter().chain(&below).all(well)
            && distinct.len() == owners.len()
            && distinct == wanted.iter().collect();
        let told = |pods: &[Pod]| -> Vec<_> { pods.iter().map(|p| (p.name_any(), p.uid(), well(p))).collect() };
        Ok(Seen::when(level, (told(&above), told(&below))))
    })
    .await
    .unwrap();
}

async fn until_copied(lower: &Cluster, mode: &str) {
    let copies: Api<ConfigMap> = Api::namespaced(lower.client(), "work");
    eventually(&format!("the copy says {mode}"), SOON, || async {
        let data = copies.get("settings").await?.data.unwrap_or_default();
        Ok(Seen::when(data.get("mode").is_some_and(|found| found == mode), data))
    })
    .await
    .unwrap();
}

/// Writes until the cluster's resource version has gone on by [`AHEAD`].
async fn get_ahead(cluster: &Cluster) {
    cluster.apply_yaml("{apiVersion: v1, kind: ConfigMap, metadata: {name: pace, namespace: default}}").await.unwrap();
    let paces: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    stream::iter(0..AHEAD)
        .for_each_concurrent(16, |step| {
            let paces = &paces;
            async move {
                let patch = Patch::Merge(json!({"data": {"step": step.to_string()}}));
                paces.patch("pace", &PatchParams::default(), &patch).await.unwrap();
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_etcd_put_back_to_a_snapshot_loses_doubles_and_repeats_nothing() {
    let world = Box::pin(World::start(|_, lower| lower)).await;
    world.lower.restore_etcd(&world.snapshot).await.unwrap();

    // What was made since is made again; what was deleted since is deleted again; what changed since changes again.
    until_level(&world.upper, &world.lower, 5).await;
    until_copied(&world.lower, "two").await;
    world.assert_survivors_kept().await;
    // The Job is done, and its pod, which ran below at the snapshot, does not run on.
    world.until_complete().await;
    eventually("the Job's pod is taken away below", SOON, || async {
        let left = labelled(&world.lower, "app=once").await?;
        Ok(Seen::when(left.is_empty(), left))
    })
    .await
    .unwrap();
    let above = labelled(&world.upper, "app=once").await.unwrap();
    assert_eq!(above.iter().filter_map(ResourceExt::uid).collect::<Vec<_>>(), [world.once.0.as_str()]);

    // And it goes on.
    world.upper.apply_yaml(&deployment(6)).await.unwrap();
    until_level(&world.upper, &world.lower, 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upper_etcd_put_back_to_a_snapshot_loses_doubles_and_repeats_nothing() {
    let world = Box::pin(World::start(|upper, _| upper)).await;
    world.upper.restore_etcd(&world.snapshot).await.unwrap();

    // The upper cluster is what is wanted: three replicas, and the settings as they were.
    until_level(&world.upper, &world.lower, 3).await;
    until_copied(&world.lower, "one").await;
    world.assert_survivors_kept().await;
    // The Job was running. Its pod has completed below, and that result is told again: it does not run once more.
    world.until_complete().await;
    let below = labelled(&world.lower, "app=once").await.unwrap();
    assert_eq!(below.iter().filter_map(ResourceExt::uid).collect::<Vec<_>>(), [world.once.1.as_str()]);

    // The Node is alive: its lease goes on, and pods come.
    let leases: Api<Lease> = Api::namespaced(world.upper.client(), "kube-node-lease");
    let renewed = || async { leases.get("vn").await.map(|lease| lease.spec.and_then(|spec| spec.renew_time)) };
    let before = renewed().await.unwrap();
    eventually("the node lease is renewed", SOON, || async {
        let now = renewed().await?;
        Ok(Seen::when(now > before, now))
    })
    .await
    .unwrap();
    assert_eq!(node_condition(&node(&world.upper, "vn").await, "Ready"), "True");
    world.upper.apply_yaml(&deployment(4)).await.unwrap();
    until_level(&world.upper, &world.lower, 4).await;
}
