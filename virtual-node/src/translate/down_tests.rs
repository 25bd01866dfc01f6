#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::needless_pass_by_value)]

use k8s_openapi::api::core::v1::EnvVar;
use serde_json::{Value, json};

use super::*;
use crate::{
    names::NamespaceMapping,
    translate::{EnvFromKeys, carried_digest, generate::settings, token_secret_name},
};

fn pod(value: Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

fn with_spec(spec: Value) -> Pod {
    pod(json!({"metadata": {"name": "web", "namespace": "team", "uid": "u1"}, "spec": spec}))
}

fn below(upper: &Pod) -> Pod {
    let settings = settings();
    pod_down(upper, &Context::new(&settings)).unwrap()
}

/// A pod of a Deployment as kube-apiserver 1.36 shows it once kube-scheduler has bound it to a virtual node.
fn sample() -> Pod {
    pod(json!({
        "metadata": {
            "name": "web-5d4f-x2x", "generateName": "web-5d4f-", "namespace": "team", "uid": "u1",
            "resourceVersion": "812", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "web", "pod-template-hash": "5d4f"},
            "annotations": {"team": "red"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "uid": "r1"}]
        },
        "spec": {
            "nodeName": "vn-1", "priority": 0, "preemptionPolicy": "PreemptLowerPriority", "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "serviceAccountName": "web", "serviceAccount": "web",
            "enableServiceLinks": true, "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
            "tolerations": [
                {"key": "virtual-kubelet.io/provider", "operator": "Exists"},
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "nodeSelector": {"type": "virtual-kubelet"},
            "containers": [{"name": "web", "image": "web:1", "env": [
                {"name": "NS", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}}],
                "volumeMounts": [{"name": "kube-api-access-q", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                    "readOnly": true}]}],
            "volumes": [{"name": "kube-api-access-q", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}}]
        },
        "status": {"phase": "Pending", "qosClass": "BestEffort"}
    }))
}

#[test]
fn a_deployments_pod_goes_down_like_this() {
    let upper = sample();
    let mut settings = settings();
    settings.namespaces = NamespaceMapping::Same;
    let lower = pod_down(&upper, &Context::new(&settings)).unwrap();
    assert_eq!(
        json!(lower),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web-5d4f-x2x", "namespace": "team",
                "labels": {"app": "web", "pod-template-hash": "5d4f",
                    "tensile.dev/upper-cluster": "1f0e3dad-9990-4444-8888-000000000000",
                    "tensile.dev/upper-uid": "u1", "tensile.dev/virtual-node": "vn-1"},
                "annotations": {"team": "red", "tensile.dev/upper-namespace": "team",
                    "tensile.dev/upper-name": "web-5d4f-x2x", "tensile.dev/upper-uid": "u1",
                    "tensile.dev/upper-node": "vn-1", "tensile.dev/upper-service-account": "web",
                    "tensile.dev/carried": carried_digest(&upper), "tensile.dev/generation": "1/1"}
            },
            "spec": {
                "restartPolicy": "Always", "automountServiceAccountToken": false,
                "enableServiceLinks": false, "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
                "tolerations": [
                    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
                "containers": [{"name": "web", "image": "web:1", "env": [
                    {"name": "KUBERNETES_SERVICE_HOST", "value": "203.0.113.7"},
                    {"name": "KUBERNETES_SERVICE_PORT", "value": "6443"},
                    {"name": "KUBERNETES_SERVICE_PORT_HTTPS", "value": "6443"},
                    {"name": "KUBERNETES_PORT", "value": "tcp://203.0.113.7:6443"},
                    {"name": "KUBERNETES_PORT_6443_TCP", "value": "tcp://203.0.113.7:6443"},
                    {"name": "KUBERNETES_PORT_6443_TCP_PROTO", "value": "tcp"},
                    {"name": "KUBERNETES_PORT_6443_TCP_PORT", "value": "6443"},
                    {"name": "KUBERNETES_PORT_6443_TCP_ADDR", "value": "203.0.113.7"},
                    {"name": "NS", "valueFrom": {"fieldRef": {"apiVersion": "v1",
                        "fieldPath": "metadata.annotations['tensile.dev/upper-namespace']"}}}],
                    "volumeMounts": [{"name": "kube-api-access-q",
                        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}]}],
                "volumes": [{"name": "kube-api-access-q", "projected": {"defaultMode": 420, "sources": [
                    {"secret": {"name": token_secret_name("u1", "kube-api-access-q"),
                        "items": [{"key": "token", "path": "token"}]}},
                    {"configMap": {"name": "tensile-root-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1",
                        "fieldPath": "metadata.annotations['tensile.dev/upper-namespace']"}}]}}]}}]
            }
        })
    );
}

