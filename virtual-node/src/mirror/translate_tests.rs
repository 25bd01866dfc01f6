#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use serde_json::json;

use super::*;
use crate::names::NamespaceMapping;

fn settings(namespaces: NamespaceMapping) -> Settings {
    Settings {
        node_name: "vn".into(),
        cluster_name: "lower".into(),
        upper_cluster_uid: "up".into(),
        lower_cluster_uid: "low".into(),
        namespaces,
        adopt_namespaces: [].into(),
        lower_scheduler_name: None,
        upper_api_for_pods: None,
        node_address: Ipv4Addr::LOCALHOST.into(),
    }
}

fn service(spec: &Value) -> Service {
    serde_json::from_value(json!({
        "metadata": {"namespace": "team", "name": "web", "uid": "s1", "labels": {"app": "web"},
            "annotations": {"cloud.example/load-balancer": "internal"}, "finalizers": ["cloud.example/lb"]},
        "spec": spec,
    }))
    .unwrap()
}

fn down(spec: &Value) -> Value {
    serde_json::to_value(service_down(&service(spec), &settings(NamespaceMapping::Same)).unwrap()).unwrap()
}

#[test]
fn a_service_goes_down_without_selector_address_and_what_only_the_upper_cluster_has() {
    let below = down(&json!({
        "type": "LoadBalancer", "selector": {"app": "web"}, "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"],
        "externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "healthCheckNodePort": 31000, "sessionAffinity": "ClientIP",
        "ports": [{"name": "http", "port": 80, "targetPort": "www", "protocol": "TCP", "nodePort": 30080}],
    }));
    assert_eq!(
        below["spec"],
        json!({"type": "ClusterIP", "sessionAffinity": "ClientIP",
            "ports": [{"name": "http", "port": 80, "targetPort": "www", "protocol": "TCP"}]})
    );
    let meta = &below["metadata"];
    assert_eq!(meta["labels"]["app"], "web");
    assert_eq!(meta["labels"][label::UPPER_UID], "s1");
    assert!(meta.get("finalizers").is_none() && meta["annotations"].get("cloud.example/load-balancer").is_none());
}

#[test]
fn headless_external_and_dual_stack_services_keep_what_they_are() {
    assert_eq!(down(&json!({"clusterIP": "None"}))["spec"]["clusterIP"], "None");
    let external = down(&json!({"type": "ExternalName", "externalName": "db.example"}));
    assert_eq!(external["spec"], json!({"type": "ExternalName", "externalName": "db.example", "ports": []}));
    assert_eq!(down(&json!({"ipFamilies": ["IPv4", "IPv6"]}))["spec"]["ipFamilyPolicy"], "PreferDualStack");
    assert!(down(&json!({"ipFamilies": ["IPv4"]}))["spec"].get("ipFamilyPolicy").is_none());
}

#[test]
fn the_api_servers_service_and_what_came_from_another_upper_cluster_stay() {
    let same = settings(NamespaceMapping::Same);
    let mut kubernetes = service(&json!({}));
    kubernetes.metadata.namespace = Some("default".into());
    kubernetes.metadata.name = Some("kubernetes".into());
    assert!(service_down(&kubernetes, &same).is_none());
    let mut mirrored = service(&json!({}));
    mirrored.metadata.labels = Some([(label::UPPER_CLUSTER.to_owned(), "other".to_owned())].into());
    assert!(service_down(&mirrored, &same).is_none());
}

fn slice(managed_by: &str) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"namespace": "team", "name": "web-x1", "uid": "e1",
            "labels": {SERVICE_NAME: "web", MANAGED_BY: managed_by, "app": "web", HEADLESS: ""}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.1.0.1"], "nodeName": "vn", "zone": "a", "hints": {"forZones": [{"name": "a"}]},
                "hostname": "web-0", "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "web-0"}},
            {"addresses": ["10.2.0.1"], "nodeName": "elsewhere", "conditions": {"ready": false}},
        ],
    }))
    .unwrap()
}

#[test]
fn endpoints_go_down_without_nodes_and_zones_and_isolated_ones_only_where_they_are_reached() {
    let suffixed = settings(NamespaceMapping::Suffixed { short_id: "u".into() });
    let below = slice_down(&slice("endpointslice-controller.k8s.io"), &suffixed).unwrap();
    assert_eq!(below.metadata.namespace.as_deref(), Some("team-u"));
    let labels = below.metadata.labels.clone().unwrap();
    assert_eq!((labels[SERVICE_NAME].as_str(), labels[MANAGED_BY].as_str()), ("web", DOMAIN));
    assert!(labels.contains_key(HEADLESS) && !labels.contains_key("app"));
    let all = reachable(below.clone(), Network::Flat, "vn");
    assert_eq!(
        serde_json::to_value(&all.endpoints).unwrap(),
        json!([
            {"addresses": ["10.1.0.1"], "hostname": "web-0", "conditions": {"ready": true}},
            {"addresses": ["10.2.0.1"], "conditions": {"ready": false}},
        ])
    );
    let own = reachable(below, Network::Isolated, "vn");
    assert_eq!(own.endpoints.iter().flatten().map(|one| one.addresses[0].as_str()).collect::<Vec<_>>(), ["10.1.0.1"]);
}

#[test]
fn slices_of_ours_are_never_handed_on() {
    let same = settings(NamespaceMapping::Same);
    assert!(slice_down(&slice(DOMAIN), &same).is_none());
    let mut marked = slice("somebody");
    marked.metadata.labels.get_or_insert_default().insert(label::UPPER_CLUSTER.into(), "other".into());
    assert!(slice_down(&marked, &same).is_none());
}

#[test]
fn what_an_api_server_filled_in_is_no_difference_but_a_missing_endpoint_is() {
    let wanted =
        json!({"labels": {label::VIRTUAL_NODE: "b"}, "ports": [{"port": 80}], "endpoints": [{"addresses": ["1"]}]});
    let actual = json!({"labels": {label::VIRTUAL_NODE: "a", "x": "y"}, "ports": [{"port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["1"], "conditions": {}}], "clusterIP": "10.9.9.9"});
    assert!(covers(&actual, &wanted));
    let fewer = json!({"labels": {}, "ports": [{"port": 80}], "endpoints": []});
    assert!(!covers(&fewer, &wanted) && !covers(&actual, &fewer));
    assert!(covers(&json!({"endpoints": null}), &json!({"endpoints": [], "ports": []})));
}

#[test]
fn only_what_cannot_be_changed_takes_a_new_object() {
    let headless = down(&json!({"clusterIP": "None"}));
    let plain = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.9.9.9"}});
    assert!(needs_another(&plain, &headless));
    assert!(!needs_another(&plain, &down(&json!({"clusterIP": "10.0.0.7", "ports": [{"port": 81}]}))));
    assert!(needs_another(&plain, &down(&json!({"type": "ExternalName", "externalName": "db.example"}))));
}
