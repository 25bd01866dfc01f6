//! What an account is granted, against what the audit log says that it used.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::Api;

use crate::{AuditEntry, Cluster};

/// A verb and what it is for: `patch pods/status`, `create events.events.k8s.io`, `get /readyz`.
pub type Right = String;

/// Requests of users whose name begins with `account` that were refused.
pub fn forbidden(cluster: &Cluster, account: &str) -> Result<Vec<String>> {
    let requests = cluster.audit_log(account)?;
    let refused = requests.into_iter().filter(|e| matches!(e.code, 401 | 403));
    Ok(refused.map(|e| format!("{}: {} {} {} -> {}", cluster.name(), e.user, e.verb, e.request_uri, e.code)).collect())
}

/// Rights that these rules grant and that `account` has not used.
pub fn unused(rules: &[PolicyRule], cluster: &Cluster, account: &str) -> Result<BTreeSet<Right>> {
    let used: BTreeSet<Right> = cluster.audit_log(account)?.iter().map(used).collect();
    Ok(rules.iter().flat_map(granted).filter(|right| !used.contains(right)).collect())
}

/// The rules of a ClusterRole.
pub async fn cluster_role(cluster: &Cluster, name: &str) -> Result<Vec<PolicyRule>> {
    let role = Api::<ClusterRole>::all(cluster.client()).get(name).await;
    Ok(role.with_context(|| format!("reading ClusterRole {name}"))?.rules.unwrap_or_default())
}

/// The rules of a Role.
pub async fn role(cluster: &Cluster, namespace: &str, name: &str) -> Result<Vec<PolicyRule>> {
    let role = Api::<Role>::namespaced(cluster.client(), namespace).get(name).await;
    Ok(role.with_context(|| format!("reading Role {namespace}/{name}"))?.rules.unwrap_or_default())
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
