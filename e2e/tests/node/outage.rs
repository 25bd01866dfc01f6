//! The lower API server hangs and comes back.

use tensile_e2e::{Cluster, VirtualNode};

use crate::support::{clusters, condition, is_well, node_that, nodes, taints};

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_below_is_held_or_evicted_as_the_policy_says() {
    let (upper, lower) = clusters(Cluster::builder("upper-outage"), "lower-outage").await;
    let hold = VirtualNode::builder(&upper, &lower).name("hold").start().await.unwrap();
    let evict = VirtualNode::builder(&upper, &lower)
        .name("evict")
        .args(["--lower-unreachable=evict", "--evict-after=5s"])
        .start()
        .await
        .unwrap();
    for name in ["hold", "evict"] {
        node_that(&upper, name, "the Node is well", is_well).await;
    }

    // It hangs with its connections open, which is worse than being gone.
    lower.pause_apiserver();
    let noticed = |n: &_| {
        condition(n, "tensile.dev/LowerReachable").as_deref() == Some("False")
            && taints(n).contains(&"tensile.dev/unreachable:NoSchedule".to_owned())
    };
    for name in ["hold", "evict"] {
        node_that(&upper, name, "the outage shows on the Node", noticed).await;
    }
    let not_ready = |n: &_| condition(n, "Ready").as_deref() == Some("False");
    node_that(&upper, "evict", "the evicting Node turns NotReady", not_ready).await;
    let held = nodes(&upper).get("hold").await.unwrap();
    assert_eq!(condition(&held, "Ready").as_deref(), Some("True"), "hold never turns NotReady");

    // A restart in the middle of it: the lease is kept, and nothing turns Ready for it.
    for (name, process) in [("hold", &hold), ("evict", &evict)] {
        process.kill9();
        process.restart_without_waiting().unwrap();
        let before = renewed(&upper, name).await;
        node_that(&upper, name, "the outage still shows", noticed).await;
        let again = || async { Ok(tensile_e2e::Seen::when(renewed(&upper, name).await > before, before)) };
        tensile_e2e::eventually("the new process renews the lease", crate::support::SOON, again).await.unwrap();
    }
    node_that(&upper, "evict", "the evicting Node is still NotReady", not_ready).await;
    let held = nodes(&upper).get("hold").await.unwrap();
    assert_eq!(condition(&held, "Ready").as_deref(), Some("True"), "hold never turns NotReady");

    lower.resume_apiserver();
    for name in ["hold", "evict"] {
        node_that(&upper, name, "the Node is as before the outage", is_well).await;
    }
    tokio::join!(upper.stop(), lower.stop());
}

/// When the lease was renewed last, in microseconds.
async fn renewed(upper: &Cluster, name: &str) -> Option<i64> {
    let lease = crate::support::leases(upper).get_opt(name).await.ok().flatten()?;
    Some(lease.spec?.renew_time?.0.as_microsecond())
}
