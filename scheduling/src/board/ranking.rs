//! For each demand its nodes, best first, so that the next equal pod costs the logarithm of their number.
//!
//! Nothing is removed from a heap when a node changes: each entry carries the version of its row, and one that is out of date is
//! dropped when it comes up. What changed stands in a log that each ranking reads from where it stopped.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
};

use super::{
    Limits,
    flat::{Columns, Flat, Statics},
};
use crate::{
    demand::Demand,
    plugins::{self, node_ports},
};

/// Rankings that are kept: more demands than are placed at the same time. A ranking is some tens of bytes for each node.
const RANKINGS_MAX: usize = 256;
/// Changes that the log keeps for each node, and beyond: a ranking that lags more is made anew, which costs as much.
const LOG_PER_ROW: usize = 2;
const LOG_SPARE: usize = 1_024;
/// A heap of more entries for each node than this is made anew.
const ENTRIES_PER_ROW: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Rankings {
    by_demand: HashMap<Arc<Demand>, Ranking>,
    /// Rows that changed, oldest first; the first one's number is `log_start`.
    log: Vec<usize>,
    log_start: u64,
    /// Where [`Self::newly_changed`] stopped.
    looked: u64,
    versions: Vec<u32>,
    /// Counts uses, for the least used to go first.
    uses: u64,
}

#[derive(Debug)]
struct Ranking {
    columns: Columns,
    stride: usize,
    heap: BinaryHeap<Entry>,
    read: u64,
    used: u64,
}

/// A node that has room, ordered by how good it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// The pod's own preferences.
    preference: i64,
    /// How much stays free.
    free: i64,
    /// The lowest row of equals, so that the answer does not depend on history.
    row: Reverse<usize>,
    version: u32,
}

impl Rankings {
    /// A row is not as it was.
    pub fn changed(&mut self, row: usize, rows: usize) {
        if self.versions.len() < rows {
            self.versions.resize(rows, 0);
        }
        self.versions[row] = self.versions[row].wrapping_add(1);
        if self.log.len() >= rows * LOG_PER_ROW + LOG_SPARE {
            self.log_start += self.log.len() as u64;
            self.log.clear();
        }
        self.log.push(row);
    }

    /// Rows that changed since the last call. All, when the log does not reach back that far.
    pub fn newly_changed(&mut self) -> Vec<usize> {
        let looked = self.looked;
        self.looked = self.end();
        match looked.checked_sub(self.log_start) {
            #[allow(clippy::cast_possible_truncation)] // an offset into a Vec
            Some(offset) => self.log[offset as usize..].to_vec(),
            None => (0..self.versions.len()).collect(),
        }
    }

    /// The best row with room for one more pod.
    pub fn best(&mut self, flat: &Flat, demand: &Arc<Demand>, limits: Limits<'_>) -> Option<usize> {
        self.uses += 1;
        let (end, used) = (self.end(), self.uses);
        if !self.by_demand.contains_key(demand) {
            self.make_place();
            self.by_demand.insert(demand.clone(), Ranking::empty());
        }
        let ranking = self.by_demand.get_mut(demand)?;
        ranking.used = used;
        let current = ranking.stride == flat.stride() && ranking.heap.len() <= flat.rows.len() * ENTRIES_PER_ROW;
        match ranking.read.checked_sub(self.log_start) {
            Some(offset) if current => {
                #[allow(clippy::cast_possible_truncation)] // an offset into a Vec
                for row in &self.log[offset as usize..] {
                    ranking.enter(flat, demand, *row, self.versions[*row]);
                }
            }
            _ => ranking.rebuild(flat, demand, &self.versions),
        }
        ranking.read = end;
        ranking.best(flat, &self.versions, limits)
    }

    fn end(&self) -> u64 {
        self.log_start + self.log.len() as u64
    }

    fn make_place(&mut self) {
        if self.by_demand.len() >= RANKINGS_MAX {
            let least = self.by_demand.iter().min_by_key(|(_, ranking)| ranking.used).map(|(demand, _)| demand.clone());
            if let Some(least) = least {
                self.by_demand.remove(&least);
            }
        }
    }
}

impl Ranking {
    /// Made when it is first read: no flat board has a stride of zero.
    fn empty() -> Self {
        let columns = Columns { amounts: Vec::new(), missing: Vec::new() };
        Self { columns, stride: 0, heap: BinaryHeap::new(), read: 0, used: 0 }
    }

    fn rebuild(&mut self, flat: &Flat, demand: &Demand, versions: &[u32]) {
        self.stride = flat.stride();
        self.columns = flat.columns_of(demand);
        let mut statics = Statics::default();
        let mut entries = std::mem::take(&mut self.heap).into_vec();
        entries.clear();
        for (row, version) in (0..flat.rows.len()).zip(versions) {
            entries.extend(entry(flat, demand, &self.columns, row, *version, &mut statics));
        }
        self.heap = entries.into();
    }

    fn enter(&mut self, flat: &Flat, demand: &Demand, row: usize, version: u32) {
        self.heap.extend(entry(flat, demand, &self.columns, row, version, &mut Statics::default()));
    }

    fn best(&mut self, flat: &Flat, versions: &[u32], limits: Limits<'_>) -> Option<usize> {
        let mut passed_over = Vec::new();
        let mut found = None;
        while let Some(entry) = self.heap.peek() {
            let Reverse(row) = entry.row;
            if entry.version != versions[row] {
                self.heap.pop();
                continue;
            }
            if flat.rows[row].as_ref().is_some_and(|node| limits.allow(node)) {
                found = Some(row);
                break;
            }
            passed_over.extend(self.heap.pop());
        }
        self.heap.extend(passed_over);
        found
    }
}

/// A row's entry, when it has room for one more pod.
fn entry(
    flat: &Flat,
    demand: &Demand,
    columns: &Columns,
    row: usize,
    version: u32,
    statics: &mut Statics,
) -> Option<Entry> {
    let node = flat.rows[row].as_ref()?;
    if statics.refusal(demand, node).is_some() || !columns.missing.is_empty() {
        return None;
    }
    let (whole, used) = (flat.allocatable(row), &flat.used()[row * flat.stride()..][..flat.stride()]);
    if columns.amounts.iter().any(|(column, amount)| *amount > whole[*column] - used[*column])
        || !node_ports::passes(&demand.ports, node.ports.iter())
    {
        return None;
    }
    let preference = plugins::preference(demand, &node.name, &node.facts);
    let free = least_allocated(whole, used, &columns.amounts);
    Some(Entry { preference, free, row: Reverse(row), version })
}

/// The score of NodeResourcesFit's strategy LeastAllocated, for CPU and memory: the share that stays free, in 1/1024.
pub(crate) fn least_allocated(whole: &[i64], used: &[i64], amounts: &[(usize, i64)]) -> i64 {
    let mut score = 0;
    for column in [0, 1] {
        let asked = amounts.iter().find(|(own, _)| *own == column).map_or(0, |(_, amount)| *amount);
        let left = (whole[column] - used[column] - asked).max(0);
        if whole[column] > 0 {
            score += left.saturating_mul(1_024) / whole[column];
        }
    }
    score
}
