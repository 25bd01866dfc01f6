#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn node(name: &str, allocatable: &serde_json::Value, ready: bool, labels: &serde_json::Value) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDRs": ["10.0.0.0/24"]},
        "status": {
            "capacity": allocatable, "allocatable": allocatable,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "Unknown" }}],
            "declaredFeatures": ["A", "B"],
        },
    }))
    .unwrap()
}

fn plain(name: &str) -> Node {
    let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"});
    node(name, &json!({"cpu": "4", "memory": "8Gi", "pods": "10"}), true, &labels)
}

fn pod(uid: &str, node: Option<&str>, cpu_millis: i64, ours: bool) -> PodFacts {
    let requests = [("cpu", cpu_millis), ("pods", 1)].into_iter().collect();
    let owner = ours.then(|| format!("upper-{uid}"));
    PodFacts { uid: uid.into(), node: node.map(Into::into), requests, owner, ..PodFacts::default() }
}

fn amounts(items: &[(&str, i64)]) -> Resources {
    items.iter().copied().collect()
}

#[test]
fn foreign_pods_lessen_what_is_offered_and_ours_only_what_is_free() {
    let mut snapshot = Snapshot::new();
    snapshot.upsert_node(&plain("a")).unwrap();
    snapshot.upsert_node(&plain("b")).unwrap();
    snapshot.upsert_pod(pod("f", Some("a"), 1_000, false));
    snapshot.upsert_pod(pod("o", Some("b"), 500, true));
    snapshot.upsert_pod(pod("w", None, 250, true));
    let room = snapshot.room(&Pool::all());
    let memory = 16_i64 << 30;
    assert_eq!(room.capacity, amounts(&[("cpu", 8_000), ("memory", memory), ("pods", 20)]));
    assert_eq!(room.allocatable, amounts(&[("cpu", 7_000), ("memory", memory), ("pods", 19)]));
    assert_eq!(room.requested, amounts(&[("cpu", 750), ("pods", 2)]));
    assert_eq!(room.free, amounts(&[("cpu", 6_250), ("memory", memory), ("pods", 17)]));
    assert_eq!((room.nodes_ready, room.nodes_total), (2, 2));
}

#[test]
fn a_node_that_is_overcommitted_takes_nothing_from_the_others() {
    let mut snapshot = Snapshot::new();
    snapshot.upsert_node(&plain("a")).unwrap();
    snapshot.upsert_node(&plain("b")).unwrap();
    snapshot.upsert_pod(pod("f", Some("a"), 9_000, false));
    assert_eq!(snapshot.room(&Pool::all()).allocatable.cpu_millis(), 4_000);
}

#[test]
fn nodes_that_take_no_pods_offer_nothing_and_what_ours_hold_there_is_told() {
    let mut snapshot = Snapshot::new();
    snapshot.upsert_node(&plain("a")).unwrap();
    let mut cordoned = plain("b");
    cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
    snapshot.upsert_node(&cordoned).unwrap();
    let labels = json!({});
    snapshot.upsert_node(&node("c", &json!({"cpu": "4"}), false, &labels)).unwrap();
    snapshot.upsert_pod(pod("o", Some("b"), 500, true));
    snapshot.upsert_pod(pod("p", Some("nowhere"), 100, true));
    let room = snapshot.room(&Pool::all());
    assert_eq!(room.allocatable.cpu_millis(), 4_000);
    assert_eq!(room.free.cpu_millis(), 4_000);
    assert_eq!(room.requested.cpu_millis(), 600);
    assert_eq!(room.held_elsewhere, amounts(&[("cpu", 600), ("pods", 2)]));
    assert_eq!((room.nodes_ready, room.nodes_total), (1, 3));
}

#[test]
fn labels_are_told_when_uniform_and_features_when_common() {
    let mut snapshot = Snapshot::new();
    snapshot.upsert_node(&plain("a")).unwrap();
    let mut other = plain("b");
    other.metadata.labels.as_mut().unwrap().insert("kubernetes.io/arch".into(), "amd64".into());
    other.status.as_mut().unwrap().declared_features = Some(vec!["C".into(), "B".into()]);
    snapshot.upsert_node(&other).unwrap();
    let room = snapshot.room(&Pool::all());
    assert_eq!(room.os.unwrap().as_str(), "linux");
    assert_eq!(room.arch, None);
    assert_eq!(room.declared_features, ["B"]);
    let arm = snapshot.room(&Pool::parse("kubernetes.io/arch=arm64").unwrap());
    assert_eq!(arm.arch.unwrap().as_str(), "arm64");
    assert_eq!(arm.declared_features, ["A", "B"]);
    assert_eq!(arm.capacity.cpu_millis(), 4_000);
    assert_eq!(snapshot.room(&Pool::parse("kubernetes.io/hostname=b").unwrap()).nodes_total, 1);
}

