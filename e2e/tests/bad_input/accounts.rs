//! Credentials that a cluster does not know, and accounts without the rights.

use std::time::{Duration, Instant};

use serde_json::json;
use tensile_e2e::{Cluster, Seen, VirtualNode, eventually};

use crate::world::{SOON, kubeconfig, says, until_said, world};

/// How long a virtual-node without rights is watched: enough for several tries of each of its watches.
const WATCHED_FOR: Duration = Duration::from_secs(5);

/// Six of its parts ask below (nodes, events, two kinds of copies, and two for what an earlier run left). With pauses that
/// double from some 0.2 s each tries about six times; one that does not pause tries hundreds of times.
const TRIES_MAX: usize = 80;

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_a_cluster_refuses_end_the_process() {
    let w = world().await;
    for (side, cluster) in [("upper", &w.upper), ("lower", &w.a)] {
        let text = kubeconfig(cluster.server_url(), cluster.ca_pem(), &json!({"token": "very-secret-and-wrong"}));
        let path = w.file(&format!("bad-token-{side}"), &text);
        let logs = w.refusal("strangers", &[&format!("--{side}-kubeconfig={path}")]).await;
        let cure = format!("Check the credentials in --{side}-kubeconfig");
        let refused = format!("the {side} cluster refuses us");
        says(&logs, &[&refused, "Unauthorized", &cure, &format!("deploy/rbac-{side}.yaml")]);
        assert!(!logs.contains("very-secret"), "a secret in the log: {logs}");
        let known = cluster.user_kubeconfig("known-and-poor", &[]).unwrap();
        let logs = w.refusal("strangers", &[&format!("--{side}-kubeconfig={}", known.display())]).await;
        says(&logs, &["known-and-poor", "forbidden", &format!("deploy/rbac-{side}.yaml")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_with_some_of_the_rights_is_told_which_are_missing() {
    let w = world().await;
    // Above: who may not keep the node's certificate ends.
    let poor = poor(&w.upper, "half-upper").await;
    let logs = w.refusal("half", &[&format!("--upper-kubeconfig={poor}")]).await;
    says(&logs, &["Secret tensile-system/half-identity", "forbidden", "deploy/rbac-upper.yaml"]);

    // Below: it says what it lacks, is not ready, does not hammer the API server, and goes on as soon as it may.
    let path = self::poor(&w.a, "half-lower").await;
    let begun = Instant::now();
    let starting =
        VirtualNode::builder(&w.upper, &w.a).name("half").args([format!("--lower-kubeconfig={path}")]).start();
    let granting = async {
        let refused = || {
            let entries = w.a.audit_log("half-lower").unwrap();
            entries.into_iter().filter(|e| e.code == 403).map(|e| e.resource).collect::<Vec<_>>()
        };
        eventually("nodes, ConfigMaps and Secrets are asked for in vain", SOON, || async {
            let seen = refused();
            let all = ["nodes", "configmaps", "secrets"].iter().all(|wanted| seen.iter().any(|r| r == wanted));
            // Some tries each, to see their pauses grow.
            Ok(Seen::when(all && begun.elapsed() > WATCHED_FOR, seen))
        })
        .await
        .unwrap();
        let tries = refused().len();
        assert!(tries <= TRIES_MAX, "{tries} refused requests in {:?}", begun.elapsed());
        w.a.apply_yaml(&binding("half-lower-more", "tensile:virtual-node", "half-lower")).await.unwrap();
    };
    let (node, ()) = tokio::join!(starting, granting);
    let node = node.expect("it is not ready with the rights that it was granted meanwhile");
    until_said(&node, &["nodes is forbidden", "configmaps is forbidden", "half-lower", "deploy/rbac-lower.yaml"]).await;
}

/// A user who may look at the identity of a cluster, and nothing else.
async fn poor(cluster: &Cluster, user: &str) -> String {
    let role = format!(
        "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {user}}}
rules: [{{apiGroups: [''], resources: [namespaces], resourceNames: [kube-system], verbs: [get]}}]
---
{}",
        binding(user, user, user)
    );
    cluster.apply_yaml(&role).await.unwrap();
    cluster.user_kubeconfig(user, &[]).unwrap().display().to_string()
}

fn binding(name: &str, role: &str, user: &str) -> String {
    format!(
        "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: '{role}'}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {user}}}]
"
    )
}
