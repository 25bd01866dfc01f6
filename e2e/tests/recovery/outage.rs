//! An API server goes away: the lower one, or the upper one.

use std::time::{Duration, Instant};

use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Cluster, KwokNodes, Seen, VirtualNode, eventually};
use tensile_proto::vocabulary::{condition, taint};

use crate::support::{
    SOON, assert_one_twin_each, deployment, has_taint, make_namespace, node, node_condition, pods, twins, until_ready,
};

/// Kubernetes evicts pods 300 s after their node turned NotReady; the tests' pods are given this many seconds instead.
const EVICTION_SECONDS: u32 = 5;

async fn world(policy: &[&str]) -> (Cluster, Cluster, VirtualNode) {
    let (upper, lower) = tokio::try_join!(
        // A healthy node beside: when every node of a cluster is NotReady its controller takes itself for the one that is
        // cut off, and evicts nothing (K pkg/controller/nodelifecycle, full disruption).
        Cluster::builder("upper").nodes(KwokNodes::count(1)).default_toleration_seconds(EVICTION_SECONDS).start(),
        Cluster::builder("lower").nodes(KwokNodes::count(2)).start()
    )
    .unwrap();
    let virtual_node =
        VirtualNode::builder(&upper, &lower).name("vn").args(policy.iter().copied()).start().await.unwrap();
    make_namespace(&upper).await;
    upper.apply_yaml(&deployment(5)).await.unwrap();
    until_ready(&upper, 5, SOON).await;
    (upper, lower, virtual_node)
}

