//! Holds, and what a [`crate::FitEngine`] reads of the snapshot.

use std::sync::Arc;

use super::{Dirty, Hold, Snapshot};
use crate::{
    demand::Demand, name::Name, node_facts::NodeFacts, plugins::node_ports::HostPort, resources::Resources, uid::Uid,
};

/// What takes room on a node: requests and host ports of one pod or hold.
pub(crate) type Load<'a> = (&'a Resources, &'a [HostPort]);

/// Where an upper pod's room is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// On a node, by its lower pod or by a hold.
    On(Name),
    /// Waiting, under this UID of [`Dirty::waiting`].
    Waiting(Uid),
    /// Nothing is known of it.
    Unknown,
}

impl Snapshot {
    /// Holds room for an upper pod, on a node or on none yet. One that is held already moves.
    pub(crate) fn hold(&mut self, upper: &Uid, demand: Arc<Demand>, node: Option<Name>) {
        self.hide_hold(upper);
        self.holds.insert(upper.clone(), Hold { demand, node });
        self.revision += 1;
        if !self.twins.contains_key(upper) {
            self.show_hold(upper);
        }
    }

    /// Gives the room back. Whether there was a hold.
    pub(crate) fn drop_hold(&mut self, upper: &Uid) -> bool {
        self.hide_hold(upper);
        let held = self.holds.remove(upper).is_some();
        self.revision += u64::from(held);
        held
    }

    /// The node and demand of an upper pod's hold, whether it counts or its lower pod does.
    pub(crate) fn hold_of(&self, upper: &Uid) -> Option<(Option<&Name>, &Arc<Demand>)> {
        self.holds.get(upper).map(|hold| (hold.node.as_ref(), &hold.demand))
    }

    /// Whether an unfinished lower pod stands for the upper one.
    pub(crate) fn has_twin(&self, upper: &Uid) -> bool {
        self.twins.contains_key(upper)
    }

    /// Where an upper pod's room is.
    pub(crate) fn whereabouts(&self, upper: &Uid) -> Whereabouts {
        if let Some(twin) = self.twins.get(upper) {
            return match self.places.get(twin) {
                Some(Some(node)) => Whereabouts::On(node.clone()),
                _ => Whereabouts::Waiting(twin.clone()),
            };
        }
        match self.holds.get(upper) {
            Some(Hold { node: Some(node), .. }) => Whereabouts::On(node.clone()),
            Some(_) => Whereabouts::Waiting(upper.clone()),
            None => Whereabouts::Unknown,
        }
    }

    /// What changed since the last call.
    pub(crate) fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// A node's facts, while it is in the list.
    pub(crate) fn facts(&self, node: &Name) -> Option<&Arc<NodeFacts>> {
        self.nodes.get(node)?.facts.as_ref()
    }

    /// All that takes room on a node.
    pub(crate) fn loads(&self, node: &Name) -> impl Iterator<Item = Load<'_>> {
        let entry = self.nodes.get(node);
        let pods = entry.into_iter().flat_map(|entry| &entry.pods);
        let holds = entry.into_iter().flat_map(|entry| &entry.holds);
        pods.map(|(_, pod)| (&pod.requests, pod.ports.as_deref().map_or(&[][..], Vec::as_slice)))
            .chain(holds.map(|(_, demand)| (&demand.requests, demand.ports.as_slice())))
    }

    /// What an upper pod takes on a node, by its lower pod there or by its hold.
    pub(crate) fn load_of(&self, upper: &Uid, node: &Name) -> Option<Load<'_>> {
        let entry = self.nodes.get(node)?;
        if let Some(twin) = self.twins.get(upper) {
            let (_, pod) = entry.pods.iter().find(|(own, _)| own == twin)?;
            return Some((&pod.requests, pod.ports.as_deref().map_or(&[][..], Vec::as_slice)));
        }
        let (_, demand) = entry.holds.iter().find(|(own, _)| own == upper)?;
        Some((&demand.requests, demand.ports.as_slice()))
    }

    /// The demand of a waiting pod or of a hold without a node, while it counts.
    pub(crate) fn waiting(&self, uid: &Uid) -> Option<&Arc<Demand>> {
        if let Some(pod) = self.unbound.get(uid) {
            return pod.waiting.as_ref();
        }
        let hold = self.holds.get(uid).filter(|hold| hold.node.is_none() && !self.twins.contains_key(uid))?;
        Some(&hold.demand)
    }

    /// Takes a hold off its node: its lower pod counts, or it goes.
    pub(super) fn hide_hold(&mut self, upper: &Uid) {
        let Some(hold) = self.holds.get(upper) else { return };
        match hold.node.clone() {
            None => {
                self.dirty.waiting.insert(upper.clone());
            }
            Some(node) => {
                if let Some(entry) = self.nodes.get_mut(&node) {
                    entry.holds.retain(|(own, _)| own != upper);
                }
                self.reckon(&node);
            }
        }
    }

    /// Puts a hold on its node: it has no lower pod.
    pub(super) fn show_hold(&mut self, upper: &Uid) {
        let Some(hold) = self.holds.get(upper).cloned() else { return };
        match hold.node {
            None => {
                self.dirty.waiting.insert(upper.clone());
            }
            Some(node) => {
                let entry = self.nodes.entry(node.clone()).or_default();
                entry.holds.retain(|(own, _)| own != upper);
                entry.holds.push((upper.clone(), hold.demand));
                self.reckon(&node);
            }
        }
    }
}
