#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use jiff::ToSpan;

use super::*;
use crate::{
    context::Settings,
    names::NamespaceMapping,
    node::{Advertised, NodeProfile, Shape},
};

struct World {
    settings: Settings,
    profile: NodeProfile,
    shape: Option<Shape>,
    advertised: Advertised,
    reach: Reach,
}

impl World {
    fn new() -> Self {
        let quantities = |cpu: &str, pods: &str| {
            [("cpu", cpu), ("pods", pods)].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into()
        };
        Self {
            settings: Settings {
                node_name: "vn-east".into(),
                cluster_name: "east".into(),
                upper_cluster_uid: "up-1".into(),
                lower_cluster_uid: "low-1".into(),
                namespaces: NamespaceMapping::Same,
                adopt_namespaces: BTreeSet::new(),
                lower_scheduler_name: None,
                upper_api_for_pods: None,
                node_address: "10.0.0.1".parse().unwrap(),
            },
            profile: NodeProfile { labels: BTreeMap::new(), taints: Vec::new(), evict_after: None },
            shape: Some(Shape {
                capacity: quantities("8", "110"),
                allocatable: quantities("7500m", "110"),
                os: Some("linux".into()),
                zone: Some("z1".into()),
                declared_features: vec!["B".into(), "ExtendWebSocketsToKubelet".into(), "A".into()],
                nodes_ready: 1,
                nodes_total: 1,
                ..Shape::default()
            }),
            advertised: Advertised {
                address: "10.0.0.1".parse().unwrap(),
                kubelet_port: 10250,
                endpoint: "10.0.0.1:9443".into(),
            },
            reach: Reach::Reachable,
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            settings: &self.settings,
            profile: &self.profile,
            shape: self.shape.as_ref(),
            lower_version: "v1.36.3",
            advertised: &self.advertised,
            reach: &self.reach,
        }
    }

    fn plan(&self, node: &Node, now: Timestamp) -> Vec<Change> {
        plan(&self.facts(), Some(node), true, now).changes
    }

    /// Plans and applies.
    fn make(&self, node: &mut Node, now: Timestamp) {
        let changes = self.plan(node, now);
        apply(node, changes);
    }

    /// The Node as registered.
    fn node(&self) -> Node {
        self.facts().node(start()).unwrap()
    }
}

fn start() -> Timestamp {
    "2026-11-24T08:00:00Z".parse().unwrap()
}

fn after(seconds: i64) -> Timestamp {
    start().checked_add(seconds.seconds()).unwrap()
}

fn unreachable() -> Reach {
    Reach::Unreachable { since: start(), reason: "timeout".into() }
}

/// Applies changes as the API server does, as far as these tests read them.
fn apply(node: &mut Node, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Create(new) => *node = *new,
            Change::Taints(patch) | Change::Metadata(patch) => merge(node, &patch),
            Change::Status(mut patch) => {
                let conditions = patch["status"].as_object_mut().unwrap().remove("conditions");
                let updates: Vec<NodeCondition> =
                    conditions.map(|c| serde_json::from_value(c).unwrap()).unwrap_or_default();
                merge(node, &patch);
                let list = node.status.get_or_insert_default().conditions.get_or_insert_default();
                list.retain(|c| updates.iter().all(|u| u.type_ != c.type_));
                list.extend(updates);
            }
        }
    }
}

fn merge(node: &mut Node, patch: &Value) {
    let mut value = serde_json::to_value(&*node).unwrap();
    merge_value(&mut value, patch);
    *node = serde_json::from_value(value).unwrap();
}

