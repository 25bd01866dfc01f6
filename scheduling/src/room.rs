//! What a virtual node offers: its lower nodes' room, summed.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    name::Name,
    node_facts::{NodeFacts, Taint},
    resources::Resources,
};

/// The sum over the nodes of a pool. Amounts are of *counted* nodes only: Ready and not `unschedulable`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// What the counted nodes have in all (`status.capacity`).
    pub capacity: Resources,
    /// What is there for pods of ours: on each counted node allocatable less the requests of pods that are not ours, not below
    /// zero. The upper scheduler subtracts our own pods itself.
    pub allocatable: Resources,
    /// What our unfinished pods and holds request, those on nodes that are not counted and those not yet bound included.
    pub requested: Resources,
    /// The part of `requested` on nodes of the pool that are not counted (cordoned or not Ready), and of pods whose node is not
    /// in any list. The upper scheduler subtracts it from `allocatable`, though it takes nothing from there.
    pub held_elsewhere: Resources,
    /// What is left: on each counted node allocatable less the requests of all pods, not below zero, and less what our unbound pods
    /// request.
    pub free: Resources,
    /// Counted nodes.
    pub nodes_ready: u32,
    /// All nodes of the pool.
    pub nodes_total: u32,
    /// Operating system, when all nodes of the pool have the same.
    pub os: Option<Name>,
    /// CPU architecture, when all nodes of the pool have the same.
    pub arch: Option<Name>,
    /// Region, when all nodes of the pool are in the same.
    pub region: Option<Name>,
    /// Zone, when all nodes of the pool are in the same.
    pub zone: Option<Name>,
    /// Features that every node of the pool declares (KEP-5328), sorted. Nodes that are not counted have their say too, or the set
    /// would flap with their readiness.
    pub declared_features: Vec<String>,
    /// Pod address ranges of the pool's nodes, sorted.
    pub pod_cidrs: BTreeSet<String>,
}

/// Counted nodes that look the same to a scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeClass {
    /// Digest of what makes the class, in hex; the same after a restart.
    pub id: String,
    /// Labels that all its nodes share, without those that name the single node.
    pub labels: BTreeMap<String, String>,
    /// Taints, sorted.
    pub taints: Vec<Taint>,
    /// Features that its nodes declare, sorted.
    pub declared_features: Vec<String>,
    /// Nodes.
    pub count: u32,
    /// What the smallest node allots to pods. Nodes of a class differ by less than 64 MiB of memory and of storage.
    pub allocatable: Resources,
    /// What the unfinished pods and the holds on its nodes request together, ours and others.
    pub requested: Resources,
    /// The sum over the nodes of what is free, not below zero on any.
    pub free: Resources,
    /// For each resource by itself, the most that is free on a single node.
    pub free_largest: Resources,
}

/// What pods take of one node. Reckoned anew from the node's own pods whenever one of them changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// By pods that are not ours.
    pub foreign: Resources,
    /// By ours.
    pub ours: Resources,
    /// By holds: room for pods of ours that have no lower pod yet.
    pub held: Resources,
}

impl Room {
    /// Adds a node of the pool.
    pub(crate) fn add_node(&mut self, facts: &NodeFacts, taken: &Taken) {
        self.agree(facts);
        self.nodes_total += 1;
        self.pod_cidrs.extend(facts.pod_cidrs.iter().cloned());
        self.requested.add(&taken.ours);
        self.requested.add(&taken.held);
        if facts.takes_pods {
            self.nodes_ready += 1;
            self.capacity.add(&facts.capacity);
            self.allocatable.add(&left(&facts.allocatable, &[&taken.foreign]));
            self.free.add(&free(facts, taken));
        } else {
            self.held_elsewhere.add(&taken.ours);
        }
    }

    /// Keeps of the labels and features only what this node has too. The first node sets them.
    fn agree(&mut self, facts: &NodeFacts) {
        if self.nodes_total == 0 {
            self.os.clone_from(&facts.os);
            self.arch.clone_from(&facts.arch);
            self.region.clone_from(&facts.region);
            self.zone.clone_from(&facts.zone);
            self.declared_features.clone_from(&facts.class.declared_features);
            return;
        }
        let pairs = [
            (&mut self.os, &facts.os),
            (&mut self.arch, &facts.arch),
            (&mut self.region, &facts.region),
            (&mut self.zone, &facts.zone),
        ];
        for (common, own) in pairs {
            if common != own {
                *common = None;
            }
        }
        self.declared_features.retain(|feature| facts.class.declared_features.binary_search(feature).is_ok());
    }
}

impl NodeClass {
    /// A class with its first node.
    pub(crate) fn of_node(facts: &NodeFacts, taken: &Taken) -> Self {
        let class = &facts.class;
        let mut new = Self {
            id: class.id.clone(),
            labels: class.labels.clone(),
            taints: class.taints.clone(),
            declared_features: class.declared_features.clone(),
            count: 0,
            allocatable: facts.allocatable.clone(),
            requested: Resources::default(),
            free: Resources::default(),
            free_largest: Resources::default(),
        };
        new.add_node(facts, taken);
        new
    }

    /// Adds a node of the class.
    pub(crate) fn add_node(&mut self, facts: &NodeFacts, taken: &Taken) {
        let free = free(facts, taken);
        self.count += 1;
        self.allocatable.lower_to(&facts.allocatable);
        self.requested.add(&taken.foreign);
        self.requested.add(&taken.ours);
        self.requested.add(&taken.held);
        self.free.add(&free);
        self.free_largest.raise_to(&free);
    }
}

fn free(facts: &NodeFacts, taken: &Taken) -> Resources {
    left(&facts.allocatable, &[&taken.foreign, &taken.ours, &taken.held])
}

/// `whole` less `parts`, not below zero. Only of what the node has: a pod's request for anything else makes no entry.
pub(crate) fn left(whole: &Resources, parts: &[&Resources]) -> Resources {
    let mut left = whole.clone();
    for part in parts {
        left.subtract(part);
    }
    left.clamped()
}
