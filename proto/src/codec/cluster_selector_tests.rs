#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use k8s_openapi::{
    api::core::v1::{
        NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodAntiAffinity,
        PreferredSchedulingTerm,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use proptest::prelude::*;

use super::*;

#[test]
fn nothing_on_the_pod_is_nothing_read() {
    assert_eq!(ClusterSelector::of_annotations(&BTreeMap::new()).unwrap(), None);
    assert_eq!(ClusterSelector::default().encode().unwrap(), "{}");
    assert!(ClusterSelector::decode("{}").unwrap().is_empty());
}

#[test]
fn the_form_on_the_wire_is_the_one_of_pod_specs() {
    let text = r#"{
        "nodeSelector": {"disk": "ssd"},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}]}]}}},
        "tolerations": [{"key": "db", "operator": "Exists"}],
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
        "hostNetwork": true,
        "hostPorts": [{"container": "web", "containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.1"}]
    }"#;
    let selector = ClusterSelector::decode(text).unwrap();
    assert_eq!(selector.node_selector["disk"], "ssd");
    assert_eq!(selector.tolerations[0].key.as_deref(), Some("db"));
    assert_eq!(selector.topology_spread_constraints[0].topology_key, "rack");
    assert_eq!(selector.host_ports[0].protocol, "TCP");
    assert_eq!(selector.host_ports[0].host_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(ClusterSelector::decode(&selector.encode().unwrap()).unwrap(), selector);
}

#[test]
fn tensile_kubes_annotation_is_read_and_ours_goes_first() {
    let theirs = r#"{"nodeSelector":{"a":"b"},"affinity":{"podAffinity":null},"tolerations":[{"operator":"Exists"}]}"#;
    let mut annotations: BTreeMap<_, _> = [("clusterSelector".to_owned(), theirs.to_owned())].into();
    let selector = ClusterSelector::of_annotations(&annotations).unwrap().unwrap();
    assert_eq!(selector.node_selector["a"], "b");
    assert_eq!(selector.tolerations.len(), 1);
    annotations.insert(CLUSTER_SELECTOR.to_owned(), "{}".to_owned());
    assert!(ClusterSelector::of_annotations(&annotations).unwrap().unwrap().is_empty());
}

#[test]
fn null_is_absent() {
    let text = r#"{"nodeSelector":null,"affinity":null,"tolerations":null,"hostNetwork":null,"hostPorts":null}"#;
    assert!(ClusterSelector::decode(text).unwrap().is_empty());
}

