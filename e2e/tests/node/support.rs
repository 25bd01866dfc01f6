//! What the tests of the Node say often.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use kube::Api;
use tensile_e2e::{Cluster, ClusterBuilder, KwokNodes, Seen, eventually};

/// The time limit for what takes a second or two on an idle machine.
pub const SOON: Duration = Duration::from_mins(1);

/// Starts two clusters at once: an upper one as the caller wants it, and a lower one of two nodes with 8 CPUs each.
pub async fn clusters(upper: ClusterBuilder, lower_name: &str) -> (Cluster, Cluster) {
    tensile_e2e::install_crypto();
    let lower = Cluster::builder(lower_name).nodes(KwokNodes { cpu: "8".into(), ..KwokNodes::count(2) });
    tokio::try_join!(upper.start(), lower.start()).unwrap()
}

pub fn nodes(cluster: &Cluster) -> Api<Node> {
    Api::all(cluster.client())
}

pub fn leases(cluster: &Cluster) -> Api<Lease> {
    Api::namespaced(cluster.client(), "kube-node-lease")
}

/// Status of a condition.
pub fn condition(node: &Node, kind: &str) -> Option<String> {
    let found = node.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)?;
    Some(found.status.clone())
}

/// Taints as `key:effect`.
pub fn taints(node: &Node) -> Vec<String> {
    let list = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    list.map(|t| format!("{}:{}", t.key, t.effect)).collect()
}

/// Amount of a resource that may be given to pods.
pub fn allocatable(node: &Node, resource: &str) -> Option<String> {
    Some(node.status.as_ref()?.allocatable.as_ref()?.get(resource)?.0.clone())
}

/// Ready, reachable, and with no taint but the provider's.
pub fn is_well(node: &Node) -> bool {
    condition(node, "Ready").as_deref() == Some("True")
        && condition(node, "tensile.dev/LowerReachable").as_deref() == Some("True")
        && taints(node) == ["virtual-kubelet.io/provider:NoSchedule"]
}

/// Waits until the Node satisfies `holds`, and gives it.
pub async fn node_that(cluster: &Cluster, name: &str, what: &str, holds: impl Fn(&Node) -> bool) -> Node {
    eventually(what, SOON, || async {
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

/// Waits until the node lease belongs to this Node object.
pub async fn lease_of(upper: &Cluster, node: &Node) {
    let (name, uid) = (node.metadata.name.as_deref().unwrap(), node.metadata.uid.as_deref());
    eventually("the lease is owned by the Node", SOON, || async {
        let lease = leases(upper).get_opt(name).await?;
        let owner = lease.as_ref().and_then(|l| l.metadata.owner_references.as_ref()?.first()).map(|o| o.uid.clone());
        let duration = lease.as_ref().and_then(|l| l.spec.as_ref()?.lease_duration_seconds);
        Ok(Seen::when(owner.as_deref() == uid && duration == Some(40), (owner, duration)))
    })
    .await
    .unwrap();
}
