//! The filters, one file for each of kube-scheduler's plugins, with its names and its words.
//!
//! Those of this file's chain depend on a node's own properties only, so their verdict is the same for all pods of one
//! [`Demand`] until the node changes. What depends on the pods of a node ([`node_ports`], [`node_resources`]) is judged for
//! each placement.

pub(crate) mod node_affinity;
pub(crate) mod node_name;
pub(crate) mod node_ports;
pub(crate) mod node_resources;
pub(crate) mod node_unschedulable;
pub(crate) mod taint_toleration;

use crate::{demand::Demand, name::Name, node_facts::NodeFacts};

/// Whose verdict it is and what it says, as kube-scheduler's statuses have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reason {
    /// The words, without a count.
    pub message: String,
    /// The plugin by kube-scheduler's name; empty when the reason is our own.
    pub plugin: &'static str,
}

/// A node's refusal of every pod of a demand, whatever runs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Refusal {
    /// Node affinity names other nodes, so that this one is not looked at (PreFilter).
    NotNamed,
    /// Cordoned.
    Unschedulable,
    /// `spec.nodeName` is another.
    OtherName,
    /// A taint is not tolerated.
    Tainted,
    /// Node selector or required node affinity.
    Affinity,
    /// Our own: a node that does not report is not offered, also before the taint that says so is there.
    NotReady,
}

impl Refusal {
    /// All of them, by their number.
    pub const ALL: [Self; 6] =
        [Self::NotNamed, Self::Unschedulable, Self::OtherName, Self::Tainted, Self::Affinity, Self::NotReady];

    /// Plugin and words.
    pub fn reason(self) -> Reason {
        let (plugin, message) = match self {
            Self::NotNamed => (node_affinity::NAME, node_affinity::REASON_NOT_NAMED),
            Self::Unschedulable => (node_unschedulable::NAME, node_unschedulable::REASON),
            Self::OtherName => (node_name::NAME, node_name::REASON),
            Self::Tainted => (taint_toleration::NAME, taint_toleration::REASON),
            Self::Affinity => (node_affinity::NAME, node_affinity::REASON),
            Self::NotReady => ("", "node(s) were not Ready"),
        };
        Reason { message: message.to_owned(), plugin }
    }
}

/// Whether a node takes pods of the demand at all: the first plugin that refuses, in kube-scheduler's order.
pub(crate) fn refusal(demand: &Demand, name: &Name, node: &NodeFacts) -> Option<Refusal> {
    if !demand.affinity.names(name.as_str()) {
        return Some(Refusal::NotNamed);
    }
    if !node_unschedulable::passes(demand, node) {
        return Some(Refusal::Unschedulable);
    }
    if !node_name::passes(demand, name.as_str()) {
        return Some(Refusal::OtherName);
    }
    if !taint_toleration::passes(demand, node) {
        return Some(Refusal::Tainted);
    }
    if !demand.affinity.matches(name.as_str(), |key| node.label(key)) {
        return Some(Refusal::Affinity);
    }
    (!node.ready).then_some(Refusal::NotReady)
}

/// How much the pod's own preferences speak for a node, more is better: first as few `PreferNoSchedule` taints as possible, then
/// the weights of preferred node affinity.
pub(crate) fn preference(demand: &Demand, name: &Name, node: &NodeFacts) -> i64 {
    let tainted = i64::from(taint_toleration::avoided(demand, node));
    let preferred = demand.affinity.preferred(name.as_str(), |key| node.label(key));
    preferred - (tainted << 32)
}
