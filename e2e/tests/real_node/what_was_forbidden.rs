//! Least privilege over all that the tests of this program do.

use std::time::Duration;

use serde_json::json;
use tensile_e2e::{AuditEntry, Cluster, Seen, eventually};

use crate::{
    pods::is_ready,
    world::{NODE, SLEEP, space},
};

/// The tests that run beside this one end within their own limits.
const OTHERS: Duration = Duration::from_mins(4);

const ACCOUNT: &str = "system:serviceaccount:tensile-system:virtual-node";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_our_accounts_asked_for_was_forbidden() {
    let Some(space) = space("forbidden").await else { return };
    let world = space.world;
    space.pod("one", SLEEP, json!({})).await;
    space.until("one", "is ready", is_ready).await;
    assert_eq!(space.inside("one", "echo it runs").await, "it runs\n");
    eventually("the other tests are done", OTHERS, || async {
        let active = world.active();
        Ok(Seen::when(active == 1, format!("{active} tests at work")))
    })
    .await
    .unwrap();
    let mut refused = Vec::new();
    for (cluster, account) in [
        (&world.upper, ACCOUNT.to_owned()),
        (&world.upper, format!("system:node:{NODE}")),
        (&world.lower, ACCOUNT.to_owned()),
    ] {
        let entries = cluster.audit_log(&account).unwrap();
        assert!(entries.len() > 10, "{account} asked for {} things in {} only", entries.len(), cluster.name());
        for (index, entry) in entries.iter().enumerate().filter(|(_, e)| matches!(e.code, 401 | 403)) {
            let later = &entries[index + 1..];
            if is_early(entry) && later.iter().any(|e| same_object(e, entry) && (200..300).contains(&e.code)) {
                eprintln!("early, and granted later: {}", line(cluster, entry));
            } else {
                refused.push(line(cluster, entry));
            }
        }
    }
    assert!(refused.is_empty(), "forbidden:\n{}", refused.join("\n"));
}

/// Whether it may have come before the Node authorizer knew of the pod that refers to the object. It learns of pods by a
/// watch of its own (`K plugin/pkg/auth/authorizer/node/graph_populator.go`), so for some milliseconds it says no to any
/// kubelet that was quicker.
fn is_early(e: &AuditEntry) -> bool {
    let of_a_pod = matches!(
        (e.resource.as_str(), e.subresource.as_str()),
        ("configmaps" | "secrets", "") | ("serviceaccounts", "token")
    );
    e.user.starts_with("system:node:") && of_a_pod && !e.name.is_empty()
}

fn same_object(one: &AuditEntry, other: &AuditEntry) -> bool {
    let of = |e: &AuditEntry| (e.resource.clone(), e.subresource.clone(), e.namespace.clone(), e.name.clone());
    of(one) == of(other)
}

fn line(cluster: &Cluster, e: &AuditEntry) -> String {
    format!("{} {}: {} {} {} -> {}", e.received_at, cluster.name(), e.user, e.verb, e.request_uri, e.code)
}
