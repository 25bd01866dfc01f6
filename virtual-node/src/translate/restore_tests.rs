#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::needless_pass_by_value)]

use serde_json::{Value, json};

use super::*;
use crate::translate::{Context, generate::settings, pod_down};

fn below(selector: Value, mut spec: Value) -> Result<Value, Refusal> {
    spec["containers"] = json!([{"name": "web", "ports": [{"containerPort": 80}]}]);
    let upper: Pod = serde_json::from_value(json!({
        "metadata": {"name": "a", "namespace": "team-a", "uid": "u", "labels": {"hash": "1"},
            "annotations": {"tensile.dev/cluster-selector": selector.to_string()}},
        "spec": spec
    }))
    .unwrap();
    let mut settings = settings();
    settings.upper_api_for_pods = None;
    let lower = pod_down(&upper, &Context::new(&settings))?;
    assert!(!lower.metadata.annotations.unwrap().contains_key("tensile.dev/cluster-selector"));
    let mut spec = json!(lower.spec);
    spec.as_object_mut().unwrap().remove("automountServiceAccountToken");
    Ok(spec)
}

fn required(terms: Value) -> Value {
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}})
}

fn has(key: &str, value: &str) -> Value {
    json!({"key": key, "operator": "In", "values": [value]})
}

#[test]
fn everything_moved_is_put_back() {
    let spread = json!({"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}, "matchLabelKeys": ["hash"]});
    let apart = |namespace: &str| {
        json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "kubernetes.io/hostname", "namespaces": [namespace]}]}})
    };
    let selector = json!({
        "nodeSelector": {"disk": "ssd", "type": "virtual-kubelet"}, "affinity": apart("team-a"),
        "tolerations": [{"key": "db", "operator": "Exists"}, {"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
        "topologySpreadConstraints": [spread], "hostNetwork": true,
        "hostPorts": [{"container": "web", "containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.1"}]});
    assert_eq!(
        below(selector, json!({"tolerations": [{"operator": "Exists"}]})).unwrap(),
        json!({
            "containers": [{"name": "web", "ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.1"}]}],
            "nodeSelector": {"disk": "ssd"}, "affinity": apart("team-a-1f0e3dad"),
            "tolerations": [{"operator": "Exists"}, {"key": "db", "operator": "Exists"}],
            "topologySpreadConstraints": [spread], "hostNetwork": true, "enableServiceLinks": false
        })
    );
}

#[test]
fn moved_terms_are_chosen_by_cluster_and_hold_with_those_that_stayed() {
    let moved = required(json!([
        {"matchExpressions": [has("tensile.dev/cluster", "lower-2")]},
        {"matchExpressions": [has("tensile.dev/cluster", "lower-1"), has("gpu", "a100")]},
        {"matchExpressions": [has("gpu", "h100")]}]));
    let stayed = required(json!([{"matchExpressions": [has("tensile.dev/cluster", "lower-1")]},
        {"matchExpressions": [has("zone", "z1")]}]));
    let all = below(json!({ "affinity": moved }), json!({ "affinity": stayed })).unwrap();
    assert_eq!(
        all["affinity"],
        required(json!([{"matchExpressions": [has("gpu", "a100")]}, {"matchExpressions": [has("gpu", "h100")]}]))
    );
    let stayed = required(json!([{"matchExpressions": [has("zone", "z1")]}]));
    let all = below(json!({ "affinity": moved }), json!({ "affinity": stayed })).unwrap();
    assert_eq!(
        all["affinity"],
        required(json!([{"matchExpressions": [has("zone", "z1"), has("gpu", "a100")]},
                        {"matchExpressions": [has("zone", "z1"), has("gpu", "h100")]}]))
    );
}

#[test]
fn a_bad_annotation_is_refused_with_the_path() {
    let refusal = below(json!({"tolerations": [{"key": 7}]}), json!({})).unwrap_err();
    assert_eq!(refusal.reason, "InvalidClusterSelector");
    assert!(refusal.message.contains("tolerations[0].key"), "{refusal}");
    let ports = json!({"hostPorts": [{"container": "web", "containerPort": 81, "hostPort": 8080}]});
    assert!(below(ports, json!({})).unwrap_err().message.contains("hostPorts[0]"));
}

#[test]
fn joining_is_bounded() {
    let terms: Vec<_> = (0..20).map(|at| json!({"matchExpressions": [has("x", &at.to_string())]})).collect();
    let selector = json!({"affinity": required(json!(terms))});
    let refusal = below(selector, json!({"affinity": required(json!(terms))})).unwrap_err();
    assert!(refusal.message.contains("affinity.nodeAffinity"), "{refusal}");
}
