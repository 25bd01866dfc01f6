//! Every field in which a lower pod, as it is created, differs from its upper one. What is not listed passes as it is.
//!
//! The docs are made from this table, and a property test proves over generated pods that exactly these fields differ.

use std::fmt::{self, Write};

/// What happens to a field on the way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It does not go down.
    Stripped,
    /// It goes down with another value.
    Mapped,
    /// It is ours; the upper pod has nothing there, or something that yields.
    Added,
}

impl fmt::Display for Treatment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stripped => "stripped",
            Self::Mapped => "mapped",
            Self::Added => "added",
        })
    }
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Path in the pod. `[]` stands for any element of a list, `*` for any key of a map; everything below is covered.
    pub path: &'static str,
    /// What happens.
    pub treatment: Treatment,
    /// Why.
    pub why: &'static str,
}

const fn stripped(path: &'static str, why: &'static str) -> Field {
    Field { path, treatment: Treatment::Stripped, why }
}

const fn mapped(path: &'static str, why: &'static str) -> Field {
    Field { path, treatment: Treatment::Mapped, why }
}

const fn added(path: &'static str, why: &'static str) -> Field {
    Field { path, treatment: Treatment::Added, why }
}

/// The table.
pub const FIELDS: &[Field] = &[
    // Metadata
    mapped("metadata.namespace", "by the namespace mapping; equal when it is `same`"),
    stripped("metadata.uid", "set by the lower API server"),
    stripped("metadata.resourceVersion", "set by the lower API server"),
    stripped("metadata.generation", "set by the lower API server"),
    stripped("metadata.creationTimestamp", "set by the lower API server"),
    stripped("metadata.deletionTimestamp", "a lower pod is deleted by a request of its own"),
    stripped("metadata.deletionGracePeriodSeconds", "a lower pod is deleted by a request of its own"),
    stripped("metadata.generateName", "the name is already made"),
    stripped("metadata.selfLink", "deprecated, set by old API servers"),
    stripped("metadata.managedFields", "set by the lower API server"),
    stripped(
        "metadata.ownerReferences",
        "owners live in the upper cluster; the lower garbage collector would delete the pod",
    ),
    mapped(
        "metadata.finalizers",
        "upper finalizers are acted on above (batch.kubernetes.io/job-tracking would hang every delete below); a pod that \
         may complete gets tensile.dev/result, so that its result is not lost",
    ),
    stripped("metadata.labels.topology.kubernetes.io/region", "each API server copies it from its node at binding"),
    stripped("metadata.labels.topology.kubernetes.io/zone", "each API server copies it from its node at binding"),
    added("metadata.labels.tensile.dev/upper-cluster", "owner mark"),
    added("metadata.labels.tensile.dev/upper-uid", "owner mark"),
    added("metadata.labels.tensile.dev/virtual-node", "owner mark"),
    stripped(
        "metadata.annotations.kubectl.kubernetes.io/last-applied-configuration",
        "a copy of the spec that nothing reads below, and half of the size limit",
    ),
    stripped("metadata.annotations.tensile.dev/cluster-selector", "restored into the spec"),
    stripped("metadata.annotations.clusterSelector", "tensile-kube's form of it, restored into the spec"),
    stripped("metadata.annotations.tensile.dev/reserved-node", "turned into a requirement on the node's name"),
    added("metadata.annotations.tensile.dev/upper-namespace", "owner mark, and source of the downward API"),
    added("metadata.annotations.tensile.dev/upper-name", "owner mark"),
    added("metadata.annotations.tensile.dev/upper-uid", "source of the downward API"),
    added("metadata.annotations.tensile.dev/upper-node", "source of the downward API"),
    added("metadata.annotations.tensile.dev/upper-service-account", "source of the downward API"),
    added("metadata.annotations.tensile.dev/upper-labels", "source of the downward API, where a volume asks for it"),
    added(
        "metadata.annotations.tensile.dev/upper-annotations",
        "source of the downward API, where a volume asks for it",
    ),
    added("metadata.annotations.tensile.dev/carried", "what was sent last, so that updates carry only changes"),
    added("metadata.annotations.tensile.dev/generation", "translates observedGeneration"),
    // Admission
    stripped("spec.priority", "lower admission resolves priorityClassName and refuses another number"),
    stripped("spec.preemptionPolicy", "lower admission resolves priorityClassName and refuses another policy"),
    stripped("spec.overhead", "lower admission resolves runtimeClassName and refuses another overhead"),
    stripped("spec.serviceAccountName", "the pod runs as `default` below; its identity is the upper one, by token"),
    stripped("spec.serviceAccount", "deprecated alias of serviceAccountName"),
    mapped("spec.automountServiceAccountToken", "false: the lower cluster's tokens are not the pod's identity"),
    stripped("spec.ephemeralContainers", "not allowed at creation; they follow through pods/ephemeralcontainers"),
    // Scheduling
    stripped("spec.nodeName", "the lower scheduler binds the pod"),
    mapped("spec.schedulerName", "by setting; the lower cluster's default without"),
    stripped("spec.schedulingGates", "the upper scheduler has acted on them"),
    stripped("spec.schedulingGroup", "names a PodGroup of the upper cluster, which the upper scheduler has acted on"),
    mapped(
        "spec.tolerations",
        "those of the virtual node's own taints are removed; those of the cluster selector restored",
    ),
    mapped(
        "spec.nodeSelector",
        "entries that name the virtual node match no lower node and are removed; those of the cluster selector restored",
    ),
    mapped(
        "spec.affinity.nodeAffinity",
        "requirements that name the virtual node are removed, and terms about other upper nodes; a reserved lower node \
         is required in every term",
    ),
    mapped(
        "spec.affinity.podAffinity",
        "namespaces are mapped; expressions merged from matchLabelKeys and mismatchLabelKeys are removed, for the lower \
         API server merges them again; terms with a virtual topology are removed",
    ),
    mapped("spec.affinity.podAntiAffinity", "as podAffinity"),
    mapped(
        "spec.topologySpreadConstraints",
        "expressions merged from matchLabelKeys are removed; constraints with a virtual topology are removed",
    ),
    // Environment
    mapped("spec.hostNetwork", "restored from the cluster selector"),
    mapped("spec.containers[].ports[].hostPort", "restored from the cluster selector"),
    mapped("spec.containers[].ports[].hostIP", "restored from the cluster selector"),
    mapped("spec.initContainers[].ports[].hostPort", "restored from the cluster selector"),
    mapped("spec.initContainers[].ports[].hostIP", "restored from the cluster selector"),
    mapped(
        "spec.containers[].env",
        "fieldRefs that would show the lower pod read annotations; kube-root-ca.crt is the upper one; the upper API \
         server's address and service variables are added",
    ),
    mapped("spec.initContainers[].env", "as containers"),
    mapped("spec.containers[].envFrom[].configMapRef.name", "kube-root-ca.crt is the upper one"),
    mapped("spec.initContainers[].envFrom[].configMapRef.name", "kube-root-ca.crt is the upper one"),
    mapped(
        "spec.enableServiceLinks",
        "false: the variables of the upper cluster's Services are set, the lower cluster's are others",
    ),
    // Volumes
    mapped("spec.volumes[].configMap.name", "kube-root-ca.crt is the upper one"),
    mapped(
        "spec.volumes[].downwardAPI.items[].fieldRef.fieldPath",
        "paths that would show the lower pod read annotations",
    ),
    mapped(
        "spec.volumes[].projected.sources[]",
        "serviceAccountToken becomes the Secret that holds the upper token; kube-root-ca.crt is the upper one; fieldRefs \
         that would show the lower pod read annotations",
    ),
    // Status
    stripped("status", "the lower cluster's own"),
];

