//! The virtual-node's clock is wrong.

use std::path::PathBuf;

use k8s_openapi::api::{
    coordination::v1::{Lease, LeaseSpec},
    core::v1::{Namespace, Pod},
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::json;
use tensile_e2e::{Cluster, Seen, VirtualNode, VirtualNodeBuilder, eventually};

use crate::{
    support::{SOON, is_ready, node, node_condition},
    takeover::world,
};

/// How wrong the clocks are.
const SKEW: SignedDuration = SignedDuration::from_mins(10);

/// A node lease is renewed each 10 s, by which others know that the node is alive.
const RENEWALS: usize = 3;

/// Has the process see a time that is off by so much, by libfaketime. Its monotonic clock is right, as on a machine whose
/// clock was set wrong.
fn with_clock_off(builder: VirtualNodeBuilder, seconds: i64) -> VirtualNodeBuilder {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let library = folders.iter().map(|folder| PathBuf::from(folder).join("faketime/libfaketimeMT.so.1"));
    let library = library.into_iter().find(|path| path.exists()).expect("libfaketime is missing; run scripts/setup");
    builder
        .env("LD_PRELOAD", library)
        .env("FAKETIME", format!("{seconds:+}"))
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1")
        .env("NO_FAKE_STAT", "1")
}

fn replica(upper: &Cluster, lower: &Cluster, seconds: i64) -> VirtualNodeBuilder {
    let lease = ["--lease-duration=5", "--lease-renew-deadline=3", "--lease-retry=1"];
    with_clock_off(VirtualNode::builder(upper, lower).name("skewed").args(lease), seconds)
}

async fn lease(cluster: &Cluster, namespace: &str, name: &str) -> anyhow::Result<LeaseSpec> {
    Ok(Api::<Lease>::namespaced(cluster.client(), namespace).get(name).await?.spec.unwrap_or_default())
}

async fn leader(cluster: &Cluster) -> anyhow::Result<String> {
    let spec = lease(cluster, "tensile-system", "virtual-node-skewed").await?;
    Ok(spec.holder_identity.unwrap_or_default())
}

/// Waits until the node lease was renewed some times; at each look the same replica leads and the Node is Ready.
async fn stays_well(cluster: &Cluster, of: &str) {
    let mut last = None;
    for _ in 0..=RENEWALS {
        last = eventually("the node lease is renewed", SOON, || async {
            assert_eq!(leader(cluster).await?, of);
            assert_eq!(node_condition(&node(cluster, "skewed").await, "Ready"), "True");
            let now = lease(cluster, "kube-node-lease", "skewed").await?.renew_time;
            Ok(if now == last { Seen::NotYet(format!("{now:?}")) } else { Seen::Done(now) })
        })
        .await
        .unwrap();
    }
}

/// How far the clock that wrote the node lease is off.
async fn seen_skew(cluster: &Cluster) -> SignedDuration {
    let renewed = lease(cluster, "kube-node-lease", "skewed").await.unwrap().renew_time.unwrap();
    renewed.0.duration_since(Timestamp::now())
}

async fn pod(cluster: &Cluster, name: &str) {
    let pod = json!({"metadata": {"name": name}, "spec": {
        "containers": [{"name": "main", "image": "example.test/app:1",
            "volumeMounts": [{"name": "token", "mountPath": "/token"}]}],
        "automountServiceAccountToken": false,
        // The shortest life that a token may have: as long as the clocks are wrong.
        "volumes": [{"name": "token", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}}],
        "nodeSelector": {"kubernetes.io/hostname": "skewed"},
        "tolerations": [{"operator": "Exists"}],
    }});
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "skewed");
    let pod: Pod = serde_json::from_value(pod).unwrap();
    eventually("the pod is accepted", SOON, || async {
        // The namespace's ServiceAccount may be a moment behind.
        Ok(match pods.create(&PostParams::default(), &pod).await {
            Ok(_) => Seen::Done(()),
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
    .await
    .unwrap();
    eventually("the pod runs", SOON, || async {
        let pod = pods.get(name).await?;
        Ok(Seen::when(is_ready(&pod), pod.status))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_whose_clocks_are_ten_minutes_fast_and_slow_lead_and_take_over_as_if_they_were_right() {
    let world = world().await;
    let (upper, lower) = (&world.upper, &world.lower);
    let fast = replica(upper, lower, SKEW.as_secs()).start().await.unwrap();
    let first = leader(upper).await.unwrap();
    let slow = replica(upper, lower, -SKEW.as_secs()).start().await.unwrap();
    let namespace = serde_json::from_value(json!({"metadata": {"name": "skewed"}})).unwrap();
    Api::<Namespace>::all(upper.client()).create(&PostParams::default(), &namespace).await.unwrap();
    pod(upper, "one").await;
    stays_well(upper, &first).await;
    let ahead = seen_skew(upper).await;
    assert!((ahead - SKEW).abs() < SignedDuration::from_mins(1), "the clock is not wrong: {ahead:?}");

    fast.kill9();
    let second = eventually("the slow one leads", SOON, || async {
        let now = leader(upper).await?;
        Ok(if now == first { Seen::NotYet(now) } else { Seen::Done(now) })
    })
    .await
    .unwrap();
    pod(upper, "two").await;
    stays_well(upper, &second).await;
    let behind = seen_skew(upper).await;
    assert!((behind + SKEW).abs() < SignedDuration::from_mins(1), "the clock is not wrong: {behind:?}");
    assert!(slow.exited().is_none());

    // A token is asked for once, neither all the time nor too late.
    let requests = upper.audit_log("system:node:skewed").unwrap();
    let tokens = requests.iter().filter(|entry| entry.resource == "serviceaccounts" && entry.subresource == "token");
    assert_eq!(tokens.count(), 2, "one for each pod");
    let pods = Api::<Pod>::namespaced(upper.client(), "skewed").list(&ListParams::default()).await.unwrap();
    assert_eq!(pods.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["one", "two"]);
}
