//! The fit engine: a snapshot with its board, kept in step.

use std::sync::Arc;

use crate::{
    board::{Board, Limits},
    demand::Demand,
    fit::{Fit, FitView},
    name::Name,
    pool::Pool,
    snapshot::{Snapshot, Whereabouts},
    uid::Uid,
};

/// Decides where pods go in the nodes of one pool, and what is held for them. One writer.
#[derive(Debug, Default)]
pub struct FitEngine {
    snapshot: Snapshot,
    board: Board,
    pool: Pool,
}

/// A node that room is held on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub node: String,
    /// Id of its class.
    pub class_id: String,
}

/// What to look at when a node is chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// Id of the class to take a node from. Empty: any.
    pub class_id: &'a str,
    /// Nodes not to take.
    pub excluded_nodes: &'a [String],
}

impl FitEngine {
    /// An empty cluster.
    pub fn new(pool: Pool) -> Self {
        Self { snapshot: Snapshot::new(), board: Board::default(), pool }
    }

    /// The nodes and pods.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The nodes and pods, to be changed.
    pub fn snapshot_mut(&mut self) -> &mut Snapshot {
        &mut self.snapshot
    }

    /// Which nodes are offered.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The cluster as it is now, to reckon on, as if these upper pods and what is held for them were gone.
    pub fn view<S: AsRef<str>>(&mut self, ignored_upper_uids: &[S]) -> FitView {
        self.refresh();
        let mut view = FitView::new(self.board.flat().clone());
        for uid in ignored_upper_uids {
            let upper = Uid::new(uid.as_ref());
            match self.snapshot.whereabouts(&upper) {
                Whereabouts::On(node) => {
                    if let (Some(row), Some((requests, ports))) =
                        (self.board.row(&node), self.snapshot.load_of(&upper, &node))
                    {
                        view.ignore(row, requests, ports);
                    }
                }
                Whereabouts::Waiting(uid) => {
                    if let Some((row, demand)) = self.board.assumption(&uid) {
                        view.ignore(row, &demand.requests, &demand.ports);
                    }
                }
                Whereabouts::Unknown => {}
            }
        }
        view
    }

    /// Holds room for an upper pod on the best node. One that holds room already, or whose lower pod is there, keeps its place.
    ///
    /// # Errors
    /// The verdict when no node has room; nothing is held then.
    pub fn reserve(&mut self, upper_uid: &str, demand: &Arc<Demand>, wish: Wish<'_>) -> Result<Place, Box<Fit>> {
        self.refresh();
        let upper = Uid::new(upper_uid);
        let limits = Limits { class: wish.class_id, excluded: wish.excluded_nodes };
        let Some(row) = self.board.choose(demand, limits) else {
            let mut fit = FitView::new(self.board.flat().clone()).alone(demand, 1);
            if fit.fits > 0 {
                fit = Fit {
                    message: "the nodes with room are excluded by the request, or of another class than it asks for"
                        .into(),
                    ..Fit::default()
                };
            }
            return Err(Box::new(fit));
        };
        let node = self.board.flat().rows[row].as_ref().map(|row| row.name.clone());
        self.snapshot.hold(&upper, demand.clone(), node.clone());
        self.refresh();
        let node = node.map(|name| name.as_str().to_owned()).unwrap_or_default();
        let class_id = self.board.class_of(&Name::new(&node)).unwrap_or_default().to_owned();
        Ok(Place { node, class_id })
    }

    /// Where an upper pod's room is: on its lower pod's node, on the node that is held, or on the node that it is assumed to get.
    pub fn place_of(&mut self, upper_uid: &str) -> Option<Place> {
        self.refresh();
        let node = match self.snapshot.whereabouts(&Uid::new(upper_uid)) {
            Whereabouts::On(node) => node,
            Whereabouts::Waiting(uid) => {
                let (row, _) = self.board.assumption(&uid)?;
                self.board.flat().rows[row].as_ref()?.name.clone()
            }
            Whereabouts::Unknown => return None,
        };
        let class_id = self.board.class_of(&node).unwrap_or_default().to_owned();
        Some(Place { node: node.as_str().to_owned(), class_id })
    }

    /// Whether what is held for an upper pod without a lower one can still be had: its node is there, takes it, and is not
    /// overfull. Foreign pods know of no holds.
    pub fn still_holds(&mut self, upper_uid: &str) -> bool {
        self.refresh();
        let upper = Uid::new(upper_uid);
        if self.snapshot.has_twin(&upper) {
            return true;
        }
        let Some((Some(node), demand)) = self.snapshot.hold_of(&upper) else { return false };
        self.board.takes(node, demand)
    }

    /// Holds room for an upper pod on a node, or wherever it will go when none is named, whether there is room or not: it is bound.
    pub fn hold(&mut self, upper_uid: &str, demand: Arc<Demand>, node: Option<&str>) {
        self.snapshot.hold(&Uid::new(upper_uid), demand, node.map(Name::new));
    }

    /// Gives back what is held for an upper pod. Whether there was anything.
    pub fn release(&mut self, upper_uid: &str) -> bool {
        self.snapshot.drop_hold(&Uid::new(upper_uid))
    }

    /// The node that is held for an upper pod, whether the hold counts or its lower pod does.
    pub fn held_node(&self, upper_uid: &str) -> Option<String> {
        let (node, _) = self.snapshot.hold_of(&Uid::new(upper_uid))?;
        node.map(|node| node.as_str().to_owned())
    }

    /// Whether the lower pod of an upper one is bound to a node.
    pub fn has_settled(&self, upper_uid: &str) -> bool {
        let upper = Uid::new(upper_uid);
        self.snapshot.has_twin(&upper) && matches!(self.snapshot.whereabouts(&upper), Whereabouts::On(_))
    }

    /// Whether an unfinished lower pod stands for the upper one.
    pub fn has_lower_pod(&self, upper_uid: &str) -> bool {
        self.snapshot.has_twin(&Uid::new(upper_uid))
    }

    /// Takes in what changed in the snapshot. Every question does so by itself; who changes the snapshot and asks nothing for long
    /// calls it now and then, or what is to be looked at grows.
    pub fn refresh(&mut self) {
        self.board.refresh(&mut self.snapshot, &self.pool);
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
