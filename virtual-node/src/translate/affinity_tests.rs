#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::needless_pass_by_value)]

use serde_json::{Value, json};

use super::*;
use crate::translate::generate::settings;

/// The spec below, for a pod without labels behind virtual node `vn-1` of cluster `lower-1`.
fn below(spec: Value) -> Value {
    let mut spec: PodSpec = serde_json::from_value(with_containers(spec)).unwrap();
    map_constraints(&mut spec, Some(&Labels::new()), &settings());
    without_containers(spec)
}

fn pinned(spec: Value) -> Value {
    let mut spec: PodSpec = serde_json::from_value(with_containers(spec)).unwrap();
    pin(&mut spec, "worker-7");
    without_containers(spec)
}

fn with_containers(mut spec: Value) -> Value {
    spec["containers"] = json!([]);
    spec
}

fn without_containers(spec: PodSpec) -> Value {
    let mut spec = json!(spec);
    spec.as_object_mut().unwrap().remove("containers");
    spec
}

fn required(terms: Value) -> Value {
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
}

fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({"key": key, "operator": operator, "values": values})
}

fn term(expressions: &[Value]) -> Value {
    json!({ "matchExpressions": expressions })
}

#[test]
fn selectors_of_the_virtual_node_are_removed_and_others_kept() {
    assert_eq!(
        below(json!({"nodeSelector": {"type": "virtual-kubelet", "tensile.dev/cluster": "lower-1",
            "kubernetes.io/hostname": "vn-1", "disk": "ssd"}})),
        json!({"nodeSelector": {"disk": "ssd"}})
    );
    assert_eq!(below(json!({"nodeSelector": {"type": "virtual-kubelet"}})), json!({}));
    // A label `type` of the lower nodes' own is the user's business.
    let own = json!({"nodeSelector": {"type": "gpu"}});
    assert_eq!(below(own.clone()), own);
}

#[test]
fn tolerations_of_our_taints_are_removed() {
    assert_eq!(
        below(json!({"tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"},
            {"key": "tensile.dev/unreachable", "operator": "Exists"}, {"operator": "Exists"}]})),
        json!({"tolerations": [{"operator": "Exists"}]})
    );
}

#[test]
fn requirements_on_the_virtual_node_are_removed() {
    let ours = expression("type", "In", &["virtual-kubelet"]);
    let arch = expression("kubernetes.io/arch", "In", &["arm64"]);
    assert_eq!(below(required(json!([term(&[ours.clone(), arch.clone()])]))), required(json!([term(&[arch])])));
    assert_eq!(below(required(json!([term(&[ours])]))), json!({}));
}

#[test]
fn terms_about_other_clusters_do_not_count() {
    let arch = expression("kubernetes.io/arch", "In", &["arm64"]);
    let here = expression("tensile.dev/cluster", "In", &["lower-1"]);
    let there = expression("tensile.dev/cluster", "In", &["lower-2"]);
    assert_eq!(below(required(json!([term(&[there]), term(&[here, arch.clone()])]))), required(json!([term(&[arch])])));
}

#[test]
fn a_term_that_asks_for_the_virtual_node_alone_requires_nothing_below() {
    let here = expression("tensile.dev/cluster", "In", &["lower-1"]);
    let arch = expression("kubernetes.io/arch", "In", &["arm64"]);
    assert_eq!(below(required(json!([term(&[here]), term(&[arch])]))), json!({}));
    let name = json!({"matchFields": [expression("metadata.name", "In", &["vn-1"])]});
    assert_eq!(below(required(json!([name]))), json!({}));
}

#[test]
fn when_no_term_is_met_what_lower_nodes_can_judge_goes_down() {
    let there = expression("tensile.dev/cluster", "In", &["lower-2"]);
    let host = expression("kubernetes.io/hostname", "In", &["worker-7"]);
    assert_eq!(below(required(json!([term(&[there, host.clone()])]))), required(json!([term(&[host])])));
}

#[test]
fn exclusions_of_other_nodes_go_down() {
    let kept = required(json!([term(&[
        expression("kubernetes.io/hostname", "NotIn", &["vn-2"]),
        expression("type", "NotIn", &["spot"]),
    ])]));
    assert_eq!(below(kept.clone()), kept);
}

#[test]
fn preferences_for_the_virtual_node_are_removed() {
    let preferred = |terms: Value| json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}});
    let ours = json!({"weight": 1, "preference": term(&[expression("tensile.dev/cluster", "In", &["lower-1"])])});
    let other = json!({"weight": 2, "preference": term(&[expression("tensile.dev/cluster", "In", &["lower-2"])])});
    let disk = json!({"weight": 3, "preference": term(&[expression("disk", "In", &["ssd"])])});
    assert_eq!(below(preferred(json!([ours, other, disk.clone()]))), preferred(json!([disk])));
    assert_eq!(below(preferred(json!([ours]))), json!({}));
}

#[test]
fn virtual_topologies_are_decided_above() {
    let spread = |key: &str| json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule"});
    assert_eq!(
        below(json!({"topologySpreadConstraints": [spread("tensile.dev/cluster"), spread("kubernetes.io/hostname")]})),
        json!({"topologySpreadConstraints": [spread("kubernetes.io/hostname")]})
    );
    let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "tensile.dev/cluster", "labelSelector": {}}]}}});
    assert_eq!(below(apart), json!({}));
}

#[test]
fn namespaces_of_pod_affinity_are_mapped() {
    let rules = |namespace: &str| {
        json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1,
            "podAffinityTerm": {"topologyKey": "zone", "namespaces": [namespace], "namespaceSelector": {}}}]}}})
    };
    assert_eq!(below(rules("team-a")), rules("team-a-1f0e3dad"));
}

#[test]
fn a_pin_is_added_to_every_term() {
    let name = expression("metadata.name", "In", &["worker-7"]);
    let disk = expression("disk", "In", &["ssd"]);
    let arch = expression("arch", "In", &["arm64"]);
    assert_eq!(pinned(json!({})), required(json!([{ "matchFields": [name] }])));
    assert_eq!(
        pinned(required(json!([{"matchExpressions": [disk]}, {"matchExpressions": [arch]}, {}]))),
        required(json!([{"matchExpressions": [disk], "matchFields": [name]},
                        {"matchExpressions": [arch], "matchFields": [name]}]))
    );
}
