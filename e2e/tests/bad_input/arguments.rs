//! Arguments that cannot be meant, ports that are taken, certificates that are not given.

use std::net::TcpListener;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Seen, VirtualNode, eventually};

use crate::world::{SOON, says, world};

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_cannot_be_meant_is_refused_with_the_rule() {
    let w = world().await;
    let long = "a".repeat(64);
    let cases: &[(&str, &[&str])] = &[
        ("--node-name=East_1", &["node name `East_1`", "lowercase letters"]),
        (&format!("--node-name={long}"), &[&long, "63"]),
        ("--node-name=", &["node name ``"]),
        ("--cluster-name=a b", &["a b", "63"]),
        ("--node-address=nowhere", &["--node-address", "nowhere"]),
        ("--node-label=team", &["team", "KEY=VALUE"]),
        ("--node-label=-team=a", &["-team", "beginning and ending with a letter or digit"]),
        ("--node-label=team=a b", &["a b", "63"]),
        ("--node-label=node-role.kubernetes.io/agent=yes", &["node-role.kubernetes.io/agent", "NodeRestriction"]),
        ("--node-label=type=metal", &["type", "set by the virtual-node itself"]),
        ("--node-taint=gpu=yes", &["gpu=yes", "KEY[=VALUE]:EFFECT"]),
        ("--node-taint=gpu:Never", &["gpu:Never", "NoSchedule, PreferNoSchedule, NoExecute"]),
        ("--evict-after=soon", &["--evict-after", "soon", "300s or 5m"]),
        ("--evict-after=-5s", &["--evict-after", "must not be negative"]),
        ("--lower-unreachable=panic", &["--lower-unreachable", "hold, evict"]),
        ("--lease-duration=0", &["--lease-duration", "above 0 and up to 3600"]),
        ("--lease-duration=5", &["the lease times do not fit", "renew deadline (10s)", "duration (5s)"]),
        ("--namespaces=mine", &["--namespaces", "same, suffixed"]),
        ("--upper-api-for-pods=10.0.0.5", &["--upper-api-for-pods", "HOST:PORT"]),
        ("--pod-workers=0", &["--pod-workers", "1..=1024"]),
        ("--kubelet-address=10250", &["--kubelet-address", "10250"]),
        ("--admin-address=here", &["--admin-address", "here"]),
        ("--identity=kubeconfig", &["--identity-kubeconfig"]),
        ("--kubelet-tls-cert-file=/nowhere.pem", &["--kubelet-tls-key-file"]),
        ("--log-level=tensile=loud", &["tensile=loud"]),
        ("--no-such-flag", &["--no-such-flag"]),
    ];
    for (argument, words) in cases {
        let logs = w.refusal("values", &[argument]).await;
        says(&logs, words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named_with_its_flag() {
    let w = world().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--admin-address", "--kubelet-address", "--grpc-address"] {
        let logs = w.refusal("ports", &[&format!("{flag}={address}")]).await;
        says(&logs, &[&address, "in use", flag]);
    }
    // Not an address of this machine (RFC 5737).
    let logs = w.refusal("ports", &["--kubelet-address=192.0.2.1:10250"]).await;
    says(&logs, &["192.0.2.1:10250", "--kubelet-address"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_files_that_cannot_be_used_are_named() {
    let w = world().await;
    let (certificate, key) = (w.file("no.crt", "very-secret"), w.file("no.key", "very-secret"));
    let pair = [format!("--kubelet-tls-cert-file={certificate}"), format!("--kubelet-tls-key-file={key}")];
    let logs = w.refusal("files", &[&pair[0], &pair[1]]).await;
    says(&logs, &[&certificate]);
    assert!(!logs.contains("very-secret"), "{logs}");
    let logs = w.refusal("files", &["--kubelet-tls-cert-file=/nowhere.crt", &pair[1]]).await;
    says(&logs, &["/nowhere.crt", "No such file"]);
    let logs = w.refusal("files", &["--identity=kubeconfig", "--identity-kubeconfig=/nowhere"]).await;
    says(&logs, &["--identity-kubeconfig", "/nowhere", "give the path of an existing file"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_denied_ends_the_process_with_who_and_why() {
    let w = world().await;
    let requests: Api<CertificateSigningRequest> = Api::all(w.upper.client());
    let of_node = ListParams::default().labels("tensile.dev/virtual-node=unwanted");
    let ended = VirtualNode::builder(&w.upper, &w.a).name("unwanted").unapproved().start_expecting_failure();
    let deny = async {
        let name = eventually("the certificate is asked for", SOON, || async {
            let found = requests.list(&of_node).await?.items.pop();
            Ok(found.and_then(|r| r.metadata.name).map_or(Seen::NotYet("no request".into()), Seen::Done))
        })
        .await
        .unwrap();
        let denied = json!([{"type": "Denied", "status": "True", "reason": "Policy", "message": "ask first"}]);
        let patch = Patch::Merge(json!({"status": {"conditions": denied}}));
        requests.patch_approval(&name, &PatchParams::default(), &patch).await.unwrap();
        name
    };
    let (ended, name) = tokio::join!(ended, deny);
    let (code, logs) = ended.unwrap();
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    says(&logs, &[&format!("kubectl certificate approve {name}"), &format!("{name} was denied (Policy: ask first)")]);
}
