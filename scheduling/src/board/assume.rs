//! Waiting pods, and the nodes that they are assumed to get: their scheduler decides any moment, and what it will take must not be
//! promised to others meanwhile.

use std::{collections::HashMap, sync::Arc};

use crate::{demand::Demand, uid::Uid};

#[derive(Debug, Default)]
pub(super) struct Assumed {
    /// Every waiting pod: what it asks for, and its row when one has room for it.
    pods: HashMap<Uid, (Arc<Demand>, Option<usize>)>,
    by_row: HashMap<usize, Vec<Uid>>,
    /// How many have no row.
    unplaced: usize,
}

impl Assumed {
    /// A pod waits.
    pub fn waits(&mut self, uid: Uid, demand: Arc<Demand>) {
        self.pods.insert(uid, (demand, None));
        self.unplaced += 1;
    }

    /// A pod waits no more. Answers what it was assumed to take.
    pub fn forget(&mut self, uid: &Uid) -> Option<(usize, Arc<Demand>)> {
        let (demand, row) = self.pods.remove(uid)?;
        let Some(row) = row else {
            self.unplaced -= 1;
            return None;
        };
        if let Some(uids) = self.by_row.get_mut(&row) {
            uids.retain(|own| own != uid);
        }
        Some((row, demand))
    }

    /// A waiting pod is assumed on a row.
    pub fn place(&mut self, uid: &Uid, row: usize) {
        if let Some((_, place)) = self.pods.get_mut(uid)
            && place.replace(row).is_none()
        {
            self.unplaced -= 1;
            self.by_row.entry(row).or_default().push(uid.clone());
        }
    }

    /// The demands assumed on a row.
    pub fn on(&self, row: usize) -> impl Iterator<Item = &Arc<Demand>> {
        let uids = self.by_row.get(&row).into_iter().flatten();
        uids.filter_map(|uid| self.pods.get(uid)).map(|(demand, _)| demand)
    }

    /// Takes all pods off a row, to be placed anew. Answers their demands.
    pub fn evict(&mut self, row: usize) -> Vec<Arc<Demand>> {
        let uids = self.by_row.remove(&row).unwrap_or_default();
        self.unplaced += uids.len();
        let evicted = uids.iter().filter_map(|uid| {
            let (demand, place) = self.pods.get_mut(uid)?;
            *place = None;
            Some(demand.clone())
        });
        evicted.collect()
    }

    /// A row is gone with all that was assumed there.
    pub fn clear_row(&mut self, row: usize) {
        self.evict(row);
    }

    /// Pods that have no row.
    pub fn unplaced(&self) -> Vec<(Uid, Arc<Demand>)> {
        if self.unplaced == 0 {
            return Vec::new();
        }
        let waiting = self.pods.iter().filter(|(_, (_, row))| row.is_none());
        waiting.map(|(uid, (demand, _))| (uid.clone(), demand.clone())).collect()
    }

    /// What a waiting pod is assumed to take.
    pub fn of(&self, uid: &Uid) -> Option<(usize, &Arc<Demand>)> {
        let (demand, row) = self.pods.get(uid)?;
        Some(((*row)?, demand))
    }
}
