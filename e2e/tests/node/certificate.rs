//! How a virtual node comes by its identity, and keeps it.

use std::time::Duration;

use k8s_openapi::{
    api::{certificates::v1::CertificateSigningRequest, core::v1::Secret},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Cluster, Seen, VirtualNode, eventually};

use crate::support::{SOON, clusters, is_well, lease_of, leases, node_that};

const WIDE_RIGHTS: &str = include_str!("../../../virtual-node/deploy/rbac-upper-service-account.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_asked_for_once_and_a_denial_is_told() {
    let (upper, lower) = clusters(Cluster::builder("upper-asked"), "lower-asked").await;
    let requests: Api<CertificateSigningRequest> = Api::all(upper.client());
    let of = |name: &str| ListParams::default().labels(&format!("tensile.dev/virtual-node={name}"));

    // A restart takes the stored certificate: nothing to approve again.
    let running = VirtualNode::builder(&upper, &lower).name("asked").start().await.unwrap();
    running.kill9();
    running.restart().await.unwrap();
    assert_eq!(requests.list(&of("asked")).await.unwrap().items.len(), 1);

    // A restart before the approval waits for the same request.
    let waiting = VirtualNode::builder(&upper, &lower).name("denied").unapproved();
    let ended = waiting.start_expecting_failure();
    let deny = async {
        let name = eventually("the certificate is asked for", SOON, || async {
            let found = requests.list(&of("denied")).await?.items.pop();
            Ok(found.and_then(|r| r.metadata.name).map_or(Seen::NotYet("no request".into()), Seen::Done))
        });
        let name = name.await.unwrap();
        let denied = json!([{"type": "Denied", "status": "True", "reason": "Policy", "message": "not on a Tuesday"}]);
        let patch = Patch::Merge(json!({"status": {"conditions": denied}}));
        requests.patch_approval(&name, &PatchParams::default(), &patch).await.unwrap();
        name
    };
    let (ended, request) = tokio::join!(ended, deny);
    let (code, logs) = ended.unwrap();
    assert!(code.is_some_and(|c| c != 0), "{code:?}");
    assert!(logs.contains(&format!("kubectl certificate approve {request}")), "{logs}");
    assert!(logs.contains("was denied (Policy: not on a Tuesday)"), "{logs}");

    // Without any certificate, by the wider rights of the account.
    upper.apply_yaml(&WIDE_RIGHTS.replace("{{NODE_NAME}}", "plain")).await.unwrap();
    let plain = VirtualNode::builder(&upper, &lower).name("plain").args(["--identity=service-account"]).unapproved();
    let _plain = plain.start().await.unwrap();
    lease_of(&upper, &node_that(&upper, "plain", "the Node is well", is_well).await).await;
    tokio::join!(upper.stop(), lower.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_before_it_runs_out_and_nobody_notices() {
    // Certificates of a minute: renewed after 42 to 54 s, without anybody's approval.
    let upper = Cluster::builder("upper-renewal").controller_manager_arg("--cluster-signing-duration=60s");
    let (upper, lower) = clusters(upper, "lower-renewal").await;
    let running = VirtualNode::builder(&upper, &lower).name("east").start().await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(upper.client(), "tensile-system");
    let certificate = || async {
        let secret = secrets.get("east-identity").await?;
        anyhow::Ok(secret.data.and_then(|d| d.get("tls.crt").cloned()).map(|c| c.0))
    };
    let first = certificate().await.unwrap();
    eventually("the stored certificate is another", Duration::from_mins(2), || async {
        let now = certificate().await?;
        Ok(Seen::when(now.is_some() && now != first, "the first one"))
    })
    .await
    .unwrap();
    let swapped_at = Timestamp::now();

    // The first one has at most 18 s left. After that the node still writes, by the second.
    eventually("the lease is renewed after the first certificate ran out", Duration::from_mins(2), || async {
        let at = leases(&upper).get("east").await?.spec.and_then(|s| s.renew_time).map(|t| t.0);
        Ok(Seen::when(at.is_some_and(|t| t.duration_since(swapped_at).as_secs() > 20), (at, swapped_at)))
    })
    .await
    .unwrap();
    let refused = upper.audit_log("system:node:east").unwrap().into_iter().filter(|e| matches!(e.code, 401 | 403));
    assert_eq!(refused.map(|e| e.request_uri).collect::<Vec<_>>(), Vec::<String>::new());
    assert!(running.term(SOON).await.unwrap().success());
    tokio::join!(upper.stop(), lower.stop());
}
