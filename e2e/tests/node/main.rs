//! The virtual node as an object of a real upper cluster: its certificate, its name, its life and its lower cluster's
//! outages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod harness;

use std::{collections::BTreeMap, time::Duration};

use harness::{NotStarted, Plan, SOON, approve, deny, install, install_wide};
use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest,
    coordination::v1::Lease,
    core::v1::{Node, Secret},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Cluster, KwokNodes, Seen, eventually};
use tensile_proto::vocabulary::label;
use tensile_virtual_node::node::{ClaimError, NodeNameTaken};

fn nodes(cluster: &Cluster) -> Api<Node> {
    Api::all(cluster.client())
}

fn condition(node: &Node, kind: &str) -> Option<String> {
    let found = node.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)?;
    Some(found.status.clone())
}

fn taints(node: &Node) -> Vec<String> {
    let list = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    list.map(|t| format!("{}:{}", t.key, t.effect)).collect()
}

/// Waits until the Node satisfies `holds`, and gives it.
async fn node_that(cluster: &Cluster, name: &str, what: &str, limit: Duration, holds: impl Fn(&Node) -> bool) -> Node {
    eventually(what, limit, || async {
        let Some(node) = nodes(cluster).get_opt(name).await? else { return Ok(Seen::NotYet("no Node".into())) };
        if holds(&node) {
            return Ok(Seen::Done(node));
        }
        let conditions: BTreeMap<_, _> =
            node.status.iter().flat_map(|s| s.conditions.iter().flatten()).map(|c| (&c.type_, &c.status)).collect();
        Ok(Seen::NotYet(format!("conditions {conditions:?}, taints {:?}", taints(&node))))
    })
    .await
    .unwrap()
}

fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").as_deref() == Some("True") && taints(node) == ["virtual-kubelet.io/provider:NoSchedule"]
}

/// Starts two clusters at once; `upper` as the caller wants it.
async fn clusters(upper: tensile_e2e::ClusterBuilder, lower_name: &str) -> (Cluster, Cluster) {
    tensile_e2e::install_crypto();
    let _ = tracing_subscriber::fmt()
        .with_test_writer()
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
        .try_init();
    let lower = Cluster::builder(lower_name).nodes(KwokNodes { cpu: "8".into(), ..KwokNodes::count(2) });
    let (upper, lower) = tokio::join!(upper.start(), lower.start());
    (upper.unwrap(), lower.unwrap())
}

