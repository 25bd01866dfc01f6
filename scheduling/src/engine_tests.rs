#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::PodFacts;

fn node(name: &str, cpu: u32) -> Node {
    shaped(name, cpu, 10, &json!({}), &json!([]))
}

fn shaped(name: &str, cpu: u32, pods: u32, labels: &Value, taints: &Value) -> Node {
    let mut all = json!({"kubernetes.io/hostname": name});
    all.as_object_mut().unwrap().extend(labels.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": all},
        "spec": {"taints": taints},
        "status": {
            "allocatable": {"cpu": cpu.to_string(), "memory": "8Gi", "pods": pods.to_string()},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }))
    .unwrap()
}

fn pod(uid: &str, node: Option<&str>, cpu: u32) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"uid": uid},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu.to_string()}}}],
        },
    }))
    .unwrap()
}

fn cpus(cpu: u32) -> Arc<Demand> {
    Arc::new(Demand::of(&pod("", None, cpu)).unwrap())
}

fn engine(nodes: &[Node]) -> FitEngine {
    let mut engine = FitEngine::new(Pool::all());
    for node in nodes {
        engine.snapshot_mut().upsert_node(node).unwrap();
    }
    engine
}

fn fits(engine: &mut FitEngine, cpu: u32) -> u32 {
    engine.view::<String>(&[]).alone(&cpus(cpu), 1_000).fits
}

#[test]
fn what_is_reserved_is_not_offered_again_until_it_is_released() {
    let mut engine = engine(&[node("a", 4), node("b", 4)]);
    assert_eq!(fits(&mut engine, 1), 8);
    let place = engine.reserve("u", &cpus(3), Wish::default()).unwrap();
    assert_eq!(engine.place_of("u"), Some(place));
    assert_eq!(fits(&mut engine, 1), 5);
    let room = engine.snapshot().room(&Pool::all());
    assert_eq!(
        (room.requested.cpu_millis(), room.free.cpu_millis(), room.allocatable.cpu_millis()),
        (3_000, 5_000, 8_000)
    );
    assert_eq!(engine.view(&["u"]).alone(&cpus(1), 1_000).fits, 8);
    assert!(engine.release("u") && !engine.release("u"));
    assert_eq!(fits(&mut engine, 1), 8);
}

#[test]
fn a_lower_pod_takes_the_place_of_its_hold_and_gives_it_back() {
    let mut engine = engine(&[node("a", 4)]);
    engine.reserve("u", &cpus(3), Wish::default()).unwrap();
    for node in [None, Some("a")] {
        engine.snapshot_mut().upsert_pod(PodFacts::of(&pod("l", node, 3), Some("u")));
        assert_eq!(fits(&mut engine, 1), 1, "{node:?}");
        assert!(engine.has_lower_pod("u"));
        // Held again, it still is one pod.
        engine.hold("u", cpus(3), Some("a"));
        assert_eq!(fits(&mut engine, 1), 1, "{node:?}");
    }
    assert_eq!(engine.snapshot().room(&Pool::all()).requested.cpu_millis(), 3_000);
    engine.snapshot_mut().remove_pod("l");
    assert_eq!(fits(&mut engine, 1), 1);
    engine.release("u");
    assert_eq!(fits(&mut engine, 1), 4);
}

#[test]
fn pods_that_wait_for_their_scheduler_take_the_room_that_they_will_get() {
    let mut engine = engine(&[node("a", 4), node("b", 2)]);
    engine.snapshot_mut().upsert_pod(PodFacts::of(&pod("big", None, 4), None));
    assert_eq!(fits(&mut engine, 1), 2);
    // One that fits nowhere takes nothing, until a node is big enough.
    engine.snapshot_mut().upsert_pod(PodFacts::of(&pod("huge", None, 8), None));
    assert_eq!(fits(&mut engine, 1), 2);
    engine.snapshot_mut().upsert_node(&node("c", 9)).unwrap();
    assert_eq!(fits(&mut engine, 1), 3);
    // The scheduler chose otherwise.
    engine.snapshot_mut().upsert_pod(PodFacts::of(&pod("big", Some("c"), 4), None));
    assert_eq!(fits(&mut engine, 1), 4 + 2 + 5);
    engine.snapshot_mut().remove_pod("huge");
    engine.snapshot_mut().remove_pod("big");
    assert_eq!(fits(&mut engine, 1), 15);
}

