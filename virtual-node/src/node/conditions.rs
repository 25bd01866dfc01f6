//! The Node's conditions, and when they change by time alone. Pure.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use tensile_proto::vocabulary::condition;

use super::{desired::Facts, reach::Reach};

const READY: &str = "Ready";

/// All conditions that we own, in the order in which a kubelet lists its own (Ready last).
///
/// `lastTransitionTime` is kept from the observed Node where the status did not change; `lastHeartbeatTime` is `now`.
pub(super) fn conditions(facts: &Facts<'_>, observed: Option<&Node>, now: Timestamp) -> Vec<NodeCondition> {
    let calm = |kind, reason, message: &str| Wanted::new(kind, "False", reason, message.to_owned());
    let mut wanted = vec![
        // A virtual node has no memory, disk or process table of its own; pressure below is the lower cluster's to handle.
        calm("MemoryPressure", "ClusterHasSufficientMemory", "lower nodes handle memory pressure themselves"),
        calm("DiskPressure", "ClusterHasNoDiskPressure", "lower nodes handle disk pressure themselves"),
        calm("PIDPressure", "ClusterHasSufficientPID", "lower nodes handle PID pressure themselves"),
        calm("NetworkUnavailable", "ClusterNetwork", "pods use the lower cluster's network"),
    ];
    wanted.extend(reachable(facts.reach));
    wanted.push(ready(facts, observed, now));
    wanted.into_iter().map(|w| w.stamped(observed, now)).collect()
}

/// When the Node turns NotReady by policy `evict`, if nothing else happens before.
pub(super) fn eviction_due(facts: &Facts<'_>, observed: Option<&Node>, now: Timestamp) -> Option<Timestamp> {
    let after = facts.profile.evict_after?;
    matches!(facts.reach, Reach::Unreachable { .. }).then_some(())?;
    unreachable_since(observed).unwrap_or(now).checked_add(after).ok()
}

/// Since when the lower API server has been away. Read from the Node, so that a restart does not start the clock anew.
fn unreachable_since(observed: Option<&Node>) -> Option<Timestamp> {
    let condition = find(observed?, condition::LOWER_REACHABLE)?;
    (condition.status == "False").then(|| condition.last_transition_time.as_ref().map(|t| t.0)).flatten()
}

fn reachable(reach: &Reach) -> Option<Wanted> {
    match reach {
        // Nothing is known yet after a start: what the Node says from before stands.
        Reach::Unknown => None,
        Reach::Reachable => Some(Wanted::new(
            condition::LOWER_REACHABLE,
            "True",
            "LowerReachable",
            "the lower API server answers".to_owned(),
        )),
        Reach::Unreachable { reason, .. } => Some(Wanted::new(
            condition::LOWER_REACHABLE,
            "False",
            "LowerUnreachable",
            format!("the lower API server does not answer: {reason}. Pods there keep their last known status"),
        )),
    }
}

fn ready(facts: &Facts<'_>, observed: Option<&Node>, now: Timestamp) -> Wanted {
    let overdue = eviction_due(facts, observed, now).is_some_and(|due| due <= now);
    if overdue {
        let after_s = facts.profile.evict_after.unwrap_or_default().as_secs();
        let message = format!(
            "the lower API server has not answered for {after_s} s; policy evict: Kubernetes evicts the pods of a \
             NotReady node when their tolerations run out"
        );
        return Wanted::new(READY, "False", "LowerUnreachable", message);
    }
    // Neither a restart nor an outage in its first seconds may turn a NotReady node Ready: only an answer does.
    let was_evicting =
        observed.and_then(|n| find(n, READY)).filter(|c| c.reason.as_deref() == Some("LowerUnreachable"));
    if let (Reach::Unknown, Some(before)) = (facts.reach, was_evicting) {
        return Wanted::new(READY, "False", "LowerUnreachable", before.message.clone().unwrap_or_default());
    }
    let message = match facts.shape {
        Some(shape) => format!("{} of {} lower nodes take pods", shape.nodes_ready, shape.nodes_total),
        None => "virtual-node is running; lower nodes are not listed yet".to_owned(),
    };
    Wanted::new(READY, "True", "ClusterReady", message)
}

/// A condition of the Node by its type.
pub(super) fn find<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

struct Wanted {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Wanted {
    fn new(kind: &'static str, status: &'static str, reason: &'static str, message: String) -> Self {
        Self { kind, status, reason, message }
    }

    fn stamped(self, observed: Option<&Node>, now: Timestamp) -> NodeCondition {
        let before = observed.and_then(|n| find(n, self.kind)).filter(|c| c.status == self.status);
        let since = before.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(now));
        NodeCondition {
            type_: self.kind.to_owned(),
            status: self.status.to_owned(),
            reason: Some(self.reason.to_owned()),
            message: Some(self.message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(since),
        }
    }
}
