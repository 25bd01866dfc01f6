#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::needless_pass_by_value)]

use super::*;
use crate::translate::generate::settings;

/// The patch, for a lower pod whose generation 2 or later contains upper generation 7.
fn up(upper: Value, lower: Value) -> Option<Value> {
    let upper: PodStatus = serde_json::from_value(upper).unwrap();
    let lower: Pod = serde_json::from_value(json!({
        "metadata": {"annotations": {"tensile.dev/generation": "7/2"}}, "status": lower
    }))
    .unwrap();
    status_up(Some(&upper), &lower, &Context::new(&settings()))
}

fn conditions(list: Value) -> Value {
    json!({ "conditions": list })
}

#[test]
fn a_pod_just_created_below_changes_nothing() {
    let scheduled = json!({"phase": "Pending", "qosClass": "Burstable", "conditions": [{"type": "PodScheduled", "status": "True"}]});
    let below = json!({"phase": "Pending", "qosClass": "BestEffort", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]});
    assert_eq!(up(scheduled, below), None);
}

#[test]
fn a_started_pod_is_shown_with_our_host_address() {
    let running = json!([{"name": "main", "image": "i", "imageID": "x", "ready": true, "restartCount": 0,
        "state": {"running": {"startedAt": "2026-01-01T00:00:03Z"}}}]);
    assert_eq!(
        up(
            json!({"phase": "Pending"}),
            json!({"phase": "Running", "startTime": "2026-01-01T00:00:01Z", "containerStatuses": running,
                "hostIP": "198.51.100.4", "hostIPs": [{"ip": "198.51.100.4"}], "podIP": "10.1.0.3",
                "podIPs": [{"ip": "10.1.0.3"}], "qosClass": "BestEffort", "observedGeneration": 2,
                "conditions": [{"type": "Ready", "status": "True", "observedGeneration": 2}]})
        ),
        Some(json!({"phase": "Running", "startTime": "2026-01-01T00:00:01Z", "containerStatuses": running,
            "hostIP": "192.0.2.10", "hostIPs": [{"ip": "192.0.2.10"}], "podIP": "10.1.0.3",
            "podIPs": [{"ip": "10.1.0.3"}], "observedGeneration": 7,
            "conditions": [{"type": "Ready", "status": "True", "observedGeneration": 7}]}))
    );
}

#[test]
fn the_host_address_stays_when_another_replica_comes_to_lead() {
    let address = |ip: &str| json!({"phase": "Running", "hostIP": ip, "hostIPs": [{"ip": ip}]});
    // The lower node's, and that of the leader before us.
    assert_eq!(up(address("192.0.2.99"), address("198.51.100.4")), None);
}

#[test]
fn only_what_differs_is_written() {
    let status = |reason: &str| {
        json!({"phase": "Running", "podIP": "10.1.0.3", "podIPs": [{"ip": "10.1.0.3"}], "conditions": [
            {"type": "Ready", "status": "False", "reason": reason, "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Initialized", "status": "True"}]})
    };
    assert_eq!(
        up(status("ContainersNotReady"), status("ReadinessGatesNotReady")),
        Some(conditions(json!([{"type": "Ready", "reason": "ReadinessGatesNotReady"}])))
    );
}

#[test]
fn what_is_gone_below_is_removed_above() {
    assert_eq!(
        up(
            json!({"phase": "Pending", "reason": "X", "message": "m", "podIP": "10.1.0.3", "podIPs": [{"ip": "10.1.0.3"}],
                "conditions": [{"type": "PodResizePending", "status": "True"}, {"type": "example.com/gate", "status": "True"},
                    {"type": "Ready", "status": "False", "message": "m"}]}),
            json!({"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}]})
        ),
        Some(json!({"reason": null, "message": null, "podIP": null, "podIPs": null, "conditions": [
            {"type": "Ready", "message": null}, {"$patch": "delete", "type": "PodResizePending"}]}))
    );
}

#[test]
fn changed_addresses_replace_the_list() {
    assert_eq!(
        up(
            json!({"podIP": "10.1.0.3", "podIPs": [{"ip": "10.1.0.3"}]}),
            json!({"podIP": "10.1.0.4", "podIPs": [{"ip": "10.1.0.4"}, {"ip": "fd00::4"}]})
        ),
        Some(json!({"podIP": "10.1.0.4", "podIPs": [{"$patch": "replace"}, {"ip": "10.1.0.4"}, {"ip": "fd00::4"}]}))
    );
}

#[test]
fn a_disruption_below_is_added_and_one_above_kept() {
    let below = conditions(json!([{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]));
    assert_eq!(up(json!({}), below.clone()), Some(below.clone()));
    let above = conditions(json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]));
    assert_eq!(up(above, below), None);
}

#[test]
fn a_generation_not_yet_observed_below_is_not_claimed() {
    let observed = |generation: i64| json!({"observedGeneration": generation});
    assert_eq!(up(observed(6), observed(1)), None);
    assert_eq!(up(observed(6), observed(2)), Some(observed(7)));
    assert_eq!(up(observed(7), observed(3)), None);
}

#[test]
fn a_terminal_phase_is_final() {
    assert_eq!(up(json!({"phase": "Failed"}), json!({"phase": "Running"})), None);
    assert_eq!(up(json!({"phase": "Failed"}), json!({"phase": "Succeeded"})), None);
    let last = json!({"phase": "Failed", "reason": "Evicted"});
    assert_eq!(up(json!({"phase": "Failed"}), last), Some(json!({"reason": "Evicted"})));
}

#[test]
fn statuses_that_the_scheduler_owns_are_never_written() {
    assert_eq!(
        up(
            json!({}),
            json!({"qosClass": "Guaranteed", "nominatedNodeName": "worker",
                "resourceClaimStatuses": [{"name": "c", "resourceClaimName": "x"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "x", "requestMappings": []}})
        ),
        None
    );
}
