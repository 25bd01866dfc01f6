//! A virtual node registers, is kept level, and comes back when it is deleted.

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use tensile_e2e::{Cluster, VirtualNode};

use crate::support::{SOON, allocatable, clusters, condition, lease_of, node_that, nodes, taints};

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_node_shows_its_lower_cluster_and_is_kept_as_it_should_be() {
    let (upper, lower) = clusters(Cluster::builder("upper-level"), "lower-level").await;
    let running = VirtualNode::builder(&upper, &lower)
        .name("east")
        .args(["--node-label=team=a", "--node-taint=gpu=yes:PreferNoSchedule"])
        .start()
        .await
        .unwrap();

    let node = node_that(&upper, "east", "the taint of new nodes is gone", |n| taints(n).len() == 2).await;
    assert_eq!(taints(&node), ["virtual-kubelet.io/provider:NoSchedule", "gpu:PreferNoSchedule"]);
    let labels = node.metadata.labels.as_ref().unwrap();
    for (key, value) in [
        ("type", "virtual-kubelet"),
        ("tensile.dev/cluster", "east"),
        ("kubernetes.io/hostname", "east"),
        ("kubernetes.io/os", "linux"),
        ("team", "a"),
    ] {
        assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!(allocatable(&node, "cpu").as_deref(), Some("16"));
    assert_eq!(allocatable(&node, "pods").as_deref(), Some("220"));
    assert_eq!(condition(&node, "tensile.dev/LowerReachable").as_deref(), Some("True"));
    lease_of(&upper, &node).await;

    // Others' labels and a cordon stay; what is ours comes back.
    let edit = json!({
        "metadata": {"labels": {"theirs": "yes", "tensile.dev/cluster": null}},
        "spec": {"unschedulable": true},
    });
    nodes(&upper).patch("east", &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
    let has_ours = |n: &k8s_openapi::api::core::v1::Node| {
        n.metadata.labels.as_ref().is_some_and(|l| l.contains_key("tensile.dev/cluster"))
    };
    let node = node_that(&upper, "east", "our label is back", has_ours).await;
    assert_eq!(node.metadata.labels.as_ref().unwrap()["theirs"], "yes");
    assert_eq!(node.spec.as_ref().unwrap().unschedulable, Some(true));

    // A lower node goes: so does its room.
    lower.delete_kwok_node("kwok-1").await.unwrap();
    let halved = |n: &_| allocatable(n, "cpu").as_deref() == Some("8");
    node_that(&upper, "east", "the Node has the size of one lower node", halved).await;

    // Deleted by hand: registered again, with a lease that follows.
    let before = node.metadata.uid.unwrap();
    nodes(&upper).delete("east", &DeleteParams::default()).await.unwrap();
    let node = node_that(&upper, "east", "it is registered again", |n| n.metadata.uid.as_ref() != Some(&before)).await;
    lease_of(&upper, &node).await;
    assert!(running.term(SOON).await.unwrap().success());
    tokio::join!(upper.stop(), lower.stop());
}
