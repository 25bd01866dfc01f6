//! How many equal pods fit on single nodes, and why no more do.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    sync::Arc,
};

use crate::{
    board::{Columns, Flat, PODS_COLUMN, Row, Statics},
    demand::Demand,
    plugins::{self, Reason, Refusal, node_affinity, node_ports, node_resources},
};

/// What kube-scheduler says when it knows no node.
const NO_NODES: &str = "no nodes available to schedule pods";

/// The verdict on a number of equal pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// How many fit, not more than were asked for.
    pub fits: u32,
    /// How many go to nodes of each class, by class id.
    pub classes: BTreeMap<String, u32>,
    /// Why no more fit, the most frequent first. Empty when all fit.
    pub reasons: Vec<CountedReason>,
    /// The same as kube-scheduler writes it into a pod's condition. Empty when all fit.
    pub message: String,
}

/// A reason, and how many nodes give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedReason {
    /// Plugin and words.
    pub reason: Reason,
    /// Nodes. Zero: it holds for the cluster as a whole.
    pub nodes: u32,
    /// Whether it could be cured on at least one of them by removing pods.
    pub resolvable: bool,
}

/// The board as it was at one moment, to reckon on without holding up anybody. Placements of one call stay for the next ones.
#[derive(Debug)]
pub struct FitView {
    flat: Arc<Flat>,
    /// What is taken of each node here, once it differs from the board's.
    used: Option<Vec<i64>>,
    /// Ports taken here beyond the board's, and given back.
    ports: HashMap<usize, Vec<node_ports::HostPort>>,
}

/// How many pods more a node takes.
struct Candidate {
    row: usize,
    capacity: u32,
    preference: i64,
}

impl FitView {
    pub(crate) fn new(flat: Arc<Flat>) -> Self {
        Self { flat, used: None, ports: HashMap::new() }
    }

    /// Judges as if this had gone from a node.
    pub(crate) fn ignore(&mut self, row: usize, requests: &crate::Resources, ports: &[node_ports::HostPort]) {
        let flat = Arc::make_mut(&mut self.flat);
        flat.give_back(row, requests, ports);
    }

    /// How many of `replicas` pods fit, each on a single node, as if nothing else came.
    pub fn alone(&self, demand: &Demand, replicas: u32) -> Fit {
        self.reckon(demand, replicas).0
    }

    /// The same; and those that fit take their room from later calls.
    pub fn jointly(&mut self, demand: &Demand, replicas: u32) -> Fit {
        let (fit, placed) = self.reckon(demand, replicas);
        let columns = self.flat.columns_of(demand);
        let stride = self.flat.stride();
        let used = self.used.get_or_insert_with(|| self.flat.used().to_vec());
        for (row, count) in placed {
            for (column, amount) in &columns.amounts {
                used[row * stride + column] += amount.saturating_mul(i64::from(count));
            }
            if !demand.ports.is_empty() {
                self.ports.entry(row).or_default().extend_from_slice(&demand.ports);
            }
        }
        fit
    }

