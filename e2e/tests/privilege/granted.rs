//! What is granted, against what the audit log says was used.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::Api;
use tensile_e2e::{AuditEntry, Cluster};

/// Our account, in either cluster.
pub const ACCOUNT: &str = "system:serviceaccount:tensile-system:virtual-node";

/// A verb and what it is for: `patch pods/status`, `create events.events.k8s.io`, `get /readyz`.
pub type Right = String;

/// Requests of our account that were refused.
pub fn forbidden(cluster: &Cluster) -> Vec<String> {
    let refused = requests(cluster).into_iter().filter(|e| matches!(e.code, 401 | 403));
    refused.map(|e| format!("{}: {} {} -> {}", cluster.name(), e.verb, e.request_uri, e.code)).collect()
}

/// Rights that these rules grant and that our account has not used.
pub fn unused(rules: &[PolicyRule], cluster: &Cluster) -> BTreeSet<Right> {
    let used: BTreeSet<Right> = requests(cluster).iter().map(used).collect();
    rules.iter().flat_map(granted).filter(|right| !used.contains(right)).collect()
}

/// The rules of a ClusterRole.
pub async fn cluster_role(cluster: &Cluster, name: &str) -> Vec<PolicyRule> {
    Api::<ClusterRole>::all(cluster.client()).get(name).await.unwrap().rules.unwrap()
}

/// The rules of a Role.
pub async fn role(cluster: &Cluster, namespace: &str, name: &str) -> Vec<PolicyRule> {
    Api::<Role>::namespaced(cluster.client(), namespace).get(name).await.unwrap().rules.unwrap()
}

fn requests(cluster: &Cluster) -> Vec<AuditEntry> {
    cluster.audit_log(ACCOUNT).unwrap()
}

fn used(entry: &AuditEntry) -> Right {
    if entry.resource.is_empty() {
        let path = entry.request_uri.split('?').next().unwrap_or_default();
        return format!("{} {path}", entry.verb);
    }
    let part = if entry.subresource.is_empty() { String::new() } else { format!("/{}", entry.subresource) };
    right(&entry.verb, &format!("{}{part}", entry.resource), &entry.group)
}

fn granted(rule: &PolicyRule) -> Vec<Right> {
    let mut all = Vec::new();
    for verb in &rule.verbs {
        for group in rule.api_groups.iter().flatten() {
            all.extend(rule.resources.iter().flatten().map(|resource| right(verb, resource, group)));
        }
        all.extend(rule.non_resource_urls.iter().flatten().map(|path| format!("{verb} {path}")));
    }
    all
}

fn right(verb: &str, resource: &str, group: &str) -> Right {
    if group.is_empty() { format!("{verb} {resource}") } else { format!("{verb} {resource}.{group}") }
}
