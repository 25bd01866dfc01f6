//! A kubeconfig that comes to say something else: the same cluster is followed, another one is not, nonsense is told.

use tensile_e2e::{Seen, eventually};

use serde_json::json;

use crate::{
    files::Mounted,
    world::{SOON, held_back, kubeconfig, lower_uid, renewals, revocable_token, until_shown, world},
};

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_or_a_broken_file_is_not_followed_and_another_address_is() {
    let w = world().await;
    let user = json!({"token": revocable_token(&w.lower, "moving").await});
    let mounted = Mounted::new(w.folder("moving"), &[("kubeconfig", &w.below(&user))]);
    let node = w.node("moving", &mounted.path("kubeconfig")).start().await.unwrap();
    w.create("moving", "moving-1").await;
    w.until_ready("moving-1").await;
    let before = lower_uid(w, "moving-1").await;
    let said = async |words: &str| {
        eventually(&format!("the log says {words}"), SOON, || async {
            Ok(Seen::when(node.logs().contains(words), node.logs().lines().last()))
        })
        .await
        .unwrap();
    };

    // Another cluster, with credentials that are good there.
    let elsewhere = json!({"token": revocable_token(&w.upper, "moving-elsewhere").await});
    mounted.replace(&[("kubeconfig", &kubeconfig(w.upper.server_url(), w.upper.ca_pem(), &elsewhere))]);
    until_shown(&node, &held_back("lower", true)).await;
    said("it leads to another cluster").await;
    said("--lower-kubeconfig").await;
    w.create("moving", "moving-2").await;
    w.until_ready("moving-2").await;
    lower_uid(w, "moving-2").await;
    let account = "system:serviceaccount:tensile-system:virtual-node";
    let strange: Vec<String> = w
        .upper
        .audit_log(account)
        .unwrap()
        .into_iter()
        .filter(|entry| ["pods", "configmaps"].contains(&entry.resource.as_str()) && entry.namespace == "credentials")
        .map(|entry| format!("{} {}", entry.verb, entry.request_uri))
        .collect();
    assert!(strange.is_empty(), "the other cluster was worked on: {strange:?}");

    // Nonsense, and a credential that nobody knows.
    mounted.replace(&[("kubeconfig", "clusters: [{")]);
    said("is not the YAML of a kubeconfig").await;
    mounted.replace(&[("kubeconfig", &w.below(&json!({"token": "unknown"})))]);
    said("the cluster refuses the new credentials (401").await;
    w.create("moving", "moving-3").await;
    w.until_ready("moving-3").await;

    // The same cluster by another name.
    let address = w.lower.server_url().replace("127.0.0.1", "localhost");
    assert_ne!(address, w.lower.server_url());
    mounted.replace(&[("kubeconfig", &kubeconfig(&address, w.lower.ca_pem(), &user))]);
    until_shown(&node, &held_back("lower", false)).await;
    until_shown(&node, &renewals("lower", "taken", 1)).await;
    w.create("moving", "moving-4").await;
    w.until_ready("moving-4").await;

    assert_eq!(lower_uid(w, "moving-1").await, before, "a pod was touched");
    let ready = node.get("/readyz").await.unwrap();
    assert!(ready.starts_with("ready"), "{ready}");
}