#[test]
fn a_bound_pod_on_its_way_down_takes_room_though_nobody_knows_where() {
    let mut engine = engine(&[node("a", 4), node("b", 4)]);
    engine.hold("u", cpus(4), None);
    assert_eq!(fits(&mut engine, 1), 4);
    assert_eq!(engine.view(&["u"]).alone(&cpus(1), 1_000).fits, 8);
    assert!(engine.place_of("u").is_some());
    assert_eq!(engine.snapshot().room(&Pool::all()).free.cpu_millis(), 4_000);
    engine.snapshot_mut().upsert_pod(PodFacts::of(&pod("l", Some("b"), 4), Some("u")));
    assert_eq!(engine.place_of("u").unwrap().node, "b");
    assert_eq!(fits(&mut engine, 1), 4);
}

#[test]
fn a_place_that_a_foreign_pod_takes_no_longer_holds() {
    let mut engine = engine(&[node("a", 4)]);
    engine.reserve("u", &cpus(3), Wish::default()).unwrap();
    assert!(engine.still_holds("u"));
    engine.snapshot_mut().upsert_pod(PodFacts::of(&pod("f", Some("a"), 2), None));
    assert!(!engine.still_holds("u"));
    engine.snapshot_mut().remove_pod("f");
    assert!(engine.still_holds("u"));
    engine.snapshot_mut().remove_node("a");
    assert!(!engine.still_holds("u"));
}

#[test]
fn wishes_are_kept_and_a_refusal_says_that_they_were_the_reason() {
    let big = shaped("a", 8, 10, &json!({"size": "big"}), &json!([]));
    let mut engine = engine(&[big, node("b", 4)]);
    let class = engine.reserve("u1", &cpus(1), Wish::default()).unwrap();
    assert_eq!(class.node, "a");
    let excluded = ["a".to_owned()];
    let other = engine.reserve("u2", &cpus(1), Wish { excluded_nodes: &excluded, ..Wish::default() }).unwrap();
    assert_eq!(other.node, "b");
    let wish = Wish { class_id: &other.class_id, excluded_nodes: &["b".to_owned()] };
    assert!(engine.reserve("u3", &cpus(1), wish).unwrap_err().message.contains("excluded"));
    assert_eq!(
        engine.reserve("u4", &cpus(1), Wish { class_id: &class.class_id, ..Wish::default() }).unwrap().node,
        "a"
    );
}

#[derive(Clone, Debug)]
enum Event {
    Node { name: usize, cpu: u32, zone: u32, tainted: bool },
    NodeGone(usize),
    Pod { uid: usize, node: usize, cpu: u32, port: bool },
    PodGone(usize),
    Reserve { uid: usize, kind: usize },
    Release(usize),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..5_usize, 0..6_u32, 0..2_u32, any::<bool>())
            .prop_map(|(name, cpu, zone, tainted)| Event::Node { name, cpu, zone, tainted }),
        1 => (0..5_usize).prop_map(Event::NodeGone),
        4 => (0..8_usize, 0..5_usize, 0..4_u32, any::<bool>())
            .prop_map(|(uid, node, cpu, port)| Event::Pod { uid, node, cpu, port }),
        2 => (0..8_usize).prop_map(Event::PodGone),
        6 => (0..8_usize, 0..KINDS).prop_map(|(uid, kind)| Event::Reserve { uid, kind }),
        2 => (0..8_usize).prop_map(Event::Release),
    ]
}

const KINDS: usize = 5;

/// Pods of different constraints.
fn kind(kind: usize) -> Pod {
    let spec = match kind {
        0 => json!({"containers": [{"name": "c"}]}),
        1 => {
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}], "nodeSelector": {"zone": "1"}})
        }
        2 => json!({
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}],
            "tolerations": [{"key": "t", "operator": "Exists"}],
        }),
        3 => json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}]}),
        _ => json!({
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n1"]}]},
            ]}}},
        }),
    };
    serde_json::from_value(json!({ "spec": spec })).unwrap()
}

/// The same cluster, judged node by node straight from the objects.
#[derive(Default)]
struct Naive {
    nodes: BTreeMap<usize, (u32, u32, bool)>,
    /// Node, milli-CPU, port 80.
    pods: BTreeMap<usize, (usize, u32, bool)>,
    held: BTreeMap<usize, (usize, u32, bool)>,
}

impl Naive {
    fn load(&self, node: usize) -> (u32, u32, u32) {
        let each = self.pods.values().chain(self.held.values()).filter(|(own, ..)| *own == node);
        each.fold((0, 0, 0), |(cpu, ports, count), (_, more, port)| (cpu + more, ports + u32::from(*port), count + 1))
    }

