//! Clusters that are one and the same, or are not there.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::DeleteParams};
use tensile_e2e::{Cluster, KwokNodes, Seen, VirtualNode, eventually};

use crate::world::{SOON, kubeconfig, says, until_said, user_of, world};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_to_be_its_own_node_is_refused_whatever_its_address() {
    let w = world().await;
    w.upper.apply_yaml(include_str!("../../../virtual-node/deploy/rbac-lower.yaml")).await.unwrap();
    let account = w.upper.service_account_kubeconfig("tensile-system", "virtual-node").await.unwrap();
    let logs = w.refusal("itself", &[&format!("--lower-kubeconfig={}", account.display())]).await;
    says(
        &logs,
        &["name the same API server", w.upper.server_url(), "cannot be a node of itself", "--lower-kubeconfig"],
    );

    // The same cluster by another name of it.
    let elsewhere = w.upper.server_url().replace("127.0.0.1", "localhost");
    assert_ne!(elsewhere, w.upper.server_url());
    let path = w.file("elsewhere", &kubeconfig(&elsewhere, w.upper.ca_pem(), &user_of(&account)));
    let logs = w.refusal("itself", &[&format!("--lower-kubeconfig={path}")]).await;
    says(&logs, &["lead to the same cluster", "cannot be a node of itself", "--lower-kubeconfig"]);
    let nodes: Api<Node> = Api::all(w.upper.client());
    assert!(nodes.get_opt("itself").await.unwrap().is_none(), "it registered a Node before it looked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_cluster_that_is_down_at_the_start_is_waited_for_and_that_is_said() {
    let w = world().await;
    let lower = Cluster::builder("lower-down").nodes(KwokNodes::count(1)).start().await.unwrap();
    // Installed once; then its Node, which would remember the cluster, is deleted.
    let node = VirtualNode::builder(&w.upper, &lower).name("early").start().await.unwrap();
    assert!(node.term(SOON).await.unwrap().success());
    let nodes: Api<Node> = Api::all(w.upper.client());
    nodes.delete("early", &DeleteParams::default()).await.unwrap();

    lower.stop_apiserver();
    node.restart_without_waiting().unwrap();
    let words =
        ["the lower cluster does not answer", "are `server` and `certificate-authority` in --lower-kubeconfig right?"];
    until_said(&node, &words).await;
    assert!(nodes.get_opt("early").await.unwrap().is_none(), "a Node for a cluster that nobody has seen");
    lower.start_apiserver().await.unwrap();
    eventually("the Node is Ready", SOON, || async {
        let node = nodes.get_opt("early").await?;
        let conditions = node.and_then(|n| n.status).and_then(|s| s.conditions).unwrap_or_default();
        Ok(Seen::when(conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"), conditions))
    })
    .await
    .unwrap();
    assert!(node.term(Duration::from_secs(30)).await.unwrap().success());
    lower.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_is_named_while_it_is_waited() {
    let w = world().await;
    w.a.apply_yaml(include_str!("../../../virtual-node/deploy/rbac-lower.yaml")).await.unwrap();
    let account = w.a.service_account_kubeconfig("tensile-system", "virtual-node").await.unwrap();
    let (good, wrong) = (w.a.ca_pem(), w.b.ca_pem());
    let write = |ca: &str| w.file("lower", &kubeconfig(w.a.server_url(), ca, &user_of(&account)));
    let argument = format!("--lower-kubeconfig={}", write(good));
    let node = VirtualNode::builder(&w.upper, &w.a).name("untrusted").args([argument]).start().await.unwrap();
    assert!(node.term(SOON).await.unwrap().success());
    let nodes: Api<Node> = Api::all(w.upper.client());
    nodes.delete("untrusted", &DeleteParams::default()).await.unwrap();

    write(wrong);
    node.restart_without_waiting().unwrap();
    until_said(
        &node,
        &["the lower cluster does not answer", "UnknownIssuer", "`certificate-authority` in --lower-kubeconfig"],
    )
    .await;
    assert!(!node.logs().contains(user_of(&account)["token"].as_str().unwrap()), "the token is in the log");
    assert!(node.term(SOON).await.unwrap().success(), "it cannot be stopped while it waits");
}
