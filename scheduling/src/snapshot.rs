//! Nodes and pods of a lower cluster, packed, and what is left on each node.
//!
//! Invariants: what pods take of a node is reckoned from that node's own pods, never carried on by adding and subtracting events,
//! so it cannot drift (rule 5). Sums over nodes are made from those when they are asked for. Events may come in any order:
//! a pod before its node, a delete of what was never seen, the same object twice.
//!
//! Beside the pods that are there stand *holds*: room for upper pods that have no lower pod yet (reserved, or bound and on their
//! way down). A hold counts until the lower pod of its upper UID is seen, which takes its place, and again if that one goes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Node;

use crate::{
    demand::Demand,
    name::Name,
    node_facts::{Class, NodeFacts},
    plugins::node_ports::HostPort,
    pod_facts::PodFacts,
    pool::Pool,
    resources::{ResourceError, Resources},
    room::{NodeClass, Room, Taken, left},
    uid::Uid,
};

/// Unused classes that are kept beyond one for each node: small clusters are never swept.
const CLASSES_SPARE: usize = 64;

/// A lower cluster as its scheduler would see it. One writer; readers ask for [`Room`] and [`NodeClass`].
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: HashMap<Name, NodeEntry>,
    /// Where each known pod is.
    places: HashMap<Uid, Option<Name>>,
    /// Unfinished pods that are bound to no node.
    unbound: HashMap<Uid, PodEntry>,
    /// The unfinished lower pod of each upper one.
    twins: HashMap<Uid, Uid>,
    /// Room held for upper pods, by their UID.
    holds: HashMap<Uid, Hold>,
    classes: HashSet<Arc<Class>>,
    revision: u64,
    /// What changed since somebody last asked; see [`Self::take_dirty`].
    dirty: Dirty,
}

/// Room that is held for an upper pod.
#[derive(Clone, Debug)]
struct Hold {
    demand: Arc<Demand>,
    /// The node; `None` while nothing says which it will be.
    node: Option<Name>,
}

/// What is to be looked at again by whoever keeps something reckoned from the snapshot.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Nodes that came, went or changed, or whose pods did.
    pub nodes: HashSet<Name>,
    /// Waiting pods (by lower UID) and holds without a node (by upper UID) that came, went or changed.
    pub waiting: HashSet<Uid>,
}

/// A node, or the place of one that pods name and no list has yet.
#[derive(Debug, Default)]
struct NodeEntry {
    facts: Option<Arc<NodeFacts>>,
    pods: Vec<(Uid, PodEntry)>,
    /// Upper UIDs and demands of the holds that count here.
    holds: Vec<(Uid, Arc<Demand>)>,
    taken: Taken,
}

/// The part of a pod that counts, once its node is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PodEntry {
    requests: Resources,
    /// UID of the upper pod, when it is ours.
    owner: Option<Uid>,
    #[allow(clippy::box_collection)] // nearly no pod has any, and this costs the others one pointer in place of three
    ports: Option<Box<Vec<HostPort>>>,
    waiting: Option<Arc<Demand>>,
}