#[test]
fn equal_nodes_are_one_class() {
    let mut snapshot = Snapshot::new();
    for name in ["a", "b", "c"] {
        snapshot.upsert_node(&plain(name)).unwrap();
    }
    let mut tainted = plain("d");
    tainted.spec.as_mut().unwrap().taints =
        Some(vec![serde_json::from_value(json!({"key": "gpu", "effect": "NoSchedule"})).unwrap()]);
    snapshot.upsert_node(&tainted).unwrap();
    snapshot.upsert_pod(pod("f", Some("a"), 3_000, false));
    snapshot.upsert_pod(pod("o", Some("b"), 1_000, true));
    let classes = snapshot.node_classes(&Pool::all());
    assert_eq!(classes.len(), 2);
    let class = classes.iter().find(|class| class.taints.is_empty()).unwrap();
    assert_eq!(class.count, 3);
    assert!(!class.labels.contains_key("kubernetes.io/hostname"));
    assert_eq!(class.allocatable.cpu_millis(), 4_000);
    assert_eq!(class.requested.cpu_millis(), 4_000);
    assert_eq!(class.free.cpu_millis(), 8_000);
    assert_eq!(class.free_largest.cpu_millis(), 4_000);
}

#[test]
fn machines_that_differ_by_kilobytes_are_one_class_and_show_the_smallest() {
    let mut snapshot = Snapshot::new();
    for (name, memory) in [("a", "8050000Ki"), ("b", "8050123Ki")] {
        let labels = json!({"kubernetes.io/hostname": name, "instance": name});
        snapshot.upsert_node(&node(name, &json!({"cpu": "4", "memory": memory}), true, &labels)).unwrap();
    }
    let classes = snapshot.node_classes(&Pool::all());
    assert_eq!(classes.len(), 1);
    assert_eq!(classes[0].allocatable.memory_bytes(), 8_050_000 << 10);
}

#[test]
fn heartbeats_and_repeats_change_no_revision() {
    let mut snapshot = Snapshot::new();
    snapshot.upsert_node(&plain("a")).unwrap();
    snapshot.upsert_pod(pod("o", Some("a"), 1, true));
    let before = snapshot.revision();
    let mut beat = plain("a");
    beat.metadata.resource_version = Some("2".into());
    beat.metadata.annotations = Some([("x".to_owned(), "y".to_owned())].into());
    snapshot.upsert_node(&beat).unwrap();
    snapshot.upsert_pod(pod("o", Some("a"), 1, true));
    snapshot.remove_pod("never-seen");
    snapshot.remove_node("never-seen");
    assert_eq!(snapshot.revision(), before);
}

#[test]
fn a_malformed_node_offers_nothing_and_disturbs_no_other() {
    let mut snapshot = Snapshot::new();
    snapshot.upsert_node(&plain("a")).unwrap();
    snapshot.upsert_node(&plain("b")).unwrap();
    let labels = json!({});
    let error = snapshot.upsert_node(&node("b", &json!({"memory": "lots"}), true, &labels)).unwrap_err();
    assert_eq!(error.resource, "memory");
    assert_eq!(snapshot.room(&Pool::all()).nodes_total, 1);
    snapshot.upsert_node(&plain("b")).unwrap();
    assert_eq!(snapshot.room(&Pool::all()).nodes_total, 2);
}

#[test]
fn a_node_that_comes_back_still_has_its_pods() {
    let mut snapshot = Snapshot::new();
    snapshot.upsert_node(&plain("a")).unwrap();
    snapshot.upsert_pod(pod("f", Some("a"), 1_000, false));
    snapshot.remove_node("a");
    assert_eq!(snapshot.room(&Pool::all()), Room::default());
    snapshot.upsert_node(&plain("a")).unwrap();
    assert_eq!(snapshot.room(&Pool::all()).allocatable.cpu_millis(), 3_000);
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Node {
        name: usize,
        cpu: i64,
        ready: bool,
        zone: usize,
    },
    NodeGone(usize),
    Pod {
        uid: usize,
        node: Option<usize>,
        cpu: i64,
        ours: bool,
        terminated: bool,
    },
    PodGone(usize),
    /// A new list of pods, by bits.
    PodsListed(u8),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..4_usize, 0..6_i64, any::<bool>(), 0..2_usize)
            .prop_map(|(name, cpu, ready, zone)| Event::Node { name, cpu, ready, zone }),
        1 => (0..4_usize).prop_map(Event::NodeGone),
        6 => (0..8_usize, prop::option::of(0..4_usize), 0..4_000_i64, any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(uid, node, cpu, ours, terminated)| Event::Pod { uid, node, cpu, ours, terminated }),
        2 => (0..8_usize).prop_map(Event::PodGone),
        1 => any::<u8>().prop_map(Event::PodsListed),
    ]
}

/// The objects that are there at the end.
#[derive(Default)]
struct World {
    nodes: BTreeMap<usize, (Node, i64, bool, usize)>,
    pods: BTreeMap<usize, PodFacts>,
}

