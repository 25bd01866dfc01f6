//! Probes answer from the first moment, and say what is waited for.

use serde_json::json;
use tensile_e2e::{Seen, VirtualNode, eventually};

use crate::{
    files::Mounted,
    world::{SOON, kubeconfig, revocable_token, world},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_node_that_waits_is_alive_and_says_what_it_waits_for() {
    let w = world().await;
    // Nobody listens there, and nobody approves its certificate.
    let user = json!({"token": revocable_token(&w.lower, "waiting").await});
    let nowhere = kubeconfig("https://127.0.0.1:1", w.lower.ca_pem(), &user);
    let mounted = Mounted::new(w.folder("waiting"), &[("kubeconfig", &nowhere)]);
    let node = w.node("waiting", &mounted.path("kubeconfig")).unapproved().start_without_waiting().await.unwrap();

    let said = until_not_ready(&node, "kubectl certificate approve").await;
    assert_eq!(node.get("/livez").await.unwrap(), "live\n");
    assert!(node.get("/metrics").await.unwrap().contains("process_start_time_seconds"));
    let request = said.split_whitespace().last().unwrap();
    w.upper.approve_csr(request).await.unwrap_or_else(|error| panic!("{error:#}: {said}"));

    until_not_ready(&node, "the lower cluster does not answer").await;
    assert_eq!(node.get("/livez").await.unwrap(), "live\n");

    // The right kubeconfig needs no restart either.
    mounted.replace(&[("kubeconfig", &w.below(&user))]);
    node.until_ready().await.unwrap();
}

/// Waits until `/readyz` says these words, and gives all of its answer.
async fn until_not_ready(node: &VirtualNode, words: &str) -> String {
    eventually(&format!("/readyz says {words:?}"), SOON, || async {
        let text = node.get("/readyz").await?;
        assert!(!text.starts_with("ready"), "it is ready although it waits");
        Ok(if text.contains(words) { Seen::Done(text) } else { Seen::NotYet(text) })
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}; its log:\n{}", node.logs()))
}
