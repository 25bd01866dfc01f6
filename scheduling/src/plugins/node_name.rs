//! NodeName: `spec.nodeName`.

use crate::demand::Demand;

pub(crate) const NAME: &str = "NodeName";
pub(crate) const REASON: &str = "node(s) didn't match the requested node name";

pub(crate) fn passes(demand: &Demand, node: &str) -> bool {
    demand.node_name.as_deref().is_none_or(|name| name == node)
}
