#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::*;
use crate::{FitEngine, PodFacts, Pool};

fn node(name: &str, more: &Value) -> Node {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    merge(&mut node, more);
    serde_json::from_value(node).unwrap()
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, more) => *into = more.clone(),
    }
}

fn pod(spec: &Value) -> Pod {
    let mut pod = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
    merge(&mut pod["spec"], spec);
    serde_json::from_value(pod).unwrap()
}

fn demand(spec: &Value) -> Demand {
    Demand::of(&pod(spec)).unwrap()
}

fn view(nodes: &[Node], pods: &[Pod]) -> FitView {
    let mut engine = FitEngine::new(Pool::all());
    for node in nodes {
        engine.snapshot_mut().upsert_node(node).unwrap();
    }
    for (uid, pod) in pods.iter().enumerate() {
        let mut facts = PodFacts::of(pod, None);
        facts.uid = uid.to_string();
        engine.snapshot_mut().upsert_pod(facts);
    }
    engine.view::<String>(&[])
}

fn taints(effect: &str) -> Value {
    json!({"spec": {"taints": [{"key": "gpu", "value": "a", "effect": effect}]}})
}

#[test]
fn the_number_is_what_single_nodes_hold_and_not_the_sum() {
    let nodes = [node("a", &json!({})), node("b", &json!({}))];
    let view = view(&nodes, &[]);
    let three = demand(&json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]}));
    let fit = view.alone(&three, 5);
    assert_eq!(fit.fits, 2);
    assert_eq!(fit.classes.values().sum::<u32>(), 2);
    assert_eq!(fit.message, "0/2 nodes are available: 2 Insufficient cpu.");
    assert_eq!(
        view.alone(&demand(&json!({})), 5),
        Fit { fits: 5, classes: fit.classes.keys().map(|id| (id.clone(), 5)).collect(), ..Fit::default() }
    );
}

#[test]
fn each_filter_says_why_in_kube_schedulers_words() {
    let nodes = [
        node("cordoned", &json!({"spec": {"unschedulable": true}})),
        node("tainted", &taints("NoExecute")),
        node("arm", &json!({"metadata": {"labels": {"arch": "arm64"}}})),
        node("full", &json!({"metadata": {"labels": {"arch": "amd64"}}, "status": {"allocatable": {"pods": "0"}}})),
        node(
            "small",
            &json!({"metadata": {"labels": {"arch": "amd64"}}, "status": {"allocatable": {"cpu": "500m", "memory": "1"}}}),
        ),
        node("silent", &json!({"metadata": {"labels": {"arch": "amd64"}}, "status": {"conditions": []}})),
    ];
    let asked = json!({
        "nodeSelector": {"arch": "amd64"},
        "containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Ki", "x.test/gpu": "1"}}}],
    });
    let fit = view(&nodes, &[]).alone(&demand(&asked), 1);
    assert_eq!(fit.fits, 0);
    assert_eq!(
        fit.message,
        "0/6 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 Too many pods, 1 node(s) didn't match Pod's node \
         affinity/selector, 1 node(s) had untolerated taint(s), 1 node(s) were not Ready, 1 node(s) were unschedulable, \
         2 Insufficient x.test/gpu."
    );
    assert_eq!(fit.reasons[0].reason.message, "Insufficient x.test/gpu");
    assert_eq!((fit.reasons[0].nodes, fit.reasons[0].resolvable), (2, false));
    let plugins: BTreeMap<_, _> = fit.reasons.iter().map(|each| (each.reason.plugin, each.nodes)).collect();
    assert_eq!(plugins.get("TaintToleration"), Some(&1));
    assert_eq!(plugins.get(""), Some(&1));
}

#[test]
fn a_pod_that_tolerates_everything_goes_where_kube_scheduler_would_put_it() {
    let nodes = [node("a", &json!({"spec": {"unschedulable": true}})), node("b", &taints("NoSchedule"))];
    let tolerant = demand(&json!({"tolerations": [{"operator": "Exists"}]}));
    assert_eq!(view(&nodes, &[]).alone(&tolerant, 100).fits, 8);
}

