//! TaintToleration: every `NoSchedule` and `NoExecute` taint of a node must be tolerated.

use k8s_openapi::api::core::v1;

use crate::{demand::Demand, node_facts::NodeFacts};

pub(crate) const NAME: &str = "TaintToleration";
pub(crate) const REASON: &str = "node(s) had untolerated taint(s)";
pub(crate) const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";
const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";

/// A toleration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Toleration {
    key: String,
    operator: Operator,
    value: String,
    effect: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Operator {
    Equal,
    Exists,
    /// `Lt` and `Gt` (KEP-5471) are alpha and off in 1.36: they tolerate nothing. So does what comes later.
    Unknown,
}

impl Toleration {
    pub fn of(toleration: &v1::Toleration) -> Self {
        Self {
            key: toleration.key.clone().unwrap_or_default(),
            operator: match toleration.operator.as_deref().unwrap_or_default() {
                "" | "Equal" => Operator::Equal,
                "Exists" => Operator::Exists,
                _ => Operator::Unknown,
            },
            value: toleration.value.clone().unwrap_or_default(),
            effect: toleration.effect.clone().unwrap_or_default(),
        }
    }

    pub fn tolerates(&self, key: &str, value: &str, effect: &str) -> bool {
        (self.effect.is_empty() || self.effect == effect)
            && (self.key.is_empty() || self.key == key)
            && match self.operator {
                Operator::Equal => self.value == value,
                Operator::Exists => true,
                Operator::Unknown => false,
            }
    }
}

pub(crate) fn passes(demand: &Demand, node: &NodeFacts) -> bool {
    node.class.taints.iter().filter(|taint| matches!(taint.effect.as_str(), NO_SCHEDULE | NO_EXECUTE)).all(|taint| {
        demand.tolerations.iter().any(|toleration| toleration.tolerates(&taint.key, &taint.value, &taint.effect))
    })
}

/// How many `PreferNoSchedule` taints of the node are not tolerated.
pub(crate) fn avoided(demand: &Demand, node: &NodeFacts) -> u32 {
    let soft = node.class.taints.iter().filter(|taint| taint.effect == PREFER_NO_SCHEDULE);
    let avoided = soft.filter(|taint| {
        !demand.tolerations.iter().any(|toleration| toleration.tolerates(&taint.key, &taint.value, &taint.effect))
    });
    u32::try_from(avoided.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn tolerates(toleration: serde_json::Value, taint: (&str, &str, &str)) -> bool {
        Toleration::of(&serde_json::from_value(toleration).unwrap()).tolerates(taint.0, taint.1, taint.2)
    }

    #[test]
    fn tolerations_are_read_as_kube_scheduler_reads_them() {
        let taint = ("gpu", "a", "NoSchedule");
        assert!(tolerates(json!({"key": "gpu", "value": "a"}), taint));
        assert!(tolerates(json!({"key": "gpu", "operator": "Equal", "value": "a", "effect": "NoSchedule"}), taint));
        assert!(tolerates(json!({"key": "gpu", "operator": "Exists"}), taint));
        assert!(tolerates(json!({"operator": "Exists"}), taint));
        assert!(!tolerates(json!({"key": "gpu", "value": "b"}), taint));
        assert!(!tolerates(json!({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}), taint));
        assert!(!tolerates(json!({"key": "other", "operator": "Exists"}), taint));
        assert!(!tolerates(json!({"key": "gpu", "operator": "Gt", "value": "0"}), ("gpu", "5", "NoSchedule")));
    }
}
