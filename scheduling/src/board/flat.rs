//! Rows of nodes and columns of resources.

use std::{collections::HashMap, sync::Arc};

use crate::{
    demand::Demand,
    name::Name,
    node_facts::{Class, NodeFacts},
    plugins::{self, Refusal, node_ports::HostPort},
    resources::{FIXED, PODS, Resources},
};

/// The place of `pods` among the columns.
pub(crate) const PODS_COLUMN: usize = 3;

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub name: Name,
    pub facts: Arc<NodeFacts>,
    /// Host ports that are taken.
    pub ports: Vec<HostPort>,
}

/// Amounts as plain numbers, a row for each node: some cache lines where a map would be a hundred.
#[derive(Clone, Debug)]
pub(crate) struct Flat {
    /// Vacant rows are `None`.
    pub rows: Vec<Option<Row>>,
    /// The resources, those of [`FIXED`] first.
    columns: Vec<Name>,
    allocatable: Vec<i64>,
    used: Vec<i64>,
}

/// A demand in columns: what one pod of it takes of each.
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    /// Column and amount, none zero; `pods` is always there.
    pub amounts: Vec<(usize, i64)>,
    /// Resources that are requested and that no node has.
    pub missing: Vec<Name>,
}

impl Default for Flat {
    fn default() -> Self {
        let columns = FIXED.iter().map(|name| Name::new(name)).collect();
        Self { rows: Vec::new(), columns, allocatable: Vec::new(), used: Vec::new() }
    }
}

impl Flat {
    pub fn stride(&self) -> usize {
        self.columns.len()
    }

    /// The name of a column.
    pub fn column(&self, column: usize) -> &Name {
        &self.columns[column]
    }

    pub fn allocatable(&self, row: usize) -> &[i64] {
        &self.allocatable[row * self.stride()..][..self.stride()]
    }

    pub fn used(&self) -> &[i64] {
        &self.used
    }

    pub fn add_row(&mut self) -> usize {
        let row = self.rows.len();
        self.rows.push(None);
        self.allocatable.resize((row + 1) * self.stride(), 0);
        self.used.resize((row + 1) * self.stride(), 0);
        row
    }

    /// Sets a row to an empty node.
    pub fn write(&mut self, row: usize, node: Row) {
        for (name, _) in node.facts.allocatable.iter() {
            self.column_of(name);
        }
        self.clear(row);
        let stride = self.stride();
        for (name, amount) in node.facts.allocatable.iter() {
            if let Some(column) = self.find(name) {
                self.allocatable[row * stride + column] = amount;
            }
        }
        self.rows[row] = Some(node);
    }

    pub fn clear(&mut self, row: usize) {
        let stride = self.stride();
        self.rows[row] = None;
        self.allocatable[row * stride..][..stride].fill(0);
        self.used[row * stride..][..stride].fill(0);
    }

    /// Takes room on a row. Of resources that no node has, nothing can be taken.
    pub fn take(&mut self, row: usize, requests: &Resources, ports: &[HostPort]) {
        self.add(row, requests, 1);
        if let Some(row) = &mut self.rows[row] {
            row.ports.extend_from_slice(ports);
        }
    }

    pub fn give_back(&mut self, row: usize, requests: &Resources, ports: &[HostPort]) {
        self.add(row, requests, -1);
        if let Some(row) = &mut self.rows[row] {
            for port in ports {
                if let Some(place) = row.ports.iter().position(|own| own == port) {
                    row.ports.swap_remove(place);
                }
            }
        }
    }

    fn add(&mut self, row: usize, requests: &Resources, sign: i64) {
        let stride = self.stride();
        for (name, amount) in requests.iter() {
            if let Some(column) = self.find(name) {
                let used = &mut self.used[row * stride + column];
                *used = used.saturating_add(amount.saturating_mul(sign));
            }
        }
    }

    /// Whether more is taken than there is.
    pub fn is_overfull(&self, row: usize) -> bool {
        let used = &self.used[row * self.stride()..][..self.stride()];
        used.iter().zip(self.allocatable(row)).any(|(used, whole)| used > whole)
    }

    /// A demand in columns.
    pub fn columns_of(&self, demand: &Demand) -> Columns {
        let mut columns = Columns { amounts: Vec::with_capacity(4), missing: Vec::new() };
        for (name, amount) in demand.requests.iter().filter(|(name, amount)| *amount > 0 && *name != PODS) {
            match self.find(name) {
                Some(column) => columns.amounts.push((column, amount)),
                None => columns.missing.push(Name::new(name)),
            }
        }
        columns.amounts.push((PODS_COLUMN, 1));
        columns
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|own| own.as_str() == name)
    }

    /// The column of a resource, made when it is new: then every row grows.
    fn column_of(&mut self, name: &str) -> usize {
        if let Some(column) = self.find(name) {
            return column;
        }
        let before = self.stride();
        self.columns.push(Name::new(name));
        for amounts in [&mut self.allocatable, &mut self.used] {
            let widened = amounts.chunks(before).flat_map(|row| row.iter().copied().chain([0])).collect();
            *amounts = widened;
        }
        before
    }
}

/// Refusals of nodes that hold for a demand whatever runs on them. Equal nodes are asked once.
#[derive(Debug, Default)]
pub(crate) struct Statics {
    by_class: HashMap<*const Class, Option<Refusal>>,
    last: Option<(*const Class, Option<Refusal>)>,
}

impl Statics {
    /// Why a node takes no pod of the demand, if it does not.
    pub fn refusal(&mut self, demand: &Demand, row: &Row) -> Option<Refusal> {
        let node = &row.facts;
        let alone = demand.node_name.is_some()
            || demand.affinity.reads_names()
            || node.own_labels.keys().any(|key| demand.affinity.reads_label(key));
        // The rare states are asked for by themselves, so that the class alone decides for all others.
        if alone || !node.takes_pods {
            return plugins::refusal(demand, &row.name, node);
        }
        let class = Arc::as_ptr(&node.class);
        if let Some((last, refusal)) = self.last
            && last == class
        {
            return refusal;
        }
        let refusal = *self.by_class.entry(class).or_insert_with(|| plugins::refusal(demand, &row.name, node));
        self.last = Some((class, refusal));
        refusal
    }
}