    /// The verdict, and how many pods go to which row.
    fn reckon(&self, demand: &Demand, replicas: u32) -> (Fit, Vec<(usize, u32)>) {
        let total = self.flat.rows.iter().flatten().count();
        if let Some(reason) = whole_cluster(demand, total) {
            let message = if total == 0 {
                NO_NODES.into()
            } else {
                format!("0/{total} nodes are available: {}.", reason.message)
            };
            let reasons = vec![CountedReason { reason, nodes: 0, resolvable: false }];
            return (Fit { fits: 0, message, reasons, ..Fit::default() }, Vec::new());
        }
        let columns = self.flat.columns_of(demand);
        let mut statics = Statics::default();
        let mut refused = [0_u32; Refusal::ALL.len()];
        let mut candidates = Vec::with_capacity(total);
        let mut fitting = 0_u64;
        for (row, node) in self.flat.rows.iter().enumerate() {
            let Some(node) = node else { continue };
            if let Some(refusal) = statics.refusal(demand, node) {
                refused[refusal as usize] += 1;
                continue;
            }
            let capacity = self.capacity(demand, node, row, &columns.amounts, columns.missing.is_empty());
            fitting += u64::from(capacity);
            candidates.push(Candidate { row, capacity, preference: 0 });
        }
        let placed = if fitting <= u64::from(replicas) {
            candidates.iter().filter(|each| each.capacity > 0).map(|each| (each.row, each.capacity)).collect()
        } else {
            self.spread(demand, replicas, &mut candidates, &columns.amounts)
        };
        let mut fit = Fit { fits: u32::try_from(fitting).unwrap_or(u32::MAX).min(replicas), ..Fit::default() };
        let mut classes: HashMap<&str, u32> = HashMap::new();
        for (row, count) in &placed {
            if let Some(node) = &self.flat.rows[*row] {
                *classes.entry(&node.facts.class.id).or_default() += count;
            }
        }
        fit.classes = classes.into_iter().map(|(class, count)| (class.to_owned(), count)).collect();
        if fit.fits < replicas {
            self.explain(demand, &columns, &refused, &candidates, total, &mut fit);
        }
        (fit, placed)
    }

    fn used(&self, row: usize) -> &[i64] {
        let stride = self.flat.stride();
        &self.used.as_deref().unwrap_or(self.flat.used())[row * stride..][..stride]
    }

    fn ports_free(&self, demand: &Demand, node: &Row, row: usize) -> bool {
        let more = self.ports.get(&row).into_iter().flatten();
        node_ports::passes(&demand.ports, node.ports.iter().chain(more))
    }

    /// How many pods more a node takes.
    fn capacity(&self, demand: &Demand, node: &Row, row: usize, amounts: &[(usize, i64)], complete: bool) -> u32 {
        if !complete || !self.ports_free(demand, node, row) {
            return 0;
        }
        let (whole, used) = (self.flat.allocatable(row), self.used(row));
        let each = amounts.iter().map(|(column, amount)| ((whole[*column] - used[*column]) / amount).max(0));
        let count = u32::try_from(each.min().unwrap_or(0)).unwrap_or(u32::MAX);
        // The first pod takes the ports.
        if demand.ports.is_empty() { count } else { count.min(1) }
    }

    /// More fit than are asked for: they go one by one to the node that is best then, as the scheduler would put them.
    fn spread(
        &self,
        demand: &Demand,
        replicas: u32,
        candidates: &mut [Candidate],
        amounts: &[(usize, i64)],
    ) -> Vec<(usize, u32)> {
        for each in candidates.iter_mut() {
            if let Some(node) = &self.flat.rows[each.row] {
                each.preference = plugins::preference(demand, &node.name, &node.facts);
            }
        }
        let score = |each: &Candidate, placed: u32| {
            let (whole, used) = (self.flat.allocatable(each.row), self.used(each.row));
            least_allocated_after(whole, used, amounts, placed)
        };
        let ranked = candidates.iter().enumerate().filter(|(_, each)| each.capacity > 0);
        let mut heap: BinaryHeap<_> =
            ranked.map(|(index, each)| (each.preference, score(each, 0), Reverse(index))).collect();
        let mut counts = vec![0_u32; candidates.len()];
        for _ in 0..replicas {
            let Some(mut best) = heap.peek_mut() else { break };
            let Reverse(index) = best.2;
            counts[index] += 1;
            if counts[index] < candidates[index].capacity {
                best.1 = score(&candidates[index], counts[index]);
            } else {
                std::collections::binary_heap::PeekMut::pop(best);
            }
        }
        let placed = candidates.iter().zip(counts).filter(|(_, count)| *count > 0);
        placed.map(|(each, count)| (each.row, count)).collect()
    }

