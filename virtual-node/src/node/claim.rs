//! Whether a Node name is ours to use: pure reading of the Node and its lease.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use tensile_proto::vocabulary::{annotation, foreign};

use super::lease::LEASE_DURATION_SECONDS;

/// The name belongs to somebody else. The process must end: two nodes of one name would take each other's pods.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeNameTaken {
    /// A machine's node, or another product's virtual node.
    #[error(
        "Node `{name}` exists and is not a virtual node of tensile (it lacks the label type=virtual-kubelet or the \
         annotation {}): choose another --node-name, or delete that Node if nothing stands behind it any more",
        annotation::LOWER_CLUSTER
    )]
    Foreign {
        /// Name of the Node.
        name: String,
    },
    /// Another lower cluster's virtual node.
    #[error(
        "Node `{name}` stands for another lower cluster (UID {theirs}, ours is {ours}): choose another --node-name, or, \
         if that cluster is gone for good, delete the Node"
    )]
    OtherCluster {
        /// Name of the Node.
        name: String,
        /// UID of the lower cluster that it stands for.
        theirs: String,
        /// UID of our lower cluster.
        ours: String,
    },
    /// Another running virtual-node of this name.
    #[error(
        "Node `{name}` is kept by another virtual-node, `{holder}` (we are `{ours}`), whose lease is valid for {left_s} s \
         more: choose another --node-name, or stop the other one and start again after that time"
    )]
    OtherInstallation {
        /// Name of the Node.
        name: String,
        /// Holder of its lease.
        holder: String,
        /// What we would write there.
        ours: String,
        /// Seconds until the lease runs out.
        left_s: i64,
    },
}

/// Whether an existing Node is ours.
pub(super) fn check_node(node: &Node, lower_cluster_uid: &str) -> Result<(), NodeNameTaken> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let get = |map: &Option<BTreeMap<String, String>>, key: &str| map.as_ref().and_then(|m| m.get(key)).cloned();
    let kind = get(&node.metadata.labels, foreign::NODE_TYPE_LABEL);
    match get(&node.metadata.annotations, annotation::LOWER_CLUSTER) {
        Some(theirs) if theirs == lower_cluster_uid => Ok(()),
        Some(theirs) if kind.as_deref() == Some(foreign::NODE_TYPE_VIRTUAL) => {
            Err(NodeNameTaken::OtherCluster { name, theirs, ours: lower_cluster_uid.to_owned() })
        }
        _ => Err(NodeNameTaken::Foreign { name }),
    }
}

/// Whether the node lease is free: absent, run out, or held by this installation.
pub(super) fn check_lease(lease: &Lease, installation: &str, now: Timestamp) -> Result<(), NodeNameTaken> {
    let Some(spec) = &lease.spec else { return Ok(()) };
    let (Some(holder), Some(renewed)) = (&spec.holder_identity, &spec.renew_time) else { return Ok(()) };
    if holder == installation {
        return Ok(());
    }
    let duration = i64::from(spec.lease_duration_seconds.unwrap_or(LEASE_DURATION_SECONDS));
    let left = SignedDuration::from_secs(duration) - now.duration_since(renewed.0);
    if left <= SignedDuration::ZERO {
        return Ok(());
    }
    Err(NodeNameTaken::OtherInstallation {
        name: lease.metadata.name.clone().unwrap_or_default(),
        holder: holder.clone(),
        ours: installation.to_owned(),
        left_s: left.as_secs() + 1,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use jiff::ToSpan;
    use serde_json::json;

    use super::*;

    fn node(labels: &serde_json::Value, annotations: &serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "vn-a", "labels": labels, "annotations": annotations}}))
            .unwrap()
    }

    #[test]
    fn a_machine_or_another_products_node_is_not_ours() {
        assert!(matches!(check_node(&node(&json!({}), &json!({})), "low-1"), Err(NodeNameTaken::Foreign { .. })));
        let other = node(&json!({"type": "virtual-kubelet"}), &json!({}));
        let refusal = check_node(&other, "low-1").unwrap_err();
        assert!(refusal.to_string().contains("--node-name"), "{refusal}");
    }

    #[test]
    fn a_virtual_node_is_ours_only_for_the_same_lower_cluster() {
        let labels = json!({"type": "virtual-kubelet"});
        let annotations = json!({"tensile.dev/lower-cluster": "low-1"});
        assert!(check_node(&node(&labels, &annotations), "low-1").is_ok());
        assert!(matches!(check_node(&node(&labels, &annotations), "low-2"), Err(NodeNameTaken::OtherCluster { .. })));
    }

    #[test]
    fn a_node_whose_type_label_was_edited_away_is_still_ours() {
        let annotations = json!({"tensile.dev/lower-cluster": "low-1"});
        assert!(check_node(&node(&json!({}), &annotations), "low-1").is_ok());
    }

    #[test]
    fn a_fresh_lease_of_another_installation_is_respected_until_it_runs_out() {
        let renewed: Timestamp = "2026-11-24T08:00:00Z".parse().unwrap();
        let lease: Lease = serde_json::from_value(json!({
            "metadata": {"name": "vn-a", "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": "blue/vn-a", "renewTime": "2026-11-24T08:00:00.000000Z", "leaseDurationSeconds": 40},
        }))
        .unwrap();
        assert!(check_lease(&lease, "blue/vn-a", renewed).is_ok());
        let refusal = check_lease(&lease, "green/vn-a", renewed.checked_add(10.seconds()).unwrap()).unwrap_err();
        assert!(
            matches!(&refusal, NodeNameTaken::OtherInstallation { holder, left_s: 31, .. } if holder == "blue/vn-a")
        );
        assert!(check_lease(&lease, "green/vn-a", renewed.checked_add(41.seconds()).unwrap()).is_ok());
    }
}