impl World {
    fn apply(&mut self, snapshot: &mut Snapshot, event: Event) {
        match event {
            Event::Node { name, cpu, ready, zone } => {
                let labels = json!({"topology.kubernetes.io/zone": format!("z{zone}")});
                let object = node(&format!("n{name}"), &json!({"cpu": cpu.to_string(), "pods": "5"}), ready, &labels);
                snapshot.upsert_node(&object).unwrap();
                self.nodes.insert(name, (object, cpu, ready, zone));
            }
            Event::NodeGone(name) => {
                snapshot.remove_node(&format!("n{name}"));
                self.nodes.remove(&name);
            }
            Event::Pod { uid, node, cpu, ours, terminated } => {
                let node = node.map(|node| format!("n{node}"));
                let mut facts = pod(&format!("u{uid}"), node.as_deref(), cpu, ours);
                facts.terminated = terminated;
                snapshot.upsert_pod(facts.clone());
                self.pods.insert(uid, facts);
            }
            Event::PodGone(uid) => {
                snapshot.remove_pod(&format!("u{uid}"));
                self.pods.remove(&uid);
            }
            Event::PodsListed(bits) => {
                self.pods.retain(|uid, _| bits & (1 << uid) != 0);
                snapshot.retain_pods(&self.pods.values().map(|pod| pod.uid.clone()).collect());
            }
        }
    }

    /// CPU offered and free in a zone, straight from the definition.
    fn offered_and_free(&self, zone: usize) -> (i64, i64) {
        let taken = |name: usize, foreign_only: bool| -> i64 {
            let on_node = |pod: &&PodFacts| pod.node.as_deref() == Some(&format!("n{name}")) && !pod.terminated;
            let counted = self.pods.values().filter(on_node).filter(|pod| !(foreign_only && pod.owner.is_some()));
            counted.map(|pod| pod.requests.cpu_millis()).sum()
        };
        let counted = self.nodes.iter().filter(|(_, (_, _, ready, own))| *ready && *own == zone);
        let (mut offered, mut free) = (0, 0);
        for (name, (_, cpu, _, _)) in counted {
            offered += (cpu * 1_000 - taken(*name, true)).max(0);
            free += (cpu * 1_000 - taken(*name, false)).max(0);
        }
        let unbound = self.pods.values().filter(|pod| pod.owner.is_some() && pod.node.is_none() && !pod.terminated);
        (offered, (free - unbound.map(|pod| pod.requests.cpu_millis()).sum::<i64>()).max(0))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_sequence_of_events_equals_a_snapshot_made_from_scratch(events in prop::collection::vec(any_event(), 0..60)) {
        let mut snapshot = Snapshot::new();
        let mut world = World::default();
        for event in events {
            world.apply(&mut snapshot, event);
        }
        let mut fresh = Snapshot::new();
        world.pods.values().rev().for_each(|pod| fresh.upsert_pod(pod.clone()));
        for (object, ..) in world.nodes.values().rev() {
            fresh.upsert_node(object).unwrap();
        }
        for pool in [Pool::all(), Pool::parse("topology.kubernetes.io/zone=z1").unwrap()] {
            prop_assert_eq!(snapshot.room(&pool), fresh.room(&pool));
            prop_assert_eq!(snapshot.node_classes(&pool), fresh.node_classes(&pool));
        }
        for zone in 0..2 {
            let room = snapshot.room(&Pool::parse(&format!("topology.kubernetes.io/zone=z{zone}")).unwrap());
            prop_assert_eq!((room.allocatable.cpu_millis(), room.free.cpu_millis()), world.offered_and_free(zone));
        }
    }

    #[test]
    fn what_changes_the_room_raises_the_revision(events in prop::collection::vec(any_event(), 0..40)) {
        let mut snapshot = Snapshot::new();
        let mut world = World::default();
        let pool = Pool::all();
        let mut before = (snapshot.revision(), snapshot.room(&pool), snapshot.node_classes(&pool));
        for event in events {
            world.apply(&mut snapshot, event);
            let after = (snapshot.revision(), snapshot.room(&pool), snapshot.node_classes(&pool));
            prop_assert!(after.0 > before.0 || (after.1 == before.1 && after.2 == before.2));
            before = after;
        }
    }
}

#[test]
fn thirty_thousand_foreign_pods_cost_little() {
    let mut snapshot = Snapshot::new();
    for index in 0..30_000_u32 {
        let uid = format!("{index:08x}-9990-4444-8888-0123456789ab");
        snapshot.upsert_pod(pod(&uid, Some(&format!("node-{}", index % 1_000)), 100, false));
    }
    assert_eq!(snapshot.pods(), 30_000);
    let places = snapshot.places.capacity() * (size_of::<(Uid, Option<Name>)>() + 1);
    let on_nodes: usize =
        snapshot.nodes.values().map(|entry| entry.pods.capacity() * size_of::<(Uid, PodEntry)>()).sum();
    let each = (places + on_nodes) / 30_000;
    println!("{each} bytes for each pod");
    assert!(each < 200, "{each} bytes for each pod");
}
