#![allow(clippy::unwrap_used)]
use serde_json::json;

use super::*;

fn pod(terms: &serde_json::Value, reason: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"uid": "l"},
        "spec": {"containers": [], "affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}},
        "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": reason}]},
    }))
    .unwrap()
}

fn mark() -> OwnerMark {
    OwnerMark { cluster: "c".into(), uid: "u".into(), virtual_node: "vn".into(), key: Key::new("team", "p") }
}

#[test]
fn a_pod_is_a_stray_while_its_reserved_node_refuses_it() {
    let strays = Strays::default();
    let name = |name: &str| json!({"key": "metadata.name", "operator": "In", "values": [name]});
    let zone = json!({"key": "zone", "operator": "Exists"});
    let pinned = json!([{"matchFields": [name("n1")]}, {"matchExpressions": [zone], "matchFields": [name("n1")]}]);
    strays.note(&pod(&pinned, "Unschedulable"), &mark());
    let all = strays.all();
    assert_eq!((all.len(), all[0].1.node.as_str(), all[0].1.upper_uid.as_str()), (1, "n1", "u"));
    // It got its node after all.
    let mut bound = pod(&pinned, "Unschedulable");
    bound.spec.as_mut().unwrap().node_name = Some("n1".into());
    strays.note(&bound, &mark());
    assert!(strays.all().is_empty());
    // Not refused, or not pinned by us: terms of the user's own that name several nodes.
    strays.note(&pod(&pinned, "SchedulingGated"), &mark());
    for terms in
        [json!([{"matchFields": [name("n1")]}, {"matchFields": [name("n2")]}]), json!([{"matchExpressions": [zone]}])]
    {
        strays.note(&pod(&terms, "Unschedulable"), &mark());
    }
    assert!(strays.all().is_empty());
}
