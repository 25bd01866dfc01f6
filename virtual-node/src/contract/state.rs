//! `ClusterState` of what is known: pure.

use jiff::Timestamp;
use tensile_proto::{
    v1::{self, ConditionStatus},
    vocabulary::condition::{LOWER_REACHABLE, RESERVING},
};
use tensile_scheduling::{NodeClass, Resources, Room};

use super::reservations::Opening;
use crate::{context::Settings, node::Reach};

/// The condition that the numbers are true.
const READY: &str = "Ready";

/// Why reservations are not made yet.
pub(super) const NOT_OPEN: &str =
    "this replica leads since a short while and still learns what the one before promised";

/// The state of a cluster whose nodes and pods are listed. Its revision is left out: it belongs to the stream.
pub(super) fn cluster_state(
    settings: &Settings,
    room: &Room,
    classes: &[NodeClass],
    reach: &Reach,
    opening: Opening,
) -> v1::ClusterState {
    v1::ClusterState {
        revision: None,
        virtual_node: settings.node_name.clone(),
        cluster: settings.cluster_name.clone(),
        lower_cluster_uid: settings.lower_cluster_uid.clone(),
        capacity: Some(resources(&room.capacity)),
        allocatable: Some(resources(&room.allocatable)),
        requested: Some(resources(&room.requested)),
        free: Some(resources(&room.free)),
        classes: classes.iter().map(node_class).collect(),
        nodes_ready: room.nodes_ready,
        nodes_total: room.nodes_total,
        conditions: conditions(reach, opening),
    }
}

/// Amounts; what is below zero is none.
fn resources(amounts: &Resources) -> v1::Resources {
    v1::Resources { amounts: amounts.iter().map(|(name, amount)| (name.to_owned(), amount.max(0))).collect() }
}

fn node_class(class: &NodeClass) -> v1::NodeClass {
    v1::NodeClass {
        id: class.id.clone(),
        labels: class.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        taints: class
            .taints
            .iter()
            .map(|taint| v1::Taint { key: taint.key.clone(), value: taint.value.clone(), effect: taint.effect.clone() })
            .collect(),
        declared_features: class.declared_features.clone(),
        count: class.count,
        allocatable: Some(resources(&class.allocatable)),
        requested: Some(resources(&class.requested)),
        free: Some(resources(&class.free)),
        free_largest: Some(resources(&class.free_largest)),
    }
}

fn conditions(reach: &Reach, opening: Opening) -> Vec<v1::Condition> {
    let (reachable, reason, message, since) = match reach {
        Reach::Reachable => (ConditionStatus::True, "ApiServerAnswers", String::new(), None),
        Reach::Unknown => (ConditionStatus::Unknown, "NotProbedYet", String::new(), None),
        Reach::Unreachable { since, reason } => {
            let message =
                format!("the lower API server does not answer, so these numbers are the last known: {reason}");
            (ConditionStatus::False, "ApiServerUnreachable", message, Some(timestamp(*since)))
        }
    };
    // What cannot be seen any more cannot be vouched for.
    let (ready, ready_reason) = match reach {
        Reach::Unreachable { .. } => (ConditionStatus::Unknown, "ApiServerUnreachable"),
        _ => (ConditionStatus::True, "NodesAndPodsListed"),
    };
    let (reserving, reserving_reason, reserving_message) = match (opening, reach) {
        (Opening::Learning(_), _) => (ConditionStatus::False, "NotOpen", NOT_OPEN),
        (Opening::Open, Reach::Unreachable { .. }) => (ConditionStatus::False, "ApiServerUnreachable", ""),
        (Opening::Open, _) => (ConditionStatus::True, "Open", ""),
    };
    vec![
        condition(READY, ready, ready_reason, String::new(), since),
        condition(LOWER_REACHABLE, reachable, reason, message, since),
        condition(RESERVING, reserving, reserving_reason, reserving_message.to_owned(), None),
    ]
}

fn condition(
    type_: &str,
    status: ConditionStatus,
    reason: &str,
    message: String,
    last_transition: Option<prost_types::Timestamp>,
) -> v1::Condition {
    v1::Condition {
        r#type: type_.to_owned(),
        status: status.into(),
        reason: reason.to_owned(),
        message,
        last_transition,
    }
}

/// A point in time, as protobuf writes it.
pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use serde_json::json;
    use tensile_scheduling::{PodFacts, Pool, Snapshot};

    use super::*;
    use crate::contract::testing::{node, settings};

    fn state(reach: &Reach) -> v1::ClusterState {
        let mut snapshot = Snapshot::new();
        snapshot.upsert_node(&node("a", "4")).unwrap();
        snapshot.upsert_node(&node("b", "4")).unwrap();
        let pod = |uid: &str, node: &str, cpu: &str, ours: bool| {
            let pod = json!({
                "metadata": {"uid": uid},
                "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
            });
            PodFacts::of(&serde_json::from_value(pod).unwrap(), ours.then_some(uid))
        };
        snapshot.upsert_pod(pod("1", "a", "1", false));
        snapshot.upsert_pod(pod("2", "b", "500m", true));
        let pool = Pool::all();
        cluster_state(&settings(), &snapshot.room(&pool), &snapshot.node_classes(&pool), reach, Opening::Open)
    }

    fn cpu(amounts: Option<&v1::Resources>) -> i64 {
        amounts.unwrap().amounts["cpu"]
    }

    #[test]
    fn room_and_classes_are_told_in_canonical_units() {
        let state = state(&Reach::Reachable);
        assert_eq!((state.virtual_node.as_str(), state.cluster.as_str()), ("vn", "lower"));
        assert_eq!(cpu(state.capacity.as_ref()), 8_000);
        assert_eq!(cpu(state.allocatable.as_ref()), 7_000);
        assert_eq!(cpu(state.requested.as_ref()), 500);
        assert_eq!(cpu(state.free.as_ref()), 6_500);
        let [class] = state.classes.as_slice() else { panic!("{:?}", state.classes) };
        assert_eq!((class.count, cpu(class.free_largest.as_ref())), (2, 3_500));
        assert_eq!((state.nodes_ready, state.nodes_total), (2, 2));
    }

    #[test]
    fn an_unreachable_cluster_keeps_its_numbers_and_says_that_they_are_old() {
        let since = Timestamp::from_second(1_000).unwrap();
        let state = state(&Reach::Unreachable { since, reason: "connection refused".into() });
        assert_eq!(cpu(state.capacity.as_ref()), 8_000);
        let find = |name: &str| state.conditions.iter().find(|condition| condition.r#type == name).unwrap();
        assert_eq!(find(READY).status(), ConditionStatus::Unknown);
        let reachable = find(LOWER_REACHABLE);
        assert_eq!(reachable.status(), ConditionStatus::False);
        assert!(reachable.message.contains("connection refused"));
        assert_eq!(reachable.last_transition.unwrap().seconds, 1_000);
    }
}
