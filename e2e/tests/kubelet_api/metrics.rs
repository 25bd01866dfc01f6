//! Who may read metrics, and what there is where the lower cluster has no metrics API. With one, see `top` of the tests on
//! a real node.

use tensile_e2e::{Seen, eventually};

use crate::{
    access::{direct, get},
    command::{SOON, run},
    world::{SPDY_NODE, world},
};

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_statistics_are_opened_by_the_rights_of_these_names_alone() {
    let Some(world) = world() else { return };
    let account = |name: &str, resource: &str| {
        format!(
            "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: default}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {name}}}
rules: [{{apiGroups: [''], resources: [{resource}], verbs: [get]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {name}}}
subjects: [{{kind: ServiceAccount, name: {name}, namespace: default}}]
---
"
        )
    };
    let accounts = [("scraper", "nodes/metrics"), ("summarizer", "nodes/stats"), ("operator", "nodes/proxy")];
    let yaml: String = accounts.iter().map(|(name, resource)| account(name, resource)).collect();
    world.upper.apply_yaml(&yaml).await.unwrap();
    let forbidden = |name: &str, resource: &str| {
        let user = format!("system:serviceaccount:default:{name}");
        format!("Forbidden (user={user}, verb=get, resource=nodes, subresource(s)=[{resource}])\n")
    };
    for (name, allowed, refused) in [
        (
            "scraper",
            ["/metrics/resource", "/metrics"].as_slice(),
            [("/stats/summary", "stats"), ("/pods", "pods proxy")],
        ),
        ("summarizer", &["/stats/summary"], [("/metrics/resource", "metrics"), ("/healthz", "healthz proxy")]),
        // Whoever may do anything in any container may not read these, as with a kubelet.
        ("operator", &["/pods", "/healthz"], [("/metrics/resource", "metrics"), ("/stats/summary", "stats")]),
    ] {
        let token = world.upper.service_account_kubeconfig("default", name).await.unwrap();
        let client = direct(world, world.port, Some(&token)).await;
        for path in allowed {
            eventually(&format!("{name} may get {path}"), SOON, || async {
                let answer = get(&client, path).await;
                Ok(Seen::when(answer.0 != 403, answer))
            })
            .await
            .unwrap();
        }
        for (path, resource) in refused {
            assert_eq!(get(&client, path).await, (403, forbidden(name, resource)), "{name} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_metrics_api_below_nothing_is_told_but_why() {
    let Some(world) = world() else { return };
    let raw = |path: &str| {
        let path = format!("/api/v1/nodes/{SPDY_NODE}/proxy{path}");
        run(&mut world.kubectl(&["get", "--raw", &path]), b"")
    };
    let scraped = raw("/metrics/resource").ok();
    let series: Vec<&str> = scraped.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(series, ["resource_scrape_error 1"]);
    assert!(scraped.contains("install metrics-server there"), "{scraped}");
    let summary = raw("/stats/summary");
    assert_eq!(summary.code, Some(1));
    assert!(summary.err.contains("install metrics-server there"), "{}", summary.err);
    // kubectl keeps the text of a 404 to itself.
    let admin = world.upper.user_kubeconfig("admin-of-metrics", &["system:masters"]).unwrap();
    let (code, text) = get(&direct(world, world.port, Some(&admin)).await, "/metrics/cadvisor").await;
    assert_eq!(code, 404);
    assert!(text.contains("/metrics/resource"), "{text}");
}
