//! A node name that is somebody else's is left to them.

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tensile_e2e::VirtualNode;

use crate::world::{SOON, says, world};

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_machine_is_refused_and_its_node_is_as_before() {
    let w = world().await;
    let nodes: Api<Node> = Api::all(w.upper.client());
    let before = nodes.get("kwok-0").await.unwrap();
    let logs = w.refusal("kwok-0", &[]).await;
    says(&logs, &["Node `kwok-0` exists and is not a virtual node", "choose another --node-name"]);
    let after = nodes.get("kwok-0").await.unwrap();
    // Its own heartbeats go on; what we would have written is in metadata and spec.
    assert_eq!(
        (before.metadata.labels, before.metadata.annotations),
        (after.metadata.labels, after.metadata.annotations)
    );
    assert_eq!(before.spec, after.spec);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_virtual_node_of_one_name_for_another_cluster_is_refused_and_the_first_goes_on() {
    let w = world().await;
    let first = VirtualNode::builder(&w.upper, &w.a).name("twin").start().await.unwrap();
    let nodes: Api<Node> = Api::all(w.upper.client());
    let lower_cluster = async || {
        let node = nodes.get("twin").await.unwrap();
        node.metadata.annotations.unwrap()["tensile.dev/lower-cluster"].clone()
    };
    let before = lower_cluster().await;

    let second = VirtualNode::builder(&w.upper, &w.b).name("twin");
    let (code, logs) = second.start_expecting_failure().await.unwrap();
    assert!(code.is_some_and(|code| code != 0), "{code:?}: {logs}");
    says(
        &logs,
        &["Node `twin` stands for another lower cluster", &before, "choose another --node-name", "delete the Node"],
    );
    assert_eq!(lower_cluster().await, before);
    assert!(first.term(SOON).await.unwrap().success(), "the first one did not go on: {}", first.logs());
}
