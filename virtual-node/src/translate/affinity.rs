//! Scheduling constraints below.
//!
//! Upper constraints were met by the virtual node. What they say about the virtual node itself (its name, its cluster,
//! its type) can be met by no lower node, and would leave the pod unschedulable for ever: those requirements are
//! removed. What they say about anything else (arch, zone, labels of the user's own) goes down.
//!
//! A namespaceSelector inside a pod affinity term is kept as it is: it selects by labels, and lower namespaces carry
//! only labels of ours. With suffixed namespaces an empty selector also reaches other upper clusters' pods.

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinity, PodAffinityTerm,
    PodAntiAffinity, PodSpec, Toleration,
};
use tensile_proto::vocabulary::{DOMAIN, foreign, label, taint};

use super::label_keys;
use crate::{context::Settings, names::NamespaceMapping};

const HOSTNAME: &str = "kubernetes.io/hostname";
/// The one field that node affinity may match (`K pkg/apis/core/validation/validation.go`).
const FIELD_NAME: &str = "metadata.name";

type Labels = std::collections::BTreeMap<String, String>;

/// Translates every scheduling constraint of a spec in place. `labels` are the pod's own, where an API server has merged
/// them into selectors.
pub(super) fn map_constraints(spec: &mut PodSpec, labels: Option<&Labels>, settings: &Settings) {
    let node = VirtualNode { name: &settings.node_name, cluster: &settings.cluster_name };
    if let Some(selector) = &mut spec.node_selector {
        selector.retain(|key, value| !node.selected_by(key, value));
    }
    spec.node_selector = spec.node_selector.take().filter(|selector| !selector.is_empty());
    spec.tolerations = spec.tolerations.take().map(|all| all.into_iter().filter(passes).collect());
    if let Some(constraints) = &mut spec.topology_spread_constraints {
        constraints.retain(|constraint| !is_virtual_topology(&constraint.topology_key));
        for constraint in constraints {
            if let Some(labels) = labels {
                let (selector, keys) = (&mut constraint.label_selector, &mut constraint.match_label_keys);
                label_keys::unmerge(selector, keys, &mut None, labels);
            }
        }
    }
    spec.affinity =
        spec.affinity.take().and_then(|affinity| map_affinity(affinity, &node, labels, &settings.namespaces));
}

/// Whether a toleration goes down. Those of the virtual node's own taints tolerate nothing there.
pub(super) fn passes(toleration: &Toleration) -> bool {
    !matches!(toleration.key.as_deref(), Some(foreign::PROVIDER_TAINT | taint::UNREACHABLE))
}

/// Pins the pod to a lower node: a requirement on the node's name is added to every ORed term. The lower scheduler still
/// has the last word.
pub(super) fn pin(spec: &mut PodSpec, node: &str) {
    let requirement = || NodeSelectorRequirement {
        key: FIELD_NAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let required = &mut spec
        .affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution;
    if let Some(selector) = required {
        // An empty term matches nothing; with a requirement it would match.
        selector.node_selector_terms.retain(|term| !is_empty_term(term));
        for term in &mut selector.node_selector_terms {
            term.match_fields.get_or_insert_default().push(requirement());
        }
    } else {
        let term = NodeSelectorTerm { match_expressions: None, match_fields: Some(vec![requirement()]) };
        *required = Some(NodeSelector { node_selector_terms: vec![term] });
    }
}

fn map_affinity(
    mut affinity: Affinity,
    node: &VirtualNode<'_>,
    labels: Option<&Labels>,
    namespaces: &NamespaceMapping,
) -> Option<Affinity> {
    if let Some(rules) = &mut affinity.node_affinity {
        rules.required_during_scheduling_ignored_during_execution = rules
            .required_during_scheduling_ignored_during_execution
            .take()
            .and_then(|required| node.required(required));
        rules.preferred_during_scheduling_ignored_during_execution =
            kept(rules.preferred_during_scheduling_ignored_during_execution.take(), |preferred| {
                node.term(&mut preferred.preference) && !is_empty_term(&preferred.preference)
            });
    }
    let mut pod_term = |term: &mut PodAffinityTerm| {
        if let Some(labels) = labels {
            let (keys, mismatch) = (&mut term.match_label_keys, &mut term.mismatch_label_keys);
            label_keys::unmerge(&mut term.label_selector, keys, mismatch, labels);
        }
        for namespace in term.namespaces.iter_mut().flatten() {
            *namespace = namespaces.lower(namespace);
        }
        !is_virtual_topology(&term.topology_key)
    };
    if let Some(rules) = &mut affinity.pod_affinity {
        rules.required_during_scheduling_ignored_during_execution =
            kept(rules.required_during_scheduling_ignored_during_execution.take(), &mut pod_term);
        rules.preferred_during_scheduling_ignored_during_execution =
            kept(rules.preferred_during_scheduling_ignored_during_execution.take(), |weighted| {
                pod_term(&mut weighted.pod_affinity_term)
            });
    }
    if let Some(rules) = &mut affinity.pod_anti_affinity {
        rules.required_during_scheduling_ignored_during_execution =
            kept(rules.required_during_scheduling_ignored_during_execution.take(), &mut pod_term);
        rules.preferred_during_scheduling_ignored_during_execution =
            kept(rules.preferred_during_scheduling_ignored_during_execution.take(), |weighted| {
                pod_term(&mut weighted.pod_affinity_term)
            });
    }
    // Groups that were emptied, or never held anything, are left out.
    affinity.node_affinity = affinity.node_affinity.filter(|rules| *rules != NodeAffinity::default());
    affinity.pod_affinity = affinity.pod_affinity.filter(|rules| *rules != PodAffinity::default());
    affinity.pod_anti_affinity = affinity.pod_anti_affinity.filter(|rules| *rules != PodAntiAffinity::default());
    (affinity != Affinity::default()).then_some(affinity)
}

fn kept<T>(list: Option<Vec<T>>, mut keep: impl FnMut(&mut T) -> bool) -> Option<Vec<T>> {
    let mut list = list?;
    list.retain_mut(|item| keep(item));
    (!list.is_empty()).then_some(list)
}

fn is_empty_term(term: &NodeSelectorTerm) -> bool {
    term.match_expressions.as_ref().is_none_or(Vec::is_empty) && term.match_fields.as_ref().is_none_or(Vec::is_empty)
}

/// Label keys under our domain exist on virtual nodes only.
fn is_ours(key: &str) -> bool {
    key.split_once('/').is_some_and(|(prefix, _)| prefix == DOMAIN)
}

/// Topologies of virtual nodes: the upper scheduler decided them, and no lower node has the key.
fn is_virtual_topology(key: &str) -> bool {
    is_ours(key) || key == foreign::NODE_TYPE_LABEL
}

struct VirtualNode<'a> {
    name: &'a str,
    cluster: &'a str,
}