#[test]
fn pods_that_may_complete_carry_the_finalizer() {
    let finalizers = |spec: Value| below(&with_spec(spec)).metadata.finalizers;
    let ours = Some(vec!["tensile.dev/result".to_owned()]);
    assert_eq!(finalizers(json!({"containers": []})), None);
    assert_eq!(finalizers(json!({"containers": [], "restartPolicy": "Always"})), None);
    assert_eq!(finalizers(json!({"containers": [], "restartPolicy": "Never"})), ours);
    assert_eq!(finalizers(json!({"containers": [], "restartPolicy": "OnFailure"})), ours);
    assert_eq!(finalizers(json!({"containers": [], "activeDeadlineSeconds": 5})), ours);
    assert_eq!(finalizers(json!({"containers": [{"name": "c", "restartPolicy": "Never"}]})), ours);
}

#[test]
fn whole_maps_travel_as_annotations_where_a_volume_asks() {
    let mut upper = with_spec(json!({"containers": [], "volumes": [{"name": "v", "downwardAPI": {"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}));
    upper.metadata.labels = Some([("app".into(), "web".into()), ("b".into(), "x\"y".into())].into());
    let annotations = below(&upper).metadata.annotations.unwrap();
    assert_eq!(annotations["tensile.dev/upper-labels"], "app=\"web\"\nb=\"x\\\"y\"");
    assert!(!annotations.contains_key("tensile.dev/upper-annotations"));
}

/// What a container of the lower pod sets by name, but for the upper API server's address.
fn variables(lower: &Pod) -> Vec<String> {
    let all = lower.spec.as_ref().unwrap().containers[0].env.iter().flatten().map(|each| each.name.clone());
    all.filter(|name| !name.starts_with("KUBERNETES_")).collect()
}

fn web() -> [EnvVar; 2] {
    let variable = |name: &str| EnvVar { name: name.into(), value: Some("10.0.0.9".into()), value_from: None };
    [variable("WEB_SERVICE_HOST"), variable("WEB_PORT")]
}

#[test]
fn service_variables_take_the_place_of_the_lower_ones() {
    let (services_env, settings) = (web(), settings());
    let ctx = Context { services_env: &services_env, ..Context::new(&settings) };
    let linked = pod_down(&with_spec(json!({"containers": [{"name": "c"}]})), &ctx).unwrap();
    assert_eq!(variables(&linked), ["WEB_SERVICE_HOST", "WEB_PORT"]);
    let opted_out = with_spec(json!({"containers": [{"name": "c"}], "enableServiceLinks": false}));
    let opted_out = pod_down(&opted_out, &ctx).unwrap();
    assert!(variables(&opted_out).is_empty());
    for lower in [linked, opted_out, below(&with_spec(json!({"containers": [{"name": "c"}]})))] {
        assert_eq!(lower.spec.unwrap().enable_service_links, Some(false));
    }
}

#[test]
fn what_a_container_sets_itself_is_not_covered_by_a_service() {
    let (services_env, settings) = (web(), settings());
    let of = |sources: Value, env: Value| {
        let upper = with_spec(json!({"containers": [{"name": "c", "env": env, "envFrom": sources}]}));
        let keys = |name: &str| (name == "known").then(|| vec!["WEB_PORT".to_owned(), "PORT".to_owned()]);
        let env_from = EnvFromKeys::of(upper.spec.as_ref().unwrap(), keys, keys);
        let ctx = Context { services_env: &services_env, env_from: &env_from, ..Context::new(&settings) };
        variables(&pod_down(&upper, &ctx).unwrap())
    };
    let own = json!([{"name": "WEB_SERVICE_HOST", "value": "mine"}]);
    assert_eq!(of(json!([]), own), ["WEB_PORT", "WEB_SERVICE_HOST"]);
    assert_eq!(of(json!([{"configMapRef": {"name": "known"}}]), json!([])), ["WEB_SERVICE_HOST"]);
    assert_eq!(of(json!([{"secretRef": {"name": "known"}}]), json!([])), ["WEB_SERVICE_HOST"]);
    assert_eq!(of(json!([{"prefix": "WEB_", "secretRef": {"name": "known"}}]), json!([])), ["WEB_SERVICE_HOST"]);
    let prefixed = json!([{"prefix": "MY_", "configMapRef": {"name": "known"}}, {"secretRef": {"name": "other"}}]);
    assert_eq!(of(prefixed, json!([])), ["WEB_SERVICE_HOST", "WEB_PORT"]);
}

#[test]
fn the_cluster_ca_is_the_upper_one_in_environments_too() {
    let upper = with_spec(json!({"containers": [{"name": "c",
        "env": [{"name": "CA", "valueFrom": {"configMapKeyRef": {"name": "kube-root-ca.crt", "key": "ca.crt"}}}],
        "envFrom": [{"configMapRef": {"name": "kube-root-ca.crt"}}, {"configMapRef": {"name": "other"}}]}]}));
    let container = json!(below(&upper).spec.unwrap().containers[0]);
    assert_eq!(container["env"][8]["valueFrom"]["configMapKeyRef"]["name"], "tensile-root-ca");
    assert_eq!(
        container["envFrom"],
        json!([{"configMapRef": {"name": "tensile-root-ca"}}, {"configMapRef": {"name": "other"}}])
    );
}

#[test]
fn the_lower_scheduler_is_a_setting() {
    let mut settings = settings();
    settings.lower_scheduler_name = Some("bin-packer".into());
    let upper = with_spec(json!({"containers": [], "schedulerName": "multi-scheduler"}));
    let lower = pod_down(&upper, &Context::new(&settings)).unwrap();
    assert_eq!(lower.spec.unwrap().scheduler_name.as_deref(), Some("bin-packer"));
    assert_eq!(below(&upper).spec.unwrap().scheduler_name, None);
}

#[test]
fn a_reserved_node_pins_the_pod() {
    let mut upper = with_spec(json!({"containers": []}));
    upper.metadata.annotations = Some([("tensile.dev/reserved-node".into(), "worker-7".into())].into());
    let affinity = json!(below(&upper).spec.unwrap().affinity);
    assert_eq!(
        affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]["matchFields"],
        json!([{"key": "metadata.name", "operator": "In", "values": ["worker-7"]}])
    );
}

#[test]
fn what_cannot_be_had_below_is_refused_with_its_name() {
    let settings = settings();
    let ctx = Context::new(&settings);
    let refusal = |upper: Pod| pod_down(&upper, &ctx).unwrap_err();
    let claims = refusal(with_spec(json!({"containers": [], "resourceClaims": [{"name": "gpu"}]})));
    assert_eq!(claims.reason, "ResourceClaimsNotSupported");
    assert!(claims.message.contains("\"gpu\""), "{claims}");
    let volume = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    assert_eq!(refusal(with_spec(json!({"containers": [], "volumes": volume}))).reason, "VolumesNotSupported");
    assert_eq!(refusal(pod(json!({"metadata": {"name": "x"}}))).reason, "Malformed");
}