    /// How many pods of a kind a node takes: two are allowed on each.
    fn takes(&self, node: usize, kind: usize) -> u32 {
        let Some((cpu, zone, tainted)) = self.nodes.get(&node).copied() else { return 0 };
        let (used, ports, count) = self.load(node);
        let places = 2_u32.saturating_sub(count);
        let by_cpu = |each: u32| (cpu * 1_000).saturating_sub(used) / each;
        match kind {
            _ if tainted && kind != 2 => 0,
            0 => places,
            1 => {
                if zone == 1 {
                    places.min(by_cpu(1_000))
                } else {
                    0
                }
            }
            2 => places.min(by_cpu(2_000)),
            3 => {
                if ports == 0 {
                    places.min(1)
                } else {
                    0
                }
            }
            _ => {
                if node == 1 {
                    0
                } else {
                    places.min(by_cpu(1_000))
                }
            }
        }
    }

    fn fits(&self, kind: usize) -> u32 {
        self.nodes.keys().map(|node| self.takes(*node, kind)).sum()
    }
}

fn cost(kind: usize) -> (u32, bool) {
    match kind {
        0 => (0, false),
        2 => (2_000, false),
        3 => (0, true),
        _ => (1_000, false),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_answer_is_that_of_looking_at_each_node_anew(events in prop::collection::vec(any_event(), 0..60)) {
        let mut engine = FitEngine::new(Pool::all());
        let mut naive = Naive::default();
        let demands: Vec<_> = (0..KINDS).map(|each| Arc::new(Demand::of(&kind(each)).unwrap())).collect();
        for event in events {
            match event {
                Event::Node { name, cpu, zone, tainted } => {
                    let taints = if tainted { json!([{"key": "t", "effect": "NoSchedule"}]) } else { json!([]) };
                    let labels = json!({"zone": zone.to_string()});
                    engine.snapshot_mut().upsert_node(&shaped(&format!("n{name}"), cpu, 2, &labels, &taints)).unwrap();
                    naive.nodes.insert(name, (cpu, zone, tainted));
                }
                Event::NodeGone(name) => {
                    engine.snapshot_mut().remove_node(&format!("n{name}"));
                    naive.nodes.remove(&name);
                }
                Event::Pod { uid, node, cpu, port } => {
                    let mut object = pod(&format!("f{uid}"), Some(&format!("n{node}")), cpu);
                    if port {
                        let taken = kind(3).spec.unwrap().containers.remove(0).ports;
                        object.spec.as_mut().unwrap().containers[0].ports = taken;
                    }
                    engine.snapshot_mut().upsert_pod(PodFacts::of(&object, None));
                    naive.pods.insert(uid, (node, cpu * 1_000, port));
                }
                Event::PodGone(uid) => {
                    engine.snapshot_mut().remove_pod(&format!("f{uid}"));
                    naive.pods.remove(&uid);
                }
                Event::Reserve { uid, kind } => {
                    engine.release(&format!("u{uid}"));
                    naive.held.remove(&uid);
                    let expected = naive.fits(kind);
                    let reserved = engine.reserve(&format!("u{uid}"), &demands[kind], Wish::default());
                    prop_assert_eq!(reserved.is_ok(), expected > 0, "kind {}: {:?}", kind, reserved);
                    if let Ok(place) = reserved {
                        let node = place.node[1..].parse().unwrap();
                        prop_assert!(naive.takes(node, kind) > 0, "{} has no room for {kind}", place.node);
                        let (cpu, port) = cost(kind);
                        naive.held.insert(uid, (node, cpu, port));
                    }
                }
                Event::Release(uid) => {
                    engine.release(&format!("u{uid}"));
                    naive.held.remove(&uid);
                }
            }
            for (kind, demand) in demands.iter().enumerate() {
                let mut view = engine.view::<String>(&[]);
                let (all, one) = (view.alone(demand, 1_000), view.jointly(demand, 1));
                prop_assert_eq!(all.fits, naive.fits(kind), "kind {}", kind);
                prop_assert_eq!(one.fits, all.fits.min(1));
                prop_assert_eq!(view.alone(demand, 1_000).fits, all.fits - one.fits, "what was placed is taken");
                prop_assert_eq!(all.classes.values().sum::<u32>(), all.fits);
            }
        }
    }
}
