//! What is granted to our account, against what the audit log says was used.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::PolicyRule;
use tensile_e2e::{Cluster, rights};

pub use tensile_e2e::rights::Right;

/// Our account, in either cluster.
pub const ACCOUNT: &str = "system:serviceaccount:tensile-system:virtual-node";

/// Requests of our account that were refused.
pub fn forbidden(cluster: &Cluster) -> Vec<String> {
    rights::forbidden(cluster, ACCOUNT).unwrap()
}

/// Rights that these rules grant and that our account has not used.
pub fn unused(rules: &[PolicyRule], cluster: &Cluster) -> BTreeSet<Right> {
    rights::unused(rules, cluster, ACCOUNT).unwrap()
}

/// The rules of a ClusterRole.
pub async fn cluster_role(cluster: &Cluster, name: &str) -> Vec<PolicyRule> {
    rights::cluster_role(cluster, name).await.unwrap()
}

/// The rules of a Role.
pub async fn role(cluster: &Cluster, namespace: &str, name: &str) -> Vec<PolicyRule> {
    rights::role(cluster, namespace, name).await.unwrap()
}