/// The table in Markdown, for the docs.
pub fn markdown() -> String {
    let mut text = String::from("| Field | On the way down | Why |\n|---|---|---|\n");
    for Field { path, treatment, why } in FIELDS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{path}` | {treatment} | {why} |");
    }
    text
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_field_is_listed_once_and_can_stand_in_a_table() {
        let paths: BTreeSet<_> = FIELDS.iter().map(|field| field.path).collect();
        assert_eq!(paths.len(), FIELDS.len());
        assert!(FIELDS.iter().all(|field| !field.why.contains(['|', '\n'])));
        assert_eq!(markdown().lines().count(), FIELDS.len() + 2);
    }

    /// The page that people read. Write it anew with `TENSILE_UPDATE_DOCS=1 cargo test -p tensile-virtual-node docs`.
    #[test]
    fn docs_hold_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/translation.md");
        let page = format!("{PAGE_HEAD}\n{}", markdown());
        if std::env::var_os("TENSILE_UPDATE_DOCS").is_some() {
            std::fs::write(path, &page).expect("docs can be written");
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(found == page, "docs/translation.md is out of date; TENSILE_UPDATE_DOCS=1 writes it anew");
    }

    const PAGE_HEAD: &str = "# What differs in a lower pod

A pod is sent to the lower cluster as its user wrote it, but for the fields below. What is not in this table passes as it is; a property
test over generated pods holds the code to it. (This page is made from `virtual-node/src/translate/fields.rs`.)
";
}