impl Snapshot {
    /// An empty cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rises with every change that [`Self::room`] or [`Self::node_classes`] could show. Heartbeats and repeats do not raise it.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes in a node, new or changed. One whose quantities cannot be read is treated as removed, so that it offers nothing, and the
    /// error says which resource is wrong.
    pub fn upsert_node(&mut self, node: &Node) -> Result<(), ResourceError> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut facts = NodeFacts::of(node).inspect_err(|_| self.remove_node(name))?;
        let entry = self.nodes.entry(Name::new(name)).or_default();
        if entry.facts.as_deref() == Some(&facts) {
            return Ok(());
        }
        match self.classes.get(&facts.class) {
            Some(known) => facts.class = known.clone(),
            None => {
                self.classes.insert(facts.class.clone());
            }
        }
        entry.facts = Some(Arc::new(facts));
        self.revision += 1;
        self.dirty.nodes.insert(Name::new(name));
        self.drop_unused_classes();
        Ok(())
    }

    /// Forgets a node. Its pods are kept for its return: only their own events remove them.
    pub fn remove_node(&mut self, name: &str) {
        let name = Name::new(name);
        let Some(entry) = self.nodes.get_mut(&name) else { return };
        if entry.facts.take().is_some() {
            self.revision += 1;
            self.dirty.nodes.insert(name.clone());
        }
        if entry.is_empty() {
            self.nodes.remove(&name);
        }
    }

    /// Takes in a pod, new or changed. A finished one takes no room and is forgotten.
    pub fn upsert_pod(&mut self, pod: PodFacts) {
        let uid = Uid::new(&pod.uid);
        if pod.terminated {
            self.remove(&uid);
            return;
        }
        let node = pod.node.as_deref().map(Name::new);
        let entry = PodEntry {
            requests: pod.requests,
            owner: pod.owner.as_deref().map(Uid::new),
            ports: (!pod.ports.is_empty()).then(|| Box::new(pod.ports)),
            waiting: pod.waiting,
        };
        if self.places.get(&uid) == Some(&node)
            && self.entry_mut(&uid, node.as_ref()).is_some_and(|known| *known == entry)
        {
            return;
        }
        // The hold of its upper pod is taken off before the pod is put in, or both would count for a moment.
        self.remove(&uid);
        if let Some(owner) = &entry.owner {
            self.twins.insert(owner.clone(), uid.clone());
            self.hide_hold(&owner.clone());
        }
        self.place(uid, node, entry);
        self.revision += 1;
    }

    /// Forgets a pod by UID.
    pub fn remove_pod(&mut self, uid: &str) {
        self.remove(&Uid::new(uid));
    }

    /// Forgets all pods but those with these UIDs: what a new list does not hold is gone.
    pub fn retain_pods(&mut self, listed: &HashSet<String>) {
        let listed: HashSet<Uid> = listed.iter().map(|uid| Uid::new(uid)).collect();
        let gone: Vec<Uid> = self.places.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        for uid in gone {
            self.remove(&uid);
        }
    }

    /// How many unfinished pods are known.
    pub fn pods(&self) -> usize {
        self.places.len()
    }

    /// What the nodes of a pool offer together. O(nodes).
    ///
    /// Our pods that are bound to no node, or to one that is in no list, count for every pool: nothing tells yet which it will be.
    pub fn room(&self, pool: &Pool) -> Room {
        let mut room = Room::default();
        for (facts, taken) in self.nodes_of(pool) {
            room.add_node(facts, taken);
        }
        for orphaned in self.nodes.values().filter(|entry| entry.facts.is_none()) {
            room.requested.add(&orphaned.taken.ours);
            room.requested.add(&orphaned.taken.held);
            room.held_elsewhere.add(&orphaned.taken.ours);
        }
        let mut waiting = Resources::default();
        for pod in self.unbound.values().filter(|pod| pod.owner.is_some()) {
            waiting.add(&pod.requests);
        }
        for (_, hold) in self.holds.iter().filter(|(uid, hold)| hold.node.is_none() && !self.twins.contains_key(uid)) {
            waiting.add(&hold.demand.requests);
        }
        room.requested.add(&waiting);
        room.free = left(&room.free, &[&waiting]);
        room
    }

    /// The counted nodes of a pool in groups of equals, ordered by id. O(nodes).
    pub fn node_classes(&self, pool: &Pool) -> Vec<NodeClass> {
        let mut classes: BTreeMap<&str, NodeClass> = BTreeMap::new();
        for (facts, taken) in self.nodes_of(pool).filter(|(facts, _)| facts.takes_pods) {
            classes
                .entry(&facts.class.id)
                .and_modify(|class| class.add_node(facts, taken))
                .or_insert_with(|| NodeClass::of_node(facts, taken));
        }
        classes.into_values().collect()
    }

    fn nodes_of<'a>(&'a self, pool: &'a Pool) -> impl Iterator<Item = (&'a NodeFacts, &'a Taken)> {
        let known = self.nodes.values().filter_map(|entry| Some((entry.facts.as_deref()?, &entry.taken)));
        known.filter(|(facts, _)| pool.holds(|key| facts.label(key)))
    }

    fn entry_mut(&mut self, uid: &Uid, node: Option<&Name>) -> Option<&mut PodEntry> {
        match node {
            Some(node) => self.nodes.get_mut(node)?.pods.iter_mut().find(|(own, _)| own == uid).map(|(_, pod)| pod),
            None => self.unbound.get_mut(uid),
        }
    }

    fn place(&mut self, uid: Uid, node: Option<Name>, pod: PodEntry) {
        match &node {
            None => {
                self.dirty.waiting.insert(uid.clone());
                self.unbound.insert(uid.clone(), pod);
            }
            Some(node) => {
                let entry = self.nodes.entry(node.clone()).or_default();
                entry.pods.push((uid.clone(), pod));
                self.reckon(node);
            }
        }
        self.places.insert(uid, node);
    }

    fn remove(&mut self, uid: &Uid) {
        let Some(node) = self.places.remove(uid) else { return };
        self.revision += 1;
        let gone = match node {
            None => {
                self.dirty.waiting.insert(uid.clone());
                self.unbound.remove(uid)
            }
            Some(node) => {
                let entry = self.nodes.get_mut(&node);
                let gone = entry.and_then(|entry| {
                    let place = entry.pods.iter().position(|(own, _)| own == uid)?;
                    Some(entry.pods.swap_remove(place).1)
                });
                self.reckon(&node);
                gone
            }
        };
        if let Some(owner) = gone.and_then(|pod| pod.owner)
            && self.twins.get(&owner) == Some(uid)
        {
            self.twins.remove(&owner);
            self.show_hold(&owner);
        }
    }

    /// Reckons what is taken of a node, from its own pods and holds alone.
    fn reckon(&mut self, node: &Name) {
        self.dirty.nodes.insert(node.clone());
        let Some(entry) = self.nodes.get_mut(node) else { return };
        if entry.is_empty() && entry.facts.is_none() {
            self.nodes.remove(node);
            return;
        }
        entry.reckon();
    }

    /// A class that no node has any more is only held by the set itself. Looked for only when there must be some, so that a
    /// change of one node does not walk the classes of all.
    fn drop_unused_classes(&mut self) {
        if self.classes.len() > CLASSES_SPARE + self.nodes.len() * 2 {
            self.classes.retain(|class| Arc::strong_count(class) > 1);
        }
    }
}

impl NodeEntry {
    fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.holds.is_empty()
    }

    fn reckon(&mut self) {
        self.taken = Taken::default();
        for (_, pod) in &self.pods {
            let side = if pod.owner.is_some() { &mut self.taken.ours } else { &mut self.taken.foreign };
            side.add(&pod.requests);
        }
        for (_, demand) in &self.holds {
            self.taken.held.add(&demand.requests);
        }
    }
}

mod holds;
pub(crate) use holds::Whereabouts;

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