/// What a requirement says, seen from the virtual node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is about lower nodes too: it goes down.
    Passes,
    /// It is about the virtual node, which meets it: it is removed.
    Met,
    /// It is about other nodes of the upper cluster: its term is not why the pod is here.
    Unmet,
}

impl VirtualNode<'_> {
    /// Whether a nodeSelector entry names the virtual node.
    fn selected_by(&self, key: &str, value: &str) -> bool {
        is_ours(key)
            || (key == foreign::NODE_TYPE_LABEL && value == foreign::NODE_TYPE_VIRTUAL)
            || (key == HOSTNAME && value == self.name)
    }

    /// The required node affinity below. Terms that are about other clusters' virtual nodes are left out; when another
    /// term asked for nothing but this virtual node, nothing is required below.
    fn required(&self, mut selector: NodeSelector) -> Option<NodeSelector> {
        // Empty terms match nothing and so did not bring the pod here.
        selector.node_selector_terms.retain(|term| !is_empty_term(term));
        let mut terms = selector.node_selector_terms.clone();
        terms.retain_mut(|term| self.term(term));
        if terms.is_empty() {
            // No term is met by the virtual node: labels changed since, or the pod names its node itself. The lower
            // scheduler judges by what can be judged below.
            terms = selector.node_selector_terms;
            for term in &mut terms {
                self.strip(term);
            }
        }
        if terms.iter().any(is_empty_term) {
            return None;
        }
        selector.node_selector_terms = terms;
        (!selector.node_selector_terms.is_empty()).then_some(selector)
    }

    /// Removes what the virtual node meets; `false` when the term is about another upper node.
    fn term(&self, term: &mut NodeSelectorTerm) -> bool {
        let label = |requirement: &NodeSelectorRequirement| self.judge_label(requirement);
        let field = |requirement: &NodeSelectorRequirement| self.judge_name(requirement);
        let concerned = term.match_expressions.iter().flatten().all(|each| label(each) != Verdict::Unmet)
            && term.match_fields.iter().flatten().all(|each| field(each) != Verdict::Unmet);
        if concerned {
            term.match_expressions = kept(term.match_expressions.take(), |each| label(each) == Verdict::Passes);
            term.match_fields = kept(term.match_fields.take(), |each| field(each) == Verdict::Passes);
        }
        concerned
    }

    /// Removes every requirement that names the virtual node, met or not.
    fn strip(&self, term: &mut NodeSelectorTerm) {
        term.match_expressions = kept(term.match_expressions.take(), |each| {
            let values = || each.values.iter().flatten();
            let names_us = (each.key == foreign::NODE_TYPE_LABEL
                && (values().next().is_none() || values().any(|value| value == foreign::NODE_TYPE_VIRTUAL)))
                || (each.key == HOSTNAME && values().any(|value| value == self.name));
            !is_ours(&each.key) && !names_us
        });
        term.match_fields =
            kept(term.match_fields.take(), |each| each.values.iter().flatten().all(|value| value != self.name));
    }

    fn judge_label(&self, requirement: &NodeSelectorRequirement) -> Verdict {
        match requirement.key.as_str() {
            label::CLUSTER => judge(requirement, self.cluster, Verdict::Met),
            // Labels the operator gave the node: the upper scheduler saw them, we don't keep them.
            key if is_ours(key) => Verdict::Met,
            foreign::NODE_TYPE_LABEL => match requirement.operator.as_str() {
                "Exists" => Verdict::Met,
                "DoesNotExist" => Verdict::Unmet,
                _ => judge(requirement, foreign::NODE_TYPE_VIRTUAL, Verdict::Passes),
            },
            HOSTNAME => self.judge_name(requirement),
            _ => Verdict::Passes,
        }
    }

    /// Names of nodes: `NotIn` other nodes holds below too and goes down.
    fn judge_name(&self, requirement: &NodeSelectorRequirement) -> Verdict {
        judge(requirement, self.name, Verdict::Passes)
    }
}

/// Judges a requirement on a key whose value on the virtual node is known. `unnamed` is the verdict on one that is met
/// without naming the value (`NotIn` others, `Exists`).
fn judge(requirement: &NodeSelectorRequirement, value: &str, unnamed: Verdict) -> Verdict {
    let named = requirement.values.iter().flatten().any(|each| each == value);
    match (requirement.operator.as_str(), named) {
        ("In", true) => Verdict::Met,
        ("In", false) | ("NotIn", true) => Verdict::Unmet,
        _ => unnamed,
    }
}

#[cfg(test)]
#[path = "affinity_tests.rs"]
mod tests;
