//! The nodes of a pool laid out flat, and what is left on each: what the fit engine walks.
//!
//! ```text
//!  Snapshot ──dirty nodes──▶ Flat (rows × resources)       one row is rewritten for each node that changed
//!           ──dirty waiting─▶ assumed: waiting pods on the node that they will most likely get
//!                             rankings: for each demand its nodes, best first
//! ```
//!
//! Invariant: after [`Board::refresh`] each row says what the snapshot says, plus the pods assumed on it.

mod assume;
mod flat;
mod ranking;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

pub(crate) use self::flat::{Columns, Flat, PODS_COLUMN, Row, Statics};
use self::{assume::Assumed, ranking::Rankings};
use crate::{demand::Demand, name::Name, pool::Pool, snapshot::Snapshot};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Shared with readers that reckon on it for a while; copied when it changes meanwhile.
    flat: Arc<Flat>,
    rows: HashMap<Name, usize>,
    vacant: Vec<usize>,
    rankings: Rankings,
    assumed: Assumed,
}

/// Which nodes a choice is limited to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits<'a> {
    /// Id of the class to take a node from. Empty: any.
    pub class: &'a str,
    /// Nodes not to take.
    pub excluded: &'a [String],
}

impl Limits<'_> {
    fn allow(&self, row: &Row) -> bool {
        (self.class.is_empty() || row.facts.class.id == self.class)
            && !self.excluded.iter().any(|name| name == row.name.as_str())
    }
}

impl Board {
    /// Takes in what changed in the snapshot.
    pub fn refresh(&mut self, snapshot: &mut Snapshot, pool: &Pool) {
        let dirty = snapshot.take_dirty();
        if dirty.nodes.is_empty() && dirty.waiting.is_empty() {
            return;
        }
        for node in &dirty.nodes {
            match snapshot.facts(node).filter(|facts| pool.holds(|key| facts.label(key))) {
                Some(facts) => {
                    let facts = facts.clone();
                    self.write_row(snapshot, node, facts);
                }
                None => self.clear_row(node),
            }
        }
        self.settle(snapshot, dirty.waiting);
    }

    /// The board as it is now.
    pub fn flat(&self) -> &Arc<Flat> {
        &self.flat
    }

    /// The row of a node.
    pub fn row(&self, node: &Name) -> Option<usize> {
        self.rows.get(node).copied()
    }

    /// The best node for one more pod of a demand.
    pub fn choose(&mut self, demand: &Arc<Demand>, limits: Limits<'_>) -> Option<usize> {
        if demand.unjudged.is_some() || demand.affinity.conflicts() {
            return None;
        }
        self.rankings.best(&self.flat, demand, limits)
    }

    /// The class of a node.
    pub fn class_of(&self, node: &Name) -> Option<&str> {
        Some(&self.flat.rows[self.row(node)?].as_ref()?.facts.class.id)
    }

    /// Whether a node takes pods of the demand, and no more is taken of it than there is.
    pub fn takes(&self, node: &Name, demand: &Demand) -> bool {
        let Some(row) = self.row(node) else { return false };
        let taken = self.flat.rows[row].as_ref();
        taken.is_some_and(|each| crate::plugins::refusal(demand, node, &each.facts).is_none())
            && !self.flat.is_overfull(row)
    }

    fn write_row(&mut self, snapshot: &Snapshot, node: &Name, facts: Arc<crate::node_facts::NodeFacts>) {
        let flat = Arc::make_mut(&mut self.flat);
        let row = *self.rows.entry(node.clone()).or_insert_with(|| self.vacant.pop().unwrap_or_else(|| flat.add_row()));
        flat.write(row, Row { name: node.clone(), facts, ports: Vec::new() });
        for (requests, ports) in snapshot.loads(node) {
            flat.take(row, requests, ports);
        }
        for demand in self.assumed.on(row) {
            flat.take(row, &demand.requests, &demand.ports);
        }
        self.rankings.changed(row, flat.rows.len());
    }

    fn clear_row(&mut self, node: &Name) {
        let Some(row) = self.rows.remove(node) else { return };
        let flat = Arc::make_mut(&mut self.flat);
        flat.clear(row);
        self.vacant.push(row);
        self.rankings.changed(row, flat.rows.len());
        self.assumed.clear_row(row);
    }

    /// Puts waiting pods where they will most likely go, and looks again at those whose node has no room left.
    fn settle(&mut self, snapshot: &Snapshot, changed: HashSet<crate::uid::Uid>) {
        for uid in changed {
            if let Some((row, demand)) = self.assumed.forget(&uid) {
                self.unassume(row, &demand);
            }
            if let Some(demand) = snapshot.waiting(&uid) {
                self.assumed.waits(uid, demand.clone());
            }
        }
        for row in self.rankings.newly_changed() {
            if self.flat.is_overfull(row) {
                for demand in self.assumed.evict(row) {
                    self.unassume(row, &demand);
                }
            }
        }
        // One refusal speaks for all equal pods.
        let mut refused: HashSet<Arc<Demand>> = HashSet::new();
        for (uid, demand) in self.assumed.unplaced() {
            if refused.contains(&demand) {
                continue;
            }
            match self.choose(&demand, Limits::default()) {
                Some(row) => {
                    let flat = Arc::make_mut(&mut self.flat);
                    flat.take(row, &demand.requests, &demand.ports);
                    self.rankings.changed(row, flat.rows.len());
                    self.assumed.place(&uid, row);
                }
                None => {
                    refused.insert(demand);
                }
            }
        }
        self.rankings.newly_changed();
    }

    fn unassume(&mut self, row: usize, demand: &Demand) {
        let flat = Arc::make_mut(&mut self.flat);
        flat.give_back(row, &demand.requests, &demand.ports);
        self.rankings.changed(row, flat.rows.len());
    }

    /// What a waiting pod is assumed to take, and where.
    pub fn assumption(&self, uid: &crate::uid::Uid) -> Option<(usize, &Arc<Demand>)> {
        self.assumed.of(uid)
    }
}
