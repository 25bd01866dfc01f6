//! A name that is somebody else's is refused, with an exit code and words that say what to do.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use tensile_e2e::{Cluster, KwokNodes, VirtualNode};

use crate::support::{SOON, clusters, is_well, lease_of, leases, node_that, nodes};

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_refused_with_the_cure() {
    let upper = Cluster::builder("upper-names").nodes(KwokNodes::count(1));
    let (upper, lower) = clusters(upper, "lower-names").await;
    let refusal = async |name: &str, args: &[&str]| {
        let builder = VirtualNode::builder(&upper, &lower).name(name).args(args.iter().copied());
        let (code, logs) = builder.start_expecting_failure().await.unwrap();
        assert!(code.is_some_and(|c| c != 0), "exit code {code:?}");
        logs
    };

    // A machine's node.
    let logs = refusal("kwok-0", &[]).await;
    assert!(logs.contains("Node `kwok-0` exists and is not a virtual node") && logs.contains("--node-name"), "{logs}");

    // Labels that no node may have.
    let logs = refusal("east", &["--node-label=node-role.kubernetes.io/agent=yes"]).await;
    assert!(logs.contains("node-role.kubernetes.io/agent") && logs.contains("NodeRestriction"), "{logs}");

    // Another lower cluster's virtual node: one that runs ends, and one that starts is refused.
    let running = VirtualNode::builder(&upper, &lower).name("east").start().await.unwrap();
    let other = json!({"metadata": {"annotations": {"tensile.dev/lower-cluster": "another"}}});
    nodes(&upper).patch("east", &PatchParams::default(), &Patch::Merge(other)).await.unwrap();
    let end = running.ended(SOON).await.unwrap();
    assert!(!end.success() && running.logs().contains("stands for another lower cluster"), "{end}: {}", running.logs());
    let logs = refusal("east", &[]).await;
    assert!(logs.contains("stands for another lower cluster (UID another"), "{logs}");

    // Once the Node is deleted, as the words say, it starts.
    nodes(&upper).delete("east", &DeleteParams::default()).await.unwrap();
    running.restart().await.unwrap();
    lease_of(&upper, &node_that(&upper, "east", "the Node is well", is_well).await).await;
    running.kill9();

    // Another installation keeps a node of this name and cluster.
    let now = MicroTime(Timestamp::now());
    let theirs = json!({"spec": {"holderIdentity": "elsewhere/virtual-node-east", "renewTime": now}});
    leases(&upper).patch("east", &PatchParams::default(), &Patch::Merge(theirs)).await.unwrap();
    let logs = refusal("east", &[]).await;
    assert!(logs.contains("kept by another virtual-node, `elsewhere/virtual-node-east`"), "{logs}");
    tokio::join!(upper.stop(), lower.stop());
}