#[test]
fn what_removing_pods_could_cure_is_told_apart() {
    let running = pod(&json!({"nodeName": "a"}));
    let four = demand(&json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "4"}}}]}));
    let five = demand(&json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "5"}}}]}));
    let view = view(&[node("a", &json!({}))], &[running]);
    assert!(view.alone(&four, 1).reasons[0].resolvable);
    assert!(!view.alone(&five, 1).reasons[0].resolvable);
}

#[test]
fn a_host_port_is_one_for_each_node() {
    let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    let mut on_a = pod(&port);
    on_a.spec.as_mut().unwrap().node_name = Some("a".into());
    let nodes = [node("a", &json!({})), node("b", &json!({})), node("c", &json!({}))];
    let mut view = view(&nodes, &[on_a]);
    let fit = view.jointly(&demand(&port), 9);
    assert_eq!(fit.fits, 2);
    assert_eq!(fit.message, "0/3 nodes are available: 3 node(s) didn't have free ports for the requested pod ports.");
    assert_eq!(view.jointly(&demand(&port), 1).fits, 0);
}

#[test]
fn joint_templates_take_from_each_other_and_lone_ones_do_not() {
    let mut view = view(&[node("a", &json!({}))], &[]);
    let one = demand(&json!({}));
    assert_eq!((view.alone(&one, 3).fits, view.alone(&one, 3).fits), (3, 3));
    assert_eq!((view.jointly(&one, 3).fits, view.jointly(&one, 3).fits), (3, 1));
}

#[test]
fn names_that_are_asked_for_narrow_the_search_and_a_contradiction_ends_it() {
    let field = |name: &str| json!({"key": "metadata.name", "operator": "In", "values": [name]});
    let on = |fields: Value| {
        let terms = json!([{"matchFields": fields}]);
        demand(&json!({"affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}))
    };
    let view = view(&[node("a", &json!({})), node("b", &json!({}))], &[]);
    let fit = view.alone(&on(json!([field("a")])), 9);
    assert_eq!(fit.fits, 4);
    let expected = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't satisfy plugin(s) [NodeAffinity].";
    assert_eq!(fit.message, expected);
    let fit = view.alone(&on(json!([field("a"), field("b")])), 9);
    assert_eq!(fit.message, "0/2 nodes are available: pod affinity terms conflict.");
}

#[test]
fn constraints_that_are_not_judged_promise_nothing() {
    let view = view(&[node("a", &json!({}))], &[]);
    let term = json!([{"topologyKey": "zone"}]);
    let claim = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]});
    let repel = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    for (spec, plugin) in [(claim, "VolumeBinding"), (repel, "InterPodAffinity")] {
        let fit = view.alone(&demand(&spec), 1);
        assert_eq!((fit.fits, fit.reasons[0].reason.plugin, fit.reasons[0].nodes), (0, plugin, 0), "{spec}");
    }
    let fit = self::view(&[], &[]).alone(&demand(&json!({})), 1);
    assert_eq!(fit.message, "no nodes available to schedule pods");
}

#[test]
fn preferences_decide_before_free_room_does() {
    let mut engine = FitEngine::new(Pool::all());
    engine.snapshot_mut().upsert_node(&node("avoided", &taints("PreferNoSchedule"))).unwrap();
    engine.snapshot_mut().upsert_node(&node("plain", &json!({"status": {"allocatable": {"cpu": "2"}}}))).unwrap();
    let liked = json!({"metadata": {"labels": {"disk": "ssd"}}, "status": {"allocatable": {"cpu": "1"}}});
    engine.snapshot_mut().upsert_node(&node("liked", &liked)).unwrap();
    let preferred = json!([{"weight": 5, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}]);
    let spec = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}});
    let demand = Arc::new(demand(&spec));
    let order: Vec<_> =
        (0..4).map(|uid| engine.reserve(&uid.to_string(), &demand, crate::Wish::default()).unwrap().node).collect();
    assert_eq!(order, ["liked", "plain", "plain", "avoided"]);
}