fn merge_value(target: &mut Value, patch: &Value) {
    let Value::Object(entries) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let object = target.as_object_mut().unwrap();
    for (key, value) in entries {
        if value.is_null() {
            object.remove(key);
        } else {
            merge_value(object.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[test]
fn a_registered_node_needs_no_change() {
    let world = World::new();
    assert_eq!(world.plan(&world.node(), after(10)), []);
}

#[test]
fn nothing_is_registered_before_the_lower_cluster_is_known() {
    let world = World { shape: None, ..World::new() };
    assert_eq!(plan(&world.facts(), None, true, start()), Plan::default());
}

#[test]
fn a_node_is_registered_whole() {
    let world = World::new();
    let node = world.node();
    let labels = node.metadata.labels.unwrap();
    assert_eq!(labels["type"], "virtual-kubelet");
    assert_eq!(labels["tensile.dev/cluster"], "east");
    assert_eq!(labels["kubernetes.io/hostname"], "vn-east");
    assert_eq!(labels["kubernetes.io/os"], "linux");
    assert_eq!(labels["topology.kubernetes.io/zone"], "z1");
    assert!(!labels.contains_key("topology.kubernetes.io/region"));
    assert!(labels.contains_key("node.kubernetes.io/exclude-from-external-load-balancers"));
    let taints = node.spec.unwrap().taints.unwrap();
    assert_eq!(taints.len(), 1);
    assert_eq!((taints[0].key.as_str(), taints[0].value.as_deref()), ("virtual-kubelet.io/provider", Some("tensile")));
    let status = node.status.unwrap();
    assert_eq!(status.declared_features.unwrap(), ["A", "B", "ExtendWebSocketsToKubelet"]);
    let info = status.node_info.unwrap();
    assert!(info.kubelet_version.starts_with("v1.36.3+tensile."), "{}", info.kubelet_version);
    let conditions = status.conditions.unwrap();
    assert_eq!(conditions.last().map(|c| (c.type_.as_str(), c.status.as_str())), Some(("Ready", "True")));
}

#[test]
fn a_change_of_size_patches_only_what_differs() {
    let mut world = World::new();
    let mut node = world.node();
    let shape = world.shape.as_mut().unwrap();
    shape.allocatable.insert("cpu".into(), Quantity("6".into()));
    shape.capacity.remove("pods");
    let changes = world.plan(&node, after(10));
    let expected = json!({"status": {"capacity": {"pods": null}, "allocatable": {"cpu": "6"}}});
    assert_eq!(changes, [Change::Status(expected)]);
    apply(&mut node, changes);
    assert_eq!(world.plan(&node, after(10)), []);
}

#[test]
fn conditions_are_renewed_after_five_minutes_with_their_transition_kept() {
    let world = World::new();
    let mut node = world.node();
    assert_eq!(plan(&world.facts(), Some(&node), true, after(1)).next_look, Some(after(300)));
    let changes = world.plan(&node, after(300));
    assert_eq!(changes.len(), 1);
    apply(&mut node, changes);
    let ready = conditions::find(&node, "Ready").unwrap();
    assert_eq!(ready.last_heartbeat_time.as_ref().unwrap().0, after(300));
    assert_eq!(ready.last_transition_time.as_ref().unwrap().0, start());
}

#[test]
fn labels_taints_conditions_and_cordon_of_others_are_left_alone() {
    let world = World::new();
    let mut node = world.node();
    node.metadata.labels.as_mut().unwrap().insert("team".into(), "a".into());
    node.spec.as_mut().unwrap().unschedulable = Some(true);
    let taints = node.spec.as_mut().unwrap().taints.as_mut().unwrap();
    taints.push(Taint { key: "theirs".into(), effect: "NoExecute".into(), ..Taint::default() });
    let conditions = node.status.as_mut().unwrap().conditions.as_mut().unwrap();
    conditions.push(NodeCondition {
        type_: "KernelDeadlock".into(),
        status: "False".into(),
        ..NodeCondition::default()
    });
    assert_eq!(world.plan(&node, after(10)), []);
}

#[test]
fn a_label_edited_away_comes_back_and_one_no_longer_wanted_goes() {
    let mut world = World::new();
    let mut node = world.node();
    node.metadata.labels.as_mut().unwrap().remove("tensile.dev/cluster");
    world.shape.as_mut().unwrap().zone = None;
    let changes = world.plan(&node, after(10));
    let Some(Change::Metadata(patch)) = changes.first() else { panic!("{changes:?}") };
    assert_eq!(
        patch["metadata"]["labels"],
        json!({"tensile.dev/cluster": "east", "topology.kubernetes.io/zone": null})
    );
    apply(&mut node, changes);
    assert_eq!(world.plan(&node, after(10)), []);
}

#[test]
fn a_restart_while_the_lower_cluster_is_away_leaves_size_and_labels_as_they_stand() {
    let world = World::new();
    let node = world.node();
    let restarted = World { shape: None, reach: Reach::Unknown, ..World::new() };
    let changes = restarted.plan(&node, after(10));
    // Only Ready's message may differ.
    let [Change::Status(patch)] = changes.as_slice() else { panic!("{changes:?}") };
    let fields: Vec<&String> = patch["status"].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["conditions"]);
}

#[test]
fn hold_taints_and_says_so_but_stays_ready_for_ever() {
    let mut world = World::new();
    let mut node = world.node();
    node.metadata.resource_version = Some("7".into());
    world.reach = unreachable();
    let changes = world.plan(&node, after(10));
    let Some(Change::Taints(patch)) = changes.first() else { panic!("{changes:?}") };
    assert_eq!(patch["metadata"]["resourceVersion"], "7");
    apply(&mut node, changes);
    let keys: Vec<&str> = node.spec.as_ref().unwrap().taints.iter().flatten().map(|t| t.key.as_str()).collect();
    assert_eq!(keys, ["virtual-kubelet.io/provider", "tensile.dev/unreachable"]);
    assert_eq!(conditions::find(&node, "tensile.dev/LowerReachable").unwrap().status, "False");
    world.make(&mut node, after(100_000));
    assert_eq!(conditions::find(&node, "Ready").unwrap().status, "True");

    world.reach = Reach::Reachable;
    world.make(&mut node, after(100_001));
    assert_eq!(node.spec.as_ref().unwrap().taints.as_ref().unwrap().len(), 1);
    assert_eq!(conditions::find(&node, "tensile.dev/LowerReachable").unwrap().status, "True");
}

#[test]
fn evict_turns_not_ready_after_its_time_even_across_a_restart_and_ready_on_return() {
    let mut world = World::new();
    world.profile.evict_after = Some(Duration::from_mins(1));
    let mut node = world.node();
    world.reach = unreachable();
    world.make(&mut node, after(10));
    assert_eq!(conditions::find(&node, "Ready").unwrap().status, "True");
    assert_eq!(plan(&world.facts(), Some(&node), true, after(11)).next_look, Some(after(70)));

    // A new process hears of the outage later, but the Node knows since when.
    world.reach = Reach::Unreachable { since: after(60), reason: "timeout".into() };
    world.make(&mut node, after(70));
    assert_eq!(conditions::find(&node, "Ready").unwrap().status, "False");

    world.reach = Reach::Unknown;
    world.make(&mut node, after(80));
    assert_eq!(conditions::find(&node, "Ready").unwrap().status, "False", "a restart alone must not turn it Ready");

    world.reach = Reach::Reachable;
    world.make(&mut node, after(90));
    assert_eq!(conditions::find(&node, "Ready").unwrap().status, "True");
}

#[test]
fn a_server_that_drops_declared_features_is_not_asked_again() {
    let world = World::new();
    let mut node = world.node();
    node.status.as_mut().unwrap().declared_features = None;
    assert_eq!(world.plan(&node, after(10)).len(), 1);
    assert_eq!(plan(&world.facts(), Some(&node), false, after(10)).changes, []);
}