    /// Says why the next pod finds no node, once those that fit are placed.
    fn explain(
        &self,
        demand: &Demand,
        columns: &Columns,
        refused: &[u32; Refusal::ALL.len()],
        candidates: &[Candidate],
        total: usize,
        fit: &mut Fit,
    ) {
        let mut counted: HashMap<Reason, (u32, bool)> = HashMap::new();
        for (refusal, count) in Refusal::ALL.into_iter().zip(refused).filter(|(_, count)| **count > 0) {
            counted.insert(refusal.reason(), (*count, false));
        }
        let ports = Reason { message: node_ports::REASON.into(), plugin: node_ports::NAME };
        let mut no_ports = 0;
        let mut short = vec![(0_u32, false); columns.amounts.len()];
        let mut lacking = 0;
        for each in candidates {
            let Some(node) = &self.flat.rows[each.row] else { continue };
            if !demand.ports.is_empty() && (each.capacity > 0 || !self.ports_free(demand, node, each.row)) {
                no_ports += 1;
                continue;
            }
            let (whole, used) = (self.flat.allocatable(each.row), self.used(each.row));
            // A node that is too small for one resource cannot be cured, whatever else it lacks.
            let too_big = |(at, amount): &(usize, i64)| *at != PODS_COLUMN && *amount > whole[*at];
            let small = !columns.missing.is_empty() || columns.amounts.iter().any(too_big);
            for ((column, amount), (count, resolvable)) in columns.amounts.iter().zip(&mut short) {
                let taken = used[*column].saturating_add(amount.saturating_mul(i64::from(each.capacity)));
                if *amount > whole[*column] - taken {
                    *count += 1;
                    *resolvable |= !small;
                }
            }
            lacking += 1;
        }
        if no_ports > 0 {
            counted.insert(ports, (no_ports, true));
        }
        let resource = |name: &str| Reason { message: node_resources::reason(name), plugin: node_resources::NAME };
        for ((column, _), (count, resolvable)) in columns.amounts.iter().zip(short).filter(|(_, (count, _))| *count > 0)
        {
            counted.insert(resource(self.flat.column(*column).as_str()), (count, resolvable));
        }
        for name in columns.missing.iter().filter(|_| lacking > 0) {
            counted.insert(resource(name.as_str()), (lacking, false));
        }
        // kube-scheduler sorts the texts, counts included.
        let mut words: Vec<_> =
            counted.iter().map(|(reason, (count, _))| format!("{count} {}", reason.message)).collect();
        words.sort();
        fit.message = format!("0/{total} nodes are available: {}.", words.join(", "));
        let each = counted.into_iter();
        fit.reasons = each.map(|(reason, (nodes, resolvable))| CountedReason { reason, nodes, resolvable }).collect();
        fit.reasons.sort_by(|a, b| b.nodes.cmp(&a.nodes).then_with(|| a.reason.cmp(&b.reason)));
    }
}

/// Why the cluster as a whole takes no pod of the demand.
fn whole_cluster(demand: &Demand, nodes: usize) -> Option<Reason> {
    if nodes == 0 {
        return Some(Reason { message: NO_NODES.into(), plugin: "" });
    }
    if demand.affinity.conflicts() {
        return Some(Reason { message: node_affinity::REASON_CONFLICT.into(), plugin: node_affinity::NAME });
    }
    demand.unjudged_reason()
}

/// The share of CPU and memory that stays free after `placed` pods and one more.
fn least_allocated_after(whole: &[i64], used: &[i64], amounts: &[(usize, i64)], placed: u32) -> i64 {
    let mut score = 0;
    for column in [0, 1] {
        let asked = amounts.iter().find(|(own, _)| *own == column).map_or(0, |(_, amount)| *amount);
        let left = whole[column] - used[column] - asked.saturating_mul(i64::from(placed) + 1);
        if whole[column] > 0 {
            score += left.max(0).saturating_mul(1_024) / whole[column];
        }
    }
    score
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
