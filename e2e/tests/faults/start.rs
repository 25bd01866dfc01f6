//! A virtual-node that dies at each step of its first start, and of its rounds about the Node.

use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::Node};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Seen, eventually};
use tensile_proto::vocabulary::{foreign, label};

use crate::{
    space::is_ready,
    subject::{MOMENTS, Subject},
    world::{SOON, World},
};

/// What the first start passes, up to a Node that is Ready.
pub const FIRST: &[&str] =
    &["node-key", "node-certificate-request", "node-certificate", "election-create", "node-create", "node-status"];

/// The node lease is written beside them, so that no other death may be to come.
pub const LEASE: &[&str] = &["node-lease-create"];

/// What a later start, or a Node that somebody changed, passes.
pub const LATER: &[&str] = &["election-renew", "node-lease-renew", "node-metadata", "node-taints"];

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_at_every_step_of_its_start_ends_up_with_one_node_and_one_certificate() {
    futures::future::join_all(MOMENTS.map(async |moment| {
        let subject = first_start(&format!("start-{moment}"), moment, FIRST).await;
        let name = subject.node.node_name();
        for point in LATER {
            let spoil = spoil(subject.world, name);
            subject.live_through(&[format!("{moment} {point}")], spoil, until_mended(subject.world, name)).await;
        }
        let space = subject.namespace().await;
        space.pod(json!({})).await;
        space.until("pod", "is ready", is_ready).await;
        space.delete("pod", false).await;
        subject.leaves_nothing().await;
    }))
    .await;
    futures::future::join_all(MOMENTS.map(async |moment| {
        first_start(&format!("lease-{moment}"), moment, LEASE).await;
    }))
    .await;
}

/// The first start of a virtual node, with a fault at each of these points.
async fn first_start(name: &str, moment: &str, points: &[&str]) -> Subject {
    let faults: Vec<String> = points.iter().map(|point| format!("{moment} {point}")).collect();
    println!("{name}: {}", faults.join(", "));
    let subject = Subject::begin(name, &faults).await;
    let world = subject.world;
    let ready = || until_ready(world, name);
    tokio::select! {
        () = subject.play(ready(), ready()) => {}
        () = approve(world, name) => {}
    }
    assert_eq!(requests(world, name).await, 1, "{name} asked for more than one certificate");
    subject
}

fn nodes(world: &World) -> Api<Node> {
    Api::all(world.upper.client())
}

async fn until_ready(world: &World, name: &str) {
    eventually(&format!("the Node {name} is Ready"), SOON, || async {
        let node = nodes(world).get(name).await?;
        let status = node.status.unwrap_or_default();
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        Ok(Seen::when(ready && status.allocatable.is_some(), status.conditions))
    })
    .await
    .unwrap();
}

/// An administrator approves what is asked for this node; never ends.
async fn approve(world: &World, name: &str) {
    loop {
        let of_node =
            |request: &CertificateSigningRequest| request.labels().get(label::VIRTUAL_NODE).is_some_and(|n| n == name);
        world.upper.approve_csrs(of_node).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Certificate requests of the node.
async fn requests(world: &World, name: &str) -> usize {
    let all: Api<CertificateSigningRequest> = Api::all(world.upper.client());
    let of_node = ListParams::default().labels(&format!("{}={name}", label::VIRTUAL_NODE));
    all.list_metadata(&of_node).await.unwrap().items.len()
}

/// Somebody takes a label and the taint off the Node.
async fn spoil(world: &World, name: &str) {
    let patch =
        Patch::Merge(json!({"metadata": {"labels": {foreign::NODE_TYPE_LABEL: null}}, "spec": {"taints": null}}));
    nodes(world).patch(name, &PatchParams::default(), &patch).await.unwrap();
}

async fn until_mended(world: &World, name: &str) {
    eventually(&format!("the Node {name} has its label and its taint again"), SOON, || async {
        let node = nodes(world).get(name).await?;
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let tainted = taints.iter().any(|taint| taint.key == foreign::PROVIDER_TAINT);
        Ok(Seen::when(tainted && node.labels().contains_key(foreign::NODE_TYPE_LABEL), taints))
    })
    .await
    .unwrap();
}