async fn until_reachable(upper: &Cluster, reachable: &str) {
    eventually(&format!("the Node says LowerReachable={reachable}"), SOON, || async {
        let seen = node(upper, "vn").await;
        Ok(Seen::when(node_condition(&seen, condition::LOWER_REACHABLE) == reachable, seen.status))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn under_hold_an_outage_moves_nothing_and_deletions_are_made_up_for_afterwards() {
    let (upper, lower, _virtual_node) = world(&[]).await;
    let (above, below) = twins(&upper, &lower).await;
    lower.stop_apiserver();
    until_reachable(&upper, "False").await;
    let seen = node(&upper, "vn").await;
    assert_eq!(node_condition(&seen, "Ready"), "True");
    assert!(has_taint(&seen, taint::UNREACHABLE), "{:?}", seen.spec);
    // Many times the eviction tolerance goes by; nothing may move. (There is nothing to wait for but time.)
    tokio::time::sleep(Duration::from_secs(u64::from(EVICTION_SECONDS) * 5)).await;
    let pods_above = pods(&upper).list(&ListParams::default()).await.unwrap().items;
    assert_eq!(pods_above.len(), 5);
    assert!(pods_above.iter().all(|pod| pod.metadata.deletion_timestamp.is_none()));
    // A user deletes one meanwhile: it stays Terminating, for its containers may still run.
    let doomed = pods_above[0].metadata.name.clone().unwrap();
    pods(&upper).delete(&doomed, &DeleteParams::default()).await.unwrap();

    lower.start_apiserver().await.unwrap();
    until_reachable(&upper, "True").await;
    eventually("the taint is gone", SOON, || async {
        let seen = node(&upper, "vn").await;
        Ok(Seen::when(!has_taint(&seen, taint::UNREACHABLE), seen.spec))
    })
    .await
    .unwrap();
    until_ready(&upper, 5, SOON).await;
    assert_one_twin_each(&upper, &lower).await;
    let (after_above, after_below) = twins(&upper, &lower).await;
    let kept = above.iter().filter(|uid| after_above.contains(uid)).count();
    assert_eq!(kept, 4, "only the deleted pod was replaced");
    for uid in above.iter().filter(|uid| after_above.contains(uid)) {
        assert_eq!(after_below[uid], below[uid], "and the others run where they ran");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_evict_an_outage_ends_in_kubernetes_own_eviction_and_the_old_twins_are_removed_on_return() {
    let (upper, lower, _virtual_node) = world(&["--lower-unreachable=evict", "--evict-after=5s"]).await;
    let (above, _) = twins(&upper, &lower).await;
    lower.stop_apiserver();
    eventually("the Node is NotReady", SOON, || async {
        let seen = node(&upper, "vn").await;
        Ok(Seen::when(node_condition(&seen, "Ready") == "False", node_condition(&seen, "Ready")))
    })
    .await
    .unwrap();
    eventually("the pods are being evicted", SOON, || async {
        let all = pods(&upper).list(&ListParams::default()).await?.items;
        let old = all.iter().filter(|pod| above.contains(pod.metadata.uid.as_ref().unwrap()));
        let staying = old.filter(|pod| pod.metadata.deletion_timestamp.is_none()).count();
        Ok(Seen::when(staying == 0, format!("{staying} not evicted yet")))
    })
    .await
    .unwrap();
    lower.start_apiserver().await.unwrap();
    until_ready(&upper, 5, SOON).await;
    assert_one_twin_each(&upper, &lower).await;
    let (after, _) = twins(&upper, &lower).await;
    assert!(after.iter().all(|uid| !above.contains(uid)), "all were replaced");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_api_server_that_hangs_is_noticed_and_a_restart_meanwhile_keeps_the_node() {
    let (upper, lower, virtual_node) = world(&[]).await;
    let (_, below) = twins(&upper, &lower).await;
    lower.pause_apiserver();
    until_reachable(&upper, "False").await;
    // The process itself is restarted in the middle of the outage: the Node's lease must be kept all the same.
    virtual_node.kill9();
    virtual_node.restart_without_waiting().unwrap();
    tokio::time::sleep(Duration::from_secs(u64::from(EVICTION_SECONDS) * 5)).await;
    let seen = node(&upper, "vn").await;
    assert_eq!(node_condition(&seen, "Ready"), "True");
    assert_eq!(pods(&upper).list(&ListParams::default()).await.unwrap().items.len(), 5);
    lower.resume_apiserver();
    until_reachable(&upper, "True").await;
    assert_one_twin_each(&upper, &lower).await;
    let (_, after) = twins(&upper, &lower).await;
    assert_eq!(after, below);
}

/// As the lower nodes of KWOK have it: a lease is renewed each 10 s, and missed after this time.
const NODE_GRACE: Duration = Duration::from_secs(20);

/// Longer than a node may be silent, and than any pause between two tries of the virtual-node; what follows is the same
/// after any longer time. Pods are evicted 300 s after their node was found silent, by a clock that stands still while
/// there is no API server.
const AWAY: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread")]
async fn an_upper_api_server_that_is_away_stops_no_pod_and_what_happened_meanwhile_is_told_afterwards() {
    let (upper, lower) = tokio::try_join!(
        Cluster::builder("upper").node_monitor_grace(NODE_GRACE).start(),
        Cluster::builder("lower").nodes(KwokNodes::count(2)).start()
    )
    .unwrap();
    let virtual_node = VirtualNode::builder(&upper, &lower).name("vn").start().await.unwrap();
    make_namespace(&upper).await;
    upper.apply_yaml(&deployment(5)).await.unwrap();
    until_ready(&upper, 5, SOON).await;
    let (above, below) = twins(&upper, &lower).await;
    let of = |uid: &String| below[uid][0].clone();

    upper.stop_apiserver();
    let began = Instant::now();
    // Meanwhile one container below is restarted, and one pod is deleted by somebody.
    let all = pods(&lower).list(&ListParams::default()).await.unwrap().items;
    let named = |uid: &String| all.iter().find(|pod| pod.metadata.uid.as_ref() == Some(&of(uid))).unwrap().name_any();
    let (restarted, deleted) = (named(&above[0]), named(&above[1]));
    let mut status = pods(&lower).get(&restarted).await.unwrap().status.unwrap();
    status.container_statuses.as_mut().unwrap()[0].restart_count = 7;
    let patch = Patch::Merge(json!({"status": {"containerStatuses": status.container_statuses}}));
    pods(&lower).patch_status(&restarted, &PatchParams::default(), &patch).await.unwrap();
    pods(&lower).delete(&deleted, &DeleteParams::default()).await.unwrap();
    // There is nothing to wait for but time.
    tokio::time::sleep(AWAY.saturating_sub(began.elapsed())).await;
    assert!(virtual_node.exited().is_none(), "it gave up: {}", virtual_node.logs());
    assert_eq!(pods(&lower).list(&ListParams::default()).await.unwrap().items.len(), 4, "the others run on");

    upper.start_apiserver().await.unwrap();
    // Kubernetes' own controllers and its scheduler pause for up to a minute between two tries by now.
    until_ready(&upper, 5, Duration::from_mins(4)).await;
    assert_one_twin_each(&upper, &lower).await;
    eventually("the restart is told above", SOON, || async {
        let status = pods(&upper).get(&restarted).await?.status.unwrap_or_default();
        let count = status.container_statuses.iter().flatten().map(|container| container.restart_count).sum::<i32>();
        Ok(Seen::when(count == 7, count))
    })
    .await
    .unwrap();
    eventually("the Node is Ready", SOON, || async {
        let seen = node(&upper, "vn").await;
        let alive = node_condition(&seen, "Ready") == "True" && !has_taint(&seen, "node.kubernetes.io/unreachable");
        Ok(Seen::when(alive, seen))
    })
    .await
    .unwrap();
    let (after_above, after_below) = twins(&upper, &lower).await;
    let kept: Vec<&String> = above.iter().filter(|uid| after_above.contains(uid)).collect();
    assert_eq!(kept.len(), 4, "only the pod that was deleted below was replaced");
    for uid in kept {
        assert_eq!(after_below[uid], below[uid], "and the others run where they ran");
    }
    assert!(virtual_node.exited().is_none());
}
