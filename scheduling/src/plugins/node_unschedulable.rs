//! NodeUnschedulable: cordoned nodes take only pods that tolerate it.

use super::taint_toleration;
use crate::{demand::Demand, node_facts::NodeFacts};

pub(crate) const NAME: &str = "NodeUnschedulable";
pub(crate) const REASON: &str = "node(s) were unschedulable";
/// The taint that stands for `spec.unschedulable`.
const TAINT_KEY: &str = "node.kubernetes.io/unschedulable";

pub(crate) fn passes(demand: &Demand, node: &NodeFacts) -> bool {
    !node.unschedulable
        || demand
            .tolerations
            .iter()
            .any(|toleration| toleration.tolerates(TAINT_KEY, "", taint_toleration::NO_SCHEDULE))
}