#[test]
fn errors_name_the_path_of_the_field() {
    let port = |port: &str| format!(r#"{{"hostPorts":[{{"container":"a","containerPort":80,{port}}}]}}"#);
    let cases = [
        (r#"{"tolerations":[{"key":"a"},{"key":7}]}"#.to_owned(), "field tolerations[1].key: invalid type"),
        (r#"{"affinity":{"nodeAffinity":[]}}"#.to_owned(), "field affinity.nodeAffinity"),
        (r#"{"nodeSelektor":{}}"#.to_owned(), "field nodeSelektor is not known"),
        (
            r#"{"affinity":{"nodeAffinity":{"requird":{}}}}"#.to_owned(),
            "field affinity.nodeAffinity.requird is not known",
        ),
        (
            r#"{"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"a","whenUnsatisfiable":"b","new":1}]}"#
                .to_owned(),
            "field topologySpreadConstraints[0].new is not known",
        ),
        (port(r#""hostPort":0"#), "field hostPorts[0].hostPort: 0 is no port"),
        (port(r#""hostPort":80,"protocol":"tcp""#), "field hostPorts[0].protocol: \"tcp\" is no protocol"),
        ("{} {}".to_owned(), "field .: trailing characters"),
        ("not JSON".to_owned(), "field .: expected"),
        ("[]".to_owned(), "field .: "),
    ];
    for (text, expected) in cases {
        let error = ClusterSelector::decode(&text).expect_err(&text).to_string();
        assert!(
            error.starts_with("annotation tensile.dev/cluster-selector") && error.contains(expected),
            "{text}: {error}"
        );
    }
    let theirs = [("clusterSelector".to_owned(), r#"{"nodeName":"x"}"#.to_owned())].into();
    let error = ClusterSelector::of_annotations(&theirs).unwrap_err();
    assert_eq!(error, CodecError::Unknown { annotation: "clusterSelector", path: "nodeName".into() });
}

#[test]
fn a_value_that_is_too_large_is_neither_read_nor_written() {
    let mut selector = ClusterSelector::default();
    selector.node_selector.insert("a".into(), "b".repeat(64 << 10));
    assert!(matches!(selector.encode(), Err(CodecError::TooLarge { .. })));
    let text = serde_json::to_string(&selector).unwrap();
    assert!(matches!(ClusterSelector::decode(&text), Err(CodecError::TooLarge { .. })));
}

fn word() -> impl Strategy<Value = String> {
    "[a-z./\"\\\\ä-]{0,8}"
}

fn requirement() -> impl Strategy<Value = NodeSelectorRequirement> {
    (word(), word(), prop::option::of(prop::collection::vec(word(), 0..3)))
        .prop_map(|(key, operator, values)| NodeSelectorRequirement { key, operator, values })
}

fn term() -> impl Strategy<Value = NodeSelectorTerm> {
    let requirements = || prop::option::of(prop::collection::vec(requirement(), 0..3));
    (requirements(), requirements())
        .prop_map(|(match_expressions, match_fields)| NodeSelectorTerm { match_expressions, match_fields })
}

fn affinity() -> impl Strategy<Value = Affinity> {
    let required = prop::option::of(prop::collection::vec(term(), 0..3));
    let preferred = prop::option::of(prop::collection::vec((any::<i32>(), term()), 0..3));
    let apart = prop::option::of(prop::collection::vec((word(), prop::option::of(word())), 0..3));
    (required, preferred, apart).prop_map(|(required, preferred, apart)| Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: required
                .map(|node_selector_terms| NodeSelector { node_selector_terms }),
            preferred_during_scheduling_ignored_during_execution: preferred.map(|terms| {
                terms.into_iter().map(|(weight, preference)| PreferredSchedulingTerm { weight, preference }).collect()
            }),
        }),
        pod_affinity: None,
        pod_anti_affinity: apart.map(|terms| PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: Some(
                terms
                    .into_iter()
                    .map(|(topology_key, namespace)| PodAffinityTerm {
                        topology_key,
                        namespaces: namespace.map(|namespace| vec![namespace]),
                        label_selector: Some(LabelSelector::default()),
                        ..PodAffinityTerm::default()
                    })
                    .collect(),
            ),
            ..PodAntiAffinity::default()
        }),
    })
}

fn toleration() -> impl Strategy<Value = Toleration> {
    (prop::option::of(word()), prop::option::of(word()), prop::option::of(any::<i64>())).prop_map(
        |(key, effect, toleration_seconds)| Toleration { key, effect, toleration_seconds, ..Toleration::default() },
    )
}

fn spread() -> impl Strategy<Value = TopologySpreadConstraint> {
    (any::<i32>(), word(), word(), prop::option::of(any::<i32>())).prop_map(
        |(max_skew, topology_key, when_unsatisfiable, min_domains)| TopologySpreadConstraint {
            max_skew,
            topology_key,
            when_unsatisfiable,
            min_domains,
            ..TopologySpreadConstraint::default()
        },
    )
}

fn host_port() -> impl Strategy<Value = HostPort> {
    let protocol = prop::sample::select(vec!["TCP", "UDP", "SCTP"]);
    ("[a-z]{1,8}", 1..65_536, protocol, 1..65_536, prop::option::of(word())).prop_map(
        |(container, container_port, protocol, host_port, host_ip)| HostPort {
            container,
            container_port,
            protocol: protocol.to_owned(),
            host_port,
            host_ip,
        },
    )
}

fn selector() -> impl Strategy<Value = ClusterSelector> {
    (
        prop::collection::btree_map(word(), word(), 0..4),
        prop::option::of(affinity()),
        prop::collection::vec(toleration(), 0..4),
        prop::collection::vec(spread(), 0..4),
        any::<bool>(),
        prop::collection::vec(host_port(), 0..4),
    )
        .prop_map(
            |(node_selector, affinity, tolerations, topology_spread_constraints, host_network, host_ports)| {
                ClusterSelector {
                    node_selector,
                    affinity,
                    tolerations,
                    topology_spread_constraints,
                    host_network,
                    host_ports,
                }
            },
        )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(selector in selector()) {
        let text = selector.encode().unwrap();
        prop_assert_eq!(ClusterSelector::decode(&text).unwrap(), selector);
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,60}") {
        let _ = ClusterSelector::decode(&text);
    }
}