/// Requests that our accounts made in the cluster and that were refused.
fn refused(cluster: &Cluster) -> Vec<String> {
    let accounts = ["system:serviceaccount:tensile-system:", "system:node:"];
    let entries = accounts.iter().flat_map(|a| cluster.audit_log(a).unwrap());
    let refused = entries.filter(|e| e.code == 401 || e.code == 403);
    refused.map(|e| format!("{} {} {} -> {}", e.user, e.verb, e.request_uri, e.code)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_node_registers_with_an_approved_certificate_and_stays_registered() {
    let (upper, lower) = clusters(Cluster::builder("up").nodes(KwokNodes::count(1)), "low").await;
    install(&upper, &lower, "vn-low").await;
    let plan = Plan {
        upper: &upper,
        lower: &lower,
        node_name: "vn-low",
        args: &["--node-label=team=a", "--node-taint=gpu=yes:PreferNoSchedule"],
        installation: "tensile-system/virtual-node-vn-low",
    };
    let (started, _) = tokio::join!(plan.start(), approve(&upper, "vn-low"));
    let running = started.unwrap();

    let ready = |n: &Node| condition(n, "Ready").as_deref() == Some("True") && taints(n).len() == 2;
    let node = node_that(&upper, "vn-low", "the Node is Ready and without the taint of new nodes", SOON, ready).await;
    let labels = node.metadata.labels.as_ref().unwrap();
    assert_eq!(labels["type"], "virtual-kubelet");
    assert_eq!(labels["tensile.dev/cluster"], "low");
    assert_eq!(labels["team"], "a");
    assert_eq!(labels["kubernetes.io/os"], "linux");
    assert_eq!(taints(&node), ["virtual-kubelet.io/provider:NoSchedule", "gpu:PreferNoSchedule"]);
    let status = node.status.as_ref().unwrap();
    assert_eq!(status.allocatable.as_ref().unwrap()["cpu"].0, "16");
    assert_eq!(status.allocatable.as_ref().unwrap()["pods"].0, "220");
    assert_eq!(condition(&node, "tensile.dev/LowerReachable").as_deref(), Some("True"));
    let output = upper.kubectl().args(["get", "node", "vn-low", "-o", "wide"]).output().unwrap();
    eprintln!("{}", String::from_utf8_lossy(&output.stdout));
    lease_of(&upper, "vn-low", node.metadata.uid.as_deref().unwrap()).await;

    // Others' labels and a cordon stay; what is ours comes back.
    let edit = json!({
        "metadata": {"labels": {"theirs": "yes", "tensile.dev/cluster": null}},
        "spec": {"unschedulable": true},
    });
    nodes(&upper).patch("vn-low", &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
    let level = |n: &Node| n.metadata.labels.as_ref().is_some_and(|l| l.contains_key(label::CLUSTER));
    let node = node_that(&upper, "vn-low", "our label is back", SOON, level).await;
    assert_eq!(node.metadata.labels.as_ref().unwrap()["theirs"], "yes");
    assert_eq!(node.spec.as_ref().unwrap().unschedulable, Some(true));

    // A lower node goes: so does its room.
    lower.delete_kwok_node("kwok-1").await.unwrap();
    let halved = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.as_ref()).is_some_and(|a| a["cpu"].0 == "8");
    node_that(&upper, "vn-low", "the Node has the size of one lower node", SOON, halved).await;

    // Deleted by hand: registered again, with a lease that follows.
    let before = node.metadata.uid.unwrap();
    nodes(&upper).delete("vn-low", &DeleteParams::default()).await.unwrap();
    let anew = |n: &Node| n.metadata.uid.as_ref() != Some(&before);
    let node = node_that(&upper, "vn-low", "the Node is registered again", SOON, anew).await;
    lease_of(&upper, "vn-low", node.metadata.uid.as_deref().unwrap()).await;
    running.stop().await;

    // A restart takes the stored certificate: nothing to approve.
    let mut running = plan.start().await.unwrap();
    let requests: Api<CertificateSigningRequest> = Api::all(upper.client());
    let ours = ListParams::default().labels("tensile.dev/virtual-node=vn-low");
    assert_eq!(requests.list(&ours).await.unwrap().items.len(), 1);

    // Somebody makes the Node another cluster's: we must not go on.
    let theirs = json!({"metadata": {"annotations": {"tensile.dev/lower-cluster": "another"}}});
    nodes(&upper).patch("vn-low", &PatchParams::default(), &Patch::Merge(theirs)).await.unwrap();
    let end = tokio::time::timeout(SOON, running.ended()).await.unwrap();
    assert!(matches!(end, Err(NodeNameTaken::OtherCluster { .. })), "{end:?}");
    nodes(&upper).delete("vn-low", &DeleteParams::default()).await.unwrap();
    let running = plan.start().await.unwrap();
    let node = node_that(&upper, "vn-low", "the Node is Ready", SOON, ready).await;
    lease_of(&upper, "vn-low", node.metadata.uid.as_deref().unwrap()).await;
    running.stop().await;

    Box::pin(refuses_names_of_others(&upper, &lower)).await;
    Box::pin(says_who_denied_and_goes_without(&upper, &lower)).await;
    assert_eq!(refused(&lower), Vec::<String>::new());
    assert_eq!(refused(&upper), Vec::<String>::new());
    tokio::join!(upper.stop(), lower.stop());
}

/// Waits for the node lease and checks that it belongs to the Node.
async fn lease_of(upper: &Cluster, node_name: &str, uid: &str) {
    let leases: Api<Lease> = Api::namespaced(upper.client(), "kube-node-lease");
    eventually("the lease is owned by the Node", SOON, || async {
        let lease = leases.get_opt(node_name).await?;
        let owner = lease.as_ref().and_then(|l| l.metadata.owner_references.as_ref()?.first()).map(|o| o.uid.clone());
        let duration = lease.as_ref().and_then(|l| l.spec.as_ref()?.lease_duration_seconds);
        Ok(Seen::when(owner.as_deref() == Some(uid) && duration == Some(40), (owner, duration)))
    })
    .await
    .unwrap();
}

async fn refuses_names_of_others(upper: &Cluster, lower: &Cluster) {
    let plan = |node_name, lower, installation| Plan { upper, lower, node_name, args: &[], installation };
    let taken = |refusal: Option<NotStarted>| match refusal {
        Some(NotStarted::Claim(ClaimError::Taken(taken))) => taken,
        other => panic!("not refused as taken: {other:?}"),
    };

    // A second installation while the first one's lease is fresh.
    let refusal = plan("vn-low", lower, "elsewhere/virtual-node-vn-low").start().await.err();
    assert!(matches!(taken(refusal), NodeNameTaken::OtherInstallation { .. }));

    // Another lower cluster under the same name: here the upper one plays it.
    install(upper, upper, "vn-low").await;
    let refusal = plan("vn-low", upper, "tensile-system/virtual-node-vn-low").start().await.err();
    assert!(matches!(taken(refusal), NodeNameTaken::OtherCluster { .. }));

    // A machine's node.
    install(upper, lower, "kwok-0").await;
    let machine = plan("kwok-0", lower, "tensile-system/virtual-node-kwok-0");
    let (refusal, _) = tokio::join!(machine.start(), approve(upper, "kwok-0"));
    let refusal = taken(refusal.err());
    assert!(matches!(refusal, NodeNameTaken::Foreign { .. }));
    assert!(refusal.to_string().contains("--node-name"), "{refusal}");
}

/// A denied certificate is a clear end; a ServiceAccount alone registers with the rights that its file grants.
async fn says_who_denied_and_goes_without(upper: &Cluster, lower: &Cluster) {
    install(upper, lower, "vn-plain").await;
    let plan =
        |args| Plan { upper, lower, node_name: "vn-plain", args, installation: "tensile-system/virtual-node-vn-plain" };
    let (denied, ()) = tokio::join!(async { plan(&[]).start().await.err() }, deny(upper, "vn-plain"));
    let denied = denied.unwrap().to_string();
    assert!(denied.contains("was denied (Policy: not on a Tuesday)"), "{denied}");

    install_wide(upper, "vn-plain").await;
    let running = plan(&["--identity=service-account"]).start().await.unwrap();
    let node = node_that(upper, "vn-plain", "the Node is Ready", SOON, is_ready).await;
    lease_of(upper, "vn-plain", node.metadata.uid.as_deref().unwrap()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_below_is_held_or_evicted_as_the_policy_says() {
    let (upper, lower) = clusters(Cluster::builder("up-reach"), "low-reach").await;
    install(&upper, &lower, "vn-hold").await;
    install(&upper, &lower, "vn-evict").await;
    let plan = |node_name, args, installation| Plan { upper: &upper, lower: &lower, node_name, args, installation };
    let hold = plan("vn-hold", &[], "tensile-system/virtual-node-vn-hold");
    let evict =
        plan("vn-evict", &["--lower-unreachable=evict", "--evict-after=5s"], "tensile-system/virtual-node-vn-evict");
    let (hold, evict, _, _) =
        tokio::join!(hold.start(), evict.start(), approve(&upper, "vn-hold"), approve(&upper, "vn-evict"));
    let (hold, evict) = (hold.unwrap(), evict.unwrap());
    for name in ["vn-hold", "vn-evict"] {
        node_that(&upper, name, "the Node is Ready", SOON, is_ready).await;
    }

    // An API server that hangs, connections and all.
    lower.pause_apiserver();
    let noticed = |n: &Node| {
        condition(n, "tensile.dev/LowerReachable").as_deref() == Some("False")
            && taints(n).contains(&"tensile.dev/unreachable:NoSchedule".to_owned())
    };
    for name in ["vn-hold", "vn-evict"] {
        node_that(&upper, name, "the outage shows on the Node", SOON, noticed).await;
    }
    let not_ready = |n: &Node| condition(n, "Ready").as_deref() == Some("False");
    node_that(&upper, "vn-evict", "the evicting Node turns NotReady", SOON, not_ready).await;
    let held = nodes(&upper).get("vn-hold").await.unwrap();
    assert_eq!(condition(&held, "Ready").as_deref(), Some("True"), "hold never turns NotReady");

    lower.resume_apiserver();
    for name in ["vn-hold", "vn-evict"] {
        let back = |n: &Node| is_ready(n) && condition(n, "tensile.dev/LowerReachable").as_deref() == Some("True");
        node_that(&upper, name, "the Node is as before the outage", SOON, back).await;
    }
    hold.stop().await;
    evict.stop().await;
    assert_eq!(refused(&upper), Vec::<String>::new());
    tokio::join!(upper.stop(), lower.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_before_it_runs_out_and_nobody_notices() {
    // Certificates of a minute: renewed after 42 to 54 s.
    let builder = Cluster::builder("up-renew").controller_manager_arg("--cluster-signing-duration=60s");
    let (upper, lower) = clusters(builder, "low-renew").await;
    install(&upper, &lower, "vn-renew").await;
    let plan = Plan {
        upper: &upper,
        lower: &lower,
        node_name: "vn-renew",
        args: &[],
        installation: "tensile-system/virtual-node-vn-renew",
    };
    let (running, _) = tokio::join!(plan.start(), approve(&upper, "vn-renew"));
    let running = running.unwrap();
    node_that(&upper, "vn-renew", "the Node is Ready", SOON, is_ready).await;

    let secrets: Api<Secret> = Api::namespaced(upper.client(), "tensile-system");
    let certificate = || async {
        let secret = secrets.get("vn-renew-identity").await?;
        anyhow::Ok(secret.data.and_then(|d| d.get("tls.crt").cloned()).map(|c| c.0))
    };
    let first = certificate().await.unwrap();
    // Approved by the cluster itself, since the node asks for its own certificate.
    eventually("the stored certificate is another", Duration::from_mins(2), || async {
        let now = certificate().await?;
        Ok(Seen::when(now.is_some() && now != first, "the first one"))
    })
    .await
    .unwrap();

    // When the first one has run out for sure, the node still writes.
    let leases: Api<Lease> = Api::namespaced(upper.client(), "kube-node-lease");
    let renewed = || async { anyhow::Ok(leases.get("vn-renew").await?.spec.and_then(|s| s.renew_time)) };
    let swapped_at = jiff::Timestamp::now();
    eventually("the lease is renewed after the first certificate ran out", Duration::from_mins(2), || async {
        let at = renewed().await?.map(|t| t.0);
        let late = at.is_some_and(|t| t.duration_since(swapped_at).as_secs() > 20);
        Ok(Seen::when(late, (at, swapped_at)))
    })
    .await
    .unwrap();
    running.stop().await;
    assert_eq!(refused(&upper), Vec::<String>::new());
    tokio::join!(upper.stop(), lower.stop());
}
